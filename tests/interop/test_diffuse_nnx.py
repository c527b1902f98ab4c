"""A stand-in with the interfaces' `pred`; diffuse_nnx's own: experiments.interop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import guidejax as gj
from guidejax.interop import diffuse_nnx
from tests.interop.common import LABELS, NOISE, NULL, network, sample


class Interface(nnx.Module):
    """Of velocity ε − x0, or with data at t = 1 as the published SiT has it."""

    def __init__(self, data_at=0):
        self.gain, self.data_at = nnx.Param(jnp.float32(1.0)), data_at

    def pred(self, x_t, t, y):
        if self.data_at:
            return -self.gain[...] * network(x_t, 1 - t, y)
        return self.gain[...] * network(x_t, t, y)


@pytest.mark.parametrize("data_at", [0, 1])
def test_sit_in_either_direction_of_time(data_at):
    guide = gj.guidance(gj.adg, omega=2.0)
    want = sample(gj.processes.rectified_flow(), "velocity", guide)
    denoise = diffuse_nnx.sit(Interface(data_at), data_at=data_at)
    times = np.linspace(0.9, 0.1, 6).astype(np.float32)
    options = {"cond": LABELS, "uncond": jnp.int32(NULL), "guidance": guide, "times": times}
    run = jax.jit(
        lambda denoise: gj.sample(jax.random.key(0), denoise, NOISE, solver=gj.ddim(), **options)
    )
    np.testing.assert_allclose(run(denoise), want, rtol=1e-5, atol=1e-5)


def test_edm_is_told_sigma():
    denoise = diffuse_nnx.edm(Interface())
    sigma = float(denoise.process.sigma(0.5))
    want = NOISE - sigma * network(NOISE, jnp.full(4, sigma), LABELS)
    np.testing.assert_allclose(denoise(NOISE, 0.5, LABELS), want, rtol=1e-5, atol=1e-5)


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"pred\(x_t, t, y=...\)"):
        diffuse_nnx.sit(network)
    with pytest.raises(ValueError, match="data_at"):
        diffuse_nnx.sit(Interface(), data_at=2)

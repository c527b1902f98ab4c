import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.interop.diffrax import vector_field
from tests.interop.common import LABELS, NOISE, NULL, network, sample

FLOW = gj.processes.rectified_flow()
DENOISE = gj.denoiser(network, FLOW)


def solve(omega):
    guide = gj.guidance(gj.adg, omega=omega)
    field = gj.guided(DENOISE, guide, cond=LABELS, uncond=jnp.int32(NULL))
    term = diffrax.ODETerm(vector_field)
    return diffrax.diffeqsolve(term, diffrax.Heun(), 0.9, 0.1, -0.1, NOISE, args=field).ys[-1]


@pytest.mark.slow
def test_its_heun_is_ours():
    times = np.linspace(0.9, 0.1, 9)
    want = sample(FLOW, "x0", gj.guidance(gj.adg, omega=2.0), gj.heun(), times)
    np.testing.assert_allclose(jax.jit(solve)(2.0), want, rtol=1e-4, atol=1e-4)


def test_another_field_is_refused():
    with pytest.raises(ValueError, match=r"gj\.guided"):
        vector_field(0.5, NOISE, None)

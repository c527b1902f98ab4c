"""What the sampler promises of programs that XLA has optimized: FLOPs, and the same samples."""

import functools

import jax
import jax.numpy as jnp
import pytest
from solvers.common import SOLVERS

import guidejax as gj
from tests.helpers import sample
from tests.test_sampling_passes import KEY, NETWORKS, PROCESS, skipped_is_unskipped

pytestmark = pytest.mark.optimized


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "ddim churn"])
def test_skipped_is_unskipped(name, network):
    """Where products are fused with the sampler's own lines, in another way for each, too."""
    skipped_is_unskipped(name, network)


def _flops(run, *args):
    return jax.jit(run).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.slow
def test_flops_are_those_of_the_passes():
    """Within 1% of a bare scan of the network's evaluations.

    XLA counts a loop's body once, and the body of every solver is one prediction.
    """
    width, batch = 2048, 64
    layers = jax.ShapeDtypeStruct((2, width, width), jnp.float32)
    noise = jax.ShapeDtypeStruct((batch, width), jnp.float32)
    cond = jnp.ones(batch)

    def network(layers, x, t, cond):
        h = x + (cond + t)[:, None]
        for layer in layers:
            h = jax.nn.relu(h @ layer)
        return h

    @functools.cache
    def floor(passes):
        def run(layers, x):
            def body(x, t):
                at = jnp.full(batch, t)
                return sum(network(layers, x, at, cond * k) for k in range(passes)), None

            return jax.lax.scan(body, x, jnp.asarray(gj.uniform_times(8)))[0]

        return _flops(run, layers, noise)

    def sampler(omega, solver):
        def run(layers, x):
            return sample(
                KEY, gj.denoiser(network, PROCESS, params=layers), PROCESS, x,
                times=gj.uniform_times(8, 1.0, 0.1), cond=cond, uncond=0.0,
                guidance=gj.guidance(gj.cfg, omega), solver=solver,
            )  # fmt: skip

        return _flops(run, layers, noise)

    for name, make in SOLVERS.items():
        omegas = (1.0, 0.0) if name in ("ddim", "heun") else (1.0,)
        for omega in omegas:
            flops = sampler(omega, make())
            if name == "edm_heun gamma":  # counted at every prediction, drawn at every other one
                flops = (flops + sampler(omega, SOLVERS["edm_heun"]())) / 2
            ratio = flops / floor(1 if omega == 0 else 2)
            assert 0.99 < ratio < 1.01, (name, omega, ratio)

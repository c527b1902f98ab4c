"""The adapter in a loop with hackable_diffusion's protocol: DDIM by x̂0, its arguments by name."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.interop.hackable_diffusion import guidance_fn
from tests.interop.common import LABELS, NOISE, NULL, TIMES, learned, network, sample

FLOW, COSINE = gj.processes.rectified_flow(), gj.processes.cosine()


def to_theirs(name, x0, x, t, process):
    """A prediction by their formulas, of which velocity is dx/dt."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    eps = (x - alpha * x0) / sigma
    d_alpha, d_sigma = process.derivatives(t)
    return {
        "x0": x0,
        "epsilon": eps,
        "score": -eps / sigma,
        "v": alpha * eps - sigma * x0,
        "velocity": d_alpha * x0 + d_sigma * eps,
    }[name]


def their_loop(fn, process, names, read):
    """Their sampler: predictions of both branches as dicts, the guided one read by one name."""

    def outputs(x, t, label):
        x0 = network(x, jnp.full(len(x), t), label)
        return {name: to_theirs(name, x0, x, t, process) for name in names}

    x = NOISE
    for t, s in itertools.pairwise(TIMES):
        found = fn(
            xt=x,
            conditioning={"label": LABELS},
            time=jnp.full((len(x), 1), t),
            cond_outputs=outputs(x, t, LABELS),
            uncond_outputs=outputs(x, t, jnp.full_like(LABELS, NULL)),
        )
        assert set(found) == set(names)
        # What was read, as x̂0 again: the map is affine.
        zero, one = (to_theirs(read, jnp.full_like(x, v), x, t, process) for v in (0.0, 1.0))
        x0 = (found[read] - zero) / (one - zero)
        eps = (x - process.alpha(t) * x0) / process.sigma(t)
        x = process.alpha(s) * x0 + process.sigma(s) * eps
    return x


ALL = ("x0", "epsilon", "score", "v", "velocity")
RULES = {
    "cfg": lambda: gj.guidance(gj.cfg, omega=2.0),
    "adg": lambda: gj.guidance(gj.adg, omega=2.0),
    "interval": lambda: gj.guidance(gj.cfg, gj.interval(2.0, lo=0.3, hi=0.6)),
    "learned": lambda: gj.guidance(gj.cfg, omega=learned()),
}


@pytest.mark.slow
@pytest.mark.parametrize("process", [FLOW, COSINE], ids=["flow", "cosine"])
@pytest.mark.parametrize("rule", RULES)
def test_a_loop_reads_any_prediction_of_the_dict(rule, process):
    guide = RULES[rule]()
    fn = guidance_fn(guide, TIMES, process, condition=lambda given: given["label"])
    want = sample(process, "x0", guide)
    for read in ALL:
        np.testing.assert_allclose(their_loop(fn, process, ALL, read), want, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ALL)
def test_one_prediction_alone(name):
    guide = gj.guidance(gj.adg, omega=2.0)
    fn = guidance_fn(guide, TIMES, COSINE)
    got = their_loop(fn, COSINE, (name,), name)
    np.testing.assert_allclose(got, sample(COSINE, "x0", guide), rtol=2e-4, atol=2e-4)


def test_under_jit_a_new_omega_does_not_compile_again():
    traces = []

    @jax.jit
    def guided(fn, x, cond, uncond):
        traces.append(1)
        return fn(x, None, jnp.full((len(x), 1), 0.5), {"x0": cond}, {"x0": uncond})["x0"]

    cond, uncond = jnp.ones_like(NOISE), jnp.zeros_like(NOISE)
    for omega in (1.0, 2.0):
        fn = guidance_fn(gj.guidance(gj.cfg, omega=omega), TIMES, FLOW)
        np.testing.assert_allclose(guided(fn, NOISE, cond, uncond), 1 + omega, rtol=1e-6)
    assert len(traces) == 1


def test_omega_0_leaves_every_prediction_as_it_is():
    fn = guidance_fn(gj.guidance(gj.adg, omega=0.0), TIMES, COSINE)
    outputs = {name: NOISE * i for i, name in enumerate(ALL, 1)}
    found = fn(NOISE, None, jnp.full((4, 1), 0.5), outputs, {n: v + 1 for n, v in outputs.items()})
    for name in ALL[:-1]:
        np.testing.assert_array_equal(found[name], outputs[name])


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="carries state"):
        guidance_fn(gj.guidance(gj.rules.apg_momentum, omega=1.0), TIMES, FLOW)
    with pytest.raises(ValueError, match="branches cond and uncond alone"):
        guidance_fn(gj.guidance(gj.autoguidance, omega=1.0), TIMES, FLOW)
    with pytest.raises(ValueError, match="expected a process"):
        guidance_fn(gj.guidance(gj.cfg), TIMES, "flow")
    with pytest.raises(ValueError, match="steps \\+ 1"):
        guidance_fn(gj.guidance(gj.cfg), [0.5], FLOW)
    fn = guidance_fn(gj.guidance(gj.cfg, omega=1.0), TIMES, FLOW)
    time = jnp.full((4, 1), 0.5)
    with pytest.raises(ValueError, match="logits"):
        fn(NOISE, None, time, {"logits": NOISE}, {"logits": NOISE})
    with pytest.raises(ValueError, match="same predictions of both"):
        fn(NOISE, None, time, {"x0": NOISE}, {"v": NOISE})

"""Weights that see x_t and the predictions, ranges, and outputs of several kinds."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.weights import Range, Step
from guidejax.weights.omega_net import RANGES, SIGHTS, positive

RF, KEY = gj.processes.rectified_flow(), jax.random.key(0)
NOISE = jax.random.normal(KEY, (4, 3))
LABELS = jnp.array([0.5, 1.0, -0.3, 0.0])
TIMES = gj.uniform_times(5)


def _network(x, t, cond):
    return jnp.tanh(x + cond[:, None])


DENOISE = gj.denoiser(_network, RF)


def _length(params, step):
    """ω of the gap between the predictions, with a mark in the program."""
    gap = step.predictions["cond"] - step.predictions["uncond"]
    return params * jnp.arctan(jnp.sqrt(jnp.sum(gap**2, axis=-1)))


def _late(params, step):
    return params * jnp.arcsin(1 - step.t / 2)


LENGTH = gj.Weight(jnp.array(2.0), _length, None, True)
LATE = gj.Weight(jnp.array(1.5), _late)


def _run(omega, noise=NOISE, **options):
    return gj.sample(
        KEY, DENOISE, noise, cond=LABELS, uncond=-1.0,
        guidance=gj.guidance(gj.cfg, omega=omega), **{"times": TIMES, **options},
    )  # fmt: skip


def _by_hand(omega):
    """The loop written out, ω(step) asked at every step."""
    x = NOISE
    for t, s in itertools.pairwise(TIMES.tolist()):
        now = jnp.full(4, t)
        c, u = _network(x, now, LABELS), _network(x, now, jnp.full(4, -1.0))
        step = Step(s, t, LABELS, RF, TIMES, x, {"cond": c, "uncond": u})
        x0 = c + jnp.reshape(omega(step), (-1, 1)) * (c - u)
        x = s / t * x + (1 - s / t) * x0
    return x


@pytest.mark.slow
def test_a_weight_that_sees_is_asked_at_every_step():
    np.testing.assert_allclose(_run(LENGTH), _by_hand(LENGTH.at), rtol=1e-5, atol=1e-6)
    state = gj.Weight((), lambda params, step: jnp.abs(step.x).mean(axis=-1), None, True)
    np.testing.assert_allclose(_run(state), _by_hand(state.at), rtol=1e-5, atol=1e-6)


def _inside(jaxpr, scanned=False):
    """(name of each primitive, whether it stands in the body of a scan)."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name, scanned
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _inside(inner, scanned or equation.primitive.name == "scan")


def test_only_weights_that_see_are_evaluated_in_the_loop():
    program = jax.make_jaxpr(lambda noise: _run(LENGTH + LATE * 1.0, noise))(NOISE).jaxpr
    both = set(_inside(program))
    assert ("atan", True) in both
    apart = gj.guidance(gj.apg, omega=LATE, eta=LENGTH)
    program = jax.make_jaxpr(
        lambda noise: gj.sample(
            KEY, DENOISE, noise, cond=LABELS, uncond=-1.0, guidance=apart, times=TIMES
        )
    )(NOISE).jaxpr
    found = set(_inside(program))
    assert ("atan", True) in found
    assert ("atan", False) not in found
    assert ("asin", False) in found  # tabulated ahead of the loop
    assert ("asin", True) not in found


def test_a_weight_that_sees_has_no_table():
    net = gj.OmegaNet(sees=("angle",), hidden=4, depth=1)
    for weight in (LENGTH, LENGTH * 2.0, LENGTH.clip(0.0, 1.0), net.weight(net.init(KEY))):
        with pytest.raises(ValueError, match="sees"):
            weight.table(TIMES, process=RF)
        with pytest.raises(ValueError, match="sees"):
            gj.schedules.to_table(weight, TIMES, process=RF)


@pytest.mark.slow
def test_arithmetic_of_weights_that_see():
    inside = gj.interval(1.0, 0.3, 0.7)
    made = {
        "times": (LENGTH * inside, lambda step: LENGTH.at(step) * inside.at(step)),
        "plus": (0.5 + LENGTH, lambda step: LENGTH.at(step) + 0.5),
        "less": (LENGTH - LATE, lambda step: LENGTH.at(step) - LATE.at(step)),
        "over": (LATE / (1.0 + LENGTH), lambda step: LATE.at(step) / (1 + LENGTH.at(step))),
        "clipped": (LENGTH.clip(0.5, 1.0), lambda step: jnp.clip(LENGTH.at(step), 0.5, 1.0)),
        "negative": (-LENGTH, lambda step: -LENGTH.at(step)),
    }
    for name, (weight, omega) in made.items():
        assert weight.sees_state, name
        np.testing.assert_allclose(
            _run(weight), _by_hand(omega), rtol=1e-5, atol=1e-5, err_msg=name
        )
    assert not (LATE * 2.0 + inside).sees_state


def test_where_a_weight_that_sees_is_known_to_be_zero_no_pass_is_made():
    calls = []

    def counted(x, t, cond):
        jax.debug.callback(lambda c: calls.append(float(c)), cond[0])
        return _network(x, t, cond)

    gj.sample(
        KEY, gj.denoiser(counted, RF), NOISE, cond=LABELS, uncond=-1.0, times=TIMES,
        guidance=gj.guidance(gj.cfg, LENGTH * gj.interval(1.0, 0.3, 0.7)), branches="sequential",
    )  # fmt: skip
    jax.effects_barrier()
    assert calls.count(0.5) == 5
    assert calls.count(-1.0) == 2  # of t = 1, 0.8, 0.6, 0.4, 0.2 two are inside


# What may be seen.


def _look(sight, cond, uncond, x):
    step = Step(0.3, 0.5, None, RF, None, x, {"cond": cond, "uncond": uncond})
    return SIGHTS[sight](step)


CASES = {
    "apart": (1.0, 0.5, 1.0),
    "no gap": (1.0, 1.0, 1.0),
    "all zero": (0.0, 0.0, 0.0),
    "opposite": (1.0, -1.0, 1.0),
    "tiny": (1e-25, 1e-26, 1e-25),
    "huge": (1e25, -1e25, 1e25),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sight", SIGHTS)
def test_sights_are_finite_in_value_and_gradient(sight, case):
    shape = jnp.array([[1.0, -2.0, 0.5], [0.0, 1.0, 0.0]])
    arrays = [size * shape for size in CASES[case]]
    value, slopes = jax.value_and_grad(lambda *a: _look(sight, *a).sum(), (0, 1, 2))(*arrays)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(slope)) for slope in slopes)
    low = _look(sight, *(a.astype(jnp.bfloat16) for a in arrays))
    assert np.all(np.isfinite(low))
    assert low.shape == (2, 2 if sight == "norms" else 1)


def test_sights_are_what_they_say():
    cond, uncond = jnp.array([[3.0, 0.0, 0.0]]), jnp.array([[0.0, 4.0, 0.0]])
    x = jnp.array([[1.0, 2.0, 2.0]])
    rms = lambda size: math.log(size / 3**0.5 + math.exp(-5.0))
    look = lambda sight: _look(sight, cond, uncond, x)[0].tolist()
    np.testing.assert_allclose(look("angle"), [math.pi / 2], rtol=1e-6)
    np.testing.assert_allclose(look("norms"), [rms(3.0), rms(4.0)], rtol=1e-5)
    np.testing.assert_allclose(look("delta"), [rms(5.0)], rtol=1e-5)
    np.testing.assert_allclose(look("state"), [rms(3.0)], rtol=1e-5)


# Ranges.

SOME = [*RANGES.values(), Range(-1.0, hi=0.5), Range(2.0), Range(-0.3, lo=-1.0, hi=4.0)]


@pytest.mark.slow
@pytest.mark.parametrize("each", SOME, ids=str)
def test_a_range_starts_where_it_says_and_keeps_its_ends(each):
    np.testing.assert_allclose(each.value(jnp.array(each.bias())), each.init, rtol=1e-5)
    z = jnp.linspace(-12, 12, 97)
    value = each.value(z)
    assert np.all(np.diff(value) > 0)
    assert each.lo is None or np.all(value > each.lo)
    assert each.hi is None or np.all(value < each.hi)
    slope = jax.vmap(jax.grad(each.value))(z)
    assert np.all(np.isfinite(slope) & (slope > 0))


def test_a_positive_number_is_the_formula_of_the_docs(x64):
    z = np.linspace(-5, 5, 41)
    np.testing.assert_allclose(positive(jnp.asarray(z)), (z + np.sqrt(z**2 + 0.01)) / 2, rtol=1e-9)


@pytest.mark.parametrize(
    ("init", "lo", "hi"), [(0.0, 0.0, 1.0), (1.0, 0.0, 1.0), (2.0, 0.0, 1.0), (math.nan, None, 1.0)]
)
def test_a_start_outside_the_range(init, lo, hi):
    with pytest.raises(ValueError, match="init"):
        Range(init, lo, hi)


def test_a_network_of_several_numbers_starts_at_their_ranges():
    outputs = {"omega": Range(3.0, lo=0.0), "eta": RANGES["eta"], "beta": Range(-0.5, -1.0, 0.0)}
    net = gj.OmegaNet(num_classes=3, hidden=4, depth=1, outputs=outputs)
    weights = net.weights(net.init(KEY))
    assert list(weights) == ["omega", "eta", "beta"]
    for name, weight in weights.items():
        got = weight(0.3, 0.6, jnp.arange(3), process=RF)
        np.testing.assert_allclose(got, outputs[name].init, rtol=1e-5)
    with pytest.raises(ValueError, match="momentum"):
        gj.OmegaNet(outputs=("omega", "momentum"))
    with pytest.raises(ValueError, match="nose"):
        gj.OmegaNet(sees=("nose",))


@pytest.mark.slow
def test_a_network_sees_what_a_function_of_the_step_gives():
    """A sight of one's own: (batch, features), joined to the others."""
    mean = lambda step: jnp.mean(step.x, axis=-1, keepdims=True)
    net = gj.OmegaNet(hidden=4, depth=1, sees=("angle", mean))
    phi = jax.tree.map(lambda leaf: leaf + 0.1, net.init(KEY))
    weight = net.weight(phi)
    assert weight.sees_state
    cond, uncond = jax.random.normal(KEY, (2, 4, 3))
    ask = lambda x: weight(0.3, 0.5, process=RF, x=x, predictions={"cond": cond, "uncond": uncond})
    assert ask(NOISE).shape == (4,)
    assert not np.allclose(ask(NOISE), ask(NOISE + 1))
    np.testing.assert_allclose(_run(weight).shape, (4, 3))

"""Every rule on samples of every kind, size, shape and dtype: a rule is tested by being registered.

Of all rules there is one program a shape and dtype, so that a case costs nothing but its numbers.
"""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from guidejax.processes import linear_vp
from guidejax.rules import RULES
from tests.cases import (
    BATCH,
    EACH,
    EXPONENTS,
    OMEGAS,
    TIMES,
    arrays,
    batches,
    each,
    per_sample,
    pick,
)

from .common import VARIANTS, arrays_of, numbers_of
from .test_common import OF_OTHER_DEGREE

NAMES = sorted({name for rule in RULES.values() for name in arrays_of(rule)})
# Numbers at their ends, for the rules that have them.
ENDS = {
    "cap": (1.0, 1.05),
    "cutoff": (0.0, 0.05, 1.5),
    "damping": (0.0, 8.0, 1e4),
    "decay": (0.0, 0.75, 1.0),
    "eta": (0.0, 0.1, 1.0),
    "gamma": (0.0, 0.5, 1.0),
    "limit": (1e-3, 1.0),
    "low": (0.0, 4 / 9, 1.0),
    "max_angle": (0.0, 1.0, 3.2),
    "max_norm": (0.0, 1e-30, 2.0, np.inf),
    "mimic_omega": (-1.0, 0.0, 6.0),
    "mix": (0.0, 0.5, 1.0),
    "momentum": (-0.5, 0.0, 0.9),
    "parallel": (0.0, 0.5, 1.0),
    "percentile": (0.0, 50.0, 99.5, 100.0),
    "phi": (0.0, 0.7, 1.0),
    "pi": (0.5, 0.95, 0.999),
    "power": (0.0, 0.9, 1.0),
    "ratio": (0.0, 0.8, 2.0),
    "rho": (0.0, 1.0, 1.5),
    "share": (0.0, 0.7, 1.0),
    "strength": (0.0, 0.5, 1.0),
    "temperature": (0.0, 0.0035, 1.0),
}
BY_DTYPE = [
    ((5,), "float32"),
    ((1,), "float64"),
    ((3, 1), "bfloat16"),
    ((2, 3, 2), "float32"),
    ((3, 1, 2, 2), "float16"),
]
slow = pytest.mark.slow
programs = pytest.mark.parametrize(
    ("shape", "dtype"),
    [pytest.param(*each, marks=[slow] * (i > 0)) for i, each in enumerate(BY_DTYPE)],
    ids=[f"{dtype} {shape}" for shape, dtype in BY_DTYPE],
)


@functools.cache
def cases(axes):
    """{name: (rule, options)} of every rule, and its variants on samples of several axes."""
    found = {name: (rule, numbers_of(rule)[1]) for name, rule in RULES.items()}
    for name, variants in VARIANTS.items():
        for i, variant in enumerate(variants if axes == 3 else ()):
            found[f"{name} {i}"] = RULES[name], numbers_of(RULES[name], variant)[1]
    return found


def numbers(shape, ends, dtype):
    """The traced numbers of each case, (batch,), where `ends` has them those."""
    found = {}
    for case, (rule, options) in cases(len(shape)).items():
        own = {k: v for k, v in numbers_of(rule, None, BATCH)[0].items() if k not in options}
        if "known" in own:
            own["known"] = jnp.asarray(np.ones((BATCH, *shape)), dtype)
        found[case] = {k: jnp.asarray(ends[k]) if k in ends else v for k, v in own.items()}
    return found


def states(shape, drawn):
    return {
        case: () if rule.init is None else rule.init(drawn[arrays_of(rule)[0]])
        for case, (rule, _) in cases(len(shape)).items()
    }


def one(case, axes, drawn, omega, own, state, t, process):
    rule, options = cases(axes)[case]
    known = {**drawn, "omega": omega, "state": state, "process": process, "t": t, "s": 0.9 * t}
    result = rule(**{name: known[name] for name in rule.takes}, **own, **options)
    return result if rule.init is not None else (result, state)


@functools.partial(jax.jit, static_argnums=0)
def every(axes, drawn, omega, own, state, t, process):
    """(guided, next state) of every case."""
    return {
        case: one(case, axes, drawn, omega, own[case], state[case], t, process)
        for case in cases(axes)
    }


def wide(tree):
    def one(leaf):
        leaf = jnp.asarray(leaf)
        return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)


ends_of_numbers = st.integers(0, 2**16).map(lambda seed: pick(ENDS, seed))
times = each(TIMES)
processes = st.sampled_from([linear_vp(), linear_vp(0.1, 30.0)])


def prepared(shape, dtype, drawn, ends, t, before, omega, process):
    """The arguments of `every`, after a step of other predictions if there is one `before`."""
    own, drawn = numbers(shape, ends, dtype), arrays(NAMES, drawn, shape, dtype)
    state = states(shape, drawn)
    if before is not None:
        other, earlier = arrays(NAMES, before, shape, dtype), jnp.minimum(1.05 * t, 1)
        outcome = every(len(shape), other, jnp.ones(BATCH, "f4"), own, state, earlier, process)
        state = {case: after for case, (_, after) in outcome.items()}
    return drawn, jnp.asarray(omega), own, state, jnp.asarray(t), process


def check_finite(shape, dtype, given):
    """No NaN; infinite only where the same in double precision has no place in the dtype."""
    drawn, omega, *_ = given
    found = every(len(shape), *given)
    exact = {}
    for case, (rule, _) in cases(len(shape)).items():
        guided, after = found[case]
        assert guided.shape == (BATCH, *shape), case
        assert guided.dtype == jnp.dtype(dtype), case
        value = np.asarray(guided, np.float64)
        for leaf in jax.tree.leaves((guided, after)):
            assert not np.any(np.isnan(np.asarray(leaf, np.float64))), case
        if np.any(np.isinf(value)):
            exact = exact or every(len(shape), *wide(given))
            true = np.abs(np.asarray(exact[case][0]))
            assert np.all(true[np.isinf(value)] > 0.9 * float(jnp.finfo(dtype).max)), case
        if rule.exact_at_zero and "omega" in rule.takes:
            same = np.asarray(guided == drawn["cond"]).reshape(BATCH, -1).all(axis=1)
            assert same[np.asarray(omega) == 0].all(), case


@pytest.mark.slow
@programs
def test_finite_from_finite_and_cond_at_zero(request, shape, dtype):
    @settings(EACH, max_examples=12 if dtype == "float32" and len(shape) == 1 else 60)
    @given(
        drawn=batches(EXPONENTS[dtype]), before=st.none() | batches(EXPONENTS[dtype]),
        ends=ends_of_numbers, t=times, omega=each(OMEGAS), process=processes,
    )  # fmt: skip
    def run(drawn, before, ends, t, omega, process):
        given = prepared(shape, dtype, drawn, ends, t, before, omega, process)
        check_finite(shape, dtype, given)

    with jax.enable_x64(True):
        run()


@programs
def test_a_nan_stays_in_its_sample(shape, dtype):
    """Wherever in whichever array; the other samples are what they were, bit for bit."""

    @settings(EACH, max_examples=6 if dtype == "float32" and len(shape) == 1 else 30)
    @given(
        drawn=batches(EXPONENTS[dtype]), ends=ends_of_numbers, t=times, omega=each(OMEGAS),
        sample=st.integers(0, BATCH - 1), at=st.integers(0, int(np.prod(shape)) - 1),
        name=st.sampled_from([*NAMES, "omega"]),
    )  # fmt: skip
    def run(drawn, ends, t, omega, sample, at, name):
        given = prepared(shape, dtype, drawn, ends, t, None, omega, linear_vp())
        clean = every(len(shape), *given)
        drawn, omega, *rest = given
        if name == "omega":
            omega = omega.at[sample].set(jnp.nan)
        else:
            spoiled = drawn[name].reshape(BATCH, -1).at[sample, at].set(jnp.nan)
            drawn = {**drawn, name: spoiled.reshape(drawn[name].shape)}
        broken = every(len(shape), drawn, omega, *rest)
        others = np.arange(BATCH) != sample
        for case, (rule, _) in cases(len(shape)).items():
            leaves = [jax.tree.leaves(outcome[case]) for outcome in (clean, broken)]
            for one, other in zip(*leaves, strict=True):
                np.testing.assert_array_equal(one[others], other[others], err_msg=case)
            nan = per_sample(np.isnan, leaves[1])
            assert not np.any(nan[others]), case
            assert nan[sample] == (name in (*arrays_of(rule), *rule.takes)), case

    with jax.enable_x64(True):
        run()


@functools.partial(jax.jit, static_argnums=0)
def slopes(axes, drawn, omega, own, state, t, process):
    """The gradients of the sum of each case's guided in its own arrays, ω and numbers."""

    def loss(given):
        total = 0.0
        for case, (drawn, omega, own) in given.items():
            outcome = one(case, axes, drawn, omega, own, state[case], t, process)
            total += jnp.sum(outcome[0].astype(jnp.float32))
        return total

    known = {
        case: ({name: drawn[name] for name in arrays_of(rule)}, omega, own[case])
        for case, (rule, _) in cases(axes).items()
    }
    return jax.grad(loss)(known)


# Products of predictions: their gradients are of the degree 2 and more.
PRODUCTS = {"reg": "the gradient of the network times c − u", **OF_OTHER_DEGREE}


@slow
@pytest.mark.parametrize("shape", [(1,), (2, 3, 2)], ids=str)
def test_gradients_are_finite(shape):
    """At predictions of one size, whatever it is: of sizes far apart a true gradient may have none.

    With infinite numbers (no cap) too, whose own gradient is 0.
    """

    @settings(EACH, max_examples=40)
    @given(
        drawn=batches((-30, 30), apart=False), ends=ends_of_numbers, t=times,
        omega=each([w for w in OMEGAS if abs(w) <= 100]),
    )  # fmt: skip
    def run(drawn, ends, t, omega):
        given = prepared(shape, "float32", drawn, ends, t, None, omega, linear_vp())
        powers = np.asarray([power for _, power, _, _ in drawn[1]])
        for case, slope in slopes(len(shape), *given).items():
            bad = per_sample(lambda leaf: ~np.isfinite(leaf), jax.tree.leaves(slope))
            far = (np.abs(powers) > 8) & (cases(len(shape))[case][0].name in PRODUCTS)
            assert not np.any(bad & ~far), case

    run()

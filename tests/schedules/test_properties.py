"""Every schedule at its numbers' ends, on grids that come near both ends of time."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import guidejax as gj
from guidejax.schedules import SCHEDULES
from tests.cases import EACH

from .test_common import cases_of, make

PROCESSES = {
    "rectified_flow": gj.processes.rectified_flow(),
    "cosine": gj.processes.cosine(),
    "linear_vp": gj.processes.linear_vp(),
    "edm": gj.processes.edm(20.0, 3.0),
    "zero_snr": gj.processes.zero_terminal_snr(gj.processes.scaled_linear()),
}
NEAR = (
    1.0,
    1 - 1e-7,
    1 - 1e-6,
    0.9999,
    0.99,
    0.9,
    0.5,
    0.4999999,
    0.1,
    1e-3,
    1e-4,
    1e-6,
    1e-7,
    0.0,
)
FIRST = (-2.0, -1.0, 0.0, 1e-30, 2.0, 1e4, 1e30)  # ω, a mean or a peak
ENDS = {
    "a": (1.0, 50.0),
    "at": (0.0, 1.0),
    "b": (1.0, 50.0),
    "end": (-2.0, 0.0, 1e4),
    "floor": (-1.0, 0.0, 1e4),
    "full": (0.0, 0.9),
    "hi": (0.75, 1.0),
    "lam": (0.0, 1.0),
    "lo": (0.0, 0.25),
    "off": (0.9, 1.0),
    "peak": (1.0, 1e3),
    "penalty": (1e-6, 1e6),
    "power": (1e-3, 1.0, 50.0),
    "rate": (-50.0, 0.0, 50.0),
    "ratio": (0.0, 1.0),
    "sigma_max": (4.0, 1e4),
    "sigma_min": (0.0, 0.1),
    "std": (1e-9, 1e-3, 0.999),
    "stop": (0.6, 1.0),
}
# A table of 8 rows fits one grid only, and its values are what it is given.
NAMES = [name for name in SCHEDULES if name != "table"]


def options_of(name, other):
    """None, or each of its options that has another value: `OPTIONS` of test_common."""
    if not other or name == "interval":  # whose numbers are in units of `t`
        return {}
    return {k: v for each in cases_of(SCHEDULES[name]) for k, v in each.items()}


@functools.partial(jax.jit, static_argnums=0)
def tables(other, numbers, times, process):
    """Of every schedule, in one program: the table, and the gradient of its sum in the numbers."""

    def one(name, own):
        weight = make(SCHEDULES[name], own, options_of(name, other))
        return weight.table(times, None, process=process)

    found = {name: one(name, own) for name, own in numbers.items()}
    slopes = jax.grad(lambda all_: sum(one(n, own).sum() / 64 for n, own in all_.items()))(numbers)
    return found, slopes


@st.composite
def numbers(draw):
    drawn = {}
    for name in NAMES:
        example = SCHEDULES[name].example
        rng = np.random.default_rng(draw(st.integers(0, 999)))
        own = {k: rng.choice((v, *ENDS.get(k, ()))) for k, v in example.items()}
        first = next(iter(example))
        if first not in ENDS:
            # e^50 times it has a place too.
            own[first] = rng.choice(FIRST[:-1] if "rate" in own else FIRST)
        drawn[name] = {k: jnp.float32(v) for k, v in own.items()}
    return drawn


grids = st.lists(st.sampled_from(NEAR), min_size=6, max_size=6, unique=True).map(
    lambda times: jnp.asarray(sorted(times, reverse=True), jnp.float32)
)


@pytest.mark.slow
@pytest.mark.parametrize("other", [False, True], ids=["", "other options"])
def test_finite_with_finite_gradients(other):
    @settings(EACH, max_examples=60)
    @given(numbers=numbers(), times=grids, process=st.sampled_from([*PROCESSES]))
    def run(numbers, times, process):
        if other:
            numbers = {name: own for name, own in numbers.items() if options_of(name, True)}
        found, slopes = tables(other, numbers, times, PROCESSES[process])
        for name in numbers:
            assert found[name].dtype == jnp.float32, name
            assert np.all(np.isfinite(found[name])), name
            first = next(iter(numbers[name].values()))
            # Of an ω of 10³⁰ a slope may be out of range, as one in a price of 10⁻⁶ is.
            for number, slope in slopes[name].items() if first <= 1e4 else ():
                assert np.all(np.isfinite(slope)), (name, number)

    run()


@pytest.mark.slow
def test_nan_in_nan_out():
    """A number that is NaN, which is only seen at run time, is seen in the table."""

    @settings(EACH, max_examples=40)
    @given(
        name=st.sampled_from(NAMES), which=st.integers(0, 9), times=grids,
        process=st.sampled_from([*PROCESSES]),
    )  # fmt: skip
    def run(name, which, times, process):
        example = {n: SCHEDULES[n].example for n in NAMES}
        number = [*example[name]][which % len(example[name])]
        broken = {**example, name: {**example[name], number: np.nan}}
        broken = jax.tree.map(jnp.float32, broken)
        clean = jax.tree.map(jnp.float32, example)
        found = tables(False, broken, times, PROCESSES[process])[0]
        want = tables(False, clean, times, PROCESSES[process])[0]
        for other in NAMES:
            if other == name:
                assert np.any(np.isnan(found[name])), number
            else:
                np.testing.assert_array_equal(found[other], want[other])

    run()

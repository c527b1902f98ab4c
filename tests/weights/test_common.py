"""What every schedule must be: a schedule is tested here by being listed in `SCHEDULES`."""

import doctest
import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.weights import SCHEDULES, Step

STEPS, BATCH = 8, 3
PROCESS = gj.rectified_flow()
TIMES = jnp.asarray(np.linspace(1, 0, STEPS + 1) ** 1.3, jnp.float32)  # uneven
FINE = gj.uniform_times(2000)
COND = jnp.array([0, 2, 1])

schedules = pytest.mark.parametrize("facts", SCHEDULES.values(), ids=SCHEDULES)


def rows(facts, numbers, times=TIMES, cond=COND, **options):
    made = facts.make(**numbers, **{**facts.options, **options})
    return made.table(times, cond, process=PROCESS)


def numbers_of(facts, by=1.0):
    return {name: jnp.asarray(value, jnp.float32) * by for name, value in facts.example.items()}


def options_of(facts):
    """No option, and each of its structural options with another value."""
    taken = inspect.signature(facts.make).parameters
    others = {"on": "total", "unit": "step", "form": "paper"}
    return [{}, *({n: v} for n, v in others.items() if n in taken and facts.make is not gj.interval)]


def active(weight, times=TIMES):
    pairs = zip(times[1:], times[:-1], strict=True)
    return np.array([np.any(weight.active(s, t, process=PROCESS, times=times)) for s, t in pairs])


def test_there_are_many():
    assert len(SCHEDULES) >= 20
    for name, facts in SCHEDULES.items():
        assert getattr(gj, name) is facts.make
        assert facts.name == name
        assert facts.keeps in ("mean", "peak", None)
        assert facts.acts_on in ("excess", "total", "either")
        assert facts.source
        assert set(facts.example) | set(facts.options) <= set(inspect.signature(facts.make).parameters)


@schedules
def test_says_what_it_acts_on_and_keeps(facts):
    said = " ".join(inspect.getdoc(facts.make).split())
    if facts.name == "constant":
        return
    assert "Acts on ω" in said
    assert "eeps" in said
    assert ("on" in inspect.signature(facts.make).parameters) == (facts.acts_on == "either")


@schedules
def test_finite_float32_one_compilation_and_gradients(facts):
    for options in options_of(facts):
        traces = []

        @jax.jit
        def value_and_grads(numbers, options=options, traces=traces):
            traces.append(0)
            out = rows(facts, numbers, **options)
            return out, jax.jacrev(lambda n: rows(facts, n, **options).sum())(numbers)

        for by in (1.0, 1.0625):
            table, grads = value_and_grads(numbers_of(facts, by))
            assert table.dtype == jnp.float32
            assert table.shape[0] == STEPS
            assert np.all(np.isfinite(table))
            assert all(np.all(np.isfinite(g)) for g in grads.values())
        assert len(traces) == 1
        eager = rows(facts, dict(facts.example), **options)
        np.testing.assert_allclose(value_and_grads(numbers_of(facts))[0], eager, rtol=1e-5, atol=1e-5)
        first = next(iter(facts.example))
        assert np.any(grads[first] != 0)


@schedules
def test_numbers_of_each_sample_are_a_loop(facts):
    if facts.name == "table":
        pytest.skip("its numbers are a table: tests/weights/test_tables.py")
    by = jnp.array([1.0, 1.125, 1.25])
    each = {name: value * by for name, value in numbers_of(facts).items()}
    for options in options_of(facts):
        swept = jax.jit(jax.vmap(lambda n, o=options: rows(facts, n, cond=None, **o), out_axes=1))
        want = swept(each)
        got = jnp.broadcast_to(rows(facts, each, **options), (STEPS, BATCH))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for i in range(BATCH):  # the last options
        alone = rows(facts, {name: float(value[i]) for name, value in each.items()}, **options)
        np.testing.assert_allclose(want[:, i], alone, rtol=1e-5, atol=1e-5)


@schedules
def test_one_number_of_each_sample(facts):
    """A (batch,) number beside scalars, and with times of each sample."""
    if facts.name == "table":
        pytest.skip("its numbers are a table: tests/weights/test_tables.py")
    base = numbers_of(facts)
    own = jnp.stack([TIMES, TIMES, TIMES], axis=1)
    for name, value in base.items():
        by = jnp.array([1.0, 1.125, 1.25])
        got = rows(facts, {**base, name: value * by})
        on_own = rows(facts, {**base, name: value * by}, times=own)
        np.testing.assert_allclose(jnp.broadcast_to(on_own, got.shape), got, rtol=1e-5, atol=1e-5)
        last = rows(facts, {**base, name: value * by[-1]})
        np.testing.assert_allclose(got[:, -1], last, rtol=1e-5, atol=1e-5)


@schedules
def test_keeps_what_it_says(facts):
    if facts.keeps is None:
        pytest.skip("keeps neither mean nor peak")
    for options in options_of(facts):
        table = np.asarray(rows(facts, dict(facts.example), times=FINE, **options), np.float64)
        value = next(iter(facts.example.values()))
        if facts.keeps == "mean":
            assert table.mean() == pytest.approx(value, rel=2e-3)
        else:
            assert table.max() == pytest.approx(value, rel=1e-2)


@schedules
def test_where_it_is_known_to_be_zero_it_is_zero(facts):
    for options in options_of(facts):
        for times in (TIMES, gj.uniform_times(STEPS)):
            weight = facts.make(**facts.example, **facts.options, **options)
            table = jax.jit(lambda w, times=times: w.table(times, process=PROCESS))(weight)
            assert np.all(np.asarray(table)[~active(weight, times)] == 0)


@schedules
def test_the_table_is_pointwise_calls(facts):
    weight = facts.make(**facts.example, **facts.options)
    pairs = zip(TIMES[1:], TIMES[:-1], strict=True)
    alone = [weight(s, t, COND, process=PROCESS, times=TIMES) for s, t in pairs]
    np.testing.assert_allclose(rows(facts, dict(facts.example)), alone, rtol=1e-5, atol=1e-6)
    assert np.shape(weight.fn(weight.params, Step(TIMES[1], TIMES[0], None, PROCESS, TIMES))) == ()


def denoise(x, t, cond):
    return jnp.where(cond[:, None] < 3, jnp.sin(x) + cond[:, None], 0.5 * x)


@jax.jit
def sampled(weight):
    return gj.sample(
        jax.random.key(0), denoise, PROCESS, jnp.ones((BATCH, 2)), cond=COND, uncond=3,
        guidance=gj.guidance(gj.cfg, omega=weight), times=TIMES,
    )  # fmt: skip


@schedules
def test_samples_under_jit(facts):
    weight = facts.make(**numbers_of(facts), **facts.options)
    by_hand = gj.table(weight.table(TIMES, process=PROCESS))
    np.testing.assert_allclose(sampled(weight), sampled(by_hand), rtol=1e-5, atol=1e-5)


@schedules
def test_its_number_may_be_a_weight(facts):
    name, value = next(iter(facts.example.items()))
    if facts.name in ("constant", "table"):
        pytest.skip("it is one")
    as_one = {**facts.example, name: gj.constant(value)}
    want = rows(facts, dict(facts.example))
    np.testing.assert_allclose(rows(facts, as_one), want, rtol=1e-5, atol=1e-6)


@schedules
def test_wrong_numbers(facts):
    nans = [{**facts.example, name: float("nan")} for name in facts.example]
    for numbers in nans if facts.name != "table" else [{"values": [1.0, float("nan")]}]:
        with pytest.raises(ValueError, match=r"NaN|expects"):
            facts.make(**numbers, **facts.options)
    for option in ("on", "unit", "form"):
        if option in inspect.signature(facts.make).parameters:
            with pytest.raises(ValueError, match="unknown"):
                facts.make(**facts.example, **facts.options, **{option: "mine"})


@pytest.mark.parametrize("name", "base schedules gates ramps tables budgets stagewise".split())
def test_doctests(name):
    module = importlib.import_module(f"guidejax.weights.{name}")
    assert doctest.testmod(module).failed == 0


@schedules
def test_has_an_example(facts):
    assert ">>>" in inspect.getdoc(facts.make)

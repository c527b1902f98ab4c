"""What every schedule must be: a schedule is tested here by being listed in `SCHEDULES`."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import guidejax as gj
from guidejax.schedules import SCHEDULES

STEPS, BATCH = 8, 3
PROCESS = gj.processes.rectified_flow()
TIMES = jnp.asarray(np.linspace(1, 0, STEPS + 1) ** 1.3, jnp.float32)  # uneven
OWN = jnp.stack([TIMES] * BATCH, axis=1)
FINE = gj.uniform_times(1000)
COND = jnp.array([0, 2, 1])
BY = jnp.array([1.0, 1.125, 1.25])

# Options with another value than the default: each is a case of its own.
OPTIONS = {"on": "total", "unit": "step", "form": "paper"}


def cases_of(facts):
    taken = inspect.signature(facts.make).parameters
    return [{}, *({name: v} for name, v in OPTIONS.items() if name in taken)]


schedules = pytest.mark.parametrize("facts", SCHEDULES.values(), ids=SCHEDULES)
cases = pytest.mark.parametrize(
    ("facts", "options"),
    [
        pytest.param(facts, options, id="-".join([name, *options.values()]))
        for name, facts in SCHEDULES.items()
        for options in cases_of(facts)
        if not (name == "interval" and options)  # its numbers are in units of `t`
    ],
)


def make(facts, numbers, options):
    return facts.make(**numbers, **facts.options, **options)


def rows(facts, numbers, options, times=TIMES, cond=COND):
    return make(facts, numbers, options).table(times, cond, process=PROCESS)


def numbers_of(facts, by=1.0):
    return {name: jnp.asarray(value, jnp.float32) * by for name, value in facts.example.items()}


@functools.cache
def compiled(name, *options):
    """All that is asked of a case, in one program, and how often it was traced."""
    facts, options, traces = SCHEDULES[name], dict(options), []

    @jax.jit
    def program(numbers, each):
        traces.append(0)
        first = next(iter(facts.example))
        one = functools.partial(rows, facts, options=options)
        weight = make(facts, numbers, options)
        found = {
            "table": one(numbers),
            "rows": gj.guidance(gj.cfg, omega=weight).rows(TIMES, COND, PROCESS)[0],
            "grads": jax.grad(lambda n: one(n).sum())(numbers),
        }
        if facts.keeps:
            found["fine"] = one(numbers, times=FINE)
        if name == "table":  # its numbers are an array: tests/weights/test_tables.py
            return found
        found["each"] = one(each)
        found["swept"] = jax.vmap(lambda n: one(n, cond=None), out_axes=1)(each)
        if not options:
            found["own"] = one(each, times=OWN)
            if name != "constant":
                found["weight"] = one({**numbers, first: gj.weights.constant(numbers[first])})
        return found

    return program, traces


def run(facts, options, by=1.0):
    program, traces = compiled(facts.name, *options.items())
    numbers, each = numbers_of(facts, by), {}
    if facts.name != "table":
        each = {name: value * BY for name, value in numbers_of(facts).items()}
    return program(numbers, each), traces


def test_there_are_many():
    assert len(SCHEDULES) >= 20
    for name, facts in SCHEDULES.items():
        taken = inspect.signature(facts.make).parameters
        assert getattr(gj.schedules, name) is facts.make
        assert facts.keeps in ("mean", "peak", None)
        assert facts.acts_on in (("either",) if "on" in taken else ("excess", "total"))
        assert facts.source
        assert set(facts.example) | set(facts.options) <= set(taken)


@schedules
def test_says_what_it_acts_on_and_keeps(facts):
    said = " ".join(inspect.getdoc(facts.make).split())
    assert ">>>" in said
    if facts.name != "constant":
        assert "Acts on ω" in said
        assert "eeps" in said


@pytest.mark.slow
@cases
def test_finite_float32_one_compilation_and_gradients(facts, options):
    for by in (1.0, 1.0625):
        found, traces = run(facts, options, by)
        table, grads = found["table"], found["grads"]
        assert table.dtype == jnp.float32
        assert table.shape[0] == STEPS
        assert np.all(np.isfinite(table))
        assert all(np.all(np.isfinite(g)) for g in grads.values())
        assert np.any(grads[next(iter(facts.example))] != 0)
    assert len(traces) == 1


@pytest.mark.slow
@cases
def test_numbers_of_each_sample(facts, options):
    """(batch,) numbers are a loop over samples, on one grid or each on its own; any may be ω."""
    if facts.name == "table":
        pytest.skip("its numbers are an array")
    found, _ = run(facts, options)
    assert found["swept"].shape == (STEPS, BATCH)
    for name in {"each", "own"} & set(found):
        got = np.broadcast_to(found[name], (STEPS, BATCH))
        np.testing.assert_allclose(got, found["swept"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["swept"][:, 0], found["table"], rtol=1e-5, atol=1e-5)
    if "weight" in found:
        np.testing.assert_allclose(found["weight"], found["table"], rtol=1e-5, atol=1e-6)


@cases
def test_keeps_what_it_says(facts, options):
    if facts.keeps is None:
        pytest.skip("keeps neither mean nor peak")
    fine = np.asarray(run(facts, options)[0]["fine"])
    value = next(iter(facts.example.values()))
    if facts.keeps == "mean":
        assert np.mean(fine, dtype=np.float64) == pytest.approx(value, rel=4e-3)
    else:
        assert np.max(fine) == pytest.approx(value, rel=1e-2)


@cases
def test_masks_are_true_and_calls_are_the_table(facts, options):
    weight = make(facts, facts.example, options)
    table = run(facts, options)[0]
    np.testing.assert_array_equal(table["rows"], table["table"])
    pairs = list(zip(TIMES[1:], TIMES[:-1], strict=True))
    on = [weight.active(s, t, process=PROCESS, times=TIMES) for s, t in pairs]
    assert all(isinstance(each, (np.ndarray, np.bool_)) for each in on)
    assert np.all(np.asarray(table["table"])[~np.array(on, bool)] == 0)
    if facts.name != "table":
        assert np.all(np.asarray(table["table"])[np.array(on, bool)][1:-1] != 0)
    alone = weight(*pairs[4], COND, process=PROCESS, times=TIMES)
    assert alone.shape == ()
    np.testing.assert_allclose(alone, table["table"][4], rtol=1e-5, atol=1e-6)


@jax.jit
def sampled(weight):
    denoise = lambda x, t, cond: jnp.where(cond[:, None] < 3, jnp.sin(x) + 1, 0.5 * x)
    return gj.sample(
        jax.random.key(0), gj.denoiser(denoise, PROCESS), jnp.ones((BATCH, 2)), cond=COND, uncond=3,
        guidance=gj.guidance(gj.cfg, omega=weight), times=TIMES,
    )  # fmt: skip


# One of each file; the sampler only sees the rows and the mask, tested above for all.
@pytest.mark.parametrize("name", ["interval", "linear_ramp", "dg_cfg", "least_contraction"])
def test_samples_under_jit(name):
    facts = SCHEDULES[name]
    by_hand = gj.schedules.table(run(facts, {})[0]["table"])
    got = sampled(make(facts, numbers_of(facts), {}))
    np.testing.assert_allclose(got, sampled(by_hand), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_numbers_over_a_mesh(mesh):
    """Every schedule with an ω a sample, split over devices: the same rows, split alike."""
    batch = mesh.size
    each = {
        name: {number: value * (1 + jnp.arange(batch) / 64) for number, value in own.items()}
        for name, own in ((name, numbers_of(facts)) for name, facts in SCHEDULES.items())
        if name != "table"
    }
    cond = jnp.arange(batch) % 3

    def tables(each, cond):
        return {name: rows(SCHEDULES[name], own, {}, cond=cond) for name, own in each.items()}

    want = jax.jit(tables)(each, cond)
    split = NamedSharding(mesh, P("data"))
    got = jax.jit(tables)(*jax.device_put((each, cond), split))
    for name, table in got.items():
        assert table.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "data")), 2), name
        np.testing.assert_allclose(table, want[name], rtol=1e-5, atol=1e-6, err_msg=name)


@schedules
def test_wrong_numbers(facts):
    nans = [{**facts.example, name: float("nan")} for name in facts.example]
    for numbers in nans if facts.name != "table" else [{"values": [1.0, float("nan")]}]:
        with pytest.raises(ValueError, match=r"NaN|expects"):
            make(facts, numbers, {})
    for option in OPTIONS:
        if option in inspect.signature(facts.make).parameters:
            with pytest.raises(ValueError, match="unknown"):
                make(facts, facts.example, {option: "mine"})

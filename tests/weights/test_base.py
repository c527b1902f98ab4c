import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.weights import Step, as_weight

TIMES = gj.uniform_times(4)


def test_constant():
    np.testing.assert_array_equal(gj.weights.constant(2.0)(0.1, 0.2), 2.0)
    np.testing.assert_array_equal(gj.weights.constant([1.0, 2.0])(0.1, 0.2), [1.0, 2.0])
    assert gj.weights.constant(jnp.array([1.0, 2.0])).table(TIMES).shape == (4, 2)


def test_as_weight():
    weight = gj.weights.constant(1.0)
    assert as_weight(weight) is weight
    assert float(as_weight(3)(0.0, 1.0)) == 3
    assert float(as_weight(lambda s, t, cond: s + 10 * t + cond)(0.1, 0.2, 5.0)) == pytest.approx(
        7.1
    )


def test_scale_conventions():
    assert gj.from_scale(1.0) == 0  # the conditional model
    assert gj.from_scale(0.0) == -1  # the unconditional one
    np.testing.assert_array_equal(gj.to_scale(gj.from_scale(jnp.array([1.5, 7.5]))), [1.5, 7.5])
    seven = gj.weights.constant(7.5)
    for scale in (seven, 2 * seven - seven, (1.0 * seven).clip(0, 9), seven / 1.0):
        assert float(gj.from_scale(scale)(0.0, 1.0)) == 6.5
    early, late = (gj.interval(7.5, lo, hi) for lo, hi in ((0.5, 1.0), (0.0, 0.49)))
    assert float(gj.from_scale(early + late)(0.0, 0.8)) == 6.5
    for window in (early, 2 * early, early.clip(0, 9), early / 2):
        with pytest.raises(ValueError, match="is 0 on some steps"):
            gj.from_scale(window)


@pytest.mark.parametrize("op", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_arithmetic(op):
    weight, values = as_weight(lambda s, t, cond: t), np.asarray(TIMES[:-1])
    np.testing.assert_allclose(op(weight, 3.0).table(TIMES), op(values, 3.0), rtol=1e-6)
    np.testing.assert_allclose(op(3.0, weight).table(TIMES), op(3.0, values), rtol=1e-6)
    np.testing.assert_allclose(op(weight, weight).table(TIMES), op(values, values), rtol=1e-6)
    np.testing.assert_allclose((-weight).table(TIMES), -values)


def test_clip():
    weight = as_weight(lambda s, t, cond: t)
    np.testing.assert_allclose(weight.clip(0.3, 0.6).table(TIMES), [0.6, 0.6, 0.5, 0.3])
    np.testing.assert_allclose(weight.clip(lo=0.6).table(TIMES), [1, 0.75, 0.6, 0.6])
    np.testing.assert_allclose(weight.clip(hi=0.6).table(TIMES), [0.6, 0.6, 0.5, 0.25])


def _active(weight):
    return [bool(weight.active(s, t, times=TIMES)) for s, t in zip(TIMES[1:], TIMES, strict=False)]


INSIDE = [False, True, True, False]


def test_where_a_weight_is_known_to_be_zero():
    inside, early = gj.interval(2.0, 0.5, 0.75), gj.interval(1.0, 0.9, 1.0)
    everywhere, nowhere = [True] * 4, [False] * 4
    assert _active(inside) == INSIDE
    assert _active(3 * inside) == _active(inside / 2) == _active(-inside) == INSIDE
    assert _active(inside + early) == _active(early - inside) == [True, True, True, False]
    assert _active(inside * early) == _active(0.0 * inside) == nowhere
    assert _active(inside + 1.0) == _active(as_weight(lambda s, t, cond: 0.0)) == everywhere
    assert _active(inside.clip(hi=1.0)) == _active(inside.clip(-1.0, 1.0)) == INSIDE
    assert _active(inside.clip(lo=0.5)) == _active(inside.clip(hi=-0.5)) == everywhere
    assert _active(gj.weights.constant([0.0, 0.0])) == nowhere
    assert _active(gj.weights.constant([0.0, 1.0])) == everywhere


@pytest.mark.parametrize(
    "weight",
    [
        gj.interval(2.0, 0.5, 0.75) + gj.interval(1.0, 0.9, 1.0),
        gj.interval(2.0, 0.5, 0.75).clip(hi=1.0),
        3 * gj.interval(2.0, 0.5, 0.75) / 2.0,
        gj.interval(2.0, 0.5, 0.75).clip(lo=0.5),
    ],
)
def test_where_it_is_known_to_be_zero_it_is_zero(weight):
    table = weight.table(TIMES)
    assert np.all(table[~np.array(_active(weight))] == 0)


def test_masks_are_numpy_where_they_can_be():
    @jax.jit
    def run(value, lo):
        known = gj.interval(value, 0.5, 0.75).active(np.float32(0.1), np.float32(0.2))
        assert isinstance(known, (np.ndarray, np.bool_))
        assert not known
        unknown = gj.interval(value, lo, 0.75).active(np.float32(0.1), np.float32(0.2))
        assert isinstance(unknown, jax.core.Tracer)
        return unknown

    assert bool(run(1.0, 0.1))
    assert not bool(run(1.0, 0.3))


def test_a_weight_is_a_pytree():
    traces = []

    @jax.jit
    def table(weight):
        traces.append(0)
        return weight.table(TIMES)

    for value in (1.0, 2.0):
        got = table(gj.interval(value, 0.5, 0.75) * 2.0 + 1.0)
        np.testing.assert_allclose(got, np.where(INSIDE, 2 * value + 1, 1))
    assert len(traces) == 1
    grad = jax.grad(lambda v: gj.interval(v, 0.5, 0.75).table(TIMES).sum())(1.0)
    assert float(grad) == 2
    swept = jax.vmap(lambda v: gj.interval(v, 0.5, 0.75).table(TIMES))(jnp.arange(3.0))
    np.testing.assert_allclose(swept, np.arange(3)[:, None] * np.array(INSIDE))


def test_step_units():
    process = gj.processes.cosine()
    step = Step(0.25, 0.5, process=process, times=TIMES)
    assert float(step.position("t")) == 0.5
    assert int(step.position("step")) == 2
    assert step.num_steps == 4
    np.testing.assert_allclose(step.position("log_snr"), process.log_snr(0.5))
    sigma = process.sigma(0.5) / process.alpha(0.5)
    np.testing.assert_allclose(step.position("sigma"), sigma, rtol=1e-6)
    for unit, needed in (("step", "times"), ("log_snr", "process"), ("sigma", "process")):
        with pytest.raises(ValueError, match=f"needs `{needed}`"):
            Step(0.25, 0.5).position(unit)
    with pytest.raises(ValueError, match="unknown unit"):
        step.position("nm")


def test_index_of_each_sample_s_own_grid():
    times = jnp.stack([jnp.array([1.0, 0.9, 0.1, 0.0]), jnp.array([0.8, 0.5, 0.4, 0.2])], axis=1)
    for i in range(3):
        assert Step(times[i + 1], times[i], times=times).index.tolist() == [i, i]


def test_wrong_input():
    with pytest.raises(ValueError, match="NaN"):
        gj.weights.constant(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        as_weight(jnp.array([1.0, jnp.nan], jnp.bfloat16))
    with pytest.raises(ValueError, match="lo ≤ hi"):
        gj.weights.constant(1.0).clip(2.0, 1.0)
    with pytest.raises(ValueError, match="lo ≤ hi"):
        gj.weights.constant(1.0).clip(float("nan"), 1.0)


def test_samples_at_their_own_steps_of_one_grid():
    grid, t = jnp.linspace(1, 0, 5), jnp.array([0.25, 1.0, 0.5, 0.75])
    rows = gj.schedules.table([0.0, 1.0, 2.0, 3.0])
    np.testing.assert_array_equal(rows(None, t, times=grid), [3, 0, 2, 1])
    np.testing.assert_array_equal(rows(None, t[:2], times=grid), [3, 0])
    by_step = gj.schedules.linear_ramp(1.0, unit="step")
    want = [by_step(None, each, times=grid) for each in t]
    np.testing.assert_allclose(by_step(None, t, times=grid), want, rtol=1e-6)
    columns = gj.schedules.table(jnp.arange(12.0).reshape(4, 3))
    labels = jnp.array([0, 1, 2, 0])
    np.testing.assert_array_equal(columns(None, t, labels, times=grid), [9, 1, 8, 3])


def test_scales_that_are_0_nowhere():
    grid = jnp.array([1.0, 0.5, 0.0])
    found = gj.from_scale(gj.schedules.table([7.5, 5.0])).table(grid)
    np.testing.assert_array_equal(found, [6.5, 4.0])
    np.testing.assert_array_equal(gj.from_scale([7.5, 5]), [6.5, 4.0])
    assert float(gj.from_scale(gj.schedules.step_up(7.5, 0.5))(0.0, 1.0, times=grid)) == 2.75
    gj.from_scale(gj.schedules.with_mean(gj.schedules.linear_ramp(1.0), 7.5))
    for off in (
        gj.schedules.table([7.5, 0.0]),
        gj.schedules.table([7.5, 0.0, 0.0], times=[1.0, 0.5, 0.0]),
        gj.schedules.step_up(7.5, 0.0),
    ):
        with pytest.raises(ValueError, match="unconditional model there"):
            gj.from_scale(off)


def test_a_label_that_is_not_known_yet_and_none_of_the_table_s():
    table = gj.schedules.table([[1.0, 2.0, 3.0]] * 2, times=[1.0, 0.0])
    net = gj.OmegaNet(num_classes=3, hidden=4, depth=1)
    learned = net.weight(net.init(jax.random.key(0)))
    process = gj.processes.rectified_flow()
    for weight in (table, learned):
        at = jax.jit(lambda c, w=weight: w(0.4, 0.5, c, process=process))
        found = at(jnp.array([0, 3, -1, 2]))
        np.testing.assert_array_equal(np.isnan(found), [False, True, True, False])


def test_times_that_are_indices_are_refused():
    pairs = jnp.ones((2, 2, 1))
    for call in (
        lambda: gj.schedules.table([8.0, 0.0], times=[999, 0]),
        lambda: gj.schedules.to_table(1.0, [1000, 500, 0]),
        lambda: gj.schedules.cads_gate(4.0, full=600, off=900),
        lambda: gj.rules.recfg_table(jnp.array([999, 0]), pairs, pairs),
    ):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            call()

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.weights import Step

TIMES = gj.uniform_times(4)
PROCESS = gj.processes.rectified_flow()


def test_a_row_a_step():
    values = jnp.array([1.0, 0.0, 3.0, 0.0])
    weight = gj.schedules.table(values)
    np.testing.assert_array_equal(weight.table(TIMES), values)
    on = gj.guidance(gj.cfg, omega=weight).active(TIMES, PROCESS)
    np.testing.assert_array_equal(on, [True, False, True, False])


def test_a_column_a_class():
    values = jnp.arange(8.0).reshape(4, 2)
    labels = jnp.array([0, 1, 1])
    got = gj.schedules.table(values).table(TIMES, labels)
    np.testing.assert_array_equal(got, values[:, labels])
    grads = jax.grad(lambda v: gj.schedules.table(v).table(TIMES, labels).sum())(values)
    np.testing.assert_array_equal(grads, [[1, 2]] * 4)


@pytest.mark.slow
def test_times_of_each_sample():
    own = jnp.stack([jnp.array([1.0, 0.9, 0.1, 0.0]), jnp.array([0.8, 0.5, 0.4, 0.2])], axis=1)
    values = jnp.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    np.testing.assert_array_equal(gj.schedules.table(values).table(own, jnp.array([0, 1])), values)
    np.testing.assert_array_equal(
        gj.schedules.table(values[:, 0]).table(own), [[1, 1], [2, 2], [3, 3]]
    )
    # each sample at a step of its own
    step = Step(jnp.array([0.1, 0.4]), jnp.array([0.9, 0.5]), jnp.array([1, 0]), times=own)
    weight = gj.schedules.table(values)
    np.testing.assert_array_equal(weight.fn(weight.params, step), [20.0, 2.0])


@pytest.mark.slow
@pytest.mark.parametrize("knots", [[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]])
def test_lines_between_knots(knots):
    values = np.array([0.0, 4.0, 2.0])
    t = np.array([0.95, 0.5, 0.3, 0.25, 0.1])
    order = np.argsort(knots)
    want = np.interp(t, np.array(knots)[order], values[order])
    weight = gj.schedules.table(jnp.asarray(values), times=knots)
    np.testing.assert_allclose(weight(t - 0.05, t), want, rtol=1e-5)
    one = gj.schedules.table(jnp.stack([values, -values], axis=1), times=knots)
    np.testing.assert_allclose(one(0.0, 0.3, jnp.array([1, 0])), [-want[2], want[2]], rtol=1e-5)
    np.testing.assert_allclose(
        gj.schedules.table([1.0, 2.0], times=[0.2, 0.4])(0.0, jnp.array([0.1, 0.9])), [1, 2]
    )


def test_where_the_lines_are_zero():
    weight = gj.schedules.table([0.0, 0.0, 3.0, 0.0, 0.0], times=[0.0, 0.2, 0.4, 0.6, 1.0])
    known = [bool(weight.active(t - 0.1, t)) for t in (0.1, 0.25, 0.4, 0.55, 0.7, 1.0)]
    assert known == [False, True, True, True, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("times", [None, [1.0, 0.75, 0.5, 0.25]])
def test_a_grid_known_at_run_time_is_masked_too(times):
    guidance = gj.guidance(gj.cfg, omega=gj.schedules.table([0.0, 0.0, 3.0, 0.0], times=times))
    known = guidance.active(TIMES, PROCESS)
    assert isinstance(known, np.ndarray)
    assert known.any()
    assert not known.all()
    run = jax.jit(lambda grid: jnp.asarray(guidance.active(grid, PROCESS)))
    np.testing.assert_array_equal(run(TIMES), known)
    each = np.stack([TIMES, 0.9 * TIMES], axis=1)  # one grid a sample
    np.testing.assert_array_equal(run(each), guidance.active(each, PROCESS))


def test_wrong_tables():
    with pytest.raises(ValueError, match="doesn't fit a grid of 4"):
        gj.schedules.table([1.0, 2.0]).table(TIMES)
    with pytest.raises(ValueError, match="doesn't fit a grid of 4"):
        gj.guidance(gj.cfg, omega=gj.schedules.table(np.ones(5))).active(TIMES, PROCESS)
    with pytest.raises(ValueError, match="rise or fall"):
        gj.schedules.table([1.0, 2.0, 3.0], times=[0.0, 1.0, 0.5])
    with pytest.raises(ValueError, match="one time a row"):
        gj.schedules.table([1.0, 2.0, 3.0], times=[0.0, 1.0])
    with pytest.raises(ValueError, match="got shape"):
        gj.schedules.table(1.0)
    with pytest.raises(ValueError, match="cond=None"):
        gj.schedules.table(np.ones((4, 2)))(0.0, 1.0, times=TIMES)
    denoise = gj.denoiser(lambda x, t, cond: x, PROCESS)
    with pytest.raises(ValueError, match="label 2 is out of range"):
        gj.sample(
            jax.random.key(0), denoise, jnp.ones((1, 2)), cond=jnp.array([2]), uncond=0,
            guidance=gj.guidance(gj.cfg, omega=gj.schedules.table(np.ones((4, 2)))), times=TIMES,
        )  # fmt: skip

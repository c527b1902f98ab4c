import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj

PROCESS = gj.processes.rectified_flow()
UNEVEN = jnp.linspace(1, 0, 13) ** 1.6
SHARE = -np.diff(np.asarray(UNEVEN))


def test_with_mean_is_the_papers_interval():
    """2509.22007's program: inside, (w − what is outside)/(what is inside); 1 outside."""
    t, w = np.asarray(UNEVEN)[:-1], 5.0
    inside = (t > 0.15) & (t < 0.78)
    want = np.where(inside, (w - SHARE[~inside].sum()) / SHARE[inside].sum(), 1.0)
    weight = gj.with_mean(gj.interval(1.0, 0.15, 0.78), w - 1)
    np.testing.assert_allclose(weight.table(UNEVEN) + 1, want, rtol=1e-5)
    on = gj.guidance(gj.cfg, omega=weight).active(UNEVEN, PROCESS)
    np.testing.assert_array_equal(on, inside)


@pytest.mark.slow
def test_with_mean_of_anything():
    labels = jnp.array([0, 1])
    per_class = gj.schedules.table(np.stack([np.arange(12.0), np.ones(12)], axis=1))
    got = gj.with_mean(per_class, jnp.array([1.0, 3.0])).table(UNEVEN, labels)
    np.testing.assert_allclose(SHARE @ got, [1.0, 3.0], rtol=1e-5)
    ramp = gj.with_mean(lambda s, t, cond: 1 - t, 2.0).table(UNEVEN)
    assert float(SHARE @ ramp) == pytest.approx(2.0, rel=1e-5)
    np.testing.assert_array_equal(gj.with_mean(0.0, 2.0).table(UNEVEN), 0)
    own = jnp.stack([UNEVEN, jnp.linspace(1, 0, 13)], axis=1)
    both = gj.with_mean(gj.interval(1.0, 0.2, 0.8), 2.0).table(own)
    np.testing.assert_allclose(np.sum(both * -np.diff(own, axis=0), axis=0), 2.0, rtol=1e-5)


def test_with_mean_of_part_of_the_time():
    times = jnp.linspace(0.9, 0.1, 9)
    assert float(gj.with_mean(3.0, 2.0).table(times)[0]) == pytest.approx(2.0)


def test_dg_cfg_is_the_printed_formula(x64):
    times = gj.uniform_times(20, start=0.99)
    t = np.asarray(times)[:-1]
    bar, beta = np.exp(-(0.1 * t + 19.9 * t**2 / 2)), 0.1 + 19.9 * t
    shape = (1 - bar) * np.sqrt(bar) / beta
    got = gj.schedules.dg_cfg(2.0).table(times, process=gj.processes.linear_vp())
    np.testing.assert_allclose(got, 2.0 * shape / shape.mean(), rtol=1e-6)


def test_compress_spends_what_it_leaves_out():
    weight = gj.schedules.compress(2.0, every=5)  # 12 steps: the last run is short
    table = np.asarray(weight.table(UNEVEN))
    assert np.flatnonzero(table).tolist() == [0, 5, 10]
    for i, j in ((0, 5), (5, 10), (10, 12)):
        assert SHARE[i] * table[i] == pytest.approx(2 * SHARE[i:j].sum(), rel=1e-5)
    on = gj.guidance(gj.cfg, omega=weight).active(UNEVEN, PROCESS)
    np.testing.assert_array_equal(on, table != 0)
    for every in (0, 1.5):
        with pytest.raises(ValueError, match="positive integer"):
            gj.schedules.compress(1.0, every=every)

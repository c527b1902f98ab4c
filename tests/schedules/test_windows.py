import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj

PROCESS = gj.processes.rectified_flow()


@pytest.mark.slow
@pytest.mark.parametrize("steps", [7, 10, 28, 100])
@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (0.1, 0.6), (0.29, 0.7), (0.01, 0.2)])
def test_cutoff_counts_steps_as_diffusers_does(steps, start, stop):
    i = np.arange(steps)
    want = (i >= int(round(start * steps, 6))) & (i < int(round(stop * steps, 6)))
    weight, times = gj.schedules.cutoff(2.0, start, stop), gj.uniform_times(steps)
    np.testing.assert_array_equal(weight.table(times), 2.0 * want)
    on = gj.guidance(gj.cfg, omega=weight).active(times, PROCESS)
    np.testing.assert_array_equal(on, want)


def test_cads_gate():
    t = np.array([0.95, 0.9, 0.75, 0.6, 0.3])
    got = gj.schedules.cads_gate(4.0)(t - 0.1, t)
    np.testing.assert_allclose(got, [0, 0, 2, 4, 4], atol=1e-5)
    np.testing.assert_allclose(
        gj.schedules.cads_gate(4.0, on="total")(t - 0.1, t), [-1, -1, 1.5, 4, 4], atol=1e-5
    )
    np.testing.assert_array_equal(
        gj.schedules.cads_gate(4.0, full=0.75, off=0.75)(t - 0.1, t), [0, 0, 4, 4, 4]
    )
    assert not gj.schedules.cads_gate(4.0).active(0.9, 0.95)
    assert gj.schedules.cads_gate(4.0, on="total").active(0.9, 0.95)


@pytest.mark.parametrize("steps", [4, 9])
def test_steps_are_the_official_code_s(steps):
    """2509.22007's program on the scale w: w/3 where linspace(0, 1, N) < 0.25, else w."""
    early = np.linspace(0, 1, steps) < 0.25
    times, w = gj.uniform_times(steps), 6.0
    up = gj.schedules.step_up(w - 1, on="total").table(times) + 1
    np.testing.assert_allclose(up, np.where(early, w / 3, w), rtol=1e-6)
    down = gj.schedules.step_down(w - 1, on="total").table(times) + 1
    np.testing.assert_allclose(down, np.where(early, w, w / 3), rtol=1e-6)


def test_steps_to_nothing():
    times = gj.uniform_times(5)
    late_unconditional = gj.schedules.step_down(3.0, ratio=0.0, at=0.6, on="total").table(times)
    np.testing.assert_array_equal(late_unconditional, [3, 3, 3, -1, -1])
    on = gj.guidance(gj.cfg, omega=gj.schedules.step_down(3.0, ratio=0.0, at=0.6)).active(
        times, PROCESS
    )
    np.testing.assert_array_equal(on, [True, True, True, False, False])
    by_time = gj.schedules.step_up(3.0, ratio=0.0, at=0.5, unit="t").table(times)
    np.testing.assert_array_equal(by_time, [0, 0, 0, 3, 3])


@pytest.mark.slow
def test_gates_restrict_a_learned_weight():
    net = gj.OmegaNet(hidden=8, init_omega=2.0)
    learned, times = net.weight(net.init(jax.random.key(0))), gj.uniform_times(4)
    for gated in (
        gj.schedules.cutoff(1.0, stop=0.5) * learned,
        gj.schedules.cutoff(learned, stop=0.5),
    ):
        table = gated.table(times, process=PROCESS)
        np.testing.assert_allclose(table, [2, 2, 0, 0], rtol=1e-5)
        on = gj.guidance(gj.cfg, omega=gated).active(times, PROCESS)
        np.testing.assert_array_equal(on, [True, True, False, False])


def test_a_number_that_is_a_weight_hides_no_step():
    """An end that depends on what a mask can't know: every step counts as guided."""
    end = gj.schedules.table(np.array([[0.0, 1.0]] * 4))
    weight, times = gj.interval(2.0, lo=0.0, hi=end), gj.uniform_times(4)
    np.testing.assert_array_equal(weight.table(times, jnp.array([0, 1])), [[0, 2]] * 4)
    assert np.all(gj.guidance(gj.cfg, omega=weight).active(times, PROCESS))


@pytest.mark.parametrize(
    "make",
    [
        lambda: gj.schedules.cutoff(1.0, 0.6, 0.5),
        lambda: gj.schedules.cutoff(1.0, stop=1.5),
        lambda: gj.schedules.cads_gate(1.0, full=0.9, off=0.6),
        lambda: gj.schedules.step_up(1.0, at=1.5),
        lambda: gj.schedules.step_down(1.0, at=-0.5),
    ],
)
def test_wrong_input(make):
    with pytest.raises(ValueError, match="expects"):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda end: gj.interval(2.0, lo=end, hi=1.0),
        lambda end: gj.schedules.cutoff(2.0, start=end),
        lambda end: gj.schedules.cads_gate(2.0, full=0.5, off=end),
        lambda end: gj.schedules.step_down(2.0, at=end),
    ],
)
def test_an_end_that_is_nan_at_run_time_is_seen(make):
    """And not off, as what is compared with it is; nor is the pass left out that would show it."""

    @jax.jit
    def run(end):
        weight, times = make(end), gj.uniform_times(4)
        on = gj.guidance(gj.cfg, omega=weight).active(times, gj.processes.rectified_flow())
        return weight.table(times), jnp.asarray(on)

    table, on = run(jnp.nan)
    assert np.all(np.isnan(table))
    assert np.all(on)
    assert np.all(np.isfinite(run(0.75)[0]))

"""The theory's numbers (papers: Jin et al. 2509.22007), and the schedules that it asks for."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.analytic import contraction, gaussian, with_unconditional, within_mode_std
from guidejax.weights import as_weight

PROCESS = gj.processes.rectified_flow()
STDS = (0.1, 0.3, 0.5)
GRID = gj.uniform_times(400)
OURS = {"least": gj.schedules.least_contraction, "low": gj.schedules.low_contraction}


table_of = jax.jit(lambda weight, times, process=PROCESS: weight.table(times, process=process))
width_of = jax.jit(within_mode_std)


def exponent(weight, std, times=GRID):
    """∫ ω K dt: what guidance adds to −log std."""
    return float(np.log(std) - np.log(width_of(std, weight, times)))


# triangular


def test_raw_ramps_of_the_two_forms():
    times = gj.uniform_times(10)
    raw = {}
    for form in ("code", "paper"):
        scale = np.asarray(table_of(gj.schedules.triangular(8.0, form=form), times)) + 1
        raw[form] = scale / scale[0]
    np.testing.assert_allclose(raw["code"][5:], [17, 13, 9, 5, 1], rtol=1e-5)
    np.testing.assert_allclose(raw["paper"][5:], [17, 13.8, 10.6, 7.4, 4.2], rtol=1e-5)
    np.testing.assert_allclose(raw["code"][:5], raw["paper"][:5], rtol=1e-5)


def test_odd_steps_are_symmetric_in_the_code():
    table = table_of(gj.schedules.triangular(3.0), gj.uniform_times(9))
    np.testing.assert_allclose(table, table[::-1], rtol=1e-5)
    assert int(np.argmax(table)) == 4


def test_contraction_of_the_known_schedules_against_a_constant(x64):
    """Ratios of the exponent to a constant's at the same mean of ω, from papers/stagewise.md."""
    stds = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
    known = {
        "triangular": (gj.schedules.triangular(4.0), (0.83, 0.98, 1.14, 1.23, 1.33, 1.38)),
        "interval": (
            gj.with_mean(gj.interval(1.0, 0.15, 0.78), 4.0),
            (0.89, 1.08, 1.28, 1.37, 1.42, 1.43),
        ),
    }
    times = gj.uniform_times(1000)
    for weight, ratios in known.values():
        table = gj.schedules.table(table_of(weight, times))
        for std, ratio in zip(stds, ratios, strict=True):
            got = exponent(table, std, times) / (4.0 * np.log(1 / std))
            assert got == pytest.approx(ratio, abs=0.011)


# What the theory asks for


@pytest.mark.slow
@pytest.mark.parametrize("std", STDS)
def test_contracts_less_than_all_others_at_the_same_mean(std):
    mean = 3.0
    others = {
        "constant": gj.weights.constant(mean),
        "interval": gj.with_mean(gj.interval(1.0, 0.15, 0.78), mean),
        "triangular": gj.schedules.triangular(mean),
        "linear": gj.with_mean(gj.schedules.linear_ramp(1.0), mean),
        "lambda": gj.with_mean(gj.schedules.lambda_shape(1.0), mean),
    }
    least = exponent(gj.schedules.least_contraction(mean, std), std)
    low = exponent(gj.schedules.low_contraction(mean, std), std)
    for weight in others.values():
        assert least <= exponent(weight, std) + 1e-4
    for name in ("constant", "interval", "triangular"):
        assert low <= exponent(others[name], std) + 1e-4
    assert least < 0.75 * exponent(others["constant"], std)


@pytest.mark.slow
@pytest.mark.parametrize("make", OURS.values(), ids=OURS)
def test_keeps_the_mean_on_any_grid_and_process(make):
    for times in (jnp.linspace(1, 0, 8) ** 2, jnp.array([0.9, 0.7, 0.2, 0.05])):
        for process in (PROCESS, gj.processes.cosine(), gj.processes.edm()):
            table = table_of(make(2.0, 0.3), times, process)
            share = -np.diff(times) / (times[0] - times[-1])
            assert float(share @ table) == pytest.approx(2.0, rel=1e-5)
            assert np.all(table >= 0)


def rates(std, times):
    """Mean of K over each step, by its formula and a fine sum."""
    out = []
    for t, s in itertools.pairwise(np.asarray(times, np.float64)):
        u = s + (t - s) * (np.arange(1000) + 0.5) / 1000
        a, b = (1 - u) ** 2 + u**2, (1 - u) ** 2 * std**2 + u**2
        out.append(np.mean(u * (1 - u) * (1 - std**2) / (a * b)))
    return np.array(out)


@pytest.mark.parametrize("std", STDS)
def test_least_is_the_linear_program(x64, std):
    from scipy.optimize import linprog

    times = np.linspace(1, 0, 12) ** 1.4
    share, cost = -np.diff(times), rates(std, times)
    for peak in (1.0, 1.7, 4.0):
        best = linprog(cost * share, A_eq=share[None], b_eq=[2.0], bounds=(0, 2 * peak))
        got = table_of(gj.schedules.least_contraction(2.0, std, peak), jnp.asarray(times))
        np.testing.assert_allclose(got, best.x, atol=1e-6)


@pytest.mark.parametrize("std", STDS)
def test_low_meets_the_conditions_of_the_quadratic_program(x64, std):
    times = np.linspace(1, 0, 12) ** 1.4
    cost = rates(std, times)
    for penalty in (0.05, 1.0, 20.0):
        weight = gj.schedules.low_contraction(2.0, std, penalty)
        got = np.asarray(table_of(weight, jnp.asarray(times)))
        slope = cost + penalty / 2.0 * got  # of the objective, per length; the mean is 2
        on = got > 0
        np.testing.assert_allclose(slope[on], slope[on][0], rtol=1e-5)
        assert np.all(slope[~on] >= slope[on][0] - 1e-6)


@pytest.mark.slow
def test_limits_of_peak_and_penalty(x64):
    table = lambda weight: np.asarray(table_of(weight, GRID))
    np.testing.assert_allclose(
        table(gj.schedules.least_contraction(2.0, 0.3, peak=1.0)), 2.0, rtol=1e-6
    )
    np.testing.assert_allclose(
        table(gj.schedules.low_contraction(2.0, 0.3, penalty=1e6)), 2.0, rtol=1e-4
    )
    guided = (
        table(gj.schedules.least_contraction(2.0, 0.3, peak=4.0)) > 1e-2
    )  # the last in part: rounding
    assert guided.sum() == 100
    edges = np.flatnonzero(np.diff(guided))  # both ends are guided, the middle isn't
    assert len(edges) == 2
    assert guided[0]
    assert guided[-1]
    # E = mean (K̄ − Var K / penalty) where nothing is cut off
    k = rates(0.5, GRID)
    want = 2.0 * (np.log(2) - np.var(k) / 3.0)
    assert exponent(gj.schedules.low_contraction(2.0, 0.5, 3.0), 0.5) == pytest.approx(
        want, rel=1e-3
    )


def test_leaves_out_the_unconditional_pass():
    times = gj.uniform_times(20)
    weight = gj.schedules.least_contraction(2.0, 0.3)
    on = gj.guidance(gj.cfg, omega=weight).active(times, PROCESS)
    assert isinstance(on, np.ndarray)
    assert on.sum() <= 11


@pytest.mark.slow
@pytest.mark.parametrize("std", STDS)
def test_the_ode_has_the_width_of_the_closed_form(x64, std):
    """Two paths in one mode, through the sampler: their distance is σ_y exp(−∫ ω K)."""
    model = with_unconditional([gaussian([1.0], std)], gaussian([0.0], 1.0))
    denoise = lambda x, t, cond: model.denoise(x, t, cond, PROCESS)
    coarse = gj.uniform_times(16)
    knots = np.asarray(coarse)

    @jax.jit
    def width(table, times):
        omega = as_weight(lambda s, t, cond: table[jnp.sum(knots[1:-1] >= t - 1e-9)])
        x = gj.sample(
            jax.random.key(0), gj.denoiser(denoise, PROCESS), jnp.array([[0.5], [-0.5]]),
            times=times,
            cond=jnp.zeros(2, int), uncond=1, guidance=gj.guidance(gj.cfg, omega=omega),
        )  # fmt: skip
        return x[0, 0] - x[1, 0]

    for make in (gj.schedules.triangular, *OURS.values()):
        table = table_of(make(1.5), coarse)
        # First order: 2 log d(h/2) − log d(h) is of second order.
        h, half = (float(width(table, gj.uniform_times(16 * n))) for n in (40, 80))
        assert half**2 / h == pytest.approx(
            float(contraction(std, gj.schedules.table(table), coarse)), rel=2e-3
        )


def test_a_mode_of_hardly_any_width():
    """1 − std² is 1 in floating point, and its contraction still has a value."""
    times = gj.uniform_times(4)
    for std in (1e-4, 1e-9):
        for make in (gj.schedules.low_contraction, gj.schedules.least_contraction):
            table = make(2.0, std=std).table(times, process=gj.processes.rectified_flow())
            assert np.all(np.isfinite(table))
            assert float(jnp.mean(table)) == pytest.approx(2.0, rel=1e-4)


def test_triangular_of_any_mean():
    times = gj.uniform_times(4)
    for mean in (-1.0, 0.0, 1e4, 1e30):
        table = gj.schedules.triangular(mean).table(times)
        assert np.all(np.isfinite(table))
        assert float(jnp.mean(table)) == pytest.approx(mean, rel=1e-5, abs=1e-6)

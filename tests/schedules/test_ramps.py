import numpy as np
import pytest
from scipy import stats

import guidejax as gj

T = np.linspace(1, 0, 33)[:-1].astype(np.float32)
U = 1.0 - T
TIMES = gj.uniform_times(32)
SPAN = {"t": U, "step": np.arange(32) / 31}

CURVES = {
    gj.schedules.linear_ramp: lambda u: 2 * u,
    gj.schedules.inv_linear: lambda u: 2 * (1 - u),
    gj.schedules.cosine_ramp: lambda u: 1 - np.cos(np.pi * u),
    gj.schedules.sine: lambda u: 1 + np.cos(np.pi * u),
    gj.schedules.v_shape: lambda u: 2 * abs(1 - 2 * u),
    gj.schedules.lambda_shape: lambda u: 2 * (1 - abs(1 - 2 * u)),
    gj.schedules.beta_curve: lambda u: 6 * u * (1 - u),
    gj.schedules.parabolic_cosine: lambda u: (1 - np.cos(np.pi * u**4)) / 2,
    gj.schedules.power_cosine: lambda u: (1 - np.cos(np.pi * u**5)) / 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["t", "step"])
@pytest.mark.parametrize("make", CURVES, ids=[f.__name__ for f in CURVES])
def test_curves(make, unit):
    """As in papers/rules.md §3; on ω + 1 the same, with w = ω + 1."""
    shape = CURVES[make](SPAN[unit])
    np.testing.assert_allclose(make(3.0, unit=unit).table(TIMES), 3 * shape, atol=2e-5)
    total = make(3.0, unit=unit, on="total").table(TIMES)
    np.testing.assert_allclose(total, 4 * shape - 1, atol=2e-5)


@pytest.mark.parametrize(("power", "mean"), [(1, 0.5), (4, 0.178)])
def test_parabolic_cosine_keeps_the_peak_not_the_mean(power, mean):
    table = gj.schedules.parabolic_cosine(2.0, power).table(gj.uniform_times(2000))
    assert np.mean(table) == pytest.approx(2 * mean, rel=4e-3)


def test_clamps():
    linear = gj.schedules.clamp_linear(3.0, 2.0, on="total").table(TIMES)
    np.testing.assert_allclose(linear, np.maximum(2, 8 * U - 1), atol=1e-5)
    cosine = gj.schedules.clamp_cosine(3.0, 2.0).table(TIMES)
    np.testing.assert_allclose(cosine, np.maximum(2, 3 * (1 - np.cos(np.pi * U))), atol=1e-5)


def test_beta_curve_is_the_density():
    for a, b in ((1.0, 1.0), (3.0, 2.0), (1.0, 2.5)):
        np.testing.assert_allclose(
            gj.schedules.beta_curve(1.0, a, b).table(TIMES),
            stats.beta.pdf(U, a, b),
            rtol=1e-4,
            atol=1e-5,
        )


def test_c2fg_ramp_up_and_linear_sigma():
    np.testing.assert_allclose(gj.schedules.c2fg(2.0, 1.0).table(TIMES), 2 * np.exp(U), rtol=1e-5)
    np.testing.assert_allclose(
        gj.schedules.ramp_up(2.0, 0.25).table(TIMES), np.minimum(2, U * 8 / 3), rtol=1e-5
    )
    sigma = 80.0 * T**7
    want = 0.5 + 1.5 * (20 - np.clip(sigma, 0.1, 20)) / 19.9
    got = gj.schedules.linear_sigma(0.5, 2.0, 20.0, 0.1).table(TIMES, process=gj.processes.edm())
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: gj.schedules.beta_curve(1.0, a=0.5),
        lambda: gj.schedules.parabolic_cosine(1.0, power=0.0),
        lambda: gj.schedules.power_cosine(1.0, power=-1.0),
        lambda: gj.schedules.ramp_up(1.0, full=1.0),
        lambda: gj.schedules.linear_sigma(0.0, 1.0, sigma_max=0.0),
        lambda: gj.schedules.c2fg(1.0, rate=float("inf")),
        lambda: gj.schedules.least_contraction(1.0, std=1.0),
        lambda: gj.schedules.least_contraction(1.0, peak=0.5),
        lambda: gj.schedules.low_contraction(1.0, penalty=0.0),
    ],
)
def test_wrong_input(make):
    with pytest.raises(ValueError, match="expects"):
        make()

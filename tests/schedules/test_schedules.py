import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj

TIMES = gj.uniform_times(10)
UNEVEN = jnp.linspace(1, 0, 9) ** 2


# interval


def test_interval_holds_both_ends():
    weight = gj.interval(4.0, lo=0.25, hi=0.75)
    values = [float(weight(s=0.0, t=t)) for t in (0.2, 0.25, 0.5, 0.75, 0.8)]
    assert values == [0, 4, 4, 4, 0]


@pytest.mark.parametrize("unit", ["t", "log_snr", "sigma", "step"])
def test_interval_units(unit):
    process = gj.processes.cosine()
    lo, hi = {"t": (0.35, 0.75), "sigma": (0.6, 2.5), "log_snr": (-1.8, 1.0), "step": (3, 6)}[unit]
    t = np.linspace(1, 0.1, 10)
    with np.errstate(divide="ignore"):
        where = {
            "t": t,
            "sigma": np.tan(np.pi * t / 2),
            "log_snr": -2 * np.log(np.tan(np.pi * t / 2)),
            "step": np.arange(10),
        }[unit]
    want = (where >= lo) & (where <= hi)
    assert 1 < want.sum() < 9
    weight = gj.interval(2.0, lo, hi, unit=unit)
    np.testing.assert_array_equal(weight.table(TIMES, process=process), 2.0 * want)
    active = [weight.active(s, t, process=process, times=TIMES) for s, t in zip(TIMES[1:], TIMES)]  # noqa: B905
    np.testing.assert_array_equal(active, want)


def test_interval_without_an_end():
    weight = gj.interval(2.0, lo=-np.inf, hi=0.0, unit="log_snr")
    got = weight.table(TIMES, process=gj.processes.rectified_flow())
    np.testing.assert_array_equal(got, np.where(np.asarray(TIMES[:-1]) >= 0.5, 2.0, 0.0))


def test_interval_of_any_weight_and_of_each_sample():
    ramp = gj.interval(gj.schedules.clamp_linear(1.0), 0.4, 0.8)
    t = np.asarray(TIMES[:-1])
    want = np.where((t > 0.39) & (t < 0.81), 2 * (1 - t), 0)
    np.testing.assert_allclose(ramp.table(TIMES), want, atol=1e-6)
    each = gj.interval(jnp.array([1.0, 2.0]), jnp.array([0.0, 0.5]), 1.0)(0.2, 0.3)
    np.testing.assert_array_equal(each, [1.0, 0.0])


def test_interval_with_times_of_each_sample():
    times = jnp.stack([TIMES, TIMES / 2], axis=1)
    got = gj.interval(1.0, 0.45, 1.0).table(times)
    np.testing.assert_array_equal(got, np.asarray(times[:-1]) >= 0.45)


@pytest.mark.parametrize(
    "make",
    [
        lambda: gj.interval(1.0, 0.8, 0.2),
        lambda: gj.interval(1.0, float("nan"), 0.2),
        lambda: gj.interval(1.0, jnp.array([0.0, 0.5]), 0.2),
        lambda: gj.interval(1.0, 0.2, 0.8, unit="percent"),
        lambda: gj.schedules.triangular(1.0, form="mine"),
        lambda: gj.schedules.triangular(1.0, peak=1.0),
    ],
)
def test_wrong_input(make):
    with pytest.raises(ValueError, match=r"expect.*(lo=|unit|got)|unknown"):
        make()


# triangular


def _official(times, mean):
    """TV-CFG's own scheduler, retyped: scale in and out, mean scale w."""
    n, low, high = len(times) - 1, 1.0, 2 * mean - 1
    if n % 2 == 0:
        up = np.linspace(low, high, n // 2, endpoint=False)
        down = np.linspace(high, low, n // 2, endpoint=True)
    else:
        up = np.linspace(low, high, (n - 1) // 2 + 1)
        down = np.linspace(high, low, (n - 1) // 2 + 1)[1:]
    raw = np.concatenate([up, down])
    return raw * mean / np.sum(raw * -np.diff(times))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9, 10])
@pytest.mark.parametrize("power", [1.0, 1.7])
def test_triangular_is_the_official_code_s(steps, power):
    times = np.linspace(1, 0, steps + 1) ** power
    got = gj.schedules.triangular(3.0).table(jnp.asarray(times, jnp.float32))
    if steps > 1:
        np.testing.assert_allclose(got + 1, _official(times, 4.0), rtol=1e-5)
    else:
        np.testing.assert_allclose(got, [3.0], rtol=1e-6)


def _printed(times, w, peak):
    n = len(times) - 1
    top, s, raw = int(np.ceil(n * peak)), w - 1, []
    for i in range(n):
        rise = 2 * s / top * i if i <= top else 2 * s / (n - top) * (n - i)
        raw.append(rise + w - s)
    return np.array(raw) * w / np.sum(raw * -np.diff(times))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 9, 10])
@pytest.mark.parametrize("peak", [0.3, 0.5, 0.8])
def test_triangular_as_printed(steps, peak):
    times = np.linspace(1, 0, steps + 1)
    got = gj.schedules.triangular(8.0, peak=peak, form="paper").table(
        jnp.asarray(times, jnp.float32)
    )
    np.testing.assert_allclose(got + 1, _printed(times, 9.0, peak), rtol=1e-5)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_triangular_keeps_the_mean_over_time(form):
    means = jnp.array([0.5, 3.0])
    got = gj.schedules.triangular(means, form=form).table(UNEVEN)
    assert got.shape == (8, 2)
    np.testing.assert_allclose(-jnp.diff(UNEVEN) @ got, means, rtol=1e-5)
    for i, mean in enumerate((0.5, 3.0)):
        alone = gj.schedules.triangular(mean, form=form).table(UNEVEN)
        np.testing.assert_allclose(got[:, i], alone, rtol=1e-5)


def test_triangular_with_times_of_each_sample():
    times = jnp.stack([jnp.linspace(1, 0, 9), UNEVEN], axis=1)
    for mean in (2.0, jnp.array([2.0, 2.0])):
        got = gj.schedules.triangular(mean).table(times)
        for i in range(2):
            np.testing.assert_allclose(
                got[:, i], gj.schedules.triangular(2.0).table(times[:, i]), rtol=1e-5
            )


def test_triangular_needs_the_grid():
    with pytest.raises(ValueError, match="triangular needs `times`"):
        gj.schedules.triangular(1.0)(0.1, 0.2)


# clamp_linear


def test_clamp_linear():
    times = gj.uniform_times(1000)
    t = np.asarray(times[:-1])
    np.testing.assert_allclose(gj.schedules.clamp_linear(3.0).table(times), 6 * (1 - t), atol=1e-5)
    assert float(gj.schedules.clamp_linear(3.0).table(times).mean()) == pytest.approx(3.0, rel=2e-3)
    floored = gj.schedules.clamp_linear(3.0, floor=2.0).table(times)
    np.testing.assert_allclose(floored, np.maximum(2, 6 * (1 - t)), atol=1e-5)
    grads = jax.grad(lambda m, f: gj.schedules.clamp_linear(m, f)(0.8, 0.9), argnums=(0, 1))(
        3.0, 2.0
    )
    assert [float(g) for g in grads] == [0, 1]

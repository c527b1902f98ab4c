import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

import guidejax as gj
from guidejax import analytic

PROCESS = gj.processes.rectified_flow()


def _velocity(x, t, means, weights, std, omega):
    """The guided probability flow dx/dt as the setting's closed forms have it, in NumPy."""
    a, b = (1 - t) ** 2 + t**2, (1 - t) ** 2 * std**2 + t**2
    away = ((x[:, None] - (1 - t) * means) ** 2).sum(-1)
    r = weights * np.exp(-(away - away.min(1, keepdims=True)) / (2 * b))
    m = (r / r.sum(1, keepdims=True)) @ means
    uncond = -x * (1 - 2 * t) / a
    cond = -(x * ((1 - t) * std**2 - t) + t * m) / b
    return cond + omega * (cond - uncond)


@pytest.mark.slow
@pytest.mark.parametrize("omega", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.95])
def test_velocity_of_the_setting(x64, omega, t):
    means, weights = np.array([[-1.5, 1.5], [1.5, 1.5]]), np.array([0.3, 0.7])
    model = analytic.stagewise()
    x = np.random.default_rng(0).normal(size=(6, 2))
    denoise = analytic.denoiser(model, PROCESS)
    c, u = (denoise(jnp.asarray(x), t, jnp.full(6, y)) for y in (0, model.null))
    got = (x - gj.cfg(c, u, omega)) / t  # rectified flow's velocity is (x − x0)/t
    want = _velocity(x, t, means, weights, 0.3, omega)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("std", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("omega", [-0.5, 0.0, 1.0, 4.0])
def test_width_under_a_constant(x64, std, omega):
    np.testing.assert_allclose(analytic.within_mode_std(std, omega), std ** (1 + omega), rtol=1e-12)
    # The same on any grid, for a grid without noise at its end is the whole run.
    grid = gj.uniform_times(7)
    np.testing.assert_allclose(
        analytic.within_mode_std(std, omega, grid), std ** (1 + omega), rtol=1e-12
    )


def _rate(t, std):
    """K(t) of the setting: how fast a unit of ω narrows a mode."""
    a, b = (1 - t) ** 2 + t**2, (1 - t) ** 2 * std**2 + t**2
    return t * (1 - t) * (1 - std**2) / (a * b)


@pytest.mark.slow
@pytest.mark.parametrize("std", [0.2, 0.6])
def test_width_under_a_schedule(x64, std):
    times = gj.uniform_times(4000)
    total, _ = integrate.quad(_rate, 0, 1, args=(std,))
    assert total == pytest.approx(np.log(1 / std))
    for omega, of_t in (
        (gj.schedules.clamp_linear(2.0), lambda t: 4 * (1 - t)),
        (lambda s, t, cond: jnp.sin(3 * t), lambda t: np.sin(3 * t)),
    ):
        exponent, _ = integrate.quad(lambda t, f=of_t: f(t) * _rate(t, std), 0, 1)
        want = std * np.exp(-exponent)
        np.testing.assert_allclose(analytic.within_mode_std(std, omega, times), want, rtol=5e-3)
    inside, _ = integrate.quad(_rate, 0.25, 0.75, args=(std,))
    grid = gj.uniform_times(8)  # an interval on its own grid is exact
    got = analytic.within_mode_std(std, gj.interval(3.0, 0.3, 0.75), grid)
    np.testing.assert_allclose(got, std * np.exp(-3 * inside), rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "process", [gj.processes.cosine(), gj.processes.linear_vp(), gj.processes.edm(5.0, 1.0)]
)
def test_contraction_of_any_process_is_the_sampler_s(x64, process):
    model = analytic.stagewise([[1.0]], [1.0], 0.5)
    times = gj.uniform_times(3000, 0.9, 0.1)
    x = jnp.array([[0.3], [0.4]])
    got = gj.sample(
        jax.random.key(0), analytic.denoiser(model, process), x,
        cond=jnp.zeros(2, int), uncond=model.null, times=times,
        guidance=gj.guidance(gj.cfg, omega=gj.interval(2.0, 0.3, 0.7)),
    )  # fmt: skip
    want = analytic.contraction(0.5, gj.interval(2.0, 0.3, 0.7), times, process)
    np.testing.assert_allclose((got[1] - got[0]) / 0.1, want, rtol=3e-3)


@pytest.mark.slow
def test_many_omegas_at_once():
    omegas = jnp.array([0.0, 1.0, 2.0])
    got = analytic.within_mode_std(0.5, omegas, gj.uniform_times(4))
    np.testing.assert_allclose(got, 0.5 ** (1 + omegas), rtol=1e-5)
    grad = jax.grad(lambda w: analytic.within_mode_std(0.5, w))(1.0)
    np.testing.assert_allclose(grad, np.log(0.5) * 0.25, rtol=1e-5)


@pytest.mark.slow
def test_direction_shift():
    """Theorem 3.2: early on guided samples are nearer to (1 + ω) μ̄ than conditional ones."""
    model, omega = analytic.stagewise(), 2.0
    noise = jax.random.normal(jax.random.key(0), (4000, 2))
    target = (1 + omega) * jnp.array([0.3 * -1.5 + 0.7 * 1.5, 1.5])
    distance = {}
    for w in (0.0, omega):
        x = gj.sample(
            jax.random.key(0), analytic.denoiser(model, PROCESS), noise,
            cond=jnp.zeros(4000, int), uncond=model.null, times=gj.uniform_times(20, 1.0, 0.7),
            guidance=gj.guidance(gj.cfg, omega=w),
        )  # fmt: skip
        distance[w] = float(jnp.sum((x - target) ** 2, axis=1).mean())
    assert distance[omega] < 0.9 * distance[0.0]


def test_nearest_mode():
    means = jnp.array([[-1.5, 1.5], [1.5, 1.5]])
    x = jnp.array([[-2.0, 9.0], [0.1, 0.0], [5.0, 1.0]])
    assert analytic.nearest_mode(x, means).tolist() == [0, 1, 1]
    assert analytic.nearest_mode(x.at[1, 0].set(jnp.nan), means).tolist() == [0, -1, 1]


def test_one_width_at_a_time():
    """Two would be taken for those of two times."""
    for call in (
        lambda std: analytic.within_mode_std(std, 1.0),
        lambda std: analytic.contraction(std, 1.0, jnp.array([1.0, 0.0])),
    ):
        with pytest.raises(ValueError, match="one width"):
            call(jnp.array([0.5, 0.3]))

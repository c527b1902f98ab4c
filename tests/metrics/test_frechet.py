import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import ortho_group

from guidejax.metrics import frechet_distance, frechet_from_moments, moments


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def by_sqrtm(x, y):
    c1, c2 = np.cov(x.T), np.cov(y.T)
    gap = np.sum((x.mean(0) - y.mean(0)) ** 2)
    return gap + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)


def test_moments_are_numpys(x64):
    x = draw(0, 9, 2, 2)
    mean, cov = moments(x)
    flat = x.reshape(9, 4)
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(flat.T), rtol=1e-12)
    assert cov.dtype == jnp.float64


def test_agrees_with_sqrtm(x64):
    x, y = draw(0, 40, 6) @ draw(10, 6, 6), draw(5, 30, 6) + 0.5
    want = by_sqrtm(x, y)
    np.testing.assert_allclose(frechet_distance(x, y), want, rtol=1e-9)
    np.testing.assert_allclose(frechet_from_moments(*moments(x), *moments(y)), want, rtol=1e-9)


def test_closed_form_of_commuting_covariances(x64):
    mu1, mu2, s, t = draw(0, 5), draw(1, 5), np.abs(draw(2, 5)), np.abs(draw(3, 5))
    q = ortho_group.rvs(5, random_state=0)
    got = frechet_from_moments(mu1, q @ np.diag(s**2) @ q.T, mu2, q @ np.diag(t**2) @ q.T)
    np.testing.assert_allclose(got, np.sum((mu1 - mu2) ** 2) + np.sum((s - t) ** 2), rtol=1e-9)


def test_singular_covariances_closed_form(x64):
    # u uᵀ and v vᵀ: tr (C₁ C₂)^½ = |⟨u, v⟩|.
    u, v, zero = draw(0, 4), draw(1, 4), np.zeros(4)
    got = frechet_from_moments(zero, np.outer(u, u), zero, np.outer(v, v))
    np.testing.assert_allclose(got, u @ u + v @ v - 2 * abs(u @ v), atol=1e-7)
    got = frechet_from_moments(zero, np.zeros((4, 4)), zero, np.outer(v, v))
    np.testing.assert_allclose(got, v @ v, rtol=1e-12)


def test_fewer_samples_than_features(x64):
    x, y = draw(0, 5, 9), draw(1, 6, 9) + 0.2
    # tr (C₁ C₂)^½ is the sum of the roots of the eigenvalues of C₁ C₂, singular or not.
    values = np.linalg.eigvals(np.cov(x.T) @ np.cov(y.T)).real
    want = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(np.cov(x.T) + np.cov(y.T))
    want -= 2 * np.sum(np.sqrt(values[values > 1e-10]))
    np.testing.assert_allclose(frechet_distance(x, y), want, rtol=1e-7)
    np.testing.assert_allclose(frechet_from_moments(*moments(x), *moments(y)), want, rtol=1e-6)


@pytest.mark.slow
def test_float32_keeps_digits_on_a_wide_spectrum(x64):
    scale = np.arange(1, 65) ** -1.5
    x, y = draw(0, 300, 64) * scale, draw(1, 300, 64) * scale * 1.1
    want = float(frechet_distance(x, y))
    assert want < 0.1
    x, y = x.astype(np.float32), y.astype(np.float32)
    assert frechet_distance(x, y).dtype == jnp.float32
    np.testing.assert_allclose(frechet_distance(x, y), want, rtol=1e-4)
    np.testing.assert_allclose(frechet_from_moments(*moments(x), *moments(y)), want, rtol=1e-3)


def test_equal_shifted_turned():
    x, y = draw(0, 50, 4), draw(1, 60, 4) * 2
    q = ortho_group.rvs(4, random_state=0)
    base = frechet_distance(x, y)
    np.testing.assert_allclose(frechet_distance(x, x), 0, atol=1e-5)
    np.testing.assert_allclose(frechet_distance(x, x + 2), 16, rtol=1e-5)
    np.testing.assert_allclose(frechet_distance(x @ q + 1, y @ q + 1), base, rtol=1e-4)
    np.testing.assert_allclose(frechet_distance(y, x), base, rtol=1e-4)


def directional(f, arguments, directions, step=1e-5):
    up = f(*(a + step * d for a, d in zip(arguments, directions, strict=True)))
    down = f(*(a - step * d for a, d in zip(arguments, directions, strict=True)))
    return (up - down) / (2 * step)


@pytest.mark.parametrize(
    ("n", "m", "d"),
    [(5, 6, 9), *(pytest.param(*a, marks=pytest.mark.slow) for a in ((20, 15, 4), (5, 20, 9)))],
)
def test_gradient_on_samples(x64, n, m, d):
    x, y, dx, dy = draw(0, n, d), draw(1, m, d), draw(2, n, d), draw(3, m, d)
    gx, gy = jax.jit(jax.grad(frechet_distance, (0, 1)))(x, y)
    want = directional(frechet_distance, (x, y), (dx, dy))
    np.testing.assert_allclose(np.sum(gx * dx) + np.sum(gy * dy), want, rtol=1e-6)


@pytest.mark.slow
def test_gradient_on_moments_where_eigenvalues_agree(x64):
    # Through eigh this is 0/0.
    eye, mu = np.eye(3), draw(0, 3)
    d1, d2 = (a + a.T for a in (draw(1, 3, 3), draw(2, 3, 3)))
    arguments = (mu, eye, 2 * mu, 4 * eye)
    directions = (draw(3, 3), d1, draw(4, 3), d2)
    g = jax.jit(jax.grad(frechet_from_moments, (0, 1, 2, 3)))(*arguments)
    got = sum(np.sum(a * b) for a, b in zip(g, directions, strict=True))
    want = directional(frechet_from_moments, arguments, directions)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_gradient_finite_where_singular():
    of_moments = jax.jit(jax.grad(frechet_from_moments, (1, 3)))
    of_samples = jax.jit(jax.grad(frechet_distance))
    for rank in (0, 1, 3):
        cov, mu = np.diag([1.0] * rank + [0.0] * (3 - rank)), np.zeros(3)
        assert np.all(np.isfinite(of_moments(mu, cov, mu, np.eye(3))))
        x = draw(0, 6, 3) * np.diagonal(cov)
        np.testing.assert_allclose(of_samples(x, x), 0, atol=1e-5)


@pytest.mark.slow
def test_estimates_are_biased_upward():
    x, y = jax.random.normal(jax.random.key(0), (2, 50, 400, 4))
    small, large = (jax.vmap(frechet_distance)(x[:, :n], y[:, :n]).mean() for n in (40, 400))
    assert small > 5 * large > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: frechet_distance(x, x[:, :2]), "same shape"),
        (lambda x: frechet_distance(x[:1], x), "at least 2"),
        (lambda x: frechet_distance(x, x * np.nan), "NaN"),
        (lambda x: moments(x[:1]), "at least 2"),
        (lambda x: frechet_from_moments(x[0], x, x[0], x), "covariances"),
        (lambda x: frechet_from_moments(x[0], x[:3], x[0], np.eye(3)), "cov1"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(draw(0, 4, 3))

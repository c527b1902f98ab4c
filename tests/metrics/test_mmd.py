import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from guidejax.metrics import (
    kernel_inception_distance,
    median_bandwidth,
    mmd_polynomial,
    mmd_rbf,
)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def from_kernel(kernel, x, y, unbiased):
    n, m = len(x), len(y)
    kx, ky, kxy = kernel(x, x), kernel(y, y), kernel(x, y)
    if unbiased:
        own = (kx.sum() - np.trace(kx)) / n / (n - 1) + (ky.sum() - np.trace(ky)) / m / (m - 1)
    else:
        own = kx.mean() + ky.mean()
    return own - 2 * kxy.mean()


@pytest.mark.slow
@pytest.mark.parametrize(("unbiased", "chunk"), [(True, None), (False, 4)])
def test_agrees_with_sklearn_kernels(x64, unbiased, chunk):
    x, y = draw(0, 9, 3), draw(1, 6, 3) + 0.5
    widths = [0.5, 2.0]

    def rbf(a, b):
        return np.mean([rbf_kernel(a, b, gamma=1 / (2 * w**2)) for w in widths], axis=0)

    got = mmd_rbf(x, y, widths, unbiased, chunk=chunk)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, from_kernel(rbf, x, y, unbiased), rtol=1e-12)

    def cubic(a, b):
        return polynomial_kernel(a, b, degree=3, gamma=0.7, coef0=0.2)

    got = mmd_polynomial(x, y, 3, 0.7, 0.2, unbiased, chunk=chunk)
    np.testing.assert_allclose(got, from_kernel(cubic, x, y, unbiased), rtol=1e-12)
    got = mmd_polynomial(x, y, unbiased=unbiased)
    np.testing.assert_allclose(got, from_kernel(polynomial_kernel, x, y, unbiased), rtol=1e-12)


@pytest.mark.slow
def test_gaussians_closed_form():
    # E k(X, Y) = (b²/(b² + s² + t²))^(d/2) exp(-‖μ‖²/2(b² + s² + t²)).
    x, y = draw(0, 3000, 2), draw(1, 3000, 2) + np.array([1.0, 0.0])

    def mean_kernel(mu):
        return (1 / 3) * np.exp(-mu / 6)

    want = 2 * mean_kernel(0.0) - 2 * mean_kernel(1.0)
    np.testing.assert_allclose(mmd_rbf(x, y, 1.0, chunk=512), want, atol=0.01)


@pytest.mark.slow
def test_median_bandwidth_is_the_median(x64):
    x, y = draw(0, 11, 3), draw(1, 8, 3)
    want = np.median(pdist(np.concatenate([x, y])))
    np.testing.assert_allclose(median_bandwidth(x, y), want, rtol=1e-12)
    np.testing.assert_allclose(mmd_rbf(x, y), mmd_rbf(x, y, want), rtol=1e-12)
    want = np.median(pdist(np.concatenate([x[::3], y[::2]])))
    np.testing.assert_allclose(median_bandwidth(x, y, points=4), want, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("metric", [lambda x, y, u: mmd_rbf(x, y, 1.0, u), None])
def test_unbiased_over_draws(metric):
    metric = metric or (lambda x, y, u: mmd_polynomial(x, y, unbiased=u))
    x, y = jax.random.normal(jax.random.key(0), (2, 4000, 4, 2))
    many = jax.vmap(lambda a, b: metric(a, b, True))(x, y)
    error = many.std() / np.sqrt(4000)
    assert abs(many.mean()) < 4 * error
    assert jax.vmap(lambda a, b: metric(a, b, False))(x, y).mean() > 10 * error


@pytest.mark.slow
def test_all_points_the_same():
    x = jnp.ones((4, 2))
    value, g = jax.jit(jax.value_and_grad(mmd_rbf))(x, x)
    assert float(value) == 0
    assert np.all(np.isfinite(g))


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_a_collapsed_set_is_told_in_any_unit(unit):
    """Over half of the pairs coincide, so that their median is 0 and no scale."""
    rng = np.random.default_rng(0)
    fake, real = np.zeros((100, 3)), rng.normal(size=(20, 3))
    found = float(mmd_rbf(unit * fake, unit * real))
    np.testing.assert_allclose(found, float(mmd_rbf(fake, real)), rtol=1e-4)
    assert found > 0.1


@pytest.mark.slow
def test_gradient_moves_samples_toward_data():
    x, y = draw(0, 30, 2), draw(1, 30, 2) + 1.5
    for metric in (mmd_rbf, mmd_polynomial):
        g = np.asarray(jax.jit(jax.grad(metric))(x, y))
        assert metric(x - 0.1 * g / np.max(np.abs(g)), y) < metric(x, y)


def test_kid_is_the_mmd_of_subsets():
    x, y = draw(0, 60, 4), draw(1, 50, 4) + 0.5
    small = np.asarray(kernel_inception_distance(jax.random.key(0), x, y, 20, subsets=100))
    assert small.shape == (100,)
    assert len(np.unique(small)) == 100
    np.testing.assert_allclose(small.mean(), from_kernel(polynomial_kernel, x, y, True), rtol=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: mmd_rbf(x, x, 0.0), "positive"),
        (lambda x: mmd_rbf(x, x, np.ones((1, 1))), "bandwidths has shape"),
        (lambda x: mmd_rbf(x[:1], x), "at least 2"),
        (lambda x: mmd_rbf(x, x[:, :1]), "same shape"),
        (lambda x: mmd_polynomial(x, x * np.inf), "infinite"),
        (lambda x: mmd_polynomial(x, x, degree=0), "degree"),
        (lambda x: kernel_inception_distance(jax.random.key(0), x, x, 9), "subset_size"),
        (lambda x: kernel_inception_distance(jax.random.key(0), x, x, 1), "subset_size"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(draw(0, 4, 3))

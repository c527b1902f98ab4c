import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import cosine_similarity, rbf_kernel

from guidejax.metrics import (
    class_diversity,
    mean_pairwise_distance,
    vendi_from_kernel,
    vendi_score,
)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def entropy_score(kernel):
    values = np.linalg.eigvalsh(kernel / len(kernel))
    values = values[values > 1e-12]
    return np.exp(-np.sum(values * np.log(values)))


@pytest.mark.parametrize(("chunk", "method"), [(None, "direct"), (4, "gram")])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_mean_pairwise_is_scipys(x64, beta, chunk, method):
    x = draw(0, 9, 2, 2)
    got = mean_pairwise_distance(x, beta, method=method, chunk=chunk)
    np.testing.assert_allclose(got, np.mean(pdist(x.reshape(9, 4)) ** beta), rtol=1e-12)


def test_beta_two_is_twice_the_trace_of_the_covariance(x64):
    x = draw(0, 9, 2, 2)
    got = mean_pairwise_distance(x, 2.0)
    np.testing.assert_allclose(got, 2 * np.trace(np.cov(x.reshape(9, 4).T)), rtol=1e-12)


def test_classes(x64):
    x, labels = draw(0, 12, 3), np.array([0, 1, 2] * 3 + [0, 0, 4])
    want = [np.mean(pdist(x[labels == c])) for c in range(3)] + [np.nan, np.nan]
    got = jax.jit(class_diversity, static_argnums=2, static_argnames="chunk")(x, labels, 5, chunk=5)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_gradients_finite_at_coincident_samples():
    x, labels = np.repeat([0.0, 1.0], [3, 1])[:, None] * np.ones(3), np.array([0, 0, 1, 1])
    g = jax.jit(jax.grad(mean_pairwise_distance))(x)
    # Each of three pulls by a unit vector, in a mean over 6 pairs.
    np.testing.assert_allclose(np.linalg.norm(g[3]), 0.5, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(g[:3], axis=1), 1 / 6, rtol=1e-5)
    g = jax.jit(jax.grad(lambda a: jnp.nansum(class_diversity(a, labels, 3))))(x)
    np.testing.assert_allclose(np.linalg.norm(g, axis=1), [0, 0, 1, 1], rtol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(8, 3), (4, 9)])
def test_vendi_agrees_with_the_kernels_eigenvalues(x64, n, d):
    x = draw(0, n, d)
    want = entropy_score(cosine_similarity(x))
    np.testing.assert_allclose(vendi_score(x), want, rtol=1e-10)
    np.testing.assert_allclose(vendi_from_kernel(cosine_similarity(x)), want, rtol=1e-10)
    kernel = rbf_kernel(x)
    np.testing.assert_allclose(vendi_from_kernel(kernel), entropy_score(kernel), rtol=1e-10)


def test_vendi_counts_distinct_samples():
    for k in range(1, 6):
        x = 7 * np.eye(5)[np.arange(60) % k]
        np.testing.assert_allclose(vendi_score(x), k, rtol=1e-5)
    x[:, 0] = 0  # a fifth of the samples is zero now, which counts as one sample more
    np.testing.assert_allclose(vendi_score(x), 5, rtol=1e-5)


@pytest.mark.slow
def test_vendi_gradient(x64):
    x, d, step = draw(0, 6, 4), draw(1, 6, 4), 1e-6
    want = (vendi_score(x + step * d) - vendi_score(x - step * d)) / (2 * step)
    np.testing.assert_allclose(np.sum(jax.jit(jax.grad(vendi_score))(x) * d), want, rtol=1e-6)


@pytest.mark.slow
def test_vendi_gradient_finite_at_equal_and_zero_eigenvalues():
    slope = jax.jit(jax.grad(vendi_score))
    for x in (np.eye(4), np.ones((4, 4)), np.zeros((4, 4))):
        assert np.all(np.isfinite(slope(x)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: mean_pairwise_distance(x[:1]), "at least 2"),
        (lambda x: mean_pairwise_distance(x, 3.0), "beta"),
        (lambda x: class_diversity(x, np.array([0, 1, 2, -1]), 3), "labels"),
        (lambda x: class_diversity(x, np.zeros(4, int), 0), "num_classes"),
        (lambda x: vendi_score(x * np.nan), "NaN"),
        (lambda x: vendi_from_kernel(x), "kernel has shape"),
        (lambda x: vendi_from_kernel(x[:3]), "symmetric"),
        (lambda x: vendi_from_kernel(2 * np.eye(3)), "diagonal"),
        (lambda x: vendi_from_kernel(np.array([[1.0, 2.0], [2.0, 1.0]])), "at most 1"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(draw(0, 4, 3))

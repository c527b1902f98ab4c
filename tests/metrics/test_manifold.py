from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.neighbors import NearestNeighbors

from guidejax.metrics import (
    coverage,
    density,
    knn_radii,
    manifold_scores,
    precision,
    recall,
)

unknown: Any = "no"


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def loops(real, fake, k):
    def radius(z, i):
        return sorted(np.linalg.norm(z[i] - z[j]) for j in range(len(z)) if j != i)[k - 1]

    balls = [radius(real, i) for i in range(len(real))]
    fake_balls = [radius(fake, j) for j in range(len(fake))]
    gap = np.array([[np.linalg.norm(r - f) for f in fake] for r in real])
    inside = [[gap[i, j] <= balls[i] for j in range(len(fake))] for i in range(len(real))]
    return (
        np.mean([any(row[j] for row in inside) for j in range(len(fake))]),
        np.mean([any(gap[i] <= fake_balls) for i in range(len(real))]),
        np.sum(inside) / k / len(fake),
        np.mean([any(row) for row in inside]),
    )


@pytest.mark.parametrize(
    ("k", "chunk", "method"),
    [(3, None, "direct"), pytest.param(5, 7, "gram", marks=pytest.mark.slow)],
)
def test_agrees_with_loops(k, chunk, method):
    real, fake = draw(0, 25, 3), draw(1, 18, 3) * 0.7 + 0.4
    want = loops(real, fake, k)
    got = manifold_scores(real, fake, k, chunk=chunk, method=method)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    options = {"chunk": chunk, "method": method}
    alone = [f(real, fake, k, **options) for f in (precision, recall, density, coverage)]
    np.testing.assert_allclose(alone, want, rtol=1e-6)


def test_radii_are_sklearns(x64):
    x = draw(0, 30, 2, 2)
    flat = x.reshape(30, 4)
    want = NearestNeighbors(n_neighbors=4).fit(flat).kneighbors()[0][:, -1]
    got = knn_radii(x, 4)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_per_sample_terms_average_to_the_scores():
    real, fake = draw(0, 25, 3), draw(1, 18, 3)
    terms = manifold_scores(real, fake, 3, per_sample=True)
    assert [t.shape for t in terms] == [(18,), (25,), (18,), (25,)]
    np.testing.assert_allclose([t.mean() for t in terms], manifold_scores(real, fake, 3))


@pytest.mark.slow
def test_expected_values_of_one_distribution():
    # Naeem et al.: density 1, coverage 1 - Π (n - i)/(2n - i), i = 1..k, whatever the distribution.
    n, k = 60, 5
    real, fake = jax.random.normal(jax.random.key(0), (2, 200, n, 4))
    scores = jax.jit(jax.vmap(lambda r, f: manifold_scores(r, f, k)))(real, fake)
    i = np.arange(1, k + 1)
    wanted = {"density": 1.0, "coverage": 1 - np.prod((n - i) / (2 * n - i))}
    for name, want in wanted.items():
        values = getattr(scores, name)
        assert abs(values.mean() - want) < 4 * values.std() / np.sqrt(200)
        assert values.std() > 0


def test_extremes():
    x = draw(0, 30, 3)
    same = manifold_scores(x, x, 3)
    np.testing.assert_array_equal([same.precision, same.recall, same.coverage], 1)
    far = manifold_scores(x, x + 1000, 3)
    np.testing.assert_array_equal(far, 0)
    # Fakes piled on one real: precise, and diverse in nothing.
    piled = manifold_scores(x, np.repeat(x[:1], 30, axis=0), 3)
    assert float(piled.precision) == 1
    assert float(piled.recall) == pytest.approx(1 / 30)


@pytest.mark.slow
def test_invariant_to_rigid_maps_and_scale():
    real, fake = draw(0, 25, 3), draw(1, 18, 3) * 1.2
    q = 3 * ortho_group.rvs(3, random_state=0)
    turned = manifold_scores(real @ q + 1, fake @ q + 1, 3)
    np.testing.assert_allclose(turned, manifold_scores(real, fake, 3), atol=1e-6)


@pytest.mark.slow
def test_counts_have_gradient_zero():
    real, fake = draw(0, 20, 4), draw(1, 20, 4)
    g = jax.jit(jax.grad(lambda r, f: sum(manifold_scores(r, f)), (0, 1)))(real, fake)
    np.testing.assert_array_equal(g, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: manifold_scores(x, x, 4), "k is 4"),
        (lambda x: precision(x, x, 0), "k is 0"),
        (lambda x: recall(x, x[:2], 2), "k is 2"),
        (lambda x: density(x, x[:, :1]), "same shape"),
        (lambda x: precision(x, x * np.nan, 1), "fake holds NaN"),
        (lambda x: recall(x * np.nan, x, 1), "real holds NaN"),
        (lambda x: coverage(x * np.nan, x, 1), "NaN"),
        (lambda x: knn_radii(x[0], 1), "batch axis"),
        (lambda x: coverage(x, x, 1, method=unknown), "method"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(draw(0, 4, 3))

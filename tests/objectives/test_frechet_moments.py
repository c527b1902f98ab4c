"""Features in which the energy distance at β = 2 is a Fréchet distance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.metrics import energy_distance, frechet_from_moments
from tests.learning.common import KEY

DIM = 4


def moments_distance(feature, mean, cov, reference):
    """‖E f(x) − E f(y)‖² for x ~ N(mean, cov) and y the reference, by moments alone."""
    # The feature is quadratic, so that its mean over these 2 · DIM points is exact.
    root = np.linalg.cholesky(cov) * np.sqrt(DIM)
    points = np.concatenate([mean + root.T, mean - root.T])
    ours, real = (np.mean(feature(jnp.asarray(x)), axis=0) for x in (points, reference))
    return float(np.sum((ours - real) ** 2))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_second_order_agreement_with_the_frechet_distance():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(50, DIM)) @ rng.normal(size=(DIM, DIM))
    mean, cov = reference.mean(axis=0), np.cov(reference.T, bias=True)
    feature = gj.objectives.frechet_moments(gj.objectives.pixels, jnp.asarray(reference), rank=DIM)
    shift, stir = rng.normal(size=DIM), rng.normal(size=(DIM, DIM))
    errors = []
    for size in (1e-3, 1e-4):
        mean2, root = mean + size * shift, np.eye(DIM) + size * stir
        cov2 = root @ cov @ root.T
        expected = float(frechet_from_moments(*map(jnp.asarray, (mean, cov, mean2, cov2))))
        found = moments_distance(feature, mean2, cov2, reference) * np.trace(cov)
        errors.append(abs(found / expected - 1))
    assert errors[0] < 0.01
    assert errors[1] < 0.15 * errors[0]  # the error is of the next order


@pytest.mark.slow
def test_unbiased_where_the_distributions_agree():
    x = jax.random.normal(KEY, (400, 3))
    feature = gj.objectives.frechet_moments(gj.objectives.pixels, x, rank=3)
    draw = jax.random.normal(jax.random.key(1), (2, 2000, 12, 3))
    found = jax.vmap(lambda a, b: energy_distance(feature(a), feature(b), beta=2.0))(*draw)
    error = float(jnp.std(found) / jnp.sqrt(found.size))
    assert abs(float(jnp.mean(found))) < 4 * error


def test_a_flat_feature_is_refused():
    with pytest.raises(ValueError, match="fewer than 2 directions"):
        gj.objectives.frechet_moments(
            gj.objectives.pixels, jnp.arange(6.0)[:, None] * jnp.ones((6, 3)), rank=2
        )


@pytest.mark.slow
def test_gradient_is_finite():
    x = jnp.concatenate([jnp.zeros((4, 3)), jnp.eye(3)])
    feature = gj.objectives.frechet_moments(gj.objectives.pixels, x, rank=2)
    gradient = jax.grad(lambda a: jnp.sum(feature(a) ** 2))(jnp.zeros((4, 3)))
    assert np.all(np.isfinite(gradient))

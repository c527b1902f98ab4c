"""What the metrics promise of programs that XLA has optimized, to the bit and the byte."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidejax.metrics import energy_distance, pairwise_distance_power

pytestmark = pytest.mark.optimized


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beta", "method"),
    [(0.1, "direct"), pytest.param(1.0, "gram", marks=pytest.mark.slow)],
)
def test_coincident_points_have_distance_and_gradient_zero(beta, method):
    x = draw(0, 4, 3).astype(np.float32) + 100
    x[1] = x[0]

    def f(a, b):
        return pairwise_distance_power(a, b, beta, method=method)

    powers = np.asarray(f(x, x))
    np.testing.assert_array_equal(powers[0, 1], 0)
    np.testing.assert_array_equal(np.diagonal(powers), 0)
    ga, gb = jax.jit(jax.grad(lambda a, b: f(a, b)[0, 1], (0, 1)))(x, x)
    np.testing.assert_array_equal(ga, 0)
    np.testing.assert_array_equal(gb, 0)

    whole = jax.jit(jax.grad(partial(energy_distance, beta=beta, method=method)))(x, x)
    assert np.all(np.isfinite(whole))


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "method"), [(0.1, "direct"), (1.0, "gram")])
def test_second_derivative_finite_at_coincident_points(beta, method):
    x = draw(0, 4, 3).astype(np.float32) + 100
    x[1] = x[0]
    energy = partial(energy_distance, y=x, beta=beta, method=method)
    assert np.all(np.isfinite(jax.jit(jax.hessian(energy))(x)))


@pytest.mark.slow
def test_gram_rounds_coincidence_to_zero():
    x = jnp.asarray(draw(0, 64, 257), jnp.float32)
    gram = pairwise_distance_power(x, x, 0.1, method="gram")
    np.testing.assert_array_equal(np.diagonal(gram), 0)
    apart = ~np.eye(64, dtype=bool)
    want = pairwise_distance_power(x, x, 0.1)
    np.testing.assert_allclose(gram[apart], want[apart], rtol=1e-5)


def test_no_array_of_all_differences():
    n, d = 32, 4096
    x = jax.ShapeDtypeStruct((n, d), jnp.float32)
    step = jax.jit(jax.value_and_grad(energy_distance, (0, 1)))
    memory: Any = step.lower(x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < n * n * d * 4 / 2


def test_direct_keeps_close_pairs_far_from_the_origin():
    x = np.full((1, 8), 1000, np.float32)
    y = x + np.float32(2.0**-10)
    want = 2.0**-10 * np.sqrt(8)
    np.testing.assert_allclose(pairwise_distance_power(x, y)[0, 0], want, rtol=1e-5)
    # The gradient is centred, so it keeps them too: a unit vector.
    g = jax.jit(jax.grad(lambda a: pairwise_distance_power(a, y)[0, 0]))(x)
    np.testing.assert_allclose(g, -1 / np.sqrt(8), rtol=1e-5)

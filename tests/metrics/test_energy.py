from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.metrics import pairwise_distances

from guidejax.metrics import (
    energy_distance,
    grouped_energy_distance,
    pairwise_distance_power,
)

unknown: Any = "fast"


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def loops(x, y, beta, lam, unbiased):
    """Eq. (9) as three double loops."""

    def mean(a, b, skip):
        terms = [
            np.sum((a[i] - b[j]) ** 2) ** (beta / 2)
            for i in range(len(a))
            for j in range(len(b))
            if not (skip and i == j)
        ]
        return sum(terms) / len(terms)

    own = mean(x, x, unbiased) + mean(y, y, unbiased)
    return mean(x, y, False) - lam / 2 * own


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unbiased", "chunk", "method"),
    [(True, 4, "direct"), (False, None, "gram")],
)
@pytest.mark.parametrize(("beta", "lam"), [(0.5, 1.0), (1.75, 0.0), (2.0, 0.3)])
def test_agrees_with_double_loops(x64, beta, lam, unbiased, chunk, method):
    x, y = draw(0, 7, 2, 3), draw(1, 5, 2, 3) + 0.5
    got = energy_distance(x, y, beta, lam, unbiased, method=method, chunk=chunk)
    want = loops(x.reshape(7, -1), y.reshape(5, -1), beta, lam, unbiased)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("method", ["direct", "gram"])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_pairs_over_leading_axes(x64, beta, method):
    x, y = draw(0, 3, 1, 5, 4), draw(1, 2, 6, 4)
    got = pairwise_distance_power(x, y, beta, method=method)
    assert got.shape == (3, 2, 5, 6)
    for i in range(3):
        for j in range(2):
            want = pairwise_distances(x[i, 0], y[j]) ** beta
            np.testing.assert_allclose(got[i, j], want, rtol=1e-12)


@pytest.mark.slow
def test_gaussians_closed_form():
    # In one dimension E|N(m, s²)| = s sqrt(2/π) exp(-m²/2s²) + m erf(m / s sqrt 2).
    x, y = draw(0, 3000, 1), draw(1, 3000, 1) * 2 + 1
    s, m = np.sqrt(5), 1.0
    cross = s * np.sqrt(2 / np.pi) * np.exp(-(m**2) / (2 * s**2))
    cross += m * jax.scipy.special.erf(m / (s * np.sqrt(2)))
    own = (2 / np.sqrt(np.pi) + 4 / np.sqrt(np.pi)) / 2
    np.testing.assert_allclose(energy_distance(x, y, chunk=512), cross - own, atol=0.03)


def test_at_beta_two_it_is_the_squared_distance_of_the_means(x64):
    x, y = draw(0, 7, 6), draw(1, 5, 6) + 1
    want = np.sum((x.mean(0) - y.mean(0)) ** 2)
    np.testing.assert_allclose(energy_distance(x, y, 2.0, unbiased=False), want, rtol=1e-12)


def test_equal_sets():
    x = draw(0, 20, 3)
    np.testing.assert_allclose(energy_distance(x, x, unbiased=False), 0, atol=1e-6)
    assert energy_distance(x, x) < -0.05  # the diagonal is in the cross term only


@pytest.mark.slow
@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_unbiased_over_draws(lam):
    x, y = jax.random.normal(jax.random.key(0), (2, 4000, 4, 2))
    many = jax.jit(jax.vmap(lambda a, b: energy_distance(a, b, lam=lam)))(x, y)
    truth = (1 - lam) * np.sqrt(np.pi)  # E‖N(0, 2 I₂)‖ = sqrt(π)
    error = many.std() / np.sqrt(4000)
    assert abs(many.mean() - truth) < 4 * error
    biased = jax.vmap(lambda a, b: energy_distance(a, b, lam=lam, unbiased=False))(x, y)
    assert biased.mean() - truth > 10 * error


def test_invariant_to_rigid_maps_and_homogeneous(x64):
    x, y = draw(0, 10, 4), draw(1, 12, 4) + 0.3
    q = ortho_group.rvs(4, random_state=0)
    base = energy_distance(x, y, 1.5)
    np.testing.assert_allclose(energy_distance(x @ q + 7, y @ q + 7, 1.5), base, rtol=1e-10)
    np.testing.assert_allclose(energy_distance(3 * x, 3 * y, 1.5), 3**1.5 * base, rtol=1e-10)
    np.testing.assert_allclose(energy_distance(y, x, 1.5), base, rtol=1e-10)


def test_gradient_finite_near_coincidence():
    slope = jax.jit(jax.grad(lambda a, b: pairwise_distance_power(a, b, 0.1)[0, 0]))
    for gap in (1e-30, 1e-21, 1e-18, 1e-12):
        for y in (np.zeros((1, 2)), np.array([[0.0, 1.0]])):
            assert np.all(np.isfinite(slope(y + np.array([[gap, 0.0]]), y)))


@pytest.mark.slow
@pytest.mark.parametrize(("chunk", "method"), [(3, "direct"), (3, "gram")])
def test_gradient_is_that_of_the_formula(x64, chunk, method):
    x, y = draw(0, 5, 3) + 50, draw(1, 4, 3) + 50
    beta, lam, step = 1.3, 0.7, 1e-6

    def f(a, b):
        return energy_distance(a, b, beta, lam, method=method, chunk=chunk)

    gx, gy = jax.jit(jax.grad(f, (0, 1)))(x, y)
    dx, dy = draw(2, 5, 3), draw(3, 4, 3)
    up = loops(x + step * dx, y + step * dy, beta, lam, True)
    down = loops(x - step * dx, y - step * dy, beta, lam, True)
    want = (up - down) / (2 * step)
    np.testing.assert_allclose(np.sum(gx * dx) + np.sum(gy * dy), want, rtol=1e-7)
    np.testing.assert_allclose(
        jax.jit(lambda *a: jax.jvp(f, *a)[1])((x, y), (dx, dy)), want, rtol=1e-7
    )


@pytest.mark.slow
def test_second_derivative_is_that_of_the_formula(x64):
    x, y, d = draw(0, 3, 2), draw(1, 2, 2), draw(2, 3, 2)

    def library(t):
        return jnp.sum(pairwise_distance_power(x + t * d, y, 1.5))

    def plain(t):
        return jnp.sum(jnp.sum((x[:, None] + t * d[:, None] - y) ** 2, -1) ** 0.75)

    got, want = (jax.jit(jax.grad(jax.grad(f)))(0.0) for f in (library, plain))
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_integers_are_taken_as_numbers():
    assert float(energy_distance(np.array([[0], [1]]), np.array([[2], [3]]), unbiased=False)) == 1.5


def test_groups_by_vmap_and_by_label(x64):
    x, y = draw(0, 3, 6, 4), draw(1, 3, 5, 4)
    many = jax.jit(jax.vmap(lambda a, b: energy_distance(a, b, 1.5, 0.8)))(x, y)
    alone = [loops(a, b, 1.5, 0.8, True) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(many, alone, rtol=1e-12)
    labels_x, labels_y = np.tile(np.arange(3), 6), np.repeat(np.arange(3), 5)
    by_label = jax.jit(grouped_energy_distance, static_argnums=(4,), static_argnames="chunk")
    flat_x = x.transpose(1, 0, 2).reshape(18, 4)
    got = by_label(flat_x, labels_x, y.reshape(15, 4), labels_y, 3, 1.5, 0.8, chunk=4)
    np.testing.assert_allclose(got, many, rtol=1e-12)


def test_a_class_without_samples_is_nan():
    x, labels = draw(0, 6, 2), np.array([0, 0, 0, 1, 2, 2])
    y, labels_y = x + 1, np.array([0, 0, 0, 1, 1, 2])
    got = grouped_energy_distance(x, labels, y, labels_y, 4)
    np.testing.assert_array_equal(jnp.isnan(got), [False, True, True, True])
    biased = grouped_energy_distance(x, labels, y, labels_y, 4, unbiased=False)
    np.testing.assert_array_equal(jnp.isnan(biased), [False, False, False, True])


@pytest.mark.slow
def test_a_class_without_samples_leaves_gradients_alone():
    x, labels, labels_y = draw(0, 6, 2), np.array([0, 0, 0, 1, 2, 2]), np.array([0, 0, 0, 1, 1, 2])

    def loss(a):
        return jnp.nanmean(grouped_energy_distance(a, labels, x + 1, labels_y, 4))

    g = jax.jit(jax.grad(loss))(x)
    assert np.all(np.isfinite(g))
    assert np.any(np.asarray(g[:3]) != 0)
    np.testing.assert_array_equal(g[3:], 0)


def test_traced_beta_and_lam_share_one_compilation():
    traces = []

    @jax.jit
    def f(x, beta, lam):
        traces.append(1)
        return energy_distance(x, x + 1, beta, lam)

    x = draw(0, 4, 2)
    values = {float(f(x, beta, lam)) for beta in (0.5, 1.5) for lam in (0.0, 1.0)}
    assert len(traces) == 1
    assert len(values) == 4


@pytest.mark.slow
def test_on_an_explicit_mesh():
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(draw(0, 6, 3), NamedSharding(mesh, PartitionSpec("data")))
        labels = jax.device_put(np.arange(6) % 2, NamedSharding(mesh, PartitionSpec("data")))
        got = jax.jit(energy_distance)(x, x + 1)
        grouped = grouped_energy_distance(x, labels, x + 1, labels, 2)
        g = jax.grad(energy_distance)(x, x + 1)
        assert g.sharding.spec[0] == "data"
    plain = draw(0, 6, 3)
    np.testing.assert_allclose(got, energy_distance(plain, plain + 1), rtol=1e-5)
    want = [energy_distance(plain[i::2], plain[i::2] + 1) for i in range(2)]
    np.testing.assert_allclose(grouped, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: energy_distance(x, x[:, :2]), "same shape"),
        (lambda x: energy_distance(x[0], x[0]), "batch axis"),
        (lambda x: energy_distance(x[:1], x), "at least 2"),
        (lambda x: energy_distance(x, x, beta=2.5), "beta"),
        (lambda x: energy_distance(x, x, beta=0.0), "beta"),
        (lambda x: energy_distance(x, x, beta=np.ones(2)), "beta has shape"),
        (lambda x: energy_distance(x, x, lam=-1.0), "lam"),
        (lambda x: energy_distance(x, x, method=unknown), "method"),
        (lambda x: energy_distance(x, x, chunk=0), "chunk"),
        (lambda x: energy_distance(x + 1j, x), "real numbers"),
        (lambda x: pairwise_distance_power(x, x[:, :2]), "shape"),
        (lambda x: pairwise_distance_power(x[None].repeat(2, 0), x[None].repeat(3, 0)), "leading"),
        (lambda x: grouped_energy_distance(x, np.arange(4), x, np.zeros(4, int), 3), "labels"),
        (lambda x: grouped_energy_distance(x, np.arange(2), x, np.zeros(4, int), 3), "one label"),
        (lambda x: grouped_energy_distance(x, x[:, 0], x, x[:, 0], 3), "integer"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(draw(0, 4, 3))
    assert energy_distance(draw(0, 1, 3), draw(1, 1, 3), lam=0) > 0  # one each is enough there

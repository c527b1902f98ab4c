"""Per-sample arithmetic: sums in float32 at least, lengths of any magnitude."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidejax._arrays import (
    blend_resized,
    combine,
    expand,
    magnitude,
    norm,
    over,
    project,
    quantile,
    resized,
    unit,
)


def _draw(seed):
    return np.random.default_rng(seed).normal(size=1000).astype(np.float32)


def test_combine_is_the_sum():
    x, y, z = (_draw(seed)[:, None] for seed in range(3))
    c = _draw(3)
    run = jax.jit(lambda *args: combine((args[0], 0.3, -2.0), *args[1:]))
    want = c[:, None] * x + np.float32(0.3) * y + np.float32(-2.0) * z
    np.testing.assert_allclose(run(c, x, y, z), want, rtol=1e-5, atol=1e-6)


def test_combine_keeps_the_first_dtype_and_sums_in_float32():
    x, y = (jnp.asarray(_draw(seed)[:, None], jnp.bfloat16) for seed in range(2))
    got = combine((2.0, 0.1), {"a": x}, {"a": y})["a"]
    want = 2 * np.asarray(x, np.float32) + np.float32(0.1) * np.asarray(y, np.float32)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, jnp.asarray(want, jnp.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-30, 1e-22, 1.0, 1e19, 1e37])
def test_lengths_of_any_magnitude(size):
    """What is squared is never out of range, in value or in gradient."""
    a, b = (np.float32(size) * _draw(seed).reshape(10, 100) for seed in range(2))
    exact = np.linalg.norm(a.astype(np.float64), axis=1)
    np.testing.assert_allclose(norm(jnp.asarray(a)), exact, rtol=1e-6)
    np.testing.assert_allclose(unit(jnp.asarray(a)), a / exact[:, None], rtol=1e-5, atol=1e-7)
    wide = a.astype(np.float64), b.astype(np.float64)
    along = np.sum(wide[0] * wide[1], 1) / np.sum(wide[1] ** 2, 1)
    found = np.asarray(project(jnp.asarray(a), jnp.asarray(b)), np.float64)
    np.testing.assert_allclose(found / size, along[:, None] * wide[1] / size, rtol=1e-4, atol=1e-6)
    slope = jax.grad(lambda a: norm(a).sum())(jnp.asarray(a))
    np.testing.assert_allclose(slope, a / exact[:, None], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_magnitude_is_a_power_of_four_that_loses_no_bit():
    a = np.exp(np.linspace(-60, 60, 64, dtype=np.float32))[:, None] * _draw(0)[:64, None]
    size = np.asarray(magnitude(jnp.asarray(a)))
    assert set(np.unique(np.log2(size) % 2)) == {0.0}
    np.testing.assert_array_equal(np.asarray(jnp.asarray(a) / size) * size, a)
    assert np.all((np.abs(a) / size >= 1) & (np.abs(a) / size < 16))
    # NaN and infinity don't count, the largest of several arrays does.
    assert float(magnitude(jnp.array([[jnp.nan, 4.0, jnp.inf]]))[0, 0]) == 4.0
    assert float(magnitude(jnp.array([[1.0]]), jnp.array([[16.0]]))[0, 0]) == 16.0


@pytest.mark.slow
def test_nothing_and_nan():
    zero = jnp.zeros((2, 3))
    np.testing.assert_array_equal(norm(zero), 0)
    np.testing.assert_array_equal(unit(zero), 0)
    np.testing.assert_array_equal(jax.grad(lambda a: norm(a).sum())(zero), 0)
    broken = zero.at[0, 1].set(jnp.nan)
    assert np.isnan(norm(broken)).tolist() == [True, False]
    assert np.isnan(unit(broken)).any(axis=1).tolist() == [True, False]


def test_expand_goes_by_the_batch_or_by_every_axis():
    x = jnp.zeros((2, 3, 4))
    assert expand(1.0, x).shape == ()
    assert expand(jnp.ones(2), x).shape == (2, 1, 1)
    assert expand(jnp.ones((1, 1, 4)), x).shape == (1, 1, 4)
    with pytest.raises(ValueError, match="shape"):
        expand(jnp.ones((2, 3)), x)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 1.0])
def test_quantile_is_numpy_s(q):
    x = _draw(0).reshape(10, 100)
    np.testing.assert_allclose(quantile(jnp.asarray(x), q), np.quantile(x, q, axis=1), rtol=1e-5)


def test_a_length_is_set_where_the_ratio_is_out_of_range():
    a = jnp.array([[3e-30, -4e-30], [3e20, -4e20], [0.0, 0.0]])
    to, of = jnp.array([[5e28], [5e-20], [7.0]]), norm(a, keepdims=True)
    want = np.array([[3e28, -4e28], [3e-20, -4e-20], [0.0, 0.0]])
    np.testing.assert_allclose(resized(a, to, of), want, rtol=1e-6)
    np.testing.assert_allclose(blend_resized(a, to, of, 1.0), want, rtol=1e-6)
    np.testing.assert_array_equal(blend_resized(a, to, of, 0.0), a)
    np.testing.assert_array_equal(blend_resized(a, of, of, 0.3), a)
    slopes = jax.grad(lambda *x: blend_resized(*x, 0.5).sum(), (0, 1, 2))(a[1:], to[1:], of[1:])
    assert all(np.all(np.isfinite(slope)) for slope in slopes)


def test_what_is_beyond_its_magnitude_counts_as_nothing():
    """As rounding does over the magnitude of a difference that was found to be 0."""
    a = jnp.array([[1e-7, np.nan, np.inf, 0.0]])
    found = over(a, magnitude(jnp.zeros_like(a)))
    np.testing.assert_array_equal(found, [[0.0, np.nan, np.inf, 0.0]])
    np.testing.assert_array_equal(over(a[:, :1], magnitude(a[:, :1])) <= 4, True)

"""The maximum mean discrepancy with RBF and polynomial kernels, and the kernel inception distance.

All return the squared discrepancy E k(X, X') + E k(Y, Y') - 2 E k(X, Y).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from guidejax._arrays import is_concrete, magnitude, safe_sqrt
from guidejax.metrics._checks import point_sets, positive_int, real_array
from guidejax.metrics._pairs import (
    at_unit_scale,
    matmul,
    over_rows,
    row_means,
    square_distances,
    transpose,
)

Array = jax.Array


@partial(jax.jit, static_argnames="points")
def _median(x: Array, y: Array, points: int) -> Array:
    # Evenly strided rows of each set: the median needs no more, and sorting N² distances is slow.
    pooled = jnp.concatenate([a[:: -(-a.shape[0] // points)] for a in (x, y)])
    rows, columns = jnp.triu_indices(pooled.shape[0], k=1)

    def median(pooled: Array) -> Array:
        apart = safe_sqrt(square_distances(pooled, pooled)[rows, columns])
        # Of a collapsed set most are 0, which is no scale; what differs still has one.
        some = jnp.nan_to_num(jnp.nanmedian(jnp.where(apart > 0, apart, jnp.nan)))
        found = jnp.median(apart)
        return jnp.where(found == 0, some, found)

    return at_unit_scale(median, 1, pooled)


def median_bandwidth(x: Any, y: Any, points: int = 1000) -> Array:
    """The median distance of two points of the pooled sets.

    Args:
        x: Samples (n, d...).
        y: Samples (m, d...).
        points: How many samples of each set it looks at, evenly strided over the set.

    Returns:
        A scalar in units of x, float32 at least. If over half of the pairs coincide it is the
        median of those that don't; 0 if all do.

    Raises:
        ValueError: Shapes that don't pair, NaN or infinite samples.

    Example:
        >>> import jax.numpy as jnp
        >>> float(median_bandwidth(jnp.array([[0.0], [1.0]]), jnp.array([[3.0]])))
        2.0

    References:
        Gretton et al., A Kernel Two-Sample Test, 2012, section 8.
    """
    x, y = point_sets(x, y)
    positive_int("points", points)
    return _median(x, y, points)


@partial(jax.jit, static_argnames=("unbiased", "chunk"))
def _rbf(x: Array, y: Array, bandwidths: Array, unbiased: bool, chunk: int | None) -> Array:
    # 0, of points that are all the same, would be 0/0; any bandwidth gives the same 0 there.
    widths = jnp.where(bandwidths <= 0, 1, bandwidths)
    # In units of the points their squares are in range. Below √tiny the kernel is 0 but at 0.
    size = magnitude(x, y, axis=(-2, -1))
    x, y = x / size, y / size
    widths = jnp.maximum(widths / size[0, 0], jnp.finfo(x.dtype).tiny ** 0.5)

    def kernel(square: Array) -> Array:
        return jnp.mean(jnp.exp(-square[..., None] / (2 * widths**2)), axis=-1)

    means = partial(row_means, kernel, method="direct", chunk=chunk)
    own = jnp.mean(means(x, x, same=unbiased)) + jnp.mean(means(y, y, same=unbiased))
    return own - 2 * jnp.mean(means(x, y, same=False))


def mmd_rbf(
    x: Any, y: Any, bandwidths: Any = None, unbiased: bool = True, *, chunk: int | None = None
) -> Array:
    """The squared MMD of the kernel mean_b exp(-‖x - y‖² / 2b²).

    Args:
        x: Samples (n, d...).
        y: Samples (m, d...).
        bandwidths: A positive scalar or (k,) of them, in units of x; None takes `median_bandwidth`,
            as a constant (no gradient passes through the choice of the kernel).
        unbiased: Leave k(xᵢ, xᵢ) out of the means (may be negative); otherwise >= 0.
        chunk: Rows of the kernel matrix to hold at a time; None holds all.

    Returns:
        A scalar in [-2, 2] without units, float32 at least. Compare only values of one bandwidth.

    Raises:
        ValueError: Shapes that don't pair, fewer than 2 samples where unbiased, a bandwidth that
            isn't positive, NaN or infinite samples.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.zeros((3, 2))
        >>> round(float(mmd_rbf(x, x + 1.0, bandwidths=1.0)), 4)  # 2 - 2/e
        1.2642

    References:
        Gretton et al., A Kernel Two-Sample Test, 2012, Eq. (3) (unbiased) and (5) (biased).
    """
    x, y = point_sets(x, y, at_least=2 if unbiased else 1)
    if chunk is not None:
        positive_int("chunk", chunk)
    if bandwidths is None:
        bandwidths = jax.lax.stop_gradient(_median(x, y, 1000))
    else:
        bandwidths = real_array("bandwidths", bandwidths)
        if bandwidths.ndim > 1 or bandwidths.size == 0:
            raise ValueError(f"bandwidths has shape {bandwidths.shape}; expected () or (k,).")
        if is_concrete(bandwidths) and not bool(jnp.all(bandwidths > 0)):
            raise ValueError(f"bandwidths is {bandwidths}; expected positive numbers.")
    return _rbf(x, y, jnp.atleast_1d(bandwidths).astype(x.dtype), unbiased, chunk)


def _product_means(
    kernel: Callable[[Array], Array], x: Array, y: Array, same: bool, chunk: int | None
) -> Array:
    columns = jnp.arange(y.shape[0])

    def block(rows: tuple[Array, Array]) -> Array:
        points, index = rows
        values = kernel(matmul(points, transpose(y)))
        if not same:
            return jnp.mean(values, axis=-1)
        others = jnp.where(index[:, None] == columns, 0, values)
        return jnp.sum(others, axis=-1) / (y.shape[0] - 1)

    return jnp.mean(over_rows(block, (x, jnp.arange(x.shape[0])), chunk))


@partial(jax.jit, static_argnames=("degree", "unbiased", "chunk"))
def _polynomial(
    x: Array, y: Array, gamma: Any, coef0: Any, degree: int, unbiased: bool, chunk: int | None
) -> Array:
    gamma, coef0 = jnp.asarray(gamma, x.dtype), jnp.asarray(coef0, x.dtype)
    means = partial(_product_means, lambda inner: (gamma * inner + coef0) ** degree, chunk=chunk)
    return means(x, x, unbiased) + means(y, y, unbiased) - 2 * means(x, y, False)


def mmd_polynomial(
    x: Any,
    y: Any,
    degree: int = 3,
    gamma: Any = None,
    coef0: Any = 1.0,
    unbiased: bool = True,
    *,
    chunk: int | None = None,
) -> Array:
    """The squared MMD of the kernel (γ⟨x, y⟩ + c₀)^degree.

    Args:
        x: Samples (n, d...).
        y: Samples (m, d...).
        degree: A positive integer; the metric sees moments up to this order.
        gamma: γ; None is 1/d.
        coef0: c₀.
        unbiased: Leave k(xᵢ, xᵢ) out of the means (may be negative).
        chunk: Rows of the kernel matrix to hold at a time; None holds all.

    Returns:
        A scalar without units, float32 at least.

    Raises:
        ValueError: Shapes that don't pair, fewer than 2 samples where unbiased, a degree that isn't
            a positive integer, NaN or infinite samples.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.ones((2, 1))
        >>> float(mmd_polynomial(x, 0.0 * x))  # 8 + 1 - 2
        7.0

    References:
        Binkowski et al., Demystifying MMD GANs, 2018, section 4, at the defaults.
    """
    x, y = point_sets(x, y, at_least=2 if unbiased else 1)
    positive_int("degree", degree)
    if chunk is not None:
        positive_int("chunk", chunk)
    gamma = 1 / x.shape[1] if gamma is None else gamma
    return _polynomial(x, y, gamma, coef0, int(degree), unbiased, chunk)


def kernel_inception_distance(
    key: Array, x: Any, y: Any, subset_size: int = 1000, subsets: int = 100
) -> Array:
    """The kernel inception distance: unbiased `mmd_polynomial` of random subsets, un-reduced.

    Args:
        key: A random key, for the subsets (drawn without replacement).
        x: Features (n, d).
        y: Features (m, d).
        subset_size: Samples of each set in a subset, 2 to min(n, m).
        subsets: How many subsets.

    Returns:
        (subsets,), float32 at least. KID is the mean; the deviation over subsets that share samples
        is smaller than the standard error of that mean suggests, so make intervals over seeds.

    Raises:
        ValueError: Shapes that don't pair, a subset_size below 2 or above the number of samples,
            NaN or infinite features.

    Example:
        >>> import jax
        >>> x = jax.random.normal(jax.random.key(0), (64, 4))
        >>> kernel_inception_distance(jax.random.key(1), x, x + 1.0, 32, subsets=5).shape
        (5,)

    References:
        Binkowski et al., Demystifying MMD GANs, 2018, section 4.
    """
    x, y = point_sets(x, y, at_least=2)
    positive_int("subsets", subsets)
    positive_int("subset_size", subset_size, at_most=min(x.shape[0], y.shape[0]))
    if subset_size < 2:
        raise ValueError("subset_size is 1; expected at least 2 for an unbiased estimate.")

    def one(key: Array) -> Array:
        rows = [
            jax.random.choice(k, a.shape[0], (subset_size,), replace=False)
            for k, a in zip(jax.random.split(key), (x, y), strict=True)
        ]
        return _polynomial(x[rows[0]], y[rows[1]], 1 / x.shape[1], 1.0, 3, True, None)

    return jax.lax.map(one, jax.random.split(key, subsets))

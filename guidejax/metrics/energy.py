"""The energy distance, whole and per class, and the pairwise powers that it averages."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from guidejax._arrays import is_concrete
from guidejax.metrics._checks import class_labels, point_sets, positive_int, real_array
from guidejax.metrics._pairs import (
    Method,
    at_unit_scale,
    check_beta,
    check_method,
    check_options,
    over_rows,
    power,
    row_means,
    square_distances,
)

Array = jax.Array


def _check_lam(lam: Any) -> None:
    if jnp.ndim(lam) != 0 or (is_concrete(lam) and not 0 <= float(lam) <= 1):
        raise ValueError(f"lam is {lam}; expected a scalar in [0, 1].")


def pairwise_distance_power(x: Any, y: Any, beta: Any = 1.0, *, method: Method = "direct") -> Array:
    """‖xᵢ - yⱼ‖^β of every pair, over any leading batch axes.

    "direct" sums the squared differences: coincident points are at distance 0 exactly, and close
    ones keep their digits. XLA fuses the difference into the sum, so that memory is that of the
    (..., n, m) output, not n·m·d. "gram" writes ‖x‖² + ‖y‖² - 2⟨x, y⟩ about the mean of y, one
    matrix product: faster for large n, m and d on an accelerator, but a distance below
    6·sqrt(eps) of the points' distance from that mean (0.2% in float32) comes back as 0. The
    gradient is matrix products for both, with memory of the inputs' order, to a relative error of
    eps·(spread of the points)/(distance of the pair).

    Args:
        x: Points (..., n, d).
        y: Points (..., m, d); the leading axes broadcast against those of x.
        beta: The power, 0 < beta <= 2; may be traced.
        method: "direct" or "gram".

    Returns:
        (..., n, m), float32 at least. The gradient is 0 where xᵢ = yⱼ, where that of the power has
        no value for beta < 2.

    Raises:
        ValueError: Shapes that don't pair, a beta outside of (0, 2], NaN or infinite points.

    Example:
        >>> import jax.numpy as jnp
        >>> x, y = jnp.array([[0.0, 0.0], [3.0, 4.0]]), jnp.zeros((1, 2))
        >>> pairwise_distance_power(x, y, beta=1.0).ravel().tolist()
        [0.0, 5.0]
    """
    x, y = real_array("x", x), real_array("y", y)
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"x has shape {x.shape} and y {y.shape}; expected (..., n, d) and (..., m, d)."
        )
    try:
        jnp.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    except ValueError as error:
        raise ValueError(
            f"the leading axes of x {x.shape} and y {y.shape} don't broadcast."
        ) from error
    check_beta(beta)
    check_method(method)
    dtype = jnp.promote_types(x.dtype, y.dtype)

    def powers(x: Array, y: Array) -> Array:
        return power(square_distances(x, y, method), beta)

    return at_unit_scale(powers, beta, *_aligned(x.astype(dtype), y.astype(dtype)))


def _aligned(x: Array, y: Array) -> tuple[Array, Array]:
    """Both with as many leading axes."""
    axes = max(x.ndim, y.ndim)
    return tuple(jax.lax.expand_dims(a, range(axes - a.ndim)) for a in (x, y))


@partial(jax.jit, static_argnames=("unbiased", "selves", "method", "chunk"))
def _energy(
    x: Array, y: Array, beta: Any, lam: Any, unbiased: bool, selves: bool, method: str, chunk: Any
) -> Array:
    means = partial(row_means, lambda square: power(square, beta), method=method, chunk=chunk)

    def value(x: Array, y: Array) -> Array:
        cross = jnp.mean(means(x, y, same=False))
        if not selves:
            return cross
        own = jnp.mean(means(x, x, same=unbiased)) + jnp.mean(means(y, y, same=unbiased))
        return cross - jnp.asarray(lam, cross.dtype) / 2 * own

    return at_unit_scale(value, beta, x, y)


def energy_distance(
    x: Any,
    y: Any,
    beta: Any = 1.0,
    lam: Any = 1.0,
    unbiased: bool = True,
    *,
    method: Method = "direct",
    chunk: int | None = None,
) -> Array:
    """The generalised energy distance MMD(β, λ) of two sets of samples.

    E‖X - Y‖^β - λ/2 (E‖X - X'‖^β + E‖Y - Y'‖^β). At λ = 1 and 0 < β < 2 it is 0 only for equal
    distributions (half of the statistics literature's energy distance); at β = 2, λ = 1 it is the
    squared distance of the means; at λ < 1 it is no distance, but trades diversity away.

    Args:
        x: Samples (n, d...), flattened to (n, d).
        y: Samples (m, d...).
        beta: The power, 0 < beta <= 2; may be traced.
        lam: The weight of the terms within a set, 0 <= lam <= 1; may be traced. A plain 0
            skips them.
        unbiased: Leave a sample's zero distance to itself out of the means within a set
            (U-statistic: unbiased, may be negative); otherwise V-statistic: >= 0 at lam <= 1, and 0
            for equal sets at lam = 1.
        method: How to compute distances, see `pairwise_distance_power`.
        chunk: Rows of the distance matrix to hold at a time; None holds all n·m.

    Returns:
        A scalar in units of ‖x‖^β, float32 at least. For groups (g, n, d) use `jax.vmap`.

    Raises:
        ValueError: Shapes that don't pair, fewer than 2 samples where unbiased, a beta or lam out
            of range, NaN or infinite samples.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[0.0], [1.0]])
        >>> float(energy_distance(x, x + 2.0, unbiased=False))
        1.5

    References:
        Galashov et al., Learn to Guide Your Diffusion Model, Eq. (9); Szekely and Rizzo, Energy
        statistics, 2013, for λ = 1.
    """
    check_beta(beta)
    _check_lam(lam)
    selves = not (isinstance(lam, int | float) and lam == 0)
    x, y = point_sets(x, y, at_least=2 if unbiased and selves else 1)
    check_options(method, chunk)
    return _energy(x, y, beta, lam, unbiased, selves, method, chunk)


def class_pair_sums(
    x: Array,
    labels_x: Array,
    y: Array,
    labels_y: Array,
    num_classes: int,
    beta: Any,
    method: str,
    chunk: int | None,
) -> Array:
    """Σ ‖xᵢ - yⱼ‖^β over the pairs of one class, for each class: (num_classes,)."""

    def block(rows: tuple[Array, Array]) -> Array:
        points, labels = rows
        values = power(square_distances(points, y, method), beta)
        return jnp.sum(jnp.where(labels[:, None] == labels_y, values, 0), axis=-1)

    sums = over_rows(block, (x, labels_x), chunk)
    members = labels_x[:, None] == jnp.arange(num_classes)
    return jnp.sum(jnp.where(members, sums[:, None], 0), axis=0)


def class_sizes(labels: Array, num_classes: int, dtype: Any) -> Array:
    """How many labels each class has: (num_classes,)."""
    return jnp.sum(labels[:, None] == jnp.arange(num_classes), axis=0).astype(dtype)


@partial(jax.jit, static_argnames=("num_classes", "unbiased", "method", "chunk"))
def _grouped(
    x: Array,
    labels_x: Array,
    y: Array,
    labels_y: Array,
    beta: Any,
    lam: Any,
    num_classes: int,
    unbiased: bool,
    method: str,
    chunk: int | None,
) -> Array:
    sums = partial(class_pair_sums, num_classes=num_classes, beta=beta, method=method, chunk=chunk)
    n, m = (class_sizes(labels, num_classes, x.dtype) for labels in (labels_x, labels_y))
    less = 1 if unbiased else 0
    enough = (n > less) & (m > less)
    n, m = jnp.where(enough, n, 2), jnp.where(enough, m, 2)

    def values(x: Array, y: Array) -> Array:
        own = sums(x, labels_x, x, labels_x) / (n * (n - less))
        own += sums(y, labels_y, y, labels_y) / (m * (m - less))
        return sums(x, labels_x, y, labels_y) / (n * m) - jnp.asarray(lam, x.dtype) / 2 * own

    return jnp.where(enough, at_unit_scale(values, beta, x, y), jnp.nan)


def grouped_energy_distance(
    x: Any,
    cond_x: Any,
    y: Any,
    cond_y: Any,
    num_classes: int,
    beta: Any = 1.0,
    lam: Any = 1.0,
    unbiased: bool = True,
    *,
    method: Method = "direct",
    chunk: int | None = None,
) -> Array:
    """`energy_distance` of the samples of each class, un-reduced.

    All n·m distances are computed and those across classes dropped, so that labels may be traced.

    Args:
        x: Samples (n, d...).
        cond_x: Integer labels (n,) in [0, num_classes).
        y: Samples (m, d...).
        cond_y: Integer labels (m,).
        num_classes: How many classes.
        beta: As in `energy_distance`.
        lam: As in `energy_distance`.
        unbiased: As in `energy_distance`.
        method: As in `energy_distance`.
        chunk: As in `energy_distance`.

    Returns:
        (num_classes,), float32 at least; NaN for a class with too few samples in x or y (2 where
        unbiased, else 1), which `jnp.nanmean` leaves out.

    Raises:
        ValueError: As `energy_distance`, and labels of a wrong shape, dtype or range.

    Example:
        >>> import jax.numpy as jnp
        >>> x, labels = jnp.array([[0.0], [1.0], [0.0], [0.0]]), jnp.array([0, 0, 1, 1])
        >>> y = x + jnp.array([[2.0], [2.0], [5.0], [5.0]])
        >>> grouped_energy_distance(x, labels, y, labels, 2, unbiased=False).tolist()
        [1.5, 5.0]

    References:
        Galashov et al., Learn to Guide Your Diffusion Model, Eq. (9), for each class.
    """
    check_beta(beta)
    _check_lam(lam)
    positive_int("num_classes", num_classes)
    x, y = point_sets(x, y)
    cond_x = class_labels("cond_x", cond_x, x.shape[0], num_classes)
    cond_y = class_labels("cond_y", cond_y, y.shape[0], num_classes)
    check_options(method, chunk)
    return _grouped(x, cond_x, y, cond_y, beta, lam, num_classes, unbiased, method, chunk)

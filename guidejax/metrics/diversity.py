"""How much samples differ from each other: mean pairwise distance, and the Vendi score."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import norm, unit
from guidejax.metrics._checks import (
    class_labels,
    gathered,
    point_set,
    positive_int,
    real_array,
    symmetric,
    unless_nan,
)
from guidejax.metrics._pairs import (
    Method,
    at_unit_scale,
    check_beta,
    check_options,
    matmul,
    power,
    row_means,
    transpose,
)
from guidejax.metrics.energy import class_pair_sums, class_sizes

Array = jax.Array


@partial(jax.jit, static_argnames=("method", "chunk"))
def _mean_pairwise(x: Array, beta: Any, method: str, chunk: int | None) -> Array:
    means = partial(row_means, lambda square: power(square, beta), method=method, chunk=chunk)
    return at_unit_scale(lambda x: jnp.mean(means(x, x, same=True)), beta, x)


def mean_pairwise_distance(
    x: Any, beta: Any = 1.0, *, method: Method = "direct", chunk: int | None = None
) -> Array:
    """The mean of ‖xᵢ - xⱼ‖^β over i ≠ j.

    At β = 2 it is twice the trace of the (n - 1) covariance. Guidance lowers it.

    Args:
        x: Samples (n, d...), n >= 2.
        beta: The power, 0 < beta <= 2.
        method: How to compute distances, see `pairwise_distance_power`.
        chunk: Rows of the distance matrix to hold at a time; None holds all.

    Returns:
        A scalar in units of ‖x‖^β, float32 at least; the gradient is 0 through coincident pairs.

    Raises:
        ValueError: Fewer than 2 samples, a wrong shape or beta, NaN or infinite samples.

    Example:
        >>> import jax.numpy as jnp
        >>> float(mean_pairwise_distance(jnp.array([[0.0], [1.0], [2.0]]), beta=2.0))
        2.0
    """
    x = point_set("x", x, at_least=2)
    check_beta(beta)
    check_options(method, chunk)
    return _mean_pairwise(x, beta, method, chunk)


@partial(jax.jit, static_argnames=("num_classes", "method", "chunk"))
def _class_diversity(
    x: Array, labels: Array, beta: Any, num_classes: int, method: str, chunk: int | None
) -> Array:
    n = class_sizes(labels, num_classes, x.dtype)
    enough = n >= 2
    n = jnp.where(enough, n, 2)

    def values(x: Array) -> Array:
        sums = class_pair_sums(x, labels, x, labels, num_classes, beta, method, chunk)
        return sums / (n * (n - 1))

    return jnp.where(enough, at_unit_scale(values, beta, x), jnp.nan)


def class_diversity(
    x: Any,
    cond: Any,
    num_classes: int,
    beta: Any = 1.0,
    *,
    method: Method = "direct",
    chunk: int | None = None,
) -> Array:
    """`mean_pairwise_distance` within each class, un-reduced.

    Args:
        x: Samples (n, d...).
        cond: Integer labels (n,) in [0, num_classes).
        num_classes: How many classes.
        beta: The power, 0 < beta <= 2.
        method: How to compute distances, see `pairwise_distance_power`.
        chunk: Rows of the distance matrix to hold at a time; None holds all.

    Returns:
        (num_classes,), float32 at least; NaN for a class with fewer than 2 samples.

    Raises:
        ValueError: As `mean_pairwise_distance`, but for too few samples, which give NaN; and labels
            of a wrong shape, dtype or range.

    Example:
        >>> import jax.numpy as jnp
        >>> x, labels = jnp.array([[0.0], [1.0], [5.0], [9.0]]), jnp.array([0, 0, 1, 1])
        >>> class_diversity(x, labels, 2).tolist()
        [1.0, 4.0]
    """
    x = point_set("x", x)
    positive_int("num_classes", num_classes)
    cond = class_labels("cond", cond, x.shape[0], num_classes)
    check_beta(beta)
    check_options(method, chunk)
    return _class_diversity(x, cond, beta, num_classes, method, chunk)


def _entropy_terms(values: Array) -> tuple[Array, Array]:
    """Log eigenvalues (0 for those that are only rounding), and which are more than that."""
    floor = jnp.finfo(values.dtype).eps * values.shape[-1] * jnp.max(values)
    keep = values > floor
    return jnp.log(jnp.where(keep, values, 1)), keep


@jax.custom_jvp
def _entropy(matrix: Array) -> Array:
    """-tr K log K."""
    values = jnp.linalg.eigvalsh(matrix)
    return -jnp.sum(values * _entropy_terms(values)[0])


@_entropy.defjvp
def _entropy_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    # -tr (log K + 1) dK: through eigh, equal eigenvalues would be 0/0.
    values, vectors = jnp.linalg.eigh(primals[0])
    logs, keep = _entropy_terms(values)
    slope = matmul(vectors * jnp.where(keep, -(logs + 1), 0), transpose(vectors))
    return -jnp.sum(values * logs), jnp.sum(slope * tangents[0])


@jax.jit
def _vendi_of(matrix: Array) -> Array:
    matrix = (matrix + transpose(matrix)) / 2
    return unless_nan(jnp.exp(_entropy(matrix)), matrix)


def vendi_from_kernel(kernel: Any) -> Array:
    """The Vendi score of a similarity matrix: exp of the entropy of the eigenvalues of K/n.

    Args:
        kernel: Similarities (n, n), symmetric, positive semi-definite, with 1 on the diagonal.

    Returns:
        A scalar in [1, n], the effective number of distinct samples, float32 at least.

    Raises:
        ValueError: A matrix that isn't square, symmetric, or 1 on the diagonal, or has similarities
            beyond 1, as no positive semi-definite one has; NaN or infinite.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(vendi_from_kernel(jnp.eye(3))), 4)
        3.0

    References:
        Friedman and Dieng, The Vendi Score, 2023, Definition 3.1.
    """
    kernel = gathered(real_array("kernel", kernel))
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"kernel has shape {kernel.shape}; expected (n, n).")
    known = symmetric("kernel", kernel)
    if known is not None and np.any(np.abs(np.diagonal(known) - 1) >= 1e-3):
        raise ValueError("kernel isn't 1 on its diagonal; expected normalised similarities.")
    if known is not None and np.abs(known).max() > 1 + 1e-3:
        raise ValueError(
            f"kernel holds {np.abs(known).max():g}; expected similarities of at most 1."
        )
    return _vendi_of(kernel / kernel.shape[0])


@jax.jit
def _vendi(x: Array) -> Array:
    # A zero vector is similar to nothing, which would break K_ii = 1; give it an axis of its own.
    absent = norm(x, -1, keepdims=True) == 0
    x = jnp.concatenate([unit(x), absent.astype(x.dtype)], axis=-1)
    x = x / x.shape[0] ** 0.5
    # K/n and the d x d matrix have the same eigenvalues but for zeros, which add nothing.
    small = matmul(transpose(x), x) if x.shape[1] < x.shape[0] else matmul(x, transpose(x))
    return _vendi_of(small)


def vendi_score(x: Any) -> Array:
    """The Vendi score of features, with cosine similarity.

    Args:
        x: Features (n, d...), flattened to (n, d).

    Returns:
        A scalar in [1, min(n, d)], the effective number of distinct samples, float32 at least. It
        grows with n: compare only values of one n. Zero features count as one sample more.

    Raises:
        ValueError: A wrong shape, NaN or infinite features.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
        >>> round(float(vendi_score(x)), 4)
        2.0

    References:
        Friedman and Dieng, The Vendi Score, 2023, Definition 3.1.
    """
    return _vendi(point_set("x", x))

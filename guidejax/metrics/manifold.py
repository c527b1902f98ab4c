"""Precision, recall, density and coverage: k-nearest-neighbour balls as the data's manifold.

Counts, all of them: piecewise constant, with gradient 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from guidejax._arrays import magnitude
from guidejax.metrics._checks import point_set, point_sets, positive_int
from guidejax.metrics._pairs import (
    Method,
    at_unit_scale,
    check_options,
    over_rows,
    square_distances,
)

Array = jax.Array


class ManifoldScores(NamedTuple):
    """The four scores of `manifold_scores`, each a scalar or one value a sample."""

    precision: Array
    recall: Array
    density: Array
    coverage: Array


@partial(jax.jit, static_argnames=("k", "method", "chunk"))
def _radii(x: Array, k: int, method: str, chunk: int | None) -> Array:
    columns = jnp.arange(x.shape[0])

    def block(rows: tuple[Array, Array]) -> Array:
        points, index = rows
        square = square_distances(points, x, method)
        square = jnp.where(index[:, None] == columns, jnp.inf, square)
        radii = -jax.lax.top_k(-square, k)[0][:, -1]
        # A NaN has no rank: whichever neighbour it is, the k-th isn't known.
        return jnp.where(jnp.any(jnp.isnan(square), axis=-1), jnp.nan, radii)

    return jax.lax.stop_gradient(over_rows(block, (x, columns), chunk))


def _inside(square: Array, radii: Array) -> Array:
    """1 where a squared distance is within the squared radius, 0 where not, NaN where unknown."""
    unknown = jnp.isnan(square + radii)
    return jnp.where(unknown, jnp.nan, (square <= radii).astype(square.dtype))


@partial(jax.jit, static_argnames=("method", "chunk"))
def _balls_around(x: Array, y: Array, radii: Array, method: str, chunk: int | None) -> Array:
    """In how many balls about y each x lies: (n,)."""

    def block(points: Array) -> Array:
        return jnp.sum(_inside(square_distances(points, y, method), radii), axis=-1)

    return over_rows(block, jax.lax.stop_gradient(x), chunk)


@partial(jax.jit, static_argnames=("method", "chunk"))
def _occupied(y: Array, x: Array, radii: Array, method: str, chunk: int | None) -> Array:
    """1 where the ball about y holds an x, else 0: (m,)."""

    def block(rows: tuple[Array, Array]) -> Array:
        points, radius = rows
        return jnp.max(_inside(square_distances(points, x, method), radius[:, None]), axis=-1)

    return over_rows(block, (jax.lax.stop_gradient(y), radii), chunk)


def _sets(real: Any, fake: Any) -> tuple[Array, Array]:
    """Both (n, d), over their common magnitude: what lies in which ball doesn't change with it."""
    real, fake = point_sets(real, fake, names=("real", "fake"))
    size = magnitude(real, fake, axis=(-2, -1))
    return real / size, fake / size


def _check(k: int, samples: int, method: str, chunk: int | None) -> None:
    positive_int("k", k, at_most=samples - 1)
    check_options(method, chunk)


def knn_radii(x: Any, k: int = 5, *, method: Method = "direct", chunk: int | None = None) -> Array:
    """The distance of each sample to its k-th nearest other sample.

    Args:
        x: Features (n, d...), n > k.
        k: Which neighbour, from 1.
        method: How to compute distances, see `pairwise_distance_power`.
        chunk: Rows of the distance matrix to hold at a time; None holds all.

    Returns:
        (n,) in units of x, float32 at least.

    Raises:
        ValueError: A wrong shape, a k outside of [1, n - 1], NaN or infinite features.

    Example:
        >>> import jax.numpy as jnp
        >>> knn_radii(jnp.array([[0.0], [1.0], [3.0]]), k=1).tolist()
        [1.0, 1.0, 2.0]
    """
    x = point_set("x", x)
    _check(k, x.shape[0], method, chunk)
    return _distances(x, int(k), method, chunk)


@partial(jax.jit, static_argnames=("k", "method", "chunk"))
def _distances(x: Array, k: int, method: str, chunk: int | None) -> Array:
    return at_unit_scale(lambda x: jnp.sqrt(_radii(x, k, method, chunk)), 1, x)


def manifold_scores(
    real: Any,
    fake: Any,
    k: int = 5,
    *,
    per_sample: bool = False,
    method: Method = "direct",
    chunk: int | None = None,
) -> ManifoldScores:
    """Precision, recall, density and coverage of one k.

    With B_k(z) the closed ball about z that reaches its k-th nearest neighbour in z's own set:
    precision = mean over fakes of 1[in some B_k(real)]; recall = the same with real and fake
    exchanged; density = mean over fakes of #{B_k(real) it lies in} / k; coverage = mean over reals
    of 1[B_k(real) holds a fake].

    Args:
        real: Features of data (n, d...), n > k.
        fake: Features of samples (m, d...), m > k.
        k: Which neighbour sets a radius.
        per_sample: Return the terms of the means: (m,) for precision and density, (n,) for recall
            and coverage.
        method: How to compute distances, see `pairwise_distance_power`.
        chunk: Rows of the distance matrices to hold at a time; None holds all.

    Returns:
        `ManifoldScores`, float32 at least; in [0, 1] but for density, which may exceed 1. All
        depend on n, m and k: compare only values of one choice.

    Raises:
        ValueError: Shapes that don't pair, a k outside of [1, min(n, m) - 1], NaN or infinite
            features.

    Example:
        >>> import jax.numpy as jnp
        >>> real, fake = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.5], [9.0]])
        >>> scores = manifold_scores(real, fake, k=1)
        >>> [round(float(score), 2) for score in scores]
        [0.5, 1.0, 1.0, 0.67]

    References:
        Kynkaanniemi et al., Improved Precision and Recall Metric, 2019, Eq. (1, 2), whose k is 3;
        Naeem et al., Reliable Fidelity and Diversity Metrics, 2020, section 3, whose k is 5.
    """
    real, fake = _sets(real, fake)
    _check(k, min(real.shape[0], fake.shape[0]), method, chunk)
    k = int(k)
    real_radii, fake_radii = (_radii(a, k, method, chunk) for a in (real, fake))
    holding = _balls_around(fake, real, real_radii, method, chunk)
    scores = ManifoldScores(
        precision=jnp.minimum(holding, 1),
        recall=jnp.minimum(_balls_around(real, fake, fake_radii, method, chunk), 1),
        density=holding / k,
        coverage=_occupied(real, fake, real_radii, method, chunk),
    )
    return scores if per_sample else jax.tree.map(jnp.mean, scores)


def precision(real: Any, fake: Any, k: int = 3, **options: Any) -> Array:
    """The share of fakes within the reals' manifold; see `manifold_scores`.

    Args:
        real: Features of data (n, d...), n > k.
        fake: Features of samples (m, d...).
        k: Which neighbour sets a radius.
        **options: `method` and `chunk` of `manifold_scores`.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: As `manifold_scores`.

    Example:
        >>> import jax.numpy as jnp
        >>> real = jnp.arange(4.0)[:, None]
        >>> float(precision(real, real + 9.0, k=1))
        0.0

    References:
        Kynkaanniemi et al., Improved Precision and Recall Metric, 2019, Eq. (1, 2).
    """
    return _share_held(*_sets(real, fake), k, **options)


def _share_held(centers: Array, points: Array, k: int, **options: Any) -> Array:
    """The share of points in some ball about a center."""
    return jnp.mean(jnp.minimum(_counts(centers, points, k, **options), 1))


def recall(real: Any, fake: Any, k: int = 3, **options: Any) -> Array:
    """The share of reals within the fakes' manifold; see `manifold_scores`.

    Args:
        real: Features of data (n, d...).
        fake: Features of samples (m, d...), m > k.
        k: Which neighbour sets a radius.
        **options: `method` and `chunk` of `manifold_scores`.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: As `manifold_scores`.

    Example:
        >>> import jax.numpy as jnp
        >>> real = jnp.arange(4.0)[:, None]
        >>> float(recall(real, real[:2], k=1))  # 0 and 1 reach 2, and no further
        0.75

    References:
        Kynkaanniemi et al., Improved Precision and Recall Metric, 2019, Eq. (1, 2).
    """
    real, fake = _sets(real, fake)
    return _share_held(fake, real, k, **options)


def density(real: Any, fake: Any, k: int = 5, **options: Any) -> Array:
    """The mean number of reals' balls about a fake, over k; see `manifold_scores`.

    Args:
        real: Features of data (n, d...), n > k.
        fake: Features of samples (m, d...).
        k: Which neighbour sets a radius.
        **options: `method` and `chunk` of `manifold_scores`.

    Returns:
        A scalar >= 0; its expectation is 1 where real and fake are distributed alike.

    Raises:
        ValueError: As `manifold_scores`.

    Example:
        >>> import jax.numpy as jnp
        >>> float(density(jnp.array([[0.0], [1.0]]), jnp.array([[0.5]]), k=1))
        2.0

    References:
        Naeem et al., Reliable Fidelity and Diversity Metrics, 2020, section 3.
    """
    return jnp.mean(_counts(*_sets(real, fake), k, **options)) / k


def coverage(
    real: Any,
    fake: Any,
    k: int = 5,
    *,
    method: Method = "direct",
    chunk: int | None = None,
) -> Array:
    """The share of reals whose ball holds a fake; see `manifold_scores`.

    Args:
        real: Features of data (n, d...), n > k.
        fake: Features of samples (m, d...).
        k: Which neighbour sets a radius.
        method: How to compute distances, see `pairwise_distance_power`.
        chunk: Rows of the distance matrices to hold at a time; None holds all.

    Returns:
        A scalar in [0, 1]; its expectation is 1 - 1/2^k about, where real and fake are distributed
        alike and n = m.

    Raises:
        ValueError: As `manifold_scores`.

    Example:
        >>> import jax.numpy as jnp
        >>> float(coverage(jnp.array([[0.0], [1.0], [5.0], [6.0]]), jnp.array([[0.5]]), k=1))
        0.5

    References:
        Naeem et al., Reliable Fidelity and Diversity Metrics, 2020, section 3.
    """
    real, fake = _sets(real, fake)
    _check(k, real.shape[0], method, chunk)
    radii = _radii(real, int(k), method, chunk)
    return jnp.mean(_occupied(real, fake, radii, method, chunk))


def _counts(
    real: Array, fake: Array, k: int, *, method: Method = "direct", chunk: int | None = None
) -> Array:
    _check(k, real.shape[0], method, chunk)
    return _balls_around(fake, real, _radii(real, int(k), method, chunk), method, chunk)

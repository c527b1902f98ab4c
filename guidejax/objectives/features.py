"""Feature spaces of images, in which rollouts are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, flat
from guidejax.metrics._checks import check_finite
from guidejax.metrics.energy import pairwise_distance_power
from guidejax.objectives.base import as_pytree


def pixels(x0: Array) -> Array:
    """The identity feature: (batch, d).

    Example:
        >>> pixels(jnp.zeros((2, 4, 4, 1))).shape
        (2, 16)
    """
    return flat(x0)


@jax.jit
def evaluated(feature: Any, x0: Any) -> Array:
    """A feature, as a pytree, of all of x0, (n, d): one program, where it may be a network."""
    return flat(feature(x0))


def _measured(feature: Any, x0: Any) -> Array:
    """The same of several samples, checked."""
    values = evaluated(feature, x0)
    if values.shape[0] < 2:
        raise ValueError("expected at least 2 true samples to measure a feature on, got one.")
    check_finite("feature(x0)", values)
    return values


def unit_spread(feature: Callable[[Array], Array], x0: Array) -> Any:
    """`feature` divided by its mean pairwise distance over the samples `x0`.

    Makes feature spaces of different units weigh alike in `rollout`. The result is a pytree.

    Args:
        feature: `feature(x0) -> (batch, ...)`.
        x0: True samples to measure on, at least 2.

    Raises:
        ValueError: If the feature is the same for every sample, or not finite for one.

    Example:
        >>> scaled = unit_spread(pixels, jnp.array([[0.0], [4.0]]))
        >>> scaled(jnp.array([[2.0]])).tolist()
        [[0.5]]
    """
    feature = as_pytree(feature)
    values = _measured(feature, x0)
    count = values.shape[0]
    spread = jnp.sum(pairwise_distance_power(values, values, 1.0)) / (count * (count - 1))
    if not float(spread) > 0:
        raise ValueError(f"the feature is constant over {count} samples; expected some spread.")
    return jax.tree_util.Partial(_scaled, feature, spread)


def _scaled(feature: Any, spread: Array, x0: Array) -> Array:
    return flat(feature(x0)) / spread


def frechet_moments(feature: Callable[[Array], Array], x0: Array, rank: int = 16) -> Any:
    """First and second moments of `feature`, in which β = 2 makes `rollout` a Fréchet distance.

    With z the leading principal components of the feature over the true samples `x0`, of variances
    λ_i and total variance Λ, the result is (z_i, z_i z_j / √(2(λ_i + λ_j))) / √Λ. The energy
    distance at β = 2 is the squared distance of means, which here is
    (‖Δμ‖² + Σ_ij ΔC_ij² / (2(λ_i + λ_j))) / Λ: the Fréchet distance of two Gaussians to second
    order about the true one (the Bures metric of Dowson & Landau 1982), without the bias that the
    distance of sample moments has. Feature spaces of different units weigh alike.

    Args:
        feature: `feature(x0) -> (batch, ...)`.
        x0: True samples to measure on, more than `rank` of them.
        rank: Principal components kept.

    Raises:
        ValueError: If the feature varies in no `rank` directions over `x0`, or isn't finite for one
            of them.

    Example:
        >>> x0 = jnp.array([[-1.0], [1.0]])
        >>> jnp.abs(frechet_moments(pixels, x0, rank=1)(jnp.array([[2.0]]))).round(5).tolist()
        [[2.0, 2.0]]
    """
    feature = as_pytree(feature)
    values = _measured(feature, x0)
    mean = jnp.mean(values, axis=0)
    _, scales, directions = jnp.linalg.svd(values - mean, full_matrices=False)
    variances = scales**2 / values.shape[0]
    total = jnp.sum(variances)
    if rank < 1 or rank > variances.size or not float(variances[rank - 1]) > 1e-6 * float(total):
        raise ValueError(
            f"the feature varies in fewer than {rank} directions over {values.shape[0]} samples; "
            "expected rank ≥ 1 and at most that many."
        )
    row, column = np.triu_indices(rank)
    # Off the diagonal one product stands for two equal entries of C.
    double = jnp.where(row == column, 1.0, 2.0)
    weight = jnp.sqrt(double / (2 * (variances[row] + variances[column])))
    project = directions[:rank].T
    return jax.tree_util.Partial(_moments, feature, mean, project, weight, jnp.sqrt(total))


def _moments(feature, mean, project, weight, scale, x0):
    z = jnp.matmul(flat(feature(x0)) - mean, project, precision="highest")  # a TPU's isn't float32
    row, column = np.triu_indices(project.shape[1])
    return jnp.concatenate([z, weight * z[:, row] * z[:, column]], axis=-1) / scale

"""What objectives share: the batch, energy distances within groups, keys, rewards.

An objective is `objective(keys, guidance, denoise, batch, networks) -> (batch,) losses`, from one
key an example. Its gradient reaches the guidance's numbers alone: the networks are held fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, Tree, batch_size, flat, is_concrete, safe_divide, tree_map
from guidejax._denoisers import Denoiser
from guidejax.metrics._pairs import power
from guidejax.metrics.energy import pairwise_distance_power

# The networks of branches that aren't the main one's, by name.
Networks = Mapping[str, Denoiser]


class Evaluations(NamedTuple):
    """What the networks said of noised samples of a batch: all that they are needed for.

    Attributes:
        t: Times, (batch,).
        x: x_t ~ N(α_t x0, σ_t² I), (batch, particles, ...), or a pytree.
        predictions: x̂0(x_t, t) of each branch by name, "cond" among them, each the shape of `x`.
    """

    t: Array
    x: Tree
    predictions: dict[str, Tree]


class Batch(NamedTuple):
    """True samples with their condition, and the condition of every other branch; batch first.

    Attributes:
        x0: (batch, ...), or a pytree.
        cond: The conditioning c.
        conditions: By branch: "uncond" the null condition, and those of the rule's other branches.
        evaluations: What the networks said of noised samples, where that is known already.
    """

    x0: Tree
    cond: Any
    conditions: dict[str, Any]
    evaluations: Evaluations | None = None


def alike(one: Any, other: Any) -> Array:
    """Which rows of two conditions are the same: (n, m)."""
    found: Any = True
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = (jnp.asarray(c).reshape(c.shape[0], -1) for c in (a, b))
        found = found & jnp.all(a[:, None] == b[None], axis=-1)
    return found


def check_kind(where: str, given: Any, reference: Any) -> None:
    """Raise `ValueError` unless a batch has a sample's shapes as the reference has them."""
    kinds = [jax.tree.map(lambda a: np.shape(a)[1:], each) for each in (given, reference)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{where} has the shapes {kinds[0]} a sample, the reference {kinds[1]}; expected the "
            "same, so that they can be compared."
        )


def groups(x: Tree, size: int) -> Array:
    """Every `size` samples on end as one set of vectors: (groups, size, d)."""
    rows = flat(x)
    return rows.reshape(-1, size, rows.shape[-1])


def ungrouped(a: Array) -> Array:
    """(groups, size, ...) as (groups · size, ...)."""
    return a.reshape(-1, *a.shape[2:])


def cross(x: Array, y: Array, beta: float) -> Array:
    """mean_k ‖x_j − y_k‖^β for each j: (..., n, d), (..., m, d) -> (..., n)."""
    return jnp.mean(pairwise_distance_power(x, y, beta), axis=-1)


def own(x: Array, beta: float) -> Array:
    """mean_{k≠j} ‖x_j − x_k‖^β for each j, 0 for a set of one: (..., n, d) -> (..., n)."""
    return mean_of_others(pairwise_distance_power(x, x, beta))


def mean_of_others(pairs: Array, antithetic: bool = False) -> Array:
    """The mean of each row of (..., n, n) without its own column, and without its antithetic one.

    Of antithetic sets the second half mirrors the first.
    """
    count = pairs.shape[-1]
    keep = 1 - np.eye(count, dtype=np.float32)
    if antithetic:
        keep = keep - np.roll(np.eye(count, dtype=np.float32), count // 2, axis=1)
    # Masked, though 0: a compiled x may differ from itself by a rounding (it is computed again
    # where it is used), at which the slope of the power is anything.
    pairs = jnp.where(keep > 0, pairs, 0)
    return jnp.sum(pairs, axis=-1) / max(count - 1 - antithetic, 1)


def expected_power(square: Array, variance: Array, dim: int, beta: float) -> Array:
    """E‖μ + √v ε‖^β for ε ~ N(0, I) in `dim` dimensions, from ‖μ‖² and v; elementwise.

    With r² = ‖μ‖² + v·dim, the mean square, and φ(λ) = E exp(−λ‖·‖²), which is
    (1 + 2λv)^(−dim/2) exp(−λ‖μ‖²/(1 + 2λv)), it is
    r^β − (β/2)/Γ(1 − β/2) ∫ (φ(λ) − exp(−λr²)) λ^(−1−β/2) dλ:
    x^(β/2) as a mixture of 1 − exp(−λx), less that of r². The integrand is smooth in log λ and
    falls exponentially at both ends, so that the trapezoidal rule gives it to rounding.

    Args:
        square: ‖μ‖².
        variance: v ≥ 0; at 0 the result is ‖μ‖^β, with slope 0 where that is 0.
        dim: Dimensions.
        beta: β in (0, 2].
    """
    mean_square = square + dim * variance
    if beta == 2:
        return mean_square
    low, high = -17 / (2 - beta / 2), 3 + 34 / (dim + beta)
    nodes = np.linspace(low, high, math.ceil((high - low) / 0.55) + 1)
    share = safe_divide(variance, mean_square)[..., None]  # of one dimension, in r²
    rest = 1 - dim * share
    x = np.exp(nodes).astype(mean_square.dtype)  # λ r²
    y = 2 * x * share
    log_phi = -dim / 2 * jnp.log1p(y) - rest * x / (1 + y)
    # λr² + log φ, of terms that are positive: no digits are lost where both are near 1.
    above = dim / 2 * (y - jnp.log1p(y)) + rest * x * y / (1 + y)
    near = above < 1
    gap = jnp.where(
        near, np.exp(-x) * jnp.expm1(jnp.where(near, above, 0)), jnp.exp(log_phi) - np.exp(-x)
    )
    weights = np.exp(-nodes * beta / 2).astype(x.dtype) * (nodes[1] - nodes[0])
    below = beta / 2 / math.gamma(1 - beta / 2) * jnp.sum(gap * weights.astype(x.dtype), axis=-1)
    return power(mean_square, beta) * (1 - below)


def repeat(tree: Tree, m: int) -> Tree:
    """Each row m times on end; scalars as they are. `jnp.repeat` raises on explicit shardings."""

    def one(a):
        if jnp.ndim(a) == 0:
            return a
        a = jnp.asarray(a)[:, None]
        return jnp.broadcast_to(a, (a.shape[0], m, *a.shape[2:])).reshape(-1, *a.shape[2:])

    return tree_map(one, tree)


def particle_keys(keys: Array, n: int, m: int) -> Array:
    """The n-th stream of m keys an example: (batch · m,)."""
    return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, n), m))(keys).reshape(-1)


def rewards_of(reward: Callable[[Tree, Any], Array], x0: Tree, cond: Any) -> Array:
    """`reward(x0, cond)`, or an error where it isn't one number a sample."""
    values, size = reward(x0, cond), batch_size(x0)
    if jnp.shape(values) != (size,):
        raise ValueError(
            f"the reward returned shape {jnp.shape(values)}; expected ({size},), one a sample."
        )
    return values


def as_pytree(fn: Any) -> Any:
    """`fn` where it is a pytree (or None); a plain function as one that has no leaves."""
    return jax.tree_util.Partial(fn) if jax.tree_util.all_leaves([fn]) else fn


def check_numbers(beta: float, lam: float, reward: Any, reward_weight: float) -> None:
    """Raise `ValueError` where the numbers that every objective has are out of range."""
    if not 0 < beta <= 2 or not 0 <= lam <= 1:
        raise ValueError(f"expected 0 < beta ≤ 2 and 0 ≤ lam ≤ 1, got {beta} and {lam}.")
    if not reward_weight >= 0 or (reward_weight > 0) != (reward is not None):
        raise ValueError("give `reward` and a positive `reward_weight`, or neither.")


def check_start(t: Any, denoise: Denoiser) -> None:
    """`sample` checks so too, but not under the jit of training."""
    if is_concrete(t) and denoise.blind_at(t):
        raise ValueError(
            f"at t = {float(t)} α is 0, where {denoise.prediction!r} says nothing of x0; "
            "start lower: t_max=0.99, or times=uniform_times(steps, start=0.999)."
        )


def check_branches(names: tuple[str, ...], batch: Batch) -> None:
    """Raise `ValueError` where the batch has no condition for a branch of the guidance."""
    for name in names:
        if name not in batch.conditions:
            raise ValueError(
                f"the guidance needs the branch {name!r}, of which the batch has no condition (it "
                f"has {', '.join(batch.conditions) or 'none'}); give fit(conditions={{{name!r}: "
                "...})."
            )

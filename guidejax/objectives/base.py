"""What objectives share: the batch, energy distances within groups, keys, rewards.

An objective is `objective(keys, guidance, denoise, batch, networks) -> (batch,) losses`, from one
key an example. Its gradient reaches the guidance's numbers alone: the networks are held fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from guidejax._arrays import Array, Tree, batch_size, is_concrete, tree_map
from guidejax._denoisers import Denoiser
from guidejax.metrics.energy import pairwise_distance_power

# The networks of branches that aren't the main one's, by name.
Networks = Mapping[str, Denoiser]


class Batch(NamedTuple):
    """True samples with their condition, and the condition of every other branch; batch first.

    Attributes:
        x0: (batch, ...), or a pytree.
        cond: The conditioning c.
        conditions: By branch: "uncond" the null condition, and those of the rule's other branches.
    """

    x0: Tree
    cond: Any
    conditions: dict[str, Any]


def flat(x: Tree) -> Array:
    """Every sample as one vector: (batch, d)."""
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(x)]
    return jnp.concatenate(leaves, axis=-1)


def groups(x: Tree, size: int) -> Array:
    """Every `size` samples on end as one set of vectors: (groups, size, d)."""
    rows = flat(x)
    return rows.reshape(-1, size, rows.shape[-1])


def cross(x: Array, y: Array, beta: float) -> Array:
    """mean_k ‖x_j − y_k‖^β for each j: (..., n, d), (..., m, d) -> (..., n)."""
    return jnp.mean(pairwise_distance_power(x, y, beta), axis=-1)


def own(x: Array, beta: float) -> Array:
    """mean_{k≠j} ‖x_j − x_k‖^β for each j, 0 for a set of one: (..., n, d) -> (..., n)."""
    count = x.shape[-2]
    powers = pairwise_distance_power(x, x, beta)
    # Masked, though 0: a compiled x may differ from itself by a rounding (it is computed again
    # where it is used), at which the slope of the power is anything.
    powers = jnp.where(jnp.eye(count, dtype=bool), 0, powers)
    return jnp.sum(powers, axis=-1) / max(count - 1, 1)


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

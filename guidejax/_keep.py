"""What a run keeps beside its samples."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, Tree, flat, norm, tree_map
from guidejax._geometry import angle, effective_omega
from guidejax._guidance import Guidance
from guidejax.weights.base import Step

Keep = Literal["final", "stats", "all"] | Sequence[int]


class Stats(NamedTuple):
    """What guidance did at each step, (steps, batch) each, of x̂0 with all leaves of the state.

    The other branch is "uncond" where there is one, else the first; where a step didn't evaluate
    it, `angle` and `delta_norm` are NaN and `effective_omega` is 0.

    Attributes:
        omega: ω as asked for.
        effective_omega: The ω of plain CFG nearest to what the rule returned.
        angle: Between the conditional and the other prediction, in radians.
        cond_norm: ‖c‖.
        delta_norm: ‖c − u‖.
        guided_norm: ‖guided x̂0‖.
    """

    omega: Array
    effective_omega: Array
    angle: Array
    cond_norm: Array
    delta_norm: Array
    guided_norm: Array


class Trail(NamedTuple):
    """What `sample(keep=...)` kept; None where it wasn't asked for.

    Attributes:
        x: x_s after each kept step, (kept, batch, ...).
        x0: The guided x̂0 of those steps.
        stats: `Stats` of every step.
    """

    x: Tree
    x0: Tree
    stats: Stats | None


def check_keep(keep: Any, steps: int) -> Keep:
    """`keep` as a word, or a tuple of rising step indices."""
    if isinstance(keep, str):
        if keep not in ("final", "stats", "all"):
            raise ValueError(
                f"unknown keep={keep!r}; expected final, stats, all, or indices of steps."
            )
        return cast(Keep, keep)
    return kept_steps(keep, steps)


def kept_steps(keep: Iterable[Any], steps: int) -> tuple[int, ...]:
    """Rising step indices, negative ones counted from the end."""
    try:
        keep = tuple(operator.index(i) for i in keep)
    except TypeError:
        raise ValueError(f"keep={keep!r} must be indices of steps.") from None
    chosen = tuple(i + (steps if i < 0 else 0) for i in keep)
    rising = all(a < b for a, b in itertools.pairwise(chosen))
    if not chosen or not rising or chosen[0] < 0 or chosen[-1] >= steps:
        raise ValueError(
            f"keep={keep} must be rising indices of the {steps} steps, 0 the noisiest."
        )
    return chosen


def slots(keep: Keep, step: np.ndarray, counts: np.ndarray | bool = True) -> np.ndarray:
    """For each prediction of these steps its place in what is kept, if it `counts`.

    All others share a last place, thrown away.
    """
    chosen = () if isinstance(keep, str) else tuple(keep)
    place = np.searchsorted(chosen, step)
    return np.where(np.isin(step, chosen) & counts, place, len(chosen))


def blank(keep: Keep, x: Tree) -> Tree:
    """Room for (x, x̂0) of the chosen steps, which the scan carries."""
    if isinstance(keep, str):
        return ()
    room = tree_map(
        lambda leaf: jnp.broadcast_to(jnp.zeros_like(leaf), (len(keep) + 1, *leaf.shape)), x
    )
    return room, room


def put(room: Tree, value: Tree, slot: Array) -> Tree:
    """`value` at `slot`."""
    return tree_map(
        lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, slot, 0), room, value
    )


def measure(
    guided: Tree, predictions: Mapping[str, Tree], guide: Guidance, step: Step, row: Any
) -> Stats:
    """`Stats` of one evaluation, (batch,) each."""
    g, c = flat(guided), flat(predictions["cond"])
    size = norm(c)
    omega = asked(guide._values(predictions, step, row)[0], size)
    names = [name for name in predictions if name != "cond"]
    if not names:
        unknown = jnp.full_like(size, jnp.nan)
        return Stats(omega, jnp.zeros_like(size), unknown, size, unknown, norm(g))
    u = flat(predictions["uncond" if "uncond" in names else names[0]])
    return Stats(omega, effective_omega(g, c, u), angle(c, u), size, norm(c - u), norm(g))


def asked(omega: Any, like: Array) -> Array:
    """One ω a sample: the mean over the elements, or parts, of a state that has several."""
    values = [jnp.asarray(value) for value in jax.tree.leaves(omega)]
    means = [jnp.mean(v, axis=tuple(range(1, v.ndim))) for v in values]
    return jnp.broadcast_to(sum(means) / len(means), like.shape).astype(like.dtype)

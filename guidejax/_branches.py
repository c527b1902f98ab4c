"""How the branches of one evaluation are made: one after another, in one batch, or in parallel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from guidejax._arrays import Array, Tree, batch_size, same_structure, tree_map
from guidejax._denoisers import Denoiser

BranchMode = Literal["auto", "sequential", "batched", "vmapped", "sharded"]
AXIS = "branch"
# What "auto" takes for a small batch.
FEW = 4

# By name: the network, None for the sampler's own, and the condition.
Branches = Mapping[str, tuple[Denoiser | None, Any]]


def predict(
    mode: BranchMode, denoise: Denoiser, cond: Any, others: Branches, x: Tree, t: Array
) -> dict[str, Tree]:
    """x̂0 of "cond" and of every other branch, by name.

    Branches with a network of their own, or a condition of another shape, can't share a pass with
    "cond"; they follow one by one.
    """
    alike = {"cond": cond}
    if mode != "sequential":
        alike |= {name: c for name, (net, c) in others.items() if net is None and _alike(c, cond)}
    run = _TOGETHER[mode] if len(alike) > 1 else _one_by_one
    found = dict(zip(alike, run(denoise, list(alike.values()), x, t), strict=True))
    for name, (net, c) in others.items():
        if name not in found:
            found[name] = (denoise if net is None else net)(x, t, c)
    return {name: found[name] for name in ("cond", *others)}


def check_mode(mode: BranchMode, others: Branches, x: Tree) -> BranchMode:
    """The mode; "auto" stays where the batch is small, and is "sequential" where it isn't.

    Two passes over few samples take the time of reading the parameters twice. Over more, they take
    the time of their products, and a wider batch no longer fits what is near the processor
    (docs/scaling.md).

    Raises:
        ValueError: If the choice is unknown, or "sharded" without the axis it shards over.
    """
    if mode not in get_args(BranchMode):
        raise ValueError(
            f"unknown branches={mode!r}; expected one of {', '.join(get_args(BranchMode))}. "
            "Conditions of other branches go to conditions={name: ...}."
        )
    count = 1 + sum(network is None for network, _ in others.values())
    if mode == "sharded" and count > 1 and _axis_size() != count:
        raise ValueError(
            f"branches='sharded' needs a mesh (jax.set_mesh) with an axis {AXIS!r} of the size "
            f"{count}, one device a branch; got {_axis_size() or 'no such axis'}."
        )
    return "sequential" if mode == "auto" and _rows(x) > FEW else mode


def _rows(x: Tree) -> int:
    """Samples of the batch on a device, as far as it is known here."""
    mesh = jax.typeof(jax.tree.leaves(x)[0]).sharding.mesh
    return batch_size(x) // math.prod(mesh.shape[name] for name in _batch_axes(x))


def _axis_size() -> int | None:
    mesh = jax.sharding.get_abstract_mesh()
    return dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True)).get(AXIS)


def _alike(a: Any, b: Any) -> bool:
    facts = lambda tree: tree_map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    return same_structure(a, b) and facts(a) == facts(b)


def _one_by_one(denoise: Denoiser, conds: list[Any], x: Tree, t: Array) -> list[Tree]:
    return [denoise(x, t, cond) for cond in conds]


def _batched(denoise: Denoiser, conds: list[Any], x: Tree, t: Array) -> list[Tree]:
    # Side by side for each sample, not one half after the other: a batch that is split over
    # devices stays where it is.
    count = len(conds)

    def beside(*leaves):
        return jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:])

    def apart(leaf, index):
        return leaf.reshape(-1, count, *leaf.shape[1:])[:, index]

    wide = tree_map(lambda leaf: beside(*[leaf] * count), x)
    times = beside(*[t] * count) if jnp.ndim(t) else t
    out = denoise(wide, times, tree_map(beside, *conds))
    return [tree_map(lambda leaf, i=i: apart(leaf, i), out) for i in range(count)]


def _batched_if_it_can_be(denoise: Denoiser, conds: list[Any], x: Tree, t: Array) -> list[Tree]:
    """In one batch, but one by one where the network holds arrays of its own batch's size."""
    try:
        return _batched(denoise, conds, x, t)
    except Exception:  # whatever the network raises; if it isn't the batch, it does so again
        return _one_by_one(denoise, conds, x, t)


def _vmapped(denoise: Denoiser, conds: list[Any], x: Tree, t: Array) -> list[Tree]:
    stacked = tree_map(lambda *leaves: jnp.stack(leaves), *conds)
    out = jax.vmap(lambda cond: denoise(x, t, cond))(stacked)
    return [tree_map(lambda leaf, i=i: leaf[i], out) for i in range(len(conds))]


def _sharded(denoise: Denoiser, conds: list[Any], x: Tree, t: Array) -> list[Tree]:
    """Each device of the axis makes its own branch's pass; one all-reduce brings them together.

    A step that has some of the branches alone makes their passes one by one.
    """
    if len(conds) != _axis_size():
        return _one_by_one(denoise, conds, x, t)

    def own(denoise, x, t, conds):
        mine = jax.lax.axis_index(AXIS)
        cond = tree_map(lambda *leaves: jax.lax.select_n(mine, *leaves), *conds)
        x0 = denoise(x, t, cond)
        # A sum of what is 0 but in one's own place, not an all-gather: that one is partitioned
        # over no other axis of the mesh, and would gather the batch on every device as well.
        place = lambda leaf: [jnp.where(mine == i, leaf, 0) for i in range(len(conds))]  # noqa: E731
        return jax.lax.psum(tree_map(lambda leaf: jnp.stack(place(leaf), axis=-1), x0), AXIS)

    # On explicit axes a batch that is split stays split only if its axes are manual as well.
    axes = _batch_axes(x)
    rows = lambda tree: tree_map(lambda leaf: P(axes) if jnp.ndim(leaf) else P(), tree)  # noqa: E731
    out = jax.shard_map(
        own,
        in_specs=(P(), rows(x), rows(t), rows(conds)),
        out_specs=rows(x),
        axis_names={AXIS, *axes},
        check_vma=False,
    )(denoise, x, t, conds)
    return [tree_map(lambda leaf, i=i: leaf[..., i], out) for i in range(len(conds))]


def _batch_axes(x: Tree) -> tuple[str, ...]:
    """The explicit axes of the mesh that split the batch."""
    sharding = jax.typeof(jax.tree.leaves(x)[0]).sharding
    names = sharding.spec[0] if sharding.spec else None
    names = (names,) if isinstance(names, str) else names or ()
    kinds = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True))
    return tuple(name for name in names if kinds[name] == AxisType.Explicit)


_TOGETHER = {
    "auto": _batched_if_it_can_be,
    "sequential": _one_by_one,
    "batched": _batched,
    "vmapped": _vmapped,
    "sharded": _sharded,
}

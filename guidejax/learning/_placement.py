"""Where a run lies: the axes of its mesh, and which of them the batch is split over."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from guidejax._arrays import tree_map
from guidejax.learning.training import Program


def check_mesh(mesh: Mesh | None) -> None:
    """Raise `ValueError` where a process would learn by itself, of rows that are a share."""
    count = jax.process_count()
    reached = set() if mesh is None else {d.process_index for d in mesh.devices.flat}
    if count > 1 and len(reached) < count:
        raise ValueError(
            f"fit is called in {count} processes, and "
            + ("no mesh is given" if mesh is None else f"its mesh has devices of {len(reached)}")
            + "; expected one of all devices: mesh=jax.make_mesh((jax.device_count(),), ('data',))."
        )


def _on(leaf: Any, mesh: Mesh) -> bool:
    """Whether an array lies on the devices of the mesh already."""
    sharding = getattr(leaf, "sharding", None)
    return isinstance(sharding, NamedSharding) and sharding.device_set == set(mesh.devices.flat)


def _axes_of(tree: Any, mesh: Mesh) -> dict[str, AxisType]:
    """The axes that arrays on the devices of the mesh are sharded over, and their kinds."""
    found: dict[str, AxisType] = {}
    for leaf in jax.tree.leaves(tree):
        if _on(leaf, mesh):
            theirs = leaf.sharding.mesh
            kinds = dict(zip(theirs.axis_names, theirs.axis_types, strict=True))
            for name in leaf.sharding.spec:
                names = name if isinstance(name, tuple) else [name] if name else []
                found |= {n: kinds[n] for n in names}
    return found


def gathered_if_mapped(frozen: Any, mesh: Mesh | None, axes: tuple[str, ...]) -> bool:
    """Whether mapping over the batch's axes would copy a network's shards to every device.

    So it would where parameters are sharded over one of these axes, or over an explicit axis, which
    `shard_map` takes in whole.
    """
    if mesh is None:
        return False
    return any(
        name in axes or name not in mesh.shape or kind == AxisType.Explicit
        for name, kind in _axes_of(frozen, mesh).items()
    )


def batch_axes_of(mesh: Mesh | None, asked: Any, frozen: Any) -> tuple[str, ...]:
    """The axes to split a batch over: those asked for, or all that no network is sharded over."""
    if mesh is None:
        return ()
    if asked is None:
        used = _axes_of(frozen, mesh)
        free = tuple(name for name in mesh.axis_names if name not in used)
        if not free and mesh.size > 1:
            warnings.warn(
                f"a network is sharded over {', '.join(mesh.axis_names)}, which leaves no axis of "
                "the mesh to split a batch over: every device takes all of its rows. Name the axes "
                "to split it over, batch_axes=..., or () to say that this is meant.",
                stacklevel=3,
            )
        return free
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    unknown = [name for name in names if name not in mesh.axis_names]
    if unknown:
        raise ValueError(
            f"batch_axes names {', '.join(unknown)}; the mesh has {', '.join(mesh.axis_names)}."
        )
    return names


def parts_of_processes(mesh: Mesh, axes: tuple[str, ...]) -> dict[int, tuple[int, ...]]:
    """For each process the parts of a batch, split over `axes`, that its devices hold."""
    where = [mesh.axis_names.index(name) for name in axes]
    sizes = [mesh.shape[name] for name in axes]
    found: dict[int, set[int]] = {}
    for place, device in np.ndenumerate(mesh.devices):
        part = int(np.ravel_multi_index([place[i] for i in where], sizes)) if axes else 0
        found.setdefault(device.process_index, set()).add(part)
    return {process: tuple(sorted(parts)) for process, parts in found.items()}


def mesh_of(program: Program) -> contextlib.AbstractContextManager[Any]:
    """The mesh that a network's own shardings speak of, where nothing is mapped over."""
    if program.mesh is None or program.mapped:
        return contextlib.nullcontext()
    return jax.set_mesh(program.mesh)


def placed(tree: Any, mesh: Mesh | None) -> Any:
    """Copied to every device of the mesh; what lies on them already stays as it lies."""
    if mesh is None:
        return tree
    whole = NamedSharding(mesh, PartitionSpec())

    def one(leaf):
        if _on(leaf, mesh):
            return leaf
        # An array first: of a Python number, processes compare what it was before its rounding.
        leaf = jnp.asarray(leaf)
        here = jax.process_count() == 1 or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.device_put(leaf if here else np.asarray(leaf), whole)

    return tree_map(one, tree)

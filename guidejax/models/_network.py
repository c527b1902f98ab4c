"""A network of a configuration, as `gj.denoiser` wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from guidejax._arrays import Array


def automatic(fn: Callable[..., Array], params: Any, x: Array, *args: Any) -> Array:
    """`fn(params, x, *args)`, an array split as `x` is, where axes of a mesh may be explicit.

    Parameters that are split over explicit axes would have to say at each product how its result
    is split; within `fn` the compiler decides instead.
    """
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves((params, x, args))]
    mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
    if mesh is None:
        return fn(params, x, *args)
    own = jax.typeof(x).sharding
    out = own if own.mesh.axis_names else NamedSharding(mesh, PartitionSpec())
    whole = jax.tree.map(
        lambda leaf: (
            leaf
            if jax.typeof(leaf).sharding.mesh.axis_names
            else jax.sharding.reshard(leaf, NamedSharding(mesh, PartitionSpec()))
        ),
        (params, x, args),
    )
    return jax.sharding.auto_axes(
        lambda params, x, args: fn(params, x, *args), axes=mesh.axis_names, out_sharding=out
    )(*whole)

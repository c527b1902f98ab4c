"""What networks of published weights need of a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from guidejax._arrays import is_concrete


def automatic(fn: Callable[..., Any], params: Any, x: Any, *args: Any) -> Any:
    """`fn(params, x, *args)`, its arrays' batch split as that of `x`, on axes that may be explicit.

    Parameters split over explicit axes would have to say at each product how its result is split;
    within `fn` the compiler decides instead.
    """
    x = jnp.asarray(x)
    leaves = jax.tree.leaves((params, x, args))
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in leaves]
    mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
    if mesh is None:
        return fn(params, x, *args)
    own = jax.typeof(x).sharding
    split = own.spec[0] if own.mesh.axis_names and len(own.spec) else None
    # What is known goes to the devices themselves; a type has none, and moves what is traced.
    known = (leaf.sharding for leaf in leaves if is_concrete(leaf) and hasattr(leaf, "sharding"))
    on = next((s.mesh for s in known if isinstance(s, NamedSharding) and s.mesh.axis_names), None)
    whole = NamedSharding(on or mesh, PartitionSpec())
    move = jax.device_put if on else jax.sharding.reshard
    moved = jax.tree.map(
        lambda leaf: leaf if jax.typeof(leaf).sharding.mesh.axis_names else move(leaf, whole),
        (params, x, args),
    )
    run = jax.sharding.auto_axes(
        lambda params, x, args: fn(params, x, *args),
        axes=mesh.axis_names,
        out_sharding=NamedSharding(mesh, PartitionSpec(split)),
    )
    return run(*moved)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of a configuration, as `gj.denoiser` takes it: equal ones share what is compiled.

    Attributes:
        fn: `fn(params, x, t, cond, config)`.
        config: Its sizes.
    """

    fn: Callable[..., Any]
    config: Any

    def __call__(self, params: Any, x: Any, t: Any, cond: Any) -> Any:
        """`fn` of the configuration, on whatever mesh the arrays lie."""
        run = lambda params, x, t, cond: self.fn(params, x, t, cond, self.config)  # noqa: E731
        return automatic(run, params, x, t, cond)

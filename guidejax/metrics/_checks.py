"""Argument checks of the metrics: what came in, as 2-D arrays in the dtype reductions run in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from guidejax._arrays import check_finite, is_concrete, upcast

Array = jax.Array


def real_array(what: str, x: Any) -> Array:
    """`x` as a real, finite array of float32 at least, not an empty one."""
    x = jnp.asarray(x)
    if x.size == 0:
        raise ValueError(f"{what} has shape {x.shape} and is empty; expected at least one sample.")
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"{what} has dtype {x.dtype}; expected real numbers.")
    check_finite(what, x)
    return upcast(x)


def unless_nan(value: Array, *inputs: Array) -> Array:
    """`value`, NaN where an input holds a NaN: what a decomposition makes of one is anything."""
    broken = [jnp.any(jnp.isnan(a)) for a in inputs]
    return jnp.where(jnp.any(jnp.stack(broken)), jnp.nan, value)


def gathered(x: Array) -> Array:
    """`x` whole on each device of an explicit mesh: every pair needs both of its samples there.

    Automatic axes need no word from us, and arrays without explicit axes come back as they are.
    """
    sharding: Any = getattr(jax.typeof(x), "sharding", None)
    if not any(axis is not None for axis in getattr(sharding, "spec", ())):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))


def point_set(what: str, x: Any, at_least: int = 1) -> Array:
    """`x` of shape (n, d...) as (n, d), with n >= `at_least`."""
    x = real_array(what, x)
    if x.ndim < 2:
        raise ValueError(f"{what} has shape {x.shape}; expected (n, d...) with a batch axis first.")
    if x.shape[0] < at_least:
        raise ValueError(f"{what} has shape {x.shape}; expected at least {at_least} sample(s).")
    return gathered(x).reshape(x.shape[0], -1)


def point_sets(x: Any, y: Any, at_least: int = 1, names: tuple[str, str] = ("x", "y")) -> Any:
    """Two sets (n, d...), (m, d...) as (n, d), (m, d) of one dtype; the d... must agree."""
    if jnp.shape(x)[1:] != jnp.shape(y)[1:]:
        raise ValueError(
            f"{names[0]} has shape {jnp.shape(x)} and {names[1]} {jnp.shape(y)}; "
            "expected the same shape after the first axis."
        )
    x, y = point_set(names[0], x, at_least), point_set(names[1], y, at_least)
    dtype = jnp.promote_types(x.dtype, y.dtype)
    return x.astype(dtype), y.astype(dtype)


def class_labels(what: str, labels: Any, samples: int, num_classes: int) -> Array:
    """Integer labels of shape (samples,), in [0, num_classes) where they are concrete."""
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{what} has dtype {labels.dtype}; expected integer class labels.")
    if labels.shape != (samples,):
        raise ValueError(
            f"{what} has shape {labels.shape}; expected one label a sample, ({samples},)."
        )
    if is_concrete(labels) and labels.is_fully_addressable:
        values = np.asarray(labels)
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(
                f"{what} runs from {values.min()} to {values.max()}; "
                f"expected labels in [0, num_classes={num_classes})."
            )
    return gathered(labels)


def same_shapes(**arrays: Any) -> tuple[Array, ...]:
    """Arrays (batch, ...) of one shape, in one dtype of float32 at least."""
    shapes = {name: jnp.shape(a) for name, a in arrays.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) < 1 for shape in shapes.values()):
        raise ValueError(f"got shapes {shapes}; expected one shape (batch, ...) for all.")
    out = [real_array(name, a) for name, a in arrays.items()]
    dtype = jnp.result_type(*out)
    return tuple(a.astype(dtype) for a in out)


def positive_int(what: str, value: int, at_most: int | None = None) -> None:
    """Raise unless `value` is a Python int in [1, at_most]."""
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{what} is {value!r}; expected a positive integer.")
    if at_most is not None and value > at_most:
        raise ValueError(f"{what} is {value}; expected at most {at_most} for this many samples.")

"""Lengths and angles of predictions, per sample: what the sampler and the metrics both need.

Nothing here checks its arguments: arrays of one shape (batch, ...), in float32 at least.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from guidejax._arrays import Array, dot, expand, norm, safe_divide


@functools.partial(jax.jit, static_argnames="axis")
def magnitude(*arrays: Array, axis: int | tuple[int, ...]) -> Array:
    """The largest |a| of the arrays along `axis`, down to a power of two; a constant.

    What is divided by it is rounded nowhere, and has squares that neither overflow nor vanish. NaN
    and infinity don't count, and 1 stands in for 0.
    """
    sizes = [jnp.abs(jax.lax.stop_gradient(a)) for a in arrays]
    largest = [jnp.max(jnp.where(jnp.isfinite(a), a, 0), axis=axis) for a in sizes]
    top = functools.reduce(jnp.maximum, largest)
    # Infinity is all exponent and no mantissa: its bits keep the power of two of a number's.
    kind = f"int{8 * top.dtype.itemsize}"
    exponent = jax.lax.bitcast_convert_type(jnp.asarray(jnp.inf, top.dtype), kind)
    bits = jax.lax.bitcast_convert_type(top, kind) & exponent
    size = jax.lax.bitcast_convert_type(bits, top.dtype)
    return jnp.where(size > 0, size, 1)


def unit_scale(v: Array) -> Array:
    """Each sample of `v` over its own `magnitude`."""
    return v / expand(magnitude(v, axis=tuple(range(1, v.ndim))), v)


def length(v: Array) -> Array:
    """‖v‖ of each sample, (batch,), also where ‖v‖² is out of range; gradient 0 at v = 0."""
    size = magnitude(v, axis=tuple(range(1, v.ndim)))
    return size * norm(v / expand(size, v))


@jax.jit
def effective_omega(guided: Array, cond: Array, uncond: Array) -> Array:
    """⟨guided − cond, δ⟩ / ‖δ‖² with δ = cond − uncond; 0 where δ = 0."""
    delta = cond - uncond
    size = expand(magnitude(delta, axis=tuple(range(1, delta.ndim))), delta)
    shift, delta = (guided - cond) / size, delta / size
    return safe_divide(dot(shift, delta), dot(delta, delta))


@jax.jit
def angle(a: Array, b: Array) -> Array:
    """2 atan2(‖â − b̂‖, ‖â + b̂‖) of the unit vectors, in [0, π]; 0 where either is 0."""
    a, b = unit_scale(a), unit_scale(b)
    sizes = norm(a), norm(b)
    a, b = (safe_divide(v, expand(size, v)) for v, size in zip((a, b), sizes, strict=True))
    # The product is 0 where either vector is, unless the other holds a NaN.
    absent = sizes[0] * sizes[1] == 0
    return jnp.where(absent, 0, 2 * jnp.arctan2(norm(a - b), norm(a + b)))

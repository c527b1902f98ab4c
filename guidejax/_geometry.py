"""Angles and weights read off predictions, per sample: what sampler, weights and metrics share.

Nothing here checks its arguments: arrays of one shape (batch, ...), in float32 at least.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from guidejax._arrays import Array, dot, magnitude, norm, over, safe_divide, unit


@jax.jit
def effective_omega(guided: Array, cond: Array, uncond: Array) -> Array:
    """⟨guided − cond, δ⟩ / ‖δ‖² with δ = cond − uncond; 0 where δ = 0."""
    shift, delta = guided - cond, cond - uncond
    sizes = magnitude(shift), magnitude(delta)
    shift, delta = over(shift, sizes[0]), over(delta, sizes[1])
    unit_omega = safe_divide(dot(shift, delta), dot(delta, delta))
    one, other = (size.reshape(unit_omega.shape) for size in sizes)
    return unit_omega * one / other


@jax.jit
def angle(a: Array, b: Array) -> Array:
    """2 atan2(‖â − b̂‖, ‖â + b̂‖) of the unit vectors, in [0, π]; 0 where either is 0."""
    # A product of lengths would be out of range where they are: one is 0 where either vector is.
    absent = (norm(a) == 0) | (norm(b) == 0)
    a, b = unit(a), unit(b)
    found = 2 * jnp.arctan2(norm(a - b), norm(a + b))
    return jnp.where(absent & ~jnp.isnan(found), 0, found)

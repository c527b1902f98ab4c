"""Rules that turn the conditional prediction instead of extrapolating it."""

from __future__ import annotations

import functools

import jax.numpy as jnp

from guidejax._arrays import (
    Array,
    Axes,
    dot,
    expand,
    magnitude,
    norm,
    over,
    restore,
    safe_divide,
    unit,
    upcast,
)
from guidejax.rules.base import rule


def _angle(along: Array, across: Array, undefined: Array) -> Array:
    """Angle of (along, across); 0 where `undefined`."""
    # atan2 keeps the small angles that arccos rounds away and needs no clamp; where both of its
    # arguments vanish its gradient is NaN.
    return jnp.where(undefined, 0, jnp.arctan2(across, jnp.where(undefined, 1, along)))


@rule(space="x0", paper="Jin et al., arXiv 2506.11039, Algorithm 1", static=("axis", "norm_axis"))
def adg(
    cond: Array,
    uncond: Array,
    omega: Array,
    *,
    max_angle: Array | float | None = jnp.pi / 3,
    axis: Axes = None,
    norm_axis: Axes = None,
) -> Array:
    """Angle domain guidance: cos a · c + (sin a / sin θ) e, with a = min(ω θ, max_angle).

    θ = ∠(c, u) over the whole sample and e = c − P_u c, the part of c orthogonal to u
    (Jin et al. 2506.11039, Algorithm 1). The norm is bounded: ‖guided‖² = ‖c‖² (1 + sin 2a sin θ),
    so ‖guided‖ ≤ √2 ‖c‖ (Proposition 4.1). For small θ it is c + ω P_u⊥(c − u). It is no rotation
    by a, which `slerp` is.

    The official code caps at 3.14/3 and turns by 10⁻³ θ more; this is the paper's formula. Where c
    or u is zero there is no angle, and the result is c; where they are parallel there is no plane
    to turn in, and it is cos a · c.

    Args:
        cond: Conditional clean prediction x̂0, (batch, ...).
        uncond: Unconditional clean prediction, the same shape.
        omega: ω, scalar or (batch,); 0 returns `cond`. A negative ω doesn't turn back: it acts as
            0, as in the official code.
        max_angle: Largest turn in radians, scalar or (batch,); None is no limit, the paper's
            ablation without the clip.
        axis: Axes of one vector: None is the whole sample, as in the paper; -1 gives each pixel or
            token its own angle (channels last), (1, 2) each channel.
        norm_axis: Axes over which the result gets the norm of `cond` back; None leaves it. The
            authors' ablation has the channel axis, -1 here.

    Returns:
        The guided clean prediction, in the dtype of `cond`.

    Example:
        >>> c, u = jnp.array([[1.0, 0.0]]), jnp.array([[0.5, 3**0.5 / 2]])
        >>> round(float(jnp.linalg.norm(adg(c, u, 0.78))), 6)
        1.3654
    """
    c, u = upcast(cond), upcast(uncond)
    # In units of c: arctan2 squares its arguments in its gradient.
    size = magnitude(c, axis=axis)
    small, u_unit = over(c, size), unit(u, axis)
    norm_c = norm(small, axis, keepdims=True)
    along = dot(small, u_unit, axis, keepdims=True)
    e = small - along * u_unit
    across = norm(e, axis, keepdims=True)
    theta = _angle(along, across, (norm_c == 0) | (norm(u, axis, keepdims=True) == 0))
    omega = expand(omega, c)
    # At ω = 0 the slope is that of ω > 0, where `maximum` would halve it.
    omega = jnp.where(omega < 0, 0, omega)
    turn = omega * theta
    if max_angle is not None:
        turn = jnp.minimum(turn, expand(max_angle, c))
    # sin θ = ‖e‖/‖c‖. Below rounding e has no direction left, and sin a/sin θ takes its limit ω.
    parallel = across <= 4 * jnp.finfo(c.dtype).eps * norm_c
    ratio = jnp.where(parallel, omega, safe_divide(jnp.sin(turn) * norm_c, across))
    guided = jnp.cos(turn) * c + ratio * (size * e)
    if norm_axis is not None:
        length = functools.partial(norm, axis=norm_axis, keepdims=True)
        guided = guided * safe_divide(length(c), length(guided))
    return restore(guided, cond)


@rule(space="x0", paper="Shoemake, SIGGRAPH 1985, slerp beyond its end", static=("axis",))
def slerp(
    cond: Array,
    uncond: Array,
    omega: Array,
    *,
    max_angle: Array | float | None = jnp.pi / 3,
    axis: Axes = None,
) -> Array:
    """Spherical extrapolation: c turned by a = min(ω θ, max_angle) away from u, its norm kept.

    ‖c‖ [sin(θ + a) ĉ − sin a · û] / sin θ = cos a · c + sin a ‖c‖ f/‖f‖ with f = P_c û − û, which
    is Shoemake's slerp(û, ĉ, w) at w = 1 + ω. The result makes the angle θ + a with u exactly, and
    has the norm of c; `adg` shares the angle a but neither property. Not from a guidance paper:
    the reference that tells the two apart.

    Where c or u is zero, or they are parallel, there is nothing to turn from or no plane to turn
    in: the result is c, or cos a · c.

    Args:
        cond: Conditional clean prediction x̂0, (batch, ...).
        uncond: Unconditional clean prediction, the same shape.
        omega: ω, scalar or (batch,); 0 returns `cond`, −1 turns it all the way to the direction of
            `uncond` where `max_angle` lets it.
        max_angle: Largest turn in radians either way, scalar or (batch,); None is no limit.
        axis: Axes of one vector, as in `adg`.

    Returns:
        The guided clean prediction, in the dtype of `cond`.

    Example:
        >>> c, u = jnp.array([[2.0, 0.0]]), jnp.array([[3**0.5, -1.0]])
        >>> [round(v, 5) for v in slerp(c, u, 1.0)[0].tolist()]
        [1.73205, 1.0]
    """
    c, u = upcast(cond), upcast(uncond)
    length = functools.partial(norm, axis=axis, keepdims=True)
    c_unit, u_unit = unit(c, axis), unit(u, axis)
    along = dot(u_unit, c_unit, axis, keepdims=True)
    f = along * c_unit - u_unit
    across = length(f)
    undefined = (length(c) == 0) | (length(u) == 0)
    turn = expand(omega, c) * _angle(along, across, undefined)
    if max_angle is not None:
        limit = expand(max_angle, c)
        turn = jnp.clip(turn, -limit, limit)
    # sin θ = ‖f‖; below rounding sin a/sin θ takes its limit ω.
    parallel = across <= 4 * jnp.finfo(c.dtype).eps
    ratio = jnp.where(parallel, expand(omega, c), safe_divide(jnp.sin(turn), across))
    return restore(jnp.cos(turn) * c + ratio * length(c) * f, cond)

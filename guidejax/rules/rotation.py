"""Rules that turn the conditional prediction instead of extrapolating it."""

from __future__ import annotations

import jax.numpy as jnp

from guidejax._arrays import Array, dot, expand, norm, safe_divide, square_norm, upcast
from guidejax.rules.base import rule


@rule(space="x0", paper="Jin et al., arXiv 2506.11039, Algorithm 1")
def adg(cond: Array, uncond: Array, omega: Array, *, max_angle: Array = jnp.pi / 3) -> Array:
    """Angle domain guidance: cos a · c + (sin a / sin θ) e, with a = min(ω θ, max_angle).

    θ = ∠(c, u) over the whole sample and e = c − P_u c, the part of c orthogonal to u
    (Jin et al. 2506.11039, Algorithm 1). The norm is bounded: ‖guided‖² = ‖c‖² (1 + sin 2a sin θ),
    so ‖guided‖ ≤ √2 ‖c‖ (Proposition 4.1). For small θ it is c + ω P_u⊥(c − u).

    The official code caps at 3.14/3 and turns by 10⁻³ θ more; this is the paper's formula. Where c
    or u is zero there is no angle, and the result is c; where they are parallel there is no plane
    to turn in, and it is cos a · c.

    Args:
        cond: Conditional clean prediction x̂0, (batch, ...).
        uncond: Unconditional clean prediction, the same shape.
        omega: ω, scalar or (batch,); 0 returns `cond`. A negative ω doesn't turn back: it acts as
            0, as in the official code.
        max_angle: Largest turn in radians.

    Returns:
        The guided clean prediction, in the dtype of `cond`.

    Example:
        >>> c, u = jnp.array([[1.0, 0.0]]), jnp.array([[0.5, 3**0.5 / 2]])
        >>> round(float(jnp.linalg.norm(adg(c, u, 0.78))), 6)
        1.3654
    """
    c, u = upcast(cond), upcast(uncond)
    norm_c = norm(c)
    u_unit = u * expand(safe_divide(1.0, norm(u)), u)
    along = dot(c, u_unit)
    e = c - expand(along, c) * u_unit
    across = norm(e)
    # atan2 keeps the small angles that arccos rounds away and needs no clamp; where both of its
    # arguments vanish its gradient is NaN.
    pointless = jnp.logical_or(square_norm(c) == 0, square_norm(u) == 0)
    theta = jnp.where(pointless, 0, jnp.arctan2(across, jnp.where(pointless, 1, along)))
    omega = jnp.maximum(omega, 0)
    turn = jnp.minimum(omega * theta, max_angle)
    # sin θ = ‖e‖/‖c‖. Below rounding e has no direction left, and sin a/sin θ takes its limit ω.
    parallel = across <= 4 * jnp.finfo(c.dtype).eps * norm_c
    ratio = jnp.where(parallel, omega, safe_divide(jnp.sin(turn) * norm_c, across))
    guided = expand(jnp.cos(turn), c) * c + expand(ratio, c) * e
    return guided.astype(cond.dtype)

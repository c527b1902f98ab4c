"""What a rule did, read off its output: the omega it amounts to, and how far it left the line."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from guidejax import _geometry
from guidejax._arrays import dot, expand, magnitude, norm, over, safe_divide
from guidejax.metrics._checks import same_shapes

Array = jax.Array


@jax.jit
def _off_line(guided: Array, cond: Array, uncond: Array) -> Array:
    shift, delta = (over(v, magnitude(v)) for v in (guided - cond, cond - uncond))
    omega = safe_divide(dot(shift, delta), dot(delta, delta))
    residual = norm(shift - expand(omega, delta) * delta)
    return jnp.minimum(safe_divide(residual, norm(shift)), 1)


def effective_omega(guided: Any, cond: Any, uncond: Any) -> Array:
    """The omega of the plain rule closest to a guided prediction.

    argmin_ω ‖guided - (cond + ω δ)‖² = ⟨guided - cond, δ⟩ / ‖δ‖², δ = cond - uncond. An excess over
    cond, as everywhere in guidejax: other people's guidance scale is this plus 1.

    Args:
        guided: What a rule returned, (batch, ...).
        cond: The conditional prediction, of the same shape and space.
        uncond: The unconditional one.

    Returns:
        (batch,) without units, float32 at least; 0, with gradient 0, where cond = uncond.

    Raises:
        ValueError: Shapes that differ, no batch axis, NaN or infinite values.

    Example:
        >>> import jax.numpy as jnp
        >>> cond, uncond = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.0]])
        >>> effective_omega(cond + 3.0 * (cond - uncond), cond, uncond).tolist()
        [3.0]
    """
    return _geometry.effective_omega(*same_shapes(guided=guided, cond=cond, uncond=uncond))


def off_line_fraction(guided: Any, cond: Any, uncond: Any) -> Array:
    """How much of a rule's move `effective_omega` doesn't explain.

    ‖guided - cond - ω_eff δ‖ / ‖guided - cond‖: the sine of the angle between the move and δ. 0 for
    a rule that moves along δ only (plain guidance, schedules, intervals), 1 for a move across it.

    Args:
        guided: What a rule returned, (batch, ...).
        cond: The conditional prediction, of the same shape and space.
        uncond: The unconditional one.

    Returns:
        (batch,) in [0, 1], float32 at least; 0 where guided = cond, 1 where only δ is 0.

    Raises:
        ValueError: Shapes that differ, no batch axis, NaN or infinite values.

    Example:
        >>> import jax.numpy as jnp
        >>> cond, uncond = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
        >>> round(float(off_line_fraction(cond + 1.0, cond, uncond)[0]), 4)
        0.7071
    """
    return _off_line(*same_shapes(guided=guided, cond=cond, uncond=uncond))


def branch_angle(cond: Any, uncond: Any) -> Array:
    """The angle between the conditional and the unconditional prediction.

    2 atan2(‖a - b‖, ‖a + b‖) of the unit vectors a, b: exact for small angles, where the arc
    cosine of ⟨a, b⟩ has lost its digits and its gradient is infinite.

    Args:
        cond: The conditional prediction, (batch, ...).
        uncond: The unconditional one, of the same shape.

    Returns:
        (batch,) in radians, [0, π], float32 at least; 0, with gradient 0, where either is 0.

    Raises:
        ValueError: Shapes that differ, no batch axis, NaN or infinite values.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])
        >>> round(float(branch_angle(a, b)[0]), 4)
        1.5708

    References:
        Kahan, How Futile are Mindless Assessments of Roundoff, 2006, section 12.
    """
    return _geometry.angle(*same_shapes(cond=cond, uncond=uncond))

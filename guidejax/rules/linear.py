"""Rules linear in the predictions: the same in every parameterisation."""

from __future__ import annotations

from guidejax._arrays import Array, accumulator, expand
from guidejax.rules.base import rule


@rule(space="any", paper="Ho & Salimans, arXiv 2207.12598, Eq. (6)")
def cfg(cond: Array, uncond: Array, omega: Array) -> Array:
    """Classifier-free guidance: c + ω (c − u).

    Ho & Salimans 2207.12598, Eq. (6); Galashov et al. 2510.00815, Eq. (7). The common scale
    w = ω + 1 has u + w (c − u): `from_scale(w)` gives ω.

    Args:
        cond: Conditional prediction c, (batch, ...), in any space.
        uncond: Unconditional prediction u, the same shape and space.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> import jax.numpy as jnp
        >>> cfg(jnp.array([[2.0]]), jnp.array([[1.0]]), 3.0).tolist()
        [[5.0]]
    """
    wide = accumulator(cond.dtype)
    c, u = cond.astype(wide), uncond.astype(wide)
    return (c + expand(omega, c).astype(wide) * (c - u)).astype(cond.dtype)

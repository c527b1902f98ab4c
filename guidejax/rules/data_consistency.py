"""Refinements that hold the prediction to what is known of the data."""

from __future__ import annotations

from guidejax._arrays import Array, check_mask, expand, restore, upcast
from guidejax.rules.base import rule


def _check(known: Array, mask: Array | float) -> None:
    check_mask("inpaint's mask", mask)


@rule(
    space="x0",
    paper="Wang et al. (DDNM), arXiv 2212.00490, Eq. (13), A a mask; Song et al., 2011.13456, §I.2",
    exact_at_zero=False,
    check=_check,
)
def inpaint(guided: Array, *, known: Array, mask: Array | float) -> Array:
    """Inpainting: m ⊙ k + (1 − m) ⊙ g, the known part of the picture in place of the predicted.

    The projection of x̂0 onto the pictures that agree with k where m = 1, at every step: range-null
    space guidance (Wang et al. 2212.00490, Eq. (13)) with A a mask, whose pseudoinverse is itself.
    The samples have the known part exactly. Song et al. 2011.13456, §I.2, replace x_t instead, by
    k at the same noise. After any rule:

        guidance(chain(cfg, inpaint.bind(known=picture, mask=mask)), omega=2.0)

    Args:
        guided: The clean prediction so far, (batch, ...).
        known: k, the clean picture, (batch, ...) or (1, ...), as many axes as `guided`; what it
            holds where m = 0 doesn't matter, if it is finite.
        mask: m, 1 where the picture is known and 0 where not; shapes as for `known`.

    Returns:
        The prediction, in the dtype of `guided`.

    Raises:
        ValueError: If `known` or `mask` has another number of axes, or m isn't from 0 to 1.

    Example:
        >>> import jax.numpy as jnp
        >>> g, known, mask = jnp.ones((1, 3)), jnp.array([[5.0, 6.0, 0.0]]), jnp.array([[1, 1, 0]])
        >>> inpaint(g, known=known, mask=mask).tolist()
        [[5.0, 6.0, 1.0]]
    """
    g = upcast(guided)
    # Of a picture's own dtype, which may be unsigned, 1 − m would wrap around.
    mask = expand(mask, g).astype(g.dtype)
    return restore(mask * expand(known, g) + (1 - mask) * g, guided)

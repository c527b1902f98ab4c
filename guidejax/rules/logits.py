"""Rules on log-probabilities, for discrete diffusion and language models."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from guidejax._arrays import Array, expand, restore, upcast
from guidejax.rules.base import rule


def _log_softmax(logits: Array, allowed: Array, axis: int) -> Array:
    """log softmax over what is `allowed`, and 0 elsewhere, without a NaN if that is nothing."""
    finite = jnp.where(allowed, logits, 0)
    peak = jax.lax.stop_gradient(jnp.max(jnp.where(allowed, finite, -jnp.inf), axis, keepdims=True))
    peak = jnp.where(jnp.isneginf(peak), 0, peak)
    weight = jnp.sum(jnp.where(allowed, jnp.exp(finite - peak), 0), axis, keepdims=True)
    log_total = jnp.log(jnp.where(weight == 0, 1, weight))
    return jnp.where(allowed, finite - peak - log_total, 0)


@rule(
    space="log_prob",
    paper="Sanchez et al., arXiv 2306.17806; Schiff et al., arXiv 2412.10193",
    exact_at_zero=False,
    static=("axis",),
)
def logits_cfg(cond: Array, uncond: Array, omega: Array, *, axis: int = -1) -> Array:
    """CFG on log-probabilities: log p ∝ log p_c + ω (log p_c − log p_u), normalised.

    Sanchez et al. 2306.17806 for language models, Schiff et al. 2412.10193 for discrete diffusion;
    their γ is w = 1 + ω. ω = 0 gives the log-probabilities of `cond`.

    A token masked in `cond` (−∞) stays masked. One masked in `uncond` alone has no ratio and keeps
    its log p_c. A row masked throughout stays so.

    Args:
        cond: Conditional logits or log-probabilities, (batch, ..., vocabulary).
        uncond: Unconditional ones, the same shape.
        omega: ω, scalar or (batch,).
        axis: The axis of the vocabulary.

    Returns:
        Guided log-probabilities, which sum to 1 over `axis`, in the dtype of `cond`.

    Example:
        >>> c, u = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.75]]))
        >>> [round(p, 5) for p in jnp.exp(logits_cfg(c, u, 1.0))[0].tolist()]
        [0.75, 0.25]
    """
    allowed, known = jnp.logical_not(jnp.isneginf(cond)), jnp.logical_not(jnp.isneginf(uncond))
    c = _log_softmax(upcast(cond), allowed, axis)
    u = _log_softmax(upcast(uncond), known, axis)
    # The choice stands between product and sum, so that they are rounded alike for every use: a
    # large logit would not be the peak that it is compared with.
    guided = c + jnp.where(known, expand(omega, c) * (c - u), 0)
    guided = _log_softmax(guided, allowed, axis)
    return restore(jnp.where(allowed, guided, -jnp.inf), cond)

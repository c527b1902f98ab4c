"""Rules that set ω of each sample by the size of the difference c − u."""

from __future__ import annotations

import functools

import jax.numpy as jnp

from guidejax._arrays import (
    Array,
    dot,
    expand,
    magnitude,
    norm,
    over,
    restore,
    safe_divide,
    safe_sqrt,
    unit,
    upcast,
)
from guidejax.rules.base import rule


def _power(size: Array, exponent: Array | float) -> Array:
    """size^exponent; where size = 0, 0 (1 if the exponent is 0), with gradient 0."""
    zero = size == 0
    exponent = jnp.asarray(exponent)
    at_zero = jnp.where(exponent == 0, 1, jnp.where(jnp.isnan(exponent), exponent, 0))
    return jnp.where(zero, at_zero, jnp.where(zero, 1, size) ** exponent)


@rule(space="velocity", paper="Zhu et al. (MAMBO-G), arXiv 2508.03442")
def mambo_g(cond: Array, uncond: Array, omega: Array, *, damping: Array | float = 8.0) -> Array:
    """MAMBO-G: less guidance where the difference is large beside the prediction.

    c + ω exp(−a r)(c − u), r = ‖c − u‖/‖u‖ (Zhu et al. 2508.03442), so that the scale falls from
    ω + 1 towards 1. Where u is zero r is taken as infinite.

    Args:
        cond: Conditional prediction c, (batch, ...), as velocity.
        uncond: Unconditional prediction u, the same shape and space.
        omega: Largest ω, scalar or (batch,); 0 returns `cond` exactly. The paper's w_max = ω + 1.
        damping: a ≥ 0, scalar or (batch,); 0 is `cfg`.

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> c, u = jnp.array([[1.5]]), jnp.array([[1.0]])
        >>> round(float(mambo_g(c, u, 2.0, damping=2 * jnp.log(2.0))[0, 0]), 4)
        2.0
    """
    c, u = upcast(cond), upcast(uncond)
    # 10⁶ is infinite to the exponential and finite to its gradient.
    ratio = safe_divide(norm(c - u, keepdims=True), norm(u, keepdims=True), otherwise=1e6)
    share = jnp.exp(-expand(damping, c) * ratio)
    return restore(c + expand(omega, c) * share * (c - u), cond)


@rule(space="score", paper="Pavasovic et al., arXiv 2502.07849")
def power_law(cond: Array, uncond: Array, omega: Array, *, power: Array | float = 0.9) -> Array:
    """Power-law guidance: c + ω ‖c − u‖^a (c − u) (Pavasovic et al. 2502.07849).

    Guidance fades out as the two scores come to agree. ‖c − u‖ grows with the number of elements
    and with the space, so that ω is tuned anew for each model. Near σ = 0 scores may be so large
    that ‖c − u‖^(a + 1) is no number of float32: it is held at 10³⁰ (10²⁴⁶ in float64).

    Args:
        cond: Conditional score c, (batch, ...).
        uncond: Unconditional score u, the same shape.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.
        power: a ≥ 0, scalar or (batch,); 0 is `cfg`.

    Returns:
        The guided score, in the dtype of `cond`.

    Example:
        >>> power_law(jnp.array([[3.0, 4.0]]), jnp.zeros((1, 2)), 2.0, power=1.0).tolist()
        [[33.0, 44.0]]
    """
    c = upcast(cond)
    delta = c - upcast(uncond)
    power = expand(power, c)
    size, most = norm(delta, keepdims=True), float(jnp.finfo(c.dtype).max) ** 0.8
    over = (1 + power) * jnp.log(jnp.where(size > 0, size, 1)) > jnp.log(most)
    weight = jnp.where(
        over,
        safe_divide(most, jnp.where(over, size, 1)),
        _power(jnp.where(over, 1, size), power),
    )
    return restore(c + expand(omega, c) * (weight * delta), cond)


@rule(space="eps", paper="Malarz et al., arXiv 2502.10574", exact_at_zero=False)
def beta_cfg(cond: Array, uncond: Array, omega: Array, *, gamma: Array | float = 1.0) -> Array:
    """β-CFG's normalised difference: u + (ω + 1)(c − u)/‖c − u‖^γ (Malarz et al. 2502.10574).

    The paper's other half, a Beta density over the run, is a schedule of ω + 1: its 0 at the ends
    is u there, ω = −1. The step is (ω + 1) ‖c − u‖^(1 − γ) long, at γ = 1 ω + 1 whatever c − u is,
    and ω = 0 is not the conditional model.

    Args:
        cond: Conditional prediction c, (batch, ...), as ε.
        uncond: Unconditional prediction u, the same shape and space.
        omega: ω, scalar or (batch,).
        gamma: γ, scalar or (batch,); 0 is `cfg`.

    Returns:
        The guided prediction, in the dtype of `cond`; u where c = u.

    Example:
        >>> beta_cfg(jnp.array([[3.0, 4.0]]), jnp.zeros((1, 2)), 9.0).tolist()
        [[6.0, 8.0]]
    """
    c, u = upcast(cond), upcast(uncond)
    delta = c - u
    length = _power(norm(delta, keepdims=True), 1 - expand(gamma, c))
    return restore(u + (expand(omega, c) + 1) * length * unit(delta), cond)


@rule(space="x0", paper="PMC-CFG, arXiv 2609.24287")
def pmc(cond: Array, uncond: Array, omega: Array, *, cap: Array | float = 1.05) -> Array:
    """PMC: the largest ω' ≤ ω that keeps ‖c + ω' (c − u)‖ ≤ G ‖c‖ (PMC-CFG, 2609.24287).

    c + min(ω, β) δ, where β is the positive root of ‖c + β δ‖ = G ‖c‖. The direction of `cfg` is
    kept and its length is not exceeded: `norm_cap` shrinks c as well.

    Args:
        cond: Conditional clean prediction c, (batch, ...).
        uncond: Unconditional clean prediction u, the same shape.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.
        cap: G ≥ 1, scalar or (batch,), 1.05 to 1.15 in the paper.

    Returns:
        The guided clean prediction, in the dtype of `cond`.

    Example:
        >>> c, u = jnp.array([[4.0, 0.0]]), jnp.array([[4.0, -1.0]])
        >>> pmc(c, u, 7.0, cap=1.25).tolist()
        [[4.0, 3.0]]
    """
    c = upcast(cond)
    delta = c - upcast(uncond)
    # β of c and δ of length 1 or so: of the true ones it is β · ‖c‖/‖δ‖.
    size, step = magnitude(c), magnitude(delta)
    small, towards = over(c, size), over(delta, step)
    whole = functools.partial(dot, keepdims=True)
    a, b = whole(towards, towards), whole(small, towards)
    room = whole(small, small) * (expand(cap, c) ** 2 - 1)
    root = safe_sqrt(jnp.maximum(b * b + a * room, 0))
    # Of the two forms of the root, the one that doesn't cancel.
    forward = b > 0
    beta = safe_divide(
        jnp.where(forward, room, root - b), jnp.where(forward, b + root, a), otherwise=jnp.inf
    )
    most = jnp.maximum(beta, 0) * (size / step)
    return restore(c + jnp.minimum(expand(omega, c), most) * delta, cond)

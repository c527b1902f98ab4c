"""Rules that keep some components of the guidance and drop others."""

from __future__ import annotations

from operator import itemgetter

import jax.numpy as jnp

from guidejax._arrays import (
    Array,
    dot,
    expand,
    magnitude,
    norm,
    over,
    project,
    restore,
    safe_divide,
    safe_sqrt,
    shrink_to,
    square_norm,
    upcast,
)
from guidejax.rules.base import any_of, buffer, rule

FORMS = ("paper", "diffusers", "comfy")


def _cap(a: Array, max_norm: Array | None) -> Array:
    """`a` · min(1, max_norm/‖a‖)."""
    if max_norm is None:
        return a
    return a * shrink_to(norm(a, keepdims=True), expand(max_norm, a))


def _apg(c, u, delta, omega, eta, max_norm, form):
    """APG of the difference `delta`, which may carry momentum."""
    if form not in FORMS:
        raise ValueError(f"apg: unknown form {form!r}; expected one of {', '.join(FORMS)}.")
    delta = _cap(delta, max_norm)
    along = project(delta, c)
    update = (delta - along) + expand(eta, c) * along
    if form == "paper":
        return c + expand(omega, c) * update
    shifted = (u if form == "diffusers" else c) + expand(1 + omega, c) * update
    return jnp.where(expand(omega, c) == 0, c, shifted)


@rule(space="x0", paper="Sadat et al., arXiv 2410.02416, Algorithm 1", static=("form",))
def apg(
    cond: Array,
    uncond: Array,
    omega: Array,
    *,
    eta: Array | float = 0.0,
    max_norm: Array | float | None = None,
    form: str = "paper",
) -> Array:
    """Adaptive projected guidance: c + ω (g⊥ + η g∥), the part of g along c turned down.

    g = δ min(1, r/‖δ‖) with δ = c − u, and g∥ its component along c (Sadat et al. 2410.02416,
    Algorithm 1), without the momentum, which `apg_momentum` has. The paper's (ω, η, r, β): SDXL
    (14, 0, 15, −0.5), SD 2.1 (9, 0, 7.5, −0.75), EDM2-S (3, 0, 2.5, −0.75).

    Two codebases add the same update with w = ω + 1 elsewhere: diffusers has
    u + w (g⊥ + η g∥), and on the raw network output; ComfyUI has c + w (g⊥ + η g∥), a unit of
    guidance more. Both are off, and give c, at ω = 0.

    Args:
        cond: Conditional clean prediction c, (batch, ...).
        uncond: Unconditional clean prediction u, the same shape.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.
        eta: η, how much of the parallel part to keep; 1 is CFG.
        max_norm: r, the cap on ‖g‖ of each sample; None is no cap.
        form: "paper", "diffusers" or "comfy".

    Returns:
        The guided clean prediction, in the dtype of `cond`.

    Raises:
        ValueError: If the form is unknown.

    Example:
        >>> c, u = jnp.array([[2.0, 0.0]]), jnp.array([[1.0, -1.0]])
        >>> apg(c, u, 2.0).tolist()
        [[2.0, 2.0]]
    """
    c, u = upcast(cond), upcast(uncond)
    return restore(_apg(c, u, c - u, omega, eta, max_norm, form), cond)


@rule(
    space="x0",
    paper="Sadat et al., arXiv 2410.02416, Algorithm 1",
    static=("form",),
    init=buffer,
)
def apg_momentum(
    cond: Array,
    uncond: Array,
    omega: Array,
    state: Array,
    *,
    momentum: Array | float = -0.5,
    eta: Array | float = 0.0,
    max_norm: Array | float | None = None,
    form: str = "paper",
) -> tuple[Array, Array]:
    """Adaptive projected guidance with momentum: `apg` of the running sum δ + β · state.

    Sadat et al. 2410.02416, Algorithm 1: state ← δ + β state, kept before the cap; β < 0 pushes
    away from the directions of the steps before. The state starts at 0 in each run and holds still
    on steps without guidance. ComfyUI takes β ≥ 0 only.

    Args:
        cond: Conditional clean prediction c, (batch, ...).
        uncond: Unconditional clean prediction u, the same shape.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.
        state: The running sum, the shape of `cond`; `apg_momentum.init(x)` at first.
        momentum: β, scalar or (batch,).
        eta: η, how much of the parallel part to keep.
        max_norm: r, the cap on the norm of each sample; None is no cap.
        form: "paper", "diffusers" or "comfy", see `apg`.

    Returns:
        The guided clean prediction, in the dtype of `cond`, and the next state.

    Raises:
        ValueError: If the form is unknown.

    Example:
        >>> c, u = jnp.array([[2.0, 0.0]]), jnp.array([[1.0, -1.0]])
        >>> guided, state = apg_momentum(c, u, 2.0, apg_momentum.init(c))
        >>> guided.tolist(), state.tolist()
        ([[2.0, 2.0]], [[1.0, 1.0]])
        >>> apg_momentum(c, u, 2.0, state)[0].tolist()
        [[2.0, 1.0]]
    """
    c, u = upcast(cond), upcast(uncond)
    state = (c - u) + expand(momentum, c) * state
    return restore(_apg(c, u, state, omega, eta, max_norm, form), cond), state


@rule(space="eps", paper="Kwon et al., arXiv 2503.18137")
def tcfg(cond: Array, uncond: Array, omega: Array) -> Array:
    """Tangential damping: c + ω (c − u'), with u' = ⟨u, v₁⟩ v₁.

    v₁ is the first right singular vector of the 2 × D matrix [u; c] of each sample (Kwon et al.
    2503.18137). Here in closed form: with (cos φ, sin φ) the first eigenvector of its Gram matrix,
    tan 2φ = 2⟨u, c⟩ / (‖u‖² − ‖c‖²), it is u' = cos φ (cos φ · u + sin φ · c).
    Where u and c are orthogonal and of equal norm there is no first vector, and u' = u.

    Args:
        cond: Conditional noise or score prediction c, (batch, ...).
        uncond: Unconditional prediction u, the same shape.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> tcfg(jnp.array([[0.0, 2.0]]), jnp.array([[1.0, 0.0]]), 1.0).tolist()
        [[0.0, 4.0]]
    """
    c, u = upcast(cond), upcast(uncond)
    size = magnitude(u, c)
    small_u, small_c = over(u, size), over(c, size)
    uu, cc, uc = square_norm(small_u), square_norm(small_c), dot(small_u, small_c)
    # cos 2φ and sin 2φ, over the trace first so that the squares don't under- or overflow.
    x, y = safe_divide(uu - cc, uu + cc), safe_divide(2 * uc, uu + cc)
    length = safe_sqrt(x**2 + y**2)
    cos2, sin2 = safe_divide(x, length, 1.0), safe_divide(y, length)
    damped = (expand(1 + cos2, u) * u + expand(sin2, c) * c) / 2
    return restore(c + expand(omega, c) * (c - damped), cond)


@rule(space="velocity", paper="Fan et al., arXiv 2503.18886, Algorithm 1")
def cfg_zero(cond: Array, uncond: Array, omega: Array) -> Array:
    """CFG-Zero*: c + ω (c − s u), with s = ⟨c, u⟩ / ‖u‖².

    Fan et al. 2503.18886: the scale s minimises ‖c − s u‖, so that what guides is the part of c
    orthogonal to u. Their code adds 10⁻⁸ to ‖u‖²; here s u = 0 where u = 0. ComfyUI's node takes
    s from x_t − x̂0 and applies it to x̂0, which is another rule. Zero-init, the paper's second
    part, is `chain(cfg_zero, zero_init.bind(share=...))`.

    Args:
        cond: Conditional velocity c, (batch, ...).
        uncond: Unconditional velocity u, the same shape.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.

    Returns:
        The guided velocity, in the dtype of `cond`.

    Example:
        >>> cfg_zero(jnp.array([[2.0, 1.0]]), jnp.array([[1.0, 0.0]]), 3.0).tolist()
        [[2.0, 4.0]]
    """
    c, u = upcast(cond), upcast(uncond)
    return restore(c + expand(omega, c) * (c - project(c, u)), cond)


@rule(space="velocity", paper="Fan et al., arXiv 2503.18886, Algorithm 1")
def zero_init(guided: Array, *, share: Array | float = 1.0) -> Array:
    """Zero-init: (1 − g) · guided, no velocity at all on the first steps.

    Fan et al. 2503.18886 stand still for the first K steps (K = 1, or 4% of them). g is 1 there:
    `chain(cfg_zero, zero_init.bind(share=interval(1.0, lo=0, hi=K - 1, unit="step")))`.

    Args:
        guided: The velocity so far, (batch, ...).
        share: g, scalar or (batch,); 0 returns `guided` exactly, 1 is no velocity.

    Returns:
        The velocity, in the dtype of `guided`.

    Example:
        >>> velocity = jnp.array([[3.0, 1.0]])
        >>> zero_init(velocity, share=1.0).tolist(), zero_init(velocity, share=0.0).tolist()
        ([[0.0, 0.0]], [[3.0, 1.0]])
    """
    v = upcast(guided)
    return restore((1 - expand(share, v)) * v, guided)


@rule(
    space="any",
    paper="Armandpour et al., arXiv 2304.04968",
    exact_at_zero=False,
    needs={
        "negative": itemgetter("negative_weight"),
        "uncond": any_of("omega", "negative_weight"),
    },
)
def perp_neg(
    cond: Array,
    negative: Array,
    uncond: Array,
    omega: Array,
    *,
    negative_weight: Array | float = 1.0,
) -> Array:
    """Perp-Neg: u + (1 + ω) [δ − β n⊥], a negative prompt that can't undo the positive one.

    δ = c − u, and n⊥ is the part of m − u orthogonal to δ (Armandpour et al. 2304.04968), the same
    in every space. At ω = 0 it is c − β n⊥. ComfyUI's node takes one inner product over the whole
    batch; here each sample has its own. Where δ = 0, n⊥ is m − u.

    Args:
        cond: Conditional prediction c, (batch, ...), in any space.
        negative: Prediction m under the negative prompt, the same shape and space.
        uncond: Unconditional prediction u, the same shape and space.
        omega: ω, scalar or (batch,).
        negative_weight: β ≥ 0, scalar or (batch,).

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> c, m, u = jnp.array([[2.0, 0.0]]), jnp.array([[3.0, 1.0]]), jnp.zeros((1, 2))
        >>> perp_neg(c, m, u, 1.0).tolist()
        [[4.0, -2.0]]
    """
    c, m, u = upcast(cond), upcast(negative), upcast(uncond)
    delta, away = c - u, m - u
    away = away - project(away, delta)
    omega = expand(omega, c)
    update = omega * delta - expand(negative_weight, c) * (1 + omega) * away
    return restore(c + update, cond)

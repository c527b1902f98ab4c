"""Refinements that set the size of the guided prediction by that of the conditional one.

Each takes `guided`, the result of any rule before it: `chain(cfg, rescale)`.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np

from guidejax._arrays import (
    Array,
    blend_resized,
    expand,
    flatten,
    magnitude,
    norm,
    over,
    restore,
    safe_sqrt,
    upcast,
)
from guidejax.processes import Process
from guidejax.rules.base import rule
from guidejax.rules.thresholding import check_percentile


def _spread(x: Array) -> Array:
    """Standard deviation of each sample, up to a constant factor."""
    return norm(x - jnp.mean(x, axis=tuple(range(1, x.ndim)), keepdims=True), keepdims=True)


@rule(space="v", paper="Lin et al., arXiv 2305.08891, §3.4")
def rescale(cond: Array, guided: Array, *, phi: Array | float = 0.7) -> Array:
    """Give the guided prediction the standard deviation of the conditional one.

    φ · g · std(c)/std(g) + (1 − φ) g, each std over one whole sample (Lin et al. 2305.08891,
    §3.4). The paper's models predict v; diffusers applies it to the raw output whatever that is,
    and divides by std(g) unguarded. Where g is constant it is left as it is.

    Args:
        cond: Conditional prediction c, (batch, ...), as v.
        guided: The prediction so far, the same shape and space.
        phi: φ, scalar or (batch,); 0 leaves `guided` as it is, 1 matches the spread fully.

    Returns:
        The rescaled prediction, in the dtype of `guided`.

    Example:
        >>> c, g = jnp.array([[-1.0, 1.0]]), jnp.array([[-4.0, 4.0]])
        >>> rescale(c, g, phi=0.5).tolist()
        [[-2.5, 2.5]]
    """
    c, g = upcast(cond), upcast(guided)
    spread = _spread(g)
    constant = spread <= 4 * jnp.finfo(g.dtype).eps * norm(g, keepdims=True)
    return restore(blend_resized(g, _spread(c), jnp.where(constant, 0, spread), phi), guided)


@rule(space="velocity", paper="Lumina-Image 2.0, Qin et al., arXiv 2503.21758")
def norm_cap(cond: Array, guided: Array, *, rho: Array | float = 1.0) -> Array:
    """CFG-Renorm: shrink the guided prediction until ‖g‖ ≤ ρ ‖c‖.

    g · min(1, ρ‖c‖/‖g‖), norms over one whole sample (Lumina-Image 2.0, 2503.21758, after STIV,
    2412.07730). Z-Image does this; diffusers' Lumina 2 pipeline instead matches the norm of every
    row of the latent, and ComfyUI works on x0.

    Args:
        cond: Conditional prediction c, (batch, ...), as velocity.
        guided: The prediction so far, the same shape and space.
        rho: ρ, scalar or (batch,), 1 to 1.5 in use.

    Returns:
        The capped prediction, in the dtype of `guided`.

    Example:
        >>> c = jnp.array([[3.0, 4.0]])
        >>> norm_cap(c, jnp.array([[0.0, 20.0]])).tolist()
        [[0.0, 5.0]]
    """
    c, g = upcast(cond), upcast(guided)
    length, most = norm(g, keepdims=True), expand(rho, g) * norm(c, keepdims=True)
    return restore(blend_resized(g, jnp.where(length <= most, length, most), length, 1), guided)


@rule(space="velocity", paper="Qwen-Image, arXiv 2508.02324 (its code)", static=("axis", "shrink"))
def token_norm(
    cond: Array,
    guided: Array,
    *,
    strength: Array | float = 1.0,
    axis: int = -1,
    shrink: bool = False,
) -> Array:
    """Give every token, or pixel, of the guided prediction the norm of the conditional one.

    g · ‖c‖/‖g‖, norms along the channel axis alone. No paper derives it: it is in the code of
    Qwen-Image (2508.02324) and HiDream-E1.1, on the velocity, and in ComfyUI's CFGNorm, on x0,
    where norms only fall (`shrink`). There a strength below 1 scales the whole image; here it
    blends with `guided`.

    Args:
        cond: Conditional prediction c, (batch, ..., channels), as velocity.
        guided: The prediction so far, the same shape and space.
        strength: 0 leaves `guided` as it is, 1 matches fully; scalar or (batch,).
        axis: The channel axis.
        shrink: Only shorten tokens, never lengthen them.

    Returns:
        The prediction with the tokens' norms set, in the dtype of `guided`.

    Example:
        >>> c, g = jnp.array([[[3.0, 4.0], [1.0, 0.0]]]), jnp.array([[[0.0, 10.0], [0.5, 0.0]]])
        >>> token_norm(c, g).tolist()
        [[[0.0, 5.0], [1.0, 0.0]]]
    """
    c, g = upcast(cond), upcast(guided)
    length = functools.partial(norm, axis=axis, keepdims=True)
    wanted, found = length(c), length(g)
    if shrink:
        wanted = jnp.minimum(wanted, found)
    return restore(blend_resized(g, wanted, found, strength), guided)


def _length(x: Array, lo: Array | float, hi: Array | float) -> Array:
    """√E, E the sum of the squares that rank between two percentiles of the sample's."""
    like, x = x, flatten(x)
    size = magnitude(x)
    squares = jnp.sort(over(x, size) ** 2, axis=1)
    ranks = jnp.arange(squares.shape[1], dtype=x.dtype)
    # Half a part in a thousand of rank: 0.45 · 100 is not 45 in floating point.
    first = jnp.ceil(jnp.asarray(lo) / 100 * (squares.shape[1] - 1) - 5e-4)
    last = jnp.floor(jnp.asarray(hi) / 100 * (squares.shape[1] - 1) + 5e-4)
    first, last = (expand(f(first, last), squares) for f in (jnp.minimum, jnp.maximum))
    outside = (ranks < first) | (ranks > last)
    # A percentile that is NaN is a comparison that is False: the sum is NaN by its own addition.
    total = jnp.sum(jnp.where(outside, 0, squares) + 0 * (first + last), axis=1)
    # NaN sorts last, out of the percentiles.
    length = safe_sqrt(jnp.where(jnp.isnan(squares[:, -1]), jnp.nan, total)) * size[:, 0]
    return expand(length, like)


def _check_percentiles(lo: Array | float, hi: Array | float) -> None:
    if np.any(np.asarray(lo) > np.asarray(hi)):
        raise ValueError(f"ep_cfg expects lo ≤ hi, got lo={lo}, hi={hi}.")
    check_percentile("ep_cfg's lo", lo)
    check_percentile("ep_cfg's hi", hi)


@rule(space="eps", paper="Zhang et al., arXiv 2412.09966", check=_check_percentiles)
def ep_cfg(
    cond: Array, guided: Array, *, lo: Array | float = 45.0, hi: Array | float = 55.0
) -> Array:
    """EP-CFG: give the guided prediction the energy of the conditional one.

    g · √(E(c)/E(g)), E the sum of a sample's squares between their `lo`-th and `hi`-th percentiles
    (Zhang et al. 2412.09966, the robust form behind its results); lo = 0, hi = 100 is its plain
    form, E = ‖·‖². The authors' own later code, minFM, uses the plain form on the velocity.

    Args:
        cond: Conditional prediction c, (batch, ...), as ε.
        guided: The prediction so far, the same shape and space.
        lo: Lower percentile in [0, 100], scalar or (batch,).
        hi: Upper percentile, at least `lo`.

    Returns:
        The prediction with the energy set, in the dtype of `guided`; where E(g) = 0, `guided`.

    Raises:
        ValueError: If lo > hi, or one of them is no percentile.

    Example:
        >>> c, g = jnp.array([[1.0, 2.0, 9.0]]), jnp.array([[2.0, 4.0, 5.0]])
        >>> ep_cfg(c, g).tolist()
        [[1.0, 2.0, 2.5]]
    """
    c, g = upcast(cond), upcast(guided)
    return restore(blend_resized(g, _length(c, lo, hi), _length(g, lo, hi), 1), guided)


@rule(space="eps", paper="Xu et al., arXiv 2510.01184", exact_at_zero=False)
def tsr(
    guided: Array,
    t: Array,
    process: Process,
    *,
    k: Array | float = 0.95,
    scale: Array | float = 1.0,
) -> Array:
    """Temporal score rescaling: sample from p^k, each mode taken for a Gaussian of variance s².

    ε' = r(t) ε with r = (η s² + 1)/(η s²/k + 1), η = α²/σ² and s = `scale` (Xu et al. 2510.01184).
    Exact where the data is N(0, s² I): the samples are N(0, s²/k I). k < 1 widens the modes, which
    shows as detail, k > 1 narrows them, and k = 1 leaves `guided` as it is.

    Args:
        guided: The prediction so far, (batch, ...), as ε.
        t: Time, scalar or (batch,), σ(t) > 0.
        process: The noising process.
        k: Power, scalar or (batch,): 0.95 for EDM2, 0.93 for SD3 and Flux.
        scale: s, 1 for EDM2, 3 for SD3 and Flux; larger acts earlier.

    Returns:
        The rescaled prediction, in the dtype of `guided`.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> tsr(jnp.array([[3.0]]), 0.5, rectified_flow(), k=0.5).tolist()
        [[2.0]]
    """
    alpha, sigma = process.alpha(t), process.sigma(t)
    signal, noise = (alpha * scale) ** 2, sigma**2
    r = (signal + noise) / (signal / k + noise)
    g = upcast(guided)
    return restore(expand(r, g).astype(g.dtype) * g, guided)


@rule(space="eps", paper="Ning et al., arXiv 2308.15321, §4.2", exact_at_zero=False)
def epsilon_scaling(guided: Array, *, scale: Array | float = 1.005) -> Array:
    """Epsilon scaling: ε' = ε/λ, against exposure bias (Ning et al. 2308.15321).

    Args:
        guided: The prediction so far, (batch, ...), as ε.
        scale: λ, scalar or (batch,), a little over 1. The paper's λ(t) = k t + b is a function
            `scale=lambda s, t, cond: k * t + b`.

    Returns:
        The scaled prediction, in the dtype of `guided`.

    Example:
        >>> epsilon_scaling(jnp.array([[3.0]]), scale=1.5).tolist()
        [[2.0]]
    """
    g = upcast(guided)
    return restore(g / expand(scale, g), guided)

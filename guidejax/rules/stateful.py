"""Rules that carry state from step to step: a flag, a buffer or an average.

The state is a pytree, made by the rule's `init(x)` at the start of a run and returned beside the
guided prediction by every call; call once a step.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from guidejax._arrays import (
    Array,
    dot,
    expand,
    project,
    restore,
    safe_divide,
    safe_sqrt,
    unit,
    upcast,
)
from guidejax.rules.base import buffer, per_sample, rule
from guidejax.rules.frequency import dct_high_pass


@rule(
    space="eps",
    paper="Castillo et al., arXiv 2312.12487, §5",
    init=lambda x: per_sample(x, 0, jnp.bool_),
    wants=jnp.logical_not,
)
def adaptive(
    cond: Array,
    uncond: Array | None,
    omega: Array,
    state: Array,
    *,
    threshold: Array | float = 0.991,
) -> tuple[Array, Array]:
    """Adaptive guidance: `cfg` until c and u point the same way, then c for the rest of the run.

    Sample by sample, the step at which cos(c, u) > γ̄ is the last guided one (Castillo et al.
    2312.12487). ε predictions that are equal throughout, as at α = 0, say nothing and don't count.

    Args:
        cond: Conditional prediction c, (batch, ...), as ε.
        uncond: Unconditional prediction u, the same shape and space; None returns `cond`, for
            when guidance is over for every sample: the sampler then leaves that pass out.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.
        state: (batch,) flags, True where guidance is over.
        threshold: γ̄, scalar or (batch,): 0.991 for the paper's 20-step latent model, a
            variance-preserving one that predicts ε. On rectified flow and EDM ε is nearly the same
            for both at high noise, and guidance would be over after a step: compare x̂0 there, as
            ComfyUI's node does, with guidance(adaptive, ω, space="x0", threshold=0.999).

    Returns:
        The guided prediction, in the dtype of `cond`, and the next state.

    Example:
        >>> c, u = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.01]])
        >>> over = adaptive.init(c)
        >>> for _ in range(2):
        ...     guided, over = adaptive(c, u, 1.0, over)
        ...     print(guided.tolist(), over.tolist())
        [[1.0, -0.009999999776482582]] [True]
        [[1.0, 0.0]] [True]
    """
    if uncond is None:
        return cond, state
    c, u = upcast(cond), upcast(uncond)
    # No cosine is beyond a threshold that is NaN: it is to be seen in what is guided.
    weight = jnp.where(expand(jnp.isnan(threshold), c), jnp.nan, expand(omega, c))
    guided = c + jnp.where(expand(state, c), 0, weight) * (c - u)
    apart = jnp.any(c != u, axis=tuple(range(1, c.ndim)))
    agree = (dot(unit(c), unit(u)) > threshold) & apart
    return restore(guided, cond), jnp.logical_or(state, agree)


class Cached(NamedTuple):
    """The difference that `cached_difference` reuses, and the steps taken, (batch,)."""

    delta: Array
    step: Array


@rule(
    space="velocity",
    paper="after FasterCache, Lv et al., arXiv 2410.19355",
    init=lambda x: Cached(buffer(x), per_sample(x, 0, jnp.int32)),
    static=("every",),
    wants=lambda state, every: state.step % every == 0,
)
def cached_difference(
    cond: Array, uncond: Array | None, omega: Array, state: Cached, *, every: int = 5
) -> tuple[Array, Cached]:
    """`cfg` with a difference c − u that is measured once in `every` steps and kept in between.

    c + ω d, with d = c − u on the steps 0, every, 2·every, … and the last such d on the others,
    where u is not looked at: a caller that leaves that pass out gives `uncond=None`, as the sampler
    does. FasterCache (2410.19355) also reweights d by frequency band; FastVideo and SGLang keep it
    as it is, on the velocity.

    Args:
        cond: Conditional prediction c, (batch, ...), as velocity.
        uncond: Unconditional prediction u, the same shape and space, or None to reuse.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.
        state: A `Cached`.
        every: Steps that share one difference; 1 is `cfg`.

    Returns:
        The guided prediction, in the dtype of `cond`, and the next state.

    Raises:
        ValueError: If `every` is less than 1.

    Example:
        >>> c, u = jnp.array([[2.0]]), jnp.array([[1.0]])
        >>> first, state = cached_difference(c, u, 3.0, cached_difference.init(c))
        >>> second, state = cached_difference(c, None, 3.0, state)
        >>> first.tolist(), second.tolist(), state.step.tolist()
        ([[5.0]], [[5.0]], [2])
    """
    if every < 1:
        raise ValueError(f"cached_difference expects every ≥ 1, got {every}.")
    c, delta = upcast(cond), state.delta
    if uncond is not None:
        fresh = expand(state.step % every == 0, c)
        delta = jnp.where(fresh, c - upcast(uncond), delta)
    return restore(c + expand(omega, c) * delta, cond), Cached(delta, state.step + 1)


class History(NamedTuple):
    """The running average of `higs`, and whether a step has entered it, (batch,)."""

    average: Array
    started: Array


@rule(
    space="x0",
    paper="Sadat et al. (HiGS), arXiv 2509.22300, Algorithm 2",
    init=lambda x: History(buffer(x), per_sample(x, 0, jnp.bool_)),
    exact_at_zero=False,
)
def higs(
    guided: Array,
    t: Array,
    state: History,
    *,
    strength: Array | float = 2.0,
    decay: Array | float = 0.75,
    lo: Array | float = 0.4,
    hi: Array | float = 0.95,
    parallel: Array | float = 1.0,
    cutoff: Array | float = 0.05,
    sharpness: Array | float = 50.0,
) -> tuple[Array, History]:
    """History-guided sampling: g + w(t) · highpass(g − mean of the steps before).

    w(t) = w √((t − lo)/(hi − lo)) on lo < t ≤ hi and 0 elsewhere; the mean is exponential, m ←
    α g + (1 − α) m from m = 0; the high pass is a sigmoid on the DCT; and the part of the
    difference along g is weighted by η (Sadat et al. 2509.22300, Algorithm 2). The first step of a
    run only enters the mean.

    Args:
        guided: The clean prediction so far, (batch, H, W, channels).
        t: Time, scalar or (batch,), 1 being noise.
        state: A `History`.
        strength: w, scalar or (batch,); 0 leaves `guided` as it is.
        decay: α, the share of the newest step in the mean.
        lo: Below this t nothing is added.
        hi: Above this t nothing is added.
        parallel: η: 1 keeps the whole difference, 0 only what is orthogonal to g.
        cutoff: Radius of the high pass, 1 being the highest frequency of an axis.
        sharpness: Slope of the high pass.

    Returns:
        The prediction, in the dtype of `guided`, and the next state.

    Example:
        >>> x = jnp.array([[[[1.0], [0.0]]]])
        >>> _, state = higs(0 * x, 1.0, higs.init(x))
        >>> guided, _ = higs(x, 0.95, state, strength=2.0, sharpness=1e3)
        >>> [round(v, 4) for v in guided.ravel().tolist()]
        [2.0, -1.0]
    """
    g = upcast(guided)
    change = g - state.average
    change = change - (1 - expand(parallel, g)) * project(change, g)
    outside = (t <= lo) | (t > hi)
    rise = safe_sqrt(jnp.maximum(safe_divide(jnp.asarray(t) - lo, jnp.asarray(hi) - lo), 0))
    weight = jnp.where(state.started, jnp.where(outside, 0, strength * rise), 0)
    pushed = g + expand(weight, g) * dct_high_pass(change, cutoff, sharpness)
    average = expand(decay, g) * g + (1 - expand(decay, g)) * state.average
    return restore(pushed, guided), History(average, jnp.ones_like(state.started))

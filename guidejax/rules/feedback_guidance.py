"""Feedback guidance: ω of each sample from how conditional its own path has been so far."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from guidejax._arrays import (
    Array,
    accumulator,
    dot,
    expand,
    magnitude,
    over,
    restore,
    safe_divide,
    tree_map,
    upcast,
)
from guidejax.processes import Process
from guidejax.rules.base import buffer, per_sample, rule


class Feedback(NamedTuple):
    """log p(c | x) up to a constant, and what the step before predicted and from where."""

    log_ratio: Array
    started: Array
    alpha: Array
    pull: Array
    x: Array
    cond: Array
    uncond: Array


def _init(x: Array) -> Feedback:
    wide = accumulator(x.dtype)
    zero = per_sample(x, 0, wide)
    rest = zero, zero, buffer(x), buffer(x), buffer(x)
    return Feedback(zero, per_sample(x, 0, jnp.bool_), *rest)


def _evidence(state: Feedback, x: Array, alpha: Array, pull: Array) -> Array:
    """⟨Δ(α x/σ²) − Δ(α²/σ²) (c + u)/2, c − u⟩, `pull` being α/σ²; held within what can be squared.

    It is the pull of this step times ⟨(x − α m) − (pull before/pull) (x − α m) before, c − u⟩:
    vectors of the size of the predictions, each scaled before they are multiplied.
    """
    middle, delta = (state.cond + state.uncond) / 2, state.cond - state.uncond
    here, before = (a - expand(b, a) * middle for a, b in ((x, alpha), (state.x, state.alpha)))
    surprise = here - expand(safe_divide(state.pull, pull), here) * before
    one, other = magnitude(surprise), magnitude(delta)
    product = dot(over(surprise, one), over(delta, other))
    most = float(jnp.finfo(product.dtype).max) ** 0.5
    size = one.reshape(product.shape), other.reshape(product.shape)
    return jnp.clip(product * size[0] * pull * size[1], -most, most)


@rule(
    space="x0",
    paper="Koulischer et al., arXiv 2506.06085, Algorithm 1",
    init=_init,
    exact_at_zero=False,
)
def feedback(
    cond: Array,
    uncond: Array,
    omega: Array,
    x: Array,
    t: Array,
    process: Process,
    state: Feedback,
    *,
    pi: Array | float = 0.95,
    temperature: Array | float = 0.0035,
    offset: Array | float = -0.0809,
    max_omega: Array | float = 9.0,
    max_log_ratio: Array | float = 3.0,
) -> tuple[Array, Feedback]:
    """Feedback guidance: much where the path has so far looked unconditional, little elsewhere.

    The model is taken for a mixture, π p(x|c) + (1 − π) p(x), which the scale λ = e^L/(e^L − (1 −
    π)) undoes, L = log p(c|x). L starts at 0; after each step t → s it is updated by how much
    likelier the step was under c than under u, both as DDPM posteriors of variance σ̃²:

        L ← L − τ/(2σ̃²) (‖x_s − μ_c‖² − ‖x_s − μ_u‖²) + δ
          = L + τ ⟨Δ(α x/σ²) − Δ(α²/σ²) (c + u)/2, c − u⟩ + δ

    and kept where λ ≤ max_omega + 1 (Koulischer et al. 2506.06085, Algorithm 1, there for EDM; the
    second form is the same for α ≠ 1). `omega` is added to λ − 1: the paper's hybrids with CFG and
    limited intervals, which share the same cap; 0 is the pure rule. The upper end of L is in the
    official code alone.

    Args:
        cond: Conditional clean prediction c, (batch, ...).
        uncond: Unconditional clean prediction u, the same shape.
        omega: ω on top of the feedback, scalar or (batch,).
        x: x_t, the same shape.
        t: Time, scalar or (batch,), σ(t) > 0.
        process: The noising process.
        state: A `Feedback`.
        pi: π in (0, 1): 0.95, for FD-DINOv2 0.999, for text 0.85.
        temperature: τ; it and δ depend on the grid, `feedback_numbers` gives both. The defaults
            are for EDM2's 64 steps.
        offset: δ, negative.
        max_omega: Largest λ − 1 (with `omega`).
        max_log_ratio: Largest L.

    Returns:
        The guided clean prediction, in the dtype of `cond`, and the next state.

    Raises:
        ValueError: If omega has more axes than one.

    Example:
        >>> from guidejax.processes import edm
        >>> c, u = jnp.array([[1.0]]), jnp.array([[0.0]])
        >>> guided, _ = feedback(c, u, 0.0, c, 0.5, edm(), feedback.init(c), pi=0.5)
        >>> guided.tolist()
        [[2.0]]
    """
    if jnp.ndim(omega) > 1:
        raise ValueError(
            "feedback caps ω and its own λ − 1 together, a sample at a time: expected omega scalar "
            f"or (batch,), got the shape {jnp.shape(omega)}."
        )
    c, u, x = upcast(cond), upcast(uncond), upcast(x)
    alpha, sigma = process.alpha(t), process.sigma(t)
    alpha, pull = (jnp.zeros_like(state.pull) + a for a in (alpha, alpha / sigma**2))
    gain = temperature * _evidence(state, x, alpha, pull) + offset
    # λ − 1 = (1 − π)/(e^L − (1 − π)) ≤ room.
    room = jnp.maximum(jnp.asarray(max_omega) - omega, 1e-3)
    least = jnp.log1p(-jnp.asarray(pi)) + jnp.log1p(1 / room)
    moved = jnp.clip(state.log_ratio + gain, least, max_log_ratio)
    log_ratio = jnp.where(state.started, moved, state.log_ratio)

    rest = 1 - jnp.asarray(pi)
    weight = omega + jnp.minimum(rest / jnp.maximum(jnp.exp(log_ratio) - rest, 1e-6), room)
    guided = c + expand(weight, c) * (c - u)
    after = Feedback(log_ratio, jnp.ones_like(state.started), alpha, pull, x, c, u)
    # A scan carries it: times and ω of another precision don't change its own.
    after = tree_map(lambda new, old: new.astype(old.dtype), after, state)
    return restore(guided, cond), after


def feedback_numbers(
    process: Process,
    times: Array,
    *,
    pi: float = 0.95,
    guide_from: float = 0.5,
    guide_to: float = 0.4,
) -> dict[str, Array]:
    """τ and δ of `feedback` on a grid of times, from the two points of the run that they stand for.

    δ is such that, with no evidence, λ reaches 3 at `guide_from`; τ such that at `guide_to` a
    squared error smaller by 10 under c than under u makes up for δ (Koulischer et al. 2506.06085,
    Appendix C.2). Both are fractions of the steps left, 1 at noise and 0 at data.

    Args:
        process: The noising process.
        times: The sampler's grid, (steps + 1,), falling.
        pi: π of `feedback`.
        guide_from: The paper's t0.
        guide_to: The paper's t1.

    Returns:
        {"temperature": τ, "offset": δ}:
        `feedback.bind(pi=0.95, **feedback_numbers(process, times))`.

    Raises:
        ValueError: If π is not in (0, 1) or a fraction not in [0, 1).

    Example:
        >>> from guidejax.processes import edm
        >>> numbers = feedback_numbers(edm(), jnp.linspace(1, 0, 65))
        >>> round(float(numbers["offset"]), 4)
        -0.0809
    """
    if not 0 < pi < 1 or not 0 <= guide_from < 1 or not 0 <= guide_to < 1:
        raise ValueError(
            "feedback_numbers expects pi in (0, 1) and fractions in [0, 1), got "
            f"pi={pi}, guide_from={guide_from}, guide_to={guide_to}."
        )
    times = jnp.asarray(times)
    steps = times.shape[0] - 1
    snr = (process.alpha(times) / process.sigma(times)) ** 2
    # σ̃² of every step, noise first; of the last, into t = 0, it is 0.
    variance = (1 - snr[:-1] / snr[1:]) / snr[1:]
    at_guide_to = jnp.interp(guide_to * steps, jnp.arange(steps), variance[::-1])
    offset = jnp.log(1.5 * (1 - pi)) / ((1 - guide_from) * steps)
    return {"temperature": jnp.abs(2 * at_guide_to / 10 * offset), "offset": offset}

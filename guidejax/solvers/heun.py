"""Heun's method."""

from __future__ import annotations

import jax.numpy as jnp

from guidejax._arrays import safe_divide
from guidejax.solvers.base import Solver, combine, toward


def trapezoid(denoised, again, process, x, t, s, size, length):
    """DDIM's step, then + length/2 · (d' − d) with the slope d = (x − size · x̂0)/σ at both ends."""
    a, b, _ = toward(process, s, t, jnp.ones(()))
    first = combine((a, b), x, denoised.x0)
    if again is None:
        return first
    end = again(first, s)
    # Where s = 0 is only known at run time, the slope there is 0/0 and DDIM's step stands.
    here, there = 1 / process.sigma(t), safe_divide(1.0, process.sigma(s))
    half = jnp.where(process.sigma(s) > 0, length / 2, 0)
    before = combine((here, -here * size(t)), x, denoised.x0)
    after = combine((there, -there * size(s)), first, end)
    return combine((jnp.ones(()), half, -half), first, after, before)


def _heun(numbers, denoised, again, process, x, t, s, key, state):
    size = lambda t: process.alpha(t) + process.sigma(t)  # noqa: E731
    # n_s (τ_s − τ_t) with n = α + σ and τ = σ/n.
    length = process.sigma(s) - size(s) * process.sigma(t) / size(t)
    return trapezoid(denoised, again, process, x, t, s, size, length), state


def heun() -> Solver:
    """Heun's method: the mean of the slopes at both ends of the step, two predictions a step.

    On dz/dτ = ε̂ − x̂0, the probability-flow ODE in z = x/(α + σ) and τ = σ/(α + σ): every process
    is rectified flow in these coordinates, and they are regular from pure noise (α = 0) on. The
    second prediction takes the ω of the next step, the one that denoises from there. Second order;
    exact where x̂0 and ε̂ are constant. A last step into s = 0 is DDIM's, with one prediction.

    Example:
        >>> heun().stages
        2
    """
    return Solver({}, _heun, stages=2)

"""Heun's method."""

from __future__ import annotations

import jax.numpy as jnp

from guidejax._arrays import combine
from guidejax.solvers.base import Solver, along, at_data, straight_slope, toward


def _step(numbers, denoise, process, x, t, s, key, memory):
    x0 = denoise(x, t)
    a, b, _ = toward(process, s, t, 1.0)
    x_s = combine((a, b), x, x0)  # Euler's step in these coordinates, which is DDIM's
    if at_data(s):
        return x_s, memory
    start, end = straight_slope(process, x, x0, t), straight_slope(process, x_s, denoise(x_s, s), s)
    # Where s = 0 is only known at run time the slope there is 0/0, and DDIM's step stands.
    half = jnp.where(process.sigma(s) > 0, 1 / 2, 0)
    return along(process, x, t, s, combine((1 - half, half), start, end)), memory


def heun() -> Solver:
    """Heun's method: the mean of the slopes at both ends of the step, two evaluations a step.

    On dz/dτ = ε̂ − x̂0, the probability-flow ODE in z = x/(α + σ) and τ = σ/(α + σ): every process
    is rectified flow in these coordinates, and they are regular from pure noise (α = 0) on. Second
    order; exact where x̂0 and ε̂ are constant. Where ω jumps it is of first order, for a step's end
    takes the ω of the next step; `midpoint` and `dpm_solver_2` keep theirs. A last step into s = 0
    is DDIM's, with one evaluation.

    Example:
        >>> heun().both_ways
        True
    """
    return Solver({}, _step, both_ways=True)

"""The classical Runge–Kutta method."""

from __future__ import annotations

import jax.numpy as jnp

from guidejax._arrays import combine
from guidejax.solvers.base import Solver, along, at_data, straight_slope, within


def _step(numbers, denoise, process, x, t, s, key, memory):
    def slope(x, t):
        return straight_slope(process, x, denoise(x, t), t)

    # Kutta's tableau, and into s = 0 Heun's of third order, which asks nothing at the end.
    last = process.sigma(s) == 0
    second, third = (within(process, t, s, jnp.where(last, c, 1 / 2)) for c in (1 / 3, 2 / 3))
    shares = ((1 / 4, 1 / 6), (0, 1 / 3), (3 / 4, 1 / 3), (0, 1 / 6))
    k1 = slope(x, t)
    k2 = slope(along(process, x, t, second, k1), second)
    k3 = slope(along(process, x, t, third, k2), third)
    k4 = k3 if at_data(s) else slope(along(process, x, t, s, k3), s)
    mean = combine(tuple(jnp.where(last, a, b) for a, b in shares), k1, k2, k3, k4)
    return along(process, x, t, s, mean), memory


def rk4() -> Solver:
    """The classical Runge–Kutta method, four evaluations a step (Kutta 1901).

    k₁ at t, k₂ and k₃ in the middle, k₄ at s; the step is along (k₁ + 2k₂ + 2k₃ + k₄)/6. On
    dz/dτ = ε̂ − x̂0 in z = x/(α + σ) and τ = σ/(α + σ), as `heun` and `midpoint`. Fourth order;
    exact where x̂0 and ε̂ are constant. A last step into s = 0, where there is no slope to ask for,
    is Heun's third-order method, with three evaluations: the whole stays of fourth order.

    Example:
        >>> rk4().both_ways
        True
    """
    return Solver({}, _step, both_ways=True)

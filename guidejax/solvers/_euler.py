"""Euler's method on the probability-flow ODE."""

from __future__ import annotations

from guidejax._arrays import combine
from guidejax.solvers.base import Solver, slope


def _step(numbers, denoise, process, x, t, s, key, memory):
    return combine((1, s - t), x, slope(process, x, denoise(x, t), t)), memory


def euler() -> Solver:
    """Euler's method in t on dx/dt = α̇ x̂0 + σ̇ ε̂, the probability-flow ODE (Song et al. 2011.13456).

    First order. On rectified flow it is `ddim()` without churn; on other processes DDIM is the
    better first-order method, as it is exact where x̂0 and ε̂ are constant and this is not.

    Example:
        >>> euler().both_ways
        True
    """
    return Solver({}, _step, both_ways=True)

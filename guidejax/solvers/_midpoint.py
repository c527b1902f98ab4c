"""The midpoint method."""

from __future__ import annotations

from guidejax.solvers.base import Solver, along, straight_slope, within


def _step(numbers, denoise, process, x, t, s, key, memory):
    middle = within(process, t, s, 1 / 2)
    first = straight_slope(process, x, denoise(x, t), t)
    x_m = along(process, x, t, middle, first)
    second = straight_slope(process, x_m, denoise(x_m, middle), middle)
    return along(process, x, t, s, second), memory


def midpoint() -> Solver:
    """The midpoint method: the slope in the middle of the step, two evaluations a step.

    On dz/dτ = ε̂ − x̂0 in z = x/(α + σ) and τ = σ/(α + σ), as `heun`; the middle is that in τ, which
    is the middle in t on rectified flow. Second order; exact where x̂0 and ε̂ are constant. It asks
    nothing at the end of a step, so that a last step into s = 0 is like any other.

    Example:
        >>> midpoint().both_ways
        True
    """
    return Solver({}, _step, both_ways=True)

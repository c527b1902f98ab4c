"""DPM-Solver-2."""

from __future__ import annotations

import jax.numpy as jnp

from guidejax._arrays import combine
from guidejax.solvers.base import Solver, at_data, toward


def _step(numbers, denoise, process, x, t, s, key, memory):
    a, b, _ = toward(process, s, t, 1.0)
    if at_data(s):
        return combine((a, b), x, denoise(x, t)), memory
    # λ of pure noise and of data is infinite and has no middle: there the step is DDIM's.
    log_snr = (process.log_snr(t) + process.log_snr(s)) / 2
    finite = jnp.isfinite(log_snr)
    middle = jnp.where(finite, process.inverse_log_snr(jnp.where(finite, log_snr, 0)), t)
    a_m, b_m, _ = toward(process, middle, t, 1.0)
    u = combine((a_m, b_m), x, denoise(x, t))  # line 4
    x0 = denoise(u, middle)
    # Line 5 with ε̂ = (u − α x̂0)/σ in the middle, and σ_s (e^h − 1) = ratio · σ_t − σ_s.
    ratio = process.alpha(s) / jnp.where(finite, process.alpha(t), 1)
    along = (process.sigma(s) - ratio * process.sigma(t)) / process.sigma(middle)
    shares = (ratio, a), (along, 0), (-along * process.alpha(middle), b)
    return combine(tuple(jnp.where(finite, a, b) for a, b in shares), x, u, x0), memory


def dpm_solver_2() -> Solver:
    """DPM-Solver-2: ε̂ from the middle of the step in λ = log(α/σ), two evaluations a step.

    u = (α_m/α_t) x − σ_m (e^(h/2) − 1) ε̂(x, t), then x_s = (α_s/α_t) x − σ_s (e^h − 1) ε̂(u, m),
    h = λ_s − λ_t (Lu et al. 2206.00927, Algorithm 1). Second order; exact where ε̂ is constant. A
    step from pure noise (α = 0) and one into s = 0 are DDIM's: λ is infinite there.

    Example:
        >>> dpm_solver_2().both_ways
        True
    """
    return Solver({}, _step, both_ways=True)

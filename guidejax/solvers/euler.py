"""Euler's method on the probability-flow ODE."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from guidejax._arrays import combine
from guidejax.solvers.base import Solver


def _step(numbers, denoised, process, x, t, s, key, memory):
    # dx/dt = α̇ x̂0 + σ̇ ε̂, with ε̂ = (x − α x̂0)/σ.
    t = jnp.asarray(t)
    one = jnp.ones_like(t)
    alpha, alpha_dot = jax.jvp(process.alpha, (t,), (one,))
    sigma, sigma_dot = jax.jvp(process.sigma, (t,), (one,))
    growth = sigma_dot / sigma
    slope = alpha_dot - alpha * growth
    return combine((1 + (s - t) * growth, (s - t) * slope), x, denoised.x0), memory


def euler() -> Solver:
    """Euler's method in t on dx/dt = α̇ x̂0 + σ̇ ε̂, the probability-flow ODE (Song et al. 2011.13456).

    First order. On rectified flow it is `ddim()` without churn; on other processes DDIM is the
    better first-order method, as it is exact where x̂0 and ε̂ are constant and this is not.

    Example:
        >>> euler().stages
        1
    """
    return Solver({}, _step)

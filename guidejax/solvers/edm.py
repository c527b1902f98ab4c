"""EDM's stochastic sampler."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from guidejax._arrays import combine, is_concrete, safe_sqrt
from guidejax.solvers.base import Solver, check_range, normal_like
from guidejax.solvers.heun import begin, correct, predict


def _raise_noise(numbers, process, x, t, key):
    """EDM's Algorithm 2, lines 4 to 6: up to σ̂ = (1 + γ) σ, where σ is in its range."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    level = jnp.where(alpha > 0, sigma / jnp.where(alpha > 0, alpha, 1), jnp.inf)
    end = jnp.ones_like(t)
    top = process.sigma(end) / jnp.maximum(process.alpha(end), 1e-30)
    inside = (level >= numbers["lo"]) & (level <= numbers["hi"]) & (level < top)
    level = jnp.where(inside, level, 1)
    raised = jnp.minimum(level * (1 + numbers["gamma"]), jnp.where(inside, top, jnp.inf))
    later = jnp.where(inside, process.inverse_log_snr(-2 * jnp.log(raised)), t)
    scale = jnp.where(inside, process.alpha(later) / jnp.where(inside, alpha, 1), 1)
    spread = jnp.where(inside, safe_sqrt(raised**2 - level**2), 0) * numbers["noise"]
    return combine((scale, process.alpha(later) * spread), x, normal_like(key, x)), later


def _size(process, t):
    return process.alpha(t)


def _step(numbers, denoised, process, x, t, s, key, memory):
    # In x/α against σ/α, which are infinite where α = 0: a step from there is DDIM's.
    alpha_t, alpha_s = process.alpha(t), process.alpha(s)
    live = alpha_t > 0
    length = process.sigma(s) - alpha_s * process.sigma(t) / jnp.where(live, alpha_t, 1)
    return predict(_size, denoised, process, x, t, s, jnp.where(live, length, 0))


_correct = functools.partial(correct, _size)


def edm_heun(gamma: Any = 0.0, lo: Any = 0.0, hi: Any = jnp.inf, noise: Any = 1.0) -> Solver:
    """EDM's sampler: raise the noise, then Heun's method in x/α (Karras et al. 2206.00364, Alg. 2).

    Each step first goes from σ to σ̂ = (1 + γ) σ with fresh noise and denoises from there; σ is the
    ratio σ/α of the process here, and no step goes above its value at t = 1. With γ = 0 it is
    EDM's deterministic sampler, Algorithm 1, of second order. On EDM's process it is the paper's
    algorithm; a first step from α = 0 on another process, where x/α is infinite, is DDIM's, and
    `heun` is the better choice there.

    Args:
        gamma: γ in [0, √2 − 1], a number or (batch,); the paper's min(S_churn / steps, √2 − 1).
        lo: S_min, the σ/α below which no noise is added.
        hi: S_max, the σ/α above which none is.
        noise: S_noise, the standard deviation of what is added.

    Raises:
        ValueError: If γ is out of range or lo > hi.

    Example:
        >>> edm_heun(gamma=40 / 256, lo=0.05, hi=50.0, noise=1.003).stages
        2
    """
    check_range("edm_heun", "gamma", gamma, 0, 0.41422)
    if is_concrete(lo, hi) and not np.all(np.asarray(lo) <= np.asarray(hi)):
        raise ValueError(f"edm_heun expects lo ≤ hi, got {lo} and {hi}.")
    prepare: Any = _raise_noise
    numbers = {"gamma": gamma, "lo": lo, "hi": hi, "noise": noise}
    if is_concrete(gamma) and np.all(np.asarray(gamma) == 0):
        numbers, prepare = {}, None
    return Solver(numbers, _step, begin, prepare, _correct)

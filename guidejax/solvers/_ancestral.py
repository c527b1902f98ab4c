"""Ancestral sampling."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from guidejax._arrays import combine, safe_sqrt
from guidejax._random import normal_like
from guidejax.solvers.base import Solver, check_range, noise_left, toward


def _step(numbers, denoise, process, x, t, s, key, memory):
    fresh = jnp.asarray(numbers["eta"]) * safe_sqrt(1 - noise_left(process, s, t) ** 2)
    a, b, _ = toward(process, s, t, safe_sqrt(1 - fresh**2))
    return combine((a, b, process.sigma(s) * fresh), x, denoise(x, t), normal_like(key, x)), memory


def ancestral(eta: Any = 1.0) -> Solver:
    """Ancestral sampling: x_s = α_s x̂0 + σ_s (√(1 − f²) ε̂ + f ε), f = η √(1 − (α_tσ_s/α_sσ_t)²).

    η = 1 is DDPM's posterior (Ho et al. 2006.11239) and k-diffusion's "Euler a", 0 is `ddim()`;
    between them it is DDIM's own η (Song et al. 2010.02502, Eq. (16)), where `ddim(churn=e)`
    keeps 1 − e² (1 − α_tσ_s/α_sσ_t) of the noise: the same ends, another way between. First order.

    Args:
        eta: η in [0, 1].

    Raises:
        ValueError: If eta is not in [0, 1].

    Example:
        >>> ancestral().numbers
        {'eta': 1.0}
    """
    check_range("ancestral", "eta", eta)
    return Solver({"eta": eta}, _step)

"""DDIM with churn."""

from __future__ import annotations

from typing import Any

import numpy as np

from guidejax._arrays import combine, is_concrete
from guidejax.processes import bridge
from guidejax.solvers.base import Solver, normal_like


def _step(numbers, denoised, process, x, t, s, key, memory):
    a, b, c = bridge(process, s, t, numbers.get("churn", 0.0))
    if "churn" not in numbers:
        return combine((a, b), x, denoised.x0), memory
    return combine((a, b, c), x, denoised.x0, normal_like(key, x)), memory


def ddim(churn: Any = 0.0) -> Solver:
    """DDIM, x_s = A x_t + B x̂0 + C ε (`guidejax.processes.bridge`; Song et al. 2010.02502).

    Exact for the bridge of Galashov et al. 2510.00815, Eq. (6): with the true x0 the marginals of
    x_s are those of the process whatever the churn. First order; exact where x̂0 is constant.

    Args:
        churn: e in [0, 1]: 0 is the deterministic DDIM, which draws no noise, 1 is DDPM's
            ancestral sampling.

    Raises:
        ValueError: If churn is not in [0, 1].

    Example:
        >>> ddim(churn=0.5).numbers
        {'churn': 0.5}
    """
    if is_concrete(churn):
        if not np.all((np.asarray(churn) >= 0) & (np.asarray(churn) <= 1)):
            raise ValueError(f"ddim expects churn in [0, 1], got {churn}.")
        if np.all(np.asarray(churn) == 0):
            return Solver({}, _step)
    return Solver({"churn": churn}, _step)

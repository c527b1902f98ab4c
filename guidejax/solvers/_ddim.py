"""DDIM with churn."""

from __future__ import annotations

from typing import Any

import numpy as np

from guidejax._arrays import combine, is_concrete
from guidejax._random import normal_like
from guidejax.processes.base import bridge
from guidejax.solvers.base import Solver, check_range


def _step(numbers, denoise, process, x, t, s, key, memory):
    a, b, c = bridge(process, s, t, numbers.get("churn", 0.0))
    if "churn" not in numbers:
        return combine((a, b), x, denoise(x, t)), memory
    return combine((a, b, c), x, denoise(x, t), normal_like(key, x)), memory


def ddim(churn: Any = 0.0) -> Solver:
    """DDIM, x_s = A x_t + B x̂0 + C ε (`guidejax.processes.bridge`; Song et al. 2010.02502).

    Exact for the bridge of Galashov et al. 2510.00815, Eq. (6): with the true x0 the marginals of
    x_s are those of the process whatever the churn. First order; exact where x̂0 is constant.

    Without churn the times may also rise: DDIM inversion, from an image to the noise that it comes
    from (Song et al. 2010.02502, §5.4; Dhariwal & Nichol 2105.05233, App. F). It starts a little
    above t = 0, where there is no noise to scale: `uniform_times(50, stop=0.02)[::-1]`.

    Args:
        churn: e in [0, 1]: 0 is the deterministic DDIM, which draws no noise, 1 is DDPM's
            ancestral sampling.

    Raises:
        ValueError: If churn is not in [0, 1].

    Example:
        >>> ddim(churn=0.5).numbers
        {'churn': 0.5}
    """
    check_range("ddim", "churn", churn)
    if is_concrete(churn) and np.all(np.asarray(churn) == 0):
        return Solver({}, _step, both_ways=True)
    return Solver({"churn": churn}, _step)

"""DPM-Solver++(2M), for the ODE and the SDE."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, Tree, combine, is_concrete, tree_map
from guidejax._random import normal_like
from guidejax.processes.base import bridge
from guidejax.solvers.base import Solver, check_range, lengths


class Multistep(NamedTuple):
    """The x̂0 of the step before and its length in λ = log(α/σ); 0 where it is of no use."""

    x0: Tree
    length: Array


def _start(x: Tree, t: Array) -> Multistep:
    return Multistep(tree_map(jnp.zeros_like, x), jnp.zeros_like(t))


def _step(numbers, denoise, process, x, t, s, key, memory):
    a, b, c = bridge(process, s, t, numbers.get("churn", 0.0))
    length, lean = lengths(process, s, t, memory.length)  # 0 where x̂0 is taken as it is
    x0 = denoise(x, t)
    midway = combine((1 + lean, -lean), x0, memory.x0)
    after = Multistep(x0, length.astype(memory.length.dtype))
    if "churn" not in numbers:
        return combine((a, b), x, midway), after
    return combine((a, b, c), x, midway, normal_like(key, x)), after


def dpmpp_2m(churn: Any = 0.0) -> Solver:
    """DPM-Solver++(2M): DDIM's step with x̂0 extrapolated to mid-step.

    x̂0 + (h/2h') (x̂0 − x̂0'), with x̂0' the prediction of the step before and h, h' the lengths of
    both in λ = log(α/σ) (Lu et al. 2211.01095, Algorithm 2). Second order at one prediction a step.
    The first step, the first after guidance turns on or off, a step after one from pure noise, and
    a step into s = 0 have no h or h' and are DDIM's. With churn = 1 it is SDE-DPM-Solver++(2M);
    between, it keeps part of the noise, as `ddim` does.

    Args:
        churn: e in [0, 1]: 0 is the ODE, which draws no noise, 1 the SDE.

    Raises:
        ValueError: If churn is not in [0, 1].

    Example:
        >>> dpmpp_2m(churn=1.0).numbers
        {'churn': 1.0}
    """
    check_range("dpmpp_2m", "churn", churn)
    if is_concrete(churn) and np.all(np.asarray(churn) == 0):
        return Solver({}, _step, init=_start, multistep=True)
    return Solver({"churn": churn}, _step, init=_start, multistep=True)

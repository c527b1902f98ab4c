"""CFG++ on any solver of one prediction a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from guidejax._arrays import combine
from guidejax.solvers._replay import evaluations
from guidejax.solvers.base import Solver, check_range


@dataclasses.dataclass(frozen=True)
class _Renoised:
    step: Callable[..., Any]

    def __call__(self, numbers, denoise, process, x, t, s, key, memory):
        guided, branches = denoise.with_branches(x, t)
        uncond, lam = branches["uncond"], jnp.asarray(numbers["lam"])
        x0 = combine((1 - lam, lam), uncond, guided)
        # α x̂0 + σ ε̂_u: where the guided x0 would have the noise that the unconditional model saw.
        alpha = process.alpha(t)
        x = combine((1, alpha, -alpha), x, x0, uncond)
        known = lambda x, t: x0  # noqa: E731
        return self.step(numbers["solver"], known, process, x, t, s, key, memory)


def cfgpp(solver: Solver, lam: Any = 0.6) -> Solver:
    """CFG++: denoise with u + λ (c − u), add back the unconditional noise (Chung et al. 2024).

    The solver steps from x' = α x̂0 + σ ε̂_u in place of x: for `ddim`, `euler` (on rectified flow)
    and `ancestral` this is the update of arXiv 2406.08070 and of ComfyUI; for `dpmpp_2m` the
    extrapolation is that of the guided x̂0, where ComfyUI subtracts an unconditional one. A DDIM
    step is one of plain CFG with the ω of `cfgpp_omega`, so that a fixed λ means more guidance the
    finer the grid.

    λ interpolates: c is what `guidance` returns, the conditional model by default; leave it out of
    `sample`. The unconditional pass is made at every step.

    Args:
        solver: A solver of one evaluation a step.
        lam: λ in [0, 1], which is no ω: a number or (batch,); 0 is the unconditional model.

    Raises:
        ValueError: If λ is not in [0, 1] or the solver has more evaluations a step.

    Example:
        >>> from guidejax.solvers import ddim
        >>> cfgpp(ddim(), 0.6).branches
        ('uncond',)
    """
    check_range("cfgpp", "lam", lam)
    if evaluations(solver) != 1:
        raise ValueError(
            "cfgpp expects a solver of one evaluation a step, at (x_t, t); this one has "
            f"{evaluations(solver)}."
        )
    return dataclasses.replace(
        solver,
        numbers={"lam": lam, "solver": solver.numbers},
        step=_Renoised(solver.step),
        branches=("uncond", *solver.branches),
        both_ways=False,
    )

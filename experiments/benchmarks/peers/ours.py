"""guidejax: that of this revision, or of an earlier one whose folder comes first on sys.path.

So it asks the guidejax that it finds where names are, and whether `sample` takes the process.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import guidejax as gj
from experiments.benchmarks.jax_worker import Arrays, Sampler, serve
from experiments.benchmarks.problem import Row
from experiments.benchmarks.worker import Missing

# Those that take the row's number.
NUMBERED = ("ddim", "edm_heun", "dpmpp_2m", "ancestral")


def named(family: str, name: str) -> Callable[..., Any]:
    """`gj.family.name`, or `gj.name` where the family's members stand on top.

    Raises:
        Missing: If this guidejax has neither.
    """
    for place in (getattr(gj, family, None), gj):
        if found := getattr(place, name, None):
            return found
    raise Missing(f"no such {family.removesuffix('s')}")


def solver_of(row: Row, omega: Any) -> Any:
    """The row's; CFG++ takes λ."""
    if row.solver == "cfgpp":
        return named("solvers", "cfgpp")(named("solvers", "ddim")(), omega)
    make = named("solvers", row.solver)
    return make(row.number) if row.solver in NUMBERED else make()


def build(row: Row, arrays: Arrays) -> Sampler:
    """`guidejax.sample`, called as a user calls it."""
    process = named("processes", "rectified_flow")()
    draw: Any = gj.sample  # its arguments are the revision's
    given = [process] if "process" in inspect.signature(draw).parameters else []
    denoise = gj.denoiser(arrays.network, process, prediction="velocity", params=arrays.params)
    times = np.asarray(arrays.times)
    solver_of(row, row.omega)  # says at once where there is none

    def sample(omega: Any, key: Any, labels: Any, noise: Any, denoise: Any) -> Any:
        weight = omega if row.whole else named("schedules", "interval")(omega, row.lo, row.hi)
        guidance = None if row.solver == "cfgpp" else gj.guidance(gj.cfg, omega=weight)
        return draw(
            key, denoise, *given, noise, cond=labels, uncond=arrays.null, guidance=guidance,
            solver=solver_of(row, omega), times=times,
        )  # fmt: skip

    def call(omega: float, seed: int, labels: Any) -> Any:
        return sample(omega, jax.random.key(seed), labels, arrays.noise, denoise)

    def program() -> Any:
        """What a user's own jit makes of the same call; ω = 0 is known there, and traced others."""
        traced = (jax.random.key(0), arrays.labels, arrays.noise, denoise)
        if row.omega == 0:
            return jax.jit(lambda *rest: sample(0.0, *rest)).lower(*traced).compile()
        return jax.jit(sample).lower(row.omega, *traced).compile()

    return Sampler(call, program)


if __name__ == "__main__":
    serve(build)

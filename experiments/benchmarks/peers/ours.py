"""guidejax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np

import guidejax as gj
from experiments.benchmarks.jax_worker import Arrays, Sampler, serve
from experiments.benchmarks.problem import Row
from guidejax import sampling, solvers

SOLVERS: dict[str, Callable[[Row], gj.solvers.Solver]] = {
    "ddim": lambda row: solvers.ddim(row.number),
    "euler": lambda row: solvers.euler(),
    "heun": lambda row: solvers.heun(),
    "edm_heun": lambda row: solvers.edm_heun(row.number),
    "dpmpp_2m": lambda row: solvers.dpmpp_2m(row.number),
    "ancestral": lambda row: solvers.ancestral(row.number),
}


def build(row: Row, arrays: Arrays) -> Sampler:
    """`guidejax.sample`, called as a user calls it."""
    process = gj.processes.rectified_flow()
    denoise = gj.denoiser(arrays.network, process, "velocity", params=arrays.params)
    times = np.asarray(arrays.times)

    def call(omega: float, seed: int, labels: Any) -> Any:
        if row.solver == "cfgpp":
            solver, guidance = solvers.cfgpp(solvers.ddim(), omega), None
        else:
            weight = omega if row.whole else gj.interval(omega, row.lo, row.hi)
            solver, guidance = SOLVERS[row.solver](row), gj.guidance(gj.cfg, weight)
        return gj.sample(
            jax.random.key(seed), denoise, arrays.noise, cond=labels, uncond=arrays.null,
            guidance=guidance, solver=solver, times=times,
        )  # fmt: skip

    def program() -> Any:
        """The program that `call` runs: what its one jitted function is given, lowered again."""
        with mock.patch.object(sampling, "_run", wraps=sampling._run) as seen:
            call(row.omega, 0, arrays.labels)
        return sampling._run.lower(*seen.call_args.args, **seen.call_args.kwargs).compile()

    return Sampler(call, program)


if __name__ == "__main__":
    serve(build)

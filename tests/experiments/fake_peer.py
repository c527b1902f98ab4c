"""A peer that is the bare evaluations themselves: what the worker's protocol needs, and no more."""

from typing import Any

from experiments.benchmarks.jax_worker import Arrays, Sampler, floor, jitted, serve
from experiments.benchmarks.problem import Row
from experiments.benchmarks.worker import Missing


def build(row: Row, arrays: Arrays) -> Sampler:
    if row.solver == "heun":
        raise Missing("no such solver")
    bare = floor(row, arrays)

    def sample(omega: Any, key: Any, labels: Any, noise: Any, params: Any) -> Any:
        away = 1.0 if row.solver == "euler" else 0.0
        return bare(params, noise, labels, arrays.null) + away

    return jitted(sample, row, arrays)


if __name__ == "__main__":
    serve(build)

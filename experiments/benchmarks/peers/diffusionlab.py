"""DiffusionLab: a Python loop over the steps, jitted here as a whole."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from diffusionlab.processes.gaussian import FlowMatching
from diffusionlab.sampling.base import sample as run
from diffusionlab.sampling.continuous import DDMSampler, EulerSampler
from diffusionlab.sampling.guidance import CFG
from diffusionlab.typing import Prediction

from experiments.benchmarks.jax_worker import Arrays, Sampler, jitted, serve
from experiments.benchmarks.problem import Row
from experiments.benchmarks.worker import Missing


class From(FlowMatching):
    """Its flow matching, from the noise that all contenders start from."""

    def __init__(self, noise: Any):
        super().__init__(noise.shape[1:])
        self.noise = noise

    def sample_from_terminal(self, key: Any, batch_size: int) -> Any:
        """That noise."""
        return self.noise, {}


class Ancestral(DDMSampler):
    """Its DDPM, with guidejax's key of each step."""

    def __init__(self, process: Any, key: Any, eta: float):
        super().__init__(process, eta=eta)
        self.key, self.steps = key, 0

    def update(self, key: Any, prediction: Any, current_step: Any, s: Any) -> Any:
        """One step."""
        key = jax.random.fold_in(self.key, self.steps)
        self.steps += 1
        return super().update(key, prediction, current_step, s)


def build(row: Row, arrays: Arrays) -> Sampler:
    """Its `sample` with its CFG; it takes the scale ω + 1, a function of t where it varies."""
    batch = arrays.size.batch
    if row.solver not in ("ddim", "euler", "ancestral") or (row.solver == "ddim" and row.number):
        raise Missing("no such solver")

    def sample(omega: Any, key: Any, labels: Any, noise: Any, params: Any) -> Any:
        def network(x: Any, s: Any, t: Any, cond: Any, aux: Any) -> Prediction:
            label = arrays.null if cond is None else cond
            return Prediction(value=arrays.network(params, x, t, label), kind="v_t")

        def scale(t: Any) -> Any:
            inside = (t >= row.lo) & (t <= row.hi)
            return 1 + jnp.where(inside, omega, 0.0)

        process = From(noise)
        sampler: Any = EulerSampler(process)
        if row.solver != "euler":
            sampler = Ancestral(process, key, row.number)
        times = [jnp.full(batch, t) for t in arrays.times]
        return run(key, sampler, network, batch, times, labels, [CFG(scale)])

    return jitted(sample, row, arrays)


if __name__ == "__main__":
    serve(build)

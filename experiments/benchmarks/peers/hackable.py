"""hackable_diffusion: guidance that always makes both passes, one scan and a last step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hackable_diffusion.lib.corruption.gaussian import GaussianProcess
from hackable_diffusion.lib.corruption.schedules import RFSchedule
from hackable_diffusion.lib.inference.diffusion_inference import GuidedDiffusionInferenceFn
from hackable_diffusion.lib.inference.guidance import LimitedIntervalGuidanceFn, ScalarGuidanceFn
from hackable_diffusion.lib.sampling.base import StepInfo
from hackable_diffusion.lib.sampling.gaussian_step_sampler import DDIMStep, HeunStep, VelocityStep
from hackable_diffusion.lib.sampling.sampling import DiffusionSampler

from experiments.benchmarks.jax_worker import Arrays, Sampler, jitted, serve
from experiments.benchmarks.problem import Row
from experiments.benchmarks.worker import Missing

# Its own schedules keep this far from both ends, where its conversions divide by 0.
EDGE = 1e-6


@dataclasses.dataclass(frozen=True)
class Grid:
    """Its protocol of a time schedule, with guidejax's times and guidejax's key of each step."""

    times: Any
    key: Any

    def all_step_infos(self, rng: Any, num_steps: int, data_spec: Any) -> StepInfo:
        """Times and keys of every point; a step draws with the key of the point it ends in."""
        assert num_steps == len(self.times)
        times = jnp.clip(jnp.asarray(self.times), EDGE, 1 - EDGE)
        times = times.reshape(-1, 1, *[1] * (data_spec.ndim - 1))
        keys = jax.vmap(lambda i: jax.random.fold_in(self.key, i))(jnp.arange(num_steps) - 1)
        shape = (num_steps, len(data_spec), *times.shape[2:])
        return StepInfo(step=jnp.arange(num_steps), time=jnp.broadcast_to(times, shape), rng=keys)


def build(row: Row, arrays: Arrays) -> Sampler:
    """Its `DiffusionSampler` with the guidance of the row."""
    process = GaussianProcess(schedule=RFSchedule())
    times = arrays.times
    if row.solver == "heun":
        # Two of its points a step, the first step's end among them; the last is a step of Euler.
        times = np.append(np.repeat(times[:-1], 2)[:-1], times[-1:])
        times[1:-1:2] = times[2::2]

    def stepper(grid: Grid) -> Any:
        if row.solver == "ddim":  # its coefficient is the square of guidejax's churn
            return DDIMStep(corruption_process=process, stoch_coeff=row.number**2)
        if row.solver == "euler":
            return VelocityStep(corruption_process=process, stoch_coeff=0.0)
        if row.solver == "heun":
            return HeunStep(
                corruption_process=process, time_schedule=grid, num_steps=len(grid.times)
            )
        raise Missing("no such solver")

    stepper(Grid(times, None))

    def sample(omega: Any, key: Any, labels: Any, noise: Any, params: Any) -> Any:
        def network(time: Any, xt: Any, conditioning: Any) -> dict[str, Any]:
            label = arrays.null if conditioning is None else conditioning["label"]
            return {"velocity": arrays.network(params, xt, time.reshape(len(xt)), label)}

        guide: Any = ScalarGuidanceFn(guidance=omega)
        if not row.whole:
            guide = LimitedIntervalGuidanceFn(guidance=omega, lower=row.lo, upper=row.hi)
        grid = Grid(times, key)
        sampler = DiffusionSampler(
            time_schedule=grid, stepper=stepper(grid), num_steps=len(times), store_trajectory=False
        )
        guided = GuidedDiffusionInferenceFn(base_inference_fn=network, guidance_fn=guide)
        return sampler(guided, key, noise, {"label": labels})[0].xt

    return jitted(sample, row, arrays)


if __name__ == "__main__":
    serve(build)

"""diffusers: its guiders and schedulers around the network in PyTorch; eager, or compiled."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from diffusers.guiders import ClassifierFreeGuidance
from torch._dynamo.utils import counters

from experiments.benchmarks.peers.network_torch import Velocity
from experiments.benchmarks.problem import SIZES, Problem, Row, make
from experiments.benchmarks.worker import Missing, serve

COMPILE = bool(os.environ.get("BENCHMARK_TORCH_COMPILE"))


class Diffusers:
    """A `worker.Contender`."""

    def __init__(self, row: Row, problem: Problem, device: str | None = None):
        if row.solver not in ("euler", "heun", "dpmpp_2m", "ddim") or (
            row.solver == "ddim" and row.number
        ):
            raise Missing("no such solver")
        if row.solver == "dpmpp_2m" and row.number:
            raise Missing("its noise comes from PyTorch's generator")
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.row, self.problem = row, problem
        put = lambda array: torch.tensor(array, device=self.device)  # noqa: E731
        self.noise, self.null = put(problem.noise), put(problem.null).long()
        self.labels = put(problem.labels).long()
        self.network: Any = Velocity(problem, self.device)
        if COMPILE:
            self.network = torch.compile(self.network)
        self.steps = problem.size.steps

    def _scheduler(self) -> Any:
        """On guidejax's times: σ = t on rectified flow."""
        times = torch.tensor(self.problem.times)
        if self.row.solver == "heun":
            scheduler: Any = FlowMatchHeunDiscreteScheduler()
            scheduler.set_timesteps(self.steps, device=self.device)
            times = torch.cat([times[:1], times[1:-1].repeat_interleave(2), times[-1:]])
        elif self.row.solver == "dpmpp_2m":
            scheduler = DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2,
                algorithm_type="dpmsolver++", solver_type="midpoint",
            )  # fmt: skip
            scheduler.set_timesteps(self.steps, device=self.device)
        else:  # DDIM without churn is Euler's method on rectified flow
            scheduler = FlowMatchEulerDiscreteScheduler()
            scheduler.set_timesteps(sigmas=times[:-1].tolist(), device=self.device)
        # On the host, as DPMSolverMultistepScheduler keeps them.
        scheduler.sigmas = times
        scheduler.timesteps = 1000 * times[:-1]
        scheduler.set_begin_index(0)
        return scheduler

    @torch.inference_mode()
    def _run(self, omega: float, labels: Any) -> Any:
        guided = self.row.guided(self.steps)
        first = guided.index(True) if any(guided) else 0
        guider = ClassifierFreeGuidance(
            guidance_scale=1 + omega,
            start=(first + 1e-3) / self.steps,
            stop=1.0 if self.row.whole else (first + sum(guided) + 1e-3) / self.steps,
        )
        scheduler, x = self._scheduler(), self.noise
        times = (scheduler.timesteps / 1000).to(self.device)  # once: a copy waits for the device
        for i, timestep in enumerate(scheduler.timesteps):
            t = times[i].expand(len(x))
            step = (i + 1) // 2 if self.row.solver == "heun" else i
            guider.set_state(step=step, num_inference_steps=self.steps, timestep=timestep)
            batches = guider.prepare_inputs({"label": (labels, self.null)})
            for batch in batches:
                guider.prepare_models(self.network)
                batch.noise_pred = self.network(x, t, batch.label)
                guider.cleanup_models(self.network)
            x = scheduler.step(guider(batches).pred, timestep, x, return_dict=False)[0]
        return self._wait(x)

    @torch.inference_mode()
    def _run_floor(self) -> Any:
        x, i = self.noise, 0
        for count, stages, branches in self.row.passes(self.steps):
            for _ in range(count):
                t = torch.full((len(x),), float(self.problem.times[i]), device=self.device)
                for _ in range(stages):
                    v = self.network(x, t, self.labels)
                    if branches == 2:
                        v = v + self.row.omega * (v - self.network(x, t, self.null))
                    x = x - v / (stages * self.steps)
                i += 1
        return self._wait(x)

    def _wait(self, x: Any) -> Any:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return x

    def first(self) -> np.ndarray:
        """See `worker.Contender`."""
        return self._run(self.row.omega, self.labels).cpu().numpy()

    def cost(self) -> dict[str, float | None]:
        """Peak memory less what was there before; PyTorch tells it on a GPU only."""
        found: dict[str, float | None] = {}
        for name, run in (("floor_", self._run_floor), ("", self.first)):
            found[f"{name}flops"] = found[f"{name}temp_bytes"] = None
            if self.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                run()
                found[f"{name}temp_bytes"] = torch.cuda.max_memory_allocated() - before
        return found

    def compilations(self) -> int | None:
        """See `worker.Contender`: none without torch.compile."""
        if not COMPILE:
            return 0
        tiny = Diffusers(self.row, make(SIZES["tiny"]))
        before = counters["stats"]["unique_graphs"]
        for i in range(20):
            labels = (tiny.labels + i) % tiny.problem.size.classes
            tiny._run(self.row.omega * (0.5 + i / 40), labels)
        return counters["stats"]["unique_graphs"] - before

    def time(self, floor_first: bool) -> tuple[float, float]:
        """See `worker.Contender`."""
        seconds = {}
        for name in ("floor", "run") if floor_first else ("run", "floor"):
            start = time.perf_counter()
            _ = self._run_floor() if name == "floor" else self._run(self.row.omega, self.labels)
            seconds[name] = time.perf_counter() - start
        return seconds["floor"], seconds["run"]


def main() -> None:
    """Answer."""
    torch.backends.cuda.matmul.allow_tf32 = False
    serve(Diffusers, time.perf_counter)


if __name__ == "__main__":
    main()

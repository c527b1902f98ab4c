"""What the JAX contenders share: the floor, timing, FLOPs, compilations."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import flops, worker
from experiments.benchmarks import problem as problems
from experiments.benchmarks.network import velocity
from experiments.benchmarks.problem import SIZES, Problem, Row, Size

VALUES = 20
COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A problem on the device."""

    size: Size
    params: dict[str, Any]
    noise: Any
    labels: Any
    null: Any
    times: np.ndarray

    def network(self, params: Any, x: Any, t: Any, labels: Any) -> Any:
        """The velocity; t is (batch,)."""
        return velocity(self.size, params, x, t, labels)


def on_device(problem: Problem) -> Arrays:
    """The weights in the network's dtype; the state stays float32."""
    params = {k: jnp.asarray(v, problem.size.dtype) for k, v in problem.params.items()}
    labels, null = jnp.asarray(problem.labels), jnp.asarray(problem.null)
    arrays = Arrays(problem.size, params, jnp.asarray(problem.noise), labels, null, problem.times)
    return jax.block_until_ready(arrays.params) and arrays


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A contender's sampler of one row: how it is called, and the program that then runs."""

    call: Callable[[float, int, Any], Any]
    program: Callable[[], Any]


def jitted(sample: Callable[..., Any], row: Row, arrays: Arrays) -> Sampler:
    """Of `sample(omega, key, labels, noise, params)`, all of them traced."""
    fast = jax.jit(sample)

    def given(omega: float, seed: int, labels: Any) -> tuple[Any, ...]:
        return omega, jax.random.key(seed), labels, arrays.noise, arrays.params

    return Sampler(
        lambda *ask: fast(*given(*ask)),
        lambda: fast.lower(*given(row.omega, 0, arrays.labels)).compile(),
    )


def floor(row: Row, arrays: Arrays) -> Callable[..., Any]:
    """The bare scans of the network evaluations that the row needs: Euler's method by hand."""
    steps = len(arrays.times) - 1

    def run(params: Any, x: Any, labels: Any, null: Any) -> Any:
        def body(x: Any, t: Any, stages: int, branches: int) -> tuple[Any, None]:
            times = jnp.full(len(x), t)
            for _ in range(stages):
                v = arrays.network(params, x, times, labels)
                if branches == 2:
                    v = v + row.omega * (v - arrays.network(params, x, times, null))
                x = x - v / (stages * steps)
            return x, None

        start = 0
        for count, stages, branches in row.passes(steps):
            step = functools.partial(body, stages=stages, branches=branches)
            x, _ = jax.lax.scan(step, x, jnp.asarray(arrays.times[start : start + count]))
            start += count
        return x

    return run


class JaxContender:
    """A `worker.Contender`."""

    def __init__(self, build: Callable[[Row, Arrays], Sampler], row: Row, problem: Problem):
        self._build, self._row, self._arrays = build, row, on_device(problem)
        self._sampler = build(row, self._arrays)
        self._floor = jax.jit(floor(row, self._arrays))

    def _run_floor(self) -> Any:
        arrays = self._arrays
        return self._floor(arrays.params, arrays.noise, arrays.labels, arrays.null)

    def _run(self) -> Any:
        return self._sampler.call(self._row.omega, 0, self._arrays.labels)

    def first(self) -> np.ndarray:
        """See `worker.Contender`."""
        return np.asarray(self._run(), np.float32)

    def again(self) -> float:
        """Seconds to the first samples once more, with every program forgotten."""
        jax.clear_caches()
        start = time.perf_counter()
        self.first()
        return time.perf_counter() - start

    def cost(self) -> dict[str, float | None]:
        """See `worker.Contender`."""
        arrays = self._arrays
        found: dict[str, float | None] = {}
        bare = self._floor.lower(arrays.params, arrays.noise, arrays.labels, arrays.null)
        for name, program in (("", self._sampler.program()), ("floor_", bare.compile())):
            memory = program.memory_analysis()
            text = program.as_text() or ""
            found[f"{name}flops"] = flops.count(text)
            found[f"{name}instructions"] = flops.instructions(text)
            found[f"{name}temp_bytes"] = memory and memory.temp_size_in_bytes
        return found

    def compilations(self) -> int:
        """See `worker.Contender`; on a tiny network, as size changes nothing of it."""
        arrays = on_device(problems.make(SIZES["tiny"]))
        sampler = self._build(self._row, arrays)
        events: list[str] = []
        listen = lambda event, duration_secs, **_: events.append(event)  # noqa: E731
        for i in range(VALUES):
            labels = jnp.asarray((np.asarray(arrays.labels) + i) % arrays.size.classes)
            omega = self._row.omega * (0.5 + i / (2 * VALUES))
            jax.block_until_ready(sampler.call(omega, i, labels))
            if i == 0:  # helpers of JAX itself compile in the first call; one is the sampler's
                jax.monitoring.register_event_duration_secs_listener(listen)
        return 1 + events.count(COMPILED)

    def time(self, floor_first: bool) -> tuple[float, float]:
        """See `worker.Contender`."""
        seconds = {}
        for name in ("floor", "run") if floor_first else ("run", "floor"):
            start = time.perf_counter()
            jax.block_until_ready(self._run_floor() if name == "floor" else self._run())
            seconds[name] = time.perf_counter() - start
        return seconds["floor"], seconds["run"]


def serve(build: Callable[[Row, Arrays], Sampler]) -> None:
    """Answer as a contender whose sampler `build` makes."""
    worker.serve(functools.partial(JaxContender, build), time.perf_counter)

"""Solvers of several evaluations a step: the network once in the program, or once an evaluation.

    python -m experiments.benchmarks.program_size              # minutes, on this machine
    python -m experiments.benchmarks.program_size --publish    # and write docs/program-size.md

`gj.sample` loops over evaluations and runs a solver's own arithmetic again for each, so that the
network stands once in its program. Written by hand, a loop over steps holds a copy of it for each
call of the step. Both are compiled and timed here, in turn, with the same samples.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.progress import track

import guidejax as gj
from experiments.benchmarks import network, problem
from experiments.benchmarks.report import markdown_table, printed, spread
from experiments.benchmarks.sampling import machine

SOLVERS = ("ddim", "heun", "midpoint", "rk4")
SIZE = problem.Size(16, 4, 2, width=128, depth=6, heads=4, batch=4, steps=20, dtype="float32")


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare the loop over evaluations with a loop over steps."""

    rounds: int = 9
    """Timings of each program."""
    firsts: int = 3
    """Compilations of each."""
    out: pathlib.Path = pathlib.Path("runs/benchmarks/program-size")
    """Where results.json goes."""
    publish: bool = False
    """Write docs/program-size.md and its file too."""
    docs: pathlib.Path = pathlib.Path("docs")
    """Where that is."""


def runs(size: problem.Size, name: str) -> dict[str, Any]:
    """{"evaluations", "steps"}: functions of ω, equal but for rounding."""
    arrays = problem.make(size)
    process, params = gj.processes.rectified_flow(), jax.tree.map(jnp.asarray, arrays.params)
    denoise = gj.denoiser(
        functools.partial(network.velocity, size), process, "velocity", params=params
    )
    noise, labels = jnp.asarray(arrays.noise), jnp.asarray(arrays.labels)
    solver, times = getattr(gj.solvers, name)(), gj.uniform_times(size.steps)
    branches: dict[str, Any] = {"cond": labels, "uncond": size.classes}

    def evaluations(omega: jax.Array) -> jax.Array:
        guide = gj.guidance(gj.cfg, omega)
        return gj.sample(
            jax.random.key(0), denoise, noise, guidance=guide, solver=solver, times=times,
            **branches,
        )  # fmt: skip

    def steps(omega: jax.Array) -> jax.Array:
        field = gj.guided(denoise, gj.guidance(gj.cfg, omega), **branches)

        def step(carry, at):
            x, memory = solver.step(solver.numbers, field, process, carry[0], *at, None, carry[1])
            return (x, memory), None

        carry = (noise, solver.init(noise, jnp.asarray(times[0])))
        carry, _ = jax.lax.scan(step, carry, (jnp.asarray(times[:-2]), jnp.asarray(times[1:-1])))
        return step(carry, (jnp.asarray(times[-2]), times[-1]))[0][0]  # into data, as its paper has

    return {"evaluations": evaluations, "steps": steps}


def measure(size: problem.Size, name: str, rounds: int, firsts: int) -> dict[str, Any]:
    """{loop: bytes of the program's text, seconds to compile and of each run}, in turn."""
    made = runs(size, name)
    found: dict[str, Any] = {loop: {"first": [], "seconds": []} for loop in made}
    programs: dict[str, Any] = {}
    omega = jnp.float32(2)
    for _ in range(firsts):
        for loop, run in made.items():
            jax.clear_caches()
            start = time.perf_counter()
            programs[loop] = jax.jit(run).lower(omega).compile()
            programs[loop](omega).block_until_ready()
            found[loop]["first"].append(time.perf_counter() - start)
    samples = {loop: np.asarray(program(omega)) for loop, program in programs.items()}
    np.testing.assert_allclose(samples["evaluations"], samples["steps"], rtol=1e-3, atol=1e-4)
    for _ in range(rounds):
        for loop, program in programs.items():
            start = time.perf_counter()
            program(omega).block_until_ready()
            found[loop]["seconds"].append(time.perf_counter() - start)
    for loop, program in programs.items():
        found[loop]["bytes"] = len(program.as_text())
    return found


def ratio(row: dict[str, Any], what: str) -> dict[str, float]:
    """The loop over steps over ours, measure by measure."""
    return spread(np.divide(row["steps"][what], row["evaluations"][what]))


def table(results: dict[str, Any]) -> str:
    """A row a solver."""
    head = [
        "solver", "program, KB", "of a loop over steps, KB", "its first samples / ours",
        "its time / ours",
    ]  # fmt: skip
    lines = []
    for name, row in results["rows"].items():
        sizes = [f"{row[loop]['bytes'] / 1e3:.0f}" for loop in ("evaluations", "steps")]
        lines.append(
            [f"`{name}`", *sizes, printed(ratio(row, "first")), printed(ratio(row, "seconds"))]
        )
    return markdown_table(head, lines)


def page(results: dict[str, Any]) -> str:
    """docs/program-size.md."""
    size = results["size"]
    return f"""# The network once in the program

Written by `python -m experiments.benchmarks.program_size --publish` on
{results["machine"]}; every timing is in `docs/benchmarks/program-size.json`.

`gj.sample` loops over evaluations; a loop over steps holds the network once for each call that the
solver's step makes, and again for the last step, which ends in data. Under CFG, a DiT of width
{size["width"]} and depth {size["depth"]}, batch {size["batch"]}, {size["steps"]} steps.
A program's size is that of its optimised text; first samples are compilation and one run; ratios
are medians (quartiles) of {results["firsts"]} compilations and {results["rounds"]} runs, both loops
in turn.

{table(results)}
"""


def main(config: Config, size: problem.Size = SIZE) -> None:
    """Measure and write the page."""
    config.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "machine": machine(), "size": dataclasses.asdict(size), "rounds": config.rounds,
        "firsts": config.firsts, "rows": {},
    }  # fmt: skip
    for name in track(SOLVERS, "sampling"):
        results["rows"][name] = measure(size, name, config.rounds, config.firsts)
        (config.out / "results.json").write_text(json.dumps(results, indent=1))
    print(table(results), file=sys.stdout)
    if config.publish:
        files = config.docs / "benchmarks"
        files.mkdir(parents=True, exist_ok=True)
        shutil.copy(config.out / "results.json", files / "program-size.json")
        (config.docs / "program-size.md").write_text(page(results))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

"""Gradients through the sampler: memory against time for each choice of `remat`.

    python -m experiments.benchmarks.remat              # minutes, on this machine
    python -m experiments.benchmarks.remat --publish    # and write docs/remat.md

Differentiates the samples of a diffusion transformer in ω and reads the temporary memory of the
compiled program off XLA; times are beside that of sampling alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tyro
from rich.progress import track

import guidejax as gj
from experiments.benchmarks import network, problem
from experiments.benchmarks.report import markdown_table, printed, spread
from experiments.benchmarks.sampling import machine

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from guidejax._scan import Remat

CHOICES: tuple[Remat, ...] = get_args(Remat)
SIZE = problem.Size(16, 4, 2, width=64, depth=2, heads=4, batch=4, steps=0, dtype="float32")


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure what `remat` saves and costs."""

    steps: tuple[int, ...] = (25, 100, 400)
    """Steps of the sampler."""
    rounds: int = 5
    """Timings of each program."""
    out: pathlib.Path = pathlib.Path("runs/benchmarks/remat")
    """Where results.json and figure.png go."""
    publish: bool = False
    """Write docs/remat.md and its files too."""
    docs: pathlib.Path = pathlib.Path("docs")
    """Where that is."""


def programs(size: problem.Size, steps: int) -> dict[str, Any]:
    """The compiled sampler, and its compiled gradient in ω under each choice."""
    arrays = problem.make(size)
    process, params = gj.processes.rectified_flow(), jax.tree.map(jnp.asarray, arrays.params)
    denoise = gj.denoiser(
        functools.partial(network.velocity, size), process, "velocity", params=params
    )
    noise, labels = jnp.asarray(arrays.noise), jnp.asarray(arrays.labels)

    def run(remat: Remat, omega: jax.Array) -> jax.Array:
        x0 = gj.sample(
            jax.random.key(0), denoise, noise, cond=labels, uncond=size.classes,
            guidance=gj.guidance(gj.cfg, omega), times=gj.uniform_times(steps), remat=remat,
        )  # fmt: skip
        return jnp.mean(x0**2)

    def compiled(function: Callable[[jax.Array], jax.Array]) -> Any:
        return jax.jit(function).lower(jnp.float32(2)).compile()

    found = {"sampling": compiled(functools.partial(run, "none"))}
    return found | {r: compiled(jax.grad(functools.partial(run, r))) for r in CHOICES}


def measure(size: problem.Size, steps: int, rounds: int) -> dict[str, Any]:
    """{program: temporary bytes, seconds of each round}, timed in turn."""
    found = programs(size, steps)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    slopes = {name: float(found[name](jnp.float32(2))) for name in CHOICES}  # warms up as well
    np.testing.assert_allclose(list(slopes.values()), slopes["none"], rtol=1e-3)
    for _ in range(rounds):
        for name, program in found.items():
            start = time.perf_counter()
            program(jnp.float32(2)).block_until_ready()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"bytes": program.memory_analysis().temp_size_in_bytes, "seconds": seconds[name]}
        for name, program in found.items()
    }


def over_sampling(row: dict[str, Any], name: str) -> dict[str, float]:
    """Time over that of sampling, round by round."""
    return spread(np.divide(row[name]["seconds"], row["sampling"]["seconds"]))


def growth(results: dict[str, Any], name: str) -> float:
    """Memory of the longest run over that of the shortest."""
    rows = list(results["rows"].values())
    return rows[-1][name]["bytes"] / rows[0][name]["bytes"]


def table(results: dict[str, Any]) -> str:
    """A row for each number of steps."""
    head = ["steps", *(f"{name}: MiB" for name in CHOICES), *(f"{name}: time" for name in CHOICES)]
    lines = []
    for steps, row in results["rows"].items():
        memory = [f"{row[name]['bytes'] / 2**20:.1f}" for name in CHOICES]
        lines.append([steps, *memory, *(printed(over_sampling(row, name)) for name in CHOICES)])
    return markdown_table(head, lines)


def figure(results: dict[str, Any], path: pathlib.Path) -> None:
    """Memory, and time over that of sampling, against the number of steps."""
    steps = [int(n) for n in results["rows"]]
    rows = list(results["rows"].values())
    drawing, (memory, times) = plt.subplots(1, 2, figsize=(8, 3))
    for name, color in zip(CHOICES, ("#7f7f7f", "#4c78a8", "#e45756"), strict=True):
        memory.loglog(steps, [r[name]["bytes"] / 2**20 for r in rows], "o-", color=color)
        ratios = [over_sampling(r, name)["median"] for r in rows]
        times.semilogx(steps, ratios, "o-", color=color, label=name)
    memory.set_title("temporary memory, MiB")
    times.set_title("time of the gradient / time of sampling")
    times.set_ylim(bottom=0)
    times.legend(frameon=False)
    for axis in (memory, times):
        axis.set_xticks(steps, [str(n) for n in steps])
        axis.minorticks_off()
        axis.set_xlabel("steps")
        axis.spines[["top", "right"]].set_visible(False)
    drawing.tight_layout()
    drawing.savefig(path, dpi=130)
    plt.close(drawing)


def page(results: dict[str, Any]) -> str:
    """docs/remat.md."""
    size, steps = results["size"], list(results["rows"])
    grown = ", ".join(f"{growth(results, name):.1f} with `{name}`" for name in CHOICES)
    return f"""# What the gradient through a run remembers

Written by `python -m experiments.benchmarks.remat --publish` on
{results["machine"]}; every timing is in `docs/benchmarks/remat.json`.

The gradient in ω through `gj.sample`, under each choice of `remat`, of a DiT of width
{size["width"]} and depth {size["depth"]}, batch {size["batch"]}. Memory is what XLA allots for
temporaries. Time is a multiple of that of sampling alone: median (quartiles) of
{results["rounds"]} rounds, all programs in turn in each.

{table(results)}

![Memory and time against the number of steps](benchmarks/remat.png)

From {steps[0]} to {steps[-1]} steps the memory grows by a factor of {grown}.
"step" keeps the states and makes every step's activations again; "recursive" makes states again
too.
"""


def main(config: Config, size: problem.Size = SIZE) -> None:
    """Measure, draw, and write the page."""
    config.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "machine": machine(),
        "size": dataclasses.asdict(size),
        "rounds": config.rounds,
        "rows": {},
    }
    for steps in track(config.steps, "differentiating"):
        results["rows"][str(steps)] = measure(size, steps, config.rounds)
        (config.out / "results.json").write_text(json.dumps(results, indent=1))
    figure(results, config.out / "figure.png")
    print(table(results), file=sys.stdout)
    if config.publish:
        files = config.docs / "benchmarks"
        files.mkdir(parents=True, exist_ok=True)
        shutil.copy(config.out / "results.json", files / "remat.json")
        shutil.copy(config.out / "figure.png", files / "remat.png")
        (config.docs / "remat.md").write_text(page(results))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

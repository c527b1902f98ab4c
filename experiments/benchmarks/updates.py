"""What learning ω takes beside the network's own forward passes.

    python -m experiments.benchmarks.updates              # a few minutes, on this machine
    python -m experiments.benchmarks.updates --publish    # and write docs/updates.md

A frozen diffusion transformer. One update of self-consistency is timed beside the bare evaluations
of as many states, one after another in each round; then `fit` as users call it, without saving and
with, beside the compiled updates alone.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.progress import track

import guidejax as gj
from experiments.benchmarks import flops, network, problem
from experiments.benchmarks.report import markdown_table, printed, spread
from experiments.benchmarks.sampling import machine
from guidejax import learning
from guidejax.learning.training import Program
from guidejax.objectives import Batch

PARTICLES = 2
OPTIMIZER = optax.adam(1e-3)


@dataclasses.dataclass(frozen=True)
class Config:
    """Time an update of ω, and the loop around it."""

    size: Literal["auto", "cpu", "gpu", "tiny"] = "auto"
    """The network, as in `experiments.benchmarks.sampling`."""
    batch: int | None = None
    """Examples of an update; each has two particles."""
    rounds: int = 15
    """Timings of each program."""
    updates: int = 100
    """Of `fit`, in each timing of it."""
    out: pathlib.Path = pathlib.Path("runs/benchmarks/updates")
    """Where the results go."""
    publish: bool = False
    """Write docs/updates.md and docs/benchmarks/updates.json too."""
    docs: pathlib.Path = pathlib.Path("docs")
    """Where that is."""


def seconds(run: Callable[[], Any]) -> float:
    """Of one call, waited for."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def measure(size: problem.Size, config: Config) -> dict[str, Any]:
    """Ratios of one network, with the quartiles of the rounds."""
    made = problem.make(size)
    params = {k: jnp.asarray(v, size.dtype) for k, v in made.params.items()}
    process = gj.processes.rectified_flow()
    denoise = gj.denoiser(
        lambda p, x, t, c: network.velocity(size, p, x, t, c), process, "velocity", params=params
    )
    net = gj.OmegaNet(num_classes=size.classes)
    objective = gj.self_consistency(particles=PARTICLES)
    guide = lambda phi: gj.guidance(gj.cfg, omega=net.weight(phi))  # noqa: E731
    program = Program(guide, OPTIMIZER, jax.random.key_impl(jax.random.key(0)))
    state = learning.init_state(jax.random.key(1), net.init(jax.random.key(0)), OPTIMIZER)
    fixed: Any = (objective, (denoise, {}))
    null = np.full_like(made.labels, size.classes)
    batch = Batch(made.noise[None], made.labels[None], {"uncond": null[None]})
    x, labels, nulls = (np.repeat(a, PARTICLES, 0) for a in (made.noise, made.labels, null))
    times = np.linspace(0.1, 0.9, len(x), dtype=np.float32)

    @jax.jit
    def passes(denoise, x, t, labels, nulls):
        return denoise(x, t, labels), denoise(x, t, nulls)

    step: Any = program.many_steps()
    on_device = jax.device_put((state, fixed, batch, (x, times, labels, nulls)))
    state, fixed, batch, given = on_device
    counted = [
        flops.count(p.as_text() or "")
        for p in (
            step.lower(state, *fixed, batch).compile(),
            passes.lower(denoise, *given).compile(),
        )
    ]
    programs = {
        "step": lambda: step(state, *fixed, batch),
        "passes": lambda: passes(denoise, *given),
    }
    for run in programs.values():
        seconds(run)
    found: dict[str, list[float]] = {name: [] for name in programs}
    for turn in track(range(config.rounds), "an update and its passes"):
        order = list(programs) if turn % 2 else list(programs)[::-1]
        for name in order:
            found[name].append(seconds(programs[name]))
    loops = _loops(config, guide, denoise, net, objective, made, size)
    return {
        "network": dataclasses.asdict(size), "particles": PARTICLES, "seconds": found,
        "flops": counted[0] / counted[1], "time": spread(np.divide(found["step"], found["passes"])),
        **loops,
    }  # fmt: skip


def _loops(
    config: Config, guide: Any, denoise: Any, net: Any, objective: Any, made: Any, size: Any
) -> dict[str, Any]:
    """`fit` over the compiled updates alone, without saving and with."""
    data = {"x0": made.noise, "cond": made.labels}
    ten = 10
    program = Program(guide, OPTIMIZER, jax.random.key_impl(jax.random.key(0)))
    run = learning.training.many_steps(program)
    phi = net.init(jax.random.key(0))
    state = learning.init_state(jax.random.key(1), phi, OPTIMIZER)
    null = np.full_like(made.labels, size.classes)
    stacked = jax.device_put(
        jax.tree.map(
            lambda a: np.stack([a] * ten), Batch(made.noise, made.labels, {"uncond": null})
        )
    )

    def alone() -> Any:
        after = state
        for _ in range(config.updates // ten):
            after, metrics = run(after, objective, (denoise, {}), stacked)
        return after, metrics

    def loop(save_every: Any, directory: str | None) -> Any:
        return gj.fit(
            jax.random.key(1), guide, phi, denoise, itertools.repeat(data), uncond=size.classes,
            objective=objective, optimizer=OPTIMIZER, steps=config.updates, save_every=save_every,
            checkpoint_dir=directory,
        )  # fmt: skip

    times: dict[str, list[float]] = {"alone": [], "fit": [], "saving": [], "never saving": []}
    for turn in track(range(-1, max(config.rounds // 3, 3)), "fit"):
        with tempfile.TemporaryDirectory() as often, tempfile.TemporaryDirectory() as never:
            taken = {
                "alone": seconds(alone),
                "fit": seconds(lambda: loop(config.updates, None)),
                "saving": seconds(lambda: loop(2 * ten, often)),
                "never saving": seconds(lambda: loop(datetime.timedelta(days=1), never)),
            }
        if turn >= 0:
            for name, value in taken.items():
                times[name].append(value)
    saves = config.updates // (2 * ten) - 1
    return {
        "loops": times,
        "fit": spread(np.divide(times["fit"], times["alone"])),
        "saving": spread(np.divide(times["saving"], times["never saving"])),
        "save_s": spread(np.subtract(times["saving"], times["never saving"]) / saves),
    }


def page(results: dict[str, dict[str, Any]]) -> str:
    """docs/updates.md."""
    rows = []
    for where, found in results.items():
        size = found["network"]
        rows.append(
            [
                where,
                f"width {size['width']}, depth {size['depth']}, {size['dtype']}",
                f"{found['particles']} × {size['batch']}",
                f"{1e3 * np.median(found['seconds']['passes']):.3g} ms",
                f"{found['flops']:.4f}", printed(found["time"]),
                printed(found["fit"]), printed(found["saving"]),
            ]
        )  # fmt: skip
    head = ["machine", "network", "states", "passes", "FLOPs / passes", "time / passes",
            "fit / updates", "saving / not"]  # fmt: skip
    return f"""# What learning ω takes

Written by `python -m experiments.benchmarks.updates --publish`, a row a machine;
`docs/benchmarks/updates.json` holds every timing.

* **Passes**: the two evaluations, conditional and unconditional, of as many states as an update of
  self-consistency asks for. *FLOPs / passes* and *time / passes* are those of the whole update over
  them: median (quartiles) of rounds in turns.
* **fit / updates**: `fit` as users call it, which draws, checks and stacks its batches, over the
  compiled updates alone.
* **saving / not**: `fit` with a checkpoint every 20 updates over `fit` that saves once, at its end.

{markdown_table(head, rows)}
"""


def main(config: Config) -> None:
    """Measure, print, publish."""
    name = ("cpu" if jax.default_backend() == "cpu" else "gpu") if config.size == "auto" else None
    size = problem.SIZES[name or config.size]
    size = dataclasses.replace(size, batch=config.batch or size.batch)
    found = measure(size, config)
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "results.json").write_text(json.dumps({machine(): found}, indent=1))
    print(page({machine(): found}))
    if config.publish:
        publish(config.out / "results.json", config.docs)


def publish(results: pathlib.Path, docs: pathlib.Path) -> None:
    """Put the row of one machine beside those of the others."""
    kept = docs / "benchmarks" / "updates.json"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    rows |= json.loads(results.read_text())
    kept.write_text(json.dumps(rows, indent=1))
    (docs / "updates.md").write_text(page(rows))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

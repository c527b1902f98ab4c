"""guidejax's sampler beside the evaluations it needs, and beside other libraries.

    python -m experiments.benchmarks.sampling                 # everything, on this machine
    python -m experiments.benchmarks.sampling --publish       # and write docs/benchmarks.md, or
                                                              # docs/benchmarks-gpu.md on a GPU
    python -m experiments.benchmarks.sampling --peers False --rows cfg heun
    python -m experiments.benchmarks.sampling --against HEAD~3   # beside an earlier guidejax

Every contender runs in a process of its own, with the same weights, noise, labels and times. A row
starts all of them, compares their samples, and only then times them, in turn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.benchmarks import envs, problem, report
from experiments.benchmarks.envs import Environment, Peer
from experiments.benchmarks.problem import ROWS, SIZES, Row, Size
from experiments.benchmarks.worker import ROOT, Failed, Missing, Worker

# ‖difference‖ / ‖samples‖ up to which two samplers are the same.
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-1}


@dataclasses.dataclass(frozen=True)
class Config:
    """Time guidejax's sampler, the bare network evaluations that it needs, and other libraries."""

    size: Literal["auto", "cpu", "gpu", "tiny"] = "auto"
    """The network: auto is a small one on a CPU, and one that fills a GPU where there is one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the network; by default bfloat16 on a GPU and float32 elsewhere."""
    batch: int | None = None
    """Samples at once."""
    cores: int = 1
    """Cores of a CPU that every contender runs on. On several, XLA makes the two passes of a step
    of a network this small side by side, and half the passes take more than half the time."""
    rounds: int = 15
    """Timings of each contender."""
    patience: float = 15.0
    """Minutes that a contender may take over its first samples, or anything else it is asked."""
    rows: tuple[str, ...] = ()
    """Names of rows, in the order in which they are measured; all of them by default."""
    against: str | None = None
    """A git revision, whose guidejax runs beside this one; its table is printed, and published as
    docs/against.md."""
    firsts: int = 5
    """Compilations of each row, of both revisions in turn, where `against` is given."""
    peers: bool | None = None
    """Compare with other libraries, each installed in an environment of its own; by default where
    no earlier revision is compared with."""
    torch_compile: bool | None = None
    """Time torch.compile as well; by default on a GPU."""
    out: pathlib.Path = pathlib.Path("runs/benchmarks/sampling")
    """Where results.json, table.md, figure.png and the logs go."""
    envs: pathlib.Path = pathlib.Path("runs/benchmarks/envs")
    """Where the environments of the peers are."""
    publish: bool = False
    """Write docs/benchmarks.md, or the page of another backend, and its files too."""
    docs: pathlib.Path = pathlib.Path("docs")
    """Where that is."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contender that can run."""

    name: str
    module: str
    environment: Environment
    extra: dict[str, str] = dataclasses.field(default_factory=dict)


def earlier(revision: str, folder: pathlib.Path) -> Entry:
    """guidejax as it was, put into `folder`; everything else is as here."""
    commit, here = envs.checkout(revision, folder), envs.ours()
    environment = Environment(here.python, {**here.versions, "guidejax": commit})
    path = os.pathsep.join([str(folder.resolve()), str(ROOT)])
    return Entry(f"{report.OURS} {commit}", envs.OURS, environment, {"PYTHONPATH": path})


def entries(
    config: Config, peers: tuple[Peer, ...], folder: pathlib.Path, note: Any
) -> tuple[list[Entry], dict]:
    """guidejax, an earlier one, the peers that can be installed, and why the others can't."""
    found, absent = [Entry(report.OURS, envs.OURS, envs.ours())], {}
    if config.against is not None:
        found.append(earlier(config.against, folder / "earlier"))
    wanted = config.against is None if config.peers is None else config.peers
    for peer in peers if wanted else ():
        note(f"installing {peer.name}")
        environment = envs.environment(peer, config.envs)
        if isinstance(environment, str):
            absent[peer.name] = environment
        else:
            found.append(Entry(peer.name, peer.module, environment, peer.extra))
    return found, absent


def measure(
    row: Row, size: Size, contenders: list[Entry], config: Config, folder: pathlib.Path, note: Any
) -> dict[str, Any]:
    """{contender: what was measured, or {"missing": why}} of one row."""
    results: dict[str, Any] = {}
    workers: dict[str, Worker] = {}
    samples: dict[str, np.ndarray] = {}
    limit = 60 * config.patience

    @contextlib.contextmanager
    def or_missing(name: str) -> Iterator[None]:
        """Where this contender can't do what is inside, it takes no further part."""
        try:
            yield
        except (Missing, Failed) as reason:
            results[name] = {"missing": str(reason)}
            workers.pop(name).close()

    try:
        for entry in contenders:  # they import at the same time, and nothing is measured until then
            log = config.out / "logs" / f"{entry.name}.txt"
            worker = Worker(entry.environment.python, entry.module, log, entry.extra)
            workers[entry.name] = worker
        for name, worker in list(workers.items()):
            note(f"{row.name}: {name}, imports")
            with or_missing(name):
                worker.make(row, size, folder / "problem.npz", limit)
        for name, worker in list(workers.items()):
            note(f"{row.name}: {name}, first samples")
            with or_missing(name):
                file = folder / "samples.npy"
                first = worker.first(file, limit)
                samples[name] = np.load(file)
                differs = _difference(samples[name], next(iter(samples.values())))
                results[name] = {"first_s": first, "difference": differs}
                if not differs <= TOLERANCE[size.dtype]:
                    raise Failed(f"its samples differ by {differs:.1g}")
                note(f"{row.name}: {name}, its program")
                compilations = worker.ask("compilations", limit)
                results[name] |= {**worker.ask("cost", limit), "compilations": compilations}
        revisions = [e.name for e in contenders if e.module == envs.OURS and e.name in workers]
        for turn in range(config.firsts if config.against is not None else 0):
            note(f"{row.name}: compilation {turn + 1} of {config.firsts}")
            for name in revisions if turn % 2 else revisions[::-1]:
                again = workers[name].ask("again", limit)
                results[name].setdefault("again_s", []).append(again)
        times: dict[str, list[list[float]]] = {name: [] for name in workers}
        for turn in range(-1, config.rounds):  # the first turn warms up
            note(f"{row.name}: round {max(turn, 0) + 1} of {config.rounds}")
            order = list(workers)
            for name in order if turn % 2 else order[::-1]:
                seconds = workers[name].ask("time", limit, floor_first=turn % 4 < 2)
                if turn >= 0:
                    times[name].append(seconds)
        for name, pairs in times.items():
            results[name] |= {"floor_s": [a for a, _ in pairs], "run_s": [b for _, b in pairs]}
        return {entry.name: results[entry.name] for entry in contenders}
    finally:
        for worker in workers.values():
            worker.close()


def _difference(samples: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(samples - reference) / np.linalg.norm(reference))


def machine() -> str:
    """What it ran on."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    info = pathlib.Path("/proc/cpuinfo")
    names = [
        line.split(":")[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else ())
        if line.startswith("model name")
    ]
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {os.cpu_count()} cores"


@contextlib.contextmanager
def kept_to(cores: int) -> Iterator[int]:
    """Keep the processes started inside to that many cores, the last ones; yields their number."""
    if not hasattr(os, "sched_setaffinity"):
        yield os.cpu_count() or 1
        return
    before = os.sched_getaffinity(0)
    allowed = sorted(before)[-cores:]
    os.sched_setaffinity(0, allowed)
    try:
        yield len(allowed)
    finally:
        os.sched_setaffinity(0, before)


def size_of(config: Config, backend: str) -> Size:
    """The network that the options ask for."""
    name = ("cpu" if backend == "cpu" else "gpu") if config.size == "auto" else config.size
    size = SIZES[name]
    return dataclasses.replace(
        size, dtype=config.dtype or size.dtype, batch=config.batch or size.batch
    )


def chosen_rows(config: Config) -> list[Row]:
    """The rows that the options ask for."""
    unknown = set(config.rows) - {row.name for row in ROWS}
    if unknown:
        known = ", ".join(row.name for row in ROWS)
        raise SystemExit(f"no row {', '.join(sorted(unknown))}; expected {known}.")
    by_name = {row.name: row for row in ROWS}
    return [by_name[name] for name in config.rows or by_name]


def options(config: Config, rows: Iterable[str]) -> str:
    """The command line that publishes these rows; without the options that say where files are."""
    rows = () if set(rows) == {row.name for row in ROWS} else tuple(rows)
    config, words = dataclasses.replace(config, rows=rows), []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default and field.name not in ("out", "envs", "docs", "publish"):
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return shlex.join([*words, "--publish"])


def main(config: Config, peers: tuple[Peer, ...] = envs.PEERS) -> None:
    """Install, compare, time, and write the page."""
    # Several processes share a GPU; by default each of JAX's takes most of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    backend = jax.default_backend()
    size, rows = size_of(config, backend), chosen_rows(config)
    compiled = backend != "cpu" if config.torch_compile is None else config.torch_compile
    peers = tuple(peer for peer in peers if compiled or not peer.extra)
    config.out.mkdir(parents=True, exist_ok=True)
    console = Console(file=sys.stderr, soft_wrap=not sys.stderr.isatty(), log_path=False)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with (
        Progress(*columns, console=console) as progress,
        tempfile.TemporaryDirectory() as name,
        kept_to(config.cores if backend == "cpu" else os.cpu_count() or 1) as cores,
    ):
        task = progress.add_task("sampling", total=len(rows))
        folder = pathlib.Path(name)

        def note(text: str) -> None:
            progress.update(task, description=text)
            if not console.is_terminal:
                console.log(text)

        if backend == "gpu":  # XLA times kernels to choose among them: once for all contenders
            cache = f"--xla_gpu_per_fusion_autotune_cache_dir={folder}"
            os.environ["XLA_FLAGS"] = f"{cache} {os.environ.get('XLA_FLAGS', '')}"
        problem.save(problem.make(size), folder / "problem.npz")
        contenders, absent = entries(config, peers, folder, note)
        results: dict[str, Any] = {
            "machine": machine(),
            "backend": backend,
            "cores": cores if backend == "cpu" else None,
            "size": dataclasses.asdict(size),
            "rounds": config.rounds,
            "tolerance": TOLERANCE[size.dtype],
            "versions": {entry.name: entry.environment.versions for entry in contenders},
            "absent": absent,
            "rows": {},
        }
        if config.against is not None:
            results |= {"against": contenders[1].name, "firsts": config.firsts}
        for row in rows:
            results["rows"][row.name] = measure(row, size, contenders, config, folder, note)
            results["options"] = options(config, results["rows"])
            (config.out / "results.json").write_text(json.dumps(results, indent=1))
            progress.advance(task)
    (config.out / "table.md").write_text(report.tables(results))
    if config.publish:
        (config.docs / "benchmarks").mkdir(parents=True, exist_ok=True)
    if config.against is not None:
        (config.out / "against.md").write_text(report.against(results))
        print(report.against_table(results))
        if config.publish:
            shutil.copy(config.out / "results.json", config.docs / "benchmarks" / "against.json")
            shutil.copy(config.out / "against.md", config.docs / "against.md")
        return
    report.figure(results, config.out / "figure.png")
    for claim in report.claims(results):
        console.print(claim)
    if config.publish:
        shutil.copy(config.out / "results.json", config.docs / report.files(backend)[1])
        report.publish(config.docs)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

"""Compile guidejax for TPUs that aren't there, and read what their compiler made of it.

    python -m experiments.tpu              # an hour on one core; a run that was stopped goes on
    python -m experiments.tpu --publish    # and write docs/scaling.md

Needs the extra "tpu", libtpu. Nothing is run, only compiled: the texts of the programs have their
collectives and their casts, and XLA counts FLOPs, bytes and memory.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.tpu import cells, report, worker
from experiments.tpu.cells import Cell


@dataclasses.dataclass(frozen=True)
class Config:
    """Compile guidejax for TPUs that aren't there."""

    only: tuple[str, ...] = ()
    """Words, all of which a cell's name must hold: `--only billion v5e:2x4`."""
    again: bool = False
    """Compile what is there already too."""
    out: pathlib.Path = pathlib.Path("runs/tpu")
    """Where results.json goes."""
    publish: bool = False
    """Write docs/scaling.md and its files too."""
    docs: pathlib.Path = pathlib.Path("docs")
    """Where that is."""


def compiled(todo: list[Cell]) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Each cell with what was found; a process that one of them ends is followed by another."""
    while todo:
        given = json.dumps([dataclasses.asdict(cell) for cell in todo])
        with subprocess.Popen(
            [sys.executable, "-m", "experiments.tpu.worker"], env=worker.environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdin.write(given)
            process.stdin.close()
            for line in process.stdout:
                if line.startswith("["):
                    name, found = json.loads(line)
                    assert name == todo[0].name
                    yield todo[0], found
                    todo = todo[1:]
            said = process.stderr.read()[-2000:]
        if todo and process.returncode == 0:
            raise RuntimeError(f"the worker ended before its work: {said}")
        if todo:
            yield todo[0], {"error": f"the compiler ended with {process.returncode}: {said}"}
            todo = todo[1:]


def run(config: Config, every: list[Cell]) -> dict[str, Any]:
    """Compile what isn't there yet; results.json is written after each cell."""
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {"cells": {}}
    results["versions"] = {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "libtpu")}
    names = [cell.name for cell in every]
    results["asked"] = len(names)
    before = results["cells"]
    results["cells"] = {name: before[name] for name in names if name in before}
    done = {name for name, found in results["cells"].items() if "error" not in found}
    chosen = [cell for cell in every if all(word in cell.name for word in config.only)]
    todo = [cell for cell in chosen if config.again or cell.name not in done]
    columns = (
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    )  # fmt: skip
    with Progress(*columns) as progress:
        task = progress.add_task("compiling", total=len(todo))
        for cell, found in compiled(todo):
            results["cells"][cell.name] = dataclasses.asdict(cell) | found
            part = path.with_suffix(".part")
            part.write_text(json.dumps(results, indent=1))
            part.replace(path)
            if "error" in found:
                progress.print(f"[red]{cell.name}: {found['error'][:500]}", soft_wrap=True)
            for what in found.get("host", []) + found.get("narrow", []):
                progress.print(f"{cell.name}: {what}", soft_wrap=True)
            progress.update(task, advance=1, description=cell.name)
    return results


def main(config: Config) -> None:
    """Compile, and write the page."""
    if importlib.util.find_spec("libtpu") is None:
        raise SystemExit("libtpu is not installed: pip install -e '.[tpu]'")
    # This process only names cells; the compiler is another's.
    jax.config.update("jax_platforms", "cpu")
    results = run(config, [*cells.billion(), *cells.branches(), *cells.small()])
    if config.publish:
        report.publish(results, config.docs)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

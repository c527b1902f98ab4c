"""The stages of guidance on exact mixtures, against the theory, and docs/stagewise.md.

python -m experiments.stages                          # minutes on two cores
python -m experiments.stages --preset full --publish  # docs/stagewise.md; half an hour
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments import sharing
from experiments.stages import page
from experiments.stages.cells import Cells
from experiments.stages.config import PLANS, Config

ROOT = pathlib.Path(__file__).parents[2]


def main(config: Config) -> None:
    """Do what isn't done, and write the page and its pictures."""
    plan = PLANS[config.preset]
    folder = config.out / "cells" / config.preset
    folder.mkdir(parents=True, exist_ok=True)
    settings, said = folder / "plan.json", json.dumps(dataclasses.asdict(plan), indent=1)
    if settings.exists() and settings.read_text() != said:
        raise SystemExit(f"{folder} holds cells of another plan; give --out another directory.")
    sharing.write(settings, lambda part: part.write_text(said))
    cells = Cells(plan, folder)
    compute(cells)
    write(cells, config.preset, config.out)
    if config.publish:
        page.RESULTS.parent.mkdir(exist_ok=True)
        page.RESULTS.write_text(page.stored(cells, config.preset))
        write(cells, config.preset, ROOT / "docs")


def compute(cells: Cells) -> None:
    """Every cell, with a bar."""
    console = Console(file=sys.stderr, soft_wrap=not sys.stderr.isatty())
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("cells", total=len(cells.functions))
        for name in cells.functions:
            progress.update(task, description=name)
            cells[name]
            progress.advance(task)


def write(cells: Cells, preset: str, folder: pathlib.Path) -> None:
    """stagewise.md and its pictures."""
    from experiments.stages import figures

    (folder / "stagewise.md").write_text(page.text(cells, preset))
    figures.draw(cells, folder / "stagewise")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

"""Learned against tuned guidance on real handwritten digits.

    python -m experiments.digits                            # minutes: two seeds, nothing to go by
    python -m experiments.digits --preset full --publish    # docs/digits.md: hours
    python -m experiments.digits --preset mended --publish  # the mended method, likewise

Trains small class-conditional denoisers and classifiers, searches the usual guidance, some of it
with numbers for each class, learns ω(c, s, t) on the same images, and compares all of them on
images, noise and networks that none of them saw. What is compared is frozen in `config.PROTOCOLS`.
A run that was stopped goes on cell by cell; processes share the cells.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import shutil
import sys
import time

import tyro

from experiments import logs, sharing
from experiments.digits import figures, report
from experiments.digits.cells import Cells
from experiments.digits.config import PROTOCOLS, Name

DOCS = pathlib.Path(__file__).parents[2] / "docs"
RESULTS = pathlib.Path(__file__).parent / "results"
LOG = logging.getLogger("experiments.digits")


@dataclasses.dataclass(frozen=True)
class Config:
    """Learn ω(c, s, t) on the digits and compare it with tuned guidance."""

    preset: Name = "quick"
    """quick: minutes. choice: where forms were chosen. full, mended: frozen protocols, hours."""
    out: pathlib.Path = pathlib.Path("runs/digits")
    """Where the report, the metrics, a small file for each finished cell and the log go."""
    cells: tuple[str, ...] = ()
    """Only these, as in "under-trained/100"."""
    jobs: int | None = None
    """Processes that share the cells; one a core by default on CPUs."""
    publish: bool = False
    """Keep what is finished in the repository, and write its part of docs/digits.md."""


def main(config: Config) -> None:
    """Do what is left, and write the report."""
    if config.publish and config.preset == "quick":
        raise SystemExit("docs/digits.md has no part of the quick preset: give --preset full.")
    helping = sharing.settle()
    work = config.out / config.preset
    work.mkdir(parents=True, exist_ok=True)
    logs.begin(work / "log.txt")
    begun = time.monotonic()
    cells = Cells(PROTOCOLS[config.preset], work, RESULTS / config.preset)
    jobs = config.jobs or sharing.default_jobs()
    if jobs > 1 and not helping:
        LOG.info("guidejax digits, preset %s, in %d processes", config.preset, jobs)
        sharing.share(
            [sys.executable, "-m", "experiments.digits", "--preset", config.preset, "--out",
             str(config.out), *(("--cells", *config.cells) if config.cells else ())], jobs,
        )  # fmt: skip
    cells.run(config.cells)
    if helping:
        return
    finished = cells.finished and not (config.cells and not config.publish)
    drawn = figures.draw(cells, work, work / "figures") if finished else {}
    if config.publish:
        _publish(config.preset, cells, drawn)
    if not finished:
        return
    (work / "metrics.json").write_text(json.dumps(report.metrics(cells), indent=1))
    (work / "report.html").write_text(report.document(cells, drawn))
    for claim in report.claims(cells) if cells.protocol.judged else ():
        mark = "reached" if claim["holds"] else "NOT reached"
        LOG.info("%s: %.3f, %s", claim["claim"], claim["value"]["mean"], mark)
    LOG.info("report: %s (%.0f s)", work / "report.html", time.monotonic() - begun)


def _publish(preset: Name, cells: Cells, drawn: dict[str, pathlib.Path]) -> None:
    """Keep what is finished in the repository, with the pictures that the page shows of it."""
    cells.publish(RESULTS / preset)
    path = DOCS / "digits.md"
    page = report.page(path.read_text(), preset, cells)
    for picture in drawn.values():
        shown = DOCS / "digits" / preset / picture.name
        if f"({shown.relative_to(DOCS)})" in page:
            shown.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, shown)
    path.write_text(page)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

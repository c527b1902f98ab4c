"""Guidance of a text-to-image model on real colour pictures: tuned, and learned.

    python -m experiments.emoji                          # minutes, from what those below have made
    python -m experiments.emoji --preset full            # hours on two cores
    python -m experiments.emoji --preset wide --jobs 16 --publish  # docs/emoji.md: on a GPU

Searches every usual guidance and learns ω(caption, s, t), both on selection captions, and compares
them on captions, noise and scoring networks that neither of them saw. A run that was stopped goes
on from where it was.
"""

from __future__ import annotations

import logging
import pathlib
import sys
import time

import jax
import tyro

from experiments import logs, sharing
from experiments.claims import estimate
from experiments.emoji import docs, report
from experiments.emoji.cells import Cells
from experiments.emoji.config import PLANS, Config

# Finished cells that are in the repository.
RESULTS = pathlib.Path(__file__).parent / "results" / "cells"

_ALL = (
    "Methods were tuned, and weights learned, on the selection captions, the towers that "
    "may be seen and noise of their own; every figure is on the report's captions, towers and "
    "noise. What was tried, and why what isn't reached isn't, is in docs/emoji.md."
)
NOTES = {
    "full": _ALL,
    "wide": _ALL,
    "quick": "The denoiser, the tuned numbers and the weight called learned come with the "
    "repository; the one called learned anew was learned in this run. What came of the whole "
    "experiment, what was tried, and why, is in docs/emoji.md.",
}

LOG = logging.getLogger("experiments.emoji")


def main(config: Config) -> None:
    """Do what is left of the experiment."""
    if config.publish and config.preset == "quick":
        raise SystemExit("docs/emoji.md is of the wide preset: --preset wide --publish.")
    helping = sharing.settle()
    config.out.mkdir(parents=True, exist_ok=True)
    logs.begin(config.out / "log.txt")
    begun = time.monotonic()
    plan = PLANS[config.preset]
    cells = Cells(plan, config.weights, [config.out / "cells", RESULTS], LOG.info)
    if config.preset == "quick":
        _refuse_hours(cells)
    jobs = config.jobs or (1 if config.preset == "quick" else sharing.default_jobs())
    if jobs > 1 and not helping:
        sharing.share([
            sys.executable, "-m", "experiments.emoji", "--preset", config.preset, "--out",
            str(config.out), "--weights", str(config.weights),
            *(("--cells", *config.cells) if config.cells else ()),
        ], jobs)  # fmt: skip
    # Not before they are done: whoever asks JAX first takes most of a GPU.
    LOG.info("guidejax emoji, preset %s, on %s", config.preset, jax.devices())
    with jax.default_matmul_precision("float32"):  # A GPU's and a TPU's figures are a CPU's.
        _finish(config, cells, helping, begun)


def _finish(config: Config, cells: Cells, helping: bool, begun: float) -> None:
    """Do the cells that are left, and write what they come to."""
    cells.run(config.cells)
    if config.publish and not helping:
        cells.publish(RESULTS)
        docs.main()
    if config.cells or helping:
        return
    results = report.write(cells, config.out, config.preset, NOTES[config.preset])
    for claim in results["claims"]:
        LOG.info("%s: %s, %s", claim["claim"], estimate(claim["value"]), report.mark(claim))
    LOG.info("report: %s (%.0f s)", config.out / "report.html", time.monotonic() - begun)


def _refuse_hours(cells: Cells) -> None:
    """Raise where what the quick preset loads isn't there: it would take hours to make."""
    slow = ("tune/", "choose/", "choice/", "learn/")
    missing = [n for n in cells.functions if n.startswith(slow) and cells.find(n) is None]
    if missing:
        raise SystemExit(
            f"the quick preset loads what was tuned and learned, and {len(missing)} such cells are "
            f"neither in the repository nor under --out ({', '.join(missing[:3])}, ...). They take "
            "hours: --preset full --cells 'tune/0/*' 'choose/*' 'choice/*' 'learn/0/0'."
        )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

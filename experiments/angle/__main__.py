"""Angle domain guidance (Jin et al. 2506.11039) against closed forms, and part by part.

    python -m experiments.angle                           # a few minutes on two cores
    python -m experiments.angle --preset full --publish   # what docs/angle.md reports

CFG's growth of norms and its anomalous region on mixtures with exact denoisers, beside formulas
that no simulation goes into; then what ADG's cap, plane and norm each do. A run that was stopped
goes on from where it was.
"""

from __future__ import annotations

import logging
import pathlib
import time

import jax
import tyro

from experiments import logs
from experiments.angle import figures, page
from experiments.angle.cells import Cells
from experiments.angle.config import PLANS, Config

# Finished cells that are in the repository, and the page that they make.
RESULTS = pathlib.Path(__file__).parent / "results"
DOCS = pathlib.Path(__file__).parents[2] / "docs"

LOG = logging.getLogger("experiments.angle")


def main(config: Config) -> None:
    """Do what is left of the experiment, and write the page."""
    if config.publish and config.preset != "full":
        raise SystemExit("docs/angle.md is of the full preset: --preset full --publish.")
    config.out.mkdir(parents=True, exist_ok=True)
    logs.begin(config.out / "log.txt")
    LOG.info("guidejax angle, preset %s, on %s", config.preset, jax.devices())
    begun = time.monotonic()
    cells = Cells(PLANS[config.preset], config.out / "cells", LOG.info)
    cells.run()
    for folder in (config.out, *((DOCS,) if config.publish else ())):
        figures.draw(cells, folder / "angle")
        (folder / "angle.md").write_text(page.text(cells))
    if config.publish:
        page.keep(cells, RESULTS)
    for claim in page.claims(cells):
        LOG.info("%s: %s. %s", claim.claim, claim.verdict, claim.measured)
    LOG.info("page: %s (%.0f s)", config.out / "angle.md", time.monotonic() - begun)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

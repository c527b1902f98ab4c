"""Guidance of a text-to-image model on real colour pictures: tuned, and learned.

    python -m experiments.emoji                  # minutes
    python -m experiments.emoji --preset full    # what docs/emoji.md reports

Searches every usual guidance and learns ω(caption, s, t), both on selection captions, and compares
them on captions, noise and networks that none of them saw. A run that was stopped goes on from
where it was.
"""

from __future__ import annotations

import logging
import pathlib
import sys
import time

import jax
import tyro

from experiments.emoji.cells import Cells
from experiments.emoji.config import FULL, Config

# Finished cells that are in the repository.
RESULTS = pathlib.Path(__file__).parent / "results" / "cells"

LOG = logging.getLogger("experiments.emoji")


def main(config: Config) -> None:
    """Do what is left of the experiment."""
    config.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=[logging.StreamHandler(sys.stdout), logging.FileHandler(config.out / "log.txt")],
    )
    LOG.info("guidejax emoji, preset %s, on %s", config.preset, jax.devices())
    begun = time.monotonic()

    def note(index: int, count: int, name: str) -> None:
        LOG.info("%d of %d: %s (%.0f s)", index + 1, count, name, time.monotonic() - begun)

    cells = Cells(FULL, config.weights, [config.out / "cells", RESULTS], note)
    cells.run(config.cells)
    LOG.info("done after %.0f s", time.monotonic() - begun)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

"""How long work says what it does."""

from __future__ import annotations

import logging
import pathlib
import sys


def begin(file: pathlib.Path | None = None) -> None:
    """Lines with the time, on the terminal and in a file; of libraries warnings alone."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout if file else None)]
    if file is not None:
        handlers.append(logging.FileHandler(file))
    logging.basicConfig(
        force=True,  # absl has been there.
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=handlers,
    )
    for name in ("absl", "jax", "orbax"):
        logging.getLogger(name).setLevel(logging.WARNING)

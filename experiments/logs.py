"""How long work says what it does."""

from __future__ import annotations

import logging


def begin() -> None:
    """Lines with the time, on the terminal; of libraries warnings alone."""
    logging.basicConfig(
        force=True,  # absl has been there.
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )
    for name in ("absl", "jax", "orbax"):
        logging.getLogger(name).setLevel(logging.WARNING)

"""What the checks share: a small network, and the lines that they print."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BATCH, SIZE, CLASSES = 4, 6, 3
KEY = jax.random.key(0)


def weights(inputs: int, outputs: int, seed: int) -> np.ndarray:
    """Numbers that every library can hold: (inputs, outputs) float32."""
    draw = np.random.default_rng(seed).normal(size=(inputs, outputs))
    return (draw / np.sqrt(inputs)).astype(np.float32)


IN, LABEL, OUT = weights(SIZE, 16, 0), weights(CLASSES + 1, 16, 1), weights(16, SIZE, 2)


def network(x: Any, t: Any, label: Any) -> Any:
    """A small network of (x, t, label), the label `CLASSES` being none."""
    hidden = jnp.tanh(x @ IN + jnp.asarray(LABEL)[label] + t[:, None])
    return hidden @ OUT


def problem() -> tuple[Any, Any]:
    """(noise, labels)."""
    return jax.random.normal(KEY, (BATCH, SIZE)), jnp.arange(BATCH) % CLASSES


def report(library: str, version: str, what: str, theirs: Any, ours: Any) -> None:
    """Print how far two results are apart, and how large they are."""
    theirs, ours = np.asarray(theirs, np.float64), np.asarray(ours, np.float64)
    assert theirs.shape == ours.shape, (theirs.shape, ours.shape)
    line = {
        "library": library,
        "version": version,
        "what": what,
        "largest_difference": float(np.max(np.abs(theirs - ours))),
        "largest_value": float(np.max(np.abs(ours))),
    }
    print(json.dumps(line), flush=True)


def not_run(library: str, what: str, reason: str) -> None:
    """Print why something was not run."""
    print(json.dumps({"library": library, "what": what, "not_run": reason}), flush=True)


def commit(folder: str) -> str:
    """The version of a checkout: its commit where git knows it."""
    if not os.path.exists(os.path.join(folder, ".git")):
        return "a checkout"
    command = ["git", "-C", folder, "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

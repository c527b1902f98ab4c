"""Networks as bfloat16 safetensors, with what rebuilds them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import safetensors
import safetensors.flax
from flax import traverse_util

from experiments.emoji import captions

WEIGHTS = pathlib.Path(__file__).parent / "weights"


def save(path: pathlib.Path, params: Any, about: dict[str, Any]) -> None:
    """Write parameters as bfloat16, whole or not at all, and what rebuilds their network."""
    flat = traverse_util.flatten_dict(params, sep="/")
    flat = {name: jnp.asarray(leaf, jnp.bfloat16) for name, leaf in flat.items()}
    about = {**about, "vocabulary": len(captions.vocabulary())}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    safetensors.flax.save_file(flat, part, metadata={"about": json.dumps(about)})
    part.replace(path)


def read(path: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """(parameters in float32, what `save` was told of them)."""
    with safetensors.safe_open(path, "flax") as file:
        about = json.loads(file.metadata()["about"])
    if about["vocabulary"] != len(captions.vocabulary()):
        raise ValueError(
            f"{path} knows {about['vocabulary']} words, the emoji here have "
            f"{len(captions.vocabulary())}: it was trained on another copy of them."
        )
    flat = {n: jnp.asarray(a, jnp.float32) for n, a in safetensors.flax.load_file(path).items()}
    return traverse_util.unflatten_dict(flat, sep="/"), about

"""T5 1.1's encoder and tokenizer beside transformers'."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.originals import tiny
from experiments.parity.unet import filled
from guidejax.models import t5
from guidejax.models.tokenizer import load_t5

Arrays = Mapping[str, np.ndarray]
Pairs = dict[str, tuple[Any, Any]]

LAYOUTS = {"XXL": t5.shapes(t5.XXL)}


def compare(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """States, masked and not, gradients by the tokens' vectors, each over its largest; tokens."""
    config = t5.config_from(about["config"])
    params = filled(t5.shapes(config))
    run = jax.jit(t5.encode, static_argnames="config")
    tokens = jnp.asarray(arrays["tokens"])

    def square(table: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = run({**params, "shared.weight": table}, tokens, None, config)
        return jnp.sum(output**2), output

    slope, output = jax.grad(square, has_aux=True)(params["shared.weight"])
    masked = run(params, tokens, jnp.asarray(arrays["mask"]), config)[1]
    size, tall = np.abs(arrays["slope"]).max(), np.abs(arrays["output"]).max()
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder) / "tokenizer_3"
        tiny.pieces(place)
        rows = load_t5(place, about["length"])(about["texts"])
    return {
        "output": (output / tall, arrays["output"] / tall),
        "masked": (masked[: len(arrays["masked"])] / tall, arrays["masked"] / tall),
        "gradient by vectors": (slope / size, arrays["slope"] / size),
        "tokens": (rows, arrays["rows"]),
    }


CASES: dict[str, Callable[[Arrays, Mapping[str, Any]], Pairs]] = {"t5": compare}

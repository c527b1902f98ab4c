"""Stable Diffusion's UNet beside diffusers' own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.originals.common import value
from guidejax.models import unet

Arrays = Mapping[str, np.ndarray]
Pairs = dict[str, tuple[Any, Any]]

LAYOUTS = {name: unet.shapes(getattr(unet, name)) for name in ("SD15", "SD21", "SDXL")}


def filled(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    """The parameters that the originals make of the same keys."""
    return {key: jnp.asarray(value(key, shape)) for key, shape in shapes.items()}


def compare(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """The network on the original's input."""
    config = unet.config_from(about["config"])
    params = filled(unet.shapes(config))
    given = {key: jnp.asarray(array) for key, array in arrays.items()}
    cond: dict[str, jax.Array] = {
        key: given[key] for key in ("text", "pooled", "size") if key in given
    }

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(x, text):
        output = unet.network(params, x, given["t"], cond | {"text": text}, config)
        return jnp.sum(output**2), output

    (_, output), slopes = run(given["x"], given["text"])
    pairs: Pairs = {"output": (output, arrays["output"])}
    for what, slope in zip(("x", "text"), slopes, strict=True):
        theirs = arrays[f"slope_{what}"]
        size = np.abs(theirs).max()
        pairs[f"gradient by {what}"] = (slope / size, theirs / size)
    return pairs


CASES: dict[str, Callable[[Arrays, Mapping[str, Any]], Pairs]] = dict.fromkeys(
    ("unet-SD15", "unet-SD21", "unet-SDXL"), compare
)

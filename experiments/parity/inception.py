"""The Inception of Fréchet inception distances beside torch-fidelity's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.originals.common import pictures, value
from guidejax.models import inception

Arrays = Mapping[str, np.ndarray]
Pairs = dict[str, tuple[Any, Any]]

# The file holds a classifier besides.
LAYOUTS = {"2015-12-05": {**inception.shapes(), "fc.weight": (1008, 2048), "fc.bias": (1008,)}}


def random_params() -> dict[str, jax.Array]:
    """The parameters that the original was filled with."""
    shift = lambda key: 0.5 if key.endswith("running_var") else 0.0  # noqa: E731
    found = {key: value(key, shape) + shift(key) for key, shape in inception.shapes().items()}
    return {key: jnp.asarray(array, jnp.float32) for key, array in found.items()}


def images(height: int, width: int) -> np.ndarray:
    """The original's pictures in [-1, 1]."""
    return pictures(height, width) / 127.5 - 1


def network(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """Pictures that are enlarged and pictures that are made smaller, over the largest."""
    params, pairs, run = random_params(), {}, jax.jit(inception.network)
    for name, shape in about["sizes"].items():
        pixels = inception.pixels(jnp.asarray(images(*shape), jnp.float32))
        ours = {"resized": 128 * pixels[:, ::13, ::13] + 128, "features": run(params, pixels)}
        for what, found in ours.items():
            theirs = arrays[f"{name}_{what}"]
            pairs[f"{what} {name}"] = (found / theirs.max(), theirs / theirs.max())
    return pairs


def slope(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """The gradient by the pictures, in float64 as the original's, over its largest."""
    with jax.enable_x64(True):
        params = {key: array.astype(jnp.float64) for key, array in random_params().items()}
        weights = np.random.RandomState(1).standard_normal(arrays["features"].shape)

        @jax.jit
        def run(params: Any, x: jax.Array) -> Any:
            see = lambda x: inception.network(params, inception.pixels(x, about["resized"]))  # noqa: E731
            found, back = jax.vjp(see, x)
            return found, back(jnp.asarray(weights))[0]

        ours = run(params, jnp.asarray(images(*about["shape"])[:1]))
        pairs = {}
        for what, found in zip(("features", "gradient"), ours, strict=True):
            size = np.abs(arrays[what]).max()
            pairs[f"{what} in float64"] = (np.asarray(found) / size, arrays[what] / size)
        return pairs


CASES: dict[str, Callable[[Arrays, Mapping[str, Any]], Pairs]] = {
    "inception": network,
    "inception-gradient": slope,
}

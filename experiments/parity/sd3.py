"""MMDiT beside diffusers' own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj
from experiments.parity.unet import filled
from guidejax.models import sd3

Arrays = Mapping[str, np.ndarray]
Pairs = dict[str, tuple[Any, Any]]

LAYOUTS = {
    name: sd3.shapes(getattr(sd3, name)) for name in ("SD3_MEDIUM", "SD35_MEDIUM", "SD35_LARGE")
}


def compare(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """The network on the original's input, and its gradients, each over its largest."""
    config = sd3.config_from(about["config"])
    params = filled(sd3.shapes(config))
    run = jax.jit(functools.partial(sd3.network, params, config=config))

    def square(x: jax.Array, text: jax.Array, pooled: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = run(x, arrays["t"], {"text": text, "pooled": pooled})
        return jnp.sum(output**2), output

    inputs = (arrays["x"], arrays["text"], arrays["pooled"])
    slopes, output = jax.grad(square, (0, 1, 2), has_aux=True)(*inputs)
    size = np.abs(arrays["output"]).max()
    pairs: Pairs = {"output": (output / size, arrays["output"] / size)}
    for what, slope in zip(("x", "text", "pooled"), slopes, strict=True):
        theirs = arrays[f"slope_{what}"]
        size = np.abs(theirs).max()
        pairs[f"gradient by {what}"] = (slope / size, theirs / size)
    return pairs


def sampling(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """Euler steps from the same noise under the same embeddings and guidance scale."""
    config = sd3.config_from(about["config"])
    denoise = sd3.ready(config, filled(sd3.shapes(config)))
    times = sd3.times(about["steps"], about["shift"])
    found = gj.sample(
        jax.random.key(0), denoise, arrays["noise"], times=times, solver=gj.euler(),
        cond={key: arrays[key] for key in ("text", "pooled")},
        uncond={key: arrays[f"null_{key}"] for key in ("text", "pooled")},
        guidance=gj.guidance(gj.cfg, gj.from_scale(about["scale"])),
    )  # fmt: skip
    size = np.abs(arrays["output"]).max()
    return {
        "times": (times, arrays["sigmas"]),
        "guided latents": (found / size, arrays["output"] / size),
    }


CASES: dict[str, Callable[[Arrays, Mapping[str, Any]], Pairs]] = {
    "sd3-SD3": compare,
    "sd3-SD35": compare,
    "sd3-SD3-sampling": sampling,
    "sd3-SD35-sampling": sampling,
}

"""Stable Diffusion's VAE beside diffusers' own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.unet import filled
from guidejax.models import vae

Arrays = Mapping[str, np.ndarray]
Pairs = dict[str, tuple[Any, Any]]

LAYOUTS = {name: vae.shapes(getattr(vae, name)) for name in ("SD15", "SDXL", "SD3")}


def compare(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """Both halves on the original's inputs."""
    config = vae.config_from(about["config"])
    params = filled(vae.shapes(config))
    encode = jax.jit(lambda images: vae.encode(params, images, config))
    decode = jax.jit(lambda latents: vae.images(params, latents, config))
    mean, logvar = encode(arrays["images"])
    decoded = decode(arrays["latents"])
    slopes = {
        "images": jax.grad(lambda images: jnp.mean(encode(images)[0] ** 2)),
        "latents": jax.grad(lambda latents: jnp.mean(decode(latents) ** 2)),
    }
    pairs: Pairs = {
        "mean": (mean, arrays["mean"]),
        "logvar": (logvar, arrays["logvar"]),
        "decoded": (decoded, arrays["decoded"]),
    }
    for what, slope in slopes.items():
        theirs = arrays[f"slope_{what}"]
        size = np.abs(theirs).max()
        pairs[f"gradient by {what}"] = (slope(arrays[what]) / size, theirs / size)
    return pairs


CASES: dict[str, Callable[[Arrays, Mapping[str, Any]], Pairs]] = dict.fromkeys(
    ("vae-SD15", "vae-SDXL", "vae-SD3"), compare
)

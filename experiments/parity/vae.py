"""Stable Diffusion's VAE beside diffusers' own."""

from __future__ import annotations

import functools
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

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def encode(images):
        mean, logvar = vae.encode(params, images, config)
        return jnp.mean(mean**2), (mean, logvar)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def decode(latents):
        found = vae.images(params, latents, config)
        return jnp.mean(found**2), found

    (_, (mean, logvar)), slope_images = encode(arrays["images"])
    (_, decoded), slope_latents = decode(arrays["latents"])
    pairs: Pairs = {
        "mean": (mean, arrays["mean"]),
        "logvar": (logvar, arrays["logvar"]),
        "decoded": (decoded, arrays["decoded"]),
    }
    for what, slope in (("images", slope_images), ("latents", slope_latents)):
        theirs = arrays[f"slope_{what}"]
        size = np.abs(theirs).max()
        pairs[f"gradient by {what}"] = (slope / size, theirs / size)
    return pairs


CASES: dict[str, Callable[[Arrays, Mapping[str, Any]], Pairs]] = dict.fromkeys(
    ("vae-SD15", "vae-SDXL", "vae-SD3"), compare
)

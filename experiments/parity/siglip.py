"""SigLIP's towers beside transformers'."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.parity.clip import Arrays, Pairs, gradient, random_params
from guidejax._arrays import unit
from guidejax.models import siglip
from guidejax.models.tokenizer import load_siglip

LAYOUTS = {
    "base-patch16-224": siglip.shapes(siglip.BASE_16_224),
    "so400m-patch14-384": siglip.shapes(siglip.SO400M_14_384),
}


def towers(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """Both towers on the original's tokens and pixels, and the pairs' logits."""
    config = siglip.config_from(about["config"])
    params = random_params(siglip.shapes(config))
    assert config.text is not None
    assert config.vision is not None
    vision = config.vision
    text = jax.jit(siglip.text, static_argnums=2)(params, arrays["tokens"], config.text)
    image = jax.jit(siglip.image, static_argnums=2)(params, arrays["pixels"], vision)
    assert text.embedding is not None
    assert image.embedding is not None
    cosines = unit(image.embedding) @ unit(text.embedding).T
    logits = jnp.exp(params["logit_scale"]) * cosines + params["logit_bias"]
    embed = lambda x: siglip.image(params, x, vision).embedding  # noqa: E731
    return {
        "hidden": (text.hidden, arrays["hidden"]),
        "penultimate": (text.penultimate, arrays["penultimate"]),
        "text embedding": (text.embedding, arrays["text_embedding"]),
        "image embedding": (image.embedding, arrays["image_embedding"]),
        "logits": (logits, arrays["logits"]),
        "input gradient": gradient(embed, arrays["pixels"], arrays["weights"], arrays["gradient"]),
    }


def tokenizing(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """Texts by the original's vocabulary."""
    with tempfile.TemporaryDirectory() as path:
        (pathlib.Path(path) / "tokenizer.json").write_text(about["file"], encoding="utf-8")
        found = load_siglip(path, length=arrays["ids"].shape[1])
    return {"tokens": (found(about["texts"]), arrays["ids"])}


CASES: dict[str, Callable[[Arrays, Mapping[str, Any]], Pairs]] = {
    "siglip-towers": towers,
    "siglip-tokenizer": tokenizing,
}

"""CLIP's towers and preprocessing beside transformers'."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.originals.common import value
from guidejax.models import clip
from guidejax.models.preprocess import SIGLIP_MEAN, SIGLIP_STD, Preprocess
from guidejax.models.tokenizer import load_clip

Arrays = Mapping[str, np.ndarray]
Pairs = dict[str, tuple[Any, Any]]

LAYOUTS = {
    "B/32": clip.shapes(clip.B_32),
    "B/16": clip.shapes(clip.B_16),
    "L/14": clip.shapes(clip.L_14),
    "H/14": clip.shapes(clip.H_14),
    "bigG text": clip.shapes(clip.BIG_G_TEXT),
}


def random_params(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    """The parameters of a case's random checkpoint."""
    return {key: jnp.asarray(value(key, shape)) for key, shape in shapes.items()}


def gradient(fn: Callable[[Any], Any], x: Any, weights: Any, theirs: np.ndarray) -> Any:
    """Ours and theirs of ⟨weights, fn(x)⟩, over its largest."""
    ours = jax.jit(jax.grad(lambda x: jnp.sum(fn(x) * weights)))(jnp.asarray(x))
    size = np.abs(theirs).max()
    return ours / size, theirs / size


def towers(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """Both towers on the original's tokens and pixels."""
    config = clip.config_from(about["config"])
    params = random_params(clip.shapes(config))
    assert config.text is not None
    assert config.vision is not None
    vision = config.vision
    pairs = texts(arrays, about)
    found = jax.jit(clip.image, static_argnums=2)(params, arrays["pixels"], vision)
    embed = lambda x: clip.image(params, x, vision).embedding  # noqa: E731
    return pairs | {
        "image pooled": (found.pooled, arrays["image_pooled"]),
        "image embedding": (found.embedding, arrays["image_embedding"]),
        "input gradient": gradient(embed, arrays["pixels"], arrays["weights"], arrays["gradient"]),
    }


def texts(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """The text tower on the original's tokens."""
    config = clip.config_from(about["config"])
    assert config.text is not None
    params = random_params(clip.shapes(config))
    found = jax.jit(clip.text, static_argnums=2)(params, arrays["tokens"], config.text)
    pairs = {
        "hidden": (found.hidden, arrays["hidden"]),
        "penultimate": (found.penultimate, arrays["penultimate"]),
        "text embedding": (found.embedding, arrays["text_embedding"]),
    }
    if "pooled" in arrays:
        pairs["pooled"] = (found.pooled, arrays["pooled"])
    return pairs


def preprocessing(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """Images smaller and larger than the pixels."""
    run = Preprocess(about["size"], tuple(about["mean"]), tuple(about["std"]))
    pairs = {}
    for name in ("down", "up", "same"):
        x0 = arrays[f"{name}_x0"]
        pairs[name] = (run(x0), arrays[f"{name}_pixels"])
        pairs[f"{name} input gradient"] = gradient(
            run, x0, arrays[f"{name}_weights"], arrays[f"{name}_gradient"]
        )
    squeeze = Preprocess(about["size"], SIGLIP_MEAN, SIGLIP_STD, crop=False)
    return pairs | {"squeezed": (squeeze(arrays["down_x0"]), arrays["squeezed_pixels"])}


def tokenizing(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """Texts by the original's vocabulary, as the files of a checkpoint hold it."""
    pairs = {}
    for name, pad in (("end", "<|endoftext|>"), ("zero", "!")):
        with tempfile.TemporaryDirectory() as path:
            write_vocabulary(pathlib.Path(path), about, pad)
            found = load_clip(path, length=arrays[name].shape[1])
        pairs[f"padded by {pad}"] = (found(about["texts"]), arrays[name])
    return pairs


def write_vocabulary(folder: pathlib.Path, about: Mapping[str, Any], pad: str) -> None:
    """The files of a tokenizer."""
    (folder / "vocab.json").write_text(json.dumps(about["vocab"]), encoding="utf-8")
    lines = "\n".join(["#version: 0.2", *about["merges"], ""])
    (folder / "merges.txt").write_text(lines, encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": pad}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))


CASES: dict[str, Callable[[Arrays, Mapping[str, Any]], Pairs]] = {
    "clip-towers": towers,
    "clip-legacy": towers,
    "clip-text": texts,
    "clip-preprocess": preprocessing,
    "clip-tokenizer": tokenizing,
}

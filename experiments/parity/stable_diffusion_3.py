"""Text to image by Stable Diffusion 3 beside diffusers' own pipeline."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import guidejax as gj
from experiments.parity.originals import tiny
from experiments.parity.originals.common import value
from guidejax.models import clip, sd3, stable_diffusion_3, t5, vae

Arrays = Mapping[str, np.ndarray]
Pairs = dict[str, tuple[Any, Any]]

SHAPES: dict[str, Callable[[Any], Mapping[str, tuple[int, ...]]]] = {
    "transformer": lambda config: sd3.shapes(sd3.config_from(config)),
    "vae": lambda config: vae.shapes(vae.config_from(config)),
    "text_encoder": lambda config: clip.shapes(clip.config_from(config)),
    "text_encoder_2": lambda config: clip.shapes(clip.config_from(config)),
    "text_encoder_3": lambda config: t5.shapes(t5.config_from(config)),
}


def write(folder: pathlib.Path, about: Mapping[str, Any]) -> pathlib.Path:
    """A checkpoint of random weights in diffusers' layout, as the original's case describes it."""
    from safetensors.numpy import save_file

    for part, config in about["parts"].items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        kind = "model" if part.startswith("text") else "diffusion_pytorch_model"
        # The second tower has other weights, though its keys are the first's.
        prefix = "2." if part == "text_encoder_2" else ""
        shapes = SHAPES[part](config)
        tensors = {key: value(prefix + key, shape) for key, shape in shapes.items()}
        save_file(tensors, folder / part / f"{kind}.safetensors")
    (folder / "scheduler").mkdir()
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(about["scheduler"]))
    tiny.tokenizer(folder / "tokenizer")
    tiny.tokenizer(folder / "tokenizer_2", pad="!")
    tiny.pieces(folder / "tokenizer_3")
    return folder


def pipeline(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """Text to image from a checkpoint's folder."""
    with tempfile.TemporaryDirectory() as folder:
        place = write(pathlib.Path(folder), about)
        sd = stable_diffusion_3.load(place, length=about["length"])
    cond = sd.prompt(about["prompts"])
    without = dataclasses.replace(sd, t5=None).prompt(about["prompts"])["text"]
    latents = gj.sample(
        jax.random.key(0), sd.denoise, arrays["noise"], times=sd.times(about["steps"]),
        cond=cond, uncond=sd.uncond, solver=gj.euler(),
        guidance=gj.guidance(gj.cfg, gj.from_scale(about["scale"])),
    )  # fmt: skip
    size, bright = np.abs(arrays["latents"]).max(), np.abs(arrays["images"]).max()
    return {
        "text": (cond["text"], arrays["text"]),
        "text without T5": (without[:, -about["length"] :], arrays["without_t5"]),
        "pooled": (cond["pooled"], arrays["pooled"]),
        "guided latents": (latents / size, arrays["latents"] / size),
        "images": (sd.decode(latents) / bright, arrays["images"] / bright),
    }


CASES: dict[str, Callable[[Arrays, Mapping[str, Any]], Pairs]] = {"stable_diffusion_3": pipeline}

"""Guided sampling, and text to image, beside diffusers' own."""

from __future__ import annotations

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
from experiments.parity.unet import filled
from guidejax.models import clip, stable_diffusion, unet, vae

Arrays = Mapping[str, np.ndarray]
Pairs = dict[str, tuple[Any, Any]]


def sampling(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """20 steps of DDIM from the same noise under the same text and guidance scale."""
    config = unet.config_from(about["config"])
    schedule = stable_diffusion.schedule_from(about["scheduler"])
    denoise = stable_diffusion.ready(config, filled(unet.shapes(config)), schedule)
    times = schedule.times(len(arrays["timesteps"]))
    found = gj.sample(
        jax.random.key(0), denoise, arrays["noise"], times=times,
        cond={"text": arrays["text"]}, uncond={"text": arrays["null"]},
        guidance=gj.guidance(gj.cfg, gj.from_scale(about["scale"])),
    )  # fmt: skip
    size = np.abs(arrays["output"]).max()
    told = schedule.process().index(times[:-1])
    return {
        "index": (told, arrays["timesteps"]),
        "guided latents": (found / size, arrays["output"] / size),
    }


def write(folder: pathlib.Path, about: Mapping[str, Any]) -> pathlib.Path:
    """A checkpoint of random weights in diffusers' layout, as the original's case describes it."""
    from safetensors.numpy import save_file

    shapes_of: dict[str, Callable[[Any], Mapping[str, tuple[int, ...]]]] = {
        "unet": lambda config: unet.shapes(unet.config_from(config)),
        "vae": lambda config: vae.shapes(vae.config_from(config)),
        "text_encoder": lambda config: clip.shapes(clip.config_from(config)),
    }
    for part, config in about["parts"].items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        shapes = shapes_of[part.removesuffix("_2")](config)
        kind = "model" if part.startswith("text") else "diffusion_pytorch_model"
        # Each tower has other weights, though its keys are the same.
        prefix = "2." if part.endswith("_2") else ""
        tensors = {key: value(prefix + key, shape) for key, shape in shapes.items()}
        save_file(tensors, folder / part / f"{kind}.safetensors")
    (folder / "scheduler").mkdir()
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(about["scheduler"]))
    for number, part in enumerate(part for part in about["parts"] if part.startswith("text")):
        tiny.tokenizer(folder / part.replace("text_encoder", "tokenizer"), pad="!" * number)
    return folder


def pipeline(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """Text to image from a checkpoint's folder."""
    with tempfile.TemporaryDirectory() as folder:
        sd = stable_diffusion.load(write(pathlib.Path(folder), about))
    cond = sd.prompt(about["prompts"], about["size"])
    latents = gj.sample(
        jax.random.key(0), sd.denoise, arrays["noise"], times=sd.times(about["steps"]),
        cond=cond, uncond=sd.unprompted(about["size"]),
        guidance=gj.guidance(gj.cfg, gj.from_scale(about["scale"])),
    )  # fmt: skip
    size, bright = np.abs(arrays["latents"]).max(), np.abs(arrays["images"]).max()
    return {
        "text": (cond["text"], arrays["text"]),
        "guided latents": (latents / size, arrays["latents"] / size),
        "images": (sd.decode(latents) / bright, arrays["images"] / bright),
    }


CASES: dict[str, Callable[[Arrays, Mapping[str, Any]], Pairs]] = {
    "stable_diffusion-SD15": sampling,
    "stable_diffusion-SD21": sampling,
    "stable_diffusion-pipeline": pipeline,
    "stable_diffusion-XL-pipeline": pipeline,
}

"""Guided sampling by diffusers: `python stable_diffusion.py OUT`, where torch and diffusers are."""

import pathlib
import sys
import tempfile
from typing import Any

import common
import numpy as np
import tiny  # type: ignore[import-not-found]  # Beside this file, as the next two.
import torch
import transformers
import unet  # type: ignore[import-not-found]
import vae  # type: ignore[import-not-found]
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

# What scheduler/scheduler_config.json of Stable Diffusion 1.5 and 2.1 say.
SCHEDULERS: dict[str, dict[str, Any]] = {
    "SD15": {
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
}
SCHEDULERS["SD21"] = {**SCHEDULERS["SD15"], "prediction_type": "v_prediction"}
STEPS, SCALE = 20, 5.0


def case(name: str, out: pathlib.Path) -> None:
    """Save what 20 steps of DDIM make of noise, by a tiny UNet of random weights."""
    model = UNet2DConditionModel(**unet.TINY[name])
    common.fill(model)
    scheduler = DDIMScheduler(**SCHEDULERS[name])
    scheduler.set_timesteps(STEPS)
    random = np.random.RandomState(0)
    arrays = {
        "noise": random.standard_normal((2, 8, 8, 4)).astype(np.float32),
        "text": random.standard_normal((2, 77, 32)).astype(np.float32),
        "null": random.standard_normal((1, 77, 32)).astype(np.float32),
    }
    x = torch.from_numpy(arrays["noise"]).permute(0, 3, 1, 2).contiguous()
    text = torch.from_numpy(np.concatenate([np.repeat(arrays["null"], 2, 0), arrays["text"]]))
    with torch.no_grad():
        for t in scheduler.timesteps:
            uncond, cond = model(torch.cat([x, x]), t, text).sample.chunk(2)
            x = scheduler.step(uncond + SCALE * (cond - uncond), t, x, eta=0.0).prev_sample
    arrays["timesteps"] = scheduler.timesteps.numpy()
    arrays["output"] = x.permute(0, 2, 3, 1).numpy()
    about = {"config": unet.TINY[name], "scheduler": SCHEDULERS[name], "scale": SCALE}
    common.save(out, f"stable_diffusion-{name}", arrays, about | unet.VERSIONS)


def tower(width: int, projection: bool) -> dict[str, Any]:
    """What config.json says of a tiny text tower."""
    return {
        "architectures": ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "bos_token_id": len(tiny.VOCABULARY) - 2,
        "eos_token_id": len(tiny.VOCABULARY) - 1,
        "hidden_act": "gelu" if projection else "quick_gelu",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 77,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "projection_dim": 16,
        "vocab_size": len(tiny.VOCABULARY),
    }


def fill(module: torch.nn.Module, prefix: str = "") -> torch.nn.Module:
    """Give parameters the values of their keys after a prefix."""
    state = {}
    for key, tensor in module.state_dict().items():
        # A tower alone has no prefix in recent versions; files do.
        own = isinstance(module, transformers.CLIPTextModel) and not key.startswith("text_model.")
        name = f"text_model.{key}" if own else key
        state[key] = torch.from_numpy(common.value(prefix + name, tuple(tensor.shape)))
    module.load_state_dict(state)
    return module.eval()


def pipeline(out: pathlib.Path, xl: bool) -> None:
    """Save what a whole pipeline of tiny random networks makes of prompts."""
    name = "SDXL" if xl else "SD15"
    parts = {
        "unet": unet.TINY[name],
        "vae": vae.TINY[name],
        "text_encoder": tower(16 if xl else 32, False),
        **({"text_encoder_2": tower(16, True)} if xl else {}),
    }
    given: dict[str, Any] = {
        "unet": fill(UNet2DConditionModel(**parts["unet"])),
        "vae": fill(AutoencoderKL(**parts["vae"])),
        "scheduler": DDIMScheduler(**SCHEDULERS["SD15"]),
    }
    towers = [("", transformers.CLIPTextModel)]
    towers += [("_2", transformers.CLIPTextModelWithProjection)] if xl else []
    with tempfile.TemporaryDirectory() as folder:
        for i, (suffix, kind) in enumerate(towers):
            config = transformers.CLIPTextConfig(**parts[f"text_encoder{suffix}"])
            given[f"text_encoder{suffix}"] = fill(kind(config), "2." * i)
            place = pathlib.Path(folder) / f"tokenizer{suffix}"
            tiny.tokenizer(place, pad="!" * i)
            given[f"tokenizer{suffix}"] = transformers.CLIPTokenizer.from_pretrained(place)
    if xl:
        pipe = StableDiffusionXLPipeline(**given, add_watermarker=False)
    else:
        none = {"safety_checker": None, "feature_extractor": None}
        pipe = StableDiffusionPipeline(**given, **none, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    prompts, size = ["a cat!", "The dog at a door"], (16, 16)
    noise = np.random.RandomState(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    latents = pipe(
        prompts, height=size[0], width=size[1], num_inference_steps=STEPS, guidance_scale=SCALE,
        latents=torch.from_numpy(noise).permute(0, 3, 1, 2), output_type="latent",
    ).images  # fmt: skip
    with torch.no_grad():
        text = pipe.encode_prompt(
            prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0]
        images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    last = lambda tensor: tensor.permute(0, 2, 3, 1).numpy()  # noqa: E731
    arrays = {"noise": noise, "text": text.numpy(), "latents": last(latents)}
    arrays["images"] = last(images)
    about = {"parts": parts, "scheduler": SCHEDULERS["SD15"], "prompts": prompts, "steps": STEPS}
    about |= {"scale": SCALE, "size": size, "transformers": transformers.__version__}
    kind_name = "XL-pipeline" if xl else "pipeline"
    common.save(out, f"stable_diffusion-{kind_name}", arrays, about | unet.VERSIONS)


if __name__ == "__main__":
    place = pathlib.Path(sys.argv[1])
    for name in SCHEDULERS:
        case(name, place)
    for xl in (False, True):
        pipeline(place, xl)

"""Text to image by diffusers: `python stable_diffusion_3.py OUT`, where torch and diffusers are."""

import pathlib
import sys
import tempfile
from typing import Any

import common
import numpy as np
import sd3  # type: ignore[import-not-found]  # Beside this file, as the next ones.
import stable_diffusion  # type: ignore[import-not-found]
import t5  # type: ignore[import-not-found]
import tiny  # type: ignore[import-not-found]
import torch
import transformers
import vae  # type: ignore[import-not-found]
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

# What the published scheduler/scheduler_config.json says.
SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0}
PARTS: dict[str, dict[str, Any]] = {
    "transformer": {
        **sd3.TINY["SD35"], "joint_attention_dim": 40, "pooled_projection_dim": 32,
        "in_channels": vae.TINY["SD3"]["latent_channels"],
        "out_channels": vae.TINY["SD3"]["latent_channels"],
    },
    "vae": vae.TINY["SD3"],
    "text_encoder": {**stable_diffusion.tower(16, True), "hidden_act": "quick_gelu"},
    "text_encoder_2": stable_diffusion.tower(16, True),
    "text_encoder_3": {**t5.SMALL, "d_model": 40},
}  # fmt: skip
PROMPTS, STEPS, SCALE, LENGTH = ["a cat!", "The dog at a door"], 10, 4.0, 12


def main(out: pathlib.Path) -> None:
    """Save what a whole pipeline of tiny random networks makes of prompts."""
    fill = stable_diffusion.fill
    given: dict[str, Any] = {
        "transformer": fill(SD3Transformer2DModel(**PARTS["transformer"])),
        "vae": fill(AutoencoderKL(**PARTS["vae"])),
        "scheduler": FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        "text_encoder_3": t5.filled(PARTS["text_encoder_3"]),
    }
    with tempfile.TemporaryDirectory() as folder:
        for i, suffix in enumerate(("", "_2")):
            config = transformers.CLIPTextConfig(**PARTS[f"text_encoder{suffix}"])
            tower = transformers.CLIPTextModelWithProjection(config)
            given[f"text_encoder{suffix}"] = fill(tower, "2." * i)
            place = pathlib.Path(folder) / f"tokenizer{suffix}"
            tiny.tokenizer(place, pad="!" * i)
            given[f"tokenizer{suffix}"] = transformers.CLIPTokenizer.from_pretrained(place)
        place = pathlib.Path(folder) / "tokenizer_3"
        tiny.pieces(place)
        given["tokenizer_3"] = transformers.AutoTokenizer.from_pretrained(place)
    pipe = StableDiffusion3Pipeline(**given)
    pipe.set_progress_bar_config(disable=True)
    side = 8 * 2 ** (len(PARTS["vae"]["block_out_channels"]) - 1)
    channels = PARTS["vae"]["latent_channels"]
    noise = np.random.RandomState(0).standard_normal((2, 8, 8, channels)).astype(np.float32)
    latents = pipe(
        PROMPTS, height=side, width=side, num_inference_steps=STEPS, guidance_scale=SCALE,
        max_sequence_length=LENGTH, latents=torch.from_numpy(noise).permute(0, 3, 1, 2),
        output_type="latent",
    ).images  # fmt: skip
    arrays = {"noise": noise}
    told = {"device": "cpu", "max_sequence_length": LENGTH, "do_classifier_free_guidance": False}
    settings = pipe.vae.config
    with torch.no_grad():
        text, _, pooled, _ = pipe.encode_prompt(PROMPTS, PROMPTS, PROMPTS, **told)
        pipe.text_encoder_3 = None
        without = pipe.encode_prompt(PROMPTS, PROMPTS, PROMPTS, **told)[0]
        arrays |= {"text": text.numpy(), "pooled": pooled.numpy()}
        # The rest is the same.
        arrays["without_t5"] = without[:, -LENGTH:].numpy()
        z = latents / settings.scaling_factor + settings.shift_factor
        images = pipe.vae.decode(z).sample
    last = lambda tensor: tensor.permute(0, 2, 3, 1).numpy()  # noqa: E731
    arrays["latents"], arrays["images"] = last(latents), last(images)
    about = {"parts": PARTS, "scheduler": SCHEDULER, "prompts": PROMPTS, "steps": STEPS}
    about |= {"scale": SCALE, "length": LENGTH, **t5.VERSIONS, **sd3.VERSIONS}
    common.save(out, "stable_diffusion_3", arrays, about)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

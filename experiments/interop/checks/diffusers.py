"""diffusers: a list of scales in its pipeline and its guider, against `gj.sample` of the same UNet.

The UNet stays in PyTorch on both sides: JAX calls it back.
"""

from __future__ import annotations

import importlib.metadata
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.guiders import ClassifierFreeGuidance

import guidejax as gj
from experiments.interop.checks.common import KEY, report
from experiments.interop.snippets.diffusers_callback import Scales

VERSION = importlib.metadata.version("diffusers")
STEPS = 10


def pipeline() -> StableDiffusionPipeline:
    """A tiny Stable Diffusion of random weights; its latents are what is compared."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 4), norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=True,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet.eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main() -> None:
    """A ramp, an interval and a learned ω."""
    pipe = pipeline()
    rng = np.random.default_rng(0)
    draw = lambda *shape: np.asarray(rng.normal(size=shape), np.float32)  # noqa: E731
    noise, text, null = draw(2, 4, 8, 8), draw(2, 7, 16), np.zeros((2, 7, 16), np.float32)
    process = gj.processes.scaled_linear()
    pipe.scheduler.set_timesteps(STEPS)
    times = np.append(process.times(pipe.scheduler.timesteps.numpy()), 0)

    @torch.inference_mode()
    def in_torch(x: Any, index: Any, cond: Any) -> Any:
        arguments = (torch.tensor(np.asarray(a)) for a in (x, index, cond))
        return pipe.unet(*arguments).sample.numpy()

    def network(x: Any, index: Any, cond: Any) -> Any:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(in_torch, shape, x, index, cond)

    denoise = gj.denoiser(network, process, prediction="eps", time="index")
    net = gj.OmegaNet(cond_dim=16, cond=lambda tokens: tokens.mean(axis=1))
    learned = net.weight(jax.tree.map(lambda leaf: leaf + 0.2, net.init(jax.random.key(3))))
    cases = {
        "a ramp": (gj.schedules.linear_ramp(6.5), None),
        "an interval, w = 1 outside of it": (gj.interval(6.5, lo=0.25, hi=0.75), None),
        "a learned ω": (learned, jnp.asarray(text[:1])),
    }
    text[1] = text[0]  # a list has one scale a step, of one prompt
    for what, (omega, cond) in cases.items():
        guide = gj.guidance(gj.cfg, omega=omega)
        options: dict[str, Any] = {"cond": jnp.asarray(text), "uncond": jnp.asarray(null)}
        options |= {"times": times, "solver": gj.ddim(), "guidance": guide}
        ours = gj.sample(KEY, denoise, jnp.asarray(noise), branches="sequential", **options)
        file = pathlib.Path(tempfile.mkdtemp()) / "scales.json"
        listed = gj.interop.torch_export.to_diffusers(guide, times, process, cond, path=file)
        scales = Scales(file)
        arguments: dict[str, Any] = {
            "prompt_embeds": torch.tensor(text), "negative_prompt_embeds": torch.tensor(null),
            "num_inference_steps": STEPS, "latents": torch.tensor(noise), "output_type": "latent",
            "guidance_scale": scales.first, "callback_on_step_end": scales,
            "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
        }  # fmt: skip
        theirs = pipe(**arguments).images.numpy()
        report("diffusers", VERSION, f"its StableDiffusionPipeline, {what}", theirs, ours)

        guider, x = ClassifierFreeGuidance(), torch.tensor(noise)
        pipe.scheduler.set_timesteps(STEPS)
        for step, t in enumerate(pipe.scheduler.timesteps):
            guider.guidance_scale = listed[step]
            guider.set_state(step=step, num_inference_steps=STEPS, timestep=t)
            pair = {"text": (torch.tensor(text), torch.tensor(null))}
            batches = guider.prepare_inputs(pair)
            for batch in batches:
                guider.prepare_models(pipe.unet)
                with torch.inference_mode():
                    batch.noise_pred = pipe.unet(x, t, batch.text).sample
                guider.cleanup_models(pipe.unet)
            x = pipe.scheduler.step(guider(batches).pred, t, x).prev_sample
        report("diffusers", VERSION, f"its guider ClassifierFreeGuidance, {what}", x, ours)


if __name__ == "__main__":
    main()

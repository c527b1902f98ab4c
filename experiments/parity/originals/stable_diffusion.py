"""Guided sampling by diffusers: `python stable_diffusion.py OUT`, where torch and diffusers are."""

import pathlib
import sys
from typing import Any

import common
import numpy as np
import torch
import unet  # type: ignore[import-not-found]  # Beside this file.
from diffusers import DDIMScheduler, UNet2DConditionModel

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
        "text": random.standard_normal((2, 5, 32)).astype(np.float32),
        "null": random.standard_normal((1, 5, 32)).astype(np.float32),
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


if __name__ == "__main__":
    for tiny in SCHEDULERS:
        case(tiny, pathlib.Path(sys.argv[1]))

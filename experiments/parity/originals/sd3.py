"""MMDiT by diffusers: `python sd3.py OUT`, where torch and diffusers are."""

import pathlib
import sys
from typing import Any

import common
import diffusers
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

VERSIONS = {"torch": torch.__version__, "diffusers": diffusers.__version__}

# What the published transformer/config.json files say.
SHARED: dict[str, Any] = {
    "attention_head_dim": 64,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "sample_size": 128,
}
MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432}
PUBLISHED: dict[str, dict[str, Any]] = {
    "SD3_MEDIUM": {**SHARED, **MEDIUM, "pos_embed_max_size": 192},
    "SD35_MEDIUM": {
        **SHARED, **MEDIUM, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
        "dual_attention_layers": list(range(13)),
    },
    "SD35_LARGE": {**SHARED, **LARGE, "pos_embed_max_size": 192, "qk_norm": "rms_norm"},
}  # fmt: skip
SMALL: dict[str, Any] = {
    "attention_head_dim": 8,
    "caption_projection_dim": 24,
    "in_channels": 16,
    "joint_attention_dim": 20,
    "num_attention_heads": 3,
    "num_layers": 3,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 7,
    "sample_size": 8,
}
TINY: dict[str, dict[str, Any]] = {
    "SD3": SMALL,
    "SD35": {**SMALL, "qk_norm": "rms_norm", "dual_attention_layers": [0, 1]},
}
STEPS, SCALE, SHIFT = 20, 4.0, 3.0


def made(name: str) -> SD3Transformer2DModel:
    """A tiny one of random weights."""
    model = SD3Transformer2DModel(**TINY[name]).eval()
    common.fill(model)
    return model


def conditions(random: np.random.RandomState, count: int) -> dict[str, np.ndarray]:
    """Random states and embeddings of prompts."""
    shapes = {"text": (count, 5, SMALL["joint_attention_dim"]),
              "pooled": (count, SMALL["pooled_projection_dim"])}  # fmt: skip
    return {k: random.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}


def case(name: str, out: pathlib.Path) -> None:
    """Save inputs, output and gradients by the inputs."""
    model, random = made(name), np.random.RandomState(0)
    # Neither a square nor as large as the table of positions; its middle is off by half a place.
    arrays = {
        "x": random.standard_normal((2, 8, 6, 16)).astype(np.float32),
        "t": np.array([20.5, 981.0], np.float32),
        **conditions(random, 2),
    }
    given = {key: torch.from_numpy(array) for key, array in arrays.items()}
    x = given["x"].permute(0, 3, 1, 2).contiguous().requires_grad_()
    text, pooled = given["text"].requires_grad_(), given["pooled"].requires_grad_()
    output = model(x, text, pooled, given["t"]).sample
    slopes = torch.autograd.grad(output.square().sum(), (x, text, pooled))
    arrays["output"] = output.detach().permute(0, 2, 3, 1).numpy()
    arrays["slope_x"] = slopes[0].permute(0, 2, 3, 1).numpy()
    arrays["slope_text"], arrays["slope_pooled"] = slopes[1].numpy(), slopes[2].numpy()
    common.save(out, f"sd3-{name}", arrays, {"config": TINY[name], **VERSIONS})


def sampling(name: str, out: pathlib.Path) -> None:
    """Save what diffusers' Euler steps make of noise, guided."""
    model, random = made(name), np.random.RandomState(1)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(STEPS)
    arrays = {
        "noise": random.standard_normal((2, 8, 8, 16)).astype(np.float32),
        **conditions(random, 2),
        **{f"null_{key}": array for key, array in conditions(random, 1).items()},
    }
    both = {
        key: torch.from_numpy(np.concatenate([np.repeat(arrays[f"null_{key}"], 2, 0), arrays[key]]))
        for key in ("text", "pooled")
    }
    x = torch.from_numpy(arrays["noise"]).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        for t in scheduler.timesteps:
            found = model(torch.cat([x, x]), both["text"], both["pooled"], t.expand(4)).sample
            uncond, cond = found.chunk(2)
            x = scheduler.step(uncond + SCALE * (cond - uncond), t, x).prev_sample
    arrays["sigmas"] = scheduler.sigmas.numpy()
    arrays["output"] = x.permute(0, 2, 3, 1).numpy()
    about = {"config": TINY[name], "steps": STEPS, "scale": SCALE, "shift": SHIFT}
    common.save(out, f"sd3-{name}-sampling", arrays, about | VERSIONS)


def layouts(out: pathlib.Path) -> None:
    """Save the keys and shapes of the published sizes."""
    found = {}
    for size, config in PUBLISHED.items():
        with torch.device("meta"):
            state = SD3Transformer2DModel(**config).state_dict()
        found[size] = common.layout({key: tuple(tensor.shape) for key, tensor in state.items()})
    common.save(out, "sd3-layouts", {}, {"layouts": found, "configs": PUBLISHED, **VERSIONS})


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    for tiny in TINY:
        case(tiny, folder)
        sampling(tiny, folder)
    layouts(folder)

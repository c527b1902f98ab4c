"""Stable Diffusion's UNet by diffusers: `python unet.py OUT`, where torch and diffusers are."""

import pathlib
import sys
from typing import Any

import common
import diffusers
import numpy as np
import torch
from diffusers import UNet2DConditionModel

VERSIONS = {"torch": torch.__version__, "diffusers": diffusers.__version__}

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
# What the published unet/config.json files say, where it isn't diffusers' default.
PUBLISHED: dict[str, dict[str, Any]] = {
    "SD15": {"cross_attention_dim": 768},
    "SD21": {
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "sample_size": 96,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "SDXL": {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": [PLAIN, CROSS, CROSS],
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": [CROSS_UP, CROSS_UP, PLAIN_UP],
        "use_linear_projection": True,
    },
}
SMALL: dict[str, Any] = {
    "block_out_channels": [32, 64],
    "cross_attention_dim": 32,
    "layers_per_block": 1,
}
TINY: dict[str, dict[str, Any]] = {
    "SD15": {
        **SMALL,
        "attention_head_dim": 4,
        "down_block_types": [CROSS, PLAIN],
        "up_block_types": [PLAIN_UP, CROSS_UP],
    },
    "SD21": {
        **SMALL,
        "attention_head_dim": [2, 4],
        "down_block_types": [CROSS, PLAIN],
        "layers_per_block": 2,
        "up_block_types": [PLAIN_UP, CROSS_UP],
        "upcast_attention": True,
        "use_linear_projection": True,
    },
    "SDXL": {
        **SMALL,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "attention_head_dim": [2, 4],
        "down_block_types": [PLAIN, CROSS],
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
        "transformer_layers_per_block": [1, 2],
        "up_block_types": [CROSS_UP, PLAIN_UP],
        "use_linear_projection": True,
    },
}


def case(name: str, out: pathlib.Path) -> None:
    """Save a network's output, and the gradient of its sum of squares by each input."""
    config = TINY[name]
    model = UNet2DConditionModel(**config)
    common.fill(model)
    random = np.random.RandomState(0)
    # An odd size in one of them: half of it, doubled, is not what it was.
    height, width = (8, 6) if name != "SD21" else (7, 6)
    arrays = {
        "x": random.standard_normal((2, height, width, 4)),
        "t": np.array([981.0, 20.5]),
        "text": random.standard_normal((2, 5, 32)),
    }
    if name == "SDXL":
        arrays["pooled"] = random.standard_normal((2, 16))
        arrays["size"] = np.array([[1024, 768, 0, 8, 1024, 1024], [512, 512, 0, 0, 512, 512]])
    arrays = {key: array.astype(np.float32) for key, array in arrays.items()}
    given = {key: torch.from_numpy(array) for key, array in arrays.items()}
    x = given["x"].permute(0, 3, 1, 2).contiguous().requires_grad_()
    text = given["text"].requires_grad_()
    added = {"text_embeds": given["pooled"], "time_ids": given["size"]} if name == "SDXL" else None
    output = model(x, given["t"], text, added_cond_kwargs=added).sample
    slopes = torch.autograd.grad(output.square().sum(), (x, text))
    arrays["output"] = output.detach().permute(0, 2, 3, 1).numpy()
    arrays["slope_x"] = slopes[0].permute(0, 2, 3, 1).numpy()
    arrays["slope_text"] = slopes[1].numpy()
    common.save(out, f"unet-{name}", arrays, {"config": config, **VERSIONS})


def layouts(out: pathlib.Path) -> None:
    """Save the keys and shapes of the published sizes."""
    found = {}
    for size, config in PUBLISHED.items():
        with torch.device("meta"):
            state = UNet2DConditionModel(**config).state_dict()
        found[size] = common.layout({key: tuple(tensor.shape) for key, tensor in state.items()})
    common.save(out, "unet-layouts", {}, {"layouts": found, "configs": PUBLISHED, **VERSIONS})


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    for tiny in TINY:
        case(tiny, folder)
    layouts(folder)

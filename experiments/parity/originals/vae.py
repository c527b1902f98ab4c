"""Stable Diffusion's VAE by diffusers: `python vae.py OUT`, where torch and diffusers are."""

import pathlib
import sys
from typing import Any

import common
import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL

VERSIONS = {"torch": torch.__version__, "diffusers": diffusers.__version__}


def kinds(levels: int) -> dict[str, list[str]]:
    """What the config says of each level."""
    return {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


PLAIN: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    **kinds(4),
}
# What the published vae/config.json files say.
PUBLISHED: dict[str, dict[str, Any]] = {
    "SD15": {**PLAIN, "latent_channels": 4, "sample_size": 512},
    "SDXL": {**PLAIN, "latent_channels": 4, "sample_size": 1024, "scaling_factor": 0.13025},
    "SD3": {
        **PLAIN,
        "latent_channels": 16,
        "sample_size": 1024,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}
SMALL: dict[str, Any] = {"block_out_channels": [32, 64], "layers_per_block": 1, **kinds(2)}
TINY: dict[str, dict[str, Any]] = {
    "SD15": {**PUBLISHED["SD15"], **SMALL},
    "SDXL": {**PUBLISHED["SDXL"], **SMALL},
    "SD3": {**PUBLISHED["SD3"], **SMALL},
}


def case(name: str, out: pathlib.Path) -> None:
    """Save what a network makes of images and latents, and gradients by either."""
    config = TINY[name]
    model = AutoencoderKL(**config)
    common.fill(model)
    random = np.random.RandomState(0)
    arrays: dict[str, np.ndarray] = {
        "images": random.uniform(-1, 1, (2, 12, 8, 3)),
        "latents": random.standard_normal((2, 6, 4, model.config.latent_channels)),
    }
    arrays = {key: array.astype(np.float32) for key, array in arrays.items()}
    images, latents = (
        torch.from_numpy(arrays[key]).permute(0, 3, 1, 2).contiguous().requires_grad_()
        for key in ("images", "latents")
    )
    found = model.encode(images).latent_dist
    shift = model.config.shift_factor or 0
    decoded = model.decode(latents / model.config.scaling_factor + shift).sample
    last = lambda tensor: tensor.detach().permute(0, 2, 3, 1).numpy()  # noqa: E731
    arrays |= {"mean": last(found.mean), "logvar": last(found.logvar), "decoded": last(decoded)}
    arrays["slope_images"] = last(torch.autograd.grad((found.mean**2).mean(), images)[0])
    arrays["slope_latents"] = last(torch.autograd.grad((decoded**2).mean(), latents)[0])
    common.save(out, f"vae-{name}", arrays, {"config": config, **VERSIONS})


def layouts(out: pathlib.Path) -> None:
    """Save the keys and shapes of the published sizes."""
    found = {}
    for size, config in PUBLISHED.items():
        with torch.device("meta"):
            state = AutoencoderKL(**config).state_dict()
        found[size] = common.layout({key: tuple(tensor.shape) for key, tensor in state.items()})
    common.save(out, "vae-layouts", {}, {"layouts": found, "configs": PUBLISHED, **VERSIONS})


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    for tiny in TINY:
        case(tiny, folder)
    layouts(folder)

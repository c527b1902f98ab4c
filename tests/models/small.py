"""Small checkpoints of random weights in the published layouts, and pictures to learn on."""

import json

import numpy as np

from experiments.parity import stable_diffusion as parity
from experiments.parity.originals import tiny
from experiments.parity.originals.common import value
from guidejax.models import clip, dit

from .common import reference


def stable_diffusion(folder):
    """Stable Diffusion of 16 pixels, in diffusers' layout."""
    about = reference("stable_diffusion-pipeline")[1]
    about["parts"]["unet"]["sample_size"] = 8
    parity.write(folder, about)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


def judge(folder):
    """CLIP of 16 pixels with Stable Diffusion's vocabulary."""
    text = reference("stable_diffusion-pipeline")[1]["parts"]["text_encoder"]
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    config = {
        "model_type": "clip", "projection_dim": 16, "text_config": text, "vision_config": vision,
    }  # fmt: skip
    tiny.tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config))
    save(clip.shapes(clip.config_from(config)), folder / "model.safetensors")
    return folder


def transformer(folder):
    """SiT of 8 latent pixels and 3 classes."""
    sizes = {"family": "sit", "width": 24, "depth": 1, "heads": 2, "side": 8, "classes": 3}
    folder.mkdir()
    (folder / "guidejax.json").write_text(json.dumps(sizes))
    save(dit.shapes(dit.Config(**sizes)), folder / "model.safetensors")
    return folder


def save(shapes, path):
    """Random tensors of these shapes."""
    from safetensors.numpy import save_file

    save_file({key: value(key, shape) for key, shape in shapes.items()}, path)


def pictures(folder, said=("a cat", "a dog", "a cat and a dog"), count=12):
    """Random pictures, with what they are of in .txt files."""
    import PIL.Image

    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        pixels = random.integers(0, 255, (20, 24, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(said[i % len(said)])
    return folder

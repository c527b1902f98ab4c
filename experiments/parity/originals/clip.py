"""CLIP as transformers runs it.

Run where torch and transformers are:

    python clip.py OUT
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import common
import numpy as np
import torch
import transformers

TEXT = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 12, "bos_token_id": 48,
    "eos_token_id": 49, "pad_token_id": 49, "projection_dim": 24,
}  # fmt: skip
VISION = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8, "projection_dim": 24,
}  # fmt: skip
# The published sizes, as their config.json has them.
LAION = {"hidden_act": "gelu"}
PUBLISHED = {
    "B/32": ({}, {}, 512),
    "B/16": ({}, {"patch_size": 16}, 512),
    "L/14": (
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
         "num_attention_heads": 16, "patch_size": 14},
        768,
    ),
    "H/14": (
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
         "num_attention_heads": 16, **LAION},
        {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
         "num_attention_heads": 16, "patch_size": 14, **LAION},
        1024,
    ),
}  # fmt: skip
BIG_G_TEXT = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "projection_dim": 1280, **LAION,
}  # fmt: skip
SIZE = 12  # Of preprocessed images.
TEXTS = (
    "A photo of a CAT!", "it's 2 dogs'  naïve\n café, isn't it?", "", "<|endoftext|> within",
    "the cat and the cat and the cat and the cat", "🦊 日本", "wow!!! 1990s", "Cafe\u0301",
)  # fmt: skip
MERGES = (
    "t h", "th e</w>", "c a", "ca t</w>", "a n", "an d</w>", "p h", "ph o", "o f</w>", "' s</w>",
    "! !</w>", "Ã ©</w>",
)  # fmt: skip
VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__}


def tokens(end: int, batch: int = 3, length: int = 9) -> np.ndarray:
    """Rows that begin with 48, end at different places, and are padded by the end token."""
    rows = np.random.RandomState(0).randint(3, 47, (batch, length))
    rows[:, 0] = 48
    for n, row in enumerate(rows):
        row[4 + 2 * n :] = end
    return rows.astype(np.int32)


def both(out: pathlib.Path, name: str, activation: str, end: int) -> None:
    """Both towers: outputs, and what the images' embeddings say of the pixels."""
    text = TEXT | {"hidden_act": activation, "eos_token_id": end}
    vision = VISION | {"hidden_act": activation}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    model = transformers.CLIPModel(config).eval()
    common.fill(model)
    rows = tokens(49)
    pixels = np.random.RandomState(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    inputs = torch.from_numpy(pixels).requires_grad_()
    states = model.text_model(input_ids=torch.from_numpy(rows).long(), output_hidden_states=True)
    images = model.vision_model(pixel_values=inputs)
    embedding = model.visual_projection(images.pooler_output)
    weights = np.random.RandomState(2).standard_normal(tuple(embedding.shape)).astype(np.float32)
    (embedding * torch.from_numpy(weights)).sum().backward()
    arrays = {
        "tokens": rows,
        "hidden": states.last_hidden_state,
        "penultimate": states.hidden_states[-2],
        "pooled": states.pooler_output,
        "text_embedding": model.text_projection(states.pooler_output),
        "pixels": pixels.transpose(0, 2, 3, 1),
        "weights": weights,
        "image_pooled": images.pooler_output,
        "image_embedding": embedding,
        "gradient": inputs.grad.permute(0, 2, 3, 1),
    }
    about = {
        "config": {"model_type": "clip", "projection_dim": 24, "text_config": text,
                   "vision_config": vision},
        "layout": common.layout(common.fill(model)),
        **VERSIONS,
    }  # fmt: skip
    common.save(out, name, numpy(arrays), about)


def alone(out: pathlib.Path) -> None:
    """The text tower with its projection, as SDXL's second is."""
    text = TEXT | {"hidden_act": "gelu", "pad_token_id": 0}
    model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text)).eval()
    common.fill(model)
    rows = tokens(49)
    rows[0, 5:] = 0
    found = model(input_ids=torch.from_numpy(rows).long(), output_hidden_states=True)
    arrays = {
        "tokens": rows,
        "hidden": found.last_hidden_state,
        "penultimate": found.hidden_states[-2],
        "text_embedding": found.text_embeds,
    }
    about = {
        "config": {"model_type": "clip_text_model",
                   "architectures": ["CLIPTextModelWithProjection"], **text},
        "layout": common.layout(common.fill(model)),
        **VERSIONS,
    }  # fmt: skip
    common.save(out, "clip-text", numpy(arrays), about)


def preprocessing(out: pathlib.Path) -> None:
    """Images in [-1, 1] to pixels, by the steps and numbers of `CLIPImageProcessor`, in float32."""
    processor = transformers.CLIPImageProcessorPil
    numbers = (processor.image_mean, processor.image_std)
    mean, std = (torch.tensor(each)[:, None, None] for each in numbers)
    arrays: dict[str, Any] = {}
    for name, height, width in (("down", 20, 29), ("up", 9, 6), ("same", 12, 12)):
        images = np.random.RandomState(3).uniform(-1, 1, (1, height, width, 3)).astype(np.float32)
        x0 = torch.from_numpy(images).requires_grad_()
        z = (x0.permute(0, 3, 1, 2) + 1) / 2
        short = min(height, width)
        shape = (int(SIZE * height / short), int(SIZE * width / short))
        # What torchvision's antialiased bicubic resizing calls.
        z = torch.nn.functional.interpolate(z, shape, mode="bicubic", antialias=True)
        top, left = int((shape[0] - SIZE) / 2), int((shape[1] - SIZE) / 2)
        z = (z[:, :, top : top + SIZE, left : left + SIZE] - mean) / std
        weights = np.random.RandomState(4).standard_normal(tuple(z.shape)).astype(np.float32)
        (z * torch.from_numpy(weights)).sum().backward()
        arrays |= {
            f"{name}_x0": images,
            f"{name}_pixels": z.permute(0, 2, 3, 1),
            f"{name}_weights": weights.transpose(0, 2, 3, 1),
            f"{name}_gradient": x0.grad,
        }
    squeezed = torch.from_numpy(arrays["down_x0"]).permute(0, 3, 1, 2)
    squeezed = torch.nn.functional.interpolate(
        (squeezed + 1) / 2, (SIZE, SIZE), mode="bicubic", antialias=True
    )
    arrays["squeezed_pixels"] = ((squeezed - 0.5) / 0.5).permute(0, 2, 3, 1)
    about = {
        "size": SIZE, "mean": processor.image_mean, "std": processor.image_std, **VERSIONS,
    }  # fmt: skip
    common.save(out, "clip-preprocess", numpy(arrays), about)


def tokenizing(out: pathlib.Path) -> None:
    """Texts to tokens by a small vocabulary, padded as CLIP's and as SDXL's second are."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    words = ["!", *(c for c in letters if c != "!"), *(f"{c}</w>" for c in letters)]
    words += [*(m.replace(" ", "") for m in MERGES), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: n for n, word in enumerate(words)}
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    arrays = {}
    for name, pad in (("end", "<|endoftext|>"), ("zero", "!")):
        tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad)
        found = tokenizer(list(TEXTS), padding="max_length", max_length=16, truncation=True)
        arrays[name] = np.array(found["input_ids"], np.int32)
    about = {"vocab": vocab, "merges": MERGES, "texts": TEXTS, **VERSIONS}
    common.save(out, "clip-tokenizer", arrays, about)


def layouts(out: pathlib.Path) -> None:
    """Keys and shapes of the published sizes."""
    found = {}
    with torch.device("meta"):
        for size, (text, vision, dimension) in PUBLISHED.items():
            config = transformers.CLIPConfig(
                text_config=text, vision_config=vision, projection_dim=dimension
            )
            found[size] = layout(transformers.CLIPModel(config))
        config = transformers.CLIPTextConfig(**BIG_G_TEXT)
        found["bigG text"] = layout(transformers.CLIPTextModelWithProjection(config))
    common.save(out, "clip-layouts", {}, {"layouts": found, **VERSIONS})


def layout(module: torch.nn.Module) -> dict[str, object]:
    """Of a module without values."""
    return common.layout({key: list(t.shape) for key, t in module.state_dict().items()})


def numpy(arrays: dict) -> dict[str, np.ndarray]:
    """Torch's among them as NumPy's."""
    return {k: a.detach().numpy() if isinstance(a, torch.Tensor) else a for k, a in arrays.items()}


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    both(folder, "clip-towers", "quick_gelu", 49)
    both(folder, "clip-legacy", "gelu", 2)
    alone(folder)
    preprocessing(folder)
    tokenizing(folder)
    layouts(folder)

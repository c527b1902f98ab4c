"""SigLIP as transformers runs it.

Run where torch and transformers are:

    python siglip.py OUT
"""

from __future__ import annotations

import pathlib
import sys
import tempfile

import common
import numpy as np
import torch
import transformers

TEXT = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 10, "projection_size": 48,
}  # fmt: skip
# 33 pixels: what 8 doesn't divide is cut off, as in the 384 pixels of patch 14.
VISION = {
    "hidden_size": 48, "intermediate_size": 90, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 33, "patch_size": 8,
}  # fmt: skip
# The published sizes, as their config.json has them.
PUBLISHED = {
    "base-patch16-224": ({"vocab_size": 256000}, {}),
    "so400m-patch14-384": (
        {"vocab_size": 256000, "hidden_size": 1152, "intermediate_size": 4304,
         "num_hidden_layers": 27, "num_attention_heads": 16},
        {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
         "num_attention_heads": 16, "image_size": 384, "patch_size": 14},
    ),
}  # fmt: skip
TEXTS = ("A photo of a CAT!", "", "two  dogs, naïve", "the cat and the cat and the cat", "日本")
VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__}


def both(out: pathlib.Path) -> None:
    """Both towers: outputs, and what the images' embeddings say of the pixels."""
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
    model = transformers.SiglipModel(config).eval()
    shapes = common.fill(model)
    rows = np.random.RandomState(0).randint(2, 60, (3, 10)).astype(np.int32)
    rows[0, 6:] = 0
    pixels = np.random.RandomState(1).standard_normal((1, 3, 33, 33)).astype(np.float32)
    inputs = torch.from_numpy(pixels).requires_grad_()
    states = model.text_model(input_ids=torch.from_numpy(rows).long(), output_hidden_states=True)
    embedding = model.vision_model(pixel_values=inputs).pooler_output
    weights = np.random.RandomState(2).standard_normal(tuple(embedding.shape)).astype(np.float32)
    (embedding * torch.from_numpy(weights)).sum().backward()
    logits = model(input_ids=torch.from_numpy(rows).long(), pixel_values=inputs).logits_per_image
    arrays = {
        "tokens": rows,
        "hidden": states.last_hidden_state,
        "penultimate": states.hidden_states[-2],
        "text_embedding": states.pooler_output,
        "pixels": pixels.transpose(0, 2, 3, 1),
        "weights": weights,
        "image_embedding": embedding,
        "gradient": inputs.grad.permute(0, 2, 3, 1),
        "logits": logits,
    }
    about = {
        "config": {"model_type": "siglip", "text_config": TEXT, "vision_config": VISION},
        "layout": common.layout(shapes),
        **VERSIONS,
    }
    found = {k: a.detach().numpy() if isinstance(a, torch.Tensor) else a for k, a in arrays.items()}
    common.save(out, "siglip-towers", found, about)


def tokenizing(out: pathlib.Path) -> None:
    """Texts to tokens by a small vocabulary of Gemma's kind."""
    from tokenizers.processors import TemplateProcessing

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{n:02X}>" for n in range(256))]
    words += ["▁", *"abcdefghijklmnopqrstuvwxyzACPT!,", "th", "the", "ca", "cat", "▁cat"]
    vocab = {word: n for n, word in enumerate(words)}
    merges = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t"), ("▁", "cat")]
    tokenizer = transformers.Siglip2Tokenizer(vocab=vocab, merges=merges)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", vocab["<eos>"])]
    )
    found = tokenizer(
        list(TEXTS), padding="max_length", max_length=20, truncation=True, padding_side="right"
    )
    arrays = {"ids": np.array(found["input_ids"], np.int32)}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        file = (pathlib.Path(folder) / "tokenizer.json").read_text(encoding="utf-8")
    common.save(out, "siglip-tokenizer", arrays, {"file": file, "texts": TEXTS, **VERSIONS})


def layouts(out: pathlib.Path) -> None:
    """Keys and shapes of the published sizes."""
    found = {}
    with torch.device("meta"):
        for size, (text, vision) in PUBLISHED.items():
            config = transformers.SiglipConfig(text_config=text, vision_config=vision)
            state = transformers.SiglipModel(config).state_dict()
            found[size] = common.layout({key: list(t.shape) for key, t in state.items()})
    common.save(out, "siglip-layouts", {}, {"layouts": found, **VERSIONS})


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    both(folder)
    tokenizing(folder)
    layouts(folder)

"""T5 1.1's encoder by transformers: `python t5.py OUT`, where torch and transformers are."""

import pathlib
import sys
import tempfile
from typing import Any

import common
import numpy as np
import tiny  # type: ignore[import-not-found]  # Beside this file.
import torch
import transformers

VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__}

# What config.json of XXL says, and of a tiny one.
XXL: dict[str, Any] = {
    "d_ff": 10240, "d_kv": 64, "d_model": 4096, "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6, "model_type": "t5", "num_heads": 64, "num_layers": 24,
    "relative_attention_num_buckets": 32, "vocab_size": 32128,
}  # fmt: skip
SMALL = {
    **XXL, "d_ff": 40, "d_kv": 6, "d_model": 20, "num_heads": 3, "num_layers": 2,
    "vocab_size": len(tiny.PIECES),
}  # fmt: skip
TEXTS = ["a cat!", "The dog at a door", "", "a dog  a dog a dog a dog", "cat</s> naïve"]
LENGTH = 12


def made(config: dict[str, Any]) -> Any:
    """An encoder."""
    return transformers.T5EncoderModel(transformers.T5Config(**config)).eval()


def filled(config: dict[str, Any]) -> Any:
    """One of random weights; the tokens' table has two names."""
    model, state = made(config), {}
    for key, tensor in model.state_dict().items():
        own = "shared.weight" if key == "encoder.embed_tokens.weight" else key
        state[key] = torch.from_numpy(common.value(own, tuple(tensor.shape)))
    model.load_state_dict(state)
    return model


def case(out: pathlib.Path) -> None:
    """Save states of a long row and of a padded one, and gradients by the tokens' vectors."""
    model = filled(SMALL)
    random = np.random.RandomState(0)
    # Beyond the distance of 128, from which on all are one.
    tokens = random.randint(0, SMALL["vocab_size"], (2, 140))
    mask = np.arange(140) < np.array([[140], [9]])
    arrays: dict[str, np.ndarray] = {"tokens": tokens, "mask": mask}
    given = torch.from_numpy(tokens)
    output = model(given)[0]
    output.square().sum().backward()
    arrays["slope"] = model.shared.weight.grad.numpy()
    with torch.no_grad():
        masked = model(given, attention_mask=torch.from_numpy(mask).long())[0]
    arrays["output"], arrays["masked"] = output.detach().numpy(), masked.numpy()[1, :9]
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder) / "tokenizer_3"
        tiny.pieces(place)
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        rows = tokenizer(TEXTS, padding="max_length", max_length=LENGTH, truncation=True)
    arrays["rows"] = np.array(rows["input_ids"])
    about = {"config": SMALL, "texts": TEXTS, "length": LENGTH}
    common.save(out, "t5", arrays, about | VERSIONS)


def layouts(out: pathlib.Path) -> None:
    """Save the keys and shapes of the published size."""
    with torch.device("meta"):
        state = made(XXL).state_dict()
    found = {key: tuple(tensor.shape) for key, tensor in state.items()}
    found.pop("encoder.embed_tokens.weight", None)
    kept = {"layouts": {"XXL": common.layout(found)}, "configs": {"XXL": XXL}}
    common.save(out, "t5-layouts", {}, kept | VERSIONS)


if __name__ == "__main__":
    case(pathlib.Path(sys.argv[1]))
    layouts(pathlib.Path(sys.argv[1]))

"""A vocabulary of letters, as both sides read it."""

from __future__ import annotations

import json
import pathlib
import string

LETTERS = string.ascii_lowercase + "!"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
MERGES = [("a", "t</w>"), ("c", "at</w>"), ("d", "o"), ("do", "g</w>")]
# The end token is the last, as it is CLIP's.
VOCABULARY = [
    *LETTERS,
    *(f"{letter}</w>" for letter in LETTERS),
    *("".join(pair) for pair in MERGES),
    BEGIN,
    END,
]


def tokenizer(folder: pathlib.Path, pad: str = "") -> None:
    """Write a tokenizer's files; rows are padded by the end token unless `pad` says otherwise."""
    folder.mkdir(parents=True)
    vocabulary = {token: number for number, token in enumerate(VOCABULARY)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": pad or END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))

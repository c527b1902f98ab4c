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


# T5's special tokens come first.
PIECES = ["<pad>", "</s>", "<unk>", "▁", *LETTERS, "▁a", "▁the", "cat", "▁dog", "do", "or"]


def pieces(folder: pathlib.Path) -> None:
    """Write the files of T5's tokenizer, of these pieces; longer ones are likelier."""
    folder.mkdir(parents=True)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    end = {"id": "</s>", "type_id": 0}
    sequence = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": end}]
    file = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": PIECES[i], **flags, "special": True} for i in range(3)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                 "split": True},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": sequence,
            "pair": sequence,
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [[p, 0.0 if i < 3 else -9.0 / len(p)] for i, p in enumerate(PIECES)],
            "byte_fallback": False,
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(file))
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | special))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))

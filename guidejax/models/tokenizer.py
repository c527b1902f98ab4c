"""Tokens of texts, from a checkpoint's own vocabulary: CLIP's byte pairs, SigLIP's Gemma and T5.

The `tokenizers` package does the splitting: `pip install guidejax[models]`. Vocabularies come with
the weights, under their licences.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from guidejax.models._files import json_of

# How CLIP splits texts before it looks for byte pairs: its end tokens, English contractions, runs
# of letters, single digits, runs of anything else.
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """Texts to tokens: begin, the text cut to what fits, end, and padding up to `length`.

    Attributes:
        backend: A `tokenizers.Tokenizer` of the text alone.
        length: Of each row.
        begin: Token before each text; None for none.
        end: Token after each text, which is kept when the text is cut.
        pad: Token that fills a row.
        lower: Whether texts are lower-cased first.
        punctuation: Whether punctuation stays; without it spaces run together too.
    """

    backend: Any
    length: int
    begin: int | None
    end: int
    pad: int
    lower: bool = False
    punctuation: bool = True

    def __call__(self, texts: str | Sequence[str], length: int | None = None) -> np.ndarray:
        """Tokens (batch, length), int32, of texts; one text is a batch of one.

        Args:
            texts: What to encode.
            length: Of each row; the tokenizer's own by default.

        Raises:
            ValueError: For what isn't text, and for a length that holds no text.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise ValueError(f"got {wrong[0]!r} among the texts; expected strings.")
        length = self.length if length is None else length
        first = [] if self.begin is None else [self.begin]
        room = length - len(first) - 1
        if room < 0:
            raise ValueError(f"length is {length}; expected at least {len(first) + 1}.")
        rows = np.full((len(texts), length), self.pad, np.int32)
        found = self.backend.encode_batch([self._clean(t) for t in texts], add_special_tokens=False)
        for row, encoding in zip(rows, found, strict=True):
            ids = [*first, *encoding.ids[:room], self.end]
            row[: len(ids)] = ids
        return rows

    def _clean(self, text: str) -> str:
        text = text.lower() if self.lower else text
        if not self.punctuation:
            text = text.translate(str.maketrans("", "", string.punctuation))
            text = re.sub(r"\s+", " ", text).strip()
        return text


def load_clip(path: str | os.PathLike[str], length: int | None = None) -> Tokenizer:
    """CLIP's tokenizer, of a folder's vocab.json and merges.txt, or of its tokenizer.json.

    Texts are put in Unicode's form C, lower-cased, split into words, and each word into the byte
    pairs that were merged first. Rows are padded as tokenizer_config.json says: by the end token
    for CLIP itself and Stable Diffusion's first text tower, by "!" (token 0) for SDXL's second.

    Args:
        path: The folder.
        length: Of rows; what tokenizer_config.json says by default, 77.

    Raises:
        FileNotFoundError: Where the folder has no vocabulary.
        ValueError: Where the vocabulary lacks a special token.

    References:
        Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, 2016;
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021.
    """
    folder = pathlib.Path(path)
    settings, special = _settings(folder)
    names = {
        kind: _content(special.get(f"{kind}_token"), default)
        for kind, default in (
            ("bos", "<|startoftext|>"), ("eos", "<|endoftext|>"), ("unk", "<|endoftext|>"),
            ("pad", "<|endoftext|>"),
        )
    }  # fmt: skip
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend = _clip_backend(folder, names["unk"])
    else:
        backend = _backend(folder, "vocab.json with merges.txt, or tokenizer.json")
    ids = _ids(backend, folder, names)
    # As transformers does, wherever they stand in a text: "!" too, where it pads.
    added = _package().AddedToken
    backend.add_special_tokens([added(t, special=True, normalized=False) for t in names.values()])
    return Tokenizer(
        backend, length or _length(settings, 77), begin=ids["bos"], end=ids["eos"], pad=ids["pad"]
    )


def load_siglip(
    path: str | os.PathLike[str], length: int | None = None, *, lower: bool = True
) -> Tokenizer:
    """SigLIP's tokenizer, of a folder's tokenizer.json: Gemma's for SigLIP 2, T5's for SigLIP.

    Texts are lower-cased; SigLIP's lose their punctuation, SigLIP 2's keep it. An end token
    follows, and rows are padded on the right to 64, as both were trained.

    Args:
        path: The folder.
        length: Of rows; 64 by default.
        lower: Whether texts are lower-cased, as those of the training were.

    Raises:
        FileNotFoundError: Where the folder has no tokenizer.json.
        ValueError: Where the vocabulary lacks a special token.

    References:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023; Tschannen et al., SigLIP 2,
        2025.
    """
    folder = pathlib.Path(path)
    backend = _backend(folder, "tokenizer.json")
    _, special = _settings(folder)
    gemma = backend.token_to_id("<eos>") is not None
    names = {
        "eos": _content(special.get("eos_token"), "<eos>" if gemma else "</s>"),
        "pad": _content(special.get("pad_token"), "<pad>" if gemma else "</s>"),
    }
    ids = _ids(backend, folder, names)
    return Tokenizer(
        backend,
        length or 64,
        begin=None,
        end=ids["eos"],
        pad=ids["pad"],
        lower=lower,
        punctuation=gemma,
    )


def load_t5(path: str | os.PathLike[str], length: int = 256) -> Tokenizer:
    """T5's tokenizer, of a folder's tokenizer.json: pieces of words, then an end token.

    Rows are padded on the right, to 256 as SD3 does.

    Args:
        path: The folder.
        length: Of rows.

    Raises:
        FileNotFoundError: Where the folder has no tokenizer.json.
        ValueError: Where the vocabulary lacks a special token.

    References:
        Kudo & Richardson, SentencePiece, 2018; Raffel et al., Exploring the Limits of Transfer
        Learning with a Unified Text-to-Text Transformer, 2020.
    """
    folder = pathlib.Path(path)
    backend = _backend(folder, "tokenizer.json")
    special = _settings(folder)[1]
    names = {
        "eos": _content(special.get("eos_token"), "</s>"),
        "pad": _content(special.get("pad_token"), "<pad>"),
    }
    ids = _ids(backend, folder, names)
    return Tokenizer(backend, length, begin=None, end=ids["eos"], pad=ids["pad"])


def _package() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "texts are split by the tokenizers package: `pip install guidejax[models]`."
        ) from error
    return tokenizers


def _clip_backend(folder: pathlib.Path, unknown: str) -> Any:
    tokenizers = _package()
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split()) for line in lines if line.strip()]
    # The first line may say what version the file is of.
    merges = [pair for pair in pairs if pair[0] != "#version:"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocab, merges=merges, unk_token=unknown, end_of_word_suffix="</w>",
            continuing_subword_prefix="", fuse_unk=False,
        )
    )  # fmt: skip
    n, p = tokenizers.normalizers, tokenizers.pre_tokenizers
    spaces = n.Replace(tokenizers.Regex(r"\s+"), " ")
    backend.normalizer = n.Sequence([n.NFC(), spaces, n.Lowercase()])
    words = p.Split(tokenizers.Regex(_CLIP_WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = p.Sequence([words, p.ByteLevel(add_prefix_space=False)])
    return backend


def _backend(folder: pathlib.Path, wanted: str) -> Any:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no vocabulary for texts; expected {wanted}.")
    backend = _package().Tokenizer.from_file(str(file))
    # Files may bring their own; rows are cut and padded here.
    backend.no_padding()
    backend.no_truncation()
    return backend


def has_vocabulary(folder: pathlib.Path) -> bool:
    """Whether a folder holds a vocabulary that is read here."""
    return (folder / "tokenizer.json").is_file() or (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    )


def _settings(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What tokenizer_config.json says, and the special tokens, the map's before it."""
    settings = json_of(folder, "tokenizer_config.json")
    return settings, {**settings, **json_of(folder, "special_tokens_map.json")}


def _content(token: Any, default: str) -> str:
    """A special token's text; files give it alone or with how it is found in texts."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return default if token is None else str(token)


def _length(settings: Mapping[str, Any], default: int) -> int:
    # An absurd number stands for none.
    found = settings.get("model_max_length", default)
    return int(found) if isinstance(found, int) and found < 10**6 else default


def _ids(backend: Any, folder: pathlib.Path, names: Mapping[str, str]) -> dict[str, int]:
    ids = {kind: backend.token_to_id(name) for kind, name in names.items()}
    missing = [names[kind] for kind, found in ids.items() if found is None]
    if missing:
        raise ValueError(f"the vocabulary of {folder} has no token {missing[0]!r}.")
    return ids

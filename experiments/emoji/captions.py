"""The emoji as arrays, and their captions as tokens."""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
from typing import Literal

import numpy as np
import tensorflow_datasets as tfds

from guidejax.data.emoji import words

DATA = pathlib.Path(__file__).parent / "data"
LENGTH = 16  # Tokens of a caption; the longest has 11 words.
Split = Literal["train", "composed", "select", "report"]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A split, in the order of Unicode's list.

    Attributes:
        x0: Pictures in [-1, 1], (n, 32, 32, 3).
        captions: Their captions.
        keywords: The words of Unicode's annotations for each.
    """

    x0: np.ndarray
    captions: list[str]
    keywords: list[list[str]]


@functools.cache
def pictures(split: Split) -> Pictures:
    """Read a split of the copy in the repository."""
    builder = tfds.builder_from_directory(DATA / "emoji" / "32" / "1.0.0")
    examples = sorted(builder.as_data_source(split), key=lambda example: example["index"])
    return Pictures(
        np.stack([example["image"] for example in examples]).astype(np.float32) / 127.5 - 1,
        [example["caption"].decode() for example in examples],
        [[text.decode() for text in example["keywords"]] for example in examples],
    )


@functools.cache
def vocabulary() -> dict[str, int]:
    """The words of the training split's captions, and of those keywords that two pictures share.

    Numbered from 1, by the alphabet; 0 is no word.
    """
    train = pictures("train")
    known = {word for caption in train.captions for word in words(caption)}
    shared = collections.Counter(
        word for said in train.keywords for word in {w for text in said for w in words(text)}
    )
    known |= {word for word, count in shared.items() if count > 1}
    return {word: number for number, word in enumerate(sorted(known), 1)}


def tokens(caption: str) -> np.ndarray:
    """A caption as the numbers of its words, (LENGTH,) int32; words that nobody knows are left out.

    The empty caption is the unconditional one.

    Example:
        >>> int((tokens("woman golfing: dark skin tone") > 0).sum())
        5
        >>> int(tokens("").sum())
        0
    """
    numbers = [vocabulary()[word] for word in words(caption) if word in vocabulary()][:LENGTH]
    return np.array(numbers + [0] * (LENGTH - len(numbers)), np.int32)

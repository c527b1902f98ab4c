"""The emoji as arrays, and their captions as tokens."""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import tensorflow_datasets as tfds

from guidejax.data.emoji import words

DATA = pathlib.Path(__file__).parent / "data"
LENGTH = 16  # Tokens of a caption; the longest has 11 words.
# What names carry, and how many values of it there are.
ATTRIBUTES = {"tone": 7, "gender": 4, "hair": 6, "kind": 5}
Split = Literal["train", "composed", "select", "report"]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A split, in the order of Unicode's list.

    Attributes:
        x0: Pictures in [-1, 1], (n, 32, 32, 3).
        captions: Their captions.
        keywords: The words of Unicode's annotations for each.
        groups: Unicode's group of each, "Flags".
        attributes: What names carry, as numbers (n,) from 0 to its count in `ATTRIBUTES`.
    """

    x0: np.ndarray
    captions: list[str]
    keywords: list[list[str]]
    groups: list[str]
    attributes: dict[str, np.ndarray]


@functools.cache
def pictures(split: Split) -> Pictures:
    """Read a split of the copy in the repository."""
    builder = tfds.builder_from_directory(DATA / "emoji" / "32" / "1.0.0")
    examples = sorted(builder.as_data_source(split), key=lambda example: example["index"])
    return Pictures(
        np.stack([example["image"] for example in examples]).astype(np.float32) / 127.5 - 1,
        [example["caption"].decode() for example in examples],
        [[text.decode() for text in example["keywords"]] for example in examples],
        [example["group"].decode() for example in examples],
        {name: np.array([example[name] for example in examples]) for name in ATTRIBUTES},
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


def tokens(captions: Sequence[str]) -> np.ndarray:
    """Captions as the numbers of their words, (n, LENGTH) int32; unknown words are left out.

    The empty caption is the unconditional one.

    Example:
        >>> (tokens(["woman golfing: dark skin tone", ""]) > 0).sum(axis=1).tolist()
        [5, 0]
    """
    known = vocabulary()
    numbers = np.zeros((len(captions), LENGTH), np.int32)
    for row, caption in zip(numbers, captions, strict=True):
        said = [known[word] for word in words(caption) if word in known][:LENGTH]
        row[: len(said)] = said
    return numbers

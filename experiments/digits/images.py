"""The digits, dealt: what networks, searches and learning see, and what is reported on."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

import guidejax as gj
import guidejax.data
from experiments.digits.config import NUM_CLASSES, Protocol


@functools.cache
def _images(data_dir: pathlib.Path) -> dict[str, np.ndarray]:
    parts = [
        gj.data.Images("digits", split, data_dir=data_dir).arrays()
        for split in ("train", "validation", "test")
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in ("x0", "cond")}


def dealt(deal: int, data_dir: pathlib.Path) -> dict[str, np.ndarray]:
    """All images in an order of their own, in which every stretch has its share of each class."""
    whole = _images(data_dir)
    order = np.random.default_rng(deal).permutation(len(whole["cond"]))
    label = whole["cond"][order]
    place = np.empty(len(label))
    for c in range(NUM_CLASSES):
        place[label == c] = (np.arange(np.sum(label == c)) + 0.5) / np.sum(label == c)
    order = order[np.argsort(place, kind="stable")]
    return {name: values[order] for name, values in whole.items()}


def parts(protocol: Protocol, seed: int, data_dir: pathlib.Path) -> list[dict[str, np.ndarray]]:
    """Images to train networks on; these and others, to choose and learn on; and the report's.

    A seed's fold is reported on, and serves no network, search or learning of that seed.
    """
    images = dealt(protocol.deal, data_dir)
    ends = np.linspace(0, len(images["cond"]), protocol.folds + 1).astype(int)
    fold = np.arange(ends[protocol.fold(seed)], ends[protocol.fold(seed) + 1])
    others = np.delete(np.arange(len(images["cond"])), fold)
    trained = others[np.arange(len(others)) % 18 < 13]
    return [{n: v[rows] for n, v in images.items()} for rows in (trained, others, fold)]


def batches(images: dict[str, np.ndarray], group: int, seed: int) -> Iterator[dict[str, Any]]:
    """Every class `group` times in a row, for the rollout."""
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(images["cond"] == c) for c in range(NUM_CLASSES)]
    while True:
        chosen = np.concatenate([rng.choice(r, group, replace=False) for r in rows])
        yield {"x0": images["x0"][chosen], "cond": images["cond"][chosen]}

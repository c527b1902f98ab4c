"""What the originals share. Run where torch is: no JAX here."""

from __future__ import annotations

import hashlib
import json
import pathlib
import zlib
from typing import Any

import numpy as np


def value(key: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """The random value of a tensor, told by its key alone: both sides make the same."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    fan_in = max(1, int(np.prod(shape[1:]))) if len(shape) > 1 else 1
    noise = random.standard_normal(shape)
    if len(shape) > 1:
        return (scale * noise / np.sqrt(fan_in)).astype(np.float32)
    # Scales of norms about 1, shifts and single numbers about 0.
    return np.asarray(0.1 * noise + (1.0 if key.endswith("weight") else 0.0), np.float32)


def pictures(height: int, width: int) -> np.ndarray:
    """Random pixels of 8 bits of a bright and a dark picture, (2, height, width, 3)."""
    pixels = np.random.RandomState(0).randint(0, 256, (2, height, width, 3))
    pixels[1] //= 4
    return pixels.astype(np.uint8)


def fill(module: Any, scale: float = 1.0) -> dict[str, list[int]]:
    """Give a torch module's parameters and buffers their values; returns their shapes."""
    import torch

    shapes = {}
    for key, tensor in module.state_dict().items():
        shapes[key] = list(tensor.shape)
        if tensor.dtype.is_floating_point:
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(value(key, tuple(tensor.shape), scale)))
    return shapes


def layout(shapes: dict[str, tuple[int, ...]]) -> dict[str, object]:
    """How many keys, and a digest of the keys with their shapes."""
    lines = "".join(f"{key} {list(shapes[key])}\n" for key in sorted(shapes))
    return {"keys": len(shapes), "sha256": hashlib.sha256(lines.encode()).hexdigest()}


def save(
    out: pathlib.Path, name: str, arrays: dict[str, np.ndarray], about: dict[str, Any]
) -> None:
    """Write a case: its inputs and what the original made of them."""
    out.mkdir(parents=True, exist_ok=True)
    everything: dict[str, Any] = {"about": np.array(json.dumps(about)), **arrays}
    np.savez_compressed(out / f"{name}.npz", **everything)

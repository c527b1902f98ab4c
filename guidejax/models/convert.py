"""A PyTorch checkpoint as safetensors, which `gj.models` loads. Needs torch.

    python -m guidejax.models.convert SiT-XL-2-256x256.pt SiT-XL-2-256x256.safetensors

Where a checkpoint holds averaged weights ("ema") beside others, those are taken.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

# Under which names training scripts keep the weights, the best first.
_NAMES = ("ema", "state_dict", "model", "module")


def convert(source: pathlib.Path, target: pathlib.Path) -> list[str]:
    """Write the tensors of `source` to `target`; returns their keys.

    Args:
        source: A .pt, .pth, .bin or .ckpt file, which is read without running what it holds.
        target: The .safetensors file to write.

    Raises:
        ImportError: Where torch isn't installed.
        ValueError: If the file holds no tensors by name.
    """
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError("converting a PyTorch file needs torch and safetensors.") from error
    found: Any = torch.load(source, map_location="cpu", weights_only=True)
    for name in _NAMES:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
            break
    tensors = {
        key.removeprefix("module."): value.contiguous().clone()
        for key, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        held = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"{source} holds no tensors by name; it holds {held}.")
    save_file(tensors, target)
    return sorted(tensors)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    keys = convert(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
    print(f"{len(keys)} tensors: {', '.join(keys[:3])}, ...")

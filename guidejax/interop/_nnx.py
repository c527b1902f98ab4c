"""What adapters of Flax NNX modules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guidejax._denoisers import NNXNetwork, split_nnx


def split(module: Any, call: Callable[..., Any]) -> tuple[NNXNetwork, Any]:
    """(network, params) of an NNX module, for `gj.denoiser`; `call(module, x, told, cond)`."""
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise ValueError(f"expected a Flax NNX module, got {type(module).__name__}.")
    return split_nnx(module, call)

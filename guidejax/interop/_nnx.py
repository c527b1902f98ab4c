"""What adapters of Flax NNX modules share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Split:
    """`call(module, x, told, cond)` as a network of an NNX module's state.

    A frozen dataclass, not a closure: two of the same module are equal, and compile once.
    """

    graphdef: Any
    call: Callable[..., Any]

    def __call__(self, state, x, told, cond):
        from flax import nnx

        module = nnx.merge(self.graphdef, state)
        leaves = lambda: dict(jax.tree_util.tree_leaves_with_path(nnx.state(module)))  # noqa: E731
        before = leaves()
        output = self.call(module, x, told, cond)
        after = leaves()
        if any(after.get(path) is not leaf for path, leaf in before.items()):
            raise ValueError(
                "the NNX module changes its own state as it is called, as dropout does in training "
                "mode: call module.eval() first."
            )
        return output


def split(module: Any, call: Callable[..., Any]) -> tuple[Split, Any]:
    """(network, params) of an NNX module, for `gj.denoiser`."""
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise ValueError(f"expected a Flax NNX module, got {type(module).__name__}.")
    graphdef, state = nnx.split(module)
    return Split(graphdef, call), state

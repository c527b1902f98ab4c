"""Any network as a denoiser: `denoise(x, t, cond) -> x0`. Everything after this line speaks x0."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from guidejax._arrays import Array, Tree, batch_size, rounded, shard_like, tree_map
from guidejax.processes import PREDICTIONS, Process, to_x0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A network, its parameters and its process; call it as `denoise(x, t, cond)`.

    A pytree: `params` and `process` are traced, so that new parameters don't recompile.
    """

    params: Any
    process: Process
    network: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    prediction: str = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Tree, t: Array, cond: Any = None) -> Tree:
        """x̂0(x_t, t, cond); `t` is a scalar or (batch,), the network sees (batch,)."""
        t = jnp.asarray(t, jnp.result_type(float))
        # Split as the state is: on an explicit mesh a network may join the two.
        times = shard_like(jnp.broadcast_to(t, (batch_size(x),)), jax.tree.leaves(x)[0])
        output = self.network(self.params, x, times, cond)
        got, want = tree_map(jnp.shape, output), tree_map(jnp.shape, x)
        if got != want:
            raise ValueError(
                f"the network returned shape {got} for a state of shape {want}; "
                f"expected the same shape (prediction={self.prediction!r})."
            )
        # Back to the state's dtype: a network may compute in another.
        x0 = to_x0(output, x, t, self.process, self.prediction)
        return tree_map(lambda x0, x: rounded(x0.astype(x.dtype)), x0, x)


@dataclasses.dataclass(frozen=True)
class _Plain:
    """A function of (x, t, cond) that holds its own parameters."""

    fn: Callable[..., Any]

    def __call__(self, params, x, t, cond):
        return self.fn(x, t, cond)


@dataclasses.dataclass(frozen=True)
class _WithParams:
    """A function of (params, x, t, cond)."""

    fn: Callable[..., Any]

    def __call__(self, params, x, t, cond):
        return self.fn(params, x, t, cond)


@dataclasses.dataclass(frozen=True)
class _Linen:
    module: linen.Module

    def __call__(self, params, x, t, cond):
        return self.module.apply(params, x, t, cond)


@dataclasses.dataclass(frozen=True)
class _NNX:
    graphdef: Any

    def __call__(self, params, x, t, cond):
        return nnx.merge(self.graphdef, params)(x, t, cond)


def denoiser(
    network: Callable[..., Any], process: Process, prediction: str = "x0", params: Any = None
) -> Denoiser:
    """Wrap a network as `denoise(x, t, cond) -> x0`.

    Args:
        network: One of
            - a function `network(x, t, cond) -> output`;
            - a function `network(params, x, t, cond)`, with `params` given;
            - a Flax linen module called as `(x, t, cond)`, with its variables as `params`;
            - a Flax NNX module called as `(x, t, cond)`.
            `x` is (batch, ...), `t` is (batch,), `cond` is what the user gives the sampler.
        process: The noising process that the network was trained on.
        prediction: What the network outputs: "x0", "eps", "v", "velocity" (ε − x0) or "score".
        params: The network's parameters, where it doesn't hold them itself. Traced.

    Returns:
        A `Denoiser`, a pytree that can be called.

    Raises:
        ValueError: If `prediction` is unknown, a linen module comes without variables, or, at
            the first call, the network's output has not the shape of its input.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> denoise = denoiser(lambda x, t, cond: 0 * x, rectified_flow(), "velocity")
        >>> denoise(jnp.ones((2, 3)), 0.5).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"unknown prediction {prediction!r}; expected one of {', '.join(PREDICTIONS)}."
        )
    if isinstance(network, Denoiser):
        raise ValueError("the network is a Denoiser already; pass it to `sample` as it is.")
    if isinstance(network, nnx.Module):
        if params is not None:
            raise ValueError("an NNX module holds its parameters; got `params` as well.")
        graphdef, state = nnx.split(network)
        return Denoiser(state, process, _NNX(graphdef), prediction)
    if isinstance(network, linen.Module):
        if params is None:
            raise ValueError(
                "a linen module needs its variables: denoiser(module, process, params=variables)."
            )
        return Denoiser(params, process, _Linen(network), prediction)
    if not callable(network):
        raise ValueError(f"expected a function or a Flax module, got {type(network).__name__}.")
    wrap = _Plain if params is None else _WithParams
    return Denoiser(params, process, wrap(network), prediction)


def as_denoiser(denoise: Callable[..., Any], process: Process) -> Denoiser:
    """`denoise` itself, or a bare function `(x, t, cond) -> x0` as a `Denoiser`."""
    return denoise if isinstance(denoise, Denoiser) else denoiser(denoise, process)

"""diffuse_nnx, of SiT's author: its interfaces' `pred` as denoisers."""

from __future__ import annotations

from typing import Any

from guidejax._denoisers import Denoiser, denoiser
from guidejax.interop._nnx import split
from guidejax.processes.base import Process
from guidejax.processes.continuous import edm as edm_process
from guidejax.processes.continuous import rectified_flow


def _pred(interface, x, t, cond):
    return interface.pred(x, t) if cond is None else interface.pred(x, t, y=cond)


def _pred_reversed(interface, x, t, cond):
    return -_pred(interface, x, 1 - t, cond)


def sit(interface: Any, *, data_at: int = 0) -> Denoiser:
    """An interface with x_t = (1 − t) x0 + t ε and `pred(x_t, t, y=...)` = ε − x0, as a denoiser.

    diffuse_nnx's `SiTInterface` has noise at t = 1, as guidejax has. The SiT that was published
    before it, in PyTorch, has data at t = 1 and predicts x0 − ε; for a module with its `pred` say
    `data_at=1`.

    Args:
        interface: The NNX module, in eval mode; its parameters are taken as they are now.
        data_at: The time of clean data in the interface's own counting, 0 or 1.

    Returns:
        A `Denoiser` of `rectified_flow`; its condition is the label y, (batch,).

    Raises:
        ValueError: If it is no NNX module with a `pred`, `data_at` is neither 0 nor 1, or, at a
            call, if the module changes its own state, as dropout does.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> class Interface(nnx.Module):  # a stand-in with its signature
        ...     def pred(self, x_t, t, y):
        ...         return x_t * t[:, None] + y[:, None]
        >>> denoise = sit(Interface())
        >>> denoise(jnp.ones((1, 2)), 0.5, jnp.ones(1)).tolist()
        [[0.25, 0.25]]

    Source: `diffuse_nnx/interfaces/continuous.py`, SiTInterface.
    """
    _check(interface)
    if data_at not in (0, 1):
        raise ValueError(f"data_at must be 0 or 1, the time of clean data; got {data_at!r}.")
    network, params = split(interface, _pred_reversed if data_at else _pred)
    return denoiser(network, rectified_flow(), "velocity", params=params)


def edm(interface: Any, *, process: Process | None = None) -> Denoiser:
    """An interface with x_σ = x0 + σ ε and `pred(x_σ, σ, y=...)` = (x_σ − x̂0)/σ, as a denoiser.

    Its tangent is ε̂; it is told σ.

    Args:
        interface: The NNX module, in eval mode; its parameters are taken as they are now.
        process: With α = 1; None is `gj.processes.edm()`, up to σ = 80.

    Returns:
        A `Denoiser`; `denoise.on(process)` is the same one on any other.

    Raises:
        ValueError: If it is no NNX module with a `pred`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> class Interface(nnx.Module):  # a stand-in with its signature
        ...     def pred(self, x_t, t):
        ...         return (x_t - 0.5) / t[:, None]
        >>> edm(Interface())(jnp.ones((1, 2)), 0.5).round(5).tolist()
        [[0.5, 0.5]]

    Source: `diffuse_nnx/interfaces/continuous.py`, EDMInterface.
    """
    _check(interface)
    network, params = split(interface, _pred)
    of = edm_process() if process is None else process
    return denoiser(network, of, "eps", time="sigma", params=params)


def _check(interface: Any) -> None:
    if not callable(getattr(interface, "pred", None)):
        raise ValueError(
            f"expected an interface with pred(x_t, t, y=...), got {type(interface).__name__}."
        )

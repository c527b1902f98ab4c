"""What the UNet and the VAE of Stable Diffusion share, by the names of diffusers' tensors."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from guidejax._arrays import Array
from guidejax.models._files import Shapes
from guidejax.models._layers import (
    conv,
    conv_shapes,
    group_norm,
    linear,
    linear_shapes,
    norm_shapes,
)

Params = Mapping[str, Array]


def resnet(
    params: Params, name: str, x: Array, told: Array | None, eps: float, groups: int
) -> Array:
    """x + conv(silu(norm(conv(silu(norm(x))) + time))), x projected where the widths differ.

    Args:
        params: By key.
        name: Before the keys.
        x: (batch, height, width, channels).
        told: silu of the embedded time, (batch, width); None for the VAE.
        eps: Of the norms.
        groups: Of the norms.
    """
    y = conv(params, f"{name}.conv1", _act(params, f"{name}.norm1", x, eps, groups), padding=1)
    if told is not None:
        y = y + linear(params, f"{name}.time_emb_proj", told)[:, None, None]
    y = conv(params, f"{name}.conv2", _act(params, f"{name}.norm2", y, eps, groups), padding=1)
    if f"{name}.conv_shortcut.weight" in params:
        x = conv(params, f"{name}.conv_shortcut", x)
    return x + y


def _act(params: Params, name: str, x: Array, eps: float, groups: int) -> Array:
    return jax.nn.silu(group_norm(params, name, x, eps, groups))


def twice(x: Array, size: tuple[int, int] | None = None) -> Array:
    """Each pixel as 2 × 2, the nearest neighbour; cut to `size`, as where half a size was odd."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x if size is None else x[:, : size[0], : size[1]]


def resnet_shapes(name: str, into: int, out: int, told: int | None) -> Shapes:
    """Of `resnet` from `into` to `out` channels, with times embedded in `told` numbers."""
    return {
        **norm_shapes(f"{name}.norm1", into),
        **conv_shapes(f"{name}.conv1", out, into),
        **({} if told is None else linear_shapes(f"{name}.time_emb_proj", out, told)),
        **norm_shapes(f"{name}.norm2", out),
        **conv_shapes(f"{name}.conv2", out, out),
        **({} if into == out else conv_shapes(f"{name}.conv_shortcut", out, into, 1)),
    }


def option(config: Mapping[str, object], name: str, default: object, kinds: str) -> None:
    """Raise `ValueError` unless an option has the one value that is supported, or is left out."""
    value = config.get(name, default)
    if value is not None and value != default:
        raise ValueError(
            f"the {kinds}'s config has {name}={value!r}, which isn't supported; expected "
            f"{default!r}."
        )


def unknown(config: Mapping[str, object], known: set[str], kinds: str) -> None:
    """Raise `ValueError` where a config says something that isn't known here."""
    for name, value in config.items():
        if name not in known and not name.startswith("_") and value not in (None, False):
            raise ValueError(
                f"the {kinds}'s config has {name}={value!r}, which isn't known here; it may change "
                "what the network computes."
            )

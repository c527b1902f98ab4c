"""A DiT whose heads and hidden units may be split over the mesh axis "model"; shapes alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Size:
    """Width, depth and heads, on latents of `image`² pixels and `channels`, in bfloat16."""

    width: int
    depth: int
    heads: int
    image: int = 32
    channels: int = 4
    patch: int = 2

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return self.image, self.image, self.channels

    @property
    def tokens(self) -> int:
        """Of one image."""
        return (self.image // self.patch) ** 2

    @property
    def parameters(self) -> int:
        """How many numbers `arrays` holds."""
        sizes = jax.tree.map(lambda leaf: leaf[0].size, arrays(self), is_leaf=_is_pair)
        return sum(jax.tree.leaves(sizes))


# A billion parameters in few layers, each of which takes the compiler its time; and the width of
# DiT-XL, two of its layers deep.
BILLION = Size(width=5120, depth=2, heads=40)
XL = Size(width=1152, depth=2, heads=16)


def _is_pair(node: Any) -> bool:
    return isinstance(node, tuple)


def arrays(size: Size) -> dict[str, Any]:
    """For each parameter (its shape, how it is split)."""
    d, token, heads = size.width, size.patch**2 * size.channels, size.heads

    def bf16(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    layer = {
        "modulation": (bf16(6, d, d), P(None, None, "model")),
        "qkv": (bf16(3, d, heads, d // heads), P(None, None, "model")),
        "mix": (bf16(heads, d // heads, d), P("model")),
        "up": (bf16(d, 4 * d), P(None, "model")),
        "down": (bf16(4 * d, d), P("model")),
    }
    return {
        "patch": (bf16(token, d), P()),
        "position": (bf16(size.tokens, d), P()),
        "time_in": (bf16(d, d), P()),
        "time_out": (bf16(d, d), P()),
        "label": (bf16(CLASSES + 1, d), P()),
        "layers": [layer] * size.depth,
        "last": (bf16(2, d, d), P()),
        "final": (bf16(d, token), P()),
    }


def _norm(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)


def velocity(size: Size, params: Any, x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
    """v(x, t, label): x is (batch, image, image, channels), t and labels are (batch,)."""
    p, n, d = size.patch, size.image // size.patch, size.width
    tokens = x.astype(jnp.bfloat16).reshape(-1, n, p, n, p, size.channels).swapaxes(2, 3)
    h = tokens.reshape(len(x), n * n, -1) @ params["patch"] + params["position"]
    rates = jnp.exp(-jnp.log(10_000.0) * jnp.arange(d // 2) / (d // 2))
    angles = 1000 * t.astype(jnp.float32)[:, None] * rates
    waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1).astype(jnp.bfloat16)
    c = jax.nn.silu(waves @ params["time_in"]) @ params["time_out"]
    c = jax.nn.silu(c + params["label"][labels])
    for layer in params["layers"]:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.einsum(
            "bd,kde->kbe", c, layer["modulation"]
        )[:, :, None]
        q, k, v = jnp.einsum("bnd,kdhe->kbnhe", _norm(h) * (1 + scale_a) + shift_a, layer["qkv"])
        mixed = jax.nn.dot_product_attention(q, k, v)
        h = h + gate_a * jnp.einsum("bnhe,hed->bnd", mixed, layer["mix"])
        up = jax.nn.gelu((_norm(h) * (1 + scale_m) + shift_m) @ layer["up"])
        h = h + gate_m * (up @ layer["down"])
    shift, scale = jnp.einsum("bd,kde->kbe", c, params["last"])[:, :, None]
    out = (_norm(h) * (1 + scale) + shift) @ params["final"]
    out = out.reshape(-1, n, n, p, p, size.channels).swapaxes(2, 3)
    return out.reshape(x.shape).astype(x.dtype)

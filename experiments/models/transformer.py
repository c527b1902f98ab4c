"""A small text-to-image transformer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from guidejax._arrays import Array


class TextToImage(nn.Module):
    """Transformer f(x_t, t, words) over patches of a picture and the words of its caption.

    A text encoder's words stand beside the patches in one sequence (as in MM-DiT, Esser et al.
    2403.03206, with weights in common). The time and the sum of the words shift, scale and gate
    each block, by one projection for all of them and a learned offset of each (adaLN-single, Chen
    et al. 2310.00426).

    Attributes:
        width: Width, a multiple of `heads`.
        depth: Blocks.
        heads: Attention heads.
        patch: Pixels a side of a patch.
        dropout: Share of each block's outputs that training leaves out.

    Example:
        >>> net = TextToImage(width=16, depth=1, heads=2)
        >>> x, t, words = jnp.zeros((2, 8, 8, 3)), jnp.ones(2), jnp.ones((2, 5, 7))
        >>> net.apply(net.init(jax.random.key(0), x, t, words), x, t, words).shape
        (2, 8, 8, 3)
    """

    width: int = 144
    depth: int = 8
    heads: int = 6
    patch: int = 4
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, t: Array, words: Array, *, train: bool = False) -> Array:
        """The network's output, the shape of `x` (batch, side, side, channels).

        Args:
            x: x_t.
            t: Times (batch,).
            words: (batch, length, features); a row of zeros is no word.
            train: Whether to drop outputs out; needs `rngs={"dropout": key}`.
        """
        batch, side, _, channels = x.shape
        rows = side // self.patch
        zeros = nn.initializers.zeros
        known = jnp.any(words != 0, axis=-1)
        count = jnp.maximum(known.sum(axis=1, keepdims=True), 1)
        angles = t[:, None] * jnp.exp(jnp.linspace(jnp.log(0.5), jnp.log(60.0), 32))
        time = nn.Dense(self.width)(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1))
        time = nn.Dense(self.width)(nn.silu(time))
        about = nn.silu(time + nn.Dense(self.width)(words.sum(axis=1) / jnp.sqrt(count)))
        modulation = nn.Dense(6 * self.width, kernel_init=zeros)(about)
        modulation = modulation.reshape(batch, 6, self.width)

        z = x.reshape(batch, rows, self.patch, rows, self.patch, channels)
        z = nn.Dense(self.width)(z.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows**2, -1))
        z = z + self.param("where", nn.initializers.normal(0.02), (rows**2, self.width))
        order = self.param("order", nn.initializers.normal(0.02), (words.shape[1], self.width))
        z = jnp.concatenate([z, nn.Dense(self.width)(words) + order], axis=1)
        seen = jnp.concatenate([jnp.ones((batch, rows**2), bool), known], axis=1)
        for i in range(self.depth):
            own = self.param(f"modulation_{i}", zeros, (6, self.width))
            z = self._block(z, seen, jnp.moveaxis(modulation + own, 1, 0)[:, :, None], train)

        scale, shift = jnp.split(nn.Dense(2 * self.width, kernel_init=zeros)(about)[:, None], 2, -1)
        z = _normed(z[:, : rows**2]) * (1 + scale) + shift
        z = nn.Dense(self.patch**2 * channels, kernel_init=zeros)(z)
        z = z.reshape(batch, rows, rows, self.patch, self.patch, channels)
        return z.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)

    def _block(self, z: Array, seen: Array, modulation: Array, train: bool) -> Array:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        scale, shift, gate, scale_2, shift_2, gate_2 = modulation
        small = nn.initializers.normal(0.02 / (2 * self.depth) ** 0.5)
        heads = (*z.shape[:2], self.heads, self.width // self.heads)
        inner = nn.Dense(3 * self.width)(_normed(z) * (1 + scale) + shift)
        q, k, v = (part.reshape(heads) for part in jnp.split(inner, 3, axis=-1))
        q, k = nn.RMSNorm()(q), nn.RMSNorm()(k)
        found = jax.nn.dot_product_attention(q, k, v, mask=seen[:, None, None])
        z = z + (1 + gate) * drop(nn.Dense(self.width, kernel_init=small)(found.reshape(z.shape)))
        inner = nn.Dense(4 * self.width)(_normed(z) * (1 + scale_2) + shift_2)
        return z + (1 + gate_2) * drop(nn.Dense(self.width, kernel_init=small)(nn.gelu(inner)))


def _normed(z: Array) -> Array:
    return nn.LayerNorm(use_scale=False, use_bias=False)(z)

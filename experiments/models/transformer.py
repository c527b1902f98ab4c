"""A small text-to-image transformer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from guidejax._arrays import Array


class TextToImage(nn.Module):
    """Transformer f(x_t, t, tokens) over patches of a picture and the words of its caption.

    Words stand beside the patches in one sequence (as in MM-DiT, Esser et al. 2403.03206, with
    weights in common). The time and the sum of the words shift, scale and gate each block, by one
    projection for all of them and a learned offset of each (adaLN-single, Chen et al. 2310.00426).

    Attributes:
        vocabulary: Words are 1 … vocabulary; 0 is no word.
        width: Width, a multiple of `heads`.
        depth: Blocks.
        heads: Attention heads.
        patch: Pixels a side of a patch.

    Example:
        >>> net = TextToImage(vocabulary=9, width=16, depth=1, heads=2)
        >>> x, t, tokens = jnp.zeros((2, 8, 8, 3)), jnp.ones(2), jnp.array([[3, 9], [0, 0]])
        >>> net.apply(net.init(jax.random.key(0), x, t, tokens), x, t, tokens).shape
        (2, 8, 8, 3)
    """

    vocabulary: int
    width: int = 144
    depth: int = 8
    heads: int = 6
    patch: int = 4

    @nn.compact
    def __call__(self, x: Array, t: Array, tokens: Array) -> Array:
        """The network's output, the shape of `x` (batch, side, side, channels), for t (batch,)."""
        batch, side, _, channels = x.shape
        rows = side // self.patch
        zeros = nn.initializers.zeros
        known = tokens > 0
        embed = nn.Embed(
            self.vocabulary + 1, self.width, embedding_init=nn.initializers.normal(0.5)
        )
        said = embed(tokens) * known[..., None]
        count = jnp.maximum(known.sum(axis=1, keepdims=True), 1)
        angles = t[:, None] * jnp.exp(jnp.linspace(jnp.log(0.5), jnp.log(60.0), 32))
        time = nn.Dense(self.width)(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1))
        time = nn.Dense(self.width)(nn.silu(time))
        about = nn.silu(time + nn.Dense(self.width)(said.sum(axis=1) / jnp.sqrt(count)))
        modulation = nn.Dense(6 * self.width, kernel_init=zeros)(about)
        modulation = modulation.reshape(batch, 6, self.width)

        z = x.reshape(batch, rows, self.patch, rows, self.patch, channels)
        z = nn.Dense(self.width)(z.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows**2, -1))
        z = z + self.param("where", nn.initializers.normal(0.02), (rows**2, self.width))
        order = self.param("order", nn.initializers.normal(0.02), (tokens.shape[1], self.width))
        z = jnp.concatenate([z, nn.Dense(self.width)(said) + order], axis=1)
        seen = jnp.concatenate([jnp.ones((batch, rows**2), bool), known], axis=1)
        for i in range(self.depth):
            own = self.param(f"modulation_{i}", zeros, (6, self.width))
            z = self._block(z, seen, jnp.moveaxis(modulation + own, 1, 0)[:, :, None])

        scale, shift = jnp.split(nn.Dense(2 * self.width, kernel_init=zeros)(about)[:, None], 2, -1)
        z = _normed(z[:, : rows**2]) * (1 + scale) + shift
        z = nn.Dense(self.patch**2 * channels, kernel_init=zeros)(z)
        z = z.reshape(batch, rows, rows, self.patch, self.patch, channels)
        return z.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)

    def _block(self, z: Array, seen: Array, modulation: Array) -> Array:
        scale, shift, gate, scale_2, shift_2, gate_2 = modulation
        small = nn.initializers.normal(0.02 / (2 * self.depth) ** 0.5)
        heads = (*z.shape[:2], self.heads, self.width // self.heads)
        inner = nn.Dense(3 * self.width)(_normed(z) * (1 + scale) + shift)
        q, k, v = (part.reshape(heads) for part in jnp.split(inner, 3, axis=-1))
        q, k = nn.RMSNorm()(q), nn.RMSNorm()(k)
        found = jax.nn.dot_product_attention(q, k, v, mask=seen[:, None, None])
        z = z + (1 + gate) * nn.Dense(self.width, kernel_init=small)(found.reshape(z.shape))
        inner = nn.Dense(4 * self.width)(_normed(z) * (1 + scale_2) + shift_2)
        return z + (1 + gate_2) * nn.Dense(self.width, kernel_init=small)(nn.gelu(inner))


def _normed(z: Array) -> Array:
    return nn.LayerNorm(use_scale=False, use_bias=False)(z)

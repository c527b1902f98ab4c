"""Small towers for pictures and captions, as CLIP has them."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from experiments.models.classifiers import patches
from guidejax._arrays import Array


class ConvTower(nn.Module):
    """3×3 convolutions with stride 2; its features are the last hidden layer.

    Attributes:
        outputs: Length of the embedding, or number of logits.
        channels: Of each convolution.
        width: Features.
        activation: Name of a function in `flax.linen`.
        dropout: Share of the features that training leaves out.

    Example:
        >>> import jax
        >>> net, x = ConvTower(5, (4, 8), 16), jnp.zeros((2, 32, 32, 3))
        >>> [a.shape for a in net.apply(net.init(jax.random.key(0), x), x)]
        [(2, 16), (2, 5)]
    """

    outputs: int
    channels: Sequence[int] = (32, 64, 96)
    width: int = 128
    activation: str = "silu"
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[Array, Array]:
        """(features, embedding) of pictures (batch, height, width, channels)."""
        act = getattr(nn, self.activation)
        for channels in self.channels:
            x = act(nn.LayerNorm()(nn.Dense(channels)(patches(x, stride=2))))
        x = act(nn.LayerNorm()(nn.Dense(self.width)(x.reshape(x.shape[0], -1))))
        dropped = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x, nn.Dense(self.outputs)(dropped)


class PatchTower(nn.Module):
    """A transformer over patches; its features are the mean of its last layer.

    Attributes:
        outputs: Length of the embedding, or number of logits.
        patch: Pixels a side of a patch.
        width: Width, and features.
        depth: Blocks.
        dropout: Share of the features that training leaves out.

    Example:
        >>> import jax
        >>> net, x = PatchTower(5, width=16, depth=1), jnp.zeros((2, 32, 32, 3))
        >>> [a.shape for a in net.apply(net.init(jax.random.key(0), x), x)]
        [(2, 16), (2, 5)]
    """

    outputs: int
    patch: int = 4
    width: int = 96
    depth: int = 2
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[Array, Array]:
        """(features, embedding) of pictures (batch, height, width, channels)."""
        batch, side, _, channels = x.shape
        rows = side // self.patch
        x = x.reshape(batch, rows, self.patch, rows, self.patch, channels)
        x = nn.Dense(self.width)(x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows**2, -1))
        x = x + self.param("where", nn.initializers.normal(0.1), (rows**2, self.width))
        for _ in range(self.depth):
            x = _block(x, None)
        x = nn.LayerNorm()(x).mean(axis=1)
        dropped = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x, nn.Dense(self.outputs)(dropped)


class TextTower(nn.Module):
    """Words as a transformer sees them, and one embedding of them all.

    Attributes:
        vocabulary: Words are 1 … vocabulary; 0 is no word.
        outputs: Length of the embedding.
        width: Width, and features of a word.
        depth: Blocks; 0 is a bag of words.
        dropout: Share of the features that training leaves out.

    Example:
        >>> import jax
        >>> net, tokens = TextTower(9, 5, width=8), jnp.array([[3, 9], [0, 0]])
        >>> [a.shape for a in net.apply(net.init(jax.random.key(0), tokens), tokens)]
        [(2, 2, 8), (2, 5)]
    """

    vocabulary: int
    outputs: int
    width: int = 64
    depth: int = 1
    dropout: float = 0.2

    @nn.compact
    def __call__(self, tokens: Array, *, train: bool = False) -> tuple[Array, Array]:
        """(words, embedding) of tokens (batch, length); no word has features of 0."""
        known = tokens > 0
        embed = nn.Embed(self.vocabulary + 1, self.width, embedding_init=nn.initializers.normal(1))
        x = embed(tokens)
        if self.depth:
            x = x + self.param("where", nn.initializers.normal(0.1), (tokens.shape[1], self.width))
        for _ in range(self.depth):
            x = _block(x, known)
        x = nn.LayerNorm()(x) * known[..., None]
        mean = x.sum(axis=1) / jnp.maximum(known.sum(axis=1, keepdims=True), 1)
        y = nn.Dropout(self.dropout, deterministic=not train)(mean)
        return x, nn.Dense(self.outputs)(y + nn.Dense(self.width)(nn.silu(nn.Dense(128)(y))))


def _block(x: Array, known: Array | None) -> Array:
    mask = None if known is None else known[:, None, None, :]
    x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x), mask=mask)
    width = x.shape[-1]
    return x + nn.Dense(width)(nn.silu(nn.Dense(2 * width)(nn.LayerNorm()(x))))

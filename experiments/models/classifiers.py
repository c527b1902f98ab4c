"""Small classifiers of different shapes, used for their features."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from guidejax._arrays import Array


class MLPClassifier(nn.Module):
    """Fully connected classifier; its features are the last hidden layer.

    Attributes:
        num_classes: Number of logits.
        widths: Width of each hidden layer.
        activation: Name of a function in `flax.linen`.
    """

    num_classes: int
    widths: Sequence[int] = (128, 64)
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """(logits, features) of images (batch, height, width, channels)."""
        act = getattr(nn, self.activation)
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = act(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x), x


def patches(x: Array, stride: int) -> Array:
    """The 3×3 neighbourhood of every (stride-th) pixel: (batch, h, w, 9 channels).

    With a dense layer it is a convolution; inside a scan on CPU it trains ten times faster than
    XLA's own.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [
        padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(3)
        for j in range(3)
    ]
    return jnp.concatenate(shifts, axis=-1)


class ConvClassifier(nn.Module):
    """Convolutional classifier; its features are the last hidden layer.

    Attributes:
        num_classes: Number of logits.
        channels: Channels of each 3×3 convolution; from the second on, with stride 2.
        width: Width of the dense layer before the logits.
        activation: Name of a function in `flax.linen`.
    """

    num_classes: int
    channels: Sequence[int] = (16, 32)
    width: int = 64
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """(logits, features) of images (batch, height, width, channels)."""
        act = getattr(nn, self.activation)
        for index, channels in enumerate(self.channels):
            x = act(nn.Dense(channels)(patches(x, stride=2 if index else 1)))
        x = act(nn.Dense(self.width)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(x), x

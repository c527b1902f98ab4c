"""A small class-conditional denoiser for images of a few hundred numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from guidejax._arrays import Array


class ResidualMLP(nn.Module):
    """Residual MLP f(x_t, t, label): h ← h + W₂ silu(W₁ LN(h) + V e(t, label)) in each block.

    Attributes:
        num_classes: Labels are 0 … num_classes − 1; `num_classes` itself is the null label.
        hidden: Width.
        depth: Residual blocks.

    Example:
        >>> net = ResidualMLP(num_classes=10, hidden=32, depth=1)
        >>> x, t, label = jnp.zeros((2, 8, 8, 1)), jnp.ones(2), jnp.array([3, 10])
        >>> net.apply(net.init(jax.random.key(0), x, t, label), x, t, label).shape
        (2, 8, 8, 1)
    """

    num_classes: int
    hidden: int = 256
    depth: int = 3

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array) -> Array:
        """The network's output, the shape of `x`, for x (batch, ...), t and label (batch,)."""
        shape = x.shape
        x = x.reshape(shape[0], -1)
        angles = t[:, None] * jnp.exp(jnp.linspace(jnp.log(0.5), jnp.log(50.0), 16))
        # A one-hot product, not nn.Embed: that raises on labels sharded over an explicit mesh.
        known = jnp.concatenate(
            [jnp.sin(angles), jnp.cos(angles), jax.nn.one_hot(label, self.num_classes + 1)], axis=-1
        )
        embed = nn.silu(nn.Dense(64)(known))
        h = nn.Dense(self.hidden)(x)
        for _ in range(self.depth):
            inner = nn.Dense(self.hidden)(nn.LayerNorm()(h)) + nn.Dense(self.hidden)(embed)
            h = h + nn.Dense(self.hidden)(nn.silu(inner))
        out = nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros)(nn.LayerNorm()(h))
        return out.reshape(shape)

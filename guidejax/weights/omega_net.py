"""The learned weight ω^φ(c, s, t): a small network of log-SNRs and, if asked, the condition."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from guidejax._arrays import Array, is_concrete
from guidejax.processes import Process
from guidejax.weights.base import Step, Weight

# The knee of ω = (z + √(z² + b))/2, which is √b/2 at z = 0.
KNEE = 0.01


class _MLP(nn.Module):
    num_classes: int | None
    cond_dim: int | None
    hidden: int
    depth: int
    output_bias: float

    @nn.compact
    def __call__(self, features: Array, cond: Array | None) -> Array:
        h = nn.Dense(self.hidden)(nn.silu(nn.Dense(self.hidden)(features)))
        if self.num_classes is not None:
            # A one-hot product, not a gather: nn.Embed raises on a label array that is sharded
            # over an explicit mesh.
            one_hot = jax.nn.one_hot(cond, self.num_classes, dtype=features.dtype)
            h = h + nn.Dense(self.hidden, use_bias=False, kernel_init=nn.initializers.normal(1.0))(
                one_hot
            )
        elif cond is not None:
            projected = nn.silu(nn.Dense(self.hidden)(cond.astype(features.dtype)))
            h = h + nn.Dense(self.hidden)(projected)
        for _ in range(self.depth):
            h = h + nn.Dense(self.hidden)(nn.silu(nn.LayerNorm()(h)))
        out = nn.Dense(
            1,
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(self.output_bias),
        )(nn.silu(nn.LayerNorm()(h)))
        return _positive(out[..., 0])


def _positive(z: Array) -> Array:
    """(z + √(z² + b))/2: z where that is large, b/(4 |z|) where it is negative.

    Unlike softplus it neither slows an ω near 0.05, where many a good weight lies, nor dies where
    z has become negative: its slope falls as 1/z², not exponentially.
    """
    root = jnp.sqrt(z**2 + KNEE)
    # z + root of a negative z is a difference of equals; the same without it:
    return 0.5 * jnp.where(z >= 0, z + root, KNEE / (root + jnp.abs(z)))


@dataclasses.dataclass(frozen=True)
class OmegaNet:
    """ω^φ(c, s, t) = (z + √(z² + 0.01))/2, z = MLP(λ_s, λ_t, c), an `(init, apply)` pair.

    Galashov et al. 2510.00815, §3: log-SNR features of both times through a two-layer encoder,
    the condition added, a residual MLP, one positive output; the paper ends in a ReLU, which
    gets no gradient once it is negative everywhere; this output always moves. The last layer
    starts at zero, so that training begins at the constant `init_omega`.

    Attributes:
        num_classes: Number of classes where `cond` is class ids (batch,); else None.
        cond_dim: Length of `cond` where it is an embedding (batch, cond_dim); else None. Both
            None: ω depends on the times alone.
        hidden: Width.
        depth: Residual layers after the encoder.
        init_omega: ω before any training, positive.

    Raises:
        ValueError: If both `num_classes` and `cond_dim` are given, or a size is not positive.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> net = OmegaNet(num_classes=10)
        >>> phi = net.init(jax.random.key(0))
        >>> omega = net.weight(phi)(0.4, 0.5, jnp.arange(3), process=rectified_flow())
        >>> omega.shape, round(float(omega[0]), 4)
        ((3,), 1.0)
    """

    num_classes: int | None = None
    cond_dim: int | None = None
    hidden: int = 64
    depth: int = 3
    init_omega: float = 1.0

    def __post_init__(self):
        if self.num_classes is not None and self.cond_dim is not None:
            raise ValueError("give OmegaNet `num_classes` or `cond_dim`, not both.")
        for name in ("num_classes", "cond_dim", "hidden"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"OmegaNet expects a positive {name}, got {size}.")
        if not self.init_omega > 0:
            raise ValueError(f"OmegaNet expects init_omega > 0, got {self.init_omega}.")

    @property
    def _module(self) -> _MLP:
        bias = self.init_omega - KNEE / (4 * self.init_omega)
        return _MLP(self.num_classes, self.cond_dim, self.hidden, self.depth, bias)

    def init(self, key: Array) -> Any:
        """Fresh parameters φ."""
        cond = None
        if self.num_classes is not None:
            cond = jnp.zeros((1,), jnp.int32)
        elif self.cond_dim is not None:
            cond = jnp.zeros((1, self.cond_dim))
        return self._module.init(key, jnp.zeros((1, 3)), cond)["params"]

    def apply(self, phi: Any, s: Array, t: Array, cond: Any, process: Process) -> Array:
        """ω of the step t → s: (batch,), or a scalar where neither times nor `cond` are batched."""
        s, t = jnp.broadcast_arrays(jnp.asarray(s), jnp.asarray(t))
        # λ is +∞ at t = 0 and −∞ at t = 1; ±10 is where nothing is left to tell apart.
        low, high = (jnp.clip(process.log_snr(time), -10, 10) for time in (t, s))
        features = jnp.stack([low / 5, high / 5, (high - low) / 5], axis=-1)
        if self.num_classes is None and self.cond_dim is None:
            return self._module.apply({"params": phi}, features, None)
        cond = jnp.asarray(cond)
        features = jnp.broadcast_to(features, (cond.shape[0], features.shape[-1]))
        return self._module.apply({"params": phi}, features, cond)

    def weight(self, phi: Any) -> Weight:
        """ω as a `Weight`, to be used wherever a number is."""
        return Weight(phi, self)

    def __call__(self, phi: Any, step: Step) -> Array:
        """ω for a `Weight` made of this network."""
        process = step.needs("process", "a learned omega")
        return self.apply(phi, step.s, step.t, step.cond, process)

    def check(self, cond: Any) -> None:
        """Raise `ValueError` where `cond` is not what this network was built for."""
        if self.num_classes is None and self.cond_dim is None:
            return
        if cond is None:
            raise ValueError("this OmegaNet depends on the condition; got cond=None.")
        shape = np.shape(cond)
        if self.cond_dim is not None:
            if len(shape) != 2 or shape[1] != self.cond_dim:
                raise ValueError(
                    f"OmegaNet(cond_dim={self.cond_dim}) expects cond of shape "
                    f"(batch, {self.cond_dim}), got {shape}."
                )
            return
        check_labels(cond, self.num_classes, "OmegaNet")


def check_labels(cond: Any, num_classes: int | None, who: str) -> None:
    """Raise `ValueError` unless `cond` is class ids (batch,) in [0, num_classes)."""
    if len(np.shape(cond)) != 1 or not jnp.issubdtype(jnp.asarray(cond).dtype, jnp.integer):
        raise ValueError(
            f"{who} expects integer class ids of shape (batch,), got shape {np.shape(cond)} and "
            f"dtype {jnp.asarray(cond).dtype}."
        )
    if (
        num_classes is not None
        and is_concrete(cond)
        and getattr(cond, "is_fully_addressable", True)
    ):
        labels = np.asarray(cond)
        if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
            bad = labels[(labels < 0) | (labels >= num_classes)][0]
            raise ValueError(
                f"{who}: label {bad} is out of range; expected 0 to {num_classes - 1} "
                f"(num_classes={num_classes})."
            )

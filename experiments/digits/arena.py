"""Where methods meet: the same noise, the same networks, the same measures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj
from experiments.digits import networks
from experiments.digits.config import NUM_CLASSES
from experiments.statistics import geometric_mean
from guidejax import metrics


@functools.partial(jax.jit, static_argnames=("count", "steps"))
def generate(key: jax.Array, denoise: Any, guide: gj.Guidance, count: int, steps: int) -> jax.Array:
    """`count` digits, labels 0 … 9 in turn, from the noise that `key` gives."""
    noise_key, run_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (count, 8, 8, 1))
    return gj.sample(
        run_key, denoise, noise, cond=labels(count), uncond=NUM_CLASSES,
        guidance=guide, times=gj.uniform_times(steps),
    )  # fmt: skip


def labels(count: int) -> jax.Array:
    """0 … 9 in turn."""
    return jnp.arange(count) % NUM_CLASSES


@functools.partial(jax.jit, static_argnames="name")
def _classify(name: str, params: Any, x0: jax.Array) -> tuple[jax.Array, jax.Array]:
    return networks.classify(name, params, x0)


_frechet = jax.jit(metrics.frechet_distance)


@dataclasses.dataclass
class Arena:
    """Real images and the networks that look at them.

    Attributes:
        params: Parameters of each classifier by name.
        names: Which of them measure here.
        x0: Real images.
        cond: Their labels.
    """

    params: Mapping[str, Any]
    names: tuple[str, ...]
    x0: Any
    cond: Any

    def __post_init__(self):
        self._real = {n: _classify(n, self.params[n], self.x0)[1] for n in self.names}

    def frechet(self, x0: jax.Array) -> dict[str, float]:
        """Frechet distance to the real images in the features of each network."""
        return {
            n: float(_frechet(_classify(n, self.params[n], x0)[1], self._real[n]))
            for n in self.names
        }

    def score(self, x0: jax.Array) -> float:
        """Geometric mean of the Frechet distances: what tuning minimises."""
        return geometric_mean(self.frechet(x0).values())

    def measure(self, x0: jax.Array) -> dict[str, float]:
        """Every figure of the table."""
        cond = labels(x0.shape[0])
        distances = self.frechet(x0)
        energy, agreement = [], []
        for name in self.names:
            logits, features = _classify(name, self.params[name], x0)
            real = self._real[name]
            spread = metrics.mean_pairwise_distance(real)
            by_class = metrics.grouped_energy_distance(
                features / spread, cond, real / spread, jnp.asarray(self.cond), NUM_CLASSES
            )
            energy.append(float(jnp.mean(by_class)))
            agreement.append(float(jnp.mean(jnp.argmax(logits, -1) == cond)))
        ours = metrics.class_diversity(x0, cond, NUM_CLASSES)
        true = metrics.class_diversity(self.x0, jnp.asarray(self.cond), NUM_CLASSES)
        return {
            **{f"frechet/{name}": value for name, value in distances.items()},
            "frechet": geometric_mean(distances.values()),
            "energy": float(np.mean(energy)),
            "agreement": float(np.mean(agreement)),
            "diversity": float(jnp.mean(ours / true)),
        }

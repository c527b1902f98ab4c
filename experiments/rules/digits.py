"""Every rule on the digits: one small denoiser, the same noise, three weights."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj
import guidejax.data
from experiments.digits import networks
from experiments.digits.config import NUM_CLASSES, Sizes
from experiments.rules.config import (
    DENOISER_STEPS,
    DIGITS_STEPS,
    PROCESS,
    WEAK_STEPS,
    guide,
    setting,
)

# The digit that each is most easily taken for: what "negative" and "other" mean here.
LOOKALIKE = jnp.array([6, 7, 3, 8, 9, 6, 5, 1, 3, 4])


class Digits:
    """The trained networks, and the branches made of them."""

    def __init__(self, data_dir: pathlib.Path, tick: Callable[[str], Any] = print):
        train = gj.data.Images("digits", "train", data_dir=data_dir).arrays()
        self.x, self.y = jnp.asarray(train["x0"]), jnp.asarray(train["cond"])
        sizes, key = Sizes(), jax.random.key(0)
        tick("training a denoiser")
        self.denoise = networks.train_denoiser(key, sizes, DENOISER_STEPS, self.x, self.y)
        self.weak = networks.train_denoiser(key, sizes, WEAK_STEPS, self.x, self.y)
        self.skipped = dataclasses.replace(
            self.denoise, params=_without_last_block(self.denoise.params)
        )
        self.gradient = gj.rules.input_gradient(self.denoise)
        self.noise = jax.random.normal(jax.random.key(3), (NUM_CLASSES, 8, 8, 1))

    @property
    def _conditions(self) -> dict[str, Any]:
        """What `sample` is given for each branch."""
        labels = jnp.arange(NUM_CLASSES)
        return {
            "negative": LOOKALIKE,
            "other": LOOKALIKE,
            "partial": (gj.denoiser(_both, PROCESS, params=self.denoise), labels),
            "weak": (self.weak, labels),
            "perturbed": (self.skipped, labels),
            "gradient": (self.gradient, labels),
        }

    def run(self, name: str) -> dict[float, np.ndarray]:
        """{ω: one image of each digit} from the same noise."""
        chosen = setting(name)
        numbers = dict(chosen.digits_numbers)
        if name == "recfg":
            numbers["ratio"] = self._ratio
        return {omega: self._sample(name, omega, numbers) for omega in chosen.digits}

    def _sample(self, name: str, omega: float, numbers: Mapping[str, Any]) -> np.ndarray:
        guidance = guide(name, omega, numbers)
        return np.asarray(
            gj.sample(
                jax.random.key(0), self.denoise, self.noise, cond=jnp.arange(NUM_CLASSES),
                uncond=NUM_CLASSES, guidance=guidance, times=gj.uniform_times(DIGITS_STEPS),
                conditions={
                    name: value for name, value in self._conditions.items()
                    if name in guidance.branches
                },
            )
        )  # fmt: skip

    @functools.cached_property
    def _ratio(self) -> gj.Weight:
        """ρ of ReCFG, from noised training images."""
        times = jnp.linspace(0.05, 0.95, 16)
        x0, label = self.x[:512], self.y[:512]
        eps = jax.random.normal(jax.random.key(1), x0.shape)

        @jax.jit
        def both(t):
            x = gj.processes.noise_to(PROCESS, x0, t, eps)
            found = [self.denoise(x, t, y) for y in (label, jnp.full_like(label, NUM_CLASSES))]
            return [gj.processes.convert(x0, x, t, PROCESS, "x0", "eps") for x0 in found]

        cond, uncond = (jnp.stack(each) for each in zip(*map(both, times), strict=True))
        return gj.rules.recfg_table(times, cond, uncond, estimator="code")


def _both(denoise: gj.Denoiser, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
    """The "partial" condition, one of two digits, which the network wasn't trained on."""
    return (denoise(x, t, label) + denoise(x, t, LOOKALIKE[label])) / 2


def _without_last_block(variables: Any) -> Any:
    """Parameters with the last residual block's output set to 0."""
    params = dict(variables["params"])
    last = sorted((n for n in params if n.startswith("Dense_")), key=lambda n: int(n[6:]))[-2]
    params[last] = jax.tree.map(jnp.zeros_like, params[last])
    return {**variables, "params": params}

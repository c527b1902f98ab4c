"""What the learning benchmark learns ω for: digits, and mixtures whose model is blurred.

A world is a pytree, so that several seeds of it run in one program: `stacked` puts them together.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj
from experiments.digits import arena as arenas
from experiments.digits import networks
from experiments.digits.config import NUM_CLASSES, Sizes
from experiments.mixtures.config import CLASSES
from experiments.mixtures.worlds import LABELS, Data
from experiments.models import ResidualMLP
from guidejax import analytic, objectives

PROCESS = networks.PROCESS
SIZES = Sizes()
BLUR, LEAK = 0.1, 0.3


def stacked(worlds: list[Any]) -> Any:
    """Worlds of one kind along a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *worlds)


@dataclasses.dataclass(frozen=True)
class Mixtures:
    """Three classes of two Gaussians in the plane, and a model that knows them too wide.

    It is exact for components whose standard deviations are `BLUR` more than they are, and for
    classes of which a share `LEAK` is of the others: what an under-trained network is like.
    """

    name: str = "mixtures"
    classes: int = CLASSES
    held: int = 16_000

    def world(self, seed: int, split: str) -> dict[str, Any]:
        """The data and the model of a seed; every split is of the same mixture."""
        data = Data.drawn(seed)
        true = analytic.by_class(analytic.mixture(data.means, stds=data.stds), LABELS)
        model = analytic.with_unconditional(
            [
                analytic.mixture(
                    data.means,
                    stds=data.stds + BLUR,
                    weights=np.where(c == LABELS, 1 - LEAK, LEAK / (CLASSES - 1)),
                )
                for c in range(CLASSES)
            ],
            analytic.mixture(data.means, stds=data.stds + BLUR),
        )
        return {"true": true, "model": model}

    def denoiser(self, world: Any) -> gj.Denoiser:
        """The frozen model."""
        return analytic.denoiser(world["model"], PROCESS)

    def draw(self, world: Any, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """`count` examples to learn from."""
        kinds, samples = jax.random.split(key)
        cond = jax.random.randint(kinds, (count,), 0, CLASSES)
        return world["true"].sample(samples, cond), cond

    def kept_back(self, world: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Examples that nothing is learned from."""
        return self.draw(world, key, self.held)


@dataclasses.dataclass(frozen=True)
class Digits:
    """The digits and their under-trained denoiser, as in the digits experiment."""

    path: pathlib.Path
    name: str = "digits"
    classes: int = NUM_CLASSES
    held: int = 4_000

    @functools.cached_property
    def splits(self) -> dict[str, dict[str, np.ndarray]]:
        """The images, from a file that is made at first."""
        if not self.path.exists():
            import guidejax.data

            found: dict[str, Any] = {
                f"{split}_{name}": value
                for split in ("train", "validation", "test")
                for name, value in guidejax.data.Images(
                    "digits", split, data_dir=self.path.parent / "data"
                ).arrays().items()
            }  # fmt: skip
            self.path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(self.path, **found)
        with np.load(self.path) as file:
            return {
                split: {name: file[f"{split}_{name}"] for name in ("x0", "cond")}
                for split in ("train", "validation", "test")
            }

    def world(self, seed: int, split: str) -> dict[str, Any]:
        """The images, with those of `split` kept back, and networks trained on the others."""
        train = {name: jnp.asarray(a) for name, a in self.splits["train"].items()}
        classifiers, denoiser = jax.random.split(jax.random.key(seed))
        params = networks.train_classifiers(classifiers, SIZES, train["x0"], train["cond"])
        denoise = networks.train_denoiser(
            denoiser, SIZES, dict(SIZES.denoisers)["under-trained"], train["x0"], train["cond"]
        )
        kept_back = {name: jnp.asarray(a) for name, a in self.splits[split].items()}
        by_class = [jnp.flatnonzero(train["cond"] == c)[:90] for c in range(NUM_CLASSES)]
        return {
            **train, "by_class": jnp.stack(by_class), "held": kept_back,
            "classifiers": params, "denoiser": denoise.params,
            "features": self._features(params, train["x0"]),
        }  # fmt: skip

    def denoiser(self, world: Any) -> gj.Denoiser:
        """The frozen network."""
        net = ResidualMLP(NUM_CLASSES, SIZES.hidden, SIZES.depth)
        return gj.denoiser(net, PROCESS, prediction="velocity", params=world["denoiser"])

    def draw(self, world: Any, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """`count` examples to learn from."""
        rows = jax.random.randint(key, (count,), 0, world["x0"].shape[0])
        return world["x0"][rows], world["cond"][rows]

    def groups(self, world: Any, key: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """`size` different examples of each class, class by class."""
        keys = jax.random.split(key, NUM_CLASSES)
        pick = lambda key, rows: jax.random.choice(key, rows, (size,), replace=False)  # noqa: E731
        rows = jax.vmap(pick)(keys, world["by_class"]).reshape(-1)
        return world["x0"][rows], jnp.repeat(jnp.arange(NUM_CLASSES), size)

    def kept_back(self, world: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The images of the test split, each several times."""
        held = world["held"]
        times = self.held // held["cond"].shape[0]
        return jnp.repeat(held["x0"], times, axis=0), jnp.repeat(held["cond"], times)

    def _features(self, params: Any, x0: jax.Array) -> tuple[Any, ...]:
        """The feature spaces that a rollout may see, by first and second moments."""
        seen: list[Any] = [networks.feature(name, params[name]) for name in networks.SEEN]
        return tuple(gj.objectives.frechet_moments(f, x0) for f in (objectives.pixels, *seen))

    def arena(self, world: Any, split: str) -> arenas.Arena:
        """Where samples are measured: selection and the seen networks, or the report's."""
        names = networks.SEEN if split == "validation" else networks.CHOICE
        return arenas.Arena(world["classifiers"], tuple(names), **self.splits[split])

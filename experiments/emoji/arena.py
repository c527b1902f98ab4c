"""Where methods meet: the same captions, the same noise, the same networks, the same measures."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj
from experiments.emoji import captions, methods, storage, towers
from experiments.emoji.train import PROCESS
from experiments.statistics import sample_rms, saturation
from guidejax import metrics

# Pictures that a CPU's caches hold at a time: many at once take half as long again.
PART = 16


@functools.partial(jax.jit, static_argnames=("steps", "strength"))
def generate(
    key: jax.Array, denoise: Any, guide: gj.Guidance, cond: Any, steps: int, strength: bool = False
) -> Any:
    """A picture a caption, from the noise that `key` gives.

    With `strength` a pair: the pictures, and the mean over steps of the effective ω, that of the
    plain rule nearest to what guidance made of each step (n,).
    """
    noise_key, run_key = jax.random.split(key)
    count = cond["tokens"].shape[0]
    noise = jax.random.normal(noise_key, (count, 32, 32, 3))

    def draw(part: Any) -> Any:
        noise, cond = part
        found = gj.sample(
            run_key, denoise, noise, cond=cond, uncond=towers.NULL, guidance=guide,
            times=gj.uniform_times(steps), keep="stats" if strength else "final",
        )  # fmt: skip
        return (found[0], found[1].stats.effective_omega.mean(axis=0)) if strength else found

    if jax.default_backend() != "cpu" or count <= PART:
        return draw((noise, cond))
    parts = -(-count // PART)
    split = jax.tree.map(
        lambda a: jnp.resize(a, (parts * PART, *a.shape[1:])).reshape(parts, PART, *a.shape[1:]),
        (noise, cond),
    )
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], jax.lax.map(draw, split))


@functools.partial(jax.jit, static_argnames="steps")
def omegas(key: jax.Array, denoise: Any, guide: gj.Guidance, cond: Any, steps: int) -> jax.Array:
    """ω of each step for each caption, (steps, captions), as a run from this noise meets it."""
    noise_key, run_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (cond["tokens"].shape[0], 32, 32, 3))
    _, trail = gj.sample(
        run_key, denoise, noise, cond=cond, uncond=towers.NULL, guidance=guide,
        times=gj.uniform_times(steps), keep="stats",
    )  # fmt: skip
    return trail.stats.omega


@functools.partial(jax.jit, static_argnames=("method", "steps"))
def generate_tuned(
    key: jax.Array, denoise: Any, method: str, numbers: Mapping[str, Any], cond: Any, steps: int
) -> jax.Array:
    """`generate` under a tuned method whose numbers are traced: one program for a whole search."""
    return generate(key, denoise, methods.TUNED[method].guide(**numbers), cond, steps)


def evaluations(guide: gj.Guidance, steps: int) -> int:
    """Network evaluations of one sample: one a step, and one more where ω isn't 0."""
    active = guide.active(gj.uniform_times(steps), PROCESS)
    return steps + int(np.sum(np.broadcast_to(np.asarray(active), (steps,))))


def geometric_mean(values: Any) -> float:
    """exp of the mean logarithm."""
    return float(np.exp(np.mean(np.log(np.asarray(list(values), np.float64)))))


_frechet = jax.jit(metrics.frechet_distance)
_image = jax.jit(lambda tower, x0: tower(x0))
_text = jax.jit(lambda tower, tokens: tower(tokens)[1])


@functools.cache
def train_pictures() -> jax.Array:
    """All pictures of training, flat."""
    x0 = captions.pictures("train").x0
    return jnp.asarray(x0.reshape(len(x0), -1))


@jax.jit
def nearest(x0: jax.Array, train: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Root mean square distance to the nearest training picture, and which that is, (batch,)."""
    flat = jnp.clip(x0, -1, 1).reshape(x0.shape[0], -1)
    square = jnp.sum(flat**2, 1)[:, None] + jnp.sum(train**2, 1) - 2 * flat @ train.T
    return jnp.sqrt(jnp.maximum(square.min(axis=1), 0) / flat.shape[1]), square.argmin(axis=1)


@dataclasses.dataclass
class Arena:
    """Real pictures with their captions, and the networks that look at them.

    Attributes:
        split: Which pictures.
        names: The towers that measure: `towers.SEEN` or `towers.REPORT`.
        folder: Where the towers lie.
        rows: Which of the split's pictures; None is all.
        resamples: How often the real pictures are drawn anew, with replacement, for an interval.
    """

    split: captions.Split
    names: tuple[str, ...]
    folder: pathlib.Path = storage.WEIGHTS
    rows: np.ndarray | None = None
    resamples: int = 0

    def __post_init__(self):
        found = captions.pictures(self.split)
        rows = np.arange(len(found.captions)) if self.rows is None else self.rows
        self.captions = [found.captions[row] for row in rows]
        self.x0 = jnp.asarray(found.x0[rows])
        self.attributes = {name: value[rows] for name, value in found.attributes.items()}
        groups = [found.groups[row] for row in rows]
        self.cond = towers.prompts(self.captions, self.folder, groups)
        self.towers = {name: towers.load(name, self.folder) for name in self.names}
        self.reward = towers.load("reward", self.folder)
        self.classify = towers.load_classifier(self.folder)
        self._real = {n: _image(t.image, self.x0)[0] for n, t in self.towers.items()}

    def score(self, x0: jax.Array) -> float:
        """Geometric mean of the Fréchet distances on the towers: what tuning minimises."""
        seen = {name: _image(tower.image, x0)[0] for name, tower in self.towers.items()}
        return geometric_mean(self._frechet(seen).values())

    def _frechet(self, seen: Mapping[str, jax.Array], rows: Any = slice(None)) -> dict[str, float]:
        """Distance of features to those of the real pictures, or of some of their rows."""
        return {name: float(_frechet(f, self._real[name][rows])) for name, f in seen.items()}

    def _resampled(self, seen: Mapping[str, jax.Array]) -> list[float]:
        """Distances beside real pictures that are drawn anew, the same draws for every method."""
        count = len(self.captions)
        draws = [np.random.default_rng(i).integers(0, count, count) for i in range(self.resamples)]
        return [geometric_mean(self._frechet(seen, rows).values()) for rows in draws]

    def clip_score(self, tower: towers.Towers, embedding: jax.Array) -> float:
        """The mean cosine of pictures, as the tower embeds them, and their captions."""
        said = _text(tower.text, self.cond["tokens"])
        return float(jnp.mean(jnp.sum(towers.unit(embedding) * towers.unit(said), axis=-1)))

    def reward_score(self, x0: jax.Array) -> float:
        """The CLIP score on the reward's own tower."""
        return self.clip_score(self.reward, _image(self.reward.image, x0)[1])

    def measure(self, x0: jax.Array) -> dict[str, Any]:
        """Every figure of the table, but diversity and evaluations."""
        looks = {name: _image(tower.image, x0) for name, tower in self.towers.items()}
        seen = {name: features for name, (features, _) in looks.items()}
        distances = self._frechet(seen)
        scores = [self.clip_score(self.towers[name], look[1]) for name, look in looks.items()]
        logits = _image(self.classify, x0)
        told = {
            name: float(np.mean(np.argmax(logits[name], -1) == truth))
            for name, truth in self.attributes.items()
        }
        clipped = jnp.clip(x0, -1, 1)
        return {
            **{f"frechet/{name}": value for name, value in distances.items()},
            "frechet": geometric_mean(distances.values()),
            "frechet resampled": self._resampled(seen),
            "clip score": float(np.mean(scores)),
            "reward": self.reward_score(x0),
            **{f"accuracy/{name}": value for name, value in told.items()},
            "accuracy": float(np.mean(list(told.values()))),
            "saturation": float(jnp.mean(saturation(clipped))),
            "norm": float(jnp.mean(sample_rms(x0))),
            "nearest": float(jnp.median(nearest(x0, train_pictures())[0])),
        }

    def diversity(self, x0: jax.Array, per_caption: int) -> float:
        """Mean distance of two samples of one caption, in the towers' features.

        In units of the mean distance of two real pictures; samples of a caption stand together.
        """
        found = []
        for name, tower in self.towers.items():
            features = _image(tower.image, x0)[0]
            features = features.reshape(-1, per_caption, features.shape[-1])
            spread = metrics.mean_pairwise_distance(self._real[name])
            found.append(jnp.mean(jax.vmap(metrics.mean_pairwise_distance)(features)) / spread)
        return float(np.mean(found))

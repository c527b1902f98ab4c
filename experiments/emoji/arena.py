"""Where methods meet: the same captions, the same noise, the same networks, the same measures."""

from __future__ import annotations

import dataclasses
import functools
import operator
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj
from experiments.emoji import captions, methods, storage, towers
from experiments.emoji.train import PROCESS
from experiments.statistics import geometric_mean, sample_rms, saturation
from guidejax import metrics

# Pictures that a CPU's caches hold at a time: many at once take half as long again.
PART = 16


def generate(
    key: jax.Array, denoise: Any, guide: gj.Guidance, cond: Any, steps: int, strength: bool = False
) -> Any:
    """A picture a caption, from the noise that `key` gives.

    With `strength` a pair: the pictures, and the mean over steps of the effective ω, that of the
    plain rule nearest to what guidance made of each step (n,).
    """
    noise_key, run_key = jax.random.split(key)
    count = cond["tokens"].shape[0]
    given = jax.random.normal(noise_key, (count, 32, 32, 3)), dict(cond)

    def draw(part: Any) -> Any:
        return _draw(run_key, denoise, guide, *part, steps)

    if jax.default_backend() != "cpu" or count <= PART:
        found = draw(given)
    else:
        parts = -(-count // PART)
        split = jax.tree.map(
            lambda a: jnp.resize(a, (parts * PART, *a.shape[1:])).reshape(
                parts, PART, *a.shape[1:]
            ),
            given,
        )
        if isinstance(key, jax.core.Tracer):  # Within a program of the caller's.
            found = jax.lax.map(draw, split)
        else:  # One program, however many captions there are.
            each = [draw(jax.tree.map(operator.itemgetter(i), split)) for i in range(parts)]
            found = jax.tree.map(lambda *a: jnp.stack(a), *each)
        found = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], found)
    return found if strength else found[0]


@functools.partial(jax.jit, static_argnames="steps")
def _draw(
    key: jax.Array, denoise: Any, guide: gj.Guidance, noise: jax.Array, cond: Any, steps: int
) -> tuple[jax.Array, jax.Array]:
    """Pictures, and their effective ω."""
    x0, trail = gj.sample(
        key, denoise, noise, cond=cond, uncond=towers.NULL, guidance=guide,
        times=gj.uniform_times(steps), keep="stats",
    )  # fmt: skip
    return x0, trail.stats.effective_omega.mean(axis=0)


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
        self._real = {n: np.asarray(_image(t.image, self.x0)[0]) for n, t in self.towers.items()}

    def score(self, x0: jax.Array) -> float:
        """Geometric mean of the Fréchet distances on the towers: what tuning minimises."""
        seen = {name: _image(tower.image, x0)[0] for name, tower in self.towers.items()}
        return geometric_mean(self._frechet(seen).values())

    def _frechet(self, seen: Mapping[str, Any], rows: Any = slice(None)) -> dict[str, float]:
        """Distance of features to those of the real pictures, or of some of their rows.

        On the CPU, which has the singular values of small matrices sooner than a GPU has.
        """
        found = {}
        with jax.default_device(jax.devices("cpu")[0]):
            for name, features in seen.items():
                found[name] = float(_frechet(np.asarray(features), self._real[name][rows]))
        return found

    def _resampled(self, seen: Mapping[str, Any]) -> list[float]:
        """Distances beside real pictures that are drawn anew, the same draws for every method."""
        count = len(self.captions)
        draws = [np.random.default_rng(i).integers(0, count, count) for i in range(self.resamples)]
        return [geometric_mean(self._frechet(seen, rows).values()) for rows in draws]

    def clip_scores(self, tower: towers.Towers, embedding: jax.Array) -> jax.Array:
        """Cosines of pictures, as the tower embeds them, and their captions, (n,)."""
        said = _text(tower.text, self.cond["tokens"])
        return jnp.sum(towers.unit(embedding) * towers.unit(said), axis=-1)

    def reward_score(self, x0: jax.Array) -> float:
        """The CLIP score on the reward's own tower."""
        return float(jnp.mean(self.clip_scores(self.reward, _image(self.reward.image, x0)[1])))

    def measure(self, x0: jax.Array, draws: int = 0) -> dict[str, Any]:
        """Every figure of the table, but diversity and evaluations.

        With `draws`, under "error" the standard errors of figures over captions: how they vary
        where captions, each with its sample and its real picture, are drawn anew that many times.
        """
        looks = {name: _image(tower.image, x0) for name, tower in self.towers.items()}
        seen = {name: np.asarray(features) for name, (features, _) in looks.items()}
        distances, each = self._frechet(seen), self._of_each(x0, looks)
        found = {
            **{f"frechet/{name}": value for name, value in distances.items()},
            "frechet": geometric_mean(distances.values()),
            "frechet resampled": self._resampled(seen),
            **{name: float(np.mean(values)) for name, values in each.items()},
            "nearest": float(jnp.median(nearest(x0, train_pictures())[0])),
        }
        return found | ({"error": self._errors(seen, each, draws)} if draws else {})

    def _of_each(self, x0: jax.Array, looks: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What figures are means of, a number a picture."""
        scores = [self.clip_scores(self.towers[name], look[1]) for name, look in looks.items()]
        logits = _image(self.classify, x0)
        told = {
            f"accuracy/{name}": np.argmax(logits[name], -1) == truth
            for name, truth in self.attributes.items()
        }
        reward = self.clip_scores(self.reward, _image(self.reward.image, x0)[1])
        found = {
            "clip score": np.mean(scores, axis=0), "reward": reward, **told,
            "accuracy": np.mean(list(told.values()), axis=0),
            "saturation": saturation(jnp.clip(x0, -1, 1)), "norm": sample_rms(x0),
        }  # fmt: skip
        return {name: np.asarray(values, np.float64) for name, values in found.items()}

    def _errors(
        self, seen: Mapping[str, Any], each: Mapping[str, np.ndarray], draws: int
    ) -> dict[str, float]:
        count = len(self.captions)
        found: dict[str, list[float]] = {name: [] for name in ("frechet", *each)}
        for draw in range(draws):
            rows = np.random.default_rng(draw).integers(0, count, count)
            here = {name: features[rows] for name, features in seen.items()}
            found["frechet"].append(geometric_mean(self._frechet(here, rows).values()))
            for name, values in each.items():
                found[name].append(float(np.mean(values[rows])))
        return {name: float(np.std(values, ddof=1)) for name, values in found.items()}

    def diversities(self, x0: jax.Array, per_caption: int) -> np.ndarray:
        """Mean distance of two samples of a caption, in the towers' features: (captions,).

        In units of the mean distance of two real pictures; samples of a caption stand together.
        """
        found = []
        for name, tower in self.towers.items():
            features = _image(tower.image, x0)[0]
            features = features.reshape(-1, per_caption, features.shape[-1])
            spread = metrics.mean_pairwise_distance(self._real[name])
            found.append(jax.vmap(metrics.mean_pairwise_distance)(features) / spread)
        return np.mean(found, axis=0)

"""The guidance compared: tuned by search, or learned, on selection captions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj
from experiments import optimizers, tuned
from experiments.emoji import captions, towers
from experiments.tuned import Tuned


@functools.cache  # One function a group, so that they share the compiled programs.
def _within(group: int) -> Callable[[Any, Any], jax.Array]:
    return lambda omega, step: jnp.where(step.cond["group"] == group, omega, 0.0)


def _per_group(**numbers: Any) -> gj.Guidance:
    parts = [
        gj.interval(
            gj.Weight(numbers[f"omega {g}"], _within(g)),
            lo=numbers[f"lo {g}"], hi=numbers[f"hi {g}"],
        )
        for g in range(towers.GROUP_COUNT)
    ]  # fmt: skip
    return gj.guidance(gj.cfg, functools.reduce(lambda a, b: a + b, parts))


TUNED: dict[str, Tuned] = {
    **tuned.TUNED,
    "interval per group": Tuned(
        {
            f"{name} {g}": number
            for name, number in (("omega", tuned.OMEGA), ("lo", tuned.LO), ("hi", tuned.HI))
            for g in range(towers.GROUP_COUNT)
        },
        _per_group,
        tuned.ordered,
        together=tuple((f"lo {g}", f"hi {g}") for g in range(towers.GROUP_COUNT)),
        **tuned.per(towers.GROUP_COUNT, "interval", omega="value", lo="lo", hi="hi"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Learned:
    """A learned form: what it steers, what it sees, what it minimises, on which pictures."""

    rule: Any = gj.cfg
    outputs: tuple[str, ...] = ("omega",)
    text: bool = True
    sees: tuple[str, ...] = ()
    objective: str = "rollout"
    reward: float = 0.0
    split: captions.Split = "select"

    @property
    def net(self) -> gj.OmegaNet:
        """The network of the weight."""
        sizes: dict[str, Any] = {"cond_dim": 64, "cond": towers.pooled} if self.text else {}
        return gj.OmegaNet(hidden=32, depth=2, outputs=self.outputs, sees=self.sees, **sizes)

    def guide(self, phi: Any) -> gj.Guidance:
        """The guidance of learned numbers."""
        return gj.guidance(self.rule, **self.net.weights(phi))


# The first is the base, of which each other changes one thing.
LEARNED: dict[str, Learned] = {
    "rollout": Learned(),
    "rollout, times alone": Learned(text=False),
    "rollout, on training pictures": Learned(split="train"),
    "rollout, seeing the state": Learned(sees=("state", "delta")),
    "rollout, adg": Learned(rule=gj.adg, outputs=("omega", "max_angle")),
    "rollout, apg": Learned(rule=gj.apg, outputs=("omega", "eta")),
    **{f"rollout, reward {g:g}": Learned(reward=g) for g in (0.3, 1.0, 3.0)},
    "self-consistency": Learned(objective="self-consistency"),
    **{
        f"self-consistency, reward {g:g}": Learned(objective="self-consistency", reward=g)
        for g in (30.0, 100.0)
    },
}


@functools.cache
def _reward(folder: Any) -> jax.tree_util.Partial:
    return jax.tree_util.Partial(_score, towers.load("reward", folder))


def _score(pair: towers.Towers, x0: jax.Array, cond: Mapping[str, jax.Array]) -> jax.Array:
    return pair.score(x0, cond["tokens"])


@functools.cache
def _feature(name: str, folder: Any) -> jax.tree_util.Partial:
    return jax.tree_util.Partial(_first, towers.load(name, folder).image)


def _first(image: Any, x0: jax.Array) -> jax.Array:
    return image(x0)[0]


def objective(form: Learned, x0: Any, steps: int, particles: int, folder: Any) -> Any:
    """What a form minimises: moments beside those of the true pictures `x0`, or noised ones."""
    reward: dict[str, Any] = {}
    if form.reward:
        reward = {"reward": _reward(folder), "reward_weight": form.reward}
    if form.objective == "self-consistency":
        return gj.self_consistency(1.75, particles, **reward)
    features: list[Any] = [gj.objectives.pixels, *(_feature(name, folder) for name in towers.SEEN)]
    # No two captions are alike: the captions' pictures are compared as a whole.
    return gj.rollout(
        [gj.objectives.frechet_moments(feature, jnp.asarray(x0)) for feature in features],
        particles=2, steps=steps, pooled=1.0, beta=2.0, reference=(jnp.asarray(x0), None), **reward,
    )  # fmt: skip


def evaluations_of_an_update(form: Learned, batch: int, steps: int, particles: int) -> int:
    """Network passes of an update; a backward pass counts as two, and its recomputed forward."""
    if form.objective == "self-consistency":
        return batch * particles * 2
    return batch * steps * 2 * 4


@dataclasses.dataclass(frozen=True)
class Batches:
    """Endless batches of pictures and their conditions, in an order that `seed` gives."""

    x0: np.ndarray
    cond: Mapping[str, Any]
    size: int
    seed: int

    def __iter__(self) -> Any:
        rng = np.random.default_rng(self.seed)
        while True:
            order = rng.permutation(len(self.x0))
            for start in range(0, len(order) - self.size + 1, self.size):
                rows = order[start : start + self.size]
                yield {
                    "x0": self.x0[rows],
                    "cond": jax.tree.map(lambda a: np.asarray(a)[rows], dict(self.cond)),  # noqa: B023
                }


def learn(
    form: Learned,
    key: jax.Array,
    denoise: gj.Denoiser,
    x0: np.ndarray,
    cond: Mapping[str, Any],
    *,
    updates: int,
    batch: int,
    steps: int,
    particles: int,
    seed: int,
    folder: Any,
    checkpoint_dir: Any,
    progress: Callable[[int, dict[str, float]], None],
) -> Any:
    """φ of a form, learned on pictures `x0` and their conditions; goes on if it was stopped."""
    cond = jax.tree.map(np.asarray, dict(cond))
    return gj.fit_omega(
        key,
        form.net,
        denoise,
        Batches(x0, cond, batch, seed),
        rule=form.rule,
        uncond=towers.NULL,
        objective=objective(form, x0, steps, particles, folder),
        optimizer=optimizers.adam(updates),
        steps=updates,
        checkpoint_dir=checkpoint_dir,
        save_every=25,
        progress=progress,
    )

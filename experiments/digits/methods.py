"""The methods compared: searched, or learned."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj
from experiments import guides, tuned, tuning
from experiments.digits import networks
from experiments.digits.config import NUM_CLASSES, Protocol, Sizes

# What is searched, some of it with numbers for each class


def _window(numbers: Any, step: Any) -> jax.Array:
    label = step.cond
    inside = (numbers["lo"][label] <= step.t) & (step.t <= numbers["hi"][label])
    return jnp.where(inside, numbers["omega"][label], 0.0)


def _any_window(numbers: Any, step: Any) -> jax.Array:
    return jnp.any((numbers["lo"] <= step.t) & (step.t <= numbers["hi"]) & (numbers["omega"] != 0))


def _of_class(numbers: Any, step: Any) -> jax.Array:
    return numbers[step.cond]


def _gathered(numbers: dict[str, Any], name: str) -> jax.Array:
    return jnp.stack([jnp.asarray(numbers[f"{name} {c}"]) for c in range(NUM_CLASSES)])


def _interval_per_class(**numbers: Any) -> gj.Guidance:
    each = {name: _gathered(numbers, name) for name in ("omega", "lo", "hi")}
    return gj.guidance(gj.cfg, gj.Weight(each, _window, _any_window))


def _adg_per_class(**numbers: Any) -> gj.Guidance:
    omega, cap = (_gathered(numbers, name) for name in ("omega", "max_angle"))
    return gj.guidance(gj.adg, gj.Weight(omega, _of_class), max_angle=gj.Weight(cap, _of_class))


def _apg_per_class(max_norm: Any, **numbers: Any) -> gj.Guidance:
    omega, eta = (gj.Weight(_gathered(numbers, name), _of_class) for name in ("omega", "eta"))
    return gj.guidance(gj.apg, omega, eta=eta, max_norm=max_norm)


def _per_class(**space: tuning.Number) -> dict[str, tuning.Number]:
    return {f"{name} {c}": number for c in range(NUM_CLASSES) for name, number in space.items()}


PER_CLASS = ("interval per class", "adg per class", "apg per class")
TUNED: dict[str, tuned.Tuned] = tuned.TUNED | {
    "interval per class": tuned.Tuned(
        _per_class(omega=tuned.OMEGA, lo=tuned.LO, hi=tuned.HI), _interval_per_class, tuned.ordered,
        together=tuple((f"lo {c}", f"hi {c}") for c in range(NUM_CLASSES)),
        **tuned.per(NUM_CLASSES, "interval", omega="value", lo="lo", hi="hi"),
    ),
    "adg per class": tuned.Tuned(
        _per_class(omega=tuned.OMEGA, max_angle=tuned.CAP), _adg_per_class,
        **tuned.per(NUM_CLASSES, "adg", omega="omega", max_angle="max_angle"),
    ),
    "apg per class": tuned.Tuned(
        {**_per_class(omega=tuned.OMEGA, eta=tuned.ETA), "max_norm": tuned.RADIUS}, _apg_per_class,
        **tuned.per(NUM_CLASSES, "apg", ("max_norm",), omega="omega", eta="eta"),
    ),
}  # fmt: skip
# Searched on the very images, noise and networks of the report, which no method may be.
ORACLE = "interval (oracle)"


def budget(method: str, protocol: Protocol) -> int:
    """Settings that a search scores at most; the most of all, 960, cost what learning does."""
    size = len(TUNED[method].space)
    return protocol.per_class * size if method in PER_CLASS else protocol.plain if size else 1


# What is learned


class Learned(NamedTuple):
    """A learned method: a rule, the network of its numbers, and a key of `OBJECTIVES`."""

    rule: Any
    net: gj.OmegaNet
    objective: str = "moments"


Range = gj.weights.Range
OMEGA = Range(0.5, lo=0.0)
_by_class = functools.partial(gj.OmegaNet, num_classes=NUM_CLASSES)
NET = _by_class(outputs={"omega": OMEGA})
# ω, and how much of the difference that lies along c counts: APG's η. Each begins as CFG.
ALONG_ACROSS = {"omega": OMEGA, "eta": Range(1.0, lo=0.0)}
ANY_SIGN = {"omega": OMEGA, "eta": Range(1.0)}

LEARNED: dict[str, Learned] = {
    "rollout": Learned(gj.cfg, NET),
    "rollout, times alone": Learned(gj.cfg, gj.OmegaNet(outputs={"omega": OMEGA})),
    "rollout, along and across": Learned(gj.apg, _by_class(outputs=ALONG_ACROSS)),
    "rollout, along and across, any sign": Learned(gj.apg, _by_class(outputs=ANY_SIGN)),
    "rollout, times alone, along and across, any sign": Learned(
        gj.apg, gj.OmegaNet(outputs=ANY_SIGN)
    ),
    "rollout, low and high": Learned(
        gj.rules.fdg, _by_class(outputs={"omega": OMEGA, "low": Range(1.0, lo=0.0)})
    ),
    "rollout, seeing delta and angle": Learned(
        gj.cfg, _by_class(outputs={"omega": OMEGA}, sees=("delta", "angle"))
    ),
    "rollout, all true samples": Learned(gj.cfg, NET, "all true samples"),
    "rollout, along and across, any sign, all true samples": Learned(
        gj.apg, _by_class(outputs=ANY_SIGN), "all true samples"
    ),
    "rollout, features made equal": Learned(gj.cfg, NET, "features made equal"),
    "rollout, energy distance": Learned(gj.cfg, NET, "energy distance"),
    "self-consistency": Learned(gj.cfg, NET, "self-consistency"),
    "l2": Learned(gj.cfg, NET, "l2"),
}


class Seen(NamedTuple):
    """What an objective may be made of: sizes, feature spaces, true samples with their classes,
    unguided ones.
    """

    sizes: Sizes
    features: list[Callable[[Any], Any]]
    x0: jax.Array
    cond: jax.Array
    unguided: Callable[[], jax.Array]


def seen(
    sizes: Sizes, params: dict[str, Any], true: dict[str, Any], unguided: Callable[[], jax.Array]
) -> Seen:
    """Pixels, and the networks that learning may see."""
    looks = [networks.feature(name, params[name]) for name in networks.SEEN]
    x0, cond = (jnp.asarray(true[name]) for name in ("x0", "cond"))
    return Seen(sizes, [gj.objectives.pixels, *looks], x0, cond, unguided)


def rollout(seen: Seen, features: list[Any] | None = None, **options: Any) -> gj.objectives.Rollout:
    """Moments in every feature space: all conditions together, and a little each alone."""
    if features is None:
        features = [gj.objectives.frechet_moments(f, seen.x0) for f in seen.features]
    options = {"pooled": 0.97, "beta": 2.0, **options}
    return gj.rollout(features, seen.sizes.group, seen.sizes.sampling_steps, **options)


def _scaled(scale: Any, feature: Any, x0: Any) -> jax.Array:
    return scale * feature(x0)


def _made_equal(seen: Seen) -> gj.objectives.Rollout:
    """Moments, over the unguided model's distance in each feature space."""
    features, unguided = [], seen.unguided()
    for feature in seen.features:
        moments = gj.objectives.frechet_moments(feature, seen.x0)
        ours, true = (jnp.mean(moments(x), axis=0) for x in (unguided, seen.x0))
        scale = 1 / jnp.linalg.norm(ours - true)
        features.append(jax.tree_util.Partial(_scaled, scale, moments))
    return rollout(seen, features)


def _energy(seen: Seen) -> gj.objectives.Rollout:
    """Energy distances, each condition alone."""
    features = [gj.objectives.unit_spread(f, seen.x0) for f in seen.features]
    return rollout(seen, features, pooled=0.0, beta=1.0)


OBJECTIVES: dict[str, Callable[[Seen], Any]] = {
    "moments": rollout,
    "all true samples": lambda seen: rollout(seen, reference=(seen.x0, seen.cond)),
    "features made equal": _made_equal,
    "energy distance": _energy,
    "self-consistency": lambda seen: gj.self_consistency(1.75, 4),
    "l2": lambda seen: gj.objectives.l2(4),
}

# What every method is judged by


def evaluations(guide: gj.Guidance, steps: int) -> float:
    """Network evaluations of one sample: one a step, and one more where its class's ω isn't 0."""
    grid, omega = gj.uniform_times(steps), gj.weights.as_weight(guide.omega)
    if omega.sees_state:
        guided = np.broadcast_to(np.asarray(guide.active(grid, networks.PROCESS)), (steps,))
    else:
        guided = _table(omega, steps) != 0
    return steps + float(np.mean(np.sum(guided, axis=0)))


def _table(omega: gj.Weight, steps: int) -> np.ndarray:
    """ω of every step for each class, (steps, classes), or (steps, 1) where it is the same."""
    grid, labels = jnp.asarray(gj.uniform_times(steps)), jnp.arange(NUM_CLASSES)
    return np.asarray(omega.table(grid, labels, process=networks.PROCESS)).reshape(steps, -1)


def gated(method: str) -> str:
    """The name of a learned method whose ω is kept on some steps alone."""
    return f"{method}, gated"


def window(guide: gj.Guidance, count: int, steps: int) -> gj.Guidance:
    """A guidance for the `count` steps on end where its ω is largest, and none on the others."""
    grid = gj.uniform_times(steps)
    curve = _table(gj.weights.as_weight(guide.omega), steps).mean(axis=1)
    if count == 0:
        return gj.guidance(gj.cfg, 0.0)
    first = int(np.argmax([curve[i : i + count].sum() for i in range(steps - count + 1)]))
    return guides.windowed(guide, float(grid[first + count - 1]), float(grid[first]))

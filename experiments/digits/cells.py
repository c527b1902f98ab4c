"""Every cell of a protocol: a denoiser of a seed, with every method on it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj
from experiments import cells, optimizers, tuning
from experiments.digits import arena as arenas
from experiments.digits import images, methods, networks
from experiments.digits.config import NUM_CLASSES, Protocol
from experiments.digits.methods import LEARNED, ORACLE, TUNED

LOG = logging.getLogger("experiments.digits")


@functools.partial(jax.jit, static_argnames=("method", "count", "steps"))
def _generate(
    key: jax.Array, denoise: Any, method: str, numbers: Any, count: int, steps: int
) -> jax.Array:
    """Samples under a tuned method whose numbers are traced: one program for a whole search."""
    return arenas.generate(key, denoise, TUNED[method].guide(**numbers), count, steps)


class World:
    """A denoiser of a seed, what is searched and learned on it, and who measures.

    Attributes:
        denoise: The denoiser, trained.
        learned_on: Images that guidance is tuned and learned on, one set for both.
        reported: Images of the report.
    """

    def __init__(self, protocol: Protocol, denoiser: str, seed: int, folder: pathlib.Path):
        """Train the networks. Data and what is learned lie in `folder`, from where it goes on."""
        self._protocol, sizes = protocol, protocol.sizes
        self._seed, self._steps = seed, sizes.sampling_steps
        self._fits = folder / "fits" / digest(protocol) / denoiser / str(seed)
        train, self.learned_on, self.reported = images.parts(protocol, seed, folder / "data")
        names = ("classifiers", "denoiser", "select", "learn", "report")
        self._keys = dict(zip(names, jax.random.split(jax.random.key(seed), 5), strict=True))
        x0, cond = jnp.asarray(train["x0"]), jnp.asarray(train["cond"])
        looks = networks.REPORTS[protocol.report]
        self._classifiers = networks.train_classifiers(
            self._keys["classifiers"], sizes, x0, cond, (*networks.SEEN, *looks)
        )
        updates = dict(sizes.denoisers)[denoiser]
        self.denoise = networks.train_denoiser(self._keys["denoiser"], sizes, updates, x0, cond)
        self._select = arenas.Arena(self._classifiers, tuple(networks.SEEN), **self.learned_on)
        self._report = arenas.Arena(self._classifiers, tuple(looks), **self.reported)

    def search(
        self, method: str, special: tuning.Numbers | None, oracle: tuning.Numbers | None = None
    ) -> tuning.Search:
        """Search a method from `special`, where its special case ended.

        With `oracle`, numbers to begin at too, on the report's own images, networks and noise.
        """
        sizes, more = self._protocol.sizes, [oracle] if oracle is not None else []
        key, on, count = self._keys["select"], self._select, sizes.tune_samples
        if more:
            key, on, count = self._keys["report"], self._report, sizes.report_samples

        def score(numbers: tuning.Numbers, key: jax.Array = key, count: int = count) -> float:
            traced = {name: jnp.asarray(value) for name, value in numbers.items()}
            x = _generate(key, self.denoise, method, traced, count, self._steps)
            value = on.score(x)
            return value if np.isfinite(value) else float("inf")

        budget, again = methods.budget(method, self._protocol), self._protocol.rescored
        found = TUNED[method].search(score, budget, special, more=more)
        if more or not again:
            return found
        best = [numbers for numbers, _ in sorted(found.trace, key=lambda each: each[1])[:again]]
        other = functools.partial(score, key=jax.random.fold_in(key, 1), count=4 * count)
        return dataclasses.replace(found, numbers=min(best, key=other))

    def learn(self, method: str) -> gj.Guidance:
        """The guidance of a learned method; learning goes on where it was stopped."""
        rule, net, objective = LEARNED[method]
        sizes, steps = self._protocol.sizes, self._protocol.sizes.updates
        phi = gj.fit_omega(
            self._keys["learn"], net, self.denoise,
            images.batches(self.learned_on, sizes.group, self._seed),
            rule=rule, uncond=NUM_CLASSES, objective=self._objective(objective),
            optimizer=optimizers.adam(steps), steps=steps,
            checkpoint_dir=(self._fits / method).absolute(), save_every=100,
            # The folder is this fit's alone. Networks that were trained again, on other cores, may
            # differ in their last bits.
            resume="anyway",
        )  # fmt: skip
        return gj.guidance(rule, **net.weights(phi))

    def _objective(self, name: str) -> Any:
        sizes = self._protocol.sizes
        # Of the searches' noise, as what is learned from isn't reported on.
        unguided = functools.partial(
            arenas.generate, self._keys["select"], self.denoise, TUNED["unguided"].guide(),
            sizes.tune_samples, self._steps,
        )  # fmt: skip
        seen = methods.seen(sizes, self._classifiers, self.learned_on, unguided)
        return methods.OBJECTIVES[name](seen)

    def sample(self, guide: gj.Guidance) -> jax.Array:
        """The samples of the report, labels 0 … 9 in turn."""
        count = self._protocol.sizes.report_samples
        return arenas.generate(self._keys["report"], self.denoise, guide, count, self._steps)

    def measure(self, guide: gj.Guidance) -> dict[str, float]:
        """Every figure of the report."""
        figures = self._report.measure(self.sample(guide))
        return {**figures, "evaluations": methods.evaluations(guide, self._steps)}


def methods_of(protocol: Protocol) -> tuple[str, ...]:
    """Every method of a protocol, in the order of its tables."""
    return (*protocol.tuned, ORACLE, *protocol.learned, methods.gated(protocol.learned[0]))


def run(protocol: Protocol, denoiser: str, seed: int, folder: pathlib.Path) -> dict[str, Any]:
    """Every method on a denoiser: what was chosen for it, and every figure of the report."""
    world = World(protocol, denoiser, seed, folder)
    found: dict[str, Any] = {}

    def measure(method: str, guide: gj.Guidance, **chosen: Any) -> None:
        found[method] = {"figures": (figures := world.measure(guide)), **chosen}
        LOG.info(
            "%s %d, %-24s frechet %.3f, energy %.4f, evaluations %.0f", denoiser, seed, method,
            figures["frechet"], figures["energy"], figures["evaluations"],
        )  # fmt: skip

    def tune(method: str, name: str, best: tuning.Search) -> None:
        least = np.minimum.accumulate([value for _, value in best.trace])
        measure(
            name, TUNED[method].guide(**best.numbers), numbers=best.numbers,
            settings=len(best.trace), rests=best.rests,
            # The least score after each quarter of the search.
            least=[float(least[max(len(least) * q // 4 - 1, 0)]) for q in (1, 2, 3, 4)],
        )  # fmt: skip

    for method in protocol.tuned:
        each = TUNED[method]
        if each.space:
            special = found[each.after]["numbers"] if each.after else None
            tune(method, method, world.search(method, special))
        else:
            measure(method, each.guide())
    special = found["constant"]["numbers"]
    tune("interval", ORACLE, world.search("interval", special, found["interval"]["numbers"]))
    for method in protocol.learned:
        guide = world.learn(method)
        measure(method, guide)
        if method == protocol.learned[0]:
            steps = protocol.sizes.sampling_steps
            count = round(found["interval"]["figures"]["evaluations"]) - steps
            measure(methods.gated(method), methods.window(guide, count, steps))
    return found


def digest(protocol: Protocol) -> str:
    """What a cell is of, in a word: it isn't taken for one of another protocol.

    It covers the protocol's settings, the spaces that are searched, the forms that are learned, and
    the shapes of the networks that look; not the code that runs them.
    """
    settings = {
        field.name: getattr(protocol, field.name)
        for field in dataclasses.fields(protocol)
        if field.name != "judged" and getattr(protocol, field.name)
    }
    spaces = {
        name: [TUNED[name].space, TUNED[name].others, TUNED[name].together, TUNED[name].after]
        for name in protocol.tuned
    }
    learned = {name: [LEARNED[name].rule.name, *LEARNED[name][1:]] for name in protocol.learned}
    looks = [networks.SEEN, networks.REPORTS[protocol.report]]
    return hashlib.sha256(repr([settings, spaces, learned, looks]).encode()).hexdigest()[:16]


class Cells(cells.Cells):
    """The cells of a protocol, by their names, as in "under-trained/100"."""

    def __init__(
        self, protocol: Protocol, folder: pathlib.Path, published: pathlib.Path | None = None
    ):
        """Results go to `folder`; what is `published` is finished."""
        self.protocol, self.digest = protocol, digest(protocol)
        super().__init__(
            self._cells(folder), [folder / "cells", *([published] if published else [])]
        )

    def _cells(self, folder: pathlib.Path) -> Iterator[tuple[str, Callable[[], Any]]]:
        for seed in self.protocol.seeds:
            for name, _ in self.protocol.sizes.denoisers:
                yield f"{name}/{seed}", functools.partial(self._cell, name, seed, folder)

    def _cell(self, denoiser: str, seed: int, folder: pathlib.Path) -> dict[str, Any]:
        found = run(self.protocol, denoiser, seed, folder)
        return {"protocol": self.digest, "methods": found}

    def valid(self, found: Any) -> bool:
        """Whether a result is of this protocol."""
        return found["protocol"] == self.digest

    def methods(self, denoiser: str, seed: int) -> dict[str, Any]:
        """What every method came to on a denoiser."""
        return self.find(f"{denoiser}/{seed}")["methods"]

    def publish(self, folder: pathlib.Path) -> None:
        """Copy what is finished."""
        for name in filter(self.done, self.functions):
            path = folder / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.find(name)) + "\n")

"""The digits, settled: a protocol frozen before it was run, on what no choice had seen.

    python -m experiments.digits.settled                           # minutes: not the protocol
    python -m experiments.digits.settled --preset full --publish   # docs/digits.md

Twenty seeds, four in each of five deals of the images. Every baseline, some with numbers for each
class, is searched until it rests; the rollout spends no more than the largest of them. A run that
was stopped goes on cell by cell; processes share the cells.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import guidejax as gj
from experiments import guides, logs, sharing, tuned, tuning
from experiments.benchmarks.report import markdown_table
from experiments.digits import arena as arenas
from experiments.digits import config as digits
from experiments.digits import methods, networks
from experiments.digits.config import NUM_CLASSES
from experiments.digits.weights import batches, split
from experiments.statistics import Interval, mean_interval

DOCS = pathlib.Path(__file__).parents[2] / "docs"
RESULTS = pathlib.Path(__file__).parent / "results" / "settled"
LOG = logging.getLogger("experiments.digits.settled")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of everything, and which seeds.

    Attributes:
        seeds: Of networks, learning and noise; none served a choice.
        each: Seeds of a deal of the images.
        first_deal: Seed of the first deal.
        settings: Settings that a search scores, for each number that it moves.
        sizes: Of networks, samples and learning.
    """

    seeds: tuple[int, ...] = tuple(range(100, 120))
    each: int = 4
    first_deal: int = 500
    settings: int = 32
    sizes: digits.Plan = digits.PLANS["full"]

    def deal(self, seed: int) -> int:
        """The seed of the deal of the images that a seed is in."""
        return self.first_deal + (seed - self.seeds[0]) // self.each


PLANS = {
    "full": Plan(),
    # Two denoisers, searched and learned a little, to see that it runs.
    "quick": Plan(
        seeds=(90, 91), each=1, first_deal=490, settings=6,
        sizes=dataclasses.replace(digits.PLANS["quick"], rollout_steps=60),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """The frozen protocol, or what is left of it."""

    preset: Literal["quick", "full"] = "quick"
    """quick: minutes, and nothing to go by. full: the protocol, hours."""
    out: pathlib.Path = pathlib.Path("runs/digits-settled")
    """Where a small file for each finished cell goes, and what comes of them."""
    cells: tuple[str, ...] = ()
    """Only these, as in "under-trained/100"."""
    jobs: int | None = None
    """Processes that share the cells; one a core by default on CPUs."""
    publish: bool = False
    """Keep what is finished in the repository, and write its part of docs/digits.md."""


# Methods


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


def _per_class(**space: tuning.Number) -> dict[str, tuning.Number]:
    return {f"{name} {c}": number for c in range(NUM_CLASSES) for name, number in space.items()}


TUNED: dict[str, tuned.Tuned] = {
    **{
        name: tuned.TUNED[name]
        for name in ("unguided", "constant", "interval", "clamp-linear", "triangular", "beta",
                     "adg", "apg")
    },
    "interval per class": tuned.Tuned(
        _per_class(omega=tuned.OMEGA, lo=tuned.LO, hi=tuned.HI), _interval_per_class, tuned.ordered
    ),
    "adg per class": tuned.Tuned(
        _per_class(omega=tuned.OMEGA, max_angle=tuned.CAP), _adg_per_class
    ),
}  # fmt: skip
PER_CLASS = ("interval per class", "adg per class")
# The first is the one that claims are about.
LEARNED: dict[str, tuple[Any, gj.OmegaNet]] = {
    "rollout": (gj.cfg, methods.NET),
    "rollout, times alone": (gj.cfg, gj.OmegaNet(outputs={"omega": methods.OMEGA})),
    methods.ALONG_ACROSS: (gj.apg, methods.ALONG_ACROSS_NET),
}
GATED = "rollout, gated"
# Tuned on the very images, noise and networks of the report, which no method may be.
ORACLE = "interval (oracle)"
METHODS = (*TUNED, ORACLE, *LEARNED, GATED)


@functools.partial(jax.jit, static_argnames=("method", "count", "steps"))
def _generate(
    key: jax.Array, denoise: Any, method: str, numbers: Any, count: int, steps: int
) -> jax.Array:
    """Samples under a tuned method whose numbers are traced: one program for a whole search."""
    return arenas.generate(key, denoise, TUNED[method].guide(**numbers), count, steps)


def budget(method: str, plan: Plan) -> int:
    """Settings that a search scores at most; the most of all, 960, cost what learning does."""
    return plan.settings * max(1, len(TUNED[method].space))


def evaluations(guide: gj.Guidance, steps: int) -> float:
    """Network evaluations of one sample: one a step, and one more where its class's ω isn't 0."""
    labels = jnp.arange(NUM_CLASSES)
    omega = gj.weights.as_weight(guide.omega)
    values = omega.table(jnp.asarray(gj.uniform_times(steps)), labels, process=networks.PROCESS)
    guided = np.asarray(values).reshape(steps, -1) != 0
    return steps + float(np.mean(np.sum(guided, axis=0)))


def window(guide: gj.Guidance, count: int, steps: int) -> gj.Guidance:
    """A guidance for the `count` steps on end where its ω is largest, and none on the others."""
    omega = gj.weights.as_weight(guide.omega)
    grid = gj.uniform_times(steps)
    table = omega.table(jnp.asarray(grid), jnp.arange(NUM_CLASSES), process=networks.PROCESS)
    curve = np.asarray(table).reshape(steps, -1).mean(axis=1)
    first = int(np.argmax([curve[i : i + count].sum() for i in range(steps - count + 1)]))
    return guides.windowed(guide, float(grid[first + count - 1]), float(grid[first]))


# Cells


class Cells:
    """Every cell of a plan, a denoiser of a seed each."""

    def __init__(self, plan: Plan, folder: pathlib.Path, published: pathlib.Path | None = None):
        """Results go to `folder`; what is `published` is finished."""
        self.plan, self.folders = plan, [folder, *([published] if published else [])]
        self.functions: dict[str, Callable[[], Any]] = dict(self._cells())

    def _cells(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        for seed in self.plan.seeds:
            for name, _ in self.plan.sizes.denoisers:
                yield f"{name}/{seed}", functools.partial(self._cell, name, seed)

    def find(self, name: str) -> Any:
        """The result of a finished cell, or None."""
        for folder in self.folders:
            path = folder / f"{name}.json"
            if path.exists():
                return json.loads(path.read_text())
        return None

    def done(self, name: str) -> bool:
        """Whether a cell is finished."""
        return self.find(name) is not None

    def run(self, wanted: tuple[str, ...] = ()) -> None:
        """Do every cell that isn't done, or those that are wanted."""
        for wait in (False, True):
            for name in wanted or self.functions:
                path = self.folders[0] / f"{name}.json"
                sharing.once(path, self.functions[name], functools.partial(self.done, name), wait)

    def _cell(self, denoiser: str, seed: int) -> dict[str, Any]:
        """Every method on a denoiser: what was chosen for it, and every figure of the report."""
        sizes, steps = self.plan.sizes, self.plan.sizes.sampling_steps
        data = self.folders[0].parents[1] / "data"
        train, select, report = split(self.plan.deal(seed), data)
        keys = dict(zip(("classifiers", "denoiser", "select", "learn", "report"),
                        jax.random.split(jax.random.key(seed), 5), strict=True))  # fmt: skip
        x0, cond = jnp.asarray(train["x0"]), jnp.asarray(train["cond"])
        names = (*networks.SEEN, *networks.FRESH)
        params = networks.train_classifiers(keys["classifiers"], sizes, x0, cond, names)
        long = dict(sizes.denoisers)[denoiser]
        denoise = networks.train_denoiser(keys["denoiser"], sizes, long, x0, cond)
        seen = arenas.Arena(params, tuple(networks.SEEN), **select)
        test = arenas.Arena(params, tuple(networks.FRESH), **report)
        found: dict[str, Any] = {}

        def measure(method: str, guide: gj.Guidance, **chosen: Any) -> None:
            x = arenas.generate(keys["report"], denoise, guide, sizes.report_samples, steps)
            figures = {**test.measure(x), "evaluations": evaluations(guide, steps)}
            found[method] = {"figures": figures, **chosen}
            LOG.info(
                "%s %d, %-24s frechet %.3f, energy %.4f, evaluations %.0f",
                denoiser, seed, method,
                figures["frechet"], figures["energy"], figures["evaluations"],
            )  # fmt: skip

        def tune(method: str, key: jax.Array, arena: arenas.Arena, count: int) -> Any:
            def score(numbers: dict[str, float]) -> float:
                traced = {name: jnp.asarray(value) for name, value in numbers.items()}
                value = arena.score(_generate(key, denoise, method, traced, count, steps))
                return value if np.isfinite(value) else float("inf")

            each = TUNED[method]
            return tuning.search(score, each.space, budget(method, self.plan), each.allowed)

        for method, each in TUNED.items():
            if not each.space:
                measure(method, each.guide())
                continue
            best = tune(method, keys["select"], seen, sizes.tune_samples)
            guide = each.guide(**best.numbers)
            measure(method, guide, numbers=best.numbers, settings=len(best.trace))
        best = tune("interval", keys["report"], test, sizes.report_samples)
        guide = TUNED["interval"].guide(**best.numbers)
        measure(ORACLE, guide, numbers=best.numbers, settings=len(best.trace))
        objective = methods.rollout(sizes, params, train["x0"])
        for method, (rule, net) in LEARNED.items():
            phi = gj.fit_omega(
                keys["learn"], net, denoise, batches(train, sizes.rollout_group, seed), rule=rule,
                uncond=NUM_CLASSES, objective=objective,
                optimizer=methods.optimizer(sizes.rollout_steps), steps=sizes.rollout_steps,
            )  # fmt: skip
            guide = gj.guidance(rule, **net.weights(phi))
            measure(method, guide)
            if method == "rollout":
                count = round(found["interval"]["figures"]["evaluations"]) - steps
                measure(GATED, window(guide, count, steps) if count else guide)
        return found


# What comes of it


def rows(cells: Cells, denoiser: str, method: str, figure: str = "frechet") -> np.ndarray:
    """A figure of every finished seed, a row a deal: (deals, seeds of a deal)."""
    found = [
        cell[method]["figures"][figure]
        for seed in cells.plan.seeds
        if (cell := cells.find(f"{denoiser}/{seed}")) is not None
    ]
    whole = len(found) // cells.plan.each * cells.plan.each
    return np.reshape(found[:whole], (-1, cells.plan.each))


def ratio(
    cells: Cells, denoiser: str, method: str, other: str, figure: str = "frechet", count: int = 1
) -> Interval:
    """The paired ratio of two methods and its 95% interval, or that for one of `count` claims.

    Seeds of a deal share their images, so that what is independent is a deal: the interval is
    Student's over the deals' mean logarithms.
    """
    ours, theirs = (np.log(rows(cells, denoiser, m, figure)) for m in (method, other))
    found = mean_interval((ours - theirs).mean(axis=1), 1 - 0.05 / count)
    return Interval(*map(np.exp, found))


def best(cells: Cells, denoiser: str, among: tuple[str, ...]) -> str:
    """The method of the least mean distance as it is reported: chosen in its own favour."""
    return min(among, key=lambda m: float(np.log(rows(cells, denoiser, m)).mean()))


def claims(cells: Cells) -> list[dict[str, Any]]:
    """What the protocol asks: {"claim", "value", "holds"} each, intervals for all together."""
    under, *others = (name for name, _ in cells.plan.sizes.denoisers)
    plain = tuple(name for name in TUNED if name not in PER_CLASS and name != "unguided")
    asked: list[tuple[str, str, str, str, float]] = [
        ("rollout", best(cells, under, plain), under, "frechet", 0.95),
        *(("rollout", method, under, "frechet", 0.95) for method in PER_CLASS),
        ("rollout, times alone", "interval", under, "frechet", 1.0),
        (GATED, "interval", under, "frechet", 0.95),
        *(
            ("rollout", best(cells, well, (*plain, *PER_CLASS, "unguided")), well, "frechet", 1.01)
            for well in others
        ),
    ]
    found = []
    for method, other, denoiser, figure, bar in asked:
        value = ratio(cells, denoiser, method, other, figure, len(asked))
        holds = bool(value.estimate <= bar and (bar > 1 or value.high < 1))
        text = f"Fréchet distance, {method} / {other}, {denoiser}: at most {bar:g}"
        text += "" if bar > 1 else ", interval below 1"
        numbers = {"mean": value.estimate, "low": value.low, "high": value.high}
        found.append({"claim": text, "value": numbers, "holds": holds})
    return found


def table(cells: Cells, denoiser: str) -> str:
    """Every method: geometric means over seeds, ratios to the interval with their intervals."""
    lines = []
    for method in METHODS:
        values = {
            figure: rows(cells, denoiser, method, figure)
            for figure in ("frechet", "energy", "agreement", "diversity", "evaluations")
        }
        against = ""
        if method != "interval":
            found = ratio(cells, denoiser, method, "interval")
            against = f"{found.estimate:.3f} ({found.low:.3f} to {found.high:.3f})"
        lines.append([
            method, f"{np.exp(np.log(values['frechet']).mean()):.2f}", against,
            f"{values['energy'].mean():.4f}", f"{values['agreement'].mean():.3f}",
            f"{values['diversity'].mean():.2f}", f"{values['evaluations'].mean():.1f}",
        ])  # fmt: skip
    return markdown_table(
        ["method", "Fréchet distance ↓", "/ interval", "energy per class ↓", "agreement ↑",
         "diversity (real: 1)", "evaluations"], lines,
    )  # fmt: skip


def text(cells: Cells) -> str:
    """The part of docs/digits.md."""
    under = cells.plan.sizes.denoisers[0][0]
    deals = len(rows(cells, under, "unguided"))
    if deals < len(cells.plan.seeds) // cells.plan.each:
        done = sum(map(cells.done, cells.functions))
        return (
            f"{done} of its {len(cells.functions)} cells are finished; nothing is summed up before "
            "all are. `python -m experiments.digits.settled --preset full --publish` goes on with "
            "it."
        )
    lines = [
        f"* {each['claim']}: {each['value']['mean']:.3f} ({each['value']['low']:.3f} to "
        f"{each['value']['high']:.3f}), **{'holds' if each['holds'] else 'does not hold'}**."
        for each in claims(cells)
    ]
    parts = ["\n".join(lines)]
    for name, _ in cells.plan.sizes.denoisers:
        parts.append(f"The {name} denoiser:\n\n{table(cells, name)}")
    return "\n\n".join(parts)


def page(old: str, cells: Cells) -> str:
    """docs/digits.md with its part made anew."""
    begin, end = "<!-- settled: begin -->\n", "\n<!-- settled: end -->"
    head, rest = old.split(begin)
    return head + begin + text(cells) + end + rest.split(end)[1]


def main(config: Config) -> None:
    """Do what is left."""
    if config.publish and config.preset != "full":
        raise SystemExit("docs/digits.md is of the full preset: --preset full --publish.")
    sharing.settle()
    config.out.mkdir(parents=True, exist_ok=True)
    logs.begin(config.out / "log.txt")
    full = config.preset == "full"
    cells = Cells(
        PLANS[config.preset], config.out / "cells" / config.preset, RESULTS if full else None
    )
    jobs = config.jobs or sharing.default_jobs()
    if jobs > 1:
        sharing.share(
            [sys.executable, "-m", "experiments.digits.settled", "--preset", config.preset,
             "--out", str(config.out), "--jobs", "1",
             "--cells", *(config.cells or cells.functions)], jobs,
        )  # fmt: skip
    cells.run(config.cells)
    if config.cells and not config.publish:
        return
    (config.out / f"{config.preset}.md").write_text(text(cells) + "\n")
    LOG.info("what came of it: %s", config.out / f"{config.preset}.md")
    if config.publish:
        for name in cells.functions:
            found = cells.find(name)
            if found is not None:
                path = RESULTS / f"{name}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(found) + "\n")
        path = DOCS / "digits.md"
        path.write_text(page(path.read_text(), cells))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

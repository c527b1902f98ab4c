"""The digits once more, by a protocol frozen before it was run.

    python -m experiments.digits.settled                           # minutes: not the protocol
    python -m experiments.digits.settled --preset full --publish   # docs/digits.md

Twenty seeds, four on each fifth of the images. Every baseline, some with numbers for each class, is
searched on the images that weights are learned from; the rollout spends no more than the largest
search. A run that was stopped goes on cell by cell; processes share the cells.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import guidejax as gj
from experiments import guides, logs, sharing, tuned, tuning
from experiments.benchmarks.report import markdown_table
from experiments.claims import FAILS, HOLDS, estimate
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
        each: Seeds of a fold.
        folds: Parts of the images; each is reported on once, and the others serve the rest.
        deal: Seed of the order in which the images are parted.
        plain: Settings that a search scores of a method whose numbers are the same for all classes.
        per_class: Settings for each number, of a method that has numbers for each class.
        sizes: Of networks, samples and learning.
    """

    seeds: tuple[int, ...] = tuple(range(100, 120))
    each: int = 4
    folds: int = 5
    deal: int = 500
    plain: int = 192
    per_class: int = 32
    sizes: digits.Plan = digits.PLANS["full"]

    def fold(self, seed: int) -> int:
        """The fold that a seed is reported on."""
        return (seed - self.seeds[0]) // self.each


PLANS = {
    "full": Plan(),
    # Two denoisers, searched and learned a little, to see that it runs.
    "quick": Plan(
        seeds=(90, 91), each=1, deal=490, plain=6, per_class=1,
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
        _per_class(omega=tuned.OMEGA, lo=tuned.LO, hi=tuned.HI), _interval_per_class, tuned.ordered,
        together=tuple((f"lo {c}", f"hi {c}") for c in range(NUM_CLASSES)),
        **tuned.per(NUM_CLASSES, "interval", omega="value", lo="lo", hi="hi"),
    ),
    "adg per class": tuned.Tuned(
        _per_class(omega=tuned.OMEGA, max_angle=tuned.CAP), _adg_per_class,
        **tuned.per(NUM_CLASSES, "adg", omega="omega", max_angle="max_angle"),
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
    size = len(TUNED[method].space)
    return plan.per_class * size if method in PER_CLASS else plan.plain if size else 1


def protocol(plan: Plan) -> str:
    """What a cell is of, in a word: it isn't taken for one of another plan or other spaces."""
    spaces = {
        name: [each.space, each.others, each.together, each.after] for name, each in TUNED.items()
    }
    learned = {name: [rule.name, net] for name, (rule, net) in LEARNED.items()}
    return hashlib.sha256(repr([plan, spaces, learned]).encode()).hexdigest()[:16]


def parts(plan: Plan, seed: int, data_dir: pathlib.Path) -> list[dict[str, np.ndarray]]:
    """Images to train networks on; these and others, to choose and learn on; and the report's.

    All images in one order, class by class alike; a seed's fold is reported on, and serves no
    network, search or learning of that seed.
    """
    whole = split(plan.deal, data_dir)
    images = {name: np.concatenate([part[name] for part in whole]) for name in whole[0]}
    ends = np.linspace(0, len(images["cond"]), plan.folds + 1).astype(int)
    fold = np.arange(ends[plan.fold(seed)], ends[plan.fold(seed) + 1])
    others = np.delete(np.arange(len(images["cond"])), fold)
    trained = others[np.arange(len(others)) % 18 < 13]
    return [{n: v[rows] for n, v in images.items()} for rows in (trained, others, fold)]


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
    if count == 0:
        return gj.guidance(gj.cfg, 0.0)
    first = int(np.argmax([curve[i : i + count].sum() for i in range(steps - count + 1)]))
    return guides.windowed(guide, float(grid[first + count - 1]), float(grid[first]))


# Cells


class Cells:
    """Every cell of a plan, a denoiser of a seed each."""

    def __init__(self, plan: Plan, folder: pathlib.Path, published: pathlib.Path | None = None):
        """Results go to `folder`; what is `published` is finished."""
        self.plan, self.folders = plan, [folder, *([published] if published else [])]
        self.functions: dict[str, Callable[[], Any]] = dict(self._cells())
        self.protocol = protocol(plan)
        self._known: dict[str, Any] = {}

    def _cells(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        for seed in self.plan.seeds:
            for name, _ in self.plan.sizes.denoisers:
                yield f"{name}/{seed}", functools.partial(self._cell, name, seed)

    def find(self, name: str) -> Any:
        """The result of a finished cell, or None."""
        for folder in self.folders:
            path = folder / f"{name}.json"
            if name not in self._known and path.exists():
                found = json.loads(path.read_text())
                if found["protocol"] == self.protocol:
                    self._known[name] = found["methods"]
        return self._known.get(name)

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
        plan, sizes, steps = self.plan, self.plan.sizes, self.plan.sizes.sampling_steps
        train, chosen_on, report = parts(plan, seed, self.folders[0].parents[1] / "data")
        keys = dict(zip(("classifiers", "denoiser", "select", "learn", "report"),
                        jax.random.split(jax.random.key(seed), 5), strict=True))  # fmt: skip
        x0, cond = jnp.asarray(train["x0"]), jnp.asarray(train["cond"])
        names = (*networks.SEEN, *networks.FRESH)
        params = networks.train_classifiers(keys["classifiers"], sizes, x0, cond, names)
        long = dict(sizes.denoisers)[denoiser]
        denoise = networks.train_denoiser(keys["denoiser"], sizes, long, x0, cond)
        # Guidance is tuned and learned on one set of images.
        seen = arenas.Arena(params, tuple(networks.SEEN), **chosen_on)
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

        def tune(method: str, special: Any, oracle: bool = False) -> None:
            each, on = TUNED[method], test if oracle else seen
            key = keys["report" if oracle else "select"]
            count = sizes.report_samples if oracle else sizes.tune_samples

            def score(numbers: dict[str, float]) -> float:
                traced = {name: jnp.asarray(value) for name, value in numbers.items()}
                value = on.score(_generate(key, denoise, method, traced, count, steps))
                return value if np.isfinite(value) else float("inf")

            more = [found[method]["numbers"]] if oracle else []
            best = each.search(score, budget(method, plan), special, more=more)
            least = np.minimum.accumulate([value for _, value in best.trace])
            measure(
                ORACLE if oracle else method, each.guide(**best.numbers), numbers=best.numbers,
                settings=len(best.trace), rests=best.rests,
                # The least score after each quarter of the search.
                least=[float(least[max(len(least) * q // 4 - 1, 0)]) for q in (1, 2, 3, 4)],
            )  # fmt: skip

        for method, each in TUNED.items():
            if each.space:
                tune(method, found[each.after]["numbers"] if each.after else None)
            else:
                measure(method, each.guide())
        tune("interval", found["constant"]["numbers"], oracle=True)
        objective = methods.rollout(sizes, params, chosen_on["x0"])
        fits = self.folders[0].absolute() / "fits" / self.protocol / denoiser / str(seed)
        for method, (rule, net) in LEARNED.items():
            phi = gj.fit_omega(
                keys["learn"], net, denoise, batches(chosen_on, sizes.rollout_group, seed),
                rule=rule, uncond=NUM_CLASSES, objective=objective,
                optimizer=methods.optimizer(sizes.rollout_steps), steps=sizes.rollout_steps,
                checkpoint_dir=fits / method, save_every=100,
            )  # fmt: skip
            guide = gj.guidance(rule, **net.weights(phi))
            measure(method, guide)
            if method == "rollout":
                count = round(found["interval"]["figures"]["evaluations"]) - steps
                measure(GATED, window(guide, count, steps))
        return {"protocol": self.protocol, "methods": found}


# What comes of it


def rows(cells: Cells, denoiser: str, method: str, figure: str = "frechet") -> np.ndarray:
    """A figure of every seed, a row a fold: (folds, seeds of a fold)."""
    found = [
        cells.find(f"{denoiser}/{seed}")[method]["figures"][figure] for seed in cells.plan.seeds
    ]
    return np.reshape(found, (-1, cells.plan.each))


def ratio(
    cells: Cells, denoiser: str, method: str, other: str, figure: str = "frechet", count: int = 1
) -> Interval:
    """The paired ratio of two methods and its 95% interval, or that for one of `count` claims.

    Seeds of a fold share the reported images: the interval is Student's over the folds' mean
    logarithms. Folds share images to train on, and all are parts of the same 1,797: it says how the
    ratio varies over fifths of them, and not over other digits.
    """
    ours, theirs = (np.log(rows(cells, denoiser, m, figure)) for m in (method, other))
    found = mean_interval((ours - theirs).mean(axis=1), 1 - 0.05 / count)
    return Interval(*map(np.exp, found))


def best(cells: Cells, denoiser: str, among: tuple[str, ...]) -> str:
    """The method of the least mean distance as it is reported: chosen in its own favour."""
    return min(among, key=lambda m: float(np.log(rows(cells, denoiser, m)).mean()))


class Asked(NamedTuple):
    """A claim of the protocol: a ratio, the most it may be, and the most its interval may reach."""

    method: str
    other: str
    denoiser: str
    most: float
    high: float
    figure: str = "frechet"


def asked(cells: Cells) -> list[Asked]:
    """Every claim."""
    under, *others = (name for name, _ in cells.plan.sizes.denoisers)
    plain = tuple(name for name in TUNED if name not in PER_CLASS and name != "unguided")
    rival = best(cells, under, plain)
    found = [
        Asked("rollout", rival, under, 0.95, 1.0),
        *(Asked("rollout", method, under, 0.95, 1.0) for method in PER_CLASS),
        Asked("rollout, times alone", "interval", under, 1.0, 1.0),
        Asked(GATED, "interval", under, 0.95, 1.0),
        Asked("rollout", rival, under, 1.0, 1.05, "energy"),
    ]
    for well in others:
        rival = best(cells, well, (*plain, *PER_CLASS, "unguided"))
        found.append(Asked("rollout", rival, well, 1.01, 1.03))
    return found


def claims(cells: Cells) -> list[dict[str, Any]]:
    """What the protocol asks: {"claim", "value", "holds"} each, intervals for all together."""
    found, wanted = [], asked(cells)
    names = {"frechet": "Fréchet distance", "energy": "Energy distance within a class"}
    for each in wanted:
        value = ratio(cells, *(each.denoiser, each.method, each.other, each.figure), len(wanted))
        found.append({
            "claim": f"{names[each.figure]}, {each.method} / {each.other}, {each.denoiser}: at "
            f"most {each.most:g}, interval below {each.high:g}",
            "value": {"mean": value.estimate, "low": value.low, "high": value.high},
            "holds": bool(value.estimate <= each.most and value.high < each.high),
        })  # fmt: skip
    return found


def table(cells: Cells, denoiser: str) -> str:
    """Every method: geometric means over seeds, ratios to the interval with their intervals."""
    lines = []
    for method in METHODS:
        values = {
            figure: rows(cells, denoiser, method, figure)
            for figure in ("frechet", "energy", "agreement", "diversity", "evaluations")
        }
        against = apart = ""
        if method != "interval":
            found = ratio(cells, denoiser, method, "interval")
            against = f"{found.estimate:.3f} ({found.low:.3f} to {found.high:.3f})"
            single = [
                float(ratio(cells, denoiser, method, "interval", f"frechet/{name}").estimate)
                for name in networks.FRESH
            ]
            apart = f"{min(single):.3f}, {max(single):.3f}"
        lines.append([
            method, f"{np.exp(np.log(values['frechet']).mean()):.2f}", against, apart,
            f"{values['energy'].mean():.4f}", f"{values['agreement'].mean():.3f}",
            f"{values['diversity'].mean():.2f}", f"{values['evaluations'].mean():.1f}",
        ])  # fmt: skip
    return markdown_table(
        ["method", "Fréchet distance ↓", "/ interval", "least and largest", "energy per class ↓",
         "agreement ↑", "diversity (real: 1)", "evaluations"], lines,
    )  # fmt: skip


def text(cells: Cells) -> str:
    """The part of docs/digits.md."""
    done = sum(map(cells.done, cells.functions))
    if done < len(cells.functions):
        return (
            f"{done} of its {len(cells.functions)} cells are finished; nothing is summed up before "
            "all are. `python -m experiments.digits.settled --preset full --publish` goes on with "
            "it."
        )
    found = claims(cells)
    lines = [
        f"* {each['claim']}: {estimate(each['value'])}, **{HOLDS if each['holds'] else FAILS}**."
        for each in found
    ]
    level = 100 * (1 - 0.05 / len(found))
    text = [
        f"Ratios with intervals at {level:.1f}%, for all {len(found)} together at 95%:",
        "\n".join(lines),
    ]
    for name, _ in cells.plan.sizes.denoisers:
        each = [cells.find(f"{name}/{seed}") for seed in cells.plan.seeds]
        late = sum(
            cell[method]["least"][2] > cell[method]["least"][3]
            for cell in each for method in TUNED if "least" in cell[method]
        )  # fmt: skip
        count = sum("least" in cell[method] for cell in each for method in TUNED)
        text += [
            f"The {name} denoiser; ratios with intervals at 95%. Of {count} searches {late} still "
            "found something better in their last quarter. “Least and largest” are the ratios on "
            "single networks of the report.",
            table(cells, name),
        ]
    return "\n\n".join(text)


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
                kept = {"protocol": cells.protocol, "methods": found}
                path.write_text(json.dumps(kept) + "\n")
        path = DOCS / "digits.md"
        path.write_text(page(path.read_text(), cells))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

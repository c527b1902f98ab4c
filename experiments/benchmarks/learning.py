"""What learning ω costs in evaluations of the network: the paper's estimator, and cheaper ones.

    python -m experiments.benchmarks.learning                   # on this machine, see --preset
    python -m experiments.benchmarks.learning --publish         # and write docs/learning.md

Held-out self-consistency loss on mixtures and on the digits, and the Fréchet distance of samples
on the digits, against evaluations. The learning rate of every estimator is searched on seeds of its
own, in a grid that widens until its optimum lies inside; then five fresh seeds are run once. Each
run (world, seed, estimator, rate) is a file, and a benchmark that was stopped goes on from them.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import pathlib
import shutil
import sys
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import guidejax as gj
from experiments.benchmarks.report import markdown_table
from experiments.benchmarks.worlds import SIZES, Digits, Mixtures, stacked
from experiments.digits import arena as arenas
from experiments.statistics.intervals import Interval, paired_ratio_interval
from guidejax import learning, objectives

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TUNED_ON, REPORTED_ON = (3000, 3001), (60, 61, 62, 63, 64)
OMEGA = gj.weights.Range(0.5, lo=0.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """Learn ω by the paper's estimator and by cheaper ones, and count evaluations."""

    preset: Literal["tiny", "quick", "full"] = "quick"
    """tiny: to see that it runs. quick: an hour on a CPU core. full: as long as in the digits experiment; for a GPU."""
    worlds: tuple[str, ...] = ("mixtures", "digits", "rollout")
    """Which parts to run."""
    together: int = 1
    """Runs in one program: 6 on a GPU, which has room for them."""
    threads: int = 0
    """Compile the programs of a part side by side, ahead of the runs, where there are cores."""
    out: pathlib.Path = pathlib.Path("runs/benchmarks/learning")
    """Where the runs, results.json and figure.png go."""
    publish: bool = False
    """Write docs/learning.md and its files too."""
    docs: pathlib.Path = pathlib.Path("docs")
    """Where that is."""


@dataclasses.dataclass(frozen=True)
class Estimator:
    """How the loss is estimated, and how often.

    Attributes:
        label: What the page calls it.
        updates: Updates of φ.
        batch: Examples an update; 0 for a rollout, whose batch is a group of each class.
        kept: Examples evaluated once, before the first update; 0 where each update evaluates its
            own.
        particles: Particles of an example, or samples of a class.
        options: Other options of the objective.
        gradient: What a rollout's gradient knows of the network: "network"; "linear", the slope of
            the best linear denoiser; "none".
        last: Steps at the end of a rollout that are differentiated; 0 is all.
    """

    label: str
    updates: int
    batch: int = 0
    kept: int = 0
    particles: int = 4
    options: tuple[tuple[str, Any], ...] = ()
    gradient: Literal["network", "linear", "none"] = "network"
    last: int = 0

    def evaluations(self, updates: Any) -> Any:
        """Evaluations of one sample by `updates`: a condition each, a backward pass counts two."""
        if self.kept:
            return 2 * self.kept * self.particles + 0 * updates
        if self.batch:
            return 2 * self.batch * self.particles * updates
        options = dict(self.options)
        steps = options.get("steps", SIZES.sampling_steps)
        share = options.get("differentiate", self.particles) / self.particles
        share *= (self.last or steps) / steps
        backward = 2 * share if self.gradient == "network" else 0
        samples = 10 * self.particles
        return updates * round(2 * steps * samples * (1 + backward))


OURS = (("ends", 4), ("noise", "expected"))


def consistency(updates: int) -> dict[str, Estimator]:
    """The estimators of self-consistency; the paper's makes `updates` of them."""
    tenth = updates * 2048 // 10
    return {
        "paper": Estimator("the paper's: 256 examples, 4 particles", updates, 256),
        "small": Estimator("the paper's, 32 examples", tenth // 256, 32),
        "online": Estimator("4 ends, noise expected, 2 particles, 64 examples", tenth // 256, 64,
                            particles=2, options=OURS),
        "kept": Estimator("that, a tenth kept and learned from throughout", updates, 256,
                          kept=_whole(tenth / 4), particles=2, options=OURS),
        "kept/2": Estimator("that, a twentieth kept", updates, 256,
                            kept=_whole(tenth / 8), particles=2, options=OURS),
        "kept/4": Estimator("that, a fortieth kept", updates, 256,
                            kept=_whole(tenth / 16), particles=2, options=OURS),
        "long": Estimator("as many as the paper's, kept", 2 * updates, 256,
                          kept=_whole(10 * tenth / 4), particles=2, options=OURS),
    }  # fmt: skip


def rollouts(updates: int, group: int) -> dict[str, Estimator]:
    """The estimators of the rollout; its own makes `updates` of groups of `group`."""
    few = max(group // 6, 1)
    third = lambda label, **options: _of_cost(  # noqa: E731
        Estimator(label, 1, particles=group, **options), updates * 2 * 16 * 10 * group
    )
    return {
        "rollout": Estimator("the rollout", updates, particles=group),
        "fewer": third("the rollout, a third of the updates"),
        "some": third("a sixth of the samples differentiated",
                      options=(("differentiate", few),)),
        "some, reference": third(
            "a sixth differentiated, all images as reference",
            options=(("differentiate", few), ("reference", True)),
        ),
        "last": third("the last half of the steps differentiated", last=8),
        "linear": third("the slope of the best linear denoiser", gradient="linear"),
        "none": third("no slope of the network", gradient="none"),
    }  # fmt: skip


def _whole(examples: float) -> int:
    """A number of examples in chunks of 256."""
    return max(round(examples / 256), 1) * 256


def _of_cost(estimator: Estimator, evaluations: float) -> Estimator:
    """The estimator with as many updates as its evaluations allow."""
    updates = int(evaluations / estimator.evaluations(1))
    return dataclasses.replace(estimator, updates=updates)


PRESETS = {
    "tiny": {"consistency": 8, "rollout": 6, "group": 4, "samples": 100},
    "quick": {"consistency": 600, "rollout": 240, "group": 12, "samples": 1000},
    "full": {"consistency": 4000, "rollout": 1000, "group": 24, "samples": 2000},
}


# Learning


def network(kind: Any) -> gj.OmegaNet:
    """What learns ω."""
    return gj.OmegaNet(num_classes=kind.classes, outputs={"omega": OMEGA})


@functools.cache
def guide(kind: Any) -> Any:
    """φ → a guidance."""
    net = network(kind)
    return lambda phi: gj.guidance(gj.cfg, omega=net.weight(phi))


def objective(estimator: Estimator, world: Any) -> Any:
    """The loss, as it is estimated."""
    options = dict(estimator.options)
    if estimator.batch:
        return gj.self_consistency(1.75, estimator.particles, **options)
    steps = options.pop("steps", SIZES.sampling_steps)
    if options.pop("reference", False):
        options["reference"] = world["x0"], world["cond"]
    made = gj.rollout(
        world["features"], estimator.particles, steps, pooled=0.97, beta=2.0, remat="none",
        **options,
    )  # fmt: skip
    return _LastSteps(made, estimator.last) if estimator.last else made


def _of_classes(kind: Any, x0: jax.Array, cond: jax.Array) -> objectives.Batch:
    return objectives.Batch(x0, cond, {"uncond": jnp.full(cond.shape, kind.classes)})


def marks(updates: int) -> np.ndarray:
    """After which updates φ is looked at."""
    return np.unique(np.round(np.geomspace(max(updates / 64, 1), updates, 7)).astype(int))


@functools.cache
def program(kind: Any, estimator: Estimator) -> Any:
    """(worlds, keys, rates) -> φ at the `marks`, (runs, marks, ...); compiled once."""
    decay = optax.cosine_decay_schedule(1.0, estimator.updates)
    ends = jnp.asarray(marks(estimator.updates))

    def one(world, key, rate):
        begin, run, pool_key = jax.random.split(key, 3)
        optimizer = optax.chain(
            optax.clip_by_global_norm(1.0), optax.adam(lambda count: rate * decay(count))
        )
        loss, denoise = objective(estimator, world), sloped(kind, world, estimator.gradient)
        state = learning.init_state(run, network(kind).init(begin), optimizer)
        pool = None
        if estimator.kept:

            def fill(key):
                which, how = jax.random.split(key)
                batch = _of_classes(kind, *kind.draw(world, which, 256))
                keys = jax.random.split(how, 256)
                found = loss.evaluate(keys, ("cond", "uncond"), denoise, batch)
                return batch._replace(evaluations=found)

            pool = jax.lax.map(fill, jax.random.split(pool_key, estimator.kept // 256))
            pool = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), pool)

        def update(count, state):
            which, how = jax.random.split(jax.random.fold_in(run, count))
            if estimator.kept:
                rows = jax.random.randint(which, (estimator.batch,), 0, estimator.kept)
                batch = jax.tree.map(lambda a: a[rows], pool)
            elif estimator.batch:
                batch = _of_classes(kind, *kind.draw(world, which, estimator.batch))
            else:
                batch = _of_classes(kind, *kind.groups(world, which, estimator.particles))
            keys = jax.random.split(how, batch.cond.shape[0])
            state, _ = learning.train_step(
                state, denoise, batch, keys, guide=guide(kind), objective=loss,
                optimizer=optimizer,
            )  # fmt: skip
            return state

        def until(state, part):
            state = jax.lax.fori_loop(part[0], part[1], update, state)
            return state, state.phi

        return jax.lax.scan(until, state, (jnp.concatenate([jnp.zeros(1, int), ends[:-1]]), ends))[
            1
        ]

    return jax.jit(jax.vmap(one))


# The rollout's gradient with less of the network in it: tried, and measured beside the others.


def sloped(kind: Any, world: Any, slope: str) -> gj.Denoiser:
    """The world's denoiser, with another slope in x for the gradient."""
    denoise = kind.denoiser(world)
    if slope == "network":
        return denoise
    images = world["x0"].reshape(world["x0"].shape[0], -1)
    variances, axes = jnp.linalg.eigh(jnp.cov(images.T))

    def x0(params: Any, x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
        inner, variances, axes = params
        still = jax.lax.stop_gradient(x)
        found = jax.lax.stop_gradient(inner(still, t, cond))
        if slope == "none":
            return found
        alpha, sigma = (f(t)[:, None] for f in (inner.process.alpha, inner.process.sigma))
        gain = alpha * variances / (alpha**2 * variances + sigma**2)
        moved = ((x - still).reshape(x.shape[0], -1) @ axes * gain) @ axes.T
        return found + moved.reshape(x.shape)

    return gj.denoiser(x0, denoise.process, params=(denoise, jnp.maximum(variances, 0), axes))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _LastSteps:
    """A rollout whose gradient goes back through its last steps alone."""

    whole: Any
    last: int = dataclasses.field(metadata={"static": True})

    def __call__(self, keys, guidance, denoise, batch, networks):
        cut = len(self.whole.times) - 1 - self.last
        first, rest = self.whole.times[: cut + 1], self.whole.times[cut:]
        noise = jax.vmap(lambda key: jax.random.normal(key, batch.x0.shape[1:]))(keys)
        still = jax.lax.stop_gradient(guidance)
        ways = {"cond": batch.cond, "uncond": batch.conditions["uncond"]}
        half = gj.sample(keys[0], denoise, noise, guidance=still, times=np.asarray(first), **ways)
        half = jax.lax.stop_gradient(half)
        x0 = gj.sample(keys[0], denoise, half, guidance=guidance, times=np.asarray(rest), **ways)
        return self.whole.compare(x0, batch)


# Measuring


@functools.cache
def held_out(kind: Any) -> Any:
    """(worlds, keys, φ at marks) -> mean losses of examples that nothing is learned from."""
    loss = gj.self_consistency(1.75, 2, ends=4, noise="expected")

    def one(world, key, phis):
        which, how = jax.random.split(key)
        batch = _of_classes(kind, *kind.kept_back(world, which))
        keys = jax.random.split(how, batch.cond.shape[0])
        denoise = kind.denoiser(world)

        def part(chunk):
            batch, keys = chunk
            found = loss.evaluate(keys, ("cond", "uncond"), denoise, batch)
            batch = batch._replace(evaluations=found)
            at = lambda phi: jnp.mean(loss(keys, guide(kind)(phi), denoise, batch))  # noqa: E731
            return jax.lax.map(at, phis)

        chunks = jax.tree.map(lambda a: a.reshape(-1, 500, *a.shape[1:]), (batch, keys))
        return jnp.mean(jax.lax.map(part, chunks), axis=0)

    return jax.jit(jax.vmap(one))


class Runs:
    """The runs in one directory: those that are there are read, the others made."""

    def __init__(self, config: Config):
        self.config, self.sizes = config, PRESETS[config.preset]
        self.mixtures = Mixtures()
        self.digits = Digits(config.out / "digits.npz")
        self._worlds: dict[Any, Any] = {}
        self._arenas: dict[Any, Any] = {}
        self._compiled: dict[Any, Any] = {}

    def compile(self, part: str, estimators: list[Estimator]) -> None:
        """Compile side by side what a part runs."""
        if not self.config.threads:
            return
        kind = self.kind(part)
        arguments = self._arguments(part, [(TUNED_ON[0], 0.01)] * self.config.together)
        made = lambda e: program(kind, e).lower(*arguments).compile()  # noqa: E731
        with concurrent.futures.ThreadPoolExecutor(self.config.threads) as pool:
            for estimator, compiled in zip(estimators, pool.map(made, estimators), strict=True):
                self._compiled[kind, estimator] = compiled

    def kind(self, part: str) -> Any:
        """The kind of world that a part is about."""
        return self.mixtures if part == "mixtures" else self.digits

    def _arguments(self, part: str, pairs: list[tuple[int, float]]) -> tuple[Any, ...]:
        worlds = [self.world(self.kind(part), seed) for seed, _ in pairs]
        keys = jnp.stack([jax.random.key(seed) for seed, _ in pairs])
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        return stacked(worlds), keys, jnp.asarray([rate for _, rate in pairs])

    def world(self, kind: Any, seed: int) -> Any:
        """A world, made once."""
        if (kind.name, seed) not in self._worlds:
            self._worlds[kind.name, seed] = kind.world(seed, _split(seed))
        return self._worlds[kind.name, seed]

    def get(
        self, part: str, name: str, estimator: Estimator, pairs: list[tuple[int, float]]
    ) -> list[dict[str, Any]]:
        """The runs of these (seed, rate)."""
        folder = self.config.out / "runs" / self.config.preset / part
        folder.mkdir(parents=True, exist_ok=True)
        about = json.loads(json.dumps(dataclasses.asdict(estimator)))
        plain = name.replace("/", "-over-").replace(", ", "-")
        paths = {pair: folder / f"{plain}-{pair[1]:.2e}-{pair[0]}.json" for pair in pairs}
        found = {}
        for pair, path in paths.items():
            if path.exists():
                found[pair] = json.loads(path.read_text())
                if found[pair]["estimator"] != about:
                    raise SystemExit(f"{path} is a run of other settings; give another --out.")
        missing = [pair for pair in pairs if pair not in found]
        size = self.config.together
        for start in range(0, len(missing), size):
            group = missing[start : start + size]
            # Always as many runs: one program for all.
            results = self._run(part, estimator, [*group, *[group[-1]] * (size - len(group))])
            for pair, result in zip(group, results, strict=False):
                found[pair] = {"estimator": about, "seed": pair[0], "rate": pair[1], **result}
                partial = paths[pair].with_suffix(".partial")
                partial.write_text(json.dumps(found[pair]))
                partial.rename(paths[pair])
                print(part, name, f"seed {pair[0]}, rate {pair[1]:.1e}:", result, flush=True)
        return [found[pair] for pair in pairs]

    def _run(
        self, part: str, estimator: Estimator, pairs: list[tuple[int, float]]
    ) -> list[dict[str, Any]]:
        kind, seeds = self.kind(part), [seed for seed, _ in pairs]
        worlds, keys, rates = self._arguments(part, pairs)
        run = self._compiled.get((kind, estimator), program(kind, estimator))
        begun = time.perf_counter()
        phis = jax.block_until_ready(run(worlds, keys, rates))
        seconds = time.perf_counter() - begun
        results: list[dict[str, Any]] = [
            {
                "evaluations": [int(estimator.evaluations(n)) for n in marks(estimator.updates)],
                "seconds": round(seconds / len(seeds), 1),
            }
            for _ in seeds
        ]
        if estimator.batch:
            others = jnp.stack([jax.random.fold_in(jax.random.key(seed), 2) for seed in seeds])
            held = held_out(kind)(worlds, others, phis)
            for result, row in zip(results, np.asarray(held), strict=True):
                result["held"] = [round(float(v), 8) for v in row]
        if kind is self.digits:
            distinct = len(dict.fromkeys(pairs))  # The others are there to fill the program.
            for i, (seed, result) in enumerate(zip(seeds[:distinct], results, strict=False)):
                last = len(result["evaluations"])
                at = range(last - 1 if estimator.batch else max(last - 4, 0), last)
                result["frechet"] = {
                    str(result["evaluations"][mark]): self._frechet(
                        seed, jax.tree.map(lambda a, i=i, m=mark: a[i, m], phis)
                    )
                    for mark in at
                }
        return results

    def _frechet(self, seed: int, phi: Any) -> float:
        world = self.world(self.digits, seed)
        if seed not in self._arenas:
            self._arenas[seed] = self.digits.arena(world, _split(seed))
        x0 = arenas.generate(
            jax.random.fold_in(jax.random.key(seed), 3), self.digits.denoiser(world),
            guide(self.digits)(phi), self.sizes["samples"], SIZES.sampling_steps,
        )  # fmt: skip
        return round(self._arenas[seed].score(x0), 6)

    def tuned(self, part: str, name: str, estimator: Estimator) -> float:
        """The learning rate that ends best on the seeds for tuning, inside of its grid."""
        powers = [-1, 0, 1]
        while True:
            pairs = [(seed, rate_at(power)) for power in powers for seed in TUNED_ON]
            ends = [np.log(end(run)) for run in self.get(part, name, estimator, pairs)]
            scores = np.reshape(ends, (len(powers), -1)).mean(axis=1)
            best = int(np.argmin(scores))
            if 0 < best < len(powers) - 1:
                return rate_at(powers[best])
            if len(powers) > 7:
                raise SystemExit(f"{part}, {name}: no learning rate inside of {powers} is best.")
            powers = [powers[0] - 1, *powers] if best == 0 else [*powers, powers[-1] + 1]


def _split(seed: int) -> str:
    """What is kept back: selection images for tuning, and others for the report."""
    return "test" if seed in REPORTED_ON else "validation"


def rate_at(power: int) -> float:
    """A learning rate of the grid."""
    return float(f"{0.01 * 10 ** (power / 2):.2e}")


def end(run: dict[str, Any]) -> float:
    """What a run ends with: the held-out loss, or the Fréchet distance of a rollout."""
    return run["held"][-1] if "held" in run else list(run["frechet"].values())[-1]


# What estimators are tuned themselves; the others take the rate of the one that they vary.
RATE_OF = {
    "kept/2": "kept", "kept/4": "kept", "long": "kept", "fewer": "rollout", "last": "some",
    "some, reference": "some", "linear": "some", "none": "some",
}  # fmt: skip


def measure(runs: Runs, part: str) -> dict[str, Any]:
    """The rates found, and the runs of the report with them."""
    sizes = runs.sizes
    estimators = (
        rollouts(sizes["rollout"], sizes["group"])
        if part == "rollout"
        else consistency(sizes["consistency"])
    )
    runs.compile(part, list(estimators.values()))
    rates: dict[str, float] = {}
    for name, estimator in estimators.items():
        if name not in RATE_OF:
            rates[name] = runs.tuned(part, name, estimator)
    return {
        name: {
            "estimator": dataclasses.asdict(estimator),
            "rate": rates[RATE_OF.get(name, name)],
            "runs": runs.get(
                part,
                name,
                estimator,
                [(seed, rates[RATE_OF.get(name, name)]) for seed in REPORTED_ON],
            ),
        }
        for name, estimator in estimators.items()
    }


# What is said of them


# The last digit of a loss: what is no further over the best of a seed is that best itself.
LEAST = 1e-7


def best_known(part: dict[str, Any]) -> np.ndarray:
    """The lowest held-out loss of each seed, over every run and every mark."""
    return np.min([[min(run["held"]) for run in entry["runs"]] for entry in part.values()], axis=0)


def excess(part: dict[str, Any], name: str) -> np.ndarray:
    """(seeds, marks): held-out loss over the best known, no less than its last digit."""
    held = np.asarray([run["held"] for run in part[name]["runs"]])
    return np.maximum(held - best_known(part)[:, None], LEAST)


def frechet(part: dict[str, Any], name: str) -> tuple[list[int], np.ndarray]:
    """(evaluations, (seeds, marks) Fréchet distances)."""
    runs = part[name]["runs"]
    return [int(n) for n in runs[0]["frechet"]], np.asarray(
        [list(run["frechet"].values()) for run in runs]
    )


def _ratio(ours: Any, theirs: Any) -> str:
    found = paired_ratio_interval(ours, theirs)
    return f"{found.estimate:.3g} ({found.low:.3g} to {found.high:.3g})"


def _excess_ratio(ours: np.ndarray, theirs: np.ndarray) -> str:
    """The paired ratio of two excesses; of the means where a run is what excess is counted from."""
    if np.min([ours, theirs]) > LEAST:
        return _ratio(ours, theirs)
    return "the reference" if np.max(ours) <= LEAST else f"{ours.mean() / theirs.mean():.3g}, means"


def _count(evaluations: float) -> str:
    return f"{evaluations / 1e6:.3g}"


def consistency_table(part: dict[str, Any]) -> str:
    """A row an estimator, beside what the paper's ends with."""
    head = ["estimator", "rate", "evaluations, 10⁶", "excess at the end, 10⁻⁵", "/ the paper's"]
    digits = "frechet" in part["paper"]["runs"][0]
    head += ["Fréchet distance", "/ the paper's"] if digits else []
    lines = []
    theirs = excess(part, "paper")[:, -1]
    for name, entry in part.items():
        ours = excess(part, name)[:, -1]
        line = [
            entry["estimator"]["label"],
            f"{entry['rate']:.2g}",
            _count(entry["runs"][0]["evaluations"][-1]),
            f"{1e5 * ours.mean():.3g}",
            "1" if name == "paper" else _excess_ratio(ours, theirs),
        ]
        if digits:
            here, there = (frechet(part, n)[1][:, -1] for n in (name, "paper"))
            line += [f"{_geometric(here):.3f}", "1" if name == "paper" else _ratio(here, there)]
        lines.append(line)
    return markdown_table(head, lines)


def rollout_table(part: dict[str, Any]) -> str:
    """A row an estimator, beside what the rollout ends with."""
    head = ["estimator", "rate", "updates", "evaluations, 10⁶", "Fréchet distance", "/ the rollout"]
    lines = []
    theirs = frechet(part, "rollout")[1][:, -1]
    for name, entry in part.items():
        evaluations, found = frechet(part, name)
        lines.append(
            [
                entry["estimator"]["label"],
                f"{entry['rate']:.2g}",
                str(entry["estimator"]["updates"]),
                _count(evaluations[-1]),
                f"{_geometric(found[:, -1]):.3f}",
                "1" if name == "rollout" else _ratio(found[:, -1], theirs),
            ]
        )
    return markdown_table(head, lines)


def _geometric(values: np.ndarray) -> float:
    return float(np.exp(np.mean(np.log(values))))


COLORS = ("#222222", "#9a9a9a", "#4c78a8", "#e45756", "#f2a541", "#54a24b", "#b279a2")


def figure(parts: dict[str, Any], path: pathlib.Path) -> None:
    """What is lost or how far samples are, against evaluations; a panel a part."""
    drawing, axes = plt.subplots(1, len(parts), figsize=(4.6 * len(parts), 4.6), squeeze=False)
    titles = {
        "mixtures": "mixtures: held-out excess",
        "digits": "digits: held-out excess",
        "rollout": "digits: Fréchet distance of the rollout",
    }
    for axis, (title, part) in zip(axes[0], parts.items(), strict=True):
        for color, (name, entry) in zip(COLORS, part.items(), strict=False):
            if title == "rollout":
                evaluations, values = frechet(part, name)
            else:
                evaluations, values = entry["runs"][0]["evaluations"], excess(part, name)
            if evaluations[0] == evaluations[-1]:  # All of them made ahead: a point.
                evaluations, values = evaluations[-1:], values[:, -1:]
            middle = np.exp(np.log(values).mean(axis=0))
            axis.loglog(
                evaluations, middle, "o-", color=color, markersize=4,
                label=entry["estimator"]["label"],
            )  # fmt: skip
            if values.shape[0] > 1:
                half = np.log(values).std(axis=0, ddof=1) / np.sqrt(values.shape[0])
                ends = middle * np.exp(-half), middle * np.exp(half)
                if len(middle) > 1:
                    axis.fill_between(evaluations, *ends, color=color, alpha=0.15, linewidth=0)
                else:
                    axis.vlines(evaluations, *ends, color=color)
        baseline = "rollout" if title == "rollout" else "paper"
        last = frechet(part, baseline)[1] if title == "rollout" else excess(part, baseline)
        axis.axhline(np.exp(np.log(last[:, -1]).mean()), color="#222222", linewidth=0.7, ls=":")
        if title == "rollout":
            axis.yaxis.set_major_formatter("{x:.2f}")
            axis.yaxis.set_minor_formatter("{x:.2f}")
        axis.set_title(titles[title])
        axis.set_xlabel("evaluations of the network")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    drawing.tight_layout()
    drawing.savefig(path, dpi=130)
    plt.close(drawing)


def _verdicts(parts: dict[str, Any]) -> str:
    """What was to be shown, and by how much it is or isn't."""
    lines = []
    for title in ("mixtures", "digits"):
        if title in parts:
            ours, theirs = (excess(parts[title], name)[:, -1] for name in ("kept", "paper"))
            said = f"{ours.mean() / theirs.mean():.3g} by the means over seeds. "
            if np.min([ours, theirs]) > LEAST:
                ratio = paired_ratio_interval(ours, theirs)
                paired = f"{ratio.estimate:.3g} ({ratio.low:.3g} to {ratio.high:.3g}), "
                said = paired + said + _shown(ratio)
            else:
                said += "One of the two is the reference on some seed, so that no ratio is judged."
            lines.append(
                f"* {title}: with a tenth of the evaluations the excess, over what the paper's "
                f"estimator ends with, is {said}"
            )
    if "rollout" in parts:
        ends = {n: frechet(parts["rollout"], n)[1][:, -1] for n in parts["rollout"]}
        ratio = paired_ratio_interval(ends["some, reference"], ends["rollout"])
        lines.append(
            f"* the rollout: with a third of the evaluations the Fréchet distance is "
            f"{ratio.estimate:.3g} of its own ({ratio.low:.3g} to {ratio.high:.3g}). "
            f"{_shown(ratio)}"
        )
    return "\n".join(lines)


def _shown(ratio: Interval) -> str:
    found = "it is" if ratio.high <= 1 else "it isn't shown"
    return f"A ratio of 1 or less, with its whole interval, was to be shown: {found}."


def page(results: dict[str, Any]) -> str:
    """docs/learning.md."""
    parts, made = results["parts"], results["preset"]
    tables = {
        "mixtures": (
            "Mixtures", "Three classes of two Gaussians in the plane, another mixture each seed. "
            "The model is exact for components 0.1 too wide, and takes one sample in ten for each "
            "of the other two classes: it is misspecified, and guidance helps.",
        ),
        "digits": (
            "Digits", "The under-trained denoiser of the digits experiment. Learned on the training "
            "images; the loss is that of the test images, the Fréchet distance to them in the four "
            "networks of the report.",
        ),
        "rollout": (
            "The rollout on the digits", "Fréchet moments, 0.97 pooled, 16 steps, as in the digits "
            "experiment. At a third of the evaluations every way makes as many updates as it can.",
        ),
    }  # fmt: skip
    text = "\n\n".join(
        f"## {title}\n\n{about}\n\n"
        + (rollout_table(parts[name]) if name == "rollout" else consistency_table(parts[name]))
        for name, (title, about) in tables.items()
        if name in parts
    )
    return f"""# Learning with fewer evaluations

Written by `python -m experiments.benchmarks.learning --preset {made} --publish` on
{results["device"]}; every run is in `docs/learning/results.json`.

An evaluation is one pass of the network for one sample: a condition each, and a backward pass counts
two. We searched the learning rate on seeds {", ".join(map(str, TUNED_ON))}, in steps of √10, in a grid that widens until
its optimum lies inside, for each of these: the paper's estimator with 256 and with 32 examples an update;
ours, with new and with kept evaluations; the rollout; the rollout of which a few samples are
differentiated. Every other row takes the rate of the row that it varies. Adam with a cosine decay to 0 and clipped gradients for all. Then seeds {", ".join(map(str, REPORTED_ON))} were run once. The excess is
over the lowest held-out loss that any run of a seed reached at any time. Ratios are paired over
seeds, with 95% intervals; where a run is itself that lowest on some seed, the ratio is of the means.
The digits' seeds share one set of test images.

{_verdicts(parts)}

![Held-out excess and Fréchet distance against evaluations](learning/figure.png)

Means over five seeds, geometric, with a standard error; dotted, where the paper's estimator, or the
rollout, ends. Points are of evaluations made ahead of all updates.

{text}

## What was tried

By hand, not by the command above: mixtures, seeds 3000 to 3005, a tenth of the evaluations, kept. Mean
excess at the best rate, 10⁻⁵: the paper's with all of its evaluations 1.4; four ends, the noise expected 4.9; eight ends 4.7; t drawn
uniformly and weighted (`t_density="uniform"`) 5.3, at the edge of its grid. With 2,048 more true samples, each x_t compared with one that it may be of
(`reference=`), two runs at 10⁻³ came to 21. On the digits samples hardly tell: every estimator's Fréchet distance is within 2% of the
paper's.

## How it is used

`gj.self_consistency(1.75, particles=2, ends=4, noise="expected")` in place of the paper's objective; `gj.learning.evaluate` makes the
evaluations that are kept, and its example learns from them.

`gj.data.write_examples(directory, kept)` and `gj.data.load_examples(directory, batch_size=256)`
keep them on disk, where any framework's network may have written them.
"""


def main(config: Config) -> None:
    """Tune, run the report, draw, and write the page."""
    runs = Runs(config)
    path = config.out / f"results-{config.preset}.json"
    results = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    results |= {"preset": config.preset}
    for part in config.worlds:
        results["parts"][part] = measure(runs, part)
        results["device"] = _device()
        path.write_text(json.dumps(results, indent=1))
    figure(results["parts"], config.out / "figure.png")
    for name, part in results["parts"].items():
        print(rollout_table(part) if name == "rollout" else consistency_table(part))
    print(_verdicts(results["parts"]), file=sys.stdout)
    if config.publish:
        files = config.docs / "learning"
        files.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, files / "results.json")
        shutil.copy(config.out / "figure.png", files / "figure.png")
        (config.docs / "learning.md").write_text(page(results))


def _device() -> str:
    if jax.default_backend() != "cpu":
        return f"one {jax.devices()[0].device_kind}"
    from experiments.benchmarks.sampling import machine

    return machine()


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))

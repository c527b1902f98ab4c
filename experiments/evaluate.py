r"""Any guidance of any supported checkpoint, judged against your pictures.

    python -m experiments.evaluate --model.checkpoint stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --data pictures/ --judge openai/clip-vit-large-patch14 \
        --tuning-judge openai/clip-vit-base-patch32 --weights runs/omega

Half of the pictures tune constant, interval, ADG and APG, each by as many settings; the other half,
with other noise and another network, judges them, unguided samples, and weights that
`experiments.learn` has learned, on other pictures or with `--half-of` on the tuning half. Each
method is a small file under `--out`: the same command goes on with a run that was stopped, and
several processes share one. Writes `report.md`, `metrics.json` and `plane.png`.

With `--judge inception.safetensors`, the weights that FIDs are measured with (the docstring of
`guidejax.models.inception` says where they are), the Fréchet distance is the FID. It depends on
how many pictures there are: `--pictures` of two reports must be equal to compare them. There is
no CMMD and no CLIP score then.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import guidejax as gj
from experiments import checkpoints, generate, guides, learn, logs, paired, pictures, tuned
from experiments.cells import Cells
from experiments.claims import estimate
from experiments.statistics import mean_interval, saturation
from guidejax.models import _files

LOG = logging.getLogger("experiments.evaluate")

TUNED = ("constant", "interval", "adg", "apg")
COLUMNS = {
    "frechet": "Fréchet distance ↓", "cmmd": "CMMD ↓", "clip score": "CLIP score ↑",
    "saturation": "saturation", "diversity": "diversity", "evaluations": "evaluations",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Judge guidance against pictures."""

    model: checkpoints.Model
    data: str = ""
    """A folder of pictures, or a dataset of TFDS."""
    judge: str = ""
    """A CLIP or SigLIP checkpoint whose features and score the report is of; or Inception's weights
    as a .safetensors file or a folder of one: the Fréchet distance is the FID then."""
    tuning_judge: str = ""
    """Another, of any kind, which tuning looks at; the judge itself where none is given, as the
    report says."""
    weights: tuple[pathlib.Path, ...] = ()
    """Folders of learned weights; none that was learned on all of these pictures."""
    methods: tuple[str, ...] = TUNED
    """Which of constant, interval, adg and apg are tuned."""
    settings: int = 16
    """Settings that the search of each tuned method scores."""
    seeds: int = 3
    """Of the report's noise."""
    pictures: int = 1000
    """How many at most, half to tune on and half to report on."""
    resamples: int = 20
    """How often the real pictures are drawn anew for the intervals."""
    batch: int = 8
    """Pictures at a time, over all devices."""
    steps: int = 30
    """Of the sampler."""
    out: pathlib.Path = pathlib.Path("runs/evaluate")
    """Where the report goes."""


def _fingerprint(shown: np.ndarray, said: list[str]) -> str:
    return hashlib.sha256(shown.tobytes() + json.dumps(said).encode()).hexdigest()


class Judge:
    """Real pictures with what they are of, as a network sees them."""

    def __init__(self, model: Any, shown: np.ndarray, said: list[str], batch: int):
        """`shown` are pictures in [-1, 1]."""
        self.model, self.said, self.batch = model, said, batch
        self._image = jax.jit(lambda model, x: model.image(x))
        self.real, self._embedded = self.see(shown)
        self._text: np.ndarray | None = None

    def see(self, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features and embeddings of pictures in [-1, 1], (n, ...) each."""
        parts = []
        for start in range(0, len(shown), self.batch):
            part = shown[start : start + self.batch]
            whole = np.concatenate([part, np.repeat(part[-1:], self.batch - len(part), axis=0)])
            seen = self._image(self.model, jnp.asarray(whole))
            parts.append([np.asarray(each, np.float32)[: len(part)] for each in seen])
        features, embeddings = (np.concatenate(each) for each in zip(*parts, strict=True))
        return features, embeddings

    def distance(self, features: np.ndarray, rows: Any = slice(None)) -> float:
        """The Fréchet distance to the real pictures, or to some rows of them."""
        return float(gj.metrics.frechet_distance(features, self.real[rows]))

    @property
    def inception(self) -> bool:
        """Whether the Fréchet distance is the FID."""
        return isinstance(self.model, gj.models.inception.Inception)

    def cmmd(self, embeddings: np.ndarray) -> float | None:
        """1000 MMD² of unit embeddings, Gaussian kernel of width 10 (Jayasumana 2401.09603).

        None of Inception's features, of which it isn't defined.
        """
        if self.inception:
            return None
        ours, theirs = _unit(embeddings), _unit(self._embedded)
        return 1000 * float(gj.metrics.mmd_rbf(ours, theirs, bandwidths=10.0, unbiased=False))

    def score(self, embeddings: np.ndarray) -> float | None:
        """The mean cosine of pictures and what they are of; None without a tokenizer."""
        if self.model.tokenizer is None:
            return None
        if self._text is None:
            parts = [self.said[i : i + self.batch] for i in range(0, len(self.said), self.batch)]
            read = jax.jit(lambda model, tokens: model.text(tokens).embedding)
            found = [np.asarray(read(self.model, self.model.tokenizer(part))) for part in parts]
            self._text = np.concatenate(found)
        return float(np.mean(np.sum(_unit(embeddings) * _unit(self._text), axis=1)))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def searched(method: str) -> str:
    """What tells the space that is searched for a method from others."""
    each = tuned.TUNED[method]
    return repr([each.space, each.others, each.together, each.after])


class Evaluation:
    """A run in a folder; what is finished there isn't done again."""

    def __init__(self, config: Config):
        """Loads the checkpoint, the pictures and the judges."""
        self.config, self.mesh = config, checkpoints.devices(config.model)
        self.found = checkpoints.load(config.model, self.mesh)
        rows = itertools.islice(pictures.examples(config.data, self.found, 0), config.pictures)
        shown, said = (list(each) for each in zip(*rows, strict=True))
        if len(said) < 8:
            raise SystemExit(f"{config.data} holds {len(said)} pictures; expected 8 at least.")
        halves = pictures.HALVES
        self.said = {part: said[rows] for part, rows in halves.items()}
        dtype = jnp.dtype(config.model.dtype)
        paths = (config.judge, config.tuning_judge or config.judge)
        self.kept = Cells((), [config.out / "cells"], LOG.info)
        # What every cell is of: where one of these is another, it is made anew.
        self.told = [
            self.found.told, config.model.dtype, _fingerprint(np.stack(shown), said),
            *(checkpoints.fingerprint(_files.find(path)) for path in paths), config.steps,
        ]  # fmt: skip
        self.judges = {
            part: Judge(
                learn.judge(path, dtype, config.model.download),
                np.stack(shown[halves[part]]), self.said[part], config.batch,
            )
            for part, path in zip(("report", "tune"), paths, strict=True)
        }  # fmt: skip

    def cell(self, name: str, make: Callable[[], Any], *about: Any) -> Any:
        """The result of `make`, kept in a file by its name; made anew where it is of others."""
        self.kept.functions[name], self.kept.about[name] = make, [*self.told, *about]
        return self.kept[name]

    def draw(self, part: str, guide: gj.Guidance | None, seed: int) -> np.ndarray:
        """Pictures in [-1, 1], one for what each real picture is of."""
        config = self.config
        x0 = generate.draw(
            self.found, self.said[part], guide, steps=config.steps, seed=seed,
            batch=config.batch, mesh=self.mesh,
        )  # fmt: skip
        return 2 * generate.pictures(self.found, x0, config.batch) - 1

    def tune(self, method: str, special: dict[str, float] | None) -> dict[str, Any]:
        """The best setting that a search finds on the tuning half, from that of a special case."""
        judge, space = self.judges["tune"], tuned.TUNED[method]

        def score(numbers: dict[str, float]) -> float:
            traced = {name: jnp.asarray(value) for name, value in numbers.items()}
            features, _ = judge.see(self.draw("tune", space.guide(**traced), 10_000))
            value = judge.distance(features)
            LOG.info("  %s: %.4f", numbers, value)
            return value if math.isfinite(value) else math.inf

        found = space.search(score, self.config.settings, special)
        return {"numbers": found.numbers, "distance": found.score, "trace": found.trace}

    def guides(self) -> dict[str, gj.Guidance | None]:
        """What is compared; None is the conditional model."""
        found: dict[str, gj.Guidance | None] = {"unguided": None}
        best: dict[str, dict[str, float]] = {}
        # The constant first: others begin where it ends.
        for method in sorted(self.config.methods, key=lambda method: method != "constant"):
            special = best.get(tuned.TUNED[method].after or "")
            tune = functools.partial(self.tune, method, special)
            about = self.config.settings, special, searched(method)
            best[method] = self.cell(f"tune/{method}", tune, *about)["numbers"]
        for method in self.config.methods:
            found[method] = tuned.TUNED[method].guide(**best[method])
        names = [folder.name for folder in self.config.weights]
        for folder in self.config.weights:
            name = folder.name if names.count(folder.name) == 1 else str(folder)
            found[f"learned {name}"] = guides.guidance(guides.Guide(weight=folder))
        return found

    def cells(self, method: str, guide: gj.Guidance | None) -> list[dict[str, Any]]:
        """A method's rows, one a seed."""
        told = None if guide is None else checkpoints.digest(guide)
        return [
            self.cell(
                f"report/{method}/{seed}", functools.partial(self.report, guide, seed), told,
                self.config.resamples,
            )
            for seed in range(self.config.seeds)
        ]  # fmt: skip

    def report(self, guide: gj.Guidance | None, seed: int) -> dict[str, Any]:
        """Every figure of a method, for one noise."""
        judge, config = self.judges["report"], self.config
        shown = self.draw("report", guide, seed)
        features, embeddings = judge.see(shown)
        draws = [
            np.random.default_rng(i).integers(0, len(shown), len(shown))
            for i in range(config.resamples)
        ]
        times, process = self.found.times(config.steps), self.found.denoise.process
        active = False if guide is None else guide.active(times, process)
        return {
            "frechet": judge.distance(features),
            "frechet resampled": [judge.distance(features, rows) for rows in draws],
            "cmmd": judge.cmmd(embeddings),
            "clip score": judge.score(embeddings) if self.found.kind == "prompts" else None,
            "saturation": float(jnp.mean(saturation(jnp.asarray(shown)))),
            "diversity": float(gj.metrics.mean_pairwise_distance(features)),
            "evaluations": config.steps
            + int(np.sum(np.broadcast_to(np.asarray(active), (config.steps,)))),
        }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with their 95% intervals; the distance's widened by resampled pictures."""
    found: dict[str, Any] = {}
    for name in COLUMNS:
        values = [row[name] for row in rows if row[name] is not None]
        if not values:
            continue
        found[name] = {"mean": float(np.mean(values))}
        if len(values) > 1 and name != "evaluations":
            interval = mean_interval(values)
            half = float(interval.high) - found[name]["mean"]
            if name == "frechet":
                drawn = np.mean([row["frechet resampled"] for row in rows], axis=0)
                half = float(np.hypot(half, 1.96 * np.std(drawn))) if drawn.size > 1 else half
            found[name]["half width"] = half
    return found


def ratios(rows: dict[str, list[dict[str, Any]]], best: str) -> dict[str, dict[str, float]]:
    """Each method's Fréchet distance over that of `best`, paired, with its 95% interval.

    Over seeds, from the same noise, and widened by the same resampled pictures. One seed has none.
    Methods at a distance of 0 or less, by rounding, have no ratio.
    """
    values = {m: np.array([row["frechet"] for row in rows[m]]) for m in rows}
    drawn = {m: np.array([row["frechet resampled"] for row in rows[m]]) for m in rows}
    usable = [m for m in rows if np.all(values[m] > 0) and np.all(drawn[m] > 0)]
    return {
        method: paired.ratio(
            values[method], values[best],
            np.exp(np.log(drawn[method] / drawn[best]).mean(axis=0)),
        )
        for method in usable if method != best and best in usable
    }  # fmt: skip


def best_tuned(results: dict[str, Any], methods: tuple[str, ...]) -> str | None:
    """The tuned method of the least distance as it is reported: chosen in its own favour."""
    return min(methods, key=lambda m: results[m]["frechet"]["mean"]) if methods else None


def ratio_table(found: dict[str, dict[str, float]], best: str) -> str:
    """The paired ratios as a table."""
    lines = [f"| method | Fréchet distance / {best} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {m} | {estimate(value)} |" for m, value in found.items())])


PAIRED = """## Paired, beside {best}

Each method's Fréchet distance over that of {best}, of the tuned the best on these very figures,
from the same noise and beside the same pictures, with 95% intervals: where 1 lies outside they
differ, whatever the ± above say. {seeds}

{table}
"""


def table(results: dict[str, Any]) -> str:
    """The report's table."""
    lines = ["| method | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for method, entry in results.items():
        cells = []
        for name in COLUMNS:
            value = entry.get(name)
            text = "" if value is None else f"{value['mean']:.4g}"
            cells.append(text + (f" ± {value['half width']:.2g}" if value and "half width" in value
                                 else ""))  # fmt: skip
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plane(results: dict[str, Any], path: pathlib.Path) -> None:
    """Every method by its CLIP score, or its evaluations, and its Fréchet distance."""
    import matplotlib.pyplot as plt

    x = "clip score" if all("clip score" in entry for entry in results.values()) else "evaluations"
    figure, axis = plt.subplots(figsize=(7.5, 5))
    for method, entry in results.items():
        at = entry[x]["mean"], entry["frechet"]["mean"]
        axis.errorbar(*at, yerr=entry["frechet"].get("half width"), fmt="o", linewidth=1)
        axis.annotate(method, at, xytext=(7, 4), textcoords="offset points", fontsize=9)
    axis.set_xlabel(COLUMNS[x])
    axis.set_ylabel(COLUMNS["frechet"])
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main(config: Config) -> dict[str, Any]:
    """Do what is left of the evaluation, and write the report."""
    logs.begin()
    for flag in ("data", "judge"):
        if not getattr(config, flag):
            raise SystemExit(f"--{flag} is missing: see python -m experiments.evaluate --help.")
    unknown = sorted(set(config.methods) - set(TUNED))
    if unknown:
        raise SystemExit(f"--methods {unknown[0]}: expected some of {', '.join(TUNED)}.")
    learned = [pictures.learned_on(each, config.data, config.pictures) for each in config.weights]
    run = Evaluation(config)
    rows = {method: run.cells(method, guide) for method, guide in run.guides().items()}
    results = {method: summary(each) for method, each in rows.items()}
    for method, entry in results.items():
        LOG.info("%s: Fréchet distance %.4f", method, entry["frechet"]["mean"])
    best = best_tuned(results, config.methods)
    compared = ratios(rows, best) if best else {}
    for method, value in compared.items():
        results[method]["over the best tuned"] = value
    (config.out / "report.md").write_text(page(run, results, compared, best, learned))
    (config.out / "metrics.json").write_text(json.dumps(results, indent=1))
    plane(results, config.out / "plane.png")
    LOG.info("%s", config.out / "report.md")
    return results


def page(
    run: Evaluation, results: dict[str, Any], compared: dict[str, dict[str, float]],
    best: str | None, learned: list[str],
) -> str:  # fmt: skip
    """The report."""
    config = run.config
    judged = "the network that judges also tuned" if not config.tuning_judge else (
        f"tuned by {config.tuning_judge}"
    )  # fmt: skip
    of = " (Inception: the distance is the FID)" if run.judges["report"].inception else ""
    text = (
        f"# {config.model.checkpoint}\n\nJudged by {config.judge}{of}; {judged}. "
        f"{len(run.said['report'])} pictures to report on, {len(run.said['tune'])} others to tune "
        f"on; {config.seeds} seeds; {config.settings} settings a tuned method.\n\n"
        f"{table(results)}\n"
    )
    if learned:
        text += "\nOf the learned: " + "; ".join(learned) + ".\n"
    if best and compared:
        seeds = "" if config.seeds > 1 else "Of one seed there is no interval."
        shown = ratio_table(compared, best)
        text += "\n" + PAIRED.format(best=best, seeds=seeds, table=shown)
    return text


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

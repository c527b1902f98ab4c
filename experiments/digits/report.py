"""metrics.json summed up over seeds, and the page that shows it."""

from __future__ import annotations

import html
import itertools
import pathlib
from typing import Any

import numpy as np

from experiments import page as pages
from experiments.digits.methods import ALONG_ACROSS, LEARNED
from experiments.statistics import mean_interval, paired_ratio_interval

FIGURES = ("frechet", "energy", "agreement", "diversity", "evaluations")
Seeds = dict[str, dict[str, dict[str, Any]]]


def summarise(seeds: Seeds, denoiser: str) -> dict[str, dict[str, Any]]:
    """For each method and figure the mean over seeds, with its 95% interval from two seeds on."""
    runs = [seed[denoiser] for seed in seeds.values()]
    table: dict[str, dict[str, Any]] = {}
    for method in runs[0]:
        table[method] = {}
        for figure in runs[0][method]["figures"]:
            values = [run[method]["figures"][figure] for run in runs]
            entry = {"mean": float(np.mean(values))}
            if len(values) > 1:
                interval = mean_interval(values)
                entry |= {"low": float(interval.low), "high": float(interval.high)}
            table[method][figure] = entry
    return table


def ratio(seeds: Seeds, denoiser: str, method: str, other: str, figure: str) -> dict[str, float]:
    """The paired ratio of two methods over seeds, with its 95% interval from two seeds on."""
    ours, theirs = (
        [seed[denoiser][m]["figures"][figure] for seed in seeds.values()] for m in (method, other)
    )
    if len(ours) < 2:
        return {"mean": float(np.exp(np.mean(np.log(ours) - np.log(theirs))))}
    interval = paired_ratio_interval(ours, theirs)
    return {
        "mean": float(interval.estimate), "low": float(interval.low), "high": float(interval.high),
    }  # fmt: skip


def claims(seeds: Seeds, denoisers: list[str]) -> list[dict[str, Any]]:
    """What was asked of the learned weights, each with what was measured."""
    under = denoisers[0]
    found = []

    def add(text: str, value: dict[str, float], holds: bool) -> None:
        found.append({"claim": text, "value": value, "holds": bool(holds)})

    rollouts = ("rollout", ALONG_ACROSS)
    for method, other in itertools.product(rollouts, ("interval", "interval (oracle)")):
        value = ratio(seeds, under, method, other, "frechet")
        add(f"Fréchet distance, {method} / {other}: at most 0.95, interval below 1", value,
            value["mean"] <= 0.95 and value.get("high", value["mean"]) < 1)  # fmt: skip
    value = ratio(seeds, under, "rollout", "interval", "energy")
    add("Energy distance per class, rollout / interval: at most 1", value, value["mean"] <= 1)
    value = ratio(seeds, under, "self-consistency", "unguided", "frechet")
    add("Fréchet distance, self-consistency / unguided: below 1", value, value["mean"] < 1)
    for denoiser in denoisers[1:]:
        for method in LEARNED:
            value = ratio(seeds, denoiser, method, "unguided", "frechet")
            text = f"Fréchet distance, {method} / unguided, {denoiser}: at most 1.01"
            add(text, value, value["mean"] <= 1.01)
    return found


def _number(entry: dict[str, float], digits: int = 2) -> str:
    text = f"{entry['mean']:.{digits}f}"
    if "low" in entry:
        text += f" ± {entry['high'] - entry['mean']:.{digits}f}"
    return text


def markdown(table: dict[str, dict[str, Any]]) -> str:
    """The table as docs/digits.md shows it."""
    lines = [
        "| method | Fréchet distance ↓ | energy distance per class ↓ | agreement ↑ "
        "| diversity (real: 1) | evaluations |",
        "|---|---|---|---|---|---|",
    ]
    best = min(entry["frechet"]["mean"] for entry in table.values())
    for method, entry in table.items():
        frechet = _number(entry["frechet"])
        if entry["frechet"]["mean"] == best:
            frechet = f"**{frechet}**"
        lines.append(
            f"| {method} | {frechet} | {_number(entry['energy'], 4)} "
            f"| {_number(entry['agreement'], 3)} | {_number(entry['diversity'])} "
            f"| {entry['evaluations']['mean']:.0f} |"
        )
    return "\n".join(lines)


def page(results: dict[str, Any], figures: dict[str, pathlib.Path], attempts: str) -> str:
    """The self-contained report."""
    tables = "".join(
        f"<h2>{html.escape(name)} denoiser</h2>" + pages.table(markdown(table))
        for name, table in results["summary"].items()
    )
    seeds = len(results["seeds"])
    missed = "" if all(c["holds"] for c in results["claims"]) else f"<p>{html.escape(attempts)}</p>"
    return pages.document(
        "guidejax: digits",
        "<h1>Learned against tuned guidance on handwritten digits</h1>"
        f"<p>Preset {html.escape(results['preset'])}, {seeds} seed{'s' if seeds > 1 else ''}"
        f"{' ± 95% interval over seeds' if seeds > 1 else '; one seed shows no spread'}.</p>"
        f"{pages.claims(results['claims'])}{missed}{pages.pictures(figures)}{tables}"
        "<p>Tuned methods were searched on the validation images with their own noise and "
        "classifiers; every figure above is on the test images, other noise and classifiers that "
        "no method saw. The oracle interval alone was tuned on the reported measure itself.</p>",
    )

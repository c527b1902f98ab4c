"""What comes of a protocol's cells: ratios, claims, tables, and their place in docs/digits.md."""

from __future__ import annotations

import html
import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments import page as pages
from experiments.benchmarks.report import markdown_table
from experiments.claims import FAILS, HOLDS, estimate
from experiments.digits import networks
from experiments.digits.cells import Cells, methods_of
from experiments.digits.config import Name
from experiments.digits.methods import ORACLE, PER_CLASS, gated
from experiments.statistics import Interval, paired_ratio_interval


def values(cells: Cells, denoiser: str, method: str, figure: str = "frechet") -> np.ndarray:
    """A figure of every seed, a row a fold: (folds, seeds of a fold)."""
    found = [
        cells.methods(denoiser, seed)[method]["figures"][figure] for seed in cells.protocol.seeds
    ]
    return np.reshape(found, (-1, cells.protocol.each))


def ratio(
    cells: Cells, denoiser: str, method: str, other: str, figure: str = "frechet", count: int = 1
) -> Interval:
    """The paired ratio of two methods and its 95% interval, or that for one of `count` claims.

    Seeds of a fold share the reported images: the interval is Student's over the folds' geometric
    means. Folds share images to train on, and all are parts of the same 1,797: it says how the
    ratio varies over parts of them, and not over other digits.
    """
    ours, theirs = (
        np.exp(np.log(values(cells, denoiser, m, figure)).mean(axis=1)) for m in (method, other)
    )
    return paired_ratio_interval(ours, theirs, 1 - 0.05 / count)


def widened(found: Interval, folds: int) -> Interval:
    """An interval for folds that share images to train on, as Nadeau and Bengio (2003) correct it.

    Each fold's result is of the networks that the other folds trained: the variance of the mean is
    1/n + 1/(n − 1) of theirs, where 1/n would do for results that share nothing.
    """
    wider = np.sqrt(1 + folds / (folds - 1))
    ends = (found.estimate * (end / found.estimate) ** wider for end in (found.low, found.high))
    return Interval(found.estimate, *ends)


def best(cells: Cells, denoiser: str, among: tuple[str, ...]) -> str:
    """The method of the least mean distance as it is reported: chosen in its own favour."""
    return min(among, key=lambda m: float(np.log(values(cells, denoiser, m)).mean()))


class Asked(NamedTuple):
    """A claim of a protocol: a ratio, the most it may be, and the most its interval may reach."""

    method: str
    other: str
    denoiser: str
    most: float
    high: float
    figure: str = "frechet"


def blind(cells: Cells) -> list[str]:
    """Learned weights of the times alone: no baseline sees the class either."""
    return [m for m in cells.protocol.learned if "times alone" in m]


def plain(cells: Cells) -> tuple[str, ...]:
    """Tuned methods without numbers for each class."""
    return tuple(m for m in cells.protocol.tuned if m not in PER_CLASS and m != "unguided")


def asked(cells: Cells) -> list[Asked]:
    """Every claim."""
    protocol = cells.protocol
    ours = protocol.learned[0]
    under, *others = (name for name, _ in protocol.sizes.denoisers)
    per_class = tuple(m for m in protocol.tuned if m in PER_CLASS)
    rival = best(cells, under, plain(cells))
    found = [
        Asked(ours, rival, under, 0.95, 1.0),
        *(Asked(ours, method, under, 0.95, 1.0) for method in per_class),
        *(Asked(method, "interval", under, 1.0, 1.0) for method in blind(cells)),
        Asked(gated(ours), "interval", under, 0.95, 1.0),
        Asked(ours, rival, under, 1.0, 1.05, "energy"),
    ]
    if "self-consistency" in protocol.learned:
        found.append(Asked("self-consistency", "unguided", under, 1.0, 1.0))
    for well in others:
        rival = best(cells, well, (*plain(cells), *per_class, "unguided"))
        found.append(Asked(ours, rival, well, 1.01, 1.03))
    return found


def claims(cells: Cells) -> list[dict[str, Any]]:
    """What a protocol asks: {"claim", "value", "holds"} each, intervals for all together."""
    found, wanted = [], asked(cells)
    names = {"frechet": "Fréchet distance", "energy": "Energy distance within a class"}
    for each in wanted:
        value = ratio(cells, each.denoiser, each.method, each.other, each.figure, len(wanted))
        wider = widened(value, cells.protocol.folds)
        found.append({
            "claim": f"{names[each.figure]}, {each.method} / {each.other}, {each.denoiser}: at "
            f"most {each.most:g}, interval below {each.high:g}",
            "value": _as_value(value) | {"level": 100 * (1 - 0.05 / len(wanted))},
            "widened": _as_value(wider),
            "holds": bool(value.estimate <= each.most and value.high < each.high),
        })  # fmt: skip
    return found


def _searched(cells: Cells, denoiser: str, method: str) -> list[str]:
    """Settings that a search scored, the median; and what it found over what the interval's did."""
    each = [cells.methods(denoiser, seed) for seed in cells.protocol.seeds]
    if "settings" not in each[0][method]:
        return ["", ""]
    count = f"{np.median([cell[method]['settings'] for cell in each]):g}"
    if method in ("interval", ORACLE):  # The oracle's scores are those of the report.
        return [count, ""]
    ratios = [cell[method]["least"][-1] / cell["interval"]["least"][-1] for cell in each]
    return [count, f"{np.exp(np.log(ratios).mean()):.3f}"]


def table(cells: Cells, denoiser: str) -> str:
    """Every method: geometric means over seeds, ratios to the interval with their intervals."""
    lines = []
    for method in methods_of(cells.protocol):
        found = {
            figure: values(cells, denoiser, method, figure)
            for figure in ("frechet", "energy", "agreement", "diversity", "evaluations")
        }
        against = apart = ""
        if method != "interval":
            against = estimate(_as_value(ratio(cells, denoiser, method, "interval")))
            single = [
                float(ratio(cells, denoiser, method, "interval", f"frechet/{name}").estimate)
                for name in networks.REPORTS[cells.protocol.report]
            ]
            apart = f"{min(single):.3f}, {max(single):.3f}"
        lines.append([
            method, f"{np.exp(np.log(found['frechet']).mean()):.2f}", against, apart,
            f"{found['energy'].mean():.4f}", f"{found['agreement'].mean():.3f}",
            f"{found['diversity'].mean():.2f}", f"{found['evaluations'].mean():.1f}",
            *_searched(cells, denoiser, method),
        ])  # fmt: skip
    return markdown_table(
        ["method", "Fréchet distance ↓", "/ interval", "least and largest", "energy per class ↓",
         "agreement ↑", "diversity (real: 1)", "evaluations", "settings", "/ interval, chosen on"],
        lines,
    )  # fmt: skip


def _as_value(found: Interval) -> dict[str, float]:
    return {"mean": found.estimate, "low": found.low, "high": found.high}


def _searches(cells: Cells, denoiser: str) -> str:
    """Which searches ended because their settings were spent."""
    each = [cells.methods(denoiser, seed) for seed in cells.protocol.seeds]
    searched = [m for m in methods_of(cells.protocol) if "rests" in each[0][m]]
    spent = {m: sum(not cell[m]["rests"] for cell in each) for m in searched}
    said = ", ".join(f"{method} {count}" for method, count in spent.items() if count)
    return (
        f"Searches that spent their settings before nothing better was left to find, of {len(each)} "
        f"a method: {said or 'none'}."
    )


def _blind(cells: Cells) -> str:
    """Weights of the times alone beside the best method that sees no class either."""
    under = cells.protocol.sizes.denoisers[0][0]
    rival = best(cells, under, plain(cells))
    said = [
        f"{method} / {rival} {estimate(_as_value(ratio(cells, under, method, rival)))}"
        for method in blind(cells)
    ]
    return f"Nothing was claimed of these, at 95%: {'; '.join(said)}."


def text(cells: Cells, preset: Name) -> str:
    """The part of docs/digits.md."""
    done = sum(map(cells.done, cells.functions))
    if done < len(cells.functions):
        return (
            f"{done} of its {len(cells.functions)} cells are finished; nothing is summed up before "
            f"all are. `python -m experiments.digits --preset {preset} --publish` goes on with it."
        )
    text = []
    if cells.protocol.judged:
        found = claims(cells)
        level = 100 * (1 - 0.05 / len(found))
        text += [
            f"Ratios with intervals at {level:.1f}%, for {len(found)} claims together. *Widened* corrects "
            "for training images that parts share (Nadeau and Bengio, Inference for the "
            "generalization error, 2003); it plays no part in the verdicts:",
            "\n".join(
                f"* {each['claim']}: {estimate(each['value'])}, "
                f"**{HOLDS if each['holds'] else FAILS}**; widened "
                f"{each['widened']['low']:.3f} to {each['widened']['high']:.3f}."
                for each in found
            ),
            _blind(cells),
            f"![Digits from the same noise under each guidance](digits/{preset}/samples.png)",
            f"![The weights, over the steps of the sampler](digits/{preset}/omega.png)",
        ]
    text.append(
        f"![Every method over the tuned interval, with 95% intervals](digits/{preset}/ratios.png)"
    )
    for name, _ in cells.protocol.sizes.denoisers:
        text += [
            f"The {name} denoiser; ratios with intervals at 95%. {_searches(cells, name)} “Least "
            "and largest” are the ratios on single networks of the report; “settings” the median "
            "that searches scored; “chosen on” the ratio of what a search and the interval's scored "
            "where they chose: what is lower there than in the report was fitted to it.",
            table(cells, name),
        ]
    return "\n\n".join(text)


def page(old: str, preset: Name, cells: Cells) -> str:
    """docs/digits.md with the part of a preset made anew."""
    begin, end = f"<!-- {preset}: begin -->\n", f"\n<!-- {preset}: end -->"
    head, rest = old.split(begin)
    return head + begin + text(cells, preset) + end + rest.split(end)[1]


def document(cells: Cells, figures: dict[str, pathlib.Path]) -> str:
    """The self-contained report."""
    protocol = cells.protocol
    tables = "".join(
        f"<h2>{html.escape(name)} denoiser</h2><p>{_searches(cells, name)}</p>"
        + pages.table(table(cells, name))
        for name, _ in protocol.sizes.denoisers
    )
    judged = pages.claims(claims(cells)) if protocol.judged else "<p>Nothing is claimed of it.</p>"
    return pages.document(
        "guidejax: digits",
        "<h1>Learned against tuned guidance on handwritten digits</h1>"
        f"<p>{len(protocol.seeds)} seeds, {protocol.each} on each of {protocol.folds} parts of the "
        "images; intervals are over the parts. Guidance is tuned and learned on the other parts, "
        "with networks and noise that the report doesn't see. The oracle interval alone was tuned "
        f"on the reported measure itself.</p>{judged}{pages.pictures(figures)}{tables}",
    )


def metrics(cells: Cells) -> dict[str, Any]:
    """metrics.json: claims, and every cell as it came out."""
    return {
        "protocol": cells.digest,
        "claims": claims(cells) if cells.protocol.judged else [],
        "cells": {name: cells.find(name)["methods"] for name in cells.functions},
    }

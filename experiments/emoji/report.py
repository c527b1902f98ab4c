"""Finished cells summed up, drawn, and put on a page."""

from __future__ import annotations

import html
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import scipy.stats

import guidejax as gj
from experiments import page as pages
from experiments import paired
from experiments.claims import estimate
from experiments.emoji import figures, methods, towers
from experiments.emoji.arena import nearest, omegas, train_pictures
from experiments.emoji.cells import BOTH, PICTURE, Cells
from experiments.emoji.config import Plan
from experiments.emoji.train import PROCESS
from experiments.statistics import (
    mean_interval,
    paired_difference_interval,
    sample_rms,
    saturation,
)

# Of the table, in its order: name, heading, digits.
COLUMNS = (
    ("frechet", "Fréchet distance ↓", 3), ("clip score", "CLIP score ↑", 3),
    ("reward", "reward's own score", 3), ("accuracy", "attributes ↑", 3),
    ("saturation", "saturation", 3), ("norm", "norm", 3), ("diversity", "diversity", 3),
    ("strength", "effective ω", 2), ("nearest", "nearest training picture", 3),
    ("evaluations", "evaluations", 0),
)  # fmt: skip
# What the grid shows: pairs of attributes that training never had together.
PROMPTS = (
    "blue heart", "person: dark skin tone, red hair", "woman: light skin tone, bald",
    "man teacher: medium skin tone", "woman mechanic: medium-light skin tone",
    "woman golfing: medium-dark skin tone", "man surfing: medium skin tone", "green square",
)  # fmt: skip


def rows_of(cells: Cells, denoisers: tuple[str, ...], method: str) -> list[dict[str, Any]]:
    """The report's rows of a method, all seeds of all denoisers."""
    found = [cells.find(f"{cells.plan.label}/{denoiser}/{method}") for denoiser in denoisers]
    return [row for each in found for row in each or []]


def independent(values: npt.ArrayLike, denoisers: tuple[str, ...]) -> np.ndarray:
    """What an interval is over, of values that stand denoiser by denoiser.

    Seeds of a denoiser share its pictures and tuned numbers: of several denoisers it is the means
    of each, and of one its seeds, which tell of its noise alone.
    """
    each = np.reshape(np.asarray(values, np.float64), (len(denoisers), -1))
    return each.mean(axis=1) if len(denoisers) > 1 else each[0]


def summarise(
    cells: Cells, denoisers: tuple[str, ...], split: str = "report"
) -> dict[str, dict[str, dict[str, float]]]:
    """For each finished method and figure the mean over rows, with its 95% interval.

    The interval is over `independent` values, of which there must be two.
    """
    table: dict[str, dict[str, dict[str, float]]] = {}
    for method in cells.compared(denoisers[0]):
        rows = rows_of(cells, denoisers, method)
        if len(rows) < len(denoisers) * cells.plan.seeds:
            continue  # Of a part of the denoisers it would be another comparison.
        table[method] = {}
        for name, _, _ in COLUMNS:
            values = [
                row[name] if name in row else row[split][name]
                for row in rows
                if name in row or name in row[split]
            ]
            entry = {"mean": float(np.mean(values))} if values else {}
            if values and len(apart := independent(values, denoisers)) > 1:
                interval = mean_interval(apart)
                entry |= {"low": float(interval.low), "high": float(interval.high)}
            table[method][name] = entry
    return table


def markdown(table: dict[str, dict[str, dict[str, float]]]) -> str:
    """The table; diversity and evaluations without an interval."""
    lines = ["| method | " + " | ".join(heading for _, heading, _ in COLUMNS) + " |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    for method, entry in table.items():
        cells = []
        for name, _, digits in COLUMNS:
            value = entry[name]
            text = f"{value['mean']:.{digits}f}" if value else ""
            if "low" in value and name in ("frechet", "clip score"):
                text += f" ± {value['high'] - value['mean']:.{digits}f}"
            cells.append(text)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(
    cells: Cells, denoisers: tuple[str, ...], method: str, other: str, split: str = "report"
) -> dict[str, Any]:
    """The paired ratio of two methods' Fréchet distances, and that on each denoiser.

    Its interval, for one of all claims, is over `independent` pairs, widened by how the ratio
    varies over resampled real pictures.
    """
    ours, theirs = (rows_of(cells, denoisers, m) for m in (method, other))
    logs = lambda rows, figure: np.log([row[split][figure] for row in rows])  # noqa: E731
    one, two = (independent(logs(rows, "frechet"), denoisers) for rows in (ours, theirs))
    drawn = logs(ours, "frechet resampled") - logs(theirs, "frechet resampled")
    found = paired.ratio(np.exp(one), np.exp(two), np.exp(drawn.mean(axis=0)), confidence(cells))
    each = logs(ours, "frechet") - logs(theirs, "frechet")
    apart = np.exp(each.reshape(len(denoisers), -1).mean(axis=1)).tolist()
    return _levelled(found, cells) | {"each denoiser": apart}


def difference(cells: Cells, denoisers: tuple[str, ...], method: str, other: str) -> dict[str, Any]:
    """The paired difference of two methods' CLIP scores, with its interval as `ratio` has it."""
    ours, theirs = (
        independent(
            [row["report"]["clip score"] for row in rows_of(cells, denoisers, m)], denoisers
        )
        for m in (method, other)
    )
    found = {"mean": float(np.mean(ours - theirs))}
    if len(ours) > 1:
        interval = paired_difference_interval(ours, theirs, confidence(cells))
        found |= {"low": float(interval.low), "high": float(interval.high)}
    return _levelled(found, cells)


def beside(cells: Cells, denoisers: tuple[str, ...], split: str = "report") -> dict[str, Any]:
    """`ratio` of the learned weight to every method that is tuned for the distance."""
    names = [method for method in cells.tuned(denoisers[0]) if rows_of(cells, denoisers, method)]
    if not rows_of(cells, denoisers, "learned"):
        return {}
    return {method: ratio(cells, denoisers, "learned", method, split) for method in names}


def gained(table: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    """Of what the best method takes off the Fréchet distance without guidance, each one's share."""
    distance = {name: entry["frechet"]["mean"] for name, entry in table.items()}
    if "unguided" not in distance or (least := min(distance.values())) == distance["unguided"]:
        return {}
    most = distance["unguided"] - least
    return {name: (distance["unguided"] - value) / most for name, value in distance.items()}


Claim = dict[str, Any]


def asked(cells: Cells) -> int:
    """How many claims the plan asks in all, finished or not: each has to hold beside the others."""
    plan = cells.plan
    kinds = [denoisers[0] for denoisers in (plan.early, plan.long) if denoisers]
    each = (3 * len(_learned(cells, home)) + bool(cells.both(home)) for home in kinds)
    return sum(each) + (7 in plan.omegas)


def confidence(cells: Cells) -> float:
    """Of each claim's interval, so that all of them hold at 95% together (Bonferroni)."""
    return 1 - 0.05 / asked(cells)


def _levelled(value: dict[str, float], cells: Cells) -> dict[str, Any]:
    return value | ({"level": 100 * confidence(cells)} if "low" in value else {})


def _claim(text: str, value: dict[str, Any], holds: bool) -> Claim:
    """A claim; what has no interval isn't judged."""
    return {"claim": text, "value": value, "holds": bool(holds) if "low" in value else None}


def mark(claim: Claim) -> str:
    """What came of a claim, in words."""
    if claim["holds"] is None:
        return "not judged: one pair"
    return "reached" if claim["holds"] else "NOT reached"


def _learned(cells: Cells, denoiser: str) -> list[str]:
    """The learned methods that are chosen for the distance."""
    compared = cells.compared(denoiser)
    return [m for m in compared if m.startswith("learned") and not m.endswith(BOTH)]


def _of_distance(cells: Cells, denoisers: tuple[str, ...], kind: str) -> Iterator[Claim]:
    """Learned weights beside the best tuned method, and beside no guidance."""
    rivals = [method for method in cells.tuned(denoisers[0]) if method != "unguided"]
    for split, where in (("report", ""), ("composed", ", on composed captions")):
        table = summarise(cells, denoisers, split)
        if not rivals or any(method not in table for method in rivals):
            return  # The best of some isn't the best.
        best = min(rivals, key=lambda m: table[m]["frechet"]["mean"])
        for learned in [m for m in _learned(cells, denoisers[0]) if m in table]:
            value = ratio(cells, denoisers, learned, best, split)
            seen = table[learned]["clip score"]["mean"] - table[best]["clip score"]["mean"]
            value |= {"clip score more": seen}
            yield _claim(
                f"Fréchet distance, {learned} / {best}, the best tuned{kind}{where}: at most 0.95, "
                "interval below 1, at no lower CLIP score",
                value,
                value["mean"] <= 0.95 and value.get("high", math.inf) < 1 and seen >= 0,
            )
            if split == "report" and "unguided" in table:
                value = ratio(cells, denoisers, learned, "unguided")
                yield _claim(
                    f"Fréchet distance, {learned} / unguided{kind}: at most 1.01, interval below 1.03",
                    value, value["mean"] <= 1.01 and value.get("high", math.inf) < 1.03,
                )  # fmt: skip


def _of_both(cells: Cells, denoisers: tuple[str, ...], kind: str) -> Iterator[Claim]:
    """The CLIP score of what was learned with the reward beside all that are no further away."""
    table = summarise(cells, denoisers)
    ours = table.get("learned" + BOTH)
    home = denoisers[0]
    rivals = (*cells.tuned(home), *(method + BOTH for method in cells.both(home)))
    if ours is None or any(method not in table for method in rivals):
        return
    others = {
        m: e["clip score"]["mean"]
        for m, e in ((m, table[m]) for m in rivals)
        if e["frechet"]["mean"] <= 1.02 * ours["frechet"]["mean"]
    }
    if not others:
        others = {"unguided": table["unguided"]["clip score"]["mean"]}
    best = max(others, key=others.__getitem__)
    value = difference(cells, denoisers, "learned" + BOTH, best)
    yield _claim(
        f"CLIP score on towers of the report, learned{BOTH} − {best}, the best of the tuned at its "
        f"distance{kind}: interval above 0",
        value, value.get("low", -math.inf) > 0,
    )  # fmt: skip


def kept(row: dict[str, float], of: dict[str, float]) -> bool:
    """Whether samples keep the real pictures' saturation within 15% and norm within 10%."""
    return (
        abs(row["saturation"] / of["saturation"] - 1) <= 0.15
        and abs(row["norm"] / of["norm"] - 1) <= 0.1
    )


def _of_angles(cells: Cells) -> Iterator[Claim]:
    """ADG's claim at ω = 7."""
    found = cells.swept()
    at = {rule: row for rule in ("cfg", "adg") for row in found.get(rule, []) if row["omega"] == 7}
    if len(at) < 2:
        return
    of = real(cells)
    mean, error = (row["saturation"] / of["saturation"] for row in (at["adg"], at["adg"]["error"]))
    half = float(scipy.stats.norm.ppf((1 + confidence(cells)) / 2)) * error
    yield _claim(
        "At ω = 7 ADG keeps saturation within 15% and norm within 10% of the real pictures', at no "
        "lower attribute accuracy than CFG, which doesn't; saturation of the real pictures', over "
        "captions",
        _levelled({"mean": mean, "low": mean - half, "high": mean + half}, cells),
        kept(at["adg"], of)
        and not kept(at["cfg"], of)
        and at["adg"]["accuracy"] >= at["cfg"]["accuracy"],
    )


def claims(cells: Cells) -> list[Claim]:
    """What was asked, with what was measured."""
    plan, found = cells.plan, list[Claim]()
    for kind, denoisers in (("", plan.early), (", trained for long", plan.long)):
        if denoisers:
            found += [*_of_distance(cells, denoisers, kind), *_of_both(cells, denoisers, kind)]
    return [*found, *_of_angles(cells)]


def distinct(cells: Cells) -> list[Claim]:
    """The claims, without those of a gated weight that guides at every step: the learned one's."""
    found, alike = claims(cells), set[str]()
    for kind, denoisers in ((", trained for long", cells.plan.long), ("", cells.plan.early)):
        gated, free = (rows_of(cells, denoisers, m) for m in ("learned, gated", "learned"))
        if gated == free:
            alike.add(kind)
    of = lambda text: ", trained for long" if "trained for long" in text else ""  # noqa: E731
    return [c for c in found if "gated" not in c["claim"] or of(c["claim"]) not in alike]


def real(cells: Cells) -> dict[str, float]:
    """What the report's real pictures measure."""
    x0 = cells.reported("report").x0
    return {
        "saturation": float(jnp.mean(saturation(x0))), "norm": float(jnp.mean(sample_rms(x0))),
        "nearest": float(jnp.median(nearest(x0, train_pictures())[0])),
    }  # fmt: skip


def columns(cells: Cells) -> dict[str, Any]:
    """Pictures of `PROMPTS` from the same noise under each guidance that is finished, real first."""
    found, home = cells.pictured(PROMPTS), cells.plan.early[0]
    guides = {"no guidance": gj.guidance(gj.cfg, 0.0)}
    for method, label in {"constant": "CFG", "adg": "ADG", "learned": "ω learned"}.items():
        cell = f"learn/{home}/0" if method == "learned" else f"tune/{home}/{method}"
        if cells.find(cell) is None:
            continue
        omega = cells.find(cell).get("numbers", {}).get("omega")
        label += "" if omega is None else f", tuned\nω = {omega:.2g}"
        guides[label] = cells.guide(home, method, 0)
    for rule, omega in ((gj.cfg, 2.0), (gj.cfg, 7.0), (gj.adg, 7.0)):
        guides[f"{rule.name.upper()}\nω = {omega:g}"] = gj.guidance(rule, omega)
    return {"real": found.x0} | {
        label: cells.draw(home, guide, found) for label, guide in guides.items()
    }


def grid(cells: Cells, path: pathlib.Path) -> pathlib.Path:
    """`columns` as a picture."""
    return figures.grid(columns(cells), list(PROMPTS), path)


def pictures(cells: Cells, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Every figure that finished cells allow, by what it shows."""
    plan, home, swept = cells.plan, cells.plan.early[0], cells.swept()
    found = {"The same noise, prompts down, methods across": grid(cells, folder / "grid.png")}
    for kind, denoisers in kinds(plan).items():
        if table := summarise(cells, denoisers):
            name = f"Quality against alignment, {kind} denoiser{'s' * (len(denoisers) > 1)}"
            path = folder / f"plane-{kind.replace(' ', '-')}.png"
            found[name] = figures.plane(table, path)
    one, steady = summarise(cells, (home,)), line(cells)
    if one and steady:
        found[f"Learned weights beside constants, on one plane and at one strength: denoiser {home}"] = (
            figures.beside_constants(one, steady, folder / "strength.png")
        )  # fmt: skip
    if swept:
        found["Each rule as ω grows; real pictures dashed"] = figures.sweep(
            swept, real(cells), folder / "sweep.png"
        )
    if constants(cells):
        found["Distance against the reward's score as γ grows, on selection captions"] = (
            figures.rewards(gammas(cells), constants(cells), folder / "reward.png")
        )
    if scheduled := schedules(cells):
        found["Schedules of one mean ω, stage by stage"] = figures.stages(
            scheduled, folder / "schedules.png"
        )
    found["ω over time; learned: the mean over captions of each kind, with the middle 80%"] = (
        _weights(cells, folder / "weights.png")
    )
    return found


def kinds(plan: Plan) -> dict[str, tuple[str, ...]]:
    """The denoisers of each kind there is."""
    found = {"early-stopped": plan.early, "trained for long": plan.long}
    return {kind: denoisers for kind, denoisers in found.items() if denoisers}


def constants(cells: Cells) -> list[dict[str, float]]:
    """Constant weights where the learned forms are chosen, if all are finished."""
    return _all(cells, [f"constants/{omega:g}" for omega in cells.plan.constants])


def line(cells: Cells) -> list[dict[str, float]]:
    """Constant weights where the report's methods are, if all are finished."""
    plan = cells.plan
    return _all(cells, [f"line/{plan.early[0]}/{omega:g}" for omega in plan.line])


def _all(cells: Cells, names: list[str]) -> list[dict[str, float]]:
    return [cells[name] for name in names] if all(map(cells.done, names)) else []


def gammas(cells: Cells) -> dict[str, list[dict[str, float]]]:
    """Each objective as the reward's weight γ grows, where the forms are chosen."""
    found: dict[str, list[dict[str, float]]] = {"rollout": [], "self-consistency": []}
    for name, form in methods.LEARNED.items():
        row = cells.find(f"choose/{name}")
        if row and name.split(",")[0] in found and (form.reward or name == form.objective):
            found[form.objective].append({"gamma": form.reward, **row})
    return {name: rows for name, rows in found.items() if rows}


def schedules(cells: Cells) -> dict[str, dict[str, Any]]:
    """What is finished of the schedules of one mean."""
    names = [name for name in cells.functions if name.startswith("schedules/") and cells.done(name)]
    return {name.split("/")[-1]: cells[name] for name in names}


def _weights(cells: Cells, path: pathlib.Path) -> pathlib.Path:
    home, arena, steps = cells.plan.early[0], cells.reported("report"), cells.plan.steps
    # What looks at the state is followed through runs of some captions, as many of people as not.
    people = np.asarray(arena.cond["group"]) == towers.GROUPS["People & Body"]
    rows = np.sort(np.concatenate([_some(each, people.size // 16) for each in (people, ~people)]))
    some = jax.tree.map(lambda a: a[rows], dict(arena.cond))
    times = jnp.asarray(gj.uniform_times(steps))
    curves: dict[str, tuple[Any, str, str]] = {}
    for method in cells.compared(home):
        guide = cells.guide(home, method, 0)
        weight = gj.weights.as_weight(guide.omega)
        both = method.endswith(BOTH)
        if both and not method.startswith("learned"):
            continue
        if method == "unguided" or guide.links[0].rule.name != "cfg":
            continue
        if method == "learned, gated" and cells.ungated(home):
            continue  # Drawn as the learned one.
        if weight.sees_state:
            table = omegas(cells.key(PICTURE), cells.denoiser(home), guide, some, steps)
        else:
            table = weight.table(times, some, process=PROCESS)
        table = np.asarray(table)
        style = "-." if both else "-" if method.startswith("learned") else "--"
        if method == "learned" and table.ndim > 1:
            for (label, those), dash in zip(
                _by_kind(some["group"]).items(), (":", "-", ".-"), strict=True
            ):
                if those.any():
                    curves[f"learned, {label}"] = table[:, those], figures.COLORS[method], dash
        else:
            curves[method] = (table, figures.COLORS[method.removesuffix(BOTH)], style)
    return figures.weights(curves, times, path)


def _some(which: np.ndarray, count: int) -> np.ndarray:
    """The rows of some of these captions, evenly, about as many as asked."""
    found = np.flatnonzero(which)
    return found[:: max(1, found.size // max(count, 1))]


def _by_kind(group: Any) -> dict[str, np.ndarray]:
    """Which captions are of each kind that the report has several of."""
    kinds = {
        name: np.asarray(group) == towers.GROUPS[name]
        for name in ("People & Body", "Smileys & Emotion")
    }
    return kinds | {"all others": ~np.any(list(kinds.values()), axis=0)}


def _claims_as_html(found: list[Claim]) -> str:
    """Claims that are judged, and those that can't be."""
    judged, rest = ([c for c in found if (c["holds"] is None) == open_] for open_ in (False, True))
    lines = [
        f"<li>{html.escape(c['claim'])}: {html.escape(estimate(c['value']))}, {mark(c)}</li>"
        for c in rest
    ]
    return (pages.claims(judged) if judged else "") + (f"<ul>{''.join(lines)}</ul>" if rest else "")


def write(cells: Cells, out: pathlib.Path, preset: str, notes: str) -> dict[str, Any]:
    """metrics.json, table.md, figures and report.html of what is finished; returns the metrics."""
    summary = {kind: summarise(cells, denoisers) for kind, denoisers in kinds(cells.plan).items()}
    summary = {kind: table for kind, table in summary.items() if table}
    of = lambda kind: kinds(cells.plan)[kind]  # noqa: E731
    results: dict[str, Any] = {
        "preset": preset,
        "claims": claims(cells),
        "real": real(cells),
        "summary": summary,
        "composed": {kind: summarise(cells, of(kind), "composed") for kind in summary},
        "beside": {kind: beside(cells, of(kind)) for kind in summary},
        "gained": {kind: gained(table) for kind, table in summary.items()},
        "tuned": {n: cells.find(n) for n in cells.functions if n.startswith("tune/")},
        "choice": {n: cells.find(n) for n in cells.functions if n.startswith("choice/")},
        "chosen by": {n: cells.find(n) for n in cells.functions if n.startswith("choose/")},
        "reward": gammas(cells),
        "constants": constants(cells),
        "self-consistency": cells.find("self-consistency"),
        "line": line(cells),
        "sweep": cells.swept(),
        "schedules": schedules(cells),
    }
    (out / "metrics.json").write_text(json.dumps(results, indent=1))
    text = ""
    for kind, table in summary.items():
        text += f"## {kind}\n\n{markdown(table)}\n\nOn pairs of attributes that training never "
        text += f"had together:\n\n{markdown(results['composed'][kind])}\n\n"
    (out / "table.md").write_text(text)
    tables = "".join(
        f"<h2>{kind}</h2>{pages.table(markdown(table))}" for kind, table in summary.items()
    )
    drawn = pictures(cells, out / "figures")
    (out / "report.html").write_text(
        pages.document(
            "guidejax: emoji",
            "<h1>Guidance of a text-to-image model, tuned and learned</h1>"
            f"{_claims_as_html(results['claims'])}<p>{notes}</p>{pages.pictures(drawn)}{tables}",
        )
    )
    return results

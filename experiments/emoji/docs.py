"""docs/emoji.md, made from the logs of the weights and the finished cells of the repository.

Run it as `python -m experiments.emoji.docs`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

import guidejax as gj
from experiments.claims import FAILS, Claim, estimate, verdict
from experiments.emoji import figures, methods, report, storage, towers
from experiments.emoji.arena import nearest, train_pictures
from experiments.emoji.cells import BOTH, MEAN, SCHEDULES, Cells
from experiments.emoji.config import PLANS

ROOT = pathlib.Path(__file__).parent
RESULTS = ROOT / "results" / "cells"
DOCS = ROOT.parent.parent / "docs"

HEAD = """# Text to image on emoji

Written by `python -m experiments.emoji.docs` from what lies in the repository: the logs of the networks
(`experiments/emoji/weights`) and the finished cells of `python -m experiments.emoji --preset wide --publish`
(`experiments/emoji/results`), each a small file. [The last section](#how-it-was-run) says on what they were made, and how to make them again.

The data are the 3,655 pictures of the Noto Color Emoji font with their Unicode names, at 32 × 32: 2,851 to train on; 68 of *composed*
captions, pairs of attributes that training never had together; 275 to tune and learn guidance on; 461 for the report. No base picture
has its skin tones on both sides of a split.

![The same noise, prompts down, methods across](emoji/grid.png)

*Captions of pairs that training never had together, drawn by denoiser 0 from the same noise in 12 steps: without guidance; with what was tuned
or learned for the Fréchet distance; and with ω set by hand.*
"""


def _log(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (storage.WEIGHTS / name).read_text().splitlines()]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def networks() -> str:
    """The networks, by what their logs say."""
    rows = []
    for line in _log("towers.jsonl"):
        if line["tower"] == towers.ATTRIBUTES:
            continue
        use = "report" if line["tower"] in towers.REPORT else "learning, tuning"
        cells = [
            f"{100 * line[s][what]:.0f}%"
            for s in ("report", "composed")
            for what in ("caption first", "caption in five")
        ]
        rows.append([line["tower"], use, *cells])
    told = next(line for line in _log("towers.jsonl") if line["tower"] == towers.ATTRIBUTES)
    right = ", ".join(f"{name} {100 * share:.0f}%" for name, share in told["report"].items())
    last = {line["denoiser"]: line for line in _log("denoisers.jsonl")}
    losses = [
        [name, f"{line['step']:,}", f"{line['loss']:.3f}", f"{line['held_out']:.3f}"]
        for name, line in sorted(last.items())
    ]
    return f"""
## The networks

**Towers** (`python -m experiments.emoji.towers`), trained contrastively as CLIP is; how often each finds the caption of a picture that it never saw,
first or among five, of the report's 461 and of the 68 composed ones:

{_table(["tower", "for", "first of 461", "in five", "composed: first of 68", "in five"], rows)}

The classifier of attributes, for the report alone, tells of its pictures: {right}.

**Denoisers** (`python -m experiments.emoji.train`), a transformer of 2.2 M parameters that predicts velocity, told the words as the
*prompt* tower sees them. Six seeds stop near where the loss of held-out pictures is least; one trains four times as long, recites
more, and is the well-trained one. Four of them come with the repository (24 MB of weights at most do); `python -m experiments.emoji.train
--seed 3 --every 2500` makes another of the six:

{_table(["denoiser", "steps", "loss in training", "loss of held-out pictures"], losses)}
"""


def outcome(cells: Cells) -> str:
    """What was asked, what came of it, and why."""
    found = [c for c in report.distinct(cells) if "ADG" not in c["claim"]]
    if not found or not all(map(cells.done, cells.functions)):
        return ""
    rows = [
        [c["claim"], estimate(c["value"]), f"**{'holds' if c['holds'] else FAILS}**"]
        for c in found
    ]  # fmt: skip
    tables = {kind: report.summarise(cells, d) for kind, d in report.kinds(cells.plan).items()}
    text = []
    for kind, table in tables.items():
        distance = {name: entry["frechet"]["mean"] for name, entry in table.items()}
        shares = report.gained(table)
        best = max(shares, key=shares.__getitem__)
        text.append(
            f"{kind}, guidance takes the Fréchet distance from {distance['unguided']:.2f} to "
            f"{distance[best]:.2f} ({best}), and the learned weight finds {100 * shares['learned']:.0f}% of "
            f"that ({distance['learned']:.2f}; the tuned constant {100 * shares['constant']:.0f}%, "
            f"{distance['constant']:.2f})"
        )
    early, home = tables["early-stopped"], cells.plan.early[0]
    trace = {m: cells[f"tune/{home}/{m}"]["distance"] for m in cells.tuned(home) if m != "unguided"}
    chosen = {form: cells[f"choose/{form}"]["distance"] for form in cells.candidates("distance")}
    steady, line = (
        {row["omega"]: row[name] for row in rows}
        for rows, name in ((report.constants(cells), "distance"), (report.line(cells), "frechet"))
    )
    least, most = (min(each, key=each.__getitem__) for each in (steady, line))
    strength = {name: entry["strength"]["mean"] for name, entry in early.items()}
    near = float(np.interp(strength["learned"], list(line), list(line.values())))
    one = report.summarise(cells, (home,))["learned"]["frechet"]["mean"]
    beaten = [c["holds"] for c in found if "the best tuned" in c["claim"]]
    harmless = all(c["holds"] for c in found if "/ unguided" in c["claim"])
    gated = "" if any("gated" in c["claim"] for c in found) else (
        " The gated weight is the learned one itself, since the tuned interval guides at every step."
    )  # fmt: skip
    return f"""
## What came of it

**Learned weights {"beat tuned ones here, in part" if any(beaten) else "don't beat tuned ones here"}.**{gated}

{_table(["asked", "measured", "verdict"], rows)}

On the denoisers that are {"; on the one that is ".join(text)}.{" No learned weight hurts." if harmless else ""}

The learned weight's Fréchet distance over that of each method that was tuned for the distance, paired:

{_beside(cells)}

![Tuned and learned guidance beside constants](emoji/strength.png)

*Denoiser {home}, mean of {cells.plan.seeds} seeds with 95% intervals over them, and the line of constant ω (numbers) from the same noise: on one plane, and at one
strength. Nothing was chosen on it. [All denoisers](emoji/plane-early-stopped.png), [the one trained for long](emoji/plane-trained-for-long.png).*

**Why.** On the selection captions, where everything is chosen, the shape of guidance is worth little: the best of
{len(trace)} tuned methods is {100 * (1 - min(trace.values()) / trace["constant"]):.1f}% below the tuned constant, with up to twelve numbers to tune. None of the
learned forms is below a constant there: {min(chosen.values()):.3f} at best, where ω = {least:g} comes to {steady[least]:.3f} and no guidance to {steady[0.0]:.3f}.
What the report rewards is strength. Its towers like a constant of {most:g} best ({line[most]:.3f} on denoiser {home}; {line[0.25]:.3f} at 0.25, {line[2.0]:.3f} at 2), the
selection's one of {cells[f"tune/{home}/constant"]["numbers"]["omega"]:.2f}. So what came out of its tuning stronger is ahead: the triangle (effective ω {strength["triangular"]:.2f}), clamp-linear
({strength["clamp-linear"]:.2f}), ADG tuned for both ({strength["adg, for both"]:.2f}). The learned weight isn't weak ({strength["learned"]:.2f}), and at its strength a constant comes to
{near:.3f} where it comes to {one:.3f}.

![ω over time, tuned and learned](emoji/weights.png)

*ω over time on denoiser {home}; of the learned weight, which sees the state, the mean over captions of each kind, and the middle 80%.*

**What was tried**, on selection captions only: seven forms for the distance and five with a reward ([below](#which-form-of-the-learned-weight)). On the digits
weights along and across the conditional prediction, of any sign, were the gain ([digits](digits.md)); here they were tried with η ≥ 0 alone, as APG's numbers.
Methods were put to the report once, after all was chosen; its sweeps and its line of constants choose nothing. A second protocol would need
other pictures, and there are no more emoji.
"""


def _beside(cells: Cells) -> str:
    """The learned weight beside each method."""
    kinds = report.kinds(cells.plan)
    early, long = (kinds[kind] for kind in ("early-stopped", "trained for long"))
    columns = [
        report.beside(cells, early), report.beside(cells, early, "composed"),
        report.beside(cells, long),
    ]  # fmt: skip
    rows = [
        [method, *(estimate(c[method]) if method in c else "" for c in columns)]
        for method in columns[0]
    ]
    head = ["learned /", "early-stopped", "early-stopped, composed captions", "trained for long"]
    return _table(head, rows)


def tuned(cells: Cells) -> str:
    """What the searches found."""
    text = f"""
## What tuning found

Fréchet distance on the selection captions (geometric mean over the towers that may be seen) of the best of {cells.plan.settings} settings
that a coordinate search scored. Each begins at the best constant (the per-group interval at the best interval); a method that contains
it is no worse, and one that doesn't, as ADG and the triangle, may be. Every setting is in `results`.
No optimum lies on an edge of what was searched but on natural ones: a window's ends at 0 and 1, a cap that doesn't bind.
"""
    for home in dict.fromkeys(cells.like(name) for name in cells.denoisers):
        rows = []
        for method in cells.tuned(home):
            found = cells.find(f"tune/{home}/{method}")
            if found:
                numbers = ", ".join(f"{k} {v:.3g}" for k, v in found["numbers"].items())
                rows.append([method, f"{found['distance']:.3f}", numbers])
        if rows:
            rows.sort(key=lambda row: row[1])
            text += f"\nDenoiser {home}:\n\n"
            text += _table(["method", "distance", "numbers"], rows) + "\n"
            moving = [
                name for name in cells.functions
                if name.startswith(f"tune/{home}/") and cells.done(name) and not cells[name]["rests"]
            ]  # fmt: skip
            if moving:
                names = "; ".join(name.removeprefix(f"tune/{home}/") for name in moving)
                text += f"\nNot at rest after {cells.plan.settings} settings, so that more might find a little more: {names}.\n"
    return text


def learned(cells: Cells) -> str:
    """What the learned forms came to on the captions that they are chosen by."""
    found = {form: cells.find(f"choose/{form}") for form in methods.LEARNED}
    rows = [
        [form, f"{each['distance']:.3f}", f"{each['reward']:.3f}", f"{each['updates']}"]
        for form, each in found.items() if each
    ]  # fmt: skip
    if not rows:
        return ""
    rows.sort(key=lambda row: row[1])
    chosen = cells.find("choice/distance")
    text = f"For the distance *{chosen['form']}* is chosen." if chosen else ""
    return f"""
## Which form of the learned weight

Each form learned on half of the selection captions (or on training pictures) from denoiser 0, with the evaluations of {cells.plan.learned} settings of a
search, and scored on the other half: Fréchet distance, and the reward's CLIP score. {text} Nothing here is of the report. Choosing among
forms costs that much for each of them; a tuned method has one search.

{_table(["form", "distance", "reward", "updates"], rows)}
{_rewarded(cells)}"""


def _rewarded(cells: Cells) -> str:
    """Constants on the same captions, the plane of both, and what self-consistency says."""
    steady = report.constants(cells)
    if not steady or not cells.done("self-consistency"):
        return ""
    rows = [[f"{r['omega']:g}", f"{r['distance']:.3f}", f"{r['reward']:.3f}"] for r in steady]
    said = cells["self-consistency"]
    loss, reward = (np.asarray(said[name]) for name in ("loss", "reward"))
    asked = [
        [f"{omega:.2g}", _about(more, 2)[0], _about(better, 4)[0]]
        for omega, more, better in zip(
            said["omega"], loss - loss[0], reward - reward[0], strict=True
        )
        if omega
    ]
    at = np.argmax(
        (reward - reward[0]).mean(axis=1) / np.maximum((loss - loss[0]).mean(axis=1), 1e-9)
    )
    needed = (loss - loss[0])[at].mean() / (reward - reward[0])[at].mean()
    timid = [
        cells[f"choose/{form}"]["omega"] for form in methods.LEARNED if form.startswith("self")
    ]
    of = {row["gamma"]: row for row in report.gammas(cells)["rollout"]}
    line = np.array(sorted((row["reward"], row["distance"]) for row in steady)).T
    beside = ", ".join(
        f"{row['distance'] / np.interp(row['reward'], line[0], line[1]):.3f} at γ = {gamma:g}"
        for gamma, row in of.items()
    )
    return f"""
Constants on the same captions, from the same noise:

{_table(["ω", "distance", "reward"], rows)}

![Distance against the reward as γ grows](emoji/reward.png)

*Selection captions, denoiser {cells.plan.early[0]}: constants, and learned weights as γ grows.* At one score of the reward, the distance of what the rollout learned is, over
that of a constant, {beside}.

**Self-consistency is timid here.** It learns ω below {np.max(timid):.1g} at every step, with and without a reward. Its loss says so of constants too: on the captions
that it learned on ({loss.shape[1]} of them, the same draws for each ω), guidance makes steps fit the noised true pictures less from the smallest ω on. And the reward, which
it sees on the x̂0 of single steps, hardly grows, and then falls:

{_table(["ω", f"loss, less that at 0 ({loss[0].mean():.0f})", "reward of x̂0, less that at 0"], asked)}

So γ would have to be {needed:.0f} for ω = {said["omega"][at]:.2g} to pay, and more for stronger guidance; 30 and 100 were tried. By the rollout, where the errors of twelve steps add up and the reward
sees finished pictures, γ = 0.3 moves ω.
"""


def within(row: Mapping[str, Any], name: str, digits: int, unit: float = 1.0) -> str:
    """A figure of the sweep in a unit, ± its 95% interval over captions."""
    value, half = row[name] / unit, 1.96 * row["error"][name] / unit
    return f"{value:.{digits}f} ± {half:.{digits}f}"


def sweep(cells: Cells) -> str:
    """What each rule does as ω grows."""
    home, real = cells.plan.early[0], report.real(cells)
    found = cells.swept()
    if not found:
        return ""
    rows = []
    for rule, values in found.items():
        for value in values:
            if value["omega"] in (0, 1, 2, 7, 10, 20):
                rows.append([
                    rule, f"{value['omega']:g}", within(value, "frechet", 2),
                    within(value, "clip score", 3), within(value, "accuracy", 1, 0.01) + "%",
                    within(value, "saturation", 2, real["saturation"]),
                    within(value, "norm", 2, real["norm"]), within(value, "diversity", 2),
                ])  # fmt: skip
    head = ["rule", "ω", "Fréchet distance", "CLIP score", "attributes", "saturation / real",
            "norm / real", "diversity"]  # fmt: skip
    return f"""
## As ω grows

On the report's captions and towers, denoiser {home}, from the same noise; ADG with its cap of π/3, APG with η = 0 and
neither cap nor momentum. Nothing was chosen on these figures. ± is a 95% interval over captions, each drawn anew with its
sample and its real picture (diversity: over the captions whose samples it compares): of another network or noise it says nothing.

{_table(head, rows)}

![Each rule as ω grows, with 95% intervals](emoji/sweep.png)
"""


def claims(cells: Cells) -> dict[str, list[Claim]]:
    """What the papers claim, by paper, as far as finished cells tell."""
    found, real = cells.swept(), report.real(cells)
    at = lambda rule, omega: next(  # noqa: E731
        (row for row in found.get(rule, []) if row["omega"] == omega), None
    )
    figure = "emoji/sweep.png"
    by_paper: dict[str, list[Claim]] = {"angle": [], "stages": []}
    cfg, adg = at("cfg", 7), at("adg", 7)
    if cfg and adg:
        by_paper["angle"].append(Claim(
            "At ω = 7 ADG stays within 15% of the real pictures' saturation and 10% of their norm, CFG "
            "does not, and no fewer attributes are told right of ADG's than of CFG's",
            "our threshold for the paper's claim",
            "; ".join(f"{rule.upper()}: saturation {within(row, 'saturation', 2, real['saturation'])} "
                      f"and norm {within(row, 'norm', 2, real['norm'])} of the real pictures', "
                      f"{within(row, 'accuracy', 1, 0.01)}% of attributes told right, Fréchet "
                      f"distance {within(row, 'frechet', 2)}"
                      for rule, row in (("cfg", cfg), ("adg", adg))),
            verdict([report.kept(adg, real) and adg["accuracy"] >= cfg["accuracy"]
                     and not report.kept(cfg, real)]), figure,
        ))  # fmt: skip
    cfg, adg = at("cfg", 20), at("adg", 20)
    if cfg and adg:
        by_paper["angle"].append(Claim(
            "ADG is robust at high weights, where CFG degrades", "abstract",
            f"At ω = 20, Fréchet distance {within(adg, 'frechet', 2)} (CFG {within(cfg, 'frechet', 2)}), "
            f"CLIP score {within(adg, 'clip score', 3)} ({within(cfg, 'clip score', 3)}), attributes "
            f"{within(adg, 'accuracy', 1, 0.01)}% ({within(cfg, 'accuracy', 1, 0.01)}%), norm "
            f"{within(adg, 'norm', 2, real['norm'])} ({within(cfg, 'norm', 2, real['norm'])}) of the "
            "real pictures'",
            verdict([adg[name] < cfg[name] if name == "frechet" else adg[name] > cfg[name]
                     for name in ("frechet", "clip score", "accuracy")]), figure,
        ))  # fmt: skip
    curve = found.get("cfg", [])
    if len(curve) > 2:
        spread = [row["diversity"] for row in curve]
        said = [within(row, "diversity", 2) for row in curve]
        least = int(np.argmin(spread))
        by_paper["stages"].append(Claim(
            "The more guidance, the less samples of one caption differ", "consequence of §3",
            f"mean distance of two samples of a caption, real pictures 1: {said[0]} at ω = 0, "
            f"{said[least]} at ω = {curve[least]['omega']:g}, {said[-1]} at ω = "
            f"{curve[-1]['omega']:g}, where pictures break up",
            verdict([spread[least] < spread[0], least == len(curve) - 1]), figure,
        ))  # fmt: skip
    by_paper["stages"] += _of_stages(report.schedules(cells))
    return by_paper


def _about(values: Any, digits: int = 2) -> tuple[str, float, float]:
    """A mean over captions ± its 95% interval, as text, and the interval's ends."""
    values = np.asarray(values, np.float64)
    mean, half = values.mean(), 1.96 * values.std(ddof=1) / values.size**0.5
    return f"{mean:.{digits}f} ± {half:.{digits}f}", mean - half, mean + half


def _of_stages(found: Mapping[str, dict[str, Any]]) -> list[Claim]:
    """The stage-wise paper's predictions; one mean ω, one denoiser, intervals over captions."""
    if found.keys() != SCHEDULES.keys():
        return []
    steady, figure = found["constant"], "emoji/schedules.png"
    rest = {name: row for name, row in found.items() if name != "constant"}
    apart = {
        name: _about(np.subtract(row["diversities"], steady["diversities"]), 3)
        for name, row in rest.items()
    }
    nearer, grown = _about(steady["nearer"][0], 3), _about(steady["norm_growth"][-1], 3)
    spread = _about(steady["spread_ratio"][-1])
    late = {name: _about(row["growth_ratio"][-1]) for name, row in found.items()}
    eased = _about(np.subtract(rest["late strong"]["growth_ratio"][-1], steady["growth_ratio"][-1]))
    more = lambda name: f"{apart[name][0]} ({name})"  # noqa: E731
    return [
        Claim(
            "Direction shift: early, guided samples are nearer to (1 + ω) μ̄, and in the end longer",
            "Theorem 3.2",
            f"E‖x − (1 + ω) μ̄‖² after the first step over that without guidance {nearer[0]}; "
            f"norm at the end over that without guidance {grown[0]}",
            verdict([nearer[2] < 1, grown[1] > 1]), figure,
        ),
        Claim(
            "Mode separation and concentration: in the end samples of one caption lie closer together than "
            "without guidance",
            "Theorems 3.3, 3.5",
            f"spread of x̂0 at the last step over that without guidance {spread[0]}",
            verdict([spread[2] < 1]), figure,
        ),
        Claim(
            "Strong guidance early costs diversity, strong guidance late keeps it, at one mean ω", "§3",
            f"diversity of one caption less the constant's: {more('early strong')}, {more('late strong')}",
            verdict([apart["early strong"][2] < 0, apart["late strong"][1] > 0]), figure,
        ),
        Claim(
            "The triangular schedule keeps more diversity than a constant of its mean", "§3, TV-CFG",
            f"diversity of one caption less the constant's: {more('triangular')}",
            verdict([apart["triangular"][1] > 0]), figure,
        ),
        Claim(
            "Least contraction keeps more diversity than a constant of its mean", "derived here",
            f"diversity of one caption less the constant's: {more('least contraction')}",
            verdict([apart["least contraction"][1] > 0]), figure,
        ),
        Claim(
            "Late guidance concentrates: a perturbation at t = 0.25 grows less than without guidance",
            "Theorem 3.5",
            "its growth over that without guidance: "
            + ", ".join(f"{text} ({name})" for name, (text, _, _) in late.items()),
            verdict([high < 1 for _, _, high in late.values()]), figure,
        ),
        Claim(
            "A perturbation grows less where guidance is strong late than where it is constant",
            "the paper's perturbation test",
            f"growth at t = 0.25, late strong less constant {eased[0]}",
            verdict([eased[2] < 0]), figure,
        ),
    ]  # fmt: skip


def scheduled(cells: Cells) -> str:
    """Schedules of one mean."""
    found = report.schedules(cells)
    if not found:
        return ""
    rows = [
        [
            name, f"{row['measured']['frechet']:.2f}", f"{row['measured']['clip score']:.3f}",
            f"{100 * row['measured']['accuracy']:.1f}%", _about(row["diversities"])[0],
            _about(row["nearer"][0], 3)[0], _about(row["norm_growth"][-1], 3)[0],
            *(_about(growth)[0] for growth in row["growth_ratio"]),
        ]
        for name, row in found.items()
    ]  # fmt: skip
    times = next(iter(found.values()))["perturbed_t"]
    head = ["schedule", "Fréchet distance", "CLIP score", "attributes", "diversity", "nearer to (1 + ω) μ̄",
            "norm growth", *(f"growth, perturbed at t = {t:g}" for t in times)]  # fmt: skip
    return f"""
## Schedules of one mean

Five schedules whose mean ω is {MEAN:g}, on the report's captions, denoiser {cells.plan.early[0]}, from the same noise. Diversity, and what
`gj.metrics.stage_diagnostics` says of the three stages, on {cells.plan.diverse[0]} captions of {cells.plan.diverse[1]} samples each, ± a 95% interval over captions: the distance
to (1 + ω) μ̄ after the first step and the norm at the end, over those without guidance; and by how much a perturbation of x_t grows to
the end, over that without guidance.

{_table(head, rows)}

![Schedules of one mean, stage by stage](emoji/schedules.png)
"""


def _claimed(cells: Cells) -> str:
    """The papers' claims as a table."""
    rows = [[*each[:3], f"**{each.verdict}**"] for made in claims(cells).values() for each in made]
    if not rows:
        return ""
    return f"""
## What the papers claim, on this model

One run each, from the same noise.

{_table(["claim", "from", "measured", "verdict"], rows)}
"""


def recited(cells: Cells) -> str:
    """How far samples lie from training."""
    of = {row["omega"]: row["nearest"] for row in cells.swept().get("cfg", [])}
    if not of:
        return ""
    values = ", ".join(f"{of[omega]:.3f} at ω = {omega:g}" for omega in (0, 1, 2) if omega in of)
    return f"""
## Does it recite?

The root mean square difference, of pixels in [-1, 1], of a sample to the training picture nearest to it; the median over the report's captions:
{values} (denoiser 0). Of the report's own real pictures, which training never saw: {report.real(cells)["nearest"]:.3f}.

![Samples of composed captions, and the training picture nearest to each](emoji/nearest.png)

*CFG, ω = 1, beside the nearest training picture: of a pair of attributes that training never had together there is no picture to recite.*
"""


# By whether there are several denoisers.
OVER = {
    True: "± is a 95% interval over the denoisers, each the mean of its seeds, which share its pictures and tuned numbers.",
    False: "± is a 95% interval over seeds of the noise, on this one denoiser: of others it says nothing.",
}

# Of a denoiser that isn't tuned all that the others are.
FEW = " Only the methods that people use most were tuned for it, and for the distance alone: all of them would take more than twelve hours."


def rest(cells: Cells) -> str:
    """The report's tables, and what is missing."""
    text = ""
    for kind, denoisers in report.kinds(cells.plan).items():
        table = report.summarise(cells, denoisers)
        if table:
            few = FEW if cells.compared(denoisers[0]) != cells.compared(cells.plan.early[0]) else ""
            title = f"Denoiser{'s' * (len(denoisers) > 1)}, {kind}"
            text += f"\n## {title}\n\n{OVER[len(denoisers) > 1]}{few}{_hacked(table)}\n\n{report.markdown(table)}\n"
            composed = report.summarise(cells, denoisers, "composed")
            text += f"\nOn composed captions, pairs that training never had together:\n\n{report.markdown(composed)}\n"
    return text + _how(cells)


def _hacked(table: Mapping[str, Any]) -> str:
    """What towers of the report see of what a reward gained on its own tower."""
    learned = table.get("learned" + BOTH)
    if learned is None or "unguided" not in table:
        return ""
    own, others = (
        learned[name]["mean"] - table["unguided"][name]["mean"] for name in ("reward", "clip score")
    )
    return (
        f" With the reward (*for both*) a learned weight scores {own:.3f} more on the reward's own tower than without guidance, and "
        f"{others:.3f} more on the report's, which didn't serve it: {100 * others / own:.0f}% of it is real."
    )


def _how(cells: Cells) -> str:
    """On what, and how to make it again."""
    missing = [name for name in cells.functions if not cells.done(name)]
    text = f"""
## How it was run

All cells were made on one {machine(cells)}, in ten minutes with the training of three denoisers beside them, in sixteen processes, with XLA's
tuning of matrix products off (`XLA_FLAGS="--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"`), since there is more to compile
than to compute; those of constants, lines and schedules on two CPU cores. The same one after the other:

```bash
for seed in 3 4 5; do python -m experiments.emoji.train --seed $seed --every 2500 & done; wait
python -m experiments.emoji --preset wide --jobs 16 --publish
```

Matrix products are of float32, so that another machine finds the same: a test draws some samples again on a CPU, whose figures differ by
less than a thousandth. `--preset full` is the same without the last three denoisers, for two CPU cores, some twelve hours of work from
nothing; either goes on from what is finished, and `--cells 'tune/0/*'`, say, does those alone.
"""
    if missing:
        kinds = sorted({name.split("/")[0] for name in missing})
        text += f"\n{len(missing)} of the {len(cells.functions)} cells are missing, of the kinds {', '.join(kinds)}.\n"
    return text


def machine(cells: Cells) -> str:
    """What the searches were made on."""
    names = [name for name in cells.functions if name.startswith("tune/") and cells.done(name)]
    return ", ".join(sorted({cells[name]["device"] for name in names}))


def published() -> Cells:
    """The finished cells of the repository."""
    return Cells(PLANS["wide"], storage.WEIGHTS, [RESULTS], print)


def page() -> str:
    """The whole page."""
    cells = published()
    return (
        HEAD
        + outcome(cells)
        + networks()
        + recited(cells)
        + tuned(cells)
        + learned(cells)
        + sweep(cells)
        + scheduled(cells)
        + _claimed(cells)
        + rest(cells)
    )


def main() -> None:
    """Write the page and its pictures."""
    cells = published()
    report.pictures(cells, DOCS / "emoji")
    arena, home = cells.pictured(report.PROMPTS), cells.plan.early[0]
    columns = {"real": arena.x0}
    for label, name in (("denoiser 0", home), ("trained for long", cells.plan.long[0])):
        columns[label] = cells.draw(name, gj.guidance(gj.cfg, 1.0), arena)
        which = nearest(columns[label], train_pictures())[1]
        columns[f"nearest to {label}"] = train_pictures()[which].reshape(arena.x0.shape)
    figures.grid(columns, list(report.PROMPTS), DOCS / "emoji" / "nearest.png")
    (DOCS / "emoji.md").write_text(page())


if __name__ == "__main__":
    main()

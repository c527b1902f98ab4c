"""docs/emoji.md, made from the logs of the weights and the finished cells of the repository.

Run it as `python -m experiments.emoji.docs`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import Claim, verdict
from experiments.emoji import methods, report, storage, towers
from experiments.emoji.arena import nearest, train_pictures
from experiments.emoji.cells import Cells
from experiments.emoji.config import PLANS

ROOT = pathlib.Path(__file__).parent
RESULTS = ROOT / "results" / "cells"
DOCS = ROOT.parent.parent / "docs"

HEAD = """# Text to image on emoji

Written by `python -m experiments.emoji.docs` from what lies in the repository: the logs of the networks
(`experiments/emoji/weights`) and the finished cells of `python -m experiments.emoji --preset full --publish`
(`experiments/emoji/results`), each a small file. What isn't finished is named in [the last section](#what-isnt-done).

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
        for name, line in last.items()
    ]
    return f"""
## The networks

**Towers** (`python -m experiments.emoji.towers`), trained contrastively as CLIP is; how often each finds the caption of a picture that it never saw,
first or among five, of the report's 461 and of the 68 composed ones:

{_table(["tower", "for", "first of 461", "in five", "composed: first of 68", "in five"], rows)}

The classifier of attributes, for the report alone, tells of its pictures: {right}.

**Denoisers** (`python -m experiments.emoji.train`), a transformer of 2.2 M parameters that predicts velocity, told the words as the
*prompt* tower sees them. Three seeds stop near where the loss of held-out pictures is least; one trains four times as long, recites
more, and is the well-trained one:

{_table(["denoiser", "steps", "loss in training", "loss of held-out pictures"], losses)}
"""


def tuned(cells: Cells) -> str:
    """What the searches found."""
    text = f"""
## What tuning found

Fréchet distance on the selection captions (geometric mean over the towers that may be seen) of the best of {cells.plan.settings} settings
that a coordinate search scored. Each begins at the best constant (the per-group interval at the best interval); a method that contains
it is no worse, and one that doesn't, as ADG and the triangle, may be. {cells.plan.settings} settings don't bring the twelve numbers of the
per-group interval to rest. Every setting is in `results`. An earlier search of 32 settings didn't begin there, and with the interval ended
above the constant; this one continues from its scores.
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
neither cap nor momentum. On two CPU cores. Nothing was chosen on these figures. ± is a 95% interval over captions, each drawn anew with its
sample and its real picture (diversity: over the captions whose samples it compares): of another network or noise it says nothing.

{_table(head, rows)}

![Each rule as ω grows, with 95% intervals](emoji/sweep.png)
{_claimed(cells)}"""


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
    return by_paper


def _claimed(cells: Cells) -> str:
    """The papers' claims as a table."""
    rows = [[*each[:3], f"**{each.verdict}**"] for made in claims(cells).values() for each in made]
    if not rows:
        return ""
    return f"""
What the papers claim, on this model; one run each, from the same noise:

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
    kinds = {
        "Early-stopped denoisers": cells.plan.early,
        "The denoiser trained for long": cells.plan.long,
    }
    for kind, denoisers in kinds.items():
        table = report.summarise(cells, denoisers)
        if table:
            few = FEW if cells.compared(denoisers[0]) != cells.compared(cells.plan.early[0]) else ""
            text += f"\n## {kind}\n\n{OVER[len(denoisers) > 1]}{few}\n\n{report.markdown(table)}\n"
    missing = [name for name in cells.functions if cells.find(name) is None]
    text += "\n## What isn't done\n\n"
    if missing:
        kinds_of = sorted({name.split("/")[0] for name in missing})
        text += f"""{len(missing)} of the {len(cells.functions)} cells of the full preset, of the kinds {", ".join(kinds_of)}:
`python -m experiments.emoji --preset full --publish` goes on with them, keeps what is finished in `experiments/emoji/results` and writes this
page; with `--cells 'tune/0/*'`, say, it does those alone."""
    else:
        text += "All cells of the full preset are finished."
    return text + "\n"


def published() -> Cells:
    """The finished cells of the repository."""
    return Cells(PLANS["full"], storage.WEIGHTS, [RESULTS], print)


def page() -> str:
    """The whole page."""
    cells = published()
    return (
        HEAD
        + networks()
        + recited(cells)
        + tuned(cells)
        + learned(cells)
        + sweep(cells)
        + rest(cells)
    )


def main() -> None:
    """Write the page and its pictures."""
    import guidejax as gj
    from experiments.emoji import figures

    cells = published()
    arena, home = cells.pictured(report.PROMPTS), cells.plan.early[0]
    report.grid(cells, DOCS / "emoji" / "grid.png")
    columns = {"real": arena.x0}
    for label, name in (("denoiser 0", home), ("trained for long", cells.plan.long[0])):
        columns[label] = cells.draw(name, gj.guidance(gj.cfg, 1.0), arena)
        which = nearest(columns[label], train_pictures())[1]
        columns[f"nearest to {label}"] = train_pictures()[which].reshape(arena.x0.shape)
    figures.grid(columns, list(report.PROMPTS), DOCS / "emoji" / "nearest.png")
    rows = cells.swept()
    if rows:
        figures.sweep(rows, report.real(cells), DOCS / "emoji" / "sweep.png")
    (DOCS / "emoji.md").write_text(page())


if __name__ == "__main__":
    main()

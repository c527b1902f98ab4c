"""docs/stagewise.md, made from the results alone."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable

from experiments.stages.cells import Cells
from experiments.stages.config import (
    KICKED,
    MEAN,
    PLANS,
    SETTINGS,
    SHAPES,
    STD,
    UNEVEN,
    schedules,
)
from experiments.stages.summary import (
    claims,
    closed,
    crossing,
    interval,
    ranked,
    rows,
    said,
    unbeaten,
    until,
    values,
)
from experiments.statistics import mean_interval

# What docs/stagewise.md is made from.
RESULTS = pathlib.Path(__file__).parent / "results" / "results.json"

INTRODUCTION = """\
# The three stages of guidance

<!-- Made by `python -m experiments.stages --preset full --publish`; edit experiments/stages. -->

Jin, Shi and Gu ([2509.22007](https://arxiv.org/abs/2509.22007)) take classifier-free guidance of
flow matching apart into three stages. Early, at high noise, guided samples are drawn to the
mean of the condition, (1 + ω) times over (*direction shift*); then each goes to one mode (*mode
separation*), with the weak modes starved by where the first stage has put it; late, samples of one
mode are pressed together (*concentration*). From this the paper derives TV-CFG, a triangular
schedule. Their experiments are on images; here the setting of their theorems itself is run, by
`gj.sample` on exact denoisers, where much is known in closed form.

ω is the excess over the conditional model, the paper's scale is 1 + ω. The unconditional model is
N(0, I), the condition a mixture of Gaussians of width σ_y. A number in brackets is a 95% interval
over seeds (Student's t). Nothing here is tuned: schedules have the numbers of their
declarations, all at one mean of ω over time. The page's numbers are those of the preset
“{preset}”: {seeds} seeds of {samples} samples, Heun's method with {steps} steps.

![Paths of samples without and with guidance](stagewise/stages.png)
"""

SETTINGS_TEXT = """\
Settings: {settings}. All modes have σ_y = {std}.
"""


def stored(cells: Cells, preset: str) -> str:
    """All results as one file, a line a cell."""
    lines = [f"{json.dumps(name)}: {json.dumps(cells[name], separators=(',', ':'))}"
             for name in cells.functions]  # fmt: skip
    return f'{{"preset": {json.dumps(preset)}, "cells": {{\n' + ",\n".join(lines) + "\n}}\n"


def published() -> tuple[Cells, str]:
    """The results that the page was made from, and their preset."""
    found = json.loads(RESULTS.read_text())
    return Cells(PLANS[found["preset"]], None, found["cells"]), found["preset"]


def text(cells: Cells, preset: str) -> str:
    """The whole page."""
    plan = cells.plan
    intro = INTRODUCTION.format(
        preset=preset, seeds=plan.seeds, samples=f"{plan.samples:,}", steps=plan.steps
    )
    settings = "; ".join(
        f"*{each.title}*, {len(each.weights)} modes with weights "
        f"{', '.join(f'{w:g}' for w in each.weights)}"
        for each in SETTINGS.values()
    )
    found = claims(cells)
    return "\n".join([
        intro,
        SETTINGS_TEXT.format(settings=settings, std=STD),
        "## What is claimed, and what was found\n",
        _table(("claim", "from", "measured", ""),
               ((c.claim, c.source, c.measured, f"**{c.verdict}**") for c in found)),
        _closed(cells), _direction(cells), _separation(cells), _concentration(cells),
        _schedules(cells), _triangle(cells), LIMITS,
    ])  # fmt: skip


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = list(head)
    every = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |"
                     for line in every) + "\n"  # fmt: skip


def _closed(cells: Cells) -> str:
    lines = []
    for row in closed(cells):
        line = [f"{row['std']:g}", f"{row['omega']:g}"]
        for what in ("contraction", "mean", "norm"):
            one = row[what]
            mark = "" if one["agrees"] else " ✗"
            line += [f"{one['exact']:.4g}", f"{said(one['seen'], 4)} ± {one['error']:.1g}{mark}"]
        lines.append(line)
    limits = []
    for steps in cells.plan.limit_steps:
        line = [str(steps)]
        for solver in ("ddim", "heun"):
            own = rows(cells, "limit", solver=solver, steps=steps)
            line += [said(interval(own, "distance"), 4), said(interval(own, "elsewhere"))]
        limits.append(line)
    return f"""\
## Closed forms against simulation

One mode at (1.5, 0), of width σ_y. Under a constant ω the flow is linear: it multiplies distances
by σ_y^(1 + ω) (`gj.analytic.contraction`) and takes the mean to

m₀ = μ (1 + ω) σ_y^(1 + ω) ∫₀¹ s a^(ω/2) b^(−(1 + ω)/2 − 1) ds, a = (1 − s)² + s²,
b = (1 − s)² σ_y² + s²,

from which the mean norm follows (Rice's distribution). After ± stands the change on a grid half as
fine, the error of the steps. A ✗ is a closed form outside of the interval and that error together.

{
        _table(
            (
                "σ_y",
                "ω",
                "contraction",
                "simulated",
                "mean/μ",
                "simulated",
                "mean ‖x‖",
                "simulated",
            ),
            lines,
        )
    }
Two modes have no closed form; their limit is the ODE solved with a tolerance of 1e-7 (SciPy's
DOP853).
The median distance from it of samples from the same noise at ω = {MEAN:g}, and the share of samples
that end in another mode:

{_table(("steps", "DDIM", "elsewhere", "Heun", "elsewhere"), limits)}"""


def _direction(cells: Cells) -> str:
    lines = []
    for name in SETTINGS:
        for omega in cells.plan.omegas[1:]:
            own = rows(cells, "omegas", name, omega=omega)
            mean = SETTINGS[name].mean
            slope = 2 * omega * (1 + omega) * float(mean @ mean)
            end = until(cells, name, omega)
            lines.append([
                SETTINGS[name].title, f"{omega:g}", f"{slope:.1f}", said(interval(own, "gap"), 2),
                "–" if end is None else "always" if end.high <= 0 else said(end, 2),
                said(interval(own, lambda r: r["drift"][-1])) if mean.any() else "–",
            ])  # fmt: skip
    return f"""\
## First stage: direction shift

The gap E‖x − (1 + ω) μ̄‖² of conditional samples minus that of guided ones opens at t = 1 with the
slope 2 ω (1 + ω) ‖μ̄‖² (a first-order expansion). “Nearer until” is the time down to
which guided samples are the nearer ones. “Drift” is where the samples' mean is at the end
along μ̄: 1 is μ̄ itself, what the condition asks for, and 1 + ω where the first stage points.

![Distance to the amplified mean, drift and norm over time](stagewise/direction.png)

{_table(("setting", "ω", "slope", "measured", "nearer until t =", "drift at t = 0"), lines)}"""


def _separation(cells: Cells) -> str:
    lines = []
    for name in SETTINGS:
        for omega in cells.plan.omegas:
            own = rows(cells, "omegas", name, omega=omega)
            lines.append([SETTINGS[name].title, f"{omega:g}", *(
                said(interval(own, what)) for what in ("weak", "modes", "norm")
            )])  # fmt: skip
    switched = []
    for name in UNEVEN:
        for time in cells.plan.switches:
            own = rows(cells, "switch", name, time=time)
            late = interval(own, lambda r: r["late"][1])
            early, kept, joined = (interval(own, each) for each in ("early", "kept", "joined"))
            switched.append(
                [SETTINGS[name].title, f"{time:g}", *map(said, (early, late, kept, joined))]
            )
    return f"""\
## Second stage: mode separation

Samples are counted to the nearest mode. “Modes” is exp of the entropy of the shares, an effective
number.

{_table(("setting", "ω", "share of the weak mode", "modes", "mean ‖x‖"), lines)}
When is the weak mode starved? Guidance at ω = 4 only before a time τ, or only after it. “Kept” is
the share, of the samples that go to the weak mode without guidance, which still do whichever of
ω = 1, 4, 8 sets in at τ, from the same x_τ; “joined” that of the others which go there at any.

![Shares of the weak mode by ω and by when guidance acts](stagewise/separation.png)

{_table(("setting", "τ", "guided for t > τ", "guided for t ≤ τ", "kept", "joined"), switched)}"""


def _concentration(cells: Cells) -> str:
    lines = []
    for which in ("unguided", *KICKED):
        for time in cells.plan.kicks:
            own = rows(cells, "kicks", "two", name=which, time=time)
            lines.append([which, f"{time:g}", said(interval(own, "growth"), 4),
                          f"{own[0]['exact']:.4g}", said(interval(own, "within"), 4)])  # fmt: skip
    return f"""\
## Third stage: concentration

Two modes; x_t is moved by a hundredth of its noise, and both go on to the end: the median growth
of their distance, beside that of a single mode in closed form, and how many pairs
end in one mode. Every schedule has the mean ω = {MEAN:g}.

![Width of one mode by ω, and growth of a perturbation](stagewise/concentration.png)

{_table(("schedule", "from t =", "growth", "one mode", "in one mode"), lines)}"""


def _schedules(cells: Cells) -> str:
    parts = []
    for name in UNEVEN:
        lines = []
        for which in ("unguided", *ranked(cells, name, "modes")):
            own = rows(cells, "schedules", name, name=which)
            label = f"`{which}`" if which in schedules() and " " not in which else which
            lines.append([
                label, said(interval(own, "weak")), said(interval(own, "modes"), 2),
                said(interval(own, "width"), 4), said(interval(own, "diversity"), 2),
                said(interval(own, "coverage")), said(interval(own, "energy")),
                said(interval(own, "norm"), 2), f"{own[0]['exponent']:.2f}",
                f"{own[0]['passes']:.2f}",
            ])  # fmt: skip
        title = SETTINGS[name].title
        head = ("schedule", "weak mode", "modes", "width within", "pairwise distance", "coverage",
                "energy distance", "mean ‖x‖", "E", "passes")  # fmt: skip
        parts.append(f"### {title[0].upper()}{title[1:]}\n\n{_table(head, lines)}")
    return f"""\
## Every schedule at one mean weight

`gj.with_mean(schedule, {MEAN:g})`, from the same noise for all. Early-strong guides only for
t ≥ 0.5, late-strong only below. Width is that of the strong mode ({STD} in the data), coverage and
energy distance are to samples of the condition, E = ∫ ω K dt is the contraction exponent of a
single mode in closed form, passes the share of steps with an unconditional one. Rows go by the
effective number of modes. `interval` has the window of the paper's program, 0.15 to 0.78;
`least_contraction` and `low_contraction` are told σ_y, as no other schedule is. `cfgpp` has
no mean to keep on a rectified flow and is left out.

![Global against local diversity of every schedule](stagewise/schedules.png)

{chr(10).join(parts)}"""


def _triangle(cells: Cells) -> str:
    lines = []
    for std in cells.plan.shape_stds:
        line = [f"{std:g}"]
        const = values(rows(cells, "shapes", std=std, name="constant"), "exponent")
        exact = rows(cells, "shapes", std=std, name="constant")[0]["exact"]
        for name in list(SHAPES)[1:]:
            own = rows(cells, "shapes", std=std, name=name)
            ratio = mean_interval(values(own, "exponent") / const)
            line += [said(ratio), f"{own[0]['exact'] / exact:.3f}"]
        lines.append(line)
    head = ["σ_y"]
    for name in list(SHAPES)[1:]:
        head += [f"`{name}`", "closed form"]
    at, other = said(crossing(cells)), said(crossing(cells, "interval"))
    best = "; ".join(
        f"{SETTINGS[name].title}, {', '.join(f'`{n}`' for n in unbeaten(cells, name))}"
        for name in UNEVEN
    )
    last = unbeaten(cells, "two")[-1]
    return f"""\
## Does the triangle contract less?

One mode, schedules of one mean: the exponent E of each over a constant's, simulated and in closed
form. Above 1 the schedule presses samples of a mode together more than a constant of
its mean. The reason: guidance contracts most where K(t) = t (1 − t) (1 − σ_y²)/(ab) is largest, for
σ_y from 0.1 up between t = 0.1 and 0.5, and that is where a triangle and an interval have
their weight. The flow of one mode is linear, so that the intervals over seeds have no width.

{_table(head, lines)}
The triangle is level with a constant at σ_y = {at}, the interval at {other}: for wider modes
both contract more. `least_contraction` and `low_contraction` put their weight where K is
low, at the ends; the tables above show the price, for at t near 1 it starves weak modes.

Of all schedules these are beaten by none in both at once, the share of the weak mode and the width
within: {best}.

That is a trade, from early guidance to late. At its end stands `{last}`, with all of its weight
at the very end of the run, where K is low again: it keeps nearly every mode and as much width as a
constant. Whether guidance so late still mends a network's errors is nothing that exact denoisers
can tell.
"""


LIMITS = """\
## What this doesn't tell

* It is the theorems' own setting: Gaussian modes of one width, N(0, I) for the unconditional model
  whatever the condition. A trained network's unconditional model is the sum of its classes.
* The regions and times of the theorems (U, r(k), t₁, t₂, t₃) are in the paper's appendix; what is
  measured is whether there are such, and from when on.
* Of diversity, not of quality: on exact denoisers guidance has nothing to correct, and every
  measure of fidelity is best at ω = 0. What guidance repairs is measured on trained networks, in
  [digits.md](digits.md) and [emoji.md](emoji.md).
* The triangle follows the authors' program, `triangular(form="code")`.
"""

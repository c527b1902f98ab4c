"""docs/angle.md from the cells."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.stats

from experiments.angle.cells import BEYOND, DIMENSIONS, Cells
from experiments.angle.mixtures import LEAK, SETTINGS
from experiments.angle.rules import VARIANTS
from experiments.claims import FAILS, HOLDS, NO_CLAIM, Claim, verdict
from experiments.statistics import mean_interval, paired_difference_interval, paired_ratio_interval


def keep(cells: Cells, folder: pathlib.Path) -> None:
    """Write every finished cell to one file, by which the page can be made again."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: cells[name] for name in cells.functions}
    lines = ",\n".join(f"{json.dumps(n)}: {json.dumps(found[n])}" for n in found)
    (folder / f"{cells.plan.label}.json").write_text(f"{{\n{lines}\n}}\n")


# Numbers


def interval(found: Any, digits: int = 3) -> str:
    """An estimate with its interval."""
    mean, low, high = (f"{round(float(v), digits) + 0.0:.{digits}f}" for v in found)
    return f"{mean} ({low} to {high})"


def _mean(values: np.ndarray, digits: int = 3) -> str:
    return interval(mean_interval(values), digits)


def _small(values: np.ndarray) -> str:
    """A mean that may be of any size, with its interval."""
    mean, low, high = (f"{float(v):.1e}" if v else "0" for v in mean_interval(values))
    return f"{mean} ({low} to {high})"


def _binomial(shares: np.ndarray, samples: int, confidence: float = 0.95) -> tuple[float, ...]:
    """A share with its exact interval (Clopper and Pearson) over the samples of all seeds."""
    count = len(shares) * samples
    found = scipy.stats.binomtest(round(float(np.sum(shares)) * samples), count)
    low, high = found.proportion_ci(confidence, method="exact")
    return found.statistic, low, high


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell for cell in line) + " |" for line in lines) + "\n"


def _inside(values: np.ndarray, exact: np.ndarray) -> bool:
    """Whether the closed forms lie in intervals that hold at 95% all together (Bonferroni)."""
    _, low, high = mean_interval(values, 1 - 0.05 / np.size(exact))
    return bool(np.all((low <= exact) & (exact <= high)))


def _outside(values: np.ndarray, exact: np.ndarray) -> int:
    """How many closed forms lie outside of their own 95% interval."""
    _, low, high = mean_interval(values)
    return int(np.sum((low > exact) | (exact > high)))


def chosen(cells: Cells, rule: str) -> int:
    """Index of the ω of least distance, on the tuning seeds; past `omegas` it is of `far`."""
    return int(_everywhere(cells, rule, "distance", tuning=True).mean(axis=0).argmin())


def omega_of(cells: Cells, index: int) -> str:
    """The ω of an index, as text."""
    return f"{(*cells.plan.omegas, *cells.plan.far)[index]:g}"


def _everywhere(cells: Cells, rule: str, field: str, tuning: bool = False) -> np.ndarray:
    kinds = (f"{kind}/{rule}" for kind in ("sweep", "far"))
    return np.concatenate([cells.over_seeds(kind, field, tuning) for kind in kinds], axis=1)


def tested(cells: Cells, rule: str, field: str, index: int) -> np.ndarray:
    """A measure of a rule at one ω, (seeds,), on the seeds of the report."""
    return _everywhere(cells, rule, field)[:, index]


# Claims


def claims(cells: Cells) -> list[Claim]:
    """Every claim with its measurement."""
    parts = {"norm": _norm_claims, "region": _region_claims, "parts": _part_claims}
    return [
        claim._replace(figure=f"angle/{name}.png")
        for name, made in parts.items()
        for claim in made(cells)
    ]


def _norm_claims(cells: Cells) -> list[Claim]:
    plan = cells.plan
    guided = np.array(plan.omegas) > 0
    exact = np.array(cells["closed"]["first"]) - cells["closed"]["first"][0]
    gain = cells.over_seeds("norm/pair", "gain")
    least = np.min([cells.over_seeds(f"norm/{s}", "least")[:, guided]
                    for s in ("pair", "triangle")])  # fmt: skip
    agrees = _inside(gain[:, guided], exact[guided])
    off = max(cells.over_seeds(f"norm/{s}", "off").max() for s in SETTINGS)
    at = plan.omegas.index(5.0) if 5.0 in plan.omegas else len(plan.omegas) - 1
    count = 2 * plan.samples * len(plan.seeds) * int(guided.sum())
    shorter = cells.over_seeds("norm/pair", "shorter")
    first = int(np.flatnonzero(guided)[0])
    inner = cells.over_seeds("norm/inner", "positive")
    ratio = cells.over_seeds("norm/inner", "ratio")
    rate = exact[-1] / exact[at]
    return [
        Claim(
            "Norm growth", "Theorem 3.2: for a class on the surface, CFG's samples lie further out "
            "along the normal n of a supporting hyperplane than conditional ones.",
            f"All of {count:,} guided samples lie further out than the conditional sample of the "
            f"same noise; the least gain is {least:.3f}. At ω = {plan.omegas[at]:g} the mean gain "
            f"is {_mean(gain[:, at])}, the closed form {exact[at]:.4f}. Of {int(guided.sum())} "
            f"closed forms {_outside(gain[:, guided], exact[guided])} lie outside of their own 95% "
            f"interval; {'all' if agrees else 'not all'} lie in the intervals that hold together. "
            f"Sample by sample, the integral along the path misses by at most {off:.4f}.",
            verdict([bool(agrees), bool(least > 0)]),
        ),
        Claim(
            "It is a projection that grows", "The theorem speaks of n·x0, not of ‖x0‖ about any "
            "origin, and of classes on the surface.",
            f"At ω = {plan.omegas[first]:g} the norm itself falls for "
            f"{interval(_binomial(shorter[:, first], plan.samples))} of the samples on the surface. For a class inside the "
            f"others n·x0 grows for {interval(_binomial(inner[:, at], plan.samples))} of the samples at ω = "
            f"{plan.omegas[at]:g}, and the mean norm shrinks to {_mean(ratio[:, at], 4)} of the "
            "conditional one.",
            verdict([
                bool(_binomial(shorter[:, first], plan.samples)[1] > 0),
                bool(mean_interval(ratio[:, at]).high < 1),
            ]),
        ),
        Claim(
            "How fast", "Growth with w; a rate isn't given in what we could read of the paper.",
            f"Less than linear: from ω = {plan.omegas[at]:g} to {plan.omegas[-1]:g} the closed form "
            f"grows {rate:.2f} times, ω {plan.omegas[-1] / plan.omegas[at]:.2f} times, because the "
            "further out a path goes the more m(x) is the class's own mean.",
            NO_CLAIM,
        ),
    ]  # fmt: skip


def _region_claims(cells: Cells) -> list[Claim]:
    plan = cells.plan
    closed = cells["closed"]
    width, low, high = (
        np.array(v) for v in (closed["width"], *map(cells["width"].get, ("low", "high")))
    )
    between = (low <= width + 1e-6) & (width <= high + 1e-6)
    near, far = (np.reshape(width, (len(plan.times), -1))[0, i] for i in (0, -1))
    ok, wrong, total = True, 0, len(DIMENSIONS) * width.size
    for d in DIMENSIONS:
        own = cells.over_seeds(f"region/{d}", "own")
        for i, exact in enumerate(closed["share"][str(d)]):
            _, least, most = _binomial(own[:, i], plan.samples)
            wrong += not least <= exact <= most
            _, least, most = _binomial(own[:, i], plan.samples, 1 - 0.05 / total)
            ok &= least <= exact <= most
    largest = {d: max(closed["share"][str(d)]) for d in (*DIMENSIONS, BEYOND)}
    path = cells.over_seeds("region/2", "path")
    top = int(path.mean(axis=0).argmax())
    t, omega = [(t, w) for t in plan.times for w in plan.region_omegas][top]
    return [
        Claim(
            "Anomalous region", "Theorem 3.3: there is a local region where ⟨guided score, "
            "conditional score⟩ ≤ 0.",
            f"It is there at every t and ω. The edge that `gj.guided` has on a line lies between the "
            f"two neighbouring points that hold the closed form in {int(between.sum())} of "
            f"{between.size} cases (points {np.max(high - low):.4f} apart at most). Of {total} shares "
            f"of the class in the region {wrong} lie outside of their own 95% interval about the "
            f"quadrature; {'all' if ok else 'not all'} in the intervals that hold together.",
            verdict([bool(ok), bool(between.all())]),
        ),
        Claim(
            "How large it is", "Its width is at most ω (1 − t) n·(μ_y − m(x)), linear in ω where m "
            "is constant (our derivation).",
            f"m isn't: at t = {plan.times[0]:g} the width grows {far / near:.1f} times from ω = "
            f"{plan.region_omegas[0]:g} to {plan.region_omegas[-1]:g}. The region holds up to "
            f"{largest[2]:.3f} of the class in 2 dimensions, {largest[4]:.3f} in 4 and {largest[BEYOND]:.1e} in "
            f"{BEYOND}, since noise across n leaves it. Of CFG's own paths in 2 dimensions at most "
            f"{interval(_binomial(path[:, top], plan.samples))} are in it (t = {t:g}, ω = {omega:g}).",
            NO_CLAIM,
        ),
    ]  # fmt: skip


def _part_claims(cells: Cells) -> list[Claim]:
    plan = cells.plan
    last, top = len(plan.omegas) - 1, f"{plan.omegas[-1]:g}"
    get = lambda rule, field, index=last: tested(cells, rule, field, index)  # noqa: E731
    largest, smallest = (cells.over_seeds("geometry", f) for f in ("largest", "smallest"))
    off = cells.over_seeds("geometry", "off").max()
    turned = cells.over_seeds("geometry", "turned")[:, last, 0]
    capped = cells.over_seeds("geometry", "capped")[:, last, 0]
    norm, plain = mean_interval(get("adg", "norm")), mean_interval(get("cfg", "norm", 0))
    turn = mean_interval(turned)
    best = {rule: chosen(cells, rule) for rule in VARIANTS}
    own = {rule: get(rule, "distance", best[rule]) for rule in VARIANTS}
    gap = paired_difference_interval(own["adg"], own["cfg"])
    robust = paired_ratio_interval(get("adg", "distance"), get("cfg", "distance"))
    cap = paired_ratio_interval(get("adg, no cap", "distance"), get("adg", "distance"))
    costs = _below(cells, best["adg"], "adg, norm of the sample", "adg, norm of each pixel")
    forms = {name: cells.over_seeds("constants", name) for name in ("10⁻³", "3.14/3", "both")}
    nan = cells.over_seeds("geometry", "code_nan")
    late, early = nan[:, :, -1].mean(axis=1), nan[:, :, : plan.sampler_steps // 4].max()
    return [
        Claim(
            "The bound", "Proposition 4.1: ‖guided x̂0‖ ≤ √2 ‖c‖.",
            f"The largest ratio of all steps, samples and ω is {largest.max():.4f}, the least "
            f"{smallest.min():.4f}; it is √(1 + sin 2a sin θ) to {off:.0e}. So the bound needs no "
            "cap, sin 2a ≤ 1 for any a; with the cap, 2a < π, a step never shortens c.",
            HOLDS if largest.max() <= 2**0.5 + 1e-5 else FAILS,
        ),
        Claim(
            "Norms", "ADG constrains the magnitudes that CFG inflates.",
            f"At ω = {top} the mean norm of CFG's samples is {_mean(get('cfg', 'norm'))} of the data's, "
            f"of ADG's {_mean(get('adg', 'norm'))}, of samples at ω = 0 {_mean(get('cfg', 'norm', 0))}. "
            "It is no longer inflated, but it falls below: a bound on one x̂0 is no bound on the path.",
            verdict([bool(norm.high <= 1), bool(norm.high >= plain.low)]),
        ),
        Claim(
            "High weights", "ADG is robust where CFG degrades.",
            f"At ω = {top} ADG's distance to the data is {interval(robust)} of CFG's.",
            HOLDS if robust.high < 1 else FAILS,
        ),
        Claim(
            "The best weight", "No gain in FID over the best constant CFG (16.6 and 16.6, by a "
            "reader of the paper's table).",
            f"Each at the ω of least distance on other seeds: CFG (ω = {omega_of(cells, best['cfg'])}) "
            f"{_mean(own['cfg'], 4)}, ADG (ω = {omega_of(cells, best['adg'])}) {_mean(own['adg'], 4)}; "
            f"paired, ADG less CFG is {interval(gap, 4)}. Mass that lies with other classes is what extrapolation mends best: a "
            "real model has other faults.",
            HOLDS if gap.high > 0 else FAILS,
        ),
        Claim(
            "The cap", "The paper leaves out the cap of π/3 in one picture; no figures were found.",
            f"{'Needed' if cap.low > 1 else 'Not needed'} at high ω. Without it ω θ goes past π/2, c gets a negative weight, and at ω = {top} the distance is "
            f"{interval(cap, 1)} times as large, the norm {_mean(get('adg, no cap', 'norm'))} of the data's. "
            f"With it {_mean(capped)} of the samples are at the cap in the first step. Half the cap, π/6, is better still "
            f"there: {_mean(get('adg, cap π/6', 'distance'), 4)}, ADG {_mean(get('adg', 'distance'), 4)}.",
            NO_CLAIM,
        ),
        Claim(
            "The norm", "The paper gives the norm back, pixel by pixel, in one picture; no figures were found.",
            f"Giving ‖c‖ back {'costs distance' if costs else 'makes no difference'} at ADG's own ω: {_mean(get('adg', 'distance', best['adg']), 4)} "
            f"without, {_mean(get('adg, norm of the sample', 'distance', best['adg']), 4)} with that of the "
            f"sample, {_mean(get('adg, norm of each pixel', 'distance', best['adg']), 4)} with that of each "
            "pixel. The longer x̂0 is what guidance needs here: the conditional samples are too short.",
            NO_CLAIM,
        ),
        Claim(
            "The plane and the turn", "ADG optimises the alignment of angles; it is said to rotate.",
            f"In the first step at ω = {top} the angle to u is {_mean(turned)} of θ + a: it isn't a rotation by a. "
            f"`slerp`, which is, does worse, at its own best ω ({omega_of(cells, best['slerp'])}) too: {_mean(own['slerp'], 4)}. Without "
            f"angle and cap, c + ω e (`projected`) is at its best ω ({omega_of(cells, best['projected'])}) at "
            f"{_mean(own['projected'], 4)}, ADG at {_mean(own['adg'], 4)}, and at ω = {top} at "
            f"{_mean(get('projected', 'distance'))}, CFG at {_mean(get('cfg', 'distance'))}: taking out what is along "
            "u helps somewhat, the capped angle is what makes it robust.",
            verdict([_below(cells, last, "projected", "slerp"), bool(turn.low <= 1 <= turn.high)]),
        ),
        Claim(
            "The authors' constants", "The program turns by 10⁻³ θ more and caps at 3.14/3.",
            f"10⁻³ moves the median sample by {_small(forms['10⁻³'][:, 0])} of its norm at ω = 0, where it should be "
            f"the conditional one, and by {_small(forms['10⁻³'][:, -1])} at ω = {top}; 3.14/3 by "
            f"{_small(forms['3.14/3'][:, -1])} at ω = {top}. They show at ω = 0 and where c = u, in no figure above. Its arccos isn't clamped: where c and u agree to rounding it is NaN, "
            f"{_mean(late)} of the samples in the last step, and {early:.3f} at most in the first quarter of the "
            "steps. Two passes of a network seldom agree so well, these exact denoisers do.",
            NO_CLAIM,
        ),
    ]  # fmt: skip


def _below(cells: Cells, index: int, *others: str) -> bool:
    """Whether ADG's distance is less than those of other rules at one ω, paired over seeds."""
    ours = tested(cells, "adg", "distance", index)
    return all(
        paired_difference_interval(ours, tested(cells, other, "distance", index)).high < 0
        for other in others
    )


# The page


def text(cells: Cells) -> str:
    """The whole page."""
    plan = cells.plan
    found = claims(cells)
    parts = [
        "# Angle domain guidance against closed forms\n",
        f"<!-- Made by `python -m experiments.angle --preset {plan.label} --publish`; edit its page.py. -->\n",
        "Jin et al. ([2506.11039](https://arxiv.org/abs/2506.11039)) explain the burnt colours of high guidance weights by norms: CFG "
        "pushes samples outwards, and near a\nclass's centre the guided score may even oppose the conditional one. Their rule, ADG, turns "
        "the conditional clean prediction instead of\nextrapolating it. Here the explanation is held against formulas on mixtures whose "
        "denoisers are exact, and the rule is taken apart.\n\nω is the excess over the conditional model; the paper's scale w is ω + 1. "
        "c and u are the conditional and the unconditional clean\nprediction, θ the angle between them, e the part of c orthogonal to u. "
        f"Intervals are at 95%, Student's t over {len(plan.seeds)} seeds unless said. The paper's text\nwasn't to be had: its claims are "
        "taken from its abstract, its program and published readings.\n",
        "```bash\npython -m experiments.angle                           # a few minutes on two CPU cores\n"
        "python -m experiments.angle --preset full --publish   # this page\n```\n",
        "## What holds\n",
        _table(("", "claimed", "measured", "verdict"),
               ((f"**{c.claim}**", c.source, c.measured, c.verdict) for c in found)),
        "## Norms grow under CFG\n",
        "p(x0) = Σ π_i N(μ_i, I) with equal π, rectified flow, the class y one component, m(x) the mean of μ under the responsibilities at "
        "x_t. From\nthe same noise\n\n> n·x0(CFG) − n·x0(conditional) = ω ∫₀¹ t c_t^(−3/2) n·(μ_y − m(x_t)) dt, c_t = (1 − t)² + t²,\n\n"
        "which is positive where n·(μ_y − μ_i) ≥ 0 for all i: y is on the surface. For two classes the path along n obeys an equation of one "
        "variable,\nsolved to 10⁻¹⁰ and averaged by quadrature: no simulation goes into it.\n",
        "![Samples under CFG, their growth along n, their norms](angle/norm.png)\n",
        _norm_table(cells),
        f"*{SETTINGS['pair'].about.capitalize()}; {plan.samples} samples a seed, Heun's solver with {plan.steps} steps. "
        "“Misses by” is the largest difference of any sample from the integral along its own path: the solver's error.*\n",
        _order_table(cells),
        "*The largest error of n·x0 by number of Heun steps, beside the equation of one variable from the same noise: it falls four times "
        "where steps double.*\n",
        "## The anomalous region\n",
        "At x = (1 − t) μ_y + z the two scores oppose each other where ‖z‖² ≤ ω (1 − t) z·(μ_y − m(x)): a ball that touches (1 − t) μ_y "
        "from outside, were m\nconstant. Along n its width is the root of δ = ω (1 − t) n·(μ_y − m). What share of the class's own x_t lies in "
        "it is an integral of one variable.\n",
        "![The region, its width and the share of the class in it](angle/region.png)\n",
        _region_table(cells),
        f"*Two classes, 3 apart. The width that was found lies between two points of a line. Shares are of x_t drawn from the class, "
        f"{plan.samples} a seed, with the exact binomial interval of all.*\n",
        "## What cap, plane and norm do\n",
        f"Latents of 4 × 4 with 4 channels: eight classes N(μ, 0.8² I) with ‖μ‖ = 4.8, of variance 1 together. The conditional model is imperfect as "
        f"an under-trained one\nis: {LEAK:.0%} of its mass lies with other classes. Without that ω = 0 would be best. {plan.sampler_steps} DDIM steps. Distances are energy "
        "distances to samples of the\ntrue class, averaged over classes; agreement is the true posterior of the class. Each rule's own ω is that of least "
        f"distance on seeds {plan.tuning_seeds[0]} to\n{plan.tuning_seeds[-1]}, and everything in the table is on seeds {plan.seeds[0]} to {plan.seeds[-1]}.\n",
        _table(("rule", "guided clean prediction"), ((n, v.about) for n, v in VARIANTS.items())),
        "![Norm, distance, agreement and spread over ω](angle/parts.png)\n",
        _parts_table(cells),
        _edges(cells),
        "## Step by step\n",
        "![Angle, cap, norm and NaN over the steps](angle/geometry.png)\n",
        "*On ADG's own paths. c and u are 0.9 radians apart at first and come together; the cap binds early, and there the result no longer depends on "
        "ω.\nRight, the share of samples for which the authors' program, line by line in float64, returns NaN.*\n",
        _constants_table(cells),
        "*How far the program's constants move a sample, the difference over its norm: the median of the samples, and the one that moves most. “Rounding” is what a change of ω by a\nmillionth does.*\n",
        "## What isn't here\n",
        "Networks: what ADG does to a text-to-image model is in [docs/emoji.md](emoji.md), and SD3.5, the paper's model, was not run. The notebook "
        "[`colabs/angle.ipynb`](../colabs/angle.ipynb) shows\nthe mixture and the emoji side by side. Exact statements, constants and tables of "
        "the paper.\n",
    ]  # fmt: skip
    return "\n".join(parts)


def _norm_table(cells: Cells) -> str:
    plan, closed = cells.plan, cells["closed"]
    gain, square, off, shorter = (
        cells.over_seeds("norm/pair", field) for field in ("gain", "square", "off", "shorter")
    )
    dimension = SETTINGS["pair"].means.shape[1]
    rows = (
        (
            f"{omega:g}", f"{closed['first'][i] - closed['first'][0]:.4f}", _mean(gain[:, i], 4),
            f"{off[:, i].max():.4f}", f"{closed['second'][i] + dimension - 1:.3f}",
            _mean(square[:, i]), interval(_binomial(shorter[:, i], plan.samples), 4) if omega else "–",
        )
        for i, omega in enumerate(plan.omegas)
    )  # fmt: skip
    return _table(
        ("ω", "gain along n: closed form", "simulated", "misses by", "E‖x0‖²: closed form",
         "simulated", "share whose norm falls"), rows,
    )  # fmt: skip


def _order_table(cells: Cells) -> str:
    plan = cells.plan
    rows = zip(plan.region_omegas, cells["convergence"]["error"], strict=True)
    return _table(
        ("ω", *(f"{steps} steps" for steps in plan.convergence)),
        ((f"{omega:g}", *(f"{e:.5f}" for e in errors)) for omega, errors in rows),
    )


def _region_table(cells: Cells) -> str:
    plan, closed, rows = cells.plan, cells["closed"], []
    own = {d: cells.over_seeds(f"region/{d}", "own") for d in DIMENSIONS}
    grid = [(t, omega) for t in plan.times for omega in plan.region_omegas]
    for i, (t, omega) in enumerate(grid):
        row = [f"{t:g}", f"{omega:g}", f"{closed['width'][i]:.4f}",
               f"{cells['width']['low'][i]:.4f} to {cells['width']['high'][i]:.4f}"]  # fmt: skip
        for d in DIMENSIONS:
            row += [
                f"{closed['share'][str(d)][i]:.4f}",
                interval(_binomial(own[d][:, i], plan.samples), 4),
            ]
        rows.append([*row, f"{closed['share'][str(BEYOND)][i]:.1e}"])
    heads = [head for d in DIMENSIONS for head in (f"share in {d}-D: closed form", "sampled")]
    return _table(
        ("t", "ω", "width: closed form", "found between", *heads,
         f"in {BEYOND}-D: closed form"), rows,
    )  # fmt: skip


def _parts_table(cells: Cells) -> str:
    plan, last = cells.plan, len(cells.plan.omegas) - 1
    rows = []
    for rule in VARIANTS:
        best = chosen(cells, rule)
        rows.append((
            rule, omega_of(cells, best),
            *(_mean(tested(cells, rule, f, best)) for f in ("distance", "norm", "agreement")),
            *(_mean(tested(cells, rule, f, last)) for f in ("distance", "norm", "agreement")),
        ))  # fmt: skip
    top = f"{plan.omegas[-1]:g}"
    return _table(
        ("rule", "its ω", "distance ↓", "norm (data: 1)", "agreement ↑",
         f"at ω = {top}: distance", "norm", "agreement"), rows,
    )  # fmt: skip


def _edges(cells: Cells) -> str:
    """Which rules would take a larger ω still."""
    tried = (*cells.plan.omegas, *cells.plan.far)
    names = [f"`{rule}`" for rule in VARIANTS if chosen(cells, rule) == len(tried) - 1]
    said = f" Of {', '.join(names)} it is the largest tried." if names else ""
    grid = ", ".join(f"{omega:g}" for omega in tried)
    return f"*A rule's own ω is one of {grid}.{said}*\n"


def _constants_table(cells: Cells) -> str:
    names = ("10⁻³", "3.14/3", "both", "both, largest", "rounding")
    values = {name: cells.over_seeds("constants", name) for name in names}
    rows = (
        (f"{omega:g}", *(_small(values[name][:, i]) for name in names))
        for i, omega in enumerate(cells.plan.omegas)
    )
    return _table(
        ("ω", "10⁻³ θ more", "cap 3.14/3", "both", "both, the sample that moves most", "rounding"),
        rows,
    )

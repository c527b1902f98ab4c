"""docs/mixtures.md, from the results alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.benchmarks.report import markdown_table
from experiments.claims import Claim, verdict
from experiments.mixtures import reading, worlds
from experiments.mixtures.config import (
    BATCH,
    BETA,
    LEAK,
    MIN_GAP,
    MODELS,
    OBJECTIVES,
    OMEGAS,
    PAIRS,
    PARTICLES,
    PRESETS,
    RATES,
    RATES_ON,
    STEPS,
    WIDTHS,
    Cell,
)
from experiments.statistics.intervals import mean_interval, paired_difference_interval

ZERO = 0.1  # A learned ω below it counts as about zero.
# What is under-trained, or wrong as such a model may be.
WRONG = ("under-trained network", "leaking", "mislabelled network")


def claims(results: dict[str, Any]) -> list[Claim]:
    """Every claim beside its measurement."""
    found = []
    paper, derived = "the paper", "derived here"
    well = ("exact", "trained network")

    omegas = {m: mean_interval(reading.learned_omega(results, m, "energy")) for m in MODELS}
    found.append(Claim(
        "Where the model is well trained, the learned ω stays near 0", paper,
        "mean ω " + ", ".join(f"{reading.shown(omegas[m])} ({m})" for m in well)
        + f"; near 0 is below {ZERO}",
        verdict([omegas[m].high < ZERO for m in well]),
    ))  # fmt: skip

    worse = {
        m: paired_difference_interval(reading.at(results, m, 1.0), reading.at(results, m, 0.0))
        for m in well
    }
    found.append(Claim(
        "A larger ω worsens the distance of a well-trained model", paper,
        "energy distance at ω = 1 less that at 0: "
        + ", ".join(f"{reading.shown(worse[m], 4)} ({m})" for m in well),
        verdict([worse[m].low > 0 for m in well]),
    ))  # fmt: skip

    found.append(Claim(
        "Where the model is wrong (under-trained, leaking, mislabelled), the learned ω is large", paper,
        "mean ω " + ", ".join(f"{reading.shown(omegas[m])} ({m})" for m in WRONG)
        + f"; the whole interval above {ZERO} was asked",
        verdict([omegas[m].low > ZERO for m in WRONG]),
    ))  # fmt: skip

    best = results["omegas"]
    lower = {
        m: paired_difference_interval(
            reading.at(results, m, best[m]), reading.at(results, m, 0.0)
        )
        for m in WRONG
    }  # fmt: skip
    found.append(Claim(
        "Guidance lowers the distance of an under-trained model", paper,
        "energy distance at the ω that was tuned less that at 0: "
        + ", ".join(f"{reading.shown(lower[m], 4)} ({m}, ω = {best[m]:g})" for m in WRONG),
        verdict([lower[m].high < 0 for m in WRONG]),
    ))  # fmt: skip

    none = {m: _over_none(results, m) for m in WRONG}
    constant = {m: reading.gain(results, m) for m in WRONG}
    found.append(Claim(
        "The learned ω lowers it too", paper,
        "energy distance with the learned ω less that at 0: "
        + ", ".join(f"{reading.shown(v, 4)} ({m})" for m, v in none.items()),
        verdict([v.high < 0 for v in none.values()]),
    ))  # fmt: skip
    found.append(Claim(
        "The learned ω has the lowest distance of all", paper,
        "energy distance with the learned ω less that at the tuned constant: "
        + ", ".join(f"{reading.shown(v, 4)} ({m})" for m, v in constant.items()),
        verdict([v.high < 0 for v in constant.values()]),
    ))  # fmt: skip

    matching = {
        m: mean_interval(reading.values(results, "pair", m, "matching")[:, 1])
        for m in (*well, *WRONG)
    }
    found.append(Claim(
        "Guided score matching (least E‖x0 − x̂(ω)‖²) learns ω = 0", paper,
        f"its best ω at t = {PAIRS[1][1]}: "
        + ", ".join(f"{reading.shown(v)} ({m})" for m, v in matching.items()),
        verdict([v.low <= 0 <= v.high for v in matching.values()]),
    ))  # fmt: skip

    moved = {name: _spread_over_rates(results, name) for name in OBJECTIVES}
    more = paired_difference_interval(moved["l2"], moved["energy"])
    found.append(Claim(
        "l2 is more sensitive to how it is run", paper,
        f"largest less smallest mean ω over learning rates of {RATES[0]:g} to {RATES[-1]:g}: "
        + ", ".join(f"{reading.mean(v)} ({OBJECTIVES[n]})" for n, v in moved.items())
        + f"; difference {reading.shown(more)}, over {len(moved['l2'])} mixtures",
        verdict([more.low > 0]),
    ))  # fmt: skip

    hits, table = _l2_hits(results)
    found.append(Claim(
        "l2 is least at ω = A α_t/B > 0 for exact denoisers", derived,
        f"{hits} of {len(PAIRS)} steps t → s within 95% intervals over seeds that hold all at "
        f"once; the largest relative difference of the means is {table:.1%}",
        verdict([hits == len(PAIRS), hits >= len(PAIRS) / 2]),
    ))  # fmt: skip

    biased = mean_interval(reading.learned_omega(results, "exact", "l2"))
    cost = paired_difference_interval(
        reading.values(results, "learn", "exact", "energy", "l2"), reading.at(results, "exact", 0.0)
    )
    found.append(Claim(
        "l2 guides an exact model, which needs no guidance", derived,
        f"mean learned ω {reading.shown(biased)}; energy distance less that at ω = 0 "
        f"{reading.shown(cost, 4)}",
        verdict([biased.low > ZERO, cost.low > 0]),
    ))  # fmt: skip

    steps = _energy_steps(results, "exact")
    found.append(Claim(
        "The energy distance asks for no positive guidance of an exact model", derived,
        f"best ω of single steps of the exact model between {float(np.min(steps.low)):.2f} and "
        f"{float(np.max(steps.high)):.2f}, all intervals together; every interval below {ZERO} was asked",
        verdict([bool(high < ZERO) for high in steps.high]),
    ))  # fmt: skip

    right, off = _width_hits(results)
    found.append(Claim(
        "One Gaussian comes out c^(1 + ω)/∅^ω wide, from the widths c and ∅ of the models", derived,
        f"{right} of {len(WIDTHS) * len(OMEGAS)} widths within 95% intervals that hold all at once; "
        f"largest relative difference {off:.1%}",
        verdict([right == len(WIDTHS) * len(OMEGAS), off < 0.03]),
    ))  # fmt: skip
    shown = ("omega", "distance", "omega", "distance", "distance", "distance", "l2", "omega", "l2",
             "omega", "l2", "why")  # fmt: skip
    return [
        claim._replace(figure=f"mixtures/{name}.png")
        for claim, name in zip(found, shown, strict=True)
    ]


def _over_none(results: dict[str, Any], model: str) -> Any:
    """Energy distance with the learned weight, less that at ω = 0."""
    return paired_difference_interval(
        reading.values(results, "learn", model, "energy", "energy"),
        reading.at(results, model, 0.0),
    )


def _spread_over_rates(results: dict[str, Any], objective: str) -> np.ndarray:
    """Largest less smallest mean ω over `RATES`, one a mixture of tuning: the models' mean."""

    def over(model: str, seed: int) -> float:
        cells = [Cell("learn", "tuned", model, seed, objective, rate) for rate in RATES]
        return float(np.ptp([np.mean(results["cells"][c.name]["omega"]) for c in cells]))

    seeds = PRESETS[results["preset"]].tuned
    return np.array([np.mean([over(model, seed) for model in RATES_ON]) for seed in seeds])


def _together(values: np.ndarray, count: int) -> Any:
    """Intervals of `count` numbers that hold all at once with 95% (Bonferroni)."""
    return mean_interval(values, confidence=1 - 0.05 / count)


def _l2_hits(results: dict[str, Any]) -> tuple[int, float]:
    found = _together(reading.values(results, "pair", "exact", "l2"), len(PAIRS))
    closed = np.array([worlds.l2_omega(*pair) for pair in PAIRS])
    inside = (found.low <= closed) & (closed <= found.high)
    return int(inside.sum()), float(np.max(np.abs(found.estimate / closed - 1)))


def _energy_steps(results: dict[str, Any], model: str) -> Any:
    return mean_interval(reading.values(results, "pair", model, "energy"))


def _width_hits(results: dict[str, Any]) -> tuple[int, float]:
    values = reading.values(results, "width", "", "width")
    found = _together(values, values[0].size)
    closed = np.array([
        [worlds.guided_width(cond, uncond, omega) for omega in OMEGAS] for _, cond, uncond in WIDTHS
    ])  # fmt: skip
    inside = (found.low <= closed) & (closed <= found.high)
    return int(inside.sum()), float(np.max(np.abs(found.estimate / closed - 1)))


def claims_text(results: dict[str, Any]) -> str:
    """The claims as a table."""
    return markdown_table(
        ["claim", "whose", "measured (mean ± 95% interval over seeds)", "verdict"],
        [[*claim[:3], f"**{claim.verdict}**"] for claim in claims(results)],
    )


def distance_table(results: dict[str, Any]) -> str:
    """What each model's samples are like without guidance and with each."""
    rows = []
    for model in MODELS:
        best = results["omegas"][model]
        rows.append([
            model,
            reading.mean(reading.at(results, model, 0.0), 4),
            f"{reading.mean(reading.at(results, model, best), 4)} (ω = {best:g})",
            reading.mean(reading.values(results, "learn", model, "energy", "energy"), 4),
            reading.mean(reading.learned_omega(results, model, "energy")),
            reading.mean(reading.values(results, "learn", model, "energy", "l2"), 4),
            reading.mean(reading.learned_omega(results, model, "l2")),
        ])  # fmt: skip
    return markdown_table(
        ["model", "ω = 0", "tuned constant", "self-consistency", "its mean ω", "l2", "its mean ω"],
        rows,
    )


def steps_table(results: dict[str, Any]) -> str:
    """The best constant ω of one step, by each loss."""
    index, (s, t, churn) = 1, PAIRS[1]
    with_churn = [pair for pair in PAIRS if pair[2]].index(PAIRS[1])
    of = lambda model, name: reading.values(results, "pair", model, name)  # noqa: E731
    rows = [
        [
            model,
            reading.mean(of(model, "matching")[:, index]),
            reading.mean(of(model, "energy")[:, with_churn]),
            reading.mean(of(model, "l2")[:, index]),
            reading.mean(of(model, "formula")[:, index]),
        ]
        for model in MODELS
    ]
    head = ["model", "score matching", "self-consistency", "l2", "l2 by its formula"]
    return f"For the step {t} → {s} with churn {churn}:\n\n" + markdown_table(head, rows)


def l2_table(results: dict[str, Any]) -> str:
    """The l2 minimum of exact denoisers: closed form and simulation."""
    found = reading.values(results, "pair", "exact", "l2")
    rows = [
        [f"{t} → {s}", f"{churn}", f"{worlds.l2_omega(s, t, churn):.4f}",
         reading.mean(found[:, i], 4)]
        for i, (s, t, churn) in enumerate(PAIRS)
    ]  # fmt: skip
    return markdown_table(["step t → s", "churn", "closed form", "simulated"], rows)


def why_table(results: dict[str, Any]) -> str:
    """What the tuned constant ω moves."""
    rows = []
    for model in MODELS:
        best = results["omegas"][model]
        row = [model, f"{best:g}"]
        for name in ("wrong", "width"):
            row += [reading.mean(reading.at(results, model, w, name)) for w in (0.0, best)]
        rows.append(row)
    return markdown_table(
        ["model", "tuned ω", "wrong class, ω = 0", "at the tuned ω", "width / true, ω = 0",
         "at the tuned ω"],
        rows,
    )  # fmt: skip


def helped(results: dict[str, Any]) -> list[str]:
    """Models for which the constant ω that was tuned lowers the distance, interval and all."""
    found = []
    for model in MODELS:
        best = results["omegas"][model]
        change = paired_difference_interval(
            reading.at(results, model, best), reading.at(results, model, 0.0)
        )
        if change.high < 0:
            found.append(model)
    return found


def text(results: dict[str, Any]) -> str:
    """The whole page."""
    preset = PRESETS[results["preset"]]
    rates = "; ".join(
        f"{results['rates'][name]:g} for {OBJECTIVES[name]} of "
        f"{', '.join(f'{rate:g}' for rate in results['tried'][name])}"
        for name in OBJECTIVES
    )
    models = "\n".join(f"* **{name}**: {what}." for name, what in MODELS.items())
    better = helped(results)
    rest = [model for model in MODELS if model not in better]
    std, cond, uncond = WIDTHS[0]
    return f"""# Learning ω where everything is known

Written by the command below; `experiments/mixtures/results/results.json` holds every number.

```bash
python -m experiments.mixtures --preset {results["preset"]} --publish
```

Learn to Guide (Galashov et al., [2510.00815](https://arxiv.org/abs/2510.00815)) learns ω so that an example noised to t, taken by one guided step to s, looks like
the same example noised to s. Here the data are mixtures in the plane, three classes of two Gaussians, another mixture each seed, so that the exact denoiser
is known and a model can be wrong in a known way. The paper shows such a toy without numbers, and says neither its sizes nor its
settings: those here are ours.

## Claims

{claims_text(results)}

## Models

x̂(c) is the conditional prediction, x̂(∅) the unconditional one, Δ their difference; guided is x̂(c) + ω Δ, and ω = 0 is the conditional
model.

{models}

## Distances

Energy distance to the class (β = 1, 0 is best), mean over classes, of {preset.samples:,} samples each; {STEPS} steps of DDIM. The
constant ω is the best of {len(OMEGAS)} by this distance on seeds of its own; what learns ω never sees the distance. All learned weights start
at 0.5, and are positive: 0.001 is as low as they go.

{distance_table(results)}

![Energy distance against ω](mixtures/distance.png)

*Black: constant ω, with 95% intervals over seeds. Blue and orange: the learned weights, at their mean over time and classes.*

![Learned ω over time](mixtures/omega.png)

## The bias of l2

l2 (the paper's Eq. (21)) is E‖x̃_s(ω) − x_s‖². With x̃_s = A x_t + B x̂(ω) + noise its minimum is
ω = E⟨x0 − x̂(c), Δ⟩/E‖Δ‖² − (A σ_t/B) E⟨ε, Δ⟩/E‖Δ‖²: that of guided score matching, which is 0 for exact denoisers, and a term that
comes of x_t holding the noise ε. For exact denoisers the term is A α_t/B = r₁₁/(1 − r₁₁) without churn and r₂₂/(1 − r₂₂) with full churn,
r₁₁² = r₂₂ = SNR_t/SNR_s. It grows without bound as s → t.

{l2_table(results)}

![Closed form and simulation](mixtures/l2.png)

{steps_table(results)}

On an exact model neither self-consistency nor score matching asks for guidance, and l2 does. On a wrong model l2
asks for what score matching finds and its own term on top: its formula, from other samples, gives what the simulation finds.

## Where guidance helps, and why

The tuned constant ω lowers the distance, with its 95% interval, for: {", ".join(better) or "none"}. It doesn't for: {", ".join(rest) or "none"}.

{why_table(results)}

![What guidance moves](mixtures/why.png)

*Left, samples that are likelier of another class. Middle, the spread of samples about the components of their own class; the under-trained
network leaves the picture. Right, a single Gaussian.*

Guidance samples from about p(x|c) (p(x|c)/p(x))^ω, by the model's own densities, so that it mends errors that the unconditional model makes
more of, and only those. It has a price: it drives samples away from where classes meet. The exact model shows that
price alone.

* **Leaking labels: it helps.** The model gives a share {LEAK} of a class to all classes. There p(x|c)/p(x) is {LEAK}, and
  {(1 - LEAK) * 3 + LEAK:g} in the class itself: guidance closes the leak (left) before the price is high. Each further ω closes less and costs more, so
  that the best one is moderate. Self-consistency asks for what is best for one step from true noised data, about nothing at small t (second
  picture); a whole run begins each step from samples that leaked before, which is likely why the tuned constant, chosen on whole runs, is
  somewhat better.
* **A blur that is greater without the class: the blur is mended, the price is not.** One Gaussian that the models take for c and ∅ wide comes
  out c^(1 + ω)/∅^ω wide (right), and its true width σ is restored at ω = log(c/σ)/log(∅/c), {worlds.restoring_omega(std, cond, uncond):.3g} for {cond / std:g} and
  {uncond / std:g} times the width: what autoguidance makes of a weaker model. In the mixtures the width follows (middle), but this unconditional
  model is of all classes too, and the price is greater than what the width is worth.
* **The same blur with and without the class: it doesn't help.** Near a component both predictions agree, Δ is about 0, and no ω narrows it:
  c^(1 + ω)/c^ω = c.
* **A shift: it doesn't help.** Both predictions are off alike, and Δ doesn't know it.

## How it is run

{len(preset.reported)} mixtures are reported, and learning rates ({rates}; by the objective's own loss, and further ones
tried while the best is at an end) and constant weights were chosen on {len(preset.tuned)} others: they share neither seeds nor noise. Self-consistency is with β = {BETA}, λ = 1; both
objectives with {PARTICLES} particles, {BATCH} examples an update, t − s ≥ {MIN_GAP}, churn 1, {preset.updates:,} updates of Adam with a cosine decay. Intervals
are Student's over seeds; differences are paired. The best ω of a single step is of {preset.pairs:,} examples. Every cell is a file under
`runs/mixtures/cells`, and a run that was stopped goes on from them.
"""

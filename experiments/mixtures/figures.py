"""The pictures of docs/mixtures.md, from the results alone."""

from __future__ import annotations

import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.mixtures import reading, worlds
from experiments.mixtures.config import MODELS, OMEGAS, PAIRS, WIDTHS, grid
from experiments.statistics.intervals import mean_interval

BLUE, ORANGE, GREY = "#3182bd", "#e6550d", "#888888"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def draw(results: dict[str, Any], folder: pathlib.Path) -> None:
    """Every picture."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for name, make in PICTURES.items():
            figure = make(results)
            figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
            plt.close(figure)


def _panels() -> tuple[Any, list[Any]]:
    """A panel for each model."""
    figure, axes = plt.subplots(2, 4, figsize=(11, 5.6), layout="constrained")
    every = list(axes.ravel())
    for axis, model in zip(every, MODELS, strict=True):
        axis.set_title(model, fontsize=10)
    return figure, every


def distance(results: dict[str, Any]) -> Any:
    """Energy distance of samples against the constant ω, and under the learned weights."""
    figure, axes = _panels()
    for axis, model in zip(axes, MODELS, strict=True):
        found = mean_interval(reading.values(results, "sweep", model, "energy"))
        axis.axhline(0, color=GREY, linewidth=0.6)
        axis.fill_between(OMEGAS, found.low, found.high, color=GREY, alpha=0.3, linewidth=0)
        axis.plot(OMEGAS, found.estimate, color="black", marker=".", label="constant ω")
        for objective, color, marker, label in (
            ("energy", BLUE, "o", "learned by self-consistency"),
            ("l2", ORANGE, "s", "learned by l2"),
        ):
            omega = mean_interval(reading.learned_omega(results, model, objective))
            energy = mean_interval(reading.values(results, "learn", model, "energy", objective))
            axis.errorbar(
                omega.estimate, energy.estimate,
                xerr=omega.high - omega.estimate, yerr=energy.high - energy.estimate,
                color=color, marker=marker, linestyle="", capsize=2, label=label,
            )  # fmt: skip
        axis.set_yscale("symlog", linthresh=1e-2)
        axis.set_ylim(-2e-3, 1)
        axis.set_yticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    figure.supxlabel("ω, of a learned weight its mean (0: the conditional model)")
    figure.supylabel("energy distance to the class (0 is best)")
    return figure


def omega(results: dict[str, Any]) -> Any:
    """The learned ω along the sampler's steps."""
    figure, axes = _panels()
    times = grid()[1]
    for axis, model in zip(axes, MODELS, strict=True):
        for objective, color, label in (
            ("energy", BLUE, "self-consistency"),
            ("l2", ORANGE, "l2"),
        ):
            table = reading.values(results, "learn", model, "omega", objective).mean(axis=2)
            found = mean_interval(table)
            axis.fill_between(times, found.low, found.high, color=color, alpha=0.25, linewidth=0)
            axis.plot(times, found.estimate, color=color, label=label)
        axis.axhline(0, color=GREY, linewidth=0.6)
        axis.set(xlim=(1, 0), ylim=(-0.1, 1.5))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, title="learned by")
    figure.supxlabel("time t (1 noise → 0 data)")
    figure.supylabel("learned ω, mean over classes")
    return figure


def l2(results: dict[str, Any]) -> Any:
    """Where l2 is least for the exact model: closed form against simulation."""
    figure, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
    found = mean_interval(reading.values(results, "pair", "exact", "l2"))
    closed = np.array([worlds.l2_omega(*pair) for pair in PAIRS])
    axis.plot([0.01, 6], [0.01, 6], color=GREY, linewidth=0.8)
    for churn, color, marker in ((0, BLUE, "o"), (1, ORANGE, "s")):
        own = [i for i, pair in enumerate(PAIRS) if pair[2] == churn]
        axis.errorbar(
            closed[own], found.estimate[own], yerr=(found.high - found.estimate)[own],
            color=color, marker=marker, linestyle="", capsize=2, label=f"churn {churn}",
        )  # fmt: skip
    for (s, t, _), x, y in zip(PAIRS, closed, found.estimate, strict=True):
        axis.annotate(
            f"{t} → {s}",
            (x, y),
            xytext=(-42, 5) if t == 0.4 else (6, -9),
            textcoords="offset points",
            fontsize=7,
        )
    ticks = [0.03, 0.1, 0.3, 1, 3]
    axis.set(xscale="log", yscale="log", xlim=(0.01, 6), ylim=(0.01, 6))
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set(xlabel="closed form A α_t / B", ylabel="ω where l2 is least, simulated")
    axis.set_title("l2 over-guides exact denoisers, by step t → s", fontsize=10)
    axis.legend(loc="upper left")
    return figure


def why(results: dict[str, Any]) -> Any:
    """What guidance moves: the share of the wrong class, and the width of components."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 4.1), layout="constrained")
    colors = ("black", BLUE, "#31a354", "#bdbdbd", ORANGE, "#756bb1", "#de77ae", "#8c6d31")
    styles = dict(zip(MODELS, colors, strict=True))
    for model, color in styles.items():
        for axis, name in ((left, "wrong"), (middle, "width")):
            found = mean_interval(reading.values(results, "sweep", model, name))
            axis.errorbar(
                OMEGAS, found.estimate, yerr=found.high - found.estimate, color=color, marker=".",
                linewidth=1, elinewidth=0.6, label=model,
            )  # fmt: skip
    left.set(xlabel="constant ω", ylabel="share of samples in another class", ylim=(0, None))
    left.set_title("all models: the wrong class", fontsize=10)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    middle.axhline(1, color=GREY, linewidth=0.6)
    middle.set(xlabel="constant ω", ylabel="width of components / true width", ylim=(0, 2.3))
    middle.set_title("all models: the width", fontsize=10)
    found = mean_interval(np.array(reading.values(results, "width", "", "width")))
    fine = np.linspace(0, OMEGAS[-1], 50)
    shades = ("#31a354", BLUE, ORANGE, "#756bb1")
    for row, (widths, color) in enumerate(zip(WIDTHS, shades, strict=True)):
        std, cond, uncond = widths
        right.plot(fine, worlds.guided_width(cond, uncond, fine) / std, color=color, linewidth=1)
        right.errorbar(
            OMEGAS, found.estimate[row] / std, yerr=(found.high - found.estimate)[row] / std,
            color=color, marker=".", linestyle="",
            label=f"{cond / std:g} with the class, {uncond / std:g} without",
        )  # fmt: skip
    right.axhline(1, color=GREY, linewidth=0.6)
    right.set(xlabel="constant ω", ylabel="width / true width", ylim=(0, 2.3))
    right.set_title("one Gaussian: formula (lines), simulated", fontsize=10)
    right.legend(title="the model's width / true", fontsize=7, title_fontsize=7)
    return figure


PICTURES = {"distance": distance, "omega": omega, "l2": l2, "why": why}

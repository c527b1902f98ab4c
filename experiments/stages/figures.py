"""The pictures of docs/stagewise.md."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import guidejax as gj
from experiments.stages.cells import Cells, run
from experiments.stages.config import MEAN, SETTINGS, SHAPES, UNEVEN, schedules
from experiments.stages.summary import crossing, interval, rows, values
from experiments.statistics import Interval, mean_interval

# By ω, from mild to far too much.
SHADES = ("#969696", "#9ecae1", "#6baed6", "#3182bd", "#08519c", "#7a0177")
HUES = ("#3182bd", "#e6550d", "#31a354", "#756bb1", "#636363")
# Where a run is cut into its three stages for the eye; there are no sharp borders.
STAGES = ((1.0, 0.7, "#3182bd", "direction shift"), (0.7, 0.3, "#31a354", "mode separation"),
          (0.3, 0.0, "#e6550d", "concentration"))  # fmt: skip
STYLE = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "legend.frameon": False, "axes.titlesize": 9,
}  # fmt: skip


def draw(cells: Cells, folder: pathlib.Path) -> None:
    """All of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for make in (stages, direction, separation, concentration, all_schedules):
            _save(make(cells), folder / f"{make.__name__.removeprefix('all_')}.png")


def _save(figure: Any, path: pathlib.Path) -> None:
    """A PNG of 128 colours, a third of the size."""
    held = io.BytesIO()
    figure.savefig(held, dpi=110, bbox_inches="tight", pad_inches=0.06)
    plt.close(figure)
    held.seek(0)
    Image.open(held).convert("RGB").quantize(128).save(path, optimize=True)


def stages(cells: Cells) -> Any:
    """Paths of the same noise without guidance and with it, coloured by stage."""
    setting = SETTINGS["two"]
    steps, shown = 200, 60
    times = gj.uniform_times(steps)
    noise = jax.random.normal(jax.random.key(11), (600, 2))
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), sharex=True, sharey=True)
    figure.subplots_adjust(wspace=0.06)
    for axis, omega in zip(axes, (0.0, 1.0, 4.0), strict=True):
        x = run(setting.model(), jnp.full(steps, omega), noise, jnp.asarray(times), keep=True)
        path = np.concatenate([np.asarray(noise)[None], np.asarray(x)])
        for high, low, color, name in STAGES:
            part = path[(times <= high + 1e-6) & (times >= low - 1e-6), :shown]
            for i in range(shown):
                axis.plot(*part[:, i].T, color=color, linewidth=0.7, alpha=0.6,
                          label=f"{name}, t = {high:g} to {low:g}" if i == 0 else None)  # fmt: skip
        axis.plot(*path[-1].T, ".", color="black", markersize=2.5, label="samples, t = 0")
        for mean, weight in zip(setting.means, setting.weights, strict=True):
            axis.add_patch(plt.Circle(mean, 0.6, fill=False, color="#888888", linewidth=0.8))
            axis.annotate(f"{weight:.0%}", (mean[0], mean[1] + 1.0), ha="center", color="#555555")
        left = np.mean(path[-1, :, 0] < 0)
        target = (1 + omega) * setting.mean
        if omega < 2:
            axis.plot(*target, "*", color="#7a0177", markersize=11, label="(1 + ω) μ̄")
        else:
            tail = np.array([0.6, 1.5])
            axis.annotate(
                "", tail * 2.15, tail, arrowprops={"arrowstyle": "->", "color": "#7a0177"}
            )
            axis.annotate("to (1 + ω) μ̄", tail * 2.2, color="#7a0177", ha="center")
        title = "conditional, ω = 0" if omega == 0 else f"guided, ω = {omega:g}"
        axis.set_title(f"{title}: {left:.0%} go to the weak mode", fontsize=8.5)
        axis.set(xlim=(-2.8, 3.2), ylim=(-2.4, 3.8), aspect="equal", xticks=[], yticks=[])
    axes[0].legend(loc="lower left", fontsize=7)
    return figure


def _curves(axis: Any, t: Any, found: np.ndarray, color: str, label: str) -> None:
    """The mean over seeds with its interval: found is (seeds, times)."""
    seen = mean_interval(found)
    axis.plot(t, seen.estimate, color=color, linewidth=1.4, label=label)
    axis.fill_between(t, seen.low, seen.high, color=color, alpha=0.2, linewidth=0)


def direction(cells: Cells) -> Any:
    """Distance to (1 + ω) μ̄ over that of conditional samples, drift and norm, over time."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.2), sharex=True)
    figure.subplots_adjust(wspace=0.28, hspace=0.3)
    for row, name in zip(axes, UNEVEN, strict=True):
        t = cells.results("omegas", name)[0]["t"]
        for omega, color in zip(cells.plan.omegas, SHADES, strict=False):
            own, label = rows(cells, "omegas", name, omega=omega), f"ω = {omega:g}"
            if omega:
                ratio = values(own, "guided") / values(own, "plain")
                _curves(row[0], t, ratio, color, label)
            _curves(row[1], t, values(own, "drift"), color, label)
            _curves(row[2], t, values(own, "norms"), color, label)
        title = SETTINGS[name].title
        row[0].set_title(f"{title}: squared distance to (1 + ω) μ̄,\nguided over conditional")
        row[1].set_title(f"{title}: drift,\nwhere the mean is along μ̄ (1: at μ̄)")
        row[2].set_title(f"{title}:\nmean ‖x_t‖")
        row[0].axhline(1, color="#999999", linewidth=0.6)
        row[1].axhline(1, color="#999999", linewidth=0.6)
        for axis in row:
            axis.set(xlim=(1, 0))
    for axis in axes[-1]:
        axis.set_xlabel("time t (1 noise → 0 data)")
    axes[0, 2].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _points(axis: Any, x: Any, seen: list[Interval], color: str, label: str, **style: Any) -> None:
    middle = [s.estimate for s in seen]
    error = [[s.estimate - s.low for s in seen], [s.high - s.estimate for s in seen]]
    axis.errorbar(x, middle, error, color=color, label=label, marker="o", markersize=3,
                  linewidth=1.2, capsize=2, **style)  # fmt: skip


def separation(cells: Cells) -> Any:
    """Share of the weak mode by ω; by when guidance acts; what a basin keeps."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.1))
    figure.subplots_adjust(wspace=0.28)
    for (name, setting), color in zip(SETTINGS.items(), HUES, strict=False):
        seen = [interval(rows(cells, "omegas", name, omega=o), "weak") for o in cells.plan.omegas]
        _points(axes[0], cells.plan.omegas, seen, color, setting.title)
    axes[0].set(xlabel="ω", ylabel="share of samples", ylim=(0, None),
                title="The weak mode by strength of guidance")  # fmt: skip
    times = cells.plan.switches
    own = {t: rows(cells, "switch", "two", time=t) for t in times}
    _points(axes[1], times, [interval(own[t], "early") for t in times], HUES[0],
            "guided for t > τ only")  # fmt: skip
    _points(axes[1], times, [interval(own[t], lambda r: r["late"][1]) for t in times], HUES[1],
            "guided for t ≤ τ only")  # fmt: skip
    plain = mean_interval([r["plain"] for r in cells.results("switch", "two")]).estimate
    axes[1].axhline(plain, color="#999999", linewidth=0.8)
    axes[1].text(0.99, plain, "no guidance", va="bottom", ha="left", fontsize=7, color="#777777")
    axes[1].set(xlim=(1.02, 0.28), ylim=(0, plain * 1.25), xlabel="τ",
                title="Two modes: the weak one by when\nω = 4 acts")  # fmt: skip
    for name, color in zip(UNEVEN, HUES, strict=False):
        seen = [interval(rows(cells, "switch", name, time=t), "kept") for t in times]
        _points(axes[2], times, seen, color, SETTINGS[name].title)
    axes[2].set(xlim=(1.02, 0.28), ylim=(0, 1.05), xlabel="time at which guidance sets in",
                title="Bound for the weak mode, and\nkept at ω = 1, 4 and 8 alike")  # fmt: skip
    for axis in axes:
        axis.legend(fontsize=7)
    axes[1].legend(fontsize=7, loc="lower center")
    return figure


def concentration(cells: Cells) -> Any:
    """Width of one mode by ω beside its closed form, growth of a kick, the triangle's E."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    figure.subplots_adjust(wspace=0.3)
    fine = np.linspace(0, max(cells.plan.single_omegas), 50)
    for std, color in zip(cells.plan.stds, HUES, strict=False):
        axes[0].plot(fine, std ** (1 + fine), color=color, linewidth=1)
        seen = [interval(rows(cells, "single", std=std, omega=o), lambda r: r["fine"]["width"])
                for o in cells.plan.single_omegas]  # fmt: skip
        _points(axes[0], cells.plan.single_omegas, seen, color, f"σ_y = {std:g}", linestyle="")
    axes[0].set(yscale="log", xlabel="ω", ylabel="width of the samples",
                title="One mode: simulated (points)\nand σ_y^(1 + ω) (lines)")  # fmt: skip
    axes[0].legend(fontsize=7, loc="lower left")
    names = ("unguided", "early strong", "constant", "triangular", "late strong")
    width = 0.8 / len(names)
    for i, (name, color) in enumerate(zip(names, ("#bbbbbb", *HUES[:4]), strict=True)):
        seen = [interval(rows(cells, "kicks", "two", name=name, time=t), "growth")
                for t in cells.plan.kicks]  # fmt: skip
        place = np.arange(len(seen)) + (i - 2) * width
        middle = [s.estimate for s in seen]
        error = [[s.estimate - s.low for s in seen], [s.high - s.estimate for s in seen]]
        axes[1].bar(place, middle, width, yerr=error, color=color, label=name,
                    error_kw={"linewidth": 0.8})  # fmt: skip
        exact = [rows(cells, "kicks", "two", name=name, time=t)[0]["exact"]
                 for t in cells.plan.kicks]  # fmt: skip
        axes[1].plot(place, exact, "_", color="black", markersize=8,
                     label="one mode, closed form" if i == 0 else None)  # fmt: skip
    marks = [f"t = {t:g}" for t in cells.plan.kicks]
    axes[1].set(yscale="log", xticks=range(len(marks)), xticklabels=marks,
                xlabel="time of the perturbation",
                title=f"Two modes: growth of a perturbation,\nmean ω = {MEAN:g}")  # fmt: skip
    axes[1].legend(fontsize=6, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.2))
    stds = cells.plan.shape_stds
    const = {s: values(rows(cells, "shapes", std=s, name="constant"), "exponent") for s in stds}
    for name, color in zip(list(SHAPES)[1:], HUES, strict=False):
        found = {s: values(rows(cells, "shapes", std=s, name=name), "exponent") for s in stds}
        seen = [mean_interval(found[s] / const[s]) for s in stds]
        _points(axes[2], stds, seen, color, name)
    at = crossing(cells).estimate
    axes[2].axhline(1, color="#999999", linewidth=0.8)
    axes[2].axvline(at, 0, 0.8, color="#999999", linewidth=0.8, linestyle=":")
    axes[2].text(at * 1.04, 0.03, f"triangular crosses\nat σ_y = {at:.3f}", fontsize=7)
    axes[2].set(xscale="log", xlabel="width of the mode σ_y", ylim=(0, 1.9),
                xticks=(0.05, 0.1, 0.2, 0.5), xticklabels=("0.05", "0.1", "0.2", "0.5"),
                title="One mode: contraction exponent\nover that of a constant")  # fmt: skip
    axes[2].minorticks_off()
    axes[2].legend(fontsize=7, ncols=2, loc="upper left")
    return figure


def all_schedules(cells: Cells) -> Any:
    """Global against local diversity, a point a schedule."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8))
    figure.subplots_adjust(wspace=0.4)
    marked = {"constant": HUES[1], "triangular": HUES[0], "least_contraction": HUES[2],
              "low_contraction": HUES[2], "early strong": HUES[3], "late strong": HUES[3],
              "interval": HUES[0]}  # fmt: skip
    for axis, name in zip(axes, UNEVEN, strict=True):
        places = {}
        for which in schedules():
            own = rows(cells, "schedules", name, name=which)
            x, y = interval(own, "weak"), interval(own, "width")
            color = marked.get(which, "#8c8c8c")
            axis.errorbar(x.estimate, y.estimate, [[y.estimate - y.low], [y.high - y.estimate]],
                          [[x.estimate - x.low], [x.high - x.estimate]], color=color, marker="o",
                          markersize=4, linewidth=0.7)  # fmt: skip
            places[which] = (x.estimate, y.estimate)
        _labels(axis, places, marked)
        plain = interval(rows(cells, "schedules", name, name="unguided"), "weak").estimate
        axis.axvline(plain, color="#bbbbbb", linewidth=0.8, linestyle=":")
        axis.text(plain, 0.155, "no guidance ", fontsize=7, color="#777777", ha="right")
        axis.set(yscale="log", xlabel="share of the weak mode: diversity between modes →",
                 title=f"{SETTINGS[name].title}, mean ω = {MEAN:g}", ylim=(1e-3, 0.2),
                 xlim=(0, None))  # fmt: skip
    axes[0].set_ylabel("width within the strong mode (data: 0.3): diversity within →")
    return figure


def _labels(axis: Any, places: dict[str, tuple[float, float]], marked: dict[str, str]) -> None:
    """Names in a column on the right, each with a line to its point."""
    order = sorted(places, key=lambda name: -places[name][1])
    for height, name in zip(np.linspace(0.99, 0.01, len(order)), order, strict=True):
        color = marked.get(name, "#555555")
        axis.annotate(
            name, places[name], (1.03, height), textcoords=axis.transAxes, fontsize=7, va="center",
            color=color, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.35, "alpha": 0.6},
        )  # fmt: skip

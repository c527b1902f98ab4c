"""The pictures of docs/angle.md."""

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
from experiments.angle import mixtures, theory
from experiments.angle.cells import DIMENSIONS, Cells, products
from experiments.angle.mixtures import PROCESS, RADIUS, SETTINGS
from experiments.angle.rules import VARIANTS
from experiments.statistics import mean_interval

ORANGE, GREY = "#f59e2c", "#999999"
SHADES = ("#9ecae1", "#4292c6", "#08519c", "#7a0177")
COLORS = {
    "cfg": "black", "projected": "#8c564b", "adg": "#d62728", "adg, no cap": "#ff9896",
    "adg, cap π/6": "#9467bd", "adg, norm of each pixel": "#1f77b4",
    "adg, norm of the sample": "#17becf", "slerp": "#2ca02c", "apg": GREY,
}  # fmt: skip
plt.rcParams.update(
    {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
     "legend.frameon": False, "legend.fontsize": 7, "axes.titlesize": 8.5}
)  # fmt: skip


def draw(cells: Cells, folder: pathlib.Path) -> None:
    """Every picture of the page."""
    norm(cells, folder / "norm.png")
    region(cells, folder / "region.png")
    parts(cells, folder / "parts.png")
    geometry(cells, folder / "geometry.png")


def _save(figure: Any, path: pathlib.Path) -> None:
    """A PNG of 96 colours, a third of the size."""
    held = io.BytesIO()
    figure.savefig(held, dpi=130, bbox_inches="tight", pad_inches=0.06)
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(held).convert("RGB").quantize(96).save(path, optimize=True)


def _bars(axis: Any, x: Any, values: np.ndarray, **style: Any) -> None:
    """Means with their 95% intervals over seeds."""
    mean, low, high = mean_interval(values)
    axis.errorbar(x, mean, [mean - low, high - mean], capsize=2, linewidth=1, **style)


def norm(cells: Cells, path: pathlib.Path) -> None:
    """Where CFG takes a class on the surface, the growth along n, and that of the norm."""
    plan, setting = cells.plan, SETTINGS["triangle"]
    figure, (plane, along, ratio) = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
    noise = jax.random.normal(jax.random.key(7), (250, 2))
    labels = jnp.zeros(len(noise), int)
    plane.plot(*(noise + setting.means[0]).T, ".", color=ORANGE, markersize=3, label="conditional")
    for omega, color in ((2.0, SHADES[0]), (8.0, SHADES[2])):
        guide = gj.guidance(gj.cfg, jnp.asarray(omega))
        x = mixtures.run(setting.model, noise, labels, guide, 96, gj.heun())
        plane.plot(*np.asarray(x).T, ".", color=color, markersize=3, label=f"CFG, ω = {omega:g}")
    plane.plot(*setting.means.T, "x", color="black", markersize=6, label="class means")
    plane.annotate("", (-5.2, 4), (-5.2, 1), arrowprops={"arrowstyle": "->"})
    plane.text(-5.0, 2.3, "n")
    plane.set(aspect="equal", xlim=(-6, 6), ylim=(-2.5, 9.5), xticks=[], yticks=[],
              title="three classes; samples of the top one")  # fmt: skip
    plane.legend(loc="upper left", labelspacing=0.2, borderpad=0)
    fine = np.linspace(0, max(plan.omegas), 30)
    exact = [theory.pair_moments(omega, RADIUS)[0] - RADIUS for omega in fine]
    along.plot(fine, exact, color=ORANGE, linewidth=3, alpha=0.7, label="closed form")
    _bars(along, plan.omegas, cells.over_seeds("norm/pair", "gain"), fmt=".", color="black",
          label="simulated")  # fmt: skip
    along.set(xlabel="ω", ylabel="mean n·(CFG − conditional)", title="growth along n, two classes")
    along.legend()
    for name, color in zip(SETTINGS, ("black", SHADES[1], "#d62728"), strict=True):
        label = {"pair": "two classes, 16-D", "triangle": "three classes, 2-D",
                 "inner": "inner class, 2-D"}[name]  # fmt: skip
        values = cells.over_seeds(f"norm/{name}", "ratio")
        _bars(ratio, plan.omegas, values, fmt=".-", color=color, label=label)
    ratio.axhline(1, color=GREY, linewidth=0.6)
    ratio.set(xlabel="ω", ylabel="mean norm, over that at ω = 0", title="norm of the samples")
    ratio.legend()
    _save(figure, path)


def region(cells: Cells, path: pathlib.Path) -> None:
    """The anomalous region in the plane, its width and how much of the class lies in it."""
    plan, t = cells.plan, 0.6
    figure, (plane, wide, share) = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
    means = theory.pair(RADIUS, 2)
    model = mixtures.Setting(means, np.array([1.0, 0.0]), "").model
    x, y = np.meshgrid(np.linspace(-1.6, 2.8, 220), np.linspace(-1.8, 1.8, 180))
    points = jnp.asarray(np.stack([x.ravel(), y.ravel()], axis=1), jnp.float32)
    labels = jnp.zeros(len(points), int)
    density = np.exp(np.asarray(model.log_prob(points, jnp.asarray(t), labels, PROCESS)))
    plane.contourf(x, y, density.reshape(x.shape), levels=6, cmap="Oranges", alpha=0.6)
    for omega, color in zip(plan.region_omegas, SHADES, strict=False):
        along = np.asarray(products(model, points, t, omega, labels)).reshape(x.shape)
        plane.contour(x, y, along, levels=[0], colors=[color], linewidths=1.4)
        plane.plot([], [], color=color, label=f"ω = {omega:g}")
    plane.plot((1 - t) * means[0, 0], 0, "x", color="black", label="(1 − t) μ of the class")
    plane.plot((1 - t) * means[1, 0], 0, "+", color=GREY, label="of the other class")
    plane.set(aspect="equal", xticks=[], yticks=[],
              title=f"where guided and conditional score oppose, t = {t:g}")  # fmt: skip
    plane.legend(loc="lower left", ncols=2, columnspacing=0.8, labelspacing=0.2)
    shape = len(plan.times), len(plan.region_omegas)
    closed = np.reshape(cells["closed"]["width"], shape)
    low, high = (np.reshape(cells["width"][end], shape) for end in ("low", "high"))
    exact = np.reshape(cells["closed"]["share"]["2"], shape)
    found = cells.over_seeds(f"region/{DIMENSIONS[0]}", "own").reshape(-1, *shape)
    for i, (time, color) in enumerate(zip(plan.times, SHADES, strict=False)):
        wide.plot(plan.region_omegas, closed[i], color=color, label=f"t = {time:g}")
        wide.plot(plan.region_omegas, (low + high)[i] / 2, ".", color=color)
        share.plot(plan.region_omegas, exact[i], color=color)
        _bars(share, plan.region_omegas, found[:, i], fmt=".", color=color)
    wide.set(xlabel="ω", ylabel="width along n", title="width: line closed form, dots found")
    wide.legend()
    share.set(xlabel="ω", ylabel="share of the class's $x_t$",
              title="share in the region: line closed form, dots sampled")  # fmt: skip
    _save(figure, path)


def parts(cells: Cells, path: pathlib.Path) -> None:
    """Every variant over ω: norm, distance to the data, agreement, spread."""
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.3), layout="constrained")
    shown = {
        "norm": "mean norm (data: 1)", "distance": "energy distance within a class",
        "agreement": "posterior of the class", "spread": "spread within a class (data: 1)",
    }  # fmt: skip
    for axis, (field, title) in zip(axes, shown.items(), strict=True):
        for rule in VARIANTS:
            values = cells.over_seeds(f"sweep/{rule}", field)
            style = {"linestyle": "--"} if rule in ("projected", "apg") else {}
            _bars(axis, cells.plan.omegas, values, color=COLORS[rule], marker=".", markersize=3,
                  label=rule, **style)  # fmt: skip
        axis.set(xlabel="ω", title=title)
        axis.set_xscale("symlog", linthresh=1, linscale=0.7)
        axis.set_xticks([0, 0.5, 1, 2, 5, 14], ["0", "0.5", "1", "2", "5", "14"])
        axis.minorticks_off()
    for axis in (axes[0], axes[3]):
        axis.axhline(1, color=GREY, linewidth=0.6)
    axes[1].set_yscale("log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=9)
    _save(figure, path)


def geometry(cells: Cells, path: pathlib.Path) -> None:
    """What ADG does at each step: the angle, the cap, the norm, and where the program is NaN."""
    plan = cells.plan
    figure, axes = plt.subplots(1, 4, figsize=(13, 2.9), layout="constrained")
    times = gj.uniform_times(plan.sampler_steps)[:-1]
    shown = {
        "theta": "mean angle θ between c and u (radians)", "capped": "share of samples at the cap",
        "mean": "mean ‖guided x̂0‖ / ‖c‖", "code_nan": "share NaN in the authors' program",
    }  # fmt: skip
    omegas = [w for w in (0.25, 1.0, 3.0, 14.0) if w in plan.omegas]
    for axis, (field, title) in zip(axes, shown.items(), strict=True):
        values = cells.over_seeds("geometry", field)
        for omega, color in zip(omegas, SHADES, strict=False):
            mean, low, high = mean_interval(values[:, plan.omegas.index(omega)])
            axis.plot(times, mean, color=color, label=f"ω = {omega:g}")
            axis.fill_between(times, low, high, color=color, alpha=0.2, linewidth=0)
        axis.set(xlim=(1, 0), xlabel="t (1 noise → 0 data)", title=title)
    axes[0].legend()
    axes[2].axhline(2**0.5, color=GREY, linewidth=0.8)
    axes[2].text(0.03, 2**0.5 - 0.005, "√2, the bound", ha="right", va="top", color=GREY)
    _save(figure, path)

"""The pictures of docs/rules.md."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import guidejax as gj
from experiments.rules import mixture
from experiments.rules.config import PATHS, PROCESS
from guidejax.metrics import energy_distance
from guidejax.schedules import SCHEDULES

COLORS = ("#9ecae1", "#3182bd", "#7a0177")
SIDE = np.linspace(-1.1, 1.1, 160)
plt.rcParams.update(
    {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6}
)


def _save(figure: Any, path: pathlib.Path, dpi: int = 100) -> pathlib.Path:
    """A PNG of 64 colours, a third of the size."""
    held = io.BytesIO()
    figure.savefig(held, dpi=dpi, bbox_inches="tight", pad_inches=0.05)
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(held).convert("RGB").quantize(64).save(path, optimize=True)
    return path


def _truth(axis: Any) -> None:
    """The class as shaded contours, all classes as thin ones."""
    density = mixture.density("cond", SIDE)
    levels = density.max() * np.array([0.03, 0.2, 0.5, 1.01])
    everything = mixture.density("uncond", SIDE)
    axis.contour(
        SIDE, SIDE, everything, levels=[0.05 * everything.max()], colors="#bbbbbb", linewidths=0.6
    )
    axis.contourf(SIDE, SIDE, density, levels=levels, colors=["#fde0b0", "#fdc46b", "#f59e2c"])
    axis.set(xlim=(-1.0, 1.0), ylim=(-0.85, 1.15), xticks=[], yticks=[], aspect="equal")
    for side in axis.spines.values():
        side.set_visible(False)


def energy(x: np.ndarray) -> float:
    """Energy distance to the class; of points gone astray, infinite."""
    if not np.all(np.isfinite(x)):
        return float("inf")
    return float(energy_distance(jnp.asarray(x), jnp.asarray(mixture.truth())))


def rule(
    drawn: Sequence[mixture.Drawn], images: Mapping[float, np.ndarray], path: pathlib.Path
) -> pathlib.Path:
    """One rule: paths, endpoints, norms and digits, at three weights."""
    figure = plt.figure(figsize=(11.2, 2.3))
    place = lambda left, bottom, width, height: figure.add_axes(  # noqa: E731
        (left / 11.2, bottom / 2.3, width / 11.2, height / 2.3)
    )
    paths, *samples = (place(2.05 * i, 0.05, 2.0, 2.0) for i in range(3))
    _truth(paths)
    mid = drawn[1]
    paths.plot(*np.moveaxis(mid.path[:, :PATHS], -1, 0), color=COLORS[1], linewidth=0.5, alpha=0.7)
    paths.plot(*mid.path[-1, :PATHS].T, ".", color="black", markersize=2)
    paths.set_title(f"paths, ω = {mid.omega:g}", fontsize=8, pad=3)
    for axis, one, color in zip(samples, drawn[1:], COLORS[1:], strict=True):
        _truth(axis)
        axis.plot(*one.path[-1].T, ".", color=color, markersize=2, alpha=0.7)
        away = energy(one.path[-1])
        axis.set_title(f"ω = {one.omega:g}: distance {away:.3f}", fontsize=8, pad=3)
    norms = place(6.3, 0.3, 1.4, 1.7)
    norms.plot(mixture.TIMES, mixture.true_norm(), color="#f59e2c", linewidth=4, label="data")
    for one, color in zip(drawn, COLORS, strict=True):
        mean = np.linalg.norm(one.path, axis=2).mean(axis=1)
        norms.plot(mixture.TIMES, mean, color=color, linewidth=1.3, label=f"ω = {one.omega:g}")
    norms.set(xlim=(1, 0), ylim=(0, 2.05), xticks=[1, 0.5, 0], yticks=[0, 1, 2])
    norms.set_title("mean ‖x‖ over t", fontsize=8, pad=3)
    norms.legend(frameon=False, fontsize=6.5, loc="lower left", labelspacing=0.15,
                 handlelength=1.2, borderpad=0.1)  # fmt: skip
    _digits(place(8.35, 0.6, 2.85, 0.86), images)
    return _save(figure, path)


def _digits(axis: Any, images: Mapping[float, np.ndarray]) -> None:
    """A row of the ten digits at each weight."""
    rows = np.stack(list(images.values()))[..., 0]
    tiles = np.pad(rows, ((0, 0), (0, 0), (1, 0), (1, 0)), constant_values=-1.0)
    tiles = tiles.transpose(0, 2, 1, 3).reshape(9 * len(rows), -1)
    axis.imshow(tiles, cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest", aspect="equal")
    for row, omega in enumerate(images):
        axis.text(-2, 9 * row + 4.5, f"ω = {omega:g}", ha="right", va="center", fontsize=7)
    axis.axis("off")
    axis.set_title("digits 0 to 9 from the same noise", fontsize=8, pad=3)


def overview(ends: Mapping[str, tuple[float, np.ndarray]], path: pathlib.Path) -> pathlib.Path:
    """Where every rule takes the same noise: one small panel each."""
    columns = 8
    rows = -(-len(ends) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(11.2, 1.7 * rows), squeeze=False)
    figure.subplots_adjust(wspace=0.02, hspace=0.3)
    for axis in axes.ravel():
        axis.axis("off")
    for axis, (name, (omega, x)) in zip(axes.ravel(), ends.items(), strict=False):
        axis.axis("on")
        _truth(axis)
        color = "black" if name in ("data", "conditional", "unconditional") else COLORS[1]
        axis.plot(*x.T, ".", color=color, markersize=0.9, alpha=0.7)
        suffix = "" if np.isnan(omega) else f"\nω = {omega:g}"
        axis.set_title(f"{name}{suffix}", fontsize=6.5, pad=1)
    return _save(figure, path)


def schedules(path: pathlib.Path) -> pathlib.Path:
    """ω of every schedule over the run, with the numbers of its declaration."""
    columns, steps = 7, 48
    times = gj.uniform_times(steps)
    rows = -(-len(SCHEDULES) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(11.2, 1.45 * rows), sharex=True)
    figure.subplots_adjust(wspace=0.3, hspace=0.45)
    for axis in axes.ravel():
        axis.axis("off")
    for axis, (name, facts) in zip(axes.ravel(), SCHEDULES.items(), strict=False):
        axis.axis("on")
        numbers = dict(facts.example)
        if name == "table":
            numbers["times"] = np.linspace(1, 0, len(numbers["values"]))
        table = facts.make(**numbers, **facts.options).table(jnp.asarray(times), process=PROCESS)
        omega = np.broadcast_to(np.asarray(table), (steps,))
        axis.step(times[:-1], omega, where="post", color=COLORS[1], linewidth=1.1)
        axis.axhline(0, color="#999999", linewidth=0.5)
        axis.set(xlim=(1, 0), xticks=[1, 0], ylim=(min(-0.3, omega.min() * 1.1), None))
        axis.set_title(name, fontsize=7.5, pad=3)
        axis.tick_params(labelsize=6.5, length=2)
    return _save(figure, path)


def logits(path: pathlib.Path) -> pathlib.Path:
    """`logits_cfg` on eight tokens."""
    cond = jnp.log(jnp.array([[0.02, 0.10, 0.30, 0.25, 0.15, 0.10, 0.06, 0.02]]))
    uncond = jnp.log(jnp.array([[0.05, 0.12, 0.18, 0.35, 0.12, 0.08, 0.06, 0.04]]))
    shown = {"unconditional": uncond, "conditional, ω = 0": cond}
    shown |= {
        f"ω = {omega:g}": gj.rules.logits_cfg(cond, uncond, omega) for omega in (1.0, 3.0, 8.0)
    }
    colors = ("#bbbbbb", "#f59e2c", *COLORS)
    figure, axis = plt.subplots(figsize=(11.2, 1.9))
    width = 0.8 / len(shown)
    for index, ((name, log), color) in enumerate(zip(shown.items(), colors, strict=True)):
        place = np.arange(8) + (index - len(shown) / 2 + 0.5) * width
        axis.bar(place, np.exp(np.asarray(log[0])), width, color=color, label=name)
    axis.set(xticks=range(8), xticklabels=[f"token {i}" for i in range(8)], ylabel="probability")
    axis.legend(frameon=False, fontsize=7, ncols=1)
    return _save(figure, path)

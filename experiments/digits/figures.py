"""The pictures of the report."""

from __future__ import annotations

import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.digits import networks
from experiments.digits.config import NUM_CLASSES

COLORS = {
    "unguided": "#7f7f7f",
    "constant": "#4c78a8",
    "interval": "#72b7b2",
    "interval (oracle)": "#1b6f69",
    "clamp-linear": "#9ecae9",
    "triangular": "#b279a2",
    "adg": "#e8b04a",
    "self-consistency": "#54a24b",
    "l2": "#9d755d",
    "rollout": "#e45756",
    "rollout, along and across": "#8c2d19",
}
plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})


def _save(figure: Any, path: pathlib.Path) -> pathlib.Path:
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path


def omega_over_time(weights: dict[str, Any], times: Any, path: pathlib.Path) -> pathlib.Path:
    """ω(c, t) of each method along the sampler's steps; a thin line for each class."""
    figure, axis = plt.subplots(figsize=(8, 4.2))
    cond = jnp.arange(NUM_CLASSES)
    t = np.asarray(times)[:-1]
    top = 0.0
    for method, weight in weights.items():
        table = np.asarray(weight.table(times, cond, process=networks.PROCESS))
        table = np.broadcast_to(table.reshape(len(t), -1), (len(t), max(table[0].size, 1)))
        color = COLORS[method]
        mean = table.mean(axis=1)
        if table.shape[1] > 1:
            axis.plot(t, table, color=color, linewidth=0.6, alpha=0.45)
        axis.step(t, mean, color=color, linewidth=2.2, label=method, where="mid")
        top = max(top, float(table.max()))
    axis.set_xlim(1.02, 0)
    axis.set_ylim(-0.05 * top, 1.05 * top)
    axis.set_xlabel("time t denoised from (1 noise → 0 data)")
    axis.set_ylabel("ω  (0: conditional model)")
    axis.set_title("Guidance weight of each method: bold its mean, thin its classes", fontsize=10)
    axis.legend(frameon=False, ncols=2)
    return _save(figure, path)


@jax.jit
def _mean_over_classes(weight: Any, s: Any, t: Any) -> jax.Array:
    each = [jnp.full(s.shape, label) for label in range(NUM_CLASSES)]
    return jnp.mean(jnp.stack([weight(s, t, c, process=networks.PROCESS) for c in each]), axis=0)


def omega_heat_maps(weights: dict[str, Any], path: pathlib.Path, size: int = 60) -> pathlib.Path:
    """ω(s, t) of each learned method, averaged over classes."""
    figure, axes = plt.subplots(
        1, len(weights), figsize=(4 * len(weights), 3.4), squeeze=False, layout="constrained"
    )
    grid = (np.arange(size) + 0.5) / size
    s, t = (a.ravel() for a in np.meshgrid(grid, grid))
    for axis, (method, weight) in zip(axes[0], weights.items(), strict=True):
        omega = np.array(_mean_over_classes(weight, s, t)).reshape(size, size)
        omega[s.reshape(size, size) >= t.reshape(size, size)] = np.nan
        image = axis.imshow(omega, origin="lower", extent=(0, 1, 0, 1), cmap="viridis", vmin=0)
        axis.set_title(method, fontsize=10)
        axis.set_xlabel("s (to)")
        axis.set_ylabel("t (from)")
        figure.colorbar(image, ax=axis, label="ω, mean over classes", shrink=0.85)
    return _save(figure, path)


def sample_grids(images: dict[str, Any], path: pathlib.Path, rows: int = 6) -> pathlib.Path:
    """Samples of each method from the same noise, ten classes across."""
    per_row = 5
    lines = -(-len(images) // per_row)
    figure, axes = plt.subplots(
        lines, per_row, figsize=(2.6 * per_row, 1.85 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.ravel():
        axis.axis("off")
    for axis, (method, x0) in zip(axes.ravel(), images.items(), strict=False):
        tiles = np.asarray(x0)[: rows * NUM_CLASSES, ..., 0].reshape(rows, NUM_CLASSES, 8, 8)
        tiles = np.pad(tiles, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=1.0)
        axis.imshow(
            tiles.transpose(0, 2, 1, 3).reshape(rows * 9, NUM_CLASSES * 9),
            cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest",
        )  # fmt: skip
        axis.set_title(method, fontsize=9)
    return _save(figure, path)


def bars(table: dict[str, dict[str, Any]], path: pathlib.Path) -> pathlib.Path:
    """The table's main figures as bars with their 95% intervals."""
    panels = [
        ("frechet", "Fréchet distance, geometric mean\n(lower is better)"),
        ("energy", "energy distance per class\n(lower is better)"),
        ("agreement", "agreement with the label\n(higher is better)"),
        ("diversity", "diversity within a class\n(1: as real images)"),
    ]
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), sharey=True, layout="constrained")
    methods = list(table)[::-1]
    for axis, (key, title) in zip(axes, panels, strict=True):
        values = [table[m][key]["mean"] for m in methods]
        low = [
            table[m][key]["mean"] - table[m][key].get("low", table[m][key]["mean"]) for m in methods
        ]
        axis.barh(methods, values, xerr=low if any(low) else None, capsize=2,
                  color=[COLORS[m] for m in methods])  # fmt: skip
        axis.set_title(title, fontsize=10)
        if key in ("agreement", "diversity"):
            floor = min(values) - max(low)
            axis.set_xlim(max(0.0, floor - 0.08), None)
        if key == "diversity":
            axis.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    return _save(figure, path)

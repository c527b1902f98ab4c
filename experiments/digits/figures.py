"""The pictures of the report."""

from __future__ import annotations

import pathlib
import textwrap
from typing import Any

import matplotlib

matplotlib.use("Agg")
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import guidejax as gj
from experiments.digits import networks, report
from experiments.digits.cells import Cells, World, methods_of
from experiments.digits.config import NUM_CLASSES
from experiments.digits.methods import LEARNED, ORACLE, TUNED, gated

# Learned methods are red, tuned ones aren't.
COLORS = {
    "unguided": "#7f7f7f",
    "constant": "#4c78a8",
    "interval": "#72b7b2",
    "triangular": "#b279a2",
    "beta": "#54a24b",
    "rollout": "#e45756",
    "rollout, times alone": "#f4a582",
    "rollout, along and across": "#67001f",
    "rollout, along and across, any sign, all true samples": "#67001f",
    "rollout, times alone, along and across, any sign": "#f4a582",
    "self-consistency": "#8c2d19",
}
# What samples are shown of, where a protocol has it.
SHOWN = ("unguided", "constant", "interval", "adg", "apg", *LEARNED)
plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})


def _save(figure: Any, path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path


def ratios(cells: Cells, path: pathlib.Path) -> pathlib.Path:
    """The distances of every method over the tuned interval's, with their 95% intervals."""
    methods = [m for m in methods_of(cells.protocol) if m != "interval"][::-1]
    names = [name for name, _ in cells.protocol.sizes.denoisers]
    panels = [
        (name, figure, f"{title}, {name}")
        for name in names
        for figure, title in (("frechet", "Fréchet distance"), ("energy", "energy within a class"))
    ]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3 + 2.6 * len(panels), 0.8 + 0.28 * len(methods)), sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    learned = (*cells.protocol.learned, gated(cells.protocol.learned[0]))
    for axis, (name, what, title) in zip(axes[0], panels, strict=True):
        for place, method in enumerate(methods):
            found = report.ratio(cells, name, method, "interval", what)
            color = "#e45756" if method in learned else "#1b6f69" if method == ORACLE else "#4c78a8"
            axis.plot([found.low, found.high], [place, place], color=color, linewidth=1.6)
            axis.plot(found.estimate, place, "o", color=color, markersize=5)
        axis.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("over the tuned interval's")
        axis.set_yticks(range(len(methods)), methods)
    return _save(figure, path)


def omega_over_time(guides: dict[str, gj.Guidance], times: Any, path: pathlib.Path) -> pathlib.Path:
    """ω(c, t) of each method along the sampler's steps; a thin line for each class."""
    figure, axis = plt.subplots(figsize=(8, 4.8), layout="constrained")
    cond = jnp.arange(NUM_CLASSES)
    t = np.asarray(times)[:-1]
    top = 0.0
    for method, guide in guides.items():
        weight = gj.weights.as_weight(guide.omega)
        table = np.asarray(weight.table(jnp.asarray(times), cond, process=networks.PROCESS))
        table = np.broadcast_to(table.reshape(len(t), -1), (len(t), max(table[0].size, 1)))
        color = COLORS[method]
        if table.shape[1] > 1:
            axis.plot(t, table, color=color, linewidth=0.6, alpha=0.45)
        axis.step(t, table.mean(axis=1), color=color, linewidth=2.2, label=method, where="mid")
        top = max(top, float(table.max()))
    axis.set_xlim(1.02, 0)
    axis.set_ylim(-0.05 * top, 1.05 * top)
    axis.set_xlabel("time t denoised from (1 noise → 0 data)")
    axis.set_ylabel("ω  (0: conditional model)")
    axis.set_title("Guidance weights: bold the mean, thin its classes", fontsize=10)
    figure.legend(loc="outside lower center", frameon=False, ncols=4)
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
        axis.set_title(textwrap.fill(method, 32), fontsize=9)
    return _save(figure, path)


def draw(cells: Cells, work: pathlib.Path, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """{caption: path} of every picture; those of samples are of the first seed.

    Its networks are trained again, and weights learned again that don't lie in `work`.
    """
    protocol = cells.protocol
    (denoiser, _), seed = protocol.sizes.denoisers[0], protocol.seeds[0]
    world = World(protocol, denoiser, seed, work)
    found = cells.methods(denoiser, seed)
    guides = {m: TUNED[m].guide(**found[m].get("numbers", {})) for m in protocol.tuned}
    guides |= {m: world.learn(m) for m in protocol.learned}
    order = [np.flatnonzero(world.reported["cond"] == c)[:6] for c in range(NUM_CLASSES)]
    real = world.reported["x0"][np.stack(order, axis=1)]
    tiles = {m: world.sample(guides[m]) for m in SHOWN if m in guides}
    curves = {m: guide for m, guide in guides.items() if m in COLORS and m != "unguided"}
    times = gj.uniform_times(protocol.sizes.sampling_steps)
    return {
        "every method over the tuned interval, with 95% intervals": ratios(
            cells, folder / "ratios.png"
        ),
        f"{denoiser}: samples from the same noise, labels 0 to 9 across": sample_grids(
            {"real images": real.reshape(-1, 8, 8, 1), **tiles}, folder / "samples.png"
        ),
        f"{denoiser}: guidance weights of some methods over the steps of the sampler":
            omega_over_time(curves, times, folder / "omega.png"),
    }  # fmt: skip

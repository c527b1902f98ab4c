"""The pictures of the report."""

from __future__ import annotations

import pathlib
import textwrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})

# A colour a method, the same in every figure.
COLORS = {
    "unguided": "#7f7f7f", "constant": "#4c78a8", "cfg": "#4c78a8", "interval": "#72b7b2",
    "interval per group": "#1b6f69", "clamp-linear": "#9ecae9", "triangular": "#b279a2",
    "beta": "#d6a5c9", "adg": "#e8b04a", "apg": "#54a24b", "cfg-zero": "#9d755d",
    "rescale": "#bab0ac", "norm cap": "#6b6ecf", "learned": "#e45756",
    "learned, gated": "#8c2d19", "learned anew": "#ff9d98",
}  # fmt: skip


def _save(figure: Any, path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path


def grid(columns: dict[str, Any], prompts: list[str], path: pathlib.Path) -> pathlib.Path:
    """Prompts down, methods across; pictures in [-1, 1], (prompts, side, side, 3) a method."""
    figure, axes = plt.subplots(
        len(prompts), len(columns), figsize=(1.25 * len(columns) + 1.6, 1.25 * len(prompts)),
        squeeze=False,
    )  # fmt: skip
    for column, (method, pictures) in enumerate(columns.items()):
        shown = (np.clip(np.asarray(pictures), -1, 1) + 1) / 2
        for row, axis in enumerate(axes[:, column]):
            axis.imshow(shown[row], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if not row:
                lines = [textwrap.fill(line, 13) for line in method.splitlines()]
                axis.set_title("\n".join(lines), fontsize=9.5)
            if not column:
                axis.set_ylabel(
                    textwrap.fill(prompts[row], 18), rotation=0, ha="right", va="center",
                    fontsize=9.5,
                )  # fmt: skip
    figure.subplots_adjust(wspace=0.05, hspace=0.05)
    return _save(figure, path)


def _points(axis: Any, table: dict[str, dict[str, Any]], x: str, y: str) -> None:
    """Every method by two figures, with their intervals; one label for those at one place."""
    places: dict[tuple[str, str], list[str]] = {}
    for method, entry in table.items():
        bars = {
            side: entry[name]["high"] - entry[name]["mean"]
            for name, side in ((x, "xerr"), (y, "yerr"))
            if "low" in entry[name]
        }
        at = entry[x]["mean"], entry[y]["mean"]
        plain = method.removesuffix(", for both")
        mark = {"fmt": "o" if plain == method else "D", "markersize": 7, "linewidth": 1}
        axis.errorbar(*at, **bars, **mark, color=COLORS[plain])
        places.setdefault((f"{at[0]:.3g}", f"{at[1]:.4g}"), []).append(method)
    for methods in places.values():
        at = tuple(table[methods[0]][name]["mean"] for name in (x, y))
        label = " = ".join(methods)
        axis.annotate(label, at, xytext=(7, 4), textcoords="offset points", fontsize=9)


def plane(table: dict[str, dict[str, Any]], path: pathlib.Path) -> pathlib.Path:
    """Every method by its CLIP score and its Fréchet distance."""
    figure, axis = plt.subplots(figsize=(9, 6))
    _points(axis, table, "clip score", "frechet")
    axis.set_xlabel("CLIP score, on towers for the report alone  (right is better)")
    axis.set_ylabel("Fréchet distance  (down is better)")
    return _save(figure, path)


def strength(
    table: dict[str, dict[str, Any]], constants: list[dict[str, Any]], path: pathlib.Path
) -> pathlib.Path:
    """Every method by its effective ω and its Fréchet distance, and the line of constant ω."""
    figure, axis = plt.subplots(figsize=(9, 6))
    _points(axis, table, "strength", "frechet")
    top = 1.3 * max(entry["strength"]["mean"] for entry in table.values())
    rows = [row for row in constants if row["omega"] <= top]
    axis.plot(
        [row["omega"] for row in rows], [row["frechet"] for row in rows],
        color=COLORS["cfg"], linewidth=1.6, alpha=0.6, label="constant ω, one seed of the sweep",
    )  # fmt: skip
    axis.set_xlabel("effective ω: the plain rule nearest to each step, mean over steps")
    axis.set_ylabel("Fréchet distance  (down is better)")
    axis.legend(frameon=False)
    return _save(figure, path)


def sweep(
    rows: dict[str, list[dict[str, Any]]], real: dict[str, float], path: pathlib.Path
) -> pathlib.Path:
    """What each rule does as ω grows, with 95% intervals over captions; real pictures dashed."""
    names = {
        "frechet": "Fréchet distance (log)", "clip score": "CLIP score",
        "accuracy": "attributes told right", "saturation": "saturation",
        "norm": "norm (root mean square)", "diversity": "diversity of one caption",
    }  # fmt: skip
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.2), sharex=True)
    for axis, (name, label) in zip(axes.flat, names.items(), strict=True):
        for rule, values in rows.items():
            axis.errorbar(
                [row["omega"] for row in values], [row[name] for row in values],
                yerr=[1.96 * row["error"][name] for row in values], elinewidth=0.8,
                color=COLORS[rule], marker="o", markersize=3, linewidth=1.6, label=rule,
            )  # fmt: skip
        if name in real:
            axis.axhline(real[name], color="black", linestyle="--", linewidth=1)
        if name == "frechet":
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(label, fontsize=10)
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xticks([0, 1, 2, 4, 7, 10, 20], ["0", "1", "2", "4", "7", "10", "20"])
    for axis in axes[1]:
        axis.set_xlabel("ω  (0: conditional model)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, ncols=7,
                  loc="upper center", bbox_to_anchor=(0.5, 1.0))  # fmt: skip
    return _save(figure, path)


def merged(curves: dict[str, tuple[Any, str, str]]) -> dict[str, tuple[Any, str, str]]:
    """The curves, those with the same values as one, "a = b": the last would hide the others."""
    alike: list[tuple[list[str], tuple[Any, str, str]]] = []
    for label, curve in curves.items():
        same = next((to for to, known in alike if np.array_equal(known[0], curve[0])), None)
        if same is None:
            alike.append(([label], curve))
        else:
            same.append(label)
    return {" = ".join(labels): curve for labels, curve in alike}


def weights(
    curves: dict[str, tuple[Any, str, str]], times: Any, path: pathlib.Path
) -> pathlib.Path:
    """ω over the sampler's steps: (steps,) or (steps, captions) a label, with colour and style."""
    figure, axis = plt.subplots(figsize=(7.5, 4))
    t, top = np.asarray(times)[:-1], 0.0
    for label, (table, color, style) in merged(curves).items():
        table = np.broadcast_to(
            np.asarray(table).reshape(len(t), -1), (len(t), np.size(table) // len(t))
        )
        if table.shape[1] > 1:
            low, high = np.quantile(table, [0.1, 0.9], axis=1)
            axis.fill_between(t, low, high, color=color, alpha=0.15, linewidth=0)
        axis.plot(t, table.mean(axis=1), style, color=color, linewidth=2, label=label)
        top = max(top, float(table.mean(axis=1).max()))
    axis.set_xlim(1.02, 0)
    axis.set_ylim(-0.05 * top, 1.25 * top)
    axis.set_xlabel("time t denoised from (1 noise → 0 data)")
    axis.set_ylabel("ω  (0: conditional model)")
    axis.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return _save(figure, path)

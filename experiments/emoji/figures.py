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
    """Every method by two figures, with their intervals; one point for those at one place."""
    places: dict[tuple[str, str], list[str]] = {}
    for method, entry in table.items():
        at = entry[x]["mean"], entry[y]["mean"]
        places.setdefault((f"{at[0]:.3g}", f"{at[1]:.4g}"), []).append(method)
    for same in places.values():
        entry, plain = table[same[0]], same[0].removesuffix(", for both")
        bars = {
            side: entry[name]["high"] - entry[name]["mean"]
            for name, side in ((x, "xerr"), (y, "yerr"))
            if "low" in entry[name]
        }
        mark = {"fmt": "o" if plain == same[0] else "D", "markersize": 7, "elinewidth": 0.8}
        axis.errorbar(
            entry[x]["mean"], entry[y]["mean"], **bars, **mark, color=COLORS[plain],
            label=textwrap.fill(" = ".join(same), 42),
        )  # fmt: skip


def _legend(figure: Any, axis: Any) -> None:
    """What the points are, on the right: names beside them would hide each other."""
    figure.legend(
        *axis.get_legend_handles_labels(), frameon=False, loc="center left",
        bbox_to_anchor=(0.91, 0.5), fontsize=9,
    )  # fmt: skip


def plane(table: dict[str, dict[str, Any]], path: pathlib.Path) -> pathlib.Path:
    """Every method by its CLIP score and its Fréchet distance."""
    figure, axis = plt.subplots(figsize=(9, 5.5))
    _points(axis, table, "clip score", "frechet")
    axis.set_xlabel("CLIP score, on towers for the report alone  (right is better)")
    axis.set_ylabel("Fréchet distance  (down is better)")
    _legend(figure, axis)
    return _save(figure, path)


def beside_constants(
    table: dict[str, dict[str, Any]], constants: list[dict[str, Any]], path: pathlib.Path
) -> pathlib.Path:
    """Every method of one denoiser beside the line of constant ω: by CLIP score, by strength."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.5), sharey=True)
    labels = {
        "clip score": "CLIP score, on towers for the report alone  (right is better)",
        "strength": "effective ω: the plain rule nearest to each step, mean over steps",
    }
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        along = "omega" if name == "strength" else name
        axis.plot(
            [row[along] for row in constants], [row["frechet"] for row in constants], marker=".",
            color=COLORS["cfg"], linewidth=1.6, alpha=0.6, label="constant ω, from the same noise",
        )  # fmt: skip
        _points(axis, table, name, "frechet")
        axis.set_xlabel(label)
    for row in constants:
        axes[0].annotate(
            f"{row['omega']:g}", (row["clip score"], row["frechet"]), xytext=(-3, -11),
            textcoords="offset points", fontsize=8, color=COLORS["cfg"], ha="right",
        )  # fmt: skip
    axes[0].set_ylabel("Fréchet distance  (down is better)")
    _legend(figure, axes[0])
    figure.subplots_adjust(wspace=0.05)
    return _save(figure, path)


def rewards(
    learned: dict[str, list[dict[str, Any]]], constants: list[dict[str, Any]], path: pathlib.Path
) -> pathlib.Path:
    """Distance against the reward's score: learned weights as γ grows, and constants."""
    figure, axis = plt.subplots(figsize=(9, 6))
    lines = {"constant ω": (constants, "omega", "ω", COLORS["constant"], "o", (9, -9))}
    for (name, rows), color, to in zip(
        learned.items(), (COLORS["learned"], "#7f7f7f"), ((9, -12), (9, 6)), strict=False
    ):
        lines[f"learned by {name}"] = rows, "gamma", "γ", color, "D", to
    for label, (rows, number, sign, color, marker, to) in lines.items():
        rows = sorted(rows, key=lambda row: row[number])
        x, y = ([row[name] for row in rows] for name in ("reward", "distance"))
        axis.plot(x, y, marker=marker, markersize=6, linewidth=1.4, color=color, label=label)
        said: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            place = f"{row['reward']:.3f}", f"{row['distance']:.3f}"
            said.setdefault(place, []).append(f"{row[number]:g}")
        for place, numbers in said.items():
            axis.annotate(
                f"{sign} = {', '.join(numbers)}", tuple(map(float, place)), xytext=to,
                textcoords="offset points", fontsize=9, color=color,
            )  # fmt: skip
    axis.set_xlabel("CLIP score on the reward's own tower  (right is better)")
    axis.set_ylabel("Fréchet distance on selection captions  (down is better)")
    axis.legend(frameon=False)
    return _save(figure, path)


def stages(schedules: dict[str, dict[str, Any]], path: pathlib.Path) -> pathlib.Path:
    """Schedules of one mean: what comes of them, and how far each goes in the three stages."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.4))
    palette = ("#4c78a8", "#e45756", "#54a24b", "#b279a2", "#9d755d")
    for (name, row), color in zip(schedules.items(), palette, strict=False):
        each = np.asarray(row["diversities"])
        half = 1.96 * each.std(ddof=1) / each.size**0.5
        style = {"color": color, "label": name, "linewidth": 1.6, "markersize": 5}
        axes[0].errorbar(
            row["diversity"], row["measured"]["frechet"], xerr=half, fmt="o", **style
        )  # fmt: skip
        axes[1].plot(row["t"], np.mean(row["spread_ratio"], axis=1), marker=".", **style)
        growth = np.asarray(row["growth_ratio"])
        half = 1.96 * growth.std(axis=1, ddof=1) / growth.shape[1] ** 0.5
        axes[2].errorbar(
            row["perturbed_t"], growth.mean(axis=1), yerr=half, marker="o", capsize=2, **style
        )
    axes[0].set_xlabel("diversity of one caption (real pictures: 1)")
    axes[0].set_ylabel("Fréchet distance  (down is better)")
    axes[1].set_title("spread of one caption's x̂0, guided / conditional", fontsize=10)
    axes[2].set_title("growth of a perturbation, guided / conditional", fontsize=10)
    axes[1].set_yscale("log")
    axes[1].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes[1].yaxis.set_major_formatter("{x:g}")
    axes[1].yaxis.set_minor_formatter(NullFormatter())
    for axis, label in zip(
        axes[1:], ("time t of x̂0", "time t at which x is perturbed"), strict=True
    ):
        axis.axhline(1, color="black", linestyle="--", linewidth=1)
        axis.set_xlabel(f"{label} (1 noise → 0 data)")
        axis.invert_xaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=5,
                  loc="upper center", bbox_to_anchor=(0.5, 1.05))  # fmt: skip
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
        same = next((to for to, known in alike if _same(known[0], curve[0])), None)
        if same is None:
            alike.append(([label], curve))
        else:
            same.append(label)
    return {" = ".join(labels): curve for labels, curve in alike}


def _same(one: Any, other: Any) -> bool:
    return np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=1e-4, atol=1e-4)


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

"""Tables, claims, picture and page of the sampling benchmark, from its results alone.

`python -m experiments.benchmarks.report` draws the published pages anew; it measures nothing.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.benchmarks.problem import ROWS
from experiments.benchmarks.worker import ROOT

OURS = "guidejax"
BARE = "the bare evaluations"
COLORS = {
    BARE: "#7f7f7f",
    OURS: "#e45756",
    "hackable_diffusion": "#4c78a8",
    "DiffusionLab": "#72b7b2",
    "diffusers": "#b279a2",
    "diffusers, torch.compile": "#e8b04a",
}
WHY = {
    "hackable_diffusion": "it makes the same passes in one scan as well, with the same random "
    "numbers; what is left is in what XLA fuses with what",
    "DiffusionLab": "its loop is unrolled into one program, which takes the longer to compile "
    "(last table), and in which XLA has the two passes of a step follow one another; in a scan it "
    "interleaves them, the bare one too, which is slower on one core and faster on several",
    "diffusers": "PyTorch's kernels make a pass of this network faster than XLA's; beside the bare "
    "evaluations in its own framework, neither library adds much",
    "diffusers, torch.compile": "the compiled network makes a pass faster than XLA's",
}


def timed(row: dict[str, Any]) -> list[str]:
    """The contenders of a row that were timed."""
    return [name for name, found in row.items() if "run_s" in found]


def spread(ratios: Any) -> dict[str, float]:
    """Median, and the quartiles of the rounds."""
    low, middle, high = np.percentile(np.asarray(ratios), [25, 50, 75])
    return {"median": float(middle), "low": float(low), "high": float(high)}


def over_floor(found: dict[str, Any]) -> dict[str, float]:
    """Time over that of the bare evaluations beside it, in the same process."""
    return spread(np.divide(found["run_s"], found["floor_s"]))


def over_ours(row: dict[str, Any], name: str) -> dict[str, float]:
    """Time over guidejax's, round by round."""
    return spread(np.divide(row[name]["run_s"], row[OURS]["run_s"]))


def printed(ratio: dict[str, float]) -> str:
    """Median and quartiles."""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown of the cells."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def names(results: dict[str, Any]) -> list[str]:
    """The contenders, guidejax first."""
    return list(results["versions"])


def time_table(results: dict[str, Any]) -> str:
    """Time of every contender over guidejax's."""
    others = names(results)[1:]
    lines = []
    for name, row in results["rows"].items():
        if "run_s" not in row[OURS]:
            lines.append([name, *["–"] * (1 + len(others))])
            continue
        cells = [printed(over_ours(row, o)) if "run_s" in row[o] else "–" for o in others]
        lines.append([name, f"{1e3 * np.median(row[OURS]['run_s']):.0f} ms", *cells])
    return markdown_table(["", OURS, *(f"{name} / {OURS}" for name in others)], lines)


def floor_table(results: dict[str, Any]) -> str:
    """guidejax beside the bare evaluations, and beside full guidance."""
    lines = []
    rows = results["rows"]
    for name, row in rows.items():
        found = row[OURS]
        if "run_s" not in found:
            continue
        cells = [name, f"{found['flops'] / found['floor_flops']:.4f}", printed(over_floor(found))]
        full = rows.get("cfg", {}).get(OURS)
        if full and "run_s" in full:
            cells += [
                f"{found['flops'] / full['flops']:.3f}",
                f"{np.median(found['run_s']) / np.median(full['run_s']):.3f}",
            ]
        else:
            cells += ["–", "–"]
        lines.append(cells)
    return markdown_table(
        ["", "FLOPs / floor", "time / floor", "FLOPs / those of cfg", "time / that of cfg"], lines
    )


def programs_table(results: dict[str, Any]) -> str:
    """FLOPs, time over the own floor, compilations, memory and first samples of every contender."""
    lines = []
    for name, row in results["rows"].items():
        for who, found in row.items():
            if "run_s" not in found:
                continue
            flops = found["flops"] and f"{found['flops'] / 1e9:.2f}"
            memory = found["temp_bytes"] is not None and f"{found['temp_bytes'] / 2**20:.1f}"
            lines.append(
                [name, who, flops or "–", printed(over_floor(found)), _count(found["compilations"]),
                 memory or "–", f"{found['first_s']:.2f}", f"{found['difference']:.0e}"]
            )  # fmt: skip
    head = ["", "", "GFLOP", "time / its own floor", "compilations, 20 ω", "temporary MiB",
            "first samples, s", "difference"]  # fmt: skip
    return markdown_table(head, lines)


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)


def tables(results: dict[str, Any]) -> str:
    """All three."""
    parts = (time_table(results), floor_table(results), programs_table(results))
    return "\n\n".join(parts) + "\n"


def losses(results: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(row, peer, time over guidejax's) wherever guidejax is the slower in three of four rounds."""
    for name, row in results["rows"].items():
        if "run_s" in row[OURS]:
            for other in timed(row)[1:]:
                ratio = over_ours(row, other)
                if ratio["high"] < 1:
                    yield name, other, ratio


def claims(results: dict[str, Any]) -> list[str]:
    """What is aimed at, what was measured, and whether it holds; of the rows that were run."""
    rows = {name: row for name, row in results["rows"].items() if "run_s" in row[OURS]}
    found: list[tuple[str, float, bool]] = []
    if rows:
        ours = [row[OURS] for row in rows.values()]
        flops = max(mine["flops"] / mine["floor_flops"] for mine in ours)
        found.append(("FLOPs over the floor, at most 1.01: worst row", flops, flops <= 1.01))
        time = max(over_floor(mine)["median"] for mine in ours)
        found.append(("time over the floor, at most 1.03: worst row", time, time <= 1.03))
        count = max(mine["compilations"] for mine in ours)
        found.append(("compilations over 20 ω, seeds and conditions: worst row", count, count == 1))
    for name, bar in (("interval of 20%", 0.62), ("omega = 0", 0.52)):
        if {"cfg", name} <= set(rows):
            full, part = (np.median(rows[which][OURS]["run_s"]) for which in ("cfg", name))
            text = f"{name}, time over that of full guidance, at most {bar}"
            found.append((text, part / full, bool(part / full <= bar)))
    part = rows.get("interval of 20%", {})
    if "run_s" in part.get("hackable_diffusion", {}):
        gain = over_ours(part, "hackable_diffusion")["median"]
        text = "interval of 20%, hackable_diffusion's time over guidejax's, at least 1.6"
        found.append((text, gain, gain >= 1.6))
    pairs = [over_ours(r, o)["median"] for r in rows.values() for o in timed(r)[1:]]
    if pairs:
        text = "a peer's time over guidejax's, at least 1 but for noise: worst row"
        found.append((text, min(pairs), not list(losses(results))))
    return [
        f"{text}: {value:.4g}, {'reached' if holds else 'NOT reached'}"
        for text, value, holds in found
    ]


# What a revision is compared in, by the words of the table.
QUANTITIES = {
    "time": "run_s",
    "bare evaluations": "floor_s",
    "FLOPs": "flops",
    "first samples": "again_s",
    "instructions": "instructions",
}


def over_then(results: dict[str, Any], row: str, quantity: str) -> np.ndarray:
    """Of this revision over that of the earlier one: (rounds,), or (1,) where it is one number."""
    found = results["rows"][row]
    now, then = (found[name][QUANTITIES[quantity]] for name in (OURS, results["against"]))
    return np.atleast_1d(np.divide(now, then))


def _compared(results: dict[str, Any]) -> list[str]:
    pair = (OURS, results["against"])
    return [n for n, row in results["rows"].items() if all("run_s" in row[who] for who in pair)]


def against_table(results: dict[str, Any]) -> str:
    """This revision over the earlier one; where a row has one of them alone, the other's reason."""
    lines, compared = [], _compared(results)
    for name, row in results["rows"].items():
        if name not in compared:
            whys = {who: row[who]["missing"] for who in row if "missing" in row[who]}
            said = "; ".join(f"{who}: {why}" for who, why in whys.items())
            lines.append([name, said, *[""] * (len(QUANTITIES) - 1)])
            continue
        cells = []
        for quantity in QUANTITIES:
            ratio = over_then(results, name, quantity)
            ends = f" ({ratio.min():.3f}–{ratio.max():.3f})" if len(ratio) > 1 else ""
            cells.append(f"{np.median(ratio):.3f}{ends}")
        lines.append([name, *cells])
    return markdown_table(["", *QUANTITIES], lines)


def slower(results: dict[str, Any]) -> list[str]:
    """Where this revision took more in every round."""
    found = []
    for name in _compared(results):
        for quantity in QUANTITIES:
            ratio = over_then(results, name, quantity)
            if quantity != "bare evaluations" and ratio.min() > 1:
                found.append(f"* *{name}*, {quantity}: {np.median(ratio):.4f}.")
    return found


def against(results: dict[str, Any]) -> str:
    """docs/against.md."""
    size, then = results["size"], results["against"]
    return f"""# Beside an earlier revision

Written by `python -m experiments.benchmarks.sampling --against {then.split()[-1]} --publish`; `docs/benchmarks/against.json` holds every number.

{results["machine"]}; {_share(results["cores"])}, and only one runs at a time. The network is a DiT of width {size["width"]} and depth
{size["depth"]}, {size["dtype"]}, batch {size["batch"]}, {size["steps"]} steps. Both revisions have the same Python, JAX, weights, noise and times, in processes of
their own, and samples that differ by more than {results["tolerance"]:g} of their norm are not timed.

This revision over {then}, below 1 where it takes less: median (least–most) of {results["rounds"]} rounds in turns; of the first samples,
which take tracing, compiling and running, of {results["firsts"]}. The bare evaluations are one program in both, so that their ratio is noise.
FLOPs and instructions are those of the compiled program.

{against_table(results)}

More in every round:

{chr(10).join(slower(results)) or "* Nothing."}
"""


def _bars(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By contender, its time over guidejax's; that of the bare evaluations first."""
    bare = spread(np.divide(row[OURS]["floor_s"], row[OURS]["run_s"]))
    return {BARE: bare, **{other: over_ours(row, other) for other in timed(row)}}


def figure(results: dict[str, Any], path: pathlib.Path) -> None:
    """Bars of time over guidejax's, a group a row, the quartiles of the rounds as whiskers."""
    rows = {name: row for name, row in results["rows"].items() if "run_s" in row[OURS]}
    groups = {name: _bars(row) for name, row in rows.items()}
    count = sum(len(group) + 1 for group in groups.values())
    drawing, axis = plt.subplots(figsize=(8, 1 + 0.17 * count))
    place, top, ticks = 0.0, 1.0, []
    for group in groups.values():
        ticks.append(place + (len(group) - 1) / 2)
        for who, ratio in group.items():
            middle, low, high = ratio["median"], ratio["low"], ratio["high"]
            axis.barh(
                place, middle, 0.9, color=COLORS.get(who), label=who,
                xerr=[[middle - low], [high - middle]], error_kw={"linewidth": 0.8},
            )  # fmt: skip
            axis.text(high, place, f"  {middle:.2f}", va="center", fontsize=7, color="#444444")
            place, top = place + 1, max(top, high)
        place += 1
    axis.axvline(1, color="#444444", linewidth=0.8, linestyle=":")
    axis.set_yticks(ticks, list(groups))
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(place - 1, -1)
    axis.set_xlim(0, 1.1 * top)
    axis.set_xlabel(f"time, as a multiple of {OURS}'s (median and quartiles)")
    axis.spines[["top", "right"]].set_visible(False)
    handles = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    axis.legend(
        handles.values(), handles, frameon=False, fontsize=8, ncols=4, loc="lower left",
        bbox_to_anchor=(0, 1),
    )  # fmt: skip
    drawing.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(drawing)


def _behind(results: dict[str, Any]) -> str:
    lines = []
    for row, other, ratio in losses(results):
        found = results["rows"][row]
        bare = spread(np.divide(found[other]["floor_s"], found[OURS]["floor_s"]))["median"]
        lines.append(
            f"* *{row}*: {other} takes {ratio['median']:.2f} of the time, and its bare evaluations {bare:.2f} of that of {OURS}'s; "
            f"{WHY.get(other, 'unknown')}."
        )
    return "\n".join(lines) or "* On no row, in three of four rounds."


def _left_out(results: dict[str, Any]) -> str:
    lines = [f"* {name}: {why}." for name, why in results["absent"].items()]
    for other in names(results):
        reasons: dict[str, list[str]] = {}
        for row, found in results["rows"].items():
            if "missing" in found[other]:
                reasons.setdefault(found[other]["missing"], []).append(row)
        lines += [f"* {other}, {why}: {', '.join(rows)}." for why, rows in reasons.items()]
    return "\n".join(lines) or "* Nothing."


def _share(cores: int | None) -> str:
    if cores is None:
        return "every contender has it to itself"
    return f"every contender runs on {cores} of them (`--cores`)"


def _passes_left(results: dict[str, Any]) -> str:
    """What the rows leave of the passes of full guidance."""
    steps, lines = results["size"]["steps"], []
    for row in ROWS:
        guided = sum(row.guided(steps))
        if row.name in results["rows"] and guided < steps:
            left = f"leaves {(steps + guided) / (2 * steps):.2g} ({guided} of {steps} steps are guided)"
            lines.append(f"*{row.name}* {left}")
    return f"\nOf the passes of full guidance, {', '.join(lines)}." if lines else ""


def _kernels(backend: str) -> str:
    """How XLA comes to its kernels, where it chooses among several."""
    if backend != "gpu":
        return ""
    return """
* **Kernels**: XLA times several for each operation and takes the fastest. Its choices are kept from contender to contender and from row
  to row: what they share runs on the same kernels, and only the first samples of whoever comes first wait for the choice."""


def files(backend: str) -> tuple[str, str, str]:
    """The page of a backend, its results and its figure, in docs/."""
    if backend == "cpu":
        return "benchmarks.md", "benchmarks/results.json", "benchmarks/figure.png"
    return f"benchmarks-{backend}.md", f"benchmarks/{backend}.json", f"benchmarks/{backend}.png"


def publish(docs: pathlib.Path) -> None:
    """Draw the page and the figure of every backend whose results are in `docs`."""
    published = {b: docs / files(b)[1] for b in ("cpu", "gpu", "tpu")}
    found = [json.loads(path.read_text()) for path in published.values() if path.exists()]
    for results in found:
        path, _, picture = files(results["backend"])
        figure(results, docs / picture)
        (docs / path).write_text(page(results, [other for other in found if other is not results]))


def page(results: dict[str, Any], others: Sequence[dict[str, Any]] = ()) -> str:
    """docs/benchmarks.md, or that of another backend; with links to those of the other results."""
    size, backend = results["size"], results["backend"]
    _, data, picture = files(backend)
    title = "Benchmarks" if backend == "cpu" else f"Benchmarks on a {backend.upper()}"
    elsewhere = "".join(
        f" The same on another machine: [{other['machine']}]({files(other['backend'])[0]})."
        for other in others
    )
    versions = "; ".join(
        f"{name} ({', '.join(f'{package} {v}' for package, v in found.items())})"
        for name, found in results["versions"].items()
    )
    return f"""# {title}

Written by the command below, which installs the other libraries in environments of their own; `docs/{data}` holds every
timing.{elsewhere}

```bash
python -m experiments.benchmarks.sampling {results["options"]}
```

* **Machine**: {results["machine"]}; {_share(results["cores"])}, and only one runs at a time.
* **Network**: a DiT of width {size["width"]}, depth {size["depth"]} and {size["heads"]} heads on {size["image"]} × {size["image"]} × {size["channels"]} in patches of {size["patch"]}, {size["dtype"]}, batch {size["batch"]}, {size["steps"]} steps of
  rectified flow. The JAX contenders share its code; PyTorch has it written again on the same weights.
* **Versions**: {versions}.
* **Same samples**: same weights, noise, labels, times and, where a solver draws noise, the same draws. Samples that differ from
  guidejax's by more than {results["tolerance"]:g} of their norm are not timed; the last table has the differences.
* **Timing**: {results["rounds"]} rounds, all contenders of a row in turn in each; ratios are taken within a round, and printed as median (quartiles).
* **Floor**: the bare network evaluations that a row needs, in `lax.scan`s (for PyTorch, in a Python loop) that do Euler's method
  by hand. It is timed beside its contender, in the same process.{_kernels(backend)}

## Time

guidejax's time, and that of the others as a multiple of it: above 1, guidejax is faster.

{time_table(results)}

![Time of every contender, as a multiple of guidejax's]({picture})

Where guidejax is slower:

{_behind(results)}

Not compared:

{_left_out(results)}

## What guidance costs

FLOPs are counted in the text of the compiled program, loops as often as they run (`experiments/benchmarks/flops.py`).{_passes_left(results)}

{floor_table(results)}

## Programs

Compilations are those over 20 values of ω, each with another seed and other conditions; in guidejax ω = 0 is a program of its own,
without the unconditional pass. Temporary memory is what XLA allots beside arguments and results, or PyTorch's peak on a GPU. The
first samples of a fresh process take compiling and running, without imports.

{programs_table(results)}

## What was aimed at

{chr(10).join(f"* {claim}." for claim in claims(results))}
"""


if __name__ == "__main__":
    publish(ROOT / "docs")

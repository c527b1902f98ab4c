"""docs/scaling.md, of what was compiled."""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import matplotlib

from experiments.benchmarks.report import markdown_table
from experiments.tpu import network
from experiments.tpu.cells import BATCHES, EIGHT, MANY, MOST, ONE, PROGRAMS
from experiments.tpu.chips import CHIPS, chip_of, seconds

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Found = dict[str, Any]
CHIPS_OF = {"v5e:1x1": 1, "v6e:1x1": 1, EIGHT: 8, MANY: 64, MOST: 256}


def pick(results: Found, **fields: Any) -> list[Found]:
    """The cells with these fields that compiled: fewer chips first, then as `PROGRAMS` has them."""
    found = [
        cell
        for cell in results["cells"].values()
        if "error" not in cell and all(cell[name] == value for name, value in fields.items())
    ]
    order = {what: i for i, what in enumerate(PROGRAMS)}
    return sorted(
        found,
        key=lambda c: (CHIPS_OF[c["topology"]], c["topology"], c["model"], order.get(c["what"], 0)),
    )


def sent(cell: Found) -> int:
    """Bytes of the results of its collectives."""
    return sum(kind["bytes"] for kind in cell["collectives"].values())


def place(cell: Found) -> str:
    """`8 v5e, 2 x 4`: its chips, and how they are split."""
    count = CHIPS_OF[cell["topology"]]
    split = f", {count // cell['model']} × {cell['model']}" if cell["model"] > 1 else ""
    return f"{count} {cell['topology'].split(':')[0]}{split}"


def over(results: Found, what: str, passes: str, quantity: str) -> dict[str, float]:
    """What a program takes over its network passes, wherever both were compiled."""
    found = {}
    for cell in pick(results, group="billion", what=what, batch=8):
        like = {"topology": cell["topology"], "model": cell["model"], "batch": 8}
        for bare in pick(results, group="billion", what=passes, **like):
            found[place(cell)] = cell[quantity] / bare[quantity]
    return found


def programs_table(results: Found) -> str:
    """A row for each program of the large network."""
    head = [
        "chips", "program", "TFLOPs", "accessed, GB", "main memory, GB", "arguments, GB",
        "temporaries, GB", "collectives, MB", "roofline, ms", "of",
    ]  # fmt: skip
    rows = []
    for cell in pick(results, group="billion", batch=8):
        times = seconds(chip_of(cell["topology"]), cell["flops"], cell["traffic"], sent(cell))
        longest = max(times, key=lambda name: times[name])
        kinds = ", ".join(f"{each['count']} {name}" for name, each in cell["collectives"].items())
        rows.append([
            place(cell), cell["what"], f"{cell['flops'] / 1e12:.4f}", f"{cell['bytes'] / 1e9:.2f}",
            f"{cell['traffic'] / 1e9:.2f}", f"{cell['arguments'] / 1e9:.2f}",
            f"{cell['temporaries'] / 1e9:.2f}",
            f"{sent(cell) / 1e6:.2f} ({kinds})" if kinds else "0",
            f"{1e3 * times[longest]:.1f}", longest,
        ])  # fmt: skip
    return markdown_table(head, rows)


def ratios_table(results: Found) -> str:
    """Programs over their network passes."""
    rows = []
    for what, passes in (("sampler", "passes"), ("step", "step's passes"), ("rollout", "passes")):
        flops = over(results, what, passes, "flops")
        moved = over(results, what, passes, "bytes")
        traffic = over(results, what, passes, "traffic")
        rows += [
            [what, where, f"{flops[where]:.4f}", f"{moved[where]:.4f}", f"{traffic[where]:.4f}"]
            for where in flops
        ]
    return markdown_table(["program", "chips", "FLOPs", "accessed", "main memory"], rows)


def held(cell: Found) -> float:
    """Bytes that it needs of a chip."""
    return cell["arguments"] + cell["temporaries"] + cell["code"]


def growth(results: Found) -> dict[str, tuple[float, float]]:
    """For each program (bytes at no image, bytes for each image more), from 8 and 16 images."""
    found = {}
    for what in PROGRAMS:
        sizes = {
            cell["batch"]: held(cell)
            for cell in pick(results, group="billion", what=what, topology=EIGHT, model=1)
        }
        if {8, 16} <= set(sizes):
            slope = (sizes[16] - sizes[8]) / 8
            found[what] = sizes[8] - 8 * slope, slope
    return found


def limits_table(results: Found) -> str:
    """How many images a chip holds, by the growth from 8 to 16."""
    chips = ("v5e", "v6e", "h100")
    rows = []
    for what, (fixed, each) in growth(results).items():
        room = [str(int((CHIPS[name].memory - fixed) / each)) for name in chips]
        rows.append([what, f"{fixed / 1e9:.2f}", f"{each / 1e6:.0f}", *room])
    head = ["program", "fixed, GB", "an image, MB", *(CHIPS[name].name for name in chips)]
    return markdown_table(head, rows)


def paper_table(results: Found) -> str:
    """Eight H100s, by the FLOPs and bytes of eight TPUs' programs."""
    rows = []
    for cell in pick(results, group="billion", topology=EIGHT, batch=8):
        times = seconds(CHIPS["h100"], cell["flops"], cell["traffic"], sent(cell))
        split = f"{8 // cell['model']} × {cell['model']}"
        rows.append([cell["what"], split, *(f"{1e3 * t:.2f}" for t in times.values())])
    return markdown_table(["program", "data × model", "FLOPs, ms", "memory, ms", "links, ms"], rows)


def branches_rows(results: Found) -> Iterator[tuple[str, int, dict[str, float]]]:
    """(chip, batch, batched over sequential of each figure)."""
    for topology in ONE:
        for batch in BATCHES:
            pair = [
                pick(results, group="xl", topology=topology, batch=batch, branches=how)
                for how in ("sequential", "batched")
            ]
            if all(pair):
                (one,), (both,) = pair
                names = ("flops", "bytes", "traffic", "cycles", "temporaries")
                yield topology.split(":")[0], batch, {n: both[n] / one[n] for n in names}


def branches_table(results: Found) -> str:
    """Batched branches over sequential ones."""
    rows = [
        [chip, str(batch), *(f"{value:.3f}" for value in ratio.values())]
        for chip, batch, ratio in branches_rows(results)
    ]
    head = ["chip", "images", "FLOPs", "accessed", "main memory", "cycles", "temporaries"]
    return markdown_table(head, rows)


def small_table(results: Found) -> str:
    """What was found in the programs of the small network, by chips."""
    rows = []
    for topology in CHIPS_OF:
        every = [
            c for c in results["cells"].values()
            if c["group"] == "small" and c["topology"] == topology
        ]  # fmt: skip
        if not every:
            continue
        well = [c for c in every if "error" not in c]
        which: dict[str, list[str]] = collections.defaultdict(list)
        for cell in well:
            for name, each in cell["collectives"].items():
                label = f"{each['count']} {name} of {each['bytes']} bytes"
                which[label].append(cell["what"].split(":")[1])
        rows.append([
            place(every[0] | {"model": 1}), str(len(every)), str(len(every) - len(well)),
            str(sum(len(c["narrow"]) for c in well)), str(sum(len(c["host"]) for c in well)),
            "; ".join(f"{label}: {', '.join(names)}" for label, names in which.items()) or "none",
        ])  # fmt: skip
    head = [
        "chips", "programs", "didn't compile", "sums and products below float32",
        "transfers to the host", "collectives",
    ]  # fmt: skip
    return markdown_table(head, rows)


def figure(results: Found, path: pathlib.Path) -> None:
    """Where the time goes on eight chips; and batched over sequential branches."""
    drawing, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    every = list(pick(results, group="billion", topology=EIGHT, batch=8))
    every.sort(key=lambda cell: (PROGRAMS.index(cell["what"]), cell["model"]))
    colors = {"FLOPs": "#4c78a8", "memory": "#e45756", "links": "#72b7b2"}
    for i, cell in enumerate(every):
        times = seconds(chip_of(EIGHT), cell["flops"], cell["traffic"], sent(cell))
        for j, (name, value) in enumerate(times.items()):
            first = name if i == 0 else None
            left.barh(i + (j - 1) / 4, 1e3 * value, 0.24, color=colors[name], label=first)
    left.set_yticks(
        range(len(every)), [f"{c['what']}, {8 // c['model']} × {c['model']}" for c in every]
    )
    left.invert_yaxis()
    left.set_xscale("log")
    left.set_xlabel("ms of each resource on 8 v5e (data × model)")
    left.legend(frameon=False, ncol=3, loc="lower left", bbox_to_anchor=(0, 1))
    rows = list(branches_rows(results))
    for chip, style in (("v5e", "-"), ("v6e", "--")):
        mine = [(batch, ratio) for name, batch, ratio in rows if name == chip]
        if not mine:
            continue
        for quantity, color in (("cycles", "k"), ("bytes", "#e45756"), ("traffic", "#4c78a8")):
            label = {
                "cycles": "compiler's cycles",
                "bytes": "bytes accessed",
                "traffic": "main memory",
            }
            right.loglog(
                [batch for batch, _ in mine], [ratio[quantity] for _, ratio in mine],
                style, color=color, marker="o", ms=3,
                label=f"{label[quantity]}, {chip}",
            )  # fmt: skip
    right.axhline(1, color="#bbbbbb", lw=0.8, zorder=0)
    right.set_xticks(BATCHES, [str(b) for b in BATCHES])
    right.set_yticks([0.5, 0.7, 1, 1.5, 2], ["0.5", "0.7", "1", "1.5", "2"])
    right.minorticks_off()
    right.set_xlabel("images a chip")
    right.set_title("batched over sequential branches", fontsize=10)
    right.legend(frameon=False, fontsize=7)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    drawing.tight_layout()
    drawing.savefig(path, dpi=130)
    plt.close(drawing)


def billion_cells(billion: Found) -> list[Found]:
    """The cells of `experiments.billion`: by compiler, devices, how they are split, program."""
    order = {what: i for i, what in enumerate(("pass", "sampler", "step"))}
    return sorted(
        billion["cells"].values(),
        key=lambda c: (c["platform"], c["devices"], c["model"], order[c["what"]]),
    )


def in_passes(billion: Found, cell: Found) -> float | None:
    """A cell's FLOPs over those of a pass on the same devices, where that was compiled."""
    for bare in billion_cells(billion):
        if all(bare[name] == cell[name] for name in ("platform", "devices", "model", "batch")):
            return cell["flops"] / bare["flops"] if bare["what"] == "pass" else None
    return None


def billion_table(billion: Found) -> str:
    """A row for each program of the SiT."""
    rows = []
    for cell in billion_cells(billion):
        passes = in_passes(billion, cell)
        between = [
            ", ".join(
                f"{each['bytes'] / 1e6:.2f} MB ({each['count']} {kind})"
                for kind, each in cell["collectives"][axis].items()
            )
            for axis in ("data", "model")
        ]
        rows.append([
            {"cpu": "CPU", "tpu": "TPU v5e"}[cell["platform"]],
            f"{cell['devices'] // cell['model']} × {cell['model']}", cell["what"],
            f"{cell['flops'] / 1e12:.3f}", f"{passes:.2f}" if passes else "",
            *(f"{cell[name] / 1e9:.3f}" for name in ("held", "arguments")),
            f"{cell['temporaries'] / 1e6:,.1f}",
            *(each or "none" for each in between),
            f"{cell['largest'] / 1e6:.1f}", f"{cell['seconds']:.0f}",
        ])  # fmt: skip
    head = [
        "compiler", "data × model", "program", "TFLOPs", "in passes", "parameters, GB",
        "arguments, GB", "temporaries, MB", "along data", "along model",
        "largest collective, MB", "to compile, s",
    ]  # fmt: skip
    return markdown_table(head, rows)


def billion_section(billion: Found | None) -> str:
    """What was compiled of a SiT of a billion parameters, 24 blocks deep."""
    if not billion:
        return ""
    every = billion_cells(billion)
    versions = ", ".join(f"{name} {version}" for name, version in billion["versions"].items())
    first = every[0]
    share = max(cell["split"] for cell in every) / first["parameters"]
    gradient = {
        kind["bytes"] for cell in every for kind in cell["collectives"]["data"].values()
    }  # fmt: skip
    gathered = sum(len(cell["gathered"]) for cell in every)
    largest = max(cell["largest"] for cell in every)
    whole = 2 * first["parameters"]
    return f"""
## A SiT of a billion parameters on 8 and 64 devices

Written by

```bash
.venv/bin/python -m experiments.billion --publish
```

with {versions}; the rows of TPUs where libtpu is installed. All numbers are in [scaling/billion.json](scaling/billion.json).

{billion["network"]} of `guidejax.models.dit`: {first["parameters"] / 1e9:.3f} billion parameters in bfloat16, width 1536, 24 blocks, 24 heads, on latents of 32 × 32 × 4,
placed as `dit.load(mesh=)` places them. It is lowered and compiled ahead of time from shapes alone, for virtual CPU devices and for
TPUs that aren't there: **nothing was allocated, run or timed**. 8 images for each device of the data axis. *pass* is the bare network;
*sampler* is `gj.sample` with CFG within 0.2 ≤ t ≤ 0.8, 8 steps; *step* is the program of `gj.fit` for one update of ω(class, s, t) by
self-consistency, with 4 particles an image. All numbers are of **one device**, and a loop's body counts once: the
sampler's program has three loops, before, within and after the interval, with one, two and one pass.

{billion_table(billion)}

- {100 * share:.1f}% of the parameters lie in pieces on the model axis, the rest (embeddings, biases) on every device.
- The network is never put together: of all collectives, {gathered} have a parameter's shape for their result, and the largest result, {largest / 1e6:.1f} MB of
  activations, is {largest / whole:.3f} of the {whole / 1e9:.2f} GB that the parameters take.
- Along the data axis the sampler sends nothing, and the step {" or ".join(f"{n:,}" for n in sorted(gradient))} bytes, once: the gradient of ω (of
  1000 classes) and the loss. All else goes along the model axis and is the network's: two all-reduces of all tokens a block and
  pass, those of the modulations, which are small, and the exchange of q, k and v (collective-permute): they lie in one matrix, whose
  pieces don't end where theirs do.
- XLA for CPUs makes products of bfloat16 in float32: the rows' temporaries are copies of the parameters for the most part, a copy a loop,
  and their collectives send twice the bytes. The TPU's rows are what a chip takes; FLOPs and arguments are the same to a percent. Activations
  that stay on the chip count as no temporaries there.
- Seconds to compile are those of two busy cores, the CPU's programs without LLVM's optimizations.
"""


def page(results: Found, billion: Found | None = None) -> str:
    """docs/scaling.md: of `experiments.tpu`, and of `experiments.billion` where there is some."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    step = pick(results, group="billion", what="step", topology=EIGHT, model=1)
    gradient = {cell["batch"]: sent(cell) for cell in step}
    spread = 0.0
    for what in ("sampler", "step", "rollout"):
        every = pick(results, group="billion", what=what, model=1, batch=8)
        flops = [cell["flops"] for cell in every if cell["topology"].startswith("v5e")]
        spread = max([spread, *(each / min(flops) - 1 for each in flops)])
    done, every_cell = len(results["cells"]), results["asked"]
    missing = (
        "" if done == every_cell else f" {done} of {every_cell} programs have been compiled so far; "
        "the command goes on with the others, and the tables hold what is there."
    )  # fmt: skip
    grows = {what: each for what, (_, each) in growth(results).items()}
    first = max(grows, key=lambda what: grows[what])
    few = {(chip, batch): ratio["cycles"] for chip, batch, ratio in branches_rows(results)}
    return f"""# What guidejax does on TPUs, by their compiler

Written by

```bash
.venv/bin/pip install -e ".[tpu]" && .venv/bin/python -m experiments.tpu --publish
```

with {versions}. **Nothing on this page was run on a TPU or timed.** The TPU's compiler needs none: it compiles for chips that it is
told of, and its programs have their collectives and casts in their text and say how much memory they need. All numbers are in
[scaling/results.json](scaling/results.json).{missing}

How to read the numbers:

- They are of **one chip** and **one step** of the sampler, or one update of φ: XLA counts the body of a loop once, whatever the number
  of its trips. A rollout's backward pass is a loop of its own, so that its row is a step forwards and the same step backwards.
- *accessed* is XLA's count of bytes, in which what is fetched from main memory to the chip ahead of its use counts up to three
  times. *main memory* is what crosses to main memory and back, read off the program's text.
- *roofline* is the time of the busiest of the three resources: FLOPs, main memory, links to other chips, each at the rate that the maker
  publishes (`experiments/tpu/chips.py`). No program reaches it.
- The network is a DiT of {network.BILLION.parameters / 1e9:.2f} billion parameters in bfloat16, frozen, on latents of 32 × 32 × 4: width
  {network.BILLION.width}, {network.BILLION.depth} layers, for each layer takes the compiler its time. 8 images a chip of the data axis; self-consistency has 4 particles an
  image; the rollout has groups of 4. "2 × 4" is data × model: heads and hidden units split over 4 chips.

## What was found in the programs

Every rule, schedule, solver, objective, kept statistic and choice of the sampler, on a small network with a bfloat16 state:

{small_table(results)}

Two rules whose state lets passes go, `adaptive` and `cached_difference`, ask once an evaluation whether any chip's samples still want
them, with the four bytes of a flag. A gradient in ω is summed over the batch, once. A rollout that compares samples across chips
(*pooled*, with β = 1) sends their features once, and the sum of their gradients comes back; on 256 chips the compiler gathers by a
sum. Nothing else is sent.

Sums and products of float32 that a TPU would make in bfloat16 were found in one place, the products of `OmegaNet`, and mended: they
ask for full precision now.

## The sampler and the steps on a large network

{programs_table(results)}

FLOPs a chip are the same on all numbers of v5e chips, to {100 * spread:.2f}%. The one collective of a data-parallel step is the
all-reduce of ω's gradient and the loss, {gradient[8]} bytes at 8 images a chip and {gradient[16]} at 16; a data-parallel sampler has none. With the
network split over "model" the collectives are the network's own: the sampler's are those of its passes.

Over the bare network passes:

{ratios_table(results)}

A step of self-consistency is two passes and little else. A rollout's row is a step of the sampler, the same again (`remat`) and its
gradient in x, beside the passes of the step alone.

![Where the time goes; batched over sequential branches](scaling/figure.png)

## What breaks first

Memory, and the {first}'s first: arguments, temporaries and code grow from 8 to 16 images a chip by {grows[first] / 1e6:.0f} MB an image, those of
the sampler by {grows["sampler"] / 1e6:.0f} MB. Going on like this, a chip holds so many images:

{limits_table(results)}

For more than that, split the network (`model`) or the batch. Next are the links, for the network's own collectives where it is split,
never for guidejax's. What the host feeds and saves isn't in these programs.

To check it on the machine: `device.memory_stats()["peak_bytes_in_use"]` after a step, beside arguments and temporaries above; and a
trace (`jax.profiler.trace`) of ten steps, whose longest collective should be shorter than its row's roofline. FLOPs over the
measured time over the chip's rate is the share of the roofline that was reached.

## Eight H100s, on paper

The time of each resource if H100s moved the bytes that TPUs do. XLA's programs for GPUs differ: take it to the nearest factor of two.

{paper_table(results)}

## One pass or two

`gj.sample` makes the conditional and the unconditional pass one after the other, or as one pass over a batch of both
(`branches="batched"`). Batched over sequential, a DiT of width {network.XL.width}, {network.XL.depth} layers, of which *cycles* is the
compiler's own estimate of the time:

{branches_table(results)}

The FLOPs are the same. One pass reads the parameters once, but what it works on is twice as large, and past a few images no longer fits
on the chip beside the weights: it goes to main memory and back. *accessed* doesn't see this, the cycles do: batched branches take
{few["v5e", 1]:.2f} of the time at 1 image, {few["v5e", 4]:.2f} at 4 and {few["v5e", 8]:.2f} at 8 on v5e. So `branches="auto"`, the default, is "batched" for up to 4 images a
device and "sequential" for more.
{billion_section(billion)}"""


def read_billion(docs: pathlib.Path) -> Found | None:
    """What `experiments.billion` published."""
    path = docs / "scaling" / "billion.json"
    return json.loads(path.read_text()) if path.exists() else None


def publish_billion(billion: Found, docs: pathlib.Path) -> None:
    """Write its numbers, over those of the same cells, and the page anew."""
    before = read_billion(docs) or {"cells": {}, "versions": {}}
    cells = before["cells"] | billion["cells"]
    versions = before["versions"] | billion["versions"]
    ordered = billion_cells({"cells": cells})
    names = {id(cell): name for name, cell in cells.items()}
    billion = {
        "network": billion["network"],
        "versions": {name: versions[name] for name in sorted(versions)},
        "cells": {names[id(cell)]: cell for cell in ordered},
    }
    folder = docs / "scaling"
    (folder / "billion.json").write_text(json.dumps(billion, indent=1) + "\n")
    results = json.loads((folder / "results.json").read_text())
    (docs / "scaling.md").write_text(page(results, billion))


def publish(results: Found, docs: pathlib.Path) -> None:
    """Write the page, its picture and its numbers."""
    folder = docs / "scaling"
    folder.mkdir(parents=True, exist_ok=True)
    figure(results, folder / "figure.png")
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (docs / "scaling.md").write_text(page(results, read_billion(docs)))

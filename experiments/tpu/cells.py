"""What is compiled: the list of cells, each a program for some chips."""

from __future__ import annotations

import dataclasses

ONE = ("v5e:1x1", "v6e:1x1")  # what Colab lends
EIGHT, MANY, MOST = "v5e:2x4", "v5e:8x8", "v5e:16x16"
PROGRAMS = ("sampler", "passes", "step", "step's passes", "rollout")
BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A program, by names and numbers alone.

    Attributes:
        group: "small", a part of the library on a small network; "billion", a frozen network of a
            billion parameters; "xl", one of DiT-XL's width.
        what: The part of the library, `rule:adg`; or a program of `programs.LARGE`.
        topology: The chips, as libtpu names them.
        model: Chips that a network is split over; the batch is split over the others.
        batch: Images a chip.
        branches: How the passes of an evaluation are made.
    """

    group: str
    what: str
    topology: str
    model: int = 1
    batch: int = 8
    branches: str = "sequential"

    @property
    def name(self) -> str:
        """A name for a file or a line."""
        split = f" model {self.model}" if self.model > 1 else ""
        how = f" {self.branches}" if self.branches != "sequential" else ""
        return f"{self.group} {self.what} on {self.topology}{split}, batch {self.batch}{how}"


def small(topologies: tuple[str, ...] = (EIGHT, *ONE, MOST)) -> list[Cell]:
    """Every rule, schedule, solver, objective, kept statistic and choice."""
    import guidejax as gj
    from experiments.tpu import programs

    parts = [f"rule:{name}" for name in gj.rules.RULES]
    parts += [f"schedule:{name}" for name in gj.schedules.SCHEDULES]
    parts += [f"solver:{name}" for name in programs.SOLVERS]
    parts += [f"objective:{name}" for name in programs.OBJECTIVES]
    parts += [f"choice:{name}" for name in programs.CHOICES]
    return [Cell("small", part, topology) for topology in topologies for part in parts]


def billion() -> list[Cell]:
    """The sampler and the steps, beside their network passes."""
    steps = ("sampler", "step", "rollout")
    found = [Cell("billion", what, place) for place in (EIGHT, *ONE, MOST) for what in PROGRAMS]
    found += [Cell("billion", what, EIGHT, model=4) for what in PROGRAMS]
    found += [Cell("billion", what, MANY) for what in steps]
    found += [Cell("billion", what, place, model=4) for place in (MANY, MOST) for what in steps]
    # More images a chip: what grows of the memory, and what a collective doesn't see.
    return found + [Cell("billion", what, EIGHT, batch=16) for what in steps]


def branches() -> list[Cell]:
    """Both ways to make two passes, for every batch."""
    return [
        Cell("xl", "sampler", topology, batch=batch, branches=how)
        for topology in ONE
        for batch in BATCHES
        for how in ("sequential", "batched")
    ]

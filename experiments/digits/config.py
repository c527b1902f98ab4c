"""The protocols of the digits experiment: what is run, on which seeds, images and networks."""

from __future__ import annotations

import dataclasses
from typing import Literal

NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of networks, samples and learning.

    Attributes:
        denoisers: The updates after which each is stopped, by its name.
        classifier_steps: Updates of each classifier.
        tune_samples: Samples that a search scores a setting by.
        report_samples: Samples of the report.
        updates: Updates of a learned weight.
        group: Samples of a class in a batch that weights are learned from.
        sampling_steps: Steps of the sampler.
        hidden: Units of the denoiser.
        depth: Its blocks.
        batch: Examples of an update of networks.
    """

    denoisers: tuple[tuple[str, int], ...] = (("under-trained", 800), ("well-trained", 8000))
    classifier_steps: int = 600
    tune_samples: int = 1000
    report_samples: int = 2000
    updates: int = 1000
    group: int = 24
    sampling_steps: int = 16
    hidden: int = 128
    depth: int = 3
    batch: int = 128


SEARCHED = (
    "unguided", "constant", "interval", "clamp-linear", "triangular", "beta", "adg", "apg",
    "interval per class", "adg per class",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Everything that a result depends on.

    Attributes:
        learned: Learned methods. The first is the one that claims are about, and is gated too.
        report: Which networks measure, a name of `networks.REPORTS`.
        seeds: Of networks, learning and noise.
        each: Seeds of a fold.
        deal: Seed of the order in which the images are parted.
        tuned: Methods that are searched, or have nothing to search.
        plain: Settings that a search scores of a method whose numbers are the same for all classes.
        per_class: Settings for each number, of a method that has numbers for each class.
        rescored: Best settings of a search that are scored once more, on four times the samples and
            other noise, so that a search of many numbers doesn't end in what fits one draw; or 0.
        sizes: Of networks, samples and learning.
        judged: Whether claims are made of it.
    """

    learned: tuple[str, ...]
    report: str
    seeds: tuple[int, ...]
    each: int
    deal: int
    tuned: tuple[str, ...] = SEARCHED
    plain: int = 192
    per_class: int = 32
    rescored: int = 0
    sizes: Sizes = Sizes()
    judged: bool = True

    def __post_init__(self):
        # What gated weights, the oracle and the tables' ratios are made with.
        missing = {"unguided", "constant", "interval"} - {*self.tuned}
        if missing:
            raise ValueError(f"a protocol expects {', '.join(sorted(missing))} among its methods.")
        if len(self.seeds) % self.each:
            raise ValueError(f"{len(self.seeds)} seeds are no multiple of {self.each} a fold.")

    @property
    def folds(self) -> int:
        """Parts of the images; each is reported on by `each` seeds, which see no more of it."""
        return len(self.seeds) // self.each

    def fold(self, seed: int) -> int:
        """The fold that a seed is reported on."""
        return self.seeds.index(seed) // self.each


Name = Literal["quick", "choice", "full", "mended"]

PROTOCOLS: dict[Name, Protocol] = {
    # Two denoisers, searched and learned a little: minutes, pictures, and nothing to go by.
    "quick": Protocol(
        learned=(
            "rollout", "rollout, times alone", "rollout, along and across", "self-consistency",
        ),
        report="choice", seeds=(90, 91), each=1, deal=490, plain=12, per_class=1, judged=False,
        sizes=Sizes(denoisers=(("under-trained", 800),), updates=150, group=20, tune_samples=600,
                    report_samples=1000),
    ),
    # Where forms and objectives are chosen: no claims.
    "choice": Protocol(
        learned=(
            "rollout", "rollout, times alone", "rollout, along and across",
            "rollout, along and across, any sign",
            "rollout, times alone, along and across, any sign", "rollout, low and high",
            "rollout, seeing delta and angle", "rollout, all true samples",
            "rollout, along and across, any sign, all true samples",
            "rollout, features made equal", "rollout, energy distance", "self-consistency", "l2",
        ),
        report="choice", seeds=tuple(range(200, 206)), each=1, deal=520,
        tuned=("unguided", "constant", "interval", "adg", "apg"), rescored=8, judged=False,
        sizes=Sizes(denoisers=(("under-trained", 800),), updates=400),
    ),
    # Frozen before they were run.
    "full": Protocol(
        learned=("rollout", "rollout, times alone", "rollout, along and across"),
        report="full", seeds=tuple(range(100, 120)), each=4, deal=500,
    ),
    "mended": Protocol(
        learned=(
            "rollout, along and across, any sign, all true samples",
            "rollout, times alone, along and across, any sign", "rollout", "self-consistency",
        ),
        report="mended", seeds=tuple(range(300, 310)), each=2, deal=540,
        tuned=(*SEARCHED, "apg per class"), rescored=8,
    ),
}  # fmt: skip

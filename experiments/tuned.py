"""The usual guidance, each with the numbers that a search of it moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import guidejax as gj
from experiments.tuning import Number, Numbers

OMEGA = Number(1.0, 0.5, lo=0.0)
LO, HI = Number(0.2, 0.2, lo=0.0, hi=1.0), Number(0.8, 0.2, lo=0.0, hi=1.0)
ETA = Number(1.0, 0.5)
SHARE = Number(0.5, 0.25, lo=0.0, hi=1.0)
CAP = Number(float(np.pi / 3), 0.4, lo=0.0, hi=float(np.pi))
RADIUS = Number(10.0, 5.0, lo=0.0)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A method that is searched: its numbers, and the guidance that they make."""

    space: Mapping[str, Number]
    guide: Callable[..., gj.Guidance]
    allowed: Callable[[Numbers], bool] = lambda numbers: True


def ordered(numbers: Numbers) -> bool:
    """Whether each "lo" is below its "hi"."""
    return all(
        numbers[name] < numbers[name.replace("lo", "hi")] for name in numbers if name[:2] == "lo"
    )


def _cfg(weight: Callable[..., Any]) -> Callable[..., gj.Guidance]:
    return lambda **numbers: gj.guidance(gj.cfg, weight(**numbers))


def _rule(rule: Any) -> Callable[..., gj.Guidance]:
    return lambda **numbers: gj.guidance(rule, **numbers)


TUNED: dict[str, Tuned] = {
    "unguided": Tuned({}, lambda: gj.guidance(gj.cfg, 0.0)),
    "constant": Tuned({"omega": OMEGA}, _rule(gj.cfg)),
    "interval": Tuned(
        {"value": OMEGA, "lo": LO, "hi": HI}, _cfg(gj.interval), ordered
    ),
    "clamp-linear": Tuned(
        {"mean": OMEGA, "floor": Number(0.0, 0.25, lo=0.0)}, _cfg(gj.schedules.clamp_linear)
    ),
    "triangular": Tuned({"mean": OMEGA}, _cfg(gj.schedules.triangular)),
    "beta": Tuned(
        {"mean": OMEGA, "a": Number(2.0, 0.5, lo=1.0), "b": Number(2.0, 0.5, lo=1.0)},
        _cfg(gj.schedules.beta_curve),
    ),
    "adg": Tuned({"omega": OMEGA, "max_angle": CAP}, _rule(gj.adg)),
    "apg": Tuned({"omega": OMEGA, "eta": ETA, "max_norm": RADIUS}, _rule(gj.apg)),
    "cfg-zero": Tuned({"omega": OMEGA}, _rule(gj.rules.cfg_zero)),
    "rescale": Tuned(
        {"omega": OMEGA, "phi": SHARE},
        lambda omega, phi: gj.guidance(
            gj.chain(gj.cfg, gj.rescale.bind(phi=phi)), omega
        ),
    ),
    "norm cap": Tuned(
        {"omega": OMEGA, "rho": Number(1.0, 0.2, lo=0.0)},
        lambda omega, rho: gj.guidance(
            gj.chain(gj.cfg, gj.rules.norm_cap.bind(rho=rho)), omega
        ),
    ),
}  # fmt: skip

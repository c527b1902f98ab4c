"""The usual guidance, each with the numbers that a search of it moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

import guidejax as gj
from experiments.tuning import Number, Numbers, Search, search

OMEGA = Number(1.0, 0.5, lo=0.0, least=0.015)
# A quarter of the time at first, a sixteenth at last: about a step of a sampler.
LO, HI = (Number(s, 0.25, lo=0.0, hi=1.0, least=1 / 16) for s in (0.25, 0.75))
ETA = Number(1.0, 0.5, least=0.1)
SHARE = Number(0.5, 0.25, lo=0.0, hi=1.0, least=0.05)
CAP = Number(float(np.pi / 3), 0.7, lo=0.001, hi=float(np.pi), least=0.1, log=True)
RADIUS = Number(10.0, 0.7, lo=0.001, least=0.1, log=True)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A method that is searched.

    Attributes:
        space: Its numbers.
        guide: The guidance that they make.
        allowed: Settings that make sense.
        after: The method that is a special case of it, and is searched first.
        begin: That method's numbers as its own: where its search begins. Where they are that very
            method it is never worse where it is searched; ADG at a constant's ω is another method.
        others: Other starts, far from there.
        together: Numbers that are also moved at once.
    """

    space: Mapping[str, Number]
    guide: Callable[..., gj.Guidance]
    allowed: Callable[[Numbers], bool] = lambda numbers: True
    after: str | None = None
    begin: Callable[[Numbers], Numbers] = dict
    others: tuple[Numbers, ...] = ()
    together: tuple[tuple[str, ...], ...] = ()

    def search(
        self, score: Callable[[Numbers], float], budget: int, special: Numbers | None = None,
        trace: Iterable[tuple[Numbers, float]] = (), more: Iterable[Numbers] = (),
    ) -> Search:  # fmt: skip
        """`tuning.search` from every start, and `more`; `special` is where `after` ended."""
        starts = [*([self.begin(special)] if special else []), *self.others, *more]
        return search(
            score, self.space, budget, self.allowed, starts, self.together, trace
        )  # fmt: skip


def ordered(numbers: Numbers) -> bool:
    """Whether each "lo" is below its "hi"."""
    return all(
        numbers[name] < numbers[name.replace("lo", "hi")] for name in numbers if name[:2] == "lo"
    )


def as_constant(name: str = "omega", **rest: float) -> dict[str, Any]:
    """What says that a method is the constant where ω has this name and the others these values."""
    return {"after": "constant", "begin": lambda numbers: {name: numbers["omega"], **rest}}


def per(count: int, plain: str, shared: tuple[str, ...] = (), **names: str) -> dict[str, Any]:
    """What says that a method is the plain one where each of `count` classes has the same numbers.

    `names` are the plain method's by those of the classes'; `shared` are one for all classes.
    """

    def begin(numbers: Numbers) -> Numbers:
        each = {f"{own} {c}": numbers[of] for c in range(count) for own, of in names.items()}
        return each | {name: numbers[name] for name in shared}

    return {"after": plain, "begin": begin}


def _cfg(weight: Callable[..., Any]) -> Callable[..., gj.Guidance]:
    return lambda **numbers: gj.guidance(gj.cfg, weight(**numbers))


def _rule(rule: Any) -> Callable[..., gj.Guidance]:
    return lambda **numbers: gj.guidance(rule, **numbers)


# The constant is first: others begin where it ends.
TUNED: dict[str, Tuned] = {
    "unguided": Tuned({}, lambda: gj.guidance(gj.cfg, 0.0)),
    "constant": Tuned({"omega": OMEGA}, _rule(gj.cfg)),
    "interval": Tuned(
        {"value": OMEGA, "lo": LO, "hi": HI}, _cfg(gj.interval), ordered,
        together=(("lo", "hi"),), **as_constant("value", lo=0.0, hi=1.0),
    ),
    "clamp-linear": Tuned(
        {"mean": OMEGA, "floor": Number(0.0, 0.25, lo=0.0)}, _cfg(gj.schedules.clamp_linear),
        **as_constant("floor", mean=0.0),
    ),
    "triangular": Tuned({"mean": OMEGA}, _cfg(gj.schedules.triangular), **as_constant("mean")),
    "beta": Tuned(
        {"mean": OMEGA, "a": Number(2.0, 0.5, lo=1.0, least=0.1),
         "b": Number(2.0, 0.5, lo=1.0, least=0.1)},
        _cfg(gj.schedules.beta_curve), **as_constant("mean", a=1.0, b=1.0),
    ),
    "adg": Tuned(
        {"omega": OMEGA, "max_angle": CAP}, _rule(gj.adg),
        others=({"omega": 3.0, "max_angle": 0.1},), **as_constant(max_angle=float(np.pi / 3)),
    ),
    "apg": Tuned(
        {"omega": OMEGA, "eta": ETA, "max_norm": RADIUS}, _rule(gj.apg),
        others=({"omega": 3.0, "eta": 0.0, "max_norm": 1.0},),
        **as_constant(eta=1.0, max_norm=100.0),
    ),
    "cfg-zero": Tuned({"omega": OMEGA}, _rule(gj.rules.cfg_zero), **as_constant()),
    "rescale": Tuned(
        {"omega": OMEGA, "phi": SHARE},
        lambda omega, phi: gj.guidance(
            gj.chain(gj.cfg, gj.rescale.bind(phi=phi)), omega
        ),
        **as_constant(phi=0.0),
    ),
    "norm cap": Tuned(
        {"omega": OMEGA, "rho": Number(1.0, 0.2, lo=0.0, least=0.02)},
        lambda omega, rho: gj.guidance(
            gj.chain(gj.cfg, gj.rules.norm_cap.bind(rho=rho)), omega
        ),
        **as_constant(rho=2.0),
    ),
}  # fmt: skip

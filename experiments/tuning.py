"""Tuning by direct search: as many settings for every method, no edges but natural ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

Numbers = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Number:
    """A number that is searched.

    Attributes:
        start: Where the search begins.
        step: Its first step, which doubles where it helps and halves where it doesn't.
        lo: Where the number ends by nature, None for nowhere.
        hi: Likewise.
    """

    start: float
    step: float
    lo: float | None = None
    hi: float | None = None

    def clip(self, value: float) -> float:
        """The value within the ends, to six digits: nearby settings are one."""
        value = value if self.lo is None else max(value, self.lo)
        value = value if self.hi is None else min(value, self.hi)
        return round(value, 6)


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        numbers: The setting of the least score.
        score: Its score.
        trace: Every setting that was scored, in order, with its score.
    """

    numbers: Numbers
    score: float
    trace: list[tuple[Numbers, float]]


def search(
    score: Callable[[Numbers], float],
    space: Mapping[str, Number],
    budget: int,
    allowed: Callable[[Numbers], bool] = lambda numbers: True,
) -> Search:
    """The setting with the least score that `budget` scores find, by coordinate search.

    From the start, each number in turn is moved by its step, up and down. The first move that
    lowers the score is taken, and that number's step doubles; where neither does, it halves. So
    the search leaves any region that it began in, and refines what it ends in. (Hooke and Jeeves,
    Direct search solution of numerical and statistical problems, 1961, without pattern moves.)

    Args:
        score: What is minimised. A setting that came up before isn't scored again.
        space: The numbers.
        budget: How often `score` is called at most, at least once.
        allowed: Settings that make sense; others are passed over, at no cost.

    Example:
        >>> found = search(lambda n: (n["x"] - 7.3) ** 2, {"x": Number(1.0, 0.5)}, 30)
        >>> abs(found.numbers["x"] - 7.3) < 0.1, len(found.trace) <= 30
        (True, True)
    """
    if budget < 1:
        raise ValueError(f"search expects a budget of at least 1 score, got {budget}.")
    known: dict[tuple[float, ...], float] = {}
    trace: list[tuple[Numbers, float]] = []

    def value(numbers: Numbers) -> float:
        row = tuple(numbers.values())
        if row not in known:
            known[row] = score(numbers)
            trace.append((numbers, known[row]))
        return known[row]

    best = {name: number.clip(number.start) for name, number in space.items()}
    least = value(best)
    steps = {name: number.step for name, number in space.items()}
    first = dict.fromkeys(space, 1.0)  # The direction to try first: the last that helped.
    idle = 0
    while len(trace) < budget and space and idle < 20:
        idle += 1
        for name, number in space.items():
            moved = False
            for sign in (first[name], -first[name]):
                there = {**best, name: number.clip(best[name] + sign * steps[name])}
                if len(trace) >= budget or not allowed(there):
                    continue
                before = len(trace)
                found = value(there)
                idle = 0 if len(trace) > before else idle
                if found < least:
                    best, least, moved, first[name] = there, found, True, sign
                    break
            steps[name] *= 2 if moved else 0.5
    return Search(best, least, trace)

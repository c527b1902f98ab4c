"""Tuning by direct search: as many settings for every method, no edges but natural ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

Numbers = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Number:
    """A number that is searched.

    Attributes:
        start: Where the search begins, if nothing better is known.
        step: Its first step, which doubles where it helps and halves where it doesn't.
        lo: Where the number ends by nature, None for nowhere.
        hi: Likewise.
        least: The smallest step worth a try.
        log: Whether it is moved by factors e^step, for what may be of any size.
    """

    start: float
    step: float
    lo: float | None = None
    hi: float | None = None
    least: float = 0.01
    log: bool = False

    def moved(self, value: float, by: float) -> float:
        """The value `by` steps' length further, within the ends."""
        return self.clip(value * math.exp(by) if self.log else value + by)

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
        rests: Whether no step that is worth a try lowers the score.
    """

    numbers: Numbers
    score: float
    trace: list[tuple[Numbers, float]]
    rests: bool


def search(
    score: Callable[[Numbers], float],
    space: Mapping[str, Number],
    budget: int,
    allowed: Callable[[Numbers], bool] = lambda numbers: True,
    starts: Iterable[Numbers] = (),
    together: Iterable[tuple[str, ...]] = (),
    trace: Iterable[tuple[Numbers, float]] = (),
) -> Search:
    """The setting with the least score that `budget` scores find, by coordinate search.

    All starts are scored, and the search goes on from the best. Each number in turn is moved by its
    step, up and down. The first move that lowers the score is taken, and that number's step
    doubles. Where neither does, it halves, down to the smallest that is worth a try; where the
    score doesn't change at all, as that of a cap that doesn't bind, it doubles instead. When
    nothing is left to try, the steps begin anew at their first length, from the best. So the search
    leaves any region that it began in, and refines what it ends in. (Hooke and Jeeves, Direct
    search solution of numerical and statistical problems, 1961, without pattern moves.)

    Args:
        score: What is minimised. A setting that came up before isn't scored again.
        space: The numbers.
        budget: How often `score` is called at most, at least once, with what `trace` holds.
        allowed: Settings that make sense; others are passed over, at no cost.
        starts: Settings to begin at beside the numbers' own starts: what special cases of the
            method were found to be best at, so that it is never worse here than they are.
        together: Numbers that are also moved at once by the step of the first, as both ends of a
            window are.
        trace: Settings that were scored already, with their scores.

    Example:
        >>> found = search(lambda n: (n["x"] - 7.3) ** 2, {"x": Number(1.0, 0.5)}, 30)
        >>> abs(found.numbers["x"] - 7.3) < 0.1, len(found.trace) <= 30
        (True, True)
    """
    if budget < 1:
        raise ValueError(f"search expects a budget of at least 1 score, got {budget}.")
    row = lambda numbers: tuple(numbers[name] for name in space)  # noqa: E731
    scored = list(trace)
    known = {row(numbers): value for numbers, value in scored}

    def value(numbers: Numbers) -> float | None:
        """The score of a setting, None where there is no budget for it."""
        if row(numbers) not in known:
            if len(scored) >= budget:
                return None
            known[row(numbers)] = score(numbers)
            scored.append((numbers, known[row(numbers)]))
        return known[row(numbers)]

    own = {name: number.start for name, number in space.items()}
    for start in ({name: n.clip(each[name]) for name, n in space.items()}
                  for each in (own, *starts)):  # fmt: skip
        if allowed(start):
            value(start)
    best, least = min(scored, key=lambda each: each[1])
    moves = [(name,) for name in space] + [tuple(names) for names in together]
    first = {move: space[move[0]].step for move in moves}
    sign, rests = dict.fromkeys(moves, 1.0), False
    while space and not rests and len(scored) < budget:
        begun, steps = least, dict(first)
        wide = dict.fromkeys(moves, True)  # Whether a score that doesn't change widens the step.
        while any(steps[move] >= space[move[0]].least for move in moves) and len(scored) < budget:
            for move in moves:
                if steps[move] < space[move[0]].least:
                    continue
                ties = 0
                for way in (sign[move], -sign[move]):
                    there = best | {n: space[n].moved(best[n], way * steps[move]) for n in move}
                    found = value(there) if allowed(there) and there != best else math.inf
                    if found is not None and found < least:
                        best, least, sign[move] = there, found, way
                        steps[move] *= 2
                        break
                    ties += found == least
                else:
                    wide[move] &= ties > 0 and steps[move] < 8 * first[move]
                    steps[move] = (
                        2 * steps[move] if wide[move] else min(steps[move], first[move]) / 2
                    )
        rests = least == begun and len(scored) < budget
    return Search(best, least, scored, rests)

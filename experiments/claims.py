"""What papers claim, beside what was measured: one shape for all experiments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

HOLDS, PARTLY, FAILS = "holds", "in part", "doesn't hold"
# A figure that nobody claimed.
NO_CLAIM = "measured, no claim"
VERDICTS = (HOLDS, PARTLY, FAILS, NO_CLAIM)


class Claim(NamedTuple):
    """A claim put to the test.

    Attributes:
        claim: What is claimed.
        source: Where: a theorem, an equation, or "derived here".
        measured: What was measured, with its intervals.
        verdict: One of `VERDICTS`.
        figure: The picture that shows it, a path below docs/, where there is one.
    """

    claim: str
    source: str
    measured: str
    verdict: str
    figure: str = ""


def estimate(value: Mapping[str, float]) -> str:
    """{"mean", "low", "high", "level"} as text; the ends may be missing, and the level if it is 95.

    Example:
        >>> estimate({"mean": 0.9, "low": 0.85, "high": 0.96})
        '0.900 (0.850 to 0.960)'
        >>> estimate({"mean": 0.9, "low": 0.8, "high": 1.0, "level": 99.29})
        '0.900 (0.800 to 1.000 at 99.3%)'
    """
    text = f"{value['mean']:.3f}"
    if "low" not in value:
        return text
    level = f" at {value['level']:.1f}%" if "level" in value else ""
    return f"{text} ({value['low']:.3f} to {value['high']:.3f}{level})"


def verdict(each: list[bool]) -> str:
    """Whether all, some or none of the cases bear a claim out.

    Example:
        >>> verdict([True, False])
        'in part'
    """
    if not each:
        raise ValueError("no case to judge a claim by.")
    return HOLDS if all(each) else PARTLY if any(each) else FAILS

"""Methods that met the same noise and the same real pictures, compared pair by pair."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.stats

from experiments.statistics import geometric_mean, paired_ratio_interval


def ratio(
    ours: npt.ArrayLike,
    theirs: npt.ArrayLike,
    drawn: npt.ArrayLike = (),
    confidence: float = 0.95,
) -> dict[str, float]:
    """The paired ratio of two methods' distances as {"mean", "low", "high"}.

    Args:
        ours: A method's distances, one a pair.
        theirs: Those of the other, from the same noise and beside the same real pictures.
        drawn: The ratio beside real pictures that are drawn anew, a number a draw: by how it varies
            the interval over pairs is widened.
        confidence: Of the interval. One pair has none.

    Example:
        >>> found = ratio([9.0, 18.0, 28.0], [10.0, 20.0, 30.0])
        >>> round(found["mean"], 3), found["high"] < 1
        (0.911, True)
        >>> ratio([9.0], [10.0])
        {'mean': 0.9}
    """
    ours, theirs, drawn = (np.asarray(each, np.float64) for each in (ours, theirs, drawn))
    if len(ours) < 2:
        return {"mean": geometric_mean(ours / theirs)}
    found = paired_ratio_interval(ours, theirs, confidence)
    pairs = float(np.log(found.high / found.estimate))
    spread = float(np.std(np.log(drawn), ddof=1)) if len(drawn) > 1 else 0.0
    half = float(np.hypot(pairs, scipy.stats.norm.ppf((1 + confidence) / 2) * spread))
    mean = float(found.estimate)
    return {"mean": mean, "low": mean * float(np.exp(-half)), "high": mean * float(np.exp(half))}

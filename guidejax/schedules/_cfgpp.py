"""CFG++ as a schedule: the ω that makes a step of DDIM one of CFG++."""

from __future__ import annotations

from typing import Any

from guidejax._arrays import Array
from guidejax.processes import Process
from guidejax.schedules.base import curve, require, schedule
from guidejax.weights.base import Step, Weight


def cfgpp_omega(process: Process, s: Array, t: Array, lam: Array | float) -> Array:
    """The ω whose DDIM step t → s is the CFG++ step of λ: (ω + 1) = λ α_s σ_t/(α_s σ_t − σ_s α_t).

    Args:
        process: The noising process.
        s: The time denoised to, scalar or (batch,).
        t: The time denoised from, s < t.
        lam: λ, as in `cfgpp`.

    Returns:
        ω, the excess; λ − 1 on the last step, into s = 0.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> round(float(cfgpp_omega(rectified_flow(), 0.25, 0.5, 0.6)), 4)
        -0.1
    """
    left = process.alpha(t) * process.sigma(s) / (process.alpha(s) * process.sigma(t))
    return lam / (1 - left) - 1


def _cfgpp(step: Step, lam: Array) -> Array:
    process, s = (step.needs(what, "cfgpp") for what in ("process", "s"))
    return cfgpp_omega(process, s, step.t, lam)


@schedule(keeps=None, source="Chung et al. 2406.08070", acts_on="total", example={"lam": 0.6})
def cfgpp(lam: Any = 0.6) -> Weight:
    """CFG++ on DDIM: (ω + 1) = λ α_s σ_t/(α_s σ_t − σ_s α_t) for the step t → s.

    CFG++ denoises with x̂0 = u + λ (c − u) and adds back the unconditional noise (Chung et al.
    2406.08070); that is a DDIM step of CFG with this weight, on every process.
    `solvers.cfgpp` does the same on other solvers. Acts on ω + 1, which grows as the steps get
    shorter: it keeps neither mean nor peak. ω is rarely 0 but often negative, where the sample is
    less conditional than c: every step makes the unconditional pass.

    Args:
        lam: λ in [0, 1], which is no ω: on the paper's grid 0.6 is about ω = 6.5, 0 is the
            unconditional model. A number, (batch,) numbers or any `Weight`.

    Raises:
        ValueError: If λ is not in [0, 1].

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> [round(float(cfgpp(0.6)(s, 0.5, process=rectified_flow())), 4) for s in (0.4, 0.0)]
        [0.8, -0.4]
    """
    require("cfgpp", "lam in [0, 1]", lambda lam: (lam >= 0) & (lam <= 1), lam)
    return curve(_cfgpp, {"lam": lam})

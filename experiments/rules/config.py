"""What the gallery draws: the sizes, and where a rule wants other numbers than its defaults."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

import guidejax as gj
from guidejax.rules import RULES

MIXTURE_STEPS, DIGITS_STEPS = 32, 16
POINTS, PATHS = 600, 40
DENOISER_STEPS, WEAK_STEPS = 800, 150

PROCESS = gj.processes.rectified_flow()


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw every rule and schedule, and write the page that tells them apart."""

    out: pathlib.Path = pathlib.Path("docs")
    """Folder of rules.md and of its pictures, rules/*.png."""
    data_dir: pathlib.Path = pathlib.Path("runs/rules/data")
    """Where TFDS keeps the digits."""
    only: tuple[str, ...] = ()
    """Names of rules to draw, "overview" and "schedules" included; all by default."""
    text: bool = False
    """Write rules.md alone and draw nothing."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a rule is shown: three values of ω, from mild to far too much, and its numbers."""

    mixture: tuple[float, float, float] = (1.0, 3.0, 8.0)
    digits: tuple[float, float, float] = (0.5, 2.0, 6.0)
    mixture_numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    digits_numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    schedule: Any = None
    note: str = ""


def _feedback(steps: int) -> dict[str, Any]:
    return gj.rules.feedback_numbers(PROCESS, jnp.asarray(gj.uniform_times(steps)), pi=0.9) | {
        "pi": 0.9
    }


_FIRST = gj.interval(1.0, lo=0, hi=0, unit="step")

SETTINGS: dict[str, Setting] = {
    "adaptive": Setting(
        mixture_numbers={"threshold": 0.9999},
        note="γ̄ = 0.9999 on the mixture: two vectors of two numbers agree soon.",
    ),
    "add_perturbation": Setting(
        mixture_numbers={"perturbed_omega": 1.0}, digits_numbers={"perturbed_omega": 1.0},
        note="ω_k = 1 after `cfg` at ω.",
    ),
    "beta_cfg": Setting(
        (-0.8, -0.5, -0.2), (0.0, 3.0, 9.0),
        schedule=lambda w: gj.schedules.beta_curve(w, on="total"),
        note="ω + 1 follows `beta_curve`, as in the paper; the three are its means.",
    ),
    "compose_and": Setting((0.0, 1.0, 3.0), (0.0, 1.0, 3.0)),
    "compose_not": Setting((0.0, 0.3, 1.0), (0.0, 1.0, 3.0)),
    "feedback": Setting(
        (0.0, 1.0, 3.0), (0.0, 1.0, 3.0), _feedback(MIXTURE_STEPS), _feedback(DIGITS_STEPS),
        note="ω comes on top of the feedback; π = 0.9, and `feedback_numbers` gives the others.",
    ),
    "fresca": Setting(
        mixture_numbers={"cutoff": 1}, digits_numbers={"cutoff": 2},
        note="Cutoff 1 on the mixture and 2 on the digits, whose sides are 2 and 8 long.",
    ),
    "mambo_g": Setting(
        mixture_numbers={"damping": 1.0}, digits_numbers={"damping": 1.0}, note="Damping 1."
    ),
    "inpaint": Setting(
        mixture_numbers={"known": jnp.array([[0.0, 0.75]]), "mask": jnp.array([[0.0, 1.0]])},
        digits_numbers={
            "known": jnp.full((1, 1, 1, 1), -1.0),
            "mask": (jnp.arange(8) >= 4).astype(float)[None, None, :, None],
        },
        note="Known are the height of a point, 0.75, and that the right half of a digit is empty.",
    ),
    "mimic": Setting(
        mixture_numbers={"mimic_omega": 1.0}, digits_numbers={"mimic_omega": 0.5},
        note="It mimics ω = 1 on the mixture and 0.5 on the digits.",
    ),
    "negative_prompt": Setting((0.3, 0.6, 1.5), (0.5, 1.0, 3.0)),
    "perp_neg": Setting((0.0, 0.3, 1.0), (0.0, 1.0, 3.0)),
    "power_law": Setting((0.1, 0.3, 1.0), (0.005, 0.02, 0.08)),
    "reg": Setting((1.0, 3.0, 8.0), (0.1, 0.4, 1.2)),
    "tsr": Setting(
        mixture_numbers={"k": 0.8, "scale": 0.3}, digits_numbers={"k": 0.8, "scale": 0.3},
        note="k = 0.8, s = 0.3.",
    ),
    "epsilon_scaling": Setting(
        mixture_numbers={"scale": 1.02}, digits_numbers={"scale": 1.02}, note="λ = 1.02."
    ),
    "timed_negative": Setting(
        (0.5, 1.0, 3.0), (0.5, 1.0, 3.0),
        mixture_numbers={"share": gj.interval(1.0, lo=0.5, hi=0.83)},
        digits_numbers={"share": gj.interval(1.0, lo=0.5, hi=0.83)},
        note="The negative prompt counts for 0.5 ≤ t ≤ 0.83.",
    ),
    "zero_init": Setting(
        mixture_numbers={"share": _FIRST}, digits_numbers={"share": _FIRST},
        note="The first step stands still.",
    ),
}  # fmt: skip


def setting(name: str) -> Setting:
    """A rule's setting; the usual one where none is given."""
    return SETTINGS.get(name, Setting())


def spatial() -> list[str]:
    """Names of the rules on predictions of x0: all but those on log-probabilities."""
    return [name for name, rule in RULES.items() if rule.space != "log_prob"]


def guide(name: str, omega: Any, numbers: Mapping[str, Any]) -> gj.Guidance:
    """A rule with its numbers; one that refines another comes after `cfg`."""
    bound = RULES[name].bind(**numbers)
    schedule = setting(name).schedule
    chained = gj.chain(gj.cfg, bound) if RULES[name].refines else gj.chain(bound)
    return gj.guidance(chained, omega=omega if schedule is None else schedule(omega))

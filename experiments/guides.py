"""Guidance by flags: any rule, schedule or learned weight."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp

import guidejax as gj

Rule = Literal["cfg", "adg", "apg", "cfg-zero", "rescale", "norm-cap"]

RULES: dict[str, Callable[[Guide], Any]] = {
    "cfg": lambda g: gj.cfg,
    "adg": lambda g: gj.adg.bind(max_angle=g.max_angle),
    "apg": lambda g: gj.apg.bind(eta=g.eta, **({} if g.radius is None else {"max_norm": g.radius})),
    "cfg-zero": lambda g: gj.rules.cfg_zero,
    "rescale": lambda g: gj.chain(gj.cfg, gj.rescale.bind(phi=g.phi)),
    "norm-cap": lambda g: gj.chain(gj.cfg, gj.rules.norm_cap.bind(rho=g.rho)),
}
SCHEDULES: dict[str, Callable[[float], gj.Weight]] = {
    "constant": gj.weights.as_weight,
    "triangular": gj.schedules.triangular,
    "clamp-linear": gj.schedules.clamp_linear,
    "beta": gj.schedules.beta_curve,
}


@dataclasses.dataclass(frozen=True)
class Guide:
    """Guidance: a rule and its weight."""

    rule: Rule = "cfg"
    """What the two predictions are combined by."""
    omega: float = 4.0
    """The weight over the conditional model: other people's guidance scale less 1."""
    schedule: Literal["constant", "triangular", "clamp-linear", "beta"] = "constant"
    """How the weight runs over the times; omega is its mean."""
    lo: float = 0.0
    """No guidance below this time (0 is data), which costs one pass in place of two."""
    hi: float = 1.0
    """No guidance above this time (1 is noise)."""
    weight: pathlib.Path | None = None
    """The folder of a weight that `experiments.learn` learned; it takes the place of omega and of
    the rule."""
    channels: int | None = None
    """How many of the latents' channels are guided, the first: 3 as DiT and SiT publish it."""
    max_angle: float = 1.0471975511965976
    """ADG's cap."""
    eta: float = 0.0
    """APG's share of the parallel part."""
    radius: float | None = None
    """APG's largest norm of a difference; none by default."""
    phi: float = 0.7
    """The share of rescale."""
    rho: float = 1.0
    """The norm cap, of the conditional prediction's norm."""


def guidance(guide: Guide, mask_of: int | None = None) -> gj.Guidance:
    """The guidance that the flags say but for its window; the latents have `mask_of` channels."""
    mask = None
    if guide.channels is not None:
        if mask_of is None or guide.channels > mask_of:
            raise SystemExit(f"--guide.channels {guide.channels} of {mask_of} channels.")
        mask = jnp.arange(mask_of) < guide.channels
    if guide.weight is not None:
        return _learned(guide.weight, mask)
    weight = SCHEDULES[guide.schedule](guide.omega)
    return gj.guidance(RULES[guide.rule](guide), omega=weight, mask=mask)


def _learned(folder: pathlib.Path, mask: Any) -> gj.Guidance:
    from experiments import learn

    net, phi, rule = learn.load(folder)
    return gj.guidance(rule, mask=mask, **net.weights(phi))


def windowed(guide: gj.Guidance, lo: float, hi: float) -> gj.Guidance:
    """A guidance whose ω is 0 outside of lo ≤ t ≤ hi: there it makes one pass in place of two.

    Within a program `lo` and `hi` must be known, not traced, for the passes to be left out.
    """
    return dataclasses.replace(
        guide, omega=gj.weights.as_weight(guide.omega) * gj.interval(1.0, lo, hi)
    )


def label(guide: Guide) -> str:
    """What it is called in a picture."""
    if guide.weight is not None:
        return f"learned ({guide.weight.name})"
    text = f"{guide.rule.upper() if len(guide.rule) == 3 else guide.rule}, ω = {guide.omega:g}"
    if guide.schedule != "constant":
        text += f", {guide.schedule}"
    if (guide.lo, guide.hi) != (0.0, 1.0):
        text += f", {guide.lo:g} ≤ t ≤ {guide.hi:g}"
    return text

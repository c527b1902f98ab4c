"""ADG and what is left of it with one part changed or taken out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import guidejax as gj
from guidejax.rules import make_rule


def _projected(cond: jax.Array, uncond: jax.Array, omega: jax.Array) -> jax.Array:
    """c + ω (c − P_u c): ADG where its angle is small, without angle, cap or bound."""
    axes = tuple(range(1, cond.ndim))
    along = jnp.sum(cond * uncond, axes, keepdims=True) / jnp.sum(uncond**2, axes, keepdims=True)
    return cond + omega.reshape(-1, *(1,) * len(axes)) * (cond - along * uncond)


_PROJECTED = make_rule(_projected, space="x0", name="projected")


class Variant(NamedTuple):
    """A rule of the comparison: what it is, and its guidance at given ω."""

    about: str
    guide: Callable[[Any], gj.Guidance]


VARIANTS: dict[str, Variant] = {
    "cfg": Variant("c + ω (c − u)", lambda w: gj.guidance(gj.cfg, w)),
    "projected": Variant(
        "c + ω e: the plane's direction e = c − P_u c, no angle",
        lambda w: gj.guidance(_PROJECTED, w),
    ),
    "adg": Variant("cos a · c + (sin a / sin θ) e, a = min(ω θ, π/3)",
                   lambda w: gj.guidance(gj.adg, w)),
    "adg, no cap": Variant("a = ω θ", lambda w: gj.guidance(gj.adg, w, max_angle=None)),
    "adg, cap π/6": Variant("a = min(ω θ, π/6)",
                            lambda w: gj.guidance(gj.adg, w, max_angle=jnp.pi / 6)),
    "adg, norm of each pixel": Variant(
        "ADG with ‖c‖ given back over the channels of each pixel",
        lambda w: gj.guidance(gj.adg, w, norm_axis=-1),
    ),
    "adg, norm of the sample": Variant(
        "ADG with ‖c‖ given back over the whole sample",
        lambda w: gj.guidance(gj.adg, w, norm_axis=(1, 2, 3)),
    ),
    "slerp": Variant("c turned by a in the plane of c and u, ‖c‖ kept",
                     lambda w: gj.guidance(gj.rules.slerp, w)),
    "apg": Variant("c + ω (c − u − P_c (c − u)), η = 0, no cap on the step",
                   lambda w: gj.guidance(gj.apg, w, eta=0.0)),
}  # fmt: skip

# The authors' program: 10⁻³ θ more of a turn, and 3.14/3 in place of π/3.
CONSTANTS: dict[str, Callable[[Any], gj.Guidance]] = {
    "both": lambda w: gj.guidance(gj.adg, w + 1e-3, max_angle=3.14 / 3),
    "10⁻³": lambda w: gj.guidance(gj.adg, w + 1e-3),
    "3.14/3": lambda w: gj.guidance(gj.adg, w, max_angle=3.14 / 3),
}

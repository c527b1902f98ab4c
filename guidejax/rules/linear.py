"""Rules linear in the predictions: the same in every parameterisation.

Each starts at the conditional prediction and adds weighted differences of two predictions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from guidejax._arrays import Array, expand, restore, upcast
from guidejax.rules.base import CONTEXT, Rule, any_of, make_rule, rule

_LIU = "Liu et al., arXiv 2206.01714"
_LTX = "HaCohen et al., arXiv 2601.03233"


def _extrapolate(base: Array, *terms: Any) -> Array:
    """`base` + Σ weight · (towards − away) over `terms`, in the dtype of `base`.

    A term is (weight, towards, away), or (factor, factor, towards, away) where the weight is a
    product: numbers are scalars, (batch,) or arrays of as many axes as the predictions.
    """
    total = upcast(base)
    for *factors, towards, away in terms:
        shift = upcast(towards) - upcast(away)
        for factor in reversed(factors):
            shift = expand(factor, shift).astype(shift.dtype) * shift
        total = total + shift
    return restore(total, base)


@rule(space="any", paper="Ho & Salimans, arXiv 2207.12598, Eq. (6)")
def cfg(cond: Array, uncond: Array, omega: Array) -> Array:
    """Classifier-free guidance: c + ω (c − u).

    Ho & Salimans 2207.12598, Eq. (6); Galashov et al. 2510.00815, Eq. (7). The common scale
    w = ω + 1 has u + w (c − u): `from_scale(w)` gives ω. As in every linear rule, an ω with as
    many axes as c weighs parts of a sample by themselves: (1, 1, 1, channels) has one ω a channel.
    DiT guides three of its four channels, ω · (1, 1, 1, 0).

    Args:
        cond: Conditional prediction c, (batch, ...), in any space.
        uncond: Unconditional prediction u, the same shape and space.
        omega: ω, scalar, (batch,), or as many axes as `cond`; 0 returns `cond` exactly.

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> import jax.numpy as jnp
        >>> cfg(jnp.array([[2.0]]), jnp.array([[1.0]]), 3.0).tolist()
        [[5.0]]
    """
    return _extrapolate(cond, (omega, cond, uncond))


@rule(space="any", paper="Karras et al., arXiv 2406.02507")
def autoguidance(cond: Array, weak: Array, omega: Array) -> Array:
    """Autoguidance: c + ω (c − k), away from a weaker model of the same condition.

    Karras et al. 2406.02507: k + w (c − k) with w = ω + 1, where k comes from a smaller or less
    trained network; their w is 1.2 to 2.4.

    Args:
        cond: Prediction c of the main model, (batch, ...), in any space.
        weak: Prediction k of the weak model, the same shape and space.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> import jax.numpy as jnp
        >>> autoguidance(jnp.array([[2.0]]), jnp.array([[1.0]]), 2.0).tolist()
        [[4.0]]
    """
    return _extrapolate(cond, (omega, cond, weak))


@rule(
    space="any",
    paper="Karras et al., arXiv 2406.02507",
    needs={"weak": lambda numbers: numbers["omega"] * numbers["mix"]},
)
def mixed_autoguidance(
    cond: Array, uncond: Array, weak: Array, omega: Array, *, mix: Array | float = 0.5
) -> Array:
    """Autoguidance mixed with CFG: c + ω [(1 − a)(c − u) + a (c − k)].

    Karras et al. 2406.02507: w − 1 is shared out between the two, w_u = (1 − a)(w − 1) + 1 and
    w_k = a (w − 1) + 1, with w = ω + 1; a = 0 is CFG and a = 1 autoguidance.

    Args:
        cond: Conditional prediction c of the main model, (batch, ...), in any space.
        uncond: Unconditional prediction u, the same shape and space.
        weak: Conditional prediction k of the weak model, the same shape and space.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.
        mix: a, the share of autoguidance, scalar or (batch,).

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> import jax.numpy as jnp
        >>> c, u, k = jnp.array([[2.0]]), jnp.array([[0.0]]), jnp.array([[1.0]])
        >>> mixed_autoguidance(c, u, k, 2.0).tolist()
        [[5.0]]
    """
    return _extrapolate(cond, (omega, 1 - mix, cond, uncond), (omega, mix, cond, weak))


@rule(space="any", paper="folklore")
def negative_prompt(cond: Array, negative: Array, omega: Array) -> Array:
    """Negative prompt: c + ω (c − m), the null condition replaced by what is not wanted.

    Folklore, and what every front end does: m + w (c − m) with w = ω + 1. `timed_negative` uses
    the negative prompt on some steps alone.

    Args:
        cond: Conditional prediction c, (batch, ...), in any space.
        negative: Prediction m under the negative prompt, the same shape and space.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> import jax.numpy as jnp
        >>> negative_prompt(jnp.array([[2.0]]), jnp.array([[1.0]]), 3.0).tolist()
        [[5.0]]
    """
    return _extrapolate(cond, (omega, cond, negative))


@rule(
    space="any",
    paper="Ban et al., arXiv 2406.02965",
    needs={"negative": lambda numbers: numbers["omega"] * numbers["share"]},
)
def timed_negative(
    cond: Array, negative: Array, uncond: Array, omega: Array, *, share: Array | float = 1.0
) -> Array:
    """Negative prompt on some steps: c + ω (c − [u + g (m − u)]).

    Ban et al. 2406.02965 find that a negative prompt takes effect late and is best held back at
    first. g is 1 on the steps that use m and 0 on those that use u: a weight such as
    `interval(1.0, lo=0.5, hi=0.83)`.

    Args:
        cond: Conditional prediction c, (batch, ...), in any space.
        negative: Prediction m under the negative prompt, the same shape and space.
        uncond: Unconditional prediction u, the same shape and space.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.
        share: g, scalar or (batch,); 1 is `negative_prompt`, 0 is `cfg`.

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> import jax.numpy as jnp
        >>> c, m, u = jnp.array([[2.0]]), jnp.array([[1.0]]), jnp.array([[0.0]])
        >>> [timed_negative(c, m, u, 2.0, share=g).item() for g in (0.0, 0.5, 1.0)]
        [6.0, 5.0, 4.0]
    """
    return _extrapolate(cond, (omega, cond, uncond), (omega, share, uncond, negative))


@rule(
    space="any",
    paper=f"{_LIU}, conjunction",
    exact_at_zero=False,
    needs={
        "other": itemgetter("other_weight"),
        "uncond": any_of("omega", "other_weight"),
    },
)
def compose_and(
    cond: Array, other: Array, uncond: Array, omega: Array, *, other_weight: Array | float = 1.0
) -> Array:
    """Composition c AND o: u + (1 + ω) [(c − u) + ρ (o − u)].

    Liu et al. 2206.01714, conjunction: u + Σ wᵢ (cᵢ − u) with w₁ = 1 + ω and w₂ = ρ (1 + ω).
    At ω = 0 it is the product of both conditions, not `cond`. For more of them, `compose`.

    Args:
        cond: Prediction c under the first condition, (batch, ...), in any space.
        other: Prediction o under the second, the same shape and space.
        uncond: Unconditional prediction u, the same shape and space.
        omega: ω, scalar or (batch,).
        other_weight: ρ, weight of the second condition relative to the first.

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> import jax.numpy as jnp
        >>> c, o, u = jnp.array([[2.0]]), jnp.array([[3.0]]), jnp.array([[1.0]])
        >>> compose_and(c, o, u, 1.0).tolist()
        [[7.0]]
    """
    return _extrapolate(cond, (omega, cond, uncond), (other_weight, 1 + omega, other, uncond))


@rule(
    space="any",
    paper=f"{_LIU}, negation",
    exact_at_zero=False,
    needs={
        "negative": itemgetter("negative_weight"),
        "uncond": any_of("omega", "negative_weight"),
    },
)
def compose_not(
    cond: Array,
    negative: Array,
    uncond: Array,
    omega: Array,
    *,
    negative_weight: Array | float = 1.0,
) -> Array:
    """Composition c AND NOT m: u + (1 + ω) [(c − u) − ρ (m − u)].

    Liu et al. 2206.01714, negation: u + w (c − m) for ρ = 1 and w = 1 + ω. Unlike a negative
    prompt it starts from u. At ω = 0 it is not `cond`. For more conditions, `compose`.

    Args:
        cond: Conditional prediction c, (batch, ...), in any space.
        negative: Prediction m under the condition to avoid, the same shape and space.
        uncond: Unconditional prediction u, the same shape and space.
        omega: ω, scalar or (batch,).
        negative_weight: ρ, weight of the negated condition relative to `cond`.

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> import jax.numpy as jnp
        >>> c, m, u = jnp.array([[2.0]]), jnp.array([[3.0]]), jnp.array([[1.0]])
        >>> compose_not(c, m, u, 1.0).tolist()
        [[-1.0]]
    """
    away = (negative_weight, 1 + omega, uncond, negative)
    return _extrapolate(cond, (omega, cond, uncond), away)


@rule(
    space="any",
    paper="Brooks et al., arXiv 2211.09800, Eq. (3)",
    exact_at_zero=False,
    needs={
        "partial": lambda numbers: numbers["omega"] + numbers["partial_omega"],
        "uncond": itemgetter("partial_omega"),
    },
)
def nested(
    cond: Array, partial: Array, uncond: Array, omega: Array, *, partial_omega: Array | float = 0.5
) -> Array:
    """Two nested conditions: c + ω (c − p) + ω_p (p − u), as image and text in InstructPix2Pix.

    Brooks et al. 2211.09800, Eq. (3): u + s_I (p − u) + s_T (c − p), p seeing the image alone and
    c the image and the text, with s_T = 1 + ω (7.5 there) and s_I = 1 + ω_p (1.5). It is `cond`
    where both ω and ω_p are 0.

    Args:
        cond: Prediction c under both conditions, (batch, ...), in any space.
        partial: Prediction p under the first condition alone, the same shape and space.
        uncond: Unconditional prediction u, the same shape and space.
        omega: ω, the excess of the second condition given the first, scalar or (batch,).
        partial_omega: ω_p, the excess of the first condition, scalar or (batch,).

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> import jax.numpy as jnp
        >>> c, p, u = jnp.array([[4.0]]), jnp.array([[2.0]]), jnp.array([[1.0]])
        >>> nested(c, p, u, 1.0).tolist()
        [[6.5]]
    """
    return _extrapolate(cond, (omega, cond, partial), (partial_omega, partial, uncond))


@rule(space="any", paper="Ahn et al., arXiv 2403.17377; Hong, 2408.00760; Hyung et al., 2411.18664")
def perturbation(cond: Array, perturbed: Array, omega: Array) -> Array:
    """Perturbation guidance: c + ω (c − k), away from the network with a part of it disturbed.

    PAG (identity attention, Ahn et al. 2403.17377), SEG (blurred attention, Hong 2408.00760), SLG
    and STG (layers left out, Hyung et al. 2411.18664) differ in how k is made, not in the rule.
    ω = 3 in PAG and 1 in STG. In diffusers' guiders, with CFG off, the scale is ω + 1; in its PAG
    pipelines, in ComfyUI and here it is ω.

    Args:
        cond: Conditional prediction c, (batch, ...), in any space.
        perturbed: Prediction k of the disturbed network, the same shape and space.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> import jax.numpy as jnp
        >>> perturbation(jnp.array([[2.0]]), jnp.array([[1.0]]), 3.0).tolist()
        [[5.0]]
    """
    return _extrapolate(cond, (omega, cond, perturbed))


@rule(
    space="any",
    paper="Ahn et al., arXiv 2403.17377; Hong, 2408.00760; Hyung et al., 2411.18664",
    needs={"perturbed": itemgetter("perturbed_omega")},
)
def add_perturbation(
    guided: Array, cond: Array, perturbed: Array, *, perturbed_omega: Array | float = 3.0
) -> Array:
    """Perturbation guidance on top of another rule: g + ω_k (c − k).

    PAG (Ahn et al. 2403.17377), SEG (Hong 2408.00760), SLG and STG (Hyung et al. 2411.18664) after
    any rule, `chain(apg, add_perturbation)`; after `cfg` it is `stacked`. Two of them work on
    branches of two names: `chain(apg, add_perturbation, add_perturbation.on(perturbed="skip"))`.

    Args:
        guided: The prediction so far g, (batch, ...), in any space.
        cond: Conditional prediction c, the same shape and space.
        perturbed: Prediction k of the disturbed network, the same shape and space.
        perturbed_omega: ω_k, scalar or (batch,); 0 returns `guided` exactly.

    Returns:
        The guided prediction, in the dtype of `guided`.

    Example:
        >>> import jax.numpy as jnp
        >>> g, c, k = jnp.array([[5.0]]), jnp.array([[2.0]]), jnp.array([[1.0]])
        >>> add_perturbation(g, c, k).tolist()
        [[8.0]]
    """
    return _extrapolate(guided, (perturbed_omega, cond, perturbed))


@rule(
    space="any",
    paper=_LTX,
    exact_at_zero=False,
    needs={"uncond": itemgetter("omega"), "perturbed": itemgetter("perturbed_omega")},
)
def stacked(
    cond: Array,
    uncond: Array,
    perturbed: Array,
    omega: Array,
    *,
    perturbed_omega: Array | float = 1.0,
) -> Array:
    """CFG and a perturbation at once: c + ω (c − u) + ω_k (c − k).

    PAG, SEG, SLG and STG beside CFG; with several perturbations (`stack`) LTX-2's multi-modal
    guidance (HaCohen et al. 2601.03233), which rescales the result: `chain(stacked, ...)`. It is
    `cond` where both ω and ω_k are 0.

    Args:
        cond: Conditional prediction c, (batch, ...), in any space.
        uncond: Unconditional prediction u, the same shape and space.
        perturbed: Prediction k of the disturbed network, the same shape and space.
        omega: ω of CFG, scalar or (batch,).
        perturbed_omega: ω_k, scalar or (batch,).

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> import jax.numpy as jnp
        >>> c, u, k = jnp.array([[2.0]]), jnp.array([[1.0]]), jnp.array([[0.0]])
        >>> stacked(c, u, k, 3.0, perturbed_omega=0.5).tolist()
        [[6.0]]
    """
    return _extrapolate(cond, (omega, cond, uncond), (perturbed_omega, cond, perturbed))


def compose(and_: Sequence[str] = (), not_: Sequence[str] = ()) -> Rule:
    """A rule that composes `cond` with any number of conditions, each a branch with its own name.

    c AND o₁ AND ... AND NOT m₁ ...: u + (1 + ω) [(c − u) + Σ ρᵢ (oᵢ − u) − Σ ρⱼ (mⱼ − u)] (Liu et
    al. 2206.01714), in any space. Its arguments are `cond`, the branches in order, `uncond`,
    `omega`; branch "hat" has its weight ρ under the name `hat_weight`, 1 by default. The same
    names give the same rule, so that making it again compiles nothing.

    Args:
        and_: Names of the branches to have.
        not_: Names of the branches to avoid.

    Returns:
        A rule for `guidance`; `sample(conditions={"hat": ...})` gives the conditions.

    Raises:
        ValueError: If a name is no identifier, is taken, or comes twice.

    Example:
        >>> import jax.numpy as jnp
        >>> rule = compose(and_=("hat", "beard"), not_=("glasses",))
        >>> rule.branches
        ('cond', 'hat', 'beard', 'glasses', 'uncond')
        >>> c, u = jnp.array([[2.0]]), jnp.array([[1.0]])
        >>> hat, beard, glasses = jnp.array([[3.0]]), jnp.array([[5.0]]), jnp.array([[2.0]])
        >>> rule(c, hat, beard, glasses, u, 1.0, beard_weight=0.5).tolist()
        [[9.0]]
    """
    return _compose(tuple(and_), tuple(not_))


@functools.cache
def _compose(and_: tuple[str, ...], not_: tuple[str, ...]) -> Rule:
    names = (*and_, *not_)
    _check_names("compose", names)
    weights = {name: f"{name}_weight" for name in names}

    def combine(**given: Any) -> Array:
        cond, uncond, omega = given["cond"], given["uncond"], given["omega"]
        terms: list[Any] = [(omega, cond, uncond)]
        for name, weight in weights.items():
            towards, away = (given[name], uncond) if name in and_ else (uncond, given[name])
            terms.append((given[weight], 1 + omega, towards, away))
        return _extrapolate(cond, *terms)

    return make_rule(
        combine,
        name="compose",
        space="any",
        paper=_LIU,
        takes=("cond", *names, "uncond", "omega"),
        numbers=dict.fromkeys(weights.values(), 1.0),
        exact_at_zero=False,
        needs={name: itemgetter(weight) for name, weight in weights.items()}
        | {"uncond": any_of("omega", *weights.values())},
    )


def stack(*perturbed: str) -> Rule:
    """A rule of CFG and any number of perturbations, each a branch with its own name.

    c + ω (c − u) + Σ ωᵢ (c − kᵢ) in any space (HaCohen et al. 2601.03233). Its arguments are
    `cond`, `uncond`, the branches in order, `omega`; branch "skip" has its ωᵢ under the name
    `skip_omega`, 1 by default. The same names give the same rule, so that making it again compiles
    nothing.

    Args:
        *perturbed: Names of the branches to move away from.

    Returns:
        A rule for `guidance`; `sample(conditions={"skip": (denoise, cond)})` gives the branches.

    Raises:
        ValueError: If a name is no identifier, is taken, or comes twice.

    Example:
        >>> import jax.numpy as jnp
        >>> rule = stack("skip", "modality")
        >>> c, u, skip, modality = (jnp.array([[value]]) for value in (2.0, 1.0, 0.0, -2.0))
        >>> rule(c, u, skip, modality, 3.0, modality_omega=0.5).tolist()
        [[9.0]]
    """
    return _stack(perturbed)


@functools.cache
def _stack(names: tuple[str, ...]) -> Rule:
    _check_names("stack", names)
    omegas = {name: f"{name}_omega" for name in names}

    def combine(**given: Any) -> Array:
        cond = given["cond"]
        terms = [(given[omega], cond, given[name]) for name, omega in omegas.items()]
        return _extrapolate(cond, (given["omega"], cond, given["uncond"]), *terms)

    return make_rule(
        combine,
        name="stack",
        space="any",
        paper=_LTX,
        takes=("cond", "uncond", *names, "omega"),
        numbers=dict.fromkeys(omegas.values(), 1.0),
        exact_at_zero=False,
        needs={name: itemgetter(omega) for name, omega in omegas.items()}
        | {"uncond": itemgetter("omega")},
    )


def _check_names(who: str, names: tuple[str, ...]) -> None:
    taken = {*CONTEXT, "cond", "uncond", "omega", "guided"}
    if not names:
        raise ValueError(f"{who} expects the name of at least one branch.")
    for name in names:
        if not name.isidentifier() or name in taken or names.count(name) > 1:
            raise ValueError(
                f"{who}: {name!r} can't name a branch; expected distinct identifiers other than "
                f"{', '.join(sorted(taken))}."
            )

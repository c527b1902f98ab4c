"""What a schedule is: a function of numbers that makes a `Weight`, and the facts it states.

    @schedule(keeps="mean", source="Wang et al. 2404.13040", example={"mean": 2.0})
    def linear_ramp(mean, unit="t", on="excess"): ...

A schedule is a curve of the step and its numbers, times ω: `scaled(mean, curve(_linear), on)`.
Any number may itself be a `Weight`. To list a schedule here is to have it tested.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, check_not_nan, is_concrete
from guidejax.weights.base import Step, Weight, as_weight, constant

Keeps = Literal["mean", "peak"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A schedule's facts.

    Attributes:
        make: The function that makes the `Weight`.
        keeps: What its first number is: the "mean" of ω over time, its "peak", or neither, None.
        acts_on: What the curve multiplies: the "excess" ω, the "total" ω + 1, "either" where it
            is an argument.
        source: The paper or program it is from.
        example: Numbers to try it with: all its traced numbers.
        options: Structure to try it with.
    """

    make: Callable[..., Weight]
    keeps: Keeps | None
    acts_on: str
    source: str
    example: Mapping[str, Any]
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name in `guidejax`."""
        return self.make.__name__


SCHEDULES: dict[str, Schedule] = {}

_F = TypeVar("_F", bound=Callable[..., Weight])


def schedule(
    *,
    keeps: Keeps | None,
    source: str,
    example: Mapping[str, Any],
    acts_on: str = "excess",
    options: Mapping[str, Any] | None = None,
) -> Callable[[_F], _F]:
    """Decorator: state a schedule's facts and list it in `SCHEDULES`, which also tests it."""

    def declare(make: _F) -> _F:
        both = "on" in inspect.signature(make).parameters
        facts = Schedule(make, keeps, "either" if both else acts_on, source, example, options or {})
        SCHEDULES[facts.name] = facts
        return make

    return declare


schedule(keeps="mean", source="Ho & Salimans 2207.12598", example={"value": 2.0})(constant)


@dataclasses.dataclass(frozen=True)
class _Curve:
    """`fn(step, **numbers, **options)` as the function of a `Weight`."""

    fn: Callable[..., Any]
    options: tuple[tuple[str, Any], ...]
    unknown: ClassVar[Any] = jnp.nan  # the value of a number that is NaN

    def __call__(self, numbers: Any, step: Step) -> Any:
        return _evaluate(self, numbers, step)


@dataclasses.dataclass(frozen=True)
class _Where(_Curve):
    """The same for a support; a number that is a `Weight` may depend on what no support knows."""

    unknown: ClassVar[Any] = True

    def __call__(self, numbers: Any, step: Step) -> Any:
        if any(isinstance(number, Weight) for number in numbers.values()):
            return True
        return super().__call__(numbers, step)


# Compiled, for whoever asks outside of jit: the sampler for its supports, and a loop in Python.
# Inside, it is inlined.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _evaluate(curve: _Curve, numbers: Any, step: Step) -> Any:
    now = {
        name: jnp.asarray(number.at(step) if isinstance(number, Weight) else number)
        for name, number in numbers.items()
    }
    value = curve.fn(step, **now, **dict(curve.options))
    # A comparison with NaN is False, which would be off.
    for number in now.values():
        value = jnp.where(jnp.isnan(number), curve.unknown, value)
    return value


def curve(
    fn: Callable[..., Any],
    numbers: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    where: Callable[..., Any] | None = None,
) -> Weight:
    """A schedule of your own: a `Weight` of a function `fn(step, **numbers, **options)`.

    Args:
        fn: A function of the module: it is structure, compared by identity.
        numbers: Traced numbers, scalars, (batch,) or `Weight`s.
        options: Structure, hashable.
        where: `where(step, **numbers, **options) -> bool`, False only where `fn` is 0.

    Raises:
        ValueError: If a number is NaN.

    Example:
        >>> def falling(step, rate):
        ...     return jnp.exp(-rate * (1 - step.t))
        >>> weight = 3.0 * curve(falling, {"rate": 0.5})
        >>> float(weight(s=0.9, t=1.0))
        3.0
    """
    for name, number in (numbers or {}).items():
        check_not_nan(f"{fn.__name__.strip('_')}'s {name}", number)
    fixed = tuple(sorted((options or {}).items()))
    support = None if where is None else _Where(where, fixed)
    sees = any(isinstance(n, Weight) and n.sees_state for n in (numbers or {}).values())
    return Weight(dict(numbers or {}), _Curve(fn, fixed), support, sees)


def scaled(value: Any, shape: Weight, on: str = "excess") -> Weight:
    """`value` times a curve on ω, or, on="total", the same on ω + 1: (value + 1) · shape − 1."""
    if on == "excess":
        return as_weight(value) * shape
    if on == "total":
        return (as_weight(value) + 1.0) * shape - 1.0
    raise ValueError(f"unknown on={on!r}; expected 'excess' (ω) or 'total' (ω + 1).")


def check_unit(unit: str) -> str:
    """`unit` of a progress, or an error."""
    if unit not in ("t", "step"):
        raise ValueError(f"unknown unit {unit!r}; expected 't' or 'step'.")
    return unit


def progress(step: Step, unit: str) -> Array:
    """How far the denoising is, 0 to 1: 1 − t, or by "step" i/(N − 1), 1 at the last of N."""
    if unit == "t":
        return 1 - jnp.asarray(step.t)
    return step.index / max(step.num_steps - 1, 1)


def row_of(rows: Array, step: Step) -> Array:
    """The step's row of (steps, ...) `rows`, per sample where the grid is.

    A comparison, not a gather, which raises on rows sharded over an explicit mesh.
    """
    number = jnp.arange(rows.shape[0]).reshape((-1,) + (1,) * (rows.ndim - 1))
    return jnp.sum(jnp.where(number == step.index, rows, 0), axis=0)


def require(who: str, expected: str, ok: Callable[..., Any], *values: Any) -> None:
    """Raise `ValueError` unless `ok(*values)`, where the values are numbers and known now."""
    if not is_concrete(*values) or any(
        isinstance(value, Weight) or not getattr(value, "is_fully_addressable", True)
        for value in values
    ):
        return
    if not np.all(ok(*(np.asarray(value) for value in values))):
        raise ValueError(f"{who} expects {expected}, got {', '.join(str(v) for v in values)}.")

"""A number of a guidance as one pytree: a function of (s, t, c) with its traced numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, Times, concretely, is_concrete
from guidejax.processes.base import ROUNDING, Process
from guidejax.processes.continuous import RectifiedFlow


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weight:
    """ω(s, t, c), or any other number of a rule: stands wherever a number does.

    As an optax schedule stands for a learning rate. Call it as `weight(s, t, cond)` for the step
    from t to s. Weights add, subtract, multiply, divide and clip, with each other and with numbers.

    Attributes:
        params: Its numbers: a pytree of traced leaves.
        fn: `fn(params, step) -> value`, a scalar or (batch,); a `Step` says where on the grid.
        support: `support(params, step) -> bool`, in JAX, False only where the value is 0 for every
            condition: there the sampler leaves the unconditional pass out. None: nowhere known.
        sees_state: Whether `fn` looks at `step.x` or `step.predictions`. Such a weight is
            evaluated in the sampler's loop; all others are tabulated ahead of it.
    """

    params: Any
    fn: Callable[[Any, Step], Any] = dataclasses.field(metadata={"static": True})
    support: Callable[[Any, Step], Any] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    sees_state: bool = dataclasses.field(default=False, metadata={"static": True})

    def __call__(
        self,
        s: Any,
        t: Any,
        cond: Any = None,
        *,
        process: Process | None = None,
        times: Any = None,
        x: Any = None,
        predictions: Any = None,
    ) -> Array:
        """The value for the step t → s.

        Args:
            s: The time denoised to, scalar or (batch,).
            t: The time denoised from, the shape of `s`.
            cond: The conditioning, batch first, for weights that depend on it.
            process: For weights in log-SNR or sigma, and learned ones.
            times: The sampler's time grid, (steps + 1,), for weights of the step's index.
            x: x_t, for weights that see it.
            predictions: x̂0 of each branch by name, for weights that see them.
        """
        return self.at(Step(s, t, cond, process, times, x, predictions))

    def at(self, step: Step) -> Array:
        """The value at a `Step`."""
        return jnp.asarray(self.fn(self.params, step))

    def active(self, s: Any, t: Any, *, process: Process | None = None, times: Any = None) -> Any:
        """Whether the value may differ from 0 on the step t → s; NumPy where that is known now."""
        return _support(self, Step(s, t, None, process, times))

    def table(self, times: Times, cond: Any = None, *, process: Process | None = None) -> Array:
        """ω of every step of a grid: (steps,) or (steps, batch), in one batched evaluation.

        Example:
            >>> constant(2.0).table(jnp.array([1.0, 0.5, 0.0])).tolist()
            [2.0, 2.0]

        Raises:
            ValueError: If it sees the state, of which a grid knows nothing.
        """
        if self.sees_state:
            raise ValueError("a weight that sees x_t or the predictions has no table of its own.")
        row = lambda s, t: self(s, t, cond, process=process, times=times)  # noqa: E731
        return jax.vmap(row)(times[1:], times[:-1])

    __array_ufunc__ = None  # NumPy leaves `array * weight` to the weight.

    def __add__(self, other):
        return _combine("add", self, other)

    def __radd__(self, other):
        return _combine("add", other, self)

    def __sub__(self, other):
        return _combine("subtract", self, other)

    def __rsub__(self, other):
        return _combine("subtract", other, self)

    def __mul__(self, other):
        return _combine("multiply", self, other)

    def __rmul__(self, other):
        return _combine("multiply", other, self)

    def __truediv__(self, other):
        return _combine("divide", self, other)

    def __rtruediv__(self, other):
        return _combine("divide", other, self)

    def __neg__(self):
        return _combine("multiply", self, -1.0)

    def clip(self, lo: Any = None, hi: Any = None) -> Weight:
        """ω kept within [lo, hi]; either end may be left out."""
        both = lo is not None and hi is not None
        if both and is_concrete(lo, hi) and not np.all(np.asarray(lo) <= np.asarray(hi)):
            raise ValueError(f"clip expects lo ≤ hi, got lo={lo}, hi={hi}.")
        return Weight((self, lo, hi), _clip, _clip_support, self.sees_state)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
    """Where a weight is asked for: from t to s, for which condition, on which grid, about what.

    Attributes:
        s: The time denoised to, scalar or (batch,); None where nobody knows it (`guided`).
        t: The time denoised from.
        cond: The conditioning, batch first.
        process: The noising process.
        times: The sampler's grid, (steps + 1,) or (steps + 1, batch).
        x: x_t, for weights that see the state.
        predictions: x̂0 of each branch by name; where a step leaves a branch out, that of "cond".
    """

    s: Any
    t: Any
    cond: Any = None
    process: Process | None = None
    times: Any = None
    x: Any = None
    predictions: Any = None

    def needs(self, what: str, who: str) -> Any:
        """An attribute, or an error that says who wants it."""
        value = getattr(self, what)
        if value is None:
            grid = " `rollout` knows it too; self-consistency draws t and s, and has no grid."
            raise ValueError(
                f"{who} needs `{what}`, which `sample` knows; to `guided`, `combine` or the weight "
                f"itself give {'times' if what == 's' else what}=..."
                + (grid if what == "times" else "")
            )
        return value

    @property
    def num_steps(self) -> int:
        """Steps of the grid."""
        return self.needs("times", "a weight of the step's index").shape[0] - 1

    @property
    def index(self) -> Array:
        """Index of the grid's step that t lies in, 0 the first; per sample where the times are.

        A step holds its start and not its end, both to a rounding: t = 1 − 0.8 is 0.2.
        """
        times = jnp.asarray(self.needs("times", "a weight of the step's index"))
        if times.ndim == 1 and jnp.ndim(self.t):  # Each sample at its own step of one grid.
            times = times[:, None]
        ahead = jnp.where(times[0] > times[-1], times[1:] - self.t, self.t - times[1:])
        return jnp.minimum(jnp.sum(ahead > -ROUNDING, axis=0), self.num_steps - 1)

    @property
    def log_snr(self) -> Array:
        """λ(t) of the time denoised from."""
        return self.needs("process", "a weight in log-SNR").log_snr(self.t)

    def position(self, unit: str) -> Array:
        """The time denoised from, as `unit`: "t", "log_snr", "sigma" (σ/α) or "step"."""
        if unit == "t":
            return jnp.asarray(self.needs("t", "a schedule in t"))
        if unit == "step":
            return self.index
        if unit == "log_snr":
            return self.log_snr
        if unit == "sigma":
            return jnp.exp(-self.log_snr / 2)
        raise ValueError(f"unknown unit {unit!r}; expected t, log_snr, sigma or step.")


_OPERATIONS: dict[str, Callable[[Any, Any], Array]] = {
    "add": jnp.add,
    "subtract": jnp.subtract,
    "multiply": jnp.multiply,
    "divide": jnp.divide,
}


def _value(weight: Any, step: Step) -> Any:
    return weight.fn(weight.params, step) if isinstance(weight, Weight) else weight


def _support(weight: Any, step: Step) -> Any:
    """Whether ω may differ from 0; NumPy where that is known now, part by part.

    Part by part: an interval with fixed ends is known to be 0 outside whatever traced value it
    has inside.
    """
    weight = as_weight(weight)
    if weight.support is None:
        return np.bool_(True)
    if not is_concrete(weight.params, step.s, step.t, step.process, step.times):
        return weight.support(weight.params, step)
    with concretely():
        return np.asarray(weight.support(weight.params, step))


def _both(params: Any, step: Step) -> Any:
    left, right = _support(params[0], step), _support(params[1], step)
    return (np if is_concrete(left, right) else jnp).logical_and(left, right)


def _either(params: Any, step: Step) -> Any:
    left, right = _support(params[0], step), _support(params[1], step)
    return (np if is_concrete(left, right) else jnp).logical_or(left, right)


def _first(params: Any, step: Step) -> Any:
    return _support(params[0], step)


@dataclasses.dataclass(frozen=True)
class _Operation:
    name: str

    def __call__(self, params, step):
        left, right = (jnp.asarray(_value(p, step)) for p in params)
        return _OPERATIONS[self.name](left, right)


_SUPPORTS = {"add": _either, "subtract": _either, "multiply": _both, "divide": _first}


def _combine(name: str, left: Any, right: Any) -> Weight:
    sides = tuple(as_weight(side) for side in (left, right))
    sees = any(side.sees_state for side in sides)
    return Weight(sides, _Operation(name), _SUPPORTS[name], sees)


def _clip(params: Any, step: Step) -> Any:
    weight, lo, hi = params
    return jnp.clip(_value(weight, step), lo, hi)


def _clip_support(params: Any, step: Step) -> Any:
    weight, lo, hi = params
    if not is_concrete(lo, hi):
        return True
    # Zeros stay where they are only if 0 is within the ends.
    lo, hi = (np.asarray(0 if end is None else end) for end in (lo, hi))
    return _support(weight, step) if np.all(lo <= 0) and np.all(hi >= 0) else True


def _constant(value: Any, step: Step) -> Any:
    return value


def _constant_support(value: Any, step: Step) -> Any:
    # A traced constant counts as active: under vmap a run-time gate on it would turn into a
    # select that copies the network's parameters for each sample.
    return np.any(np.asarray(value) != 0) if is_concrete(value) else True


@dataclasses.dataclass(frozen=True)
class _Function:
    fn: Callable[..., Any]

    def __call__(self, params, step):
        return self.fn(step.needs("s", "a function of (s, t, cond)"), step.t, step.cond)


def constant(value: Any) -> Weight:
    """ω(s, t, c) = value: a number, or (batch,) numbers, one a sample.

    Raises:
        ValueError: If it holds a NaN or is no number.

    Example:
        >>> float(constant(1.5)(s=0.1, t=0.2))
        1.5
    """
    if is_concrete(value):
        try:
            if value is None or isinstance(value, str):
                raise TypeError
            numbers = np.asarray(value, np.float32)
        except (TypeError, ValueError):
            raise ValueError(
                f"expected a number, an array, a function (s, t, cond) or a Weight; got {value!r}."
            ) from None
        if np.any(np.isnan(numbers)):
            raise ValueError("a weight is NaN; expected a number, 0 being the conditional model.")
    if isinstance(value, (list, tuple)):  # One array: a pytree of numbers has no shape.
        lib = np if is_concrete(value) else jnp
        value = lib.asarray(value, jnp.result_type(float))
    return Weight(value, _constant, _constant_support)


def _windowed(weight: Weight) -> bool:
    """Whether a weight is 0 outside of a window; a sum isn't, for its windows may cover the run."""
    if weight.support in (None, _constant_support, _either):
        return False
    if weight.support in (_both, _first, _clip_support):
        factors = weight.params if weight.support is _both else weight.params[:1]
        return any(map(_windowed, factors))
    if hasattr(weight.fn, "windowed"):
        return weight.fn.windowed(weight.params)
    grid = np.linspace(1, 0, 101)
    try:  # Any process and any grid: is there a step on which it is off?
        on = weight.active(grid[1:], grid[:-1], process=RectifiedFlow(), times=grid)
    except ValueError:  # It wants a grid of so many steps.
        return True
    return not is_concrete(on) or not np.all(on)


def from_scale(scale: Any) -> Any:
    """ω of the common guidance scale w, where 1 is the conditional model: ω = w − 1.

    Args:
        scale: w, a number, numbers, an array, or a `Weight` of scales at every step.

    Raises:
        ValueError: If it is a `Weight` that is 0 outside of a window. A scale of 0 is the
            unconditional model there; guided inside alone is `interval(from_scale(7.5), 0.2, 0.8)`.

    Example:
        >>> from_scale(7.5)
        6.5
    """
    if isinstance(scale, Weight) and _windowed(scale):
        raise ValueError(
            "from_scale of a weight that is 0 on some steps is the unconditional model there, "
            "ω = −1; take it inside: gj.interval(gj.from_scale(7.5), lo=..., hi=...)."
        )
    return (np.asarray(scale) if isinstance(scale, (list, tuple)) else scale) - 1


def to_scale(omega: Any) -> Any:
    """The common guidance scale of ω: w = ω + 1.

    Example:
        >>> to_scale(6.5)
        7.5
    """
    return omega + 1


def as_weight(omega: Any) -> Weight:
    """A `Weight` of a number, an array, a function `(s, t, cond) -> value`, or a `Weight`.

    Example:
        >>> float(as_weight(lambda s, t, cond: 2 * t)(s=0.1, t=0.5))
        1.0
    """
    if isinstance(omega, Weight):
        return omega
    if callable(omega):
        return Weight((), _Function(omega))
    return constant(omega)

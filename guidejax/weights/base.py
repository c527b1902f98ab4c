"""ω as one pytree: a function of (s, t, c), its traced numbers, and where it is not zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, Times, concretely, is_concrete
from guidejax.processes import Process


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weight:
    """ω(s, t, c): stands wherever a number does, as an optax schedule does.

    Call it as `weight(s, t, cond)` for the step from t to s < t. Weights add, subtract,
    multiply, divide and clip, with each other and with numbers.

    Attributes:
        params: Its numbers: a pytree of traced leaves.
        fn: `fn(params, step) -> ω`, a scalar or (batch,); a `Step` says where on the grid.
        mask: `mask(params, step) -> bool`, in JAX, False only where ω is 0 for every condition:
            there the sampler leaves the unconditional pass out. None: nowhere known to be 0.
    """

    params: Any
    fn: Callable[[Any, Step], Any] = dataclasses.field(metadata={"static": True})
    mask: Callable[[Any, Step], Any] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )

    def __call__(
        self,
        s: Any,
        t: Any,
        cond: Any = None,
        *,
        process: Process | None = None,
        times: Any = None,
    ) -> Array:
        """ω for the step t → s.

        Args:
            s: Target time, scalar or (batch,).
            t: Current time, the shape of `s`.
            cond: The conditioning, batch first, for weights that depend on it.
            process: For weights in log-SNR or sigma, and learned ones.
            times: The sampler's time grid, (steps + 1,), for weights of the step's index.
        """
        return jnp.asarray(self.fn(self.params, Step(s, t, cond, process, times)))

    def active(self, s: Any, t: Any, *, process: Process | None = None, times: Any = None) -> Any:
        """Whether ω may differ from 0 on the step t → s; a NumPy bool where that is known now."""
        return _mask(self, Step(s, t, None, process, times))

    def table(self, times: Times, cond: Any = None, *, process: Process | None = None) -> Array:
        """ω of every step of a grid: (steps,) or (steps, batch), in one batched evaluation.

        Example:
            >>> constant(2.0).table(jnp.array([1.0, 0.5, 0.0])).tolist()
            [2.0, 2.0]
        """
        row = lambda s, t: self(s, t, cond, process=process, times=times)  # noqa: E731
        return jax.vmap(row)(times[1:], times[:-1])

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
        return Weight((self, lo, hi), _clip, _clip_mask)


@dataclasses.dataclass(frozen=True)
class Step:
    """Where a weight is asked for: from t to s, for which condition, on which grid."""

    s: Any
    t: Any
    cond: Any = None
    process: Process | None = None
    times: Any = None

    def needs(self, what: str, who: str) -> Any:
        """`process` or `times`, or an error that says who wants it."""
        value = getattr(self, what)
        if value is None:
            raise ValueError(
                f"{who} needs `{what}`; `sample` gives it, by hand pass {what}=... to the weight."
            )
        return value

    @property
    def num_steps(self) -> int:
        """Steps of the grid."""
        return self.needs("times", "a weight of the step's index").shape[0] - 1

    @property
    def index(self) -> Array:
        """Index of this step on the grid, 0 the noisiest; per sample where the times are."""
        times = jnp.asarray(self.needs("times", "a weight of the step's index"))
        return jnp.sum(times[:-1] > self.t, axis=0)

    @property
    def log_snr(self) -> Array:
        """λ(t) of the time denoised from."""
        return self.needs("process", "a weight in log-SNR").log_snr(self.t)

    def at(self, unit: str) -> Array:
        """The time denoised from, as `unit`: "t", "log_snr", "sigma" (σ/α) or "step"."""
        if unit == "t":
            return jnp.asarray(self.t)
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


def _mask(weight: Any, step: Step) -> Any:
    """Whether ω may differ from 0; NumPy where that is known now, part by part.

    Part by part: an interval with fixed ends is known to be 0 outside whatever traced value it
    has inside.
    """
    weight = as_weight(weight)
    if weight.mask is None:
        return np.bool_(True)
    if not is_concrete(weight.params, step.s, step.t, step.process, step.times):
        return weight.mask(weight.params, step)
    with concretely():
        return np.asarray(weight.mask(weight.params, step))


def _both(params: Any, step: Step) -> Any:
    left, right = _mask(params[0], step), _mask(params[1], step)
    return (np if is_concrete(left, right) else jnp).logical_and(left, right)


def _either(params: Any, step: Step) -> Any:
    left, right = _mask(params[0], step), _mask(params[1], step)
    return (np if is_concrete(left, right) else jnp).logical_or(left, right)


def _first(params: Any, step: Step) -> Any:
    return _mask(params[0], step)


@dataclasses.dataclass(frozen=True)
class _Operation:
    name: str

    def __call__(self, params, step):
        left, right = (jnp.asarray(_value(p, step)) for p in params)
        return _OPERATIONS[self.name](left, right)


_MASKS = {"add": _either, "subtract": _either, "multiply": _both, "divide": _first}


def _combine(name: str, left: Any, right: Any) -> Weight:
    sides = tuple(side if isinstance(side, Weight) else as_weight(side) for side in (left, right))
    return Weight(sides, _Operation(name), _MASKS[name])


def _clip(params: Any, step: Step) -> Any:
    weight, lo, hi = params
    return jnp.clip(_value(weight, step), lo, hi)


def _clip_mask(params: Any, step: Step) -> Any:
    weight, lo, hi = params
    if not is_concrete(lo, hi):
        return True
    # Zeros stay where they are only if 0 is within the ends.
    lo, hi = (np.asarray(0 if end is None else end) for end in (lo, hi))
    return _mask(weight, step) if np.all(lo <= 0) and np.all(hi >= 0) else True


def _constant(value: Any, step: Step) -> Any:
    return value


def _constant_mask(value: Any, step: Step) -> Any:
    # A traced constant counts as active: under vmap a run-time gate on it would turn into a
    # select that copies the network's parameters for each sample.
    return np.any(np.asarray(value) != 0) if is_concrete(value) else True


@dataclasses.dataclass(frozen=True)
class _Function:
    fn: Callable[..., Any]

    def __call__(self, params, step):
        return self.fn(step.s, step.t, step.cond)


def constant(value: Any) -> Weight:
    """ω(s, t, c) = value: a number, or (batch,) numbers, one a sample.

    Example:
        >>> float(constant(1.5)(s=0.1, t=0.2))
        1.5
    """
    if is_concrete(value) and np.any(np.isnan(np.asarray(value, np.float32))):
        raise ValueError("omega is NaN; expected a finite number, 0 being the conditional model.")
    return Weight(value, _constant, _constant_mask)


def from_scale(scale: Any) -> Any:
    """ω of the common guidance scale w, where 1 is the conditional model: ω = w − 1.

    Example:
        >>> from_scale(7.5)
        6.5
    """
    return scale - 1


def to_scale(omega: Any) -> Any:
    """The common guidance scale of ω: w = ω + 1.

    Example:
        >>> to_scale(6.5)
        7.5
    """
    return omega + 1


def as_weight(omega: Any) -> Weight:
    """A `Weight` of a number, an array, a function `(s, t, cond) -> ω`, or a `Weight`."""
    if isinstance(omega, Weight):
        return omega
    if callable(omega):
        return Weight((), _Function(omega))
    return constant(omega)

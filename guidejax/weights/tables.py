"""ω given point by point."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, check_finite, is_concrete
from guidejax.weights.base import Step, Weight
from guidejax.weights.omega_net import check_labels
from guidejax.weights.schedules import require, row_of, schedule


@dataclasses.dataclass(frozen=True)
class _Table:
    """One row a step, or knots in t with straight lines between; a column a class, or none."""

    classes: int | None

    def __call__(self, params: Any, step: Step) -> Array:
        values = jnp.asarray(params["values"], jnp.result_type(float))
        times, t = params["times"], jnp.asarray(step.t)
        if times is None:
            row = _row(values, step)
        else:
            low, share = _segment(jnp.asarray(times), t)
            share = share.reshape(share.shape + (1,) * (values.ndim - 1))
            row = (1 - share) * values[low] + share * values[low + 1]
        if self.classes is None:
            return row
        if step.cond is None:
            self.check(None)
        # A one-hot sum, not a gather, which raises on labels sharded over an explicit mesh.
        chosen = jnp.asarray(step.cond)[..., None] == jnp.arange(self.classes)
        return jnp.sum(jnp.where(chosen, row, 0), axis=-1)

    def check(self, cond: Any) -> None:
        """Raise `ValueError` where `cond` is no label of the table: the sampler asks."""
        if self.classes is None:
            return
        if cond is None:
            raise ValueError("this table has a column a class and needs `cond`; got cond=None.")
        check_labels(cond, self.classes, "table")


def _check_fits(values: Any, step: Step) -> None:
    if len(values) != step.num_steps:
        raise ValueError(
            f"a table of {len(values)} rows doesn't fit a grid of {step.num_steps} steps; "
            "expected one row a step, or give it `times`."
        )


def _row(values: Array, step: Step) -> Array:
    _check_fits(values, step)
    if step.index.ndim and values.ndim > 1:  # each sample at its own step
        here = jnp.arange(len(values))[:, None] == step.index
        return jnp.sum(jnp.where(here[..., None], values[:, None], 0), axis=0)
    return row_of(values.reshape(values.shape + (1,) * (step.index.ndim)), step)


def _segment(times: Array, t: Array) -> tuple[Array, Array]:
    """Index of the knot before t, and how far t is to the next one, within the ends."""
    low = jnp.clip(jnp.sum(times[:, *([None] * t.ndim)] <= t, axis=0) - 1, 0, len(times) - 2)
    return low, jnp.clip((t - times[low]) / (times[low + 1] - times[low]), 0, 1)


def _table_mask(params: Any, step: Step) -> Any:
    if not is_concrete(params, step.t, step.times):
        return True
    values = np.asarray(params["values"])
    live: Any = values.reshape(len(values), -1).any(axis=1)
    if params["times"] is None:
        _check_fits(values, step)
        return live[np.asarray(step.index)]
    # The knots on both sides of t, and a bit more: rounding must not hide one.
    times, t = np.asarray(params["times"]), np.asarray(step.t)
    first = np.searchsorted(times, t - 1e-5, "right") - 1
    last = np.searchsorted(times, t + 1e-5, "left")
    number = np.arange(len(times)).reshape((-1,) + (1,) * t.ndim)
    top = len(times) - 1
    near = (number >= np.clip(first, 0, top)) & (number <= np.clip(last, 0, top))
    return np.any(near & live.reshape(number.shape), axis=0)


@schedule(
    keeps=None, source="by hand", example={"values": (0.0, 1.0, 2.0, 0.5, 3.0, 0.0, 0.0, 4.0)}
)
def table(values: Any, times: Any = None) -> Weight:
    """ω from a table: a row for each step of the grid, or knots in t with straight lines between.

    Acts on ω; keeps what it is given. Rows of zeros cost no unconditional pass.

    Args:
        values: (steps,) or, for class labels as the condition, (steps, classes); with `times`,
            (knots,) or (knots, classes).
        times: Times of the knots, rising or falling, at least two; outside them the nearest
            knot's value holds. None: a row for each step, which the grid must then have.

    Raises:
        ValueError: If shapes don't fit, a value is not finite, or the times are not monotone.

    Example:
        >>> table([1.0, 4.0]).table(jnp.array([1.0, 0.5, 0.0])).tolist()
        [1.0, 4.0]
        >>> weight = table([[0.0, 1.0], [2.0, 5.0]], times=[1.0, 0.0])
        >>> weight(s=0.25, t=0.5, cond=jnp.array([0, 1, 1])).tolist()
        [1.0, 3.0, 3.0]
    """
    if isinstance(values, (list, tuple)):
        values = jnp.asarray(values)
    check_finite("table", values)
    shape = np.shape(values)
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"table expects (steps,) or (steps, classes) values, got shape {shape}.")
    if times is not None:
        times = jnp.asarray(times, jnp.result_type(float))
        if times.shape != shape[:1] or len(times) < 2:
            raise ValueError(
                f"table expects one time a row and at least two, got times of shape {times.shape} "
                f"and values of shape {shape}."
            )
        monotone = lambda x: np.all(np.diff(x) > 0) or np.all(np.diff(x) < 0)  # noqa: E731
        require("table", "times that rise or fall throughout", monotone, times)
        order = jnp.argsort(times)
        times, values = times[order], jnp.asarray(values)[order]
    classes = shape[1] if len(shape) == 2 else None
    return Weight({"values": values, "times": times}, _Table(classes), _table_mask)

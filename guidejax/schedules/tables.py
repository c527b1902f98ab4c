"""ω given point by point."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pathlib
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, check_finite, is_concrete
from guidejax.processes import Process
from guidejax.processes.base import check_time
from guidejax.schedules.base import require, row_of, schedule
from guidejax.weights.base import Step, Weight, as_weight
from guidejax.weights.omega_net import check_labels


@dataclasses.dataclass(frozen=True)
class _Table:
    """One row a step, or knots in t with straight lines between; a column a class, or none."""

    classes: int | None

    def windowed(self, params: Any) -> bool:
        """Whether it is 0 on a step, or between two knots, where that is known."""
        if not is_concrete(params):
            return False
        off = ~np.any(np.asarray(params["values"]).reshape(len(params["values"]), -1), axis=1)
        return bool(np.any(off if params["times"] is None else off[1:] & off[:-1]))

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
        found = jnp.sum(jnp.where(chosen, row, 0), axis=-1)
        # A label that isn't known yet, and is none of the table's, must not be ω = 0.
        return jnp.where(jnp.any(chosen, axis=-1), found, jnp.nan)

    def check(self, cond: Any, who: str = "table") -> None:
        """Raise `ValueError` where `cond` is no label of the table: the sampler and `fit` ask."""
        if self.classes is None:
            return
        if cond is None:
            raise ValueError(
                f"{who}: this table has a column a class and needs `cond`; got cond=None."
            )
        check_labels(cond, self.classes, who)


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


def _table_support(params: Any, step: Step) -> Any:
    if not is_concrete(params):
        return True
    values = jnp.asarray(params["values"])
    live = jnp.any(values.reshape(len(values), -1) != 0, axis=1)
    if params["times"] is None:
        _check_fits(values, step)
        return live[step.index]
    # The knots on both sides of t, and a bit more: rounding must not hide one.
    times, t = params["times"], jnp.asarray(step.t)
    first = jnp.searchsorted(times, t - 1e-5, "right") - 1
    last = jnp.searchsorted(times, t + 1e-5, "left")
    number = jnp.arange(len(times)).reshape((-1,) + (1,) * t.ndim)
    top = len(times) - 1
    near = (number >= jnp.clip(first, 0, top)) & (number <= jnp.clip(last, 0, top))
    return jnp.any(near & live.reshape(number.shape), axis=0)


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
        check_time("table's times", times)
        monotone = lambda x: np.all(np.diff(x) > 0) or np.all(np.diff(x) < 0)  # noqa: E731
        require("table", "times that rise or fall throughout", monotone, times)
        order = jnp.argsort(times)
        times, values = times[order], jnp.asarray(values)[order]
    classes = shape[1] if len(shape) == 2 else None
    return Weight({"values": values, "times": times}, _Table(classes), _table_support)


def to_table(
    weight: Any, times: Any, conditions: Any = None, *, process: Process | None = None
) -> Weight:
    """Any ω, a learned one above all, as the `table` of its values on a grid: nothing left to run.

    Args:
        weight: ω: a number, a function or a `Weight`.
        times: The grid of the runs to come, (steps + 1,); the table fits no other number of steps.
        conditions: None for a weight of the times alone; class ids 0 to C − 1 for a column a class;
            any other condition, with a leading axis, for a column a sample in this order, whatever
            `cond` the run has.
        process: For weights in log-SNR or sigma, and learned ones.

    Raises:
        ValueError: If the times don't fall, the class ids are not 0 to C − 1 in order, or ω depends
            on the condition and there is none.

    Example:
        >>> to_table(lambda s, t, cond: 2 * t, [1.0, 0.5, 0.0]).params["values"].tolist()
        [2.0, 1.0]
    """
    times = np.asarray(times, jnp.result_type(float))
    if times.ndim != 1 or len(times) < 2 or not np.all(np.diff(times) < 0):
        raise ValueError(f"to_table expects falling times, (steps + 1,), got {times}.")
    check_time("to_table's times", times)
    weight = as_weight(weight)
    try:
        values = weight.table(jnp.asarray(times), conditions, process=process)
    except (TypeError, AttributeError, IndexError) as error:
        if conditions is not None:
            raise
        raise ValueError(
            f"ω has no value without a condition ({error}); give `conditions`."
        ) from error
    if values.ndim == 1:
        return table(values)
    if conditions is None:
        raise ValueError(f"ω has shape {values.shape[1:]} at a step; give `conditions`.")
    if isinstance(conditions, (list, tuple, np.ndarray, jax.Array)):
        labels = np.asarray(conditions)
        if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
            if not np.array_equal(labels, np.arange(len(labels))):
                raise ValueError(f"to_table expects class ids 0 to C − 1 in order, got {labels}.")
            return table(values)
    return Weight({"values": values, "times": None}, _Table(None), _table_support)


def save_table(path: Any, weight: Any, times: Any, conditions: Any = None, **kwargs: Any) -> None:
    """Write `to_table(weight, times, conditions)` where other frameworks can read it.

    Entries: "omega", the excess over the conditional model, and "scale" = omega + 1, what others
    call the guidance scale, both (steps,) or (steps, classes); "t" and "s", the times denoised from
    and to, (steps,), 1 being noise.

    Args:
        path: A file name that ends in .npz or .json.
        weight: As in `to_table`.
        times: As in `to_table`.
        conditions: As in `to_table`.
        **kwargs: `process`, as in `to_table`.

    Raises:
        ValueError: If the name has another ending.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/omega.json"
        >>> save_table(path, 2.0, [1.0, 0.5, 0.0])
        >>> load_table(path).params["values"].tolist()
        [2.0, 2.0]
    """
    path = pathlib.Path(path)
    if path.suffix not in (".npz", ".json"):
        raise ValueError(f"save_table writes .npz or .json, got {path.name!r}.")
    omega = np.asarray(to_table(weight, times, conditions, **kwargs).params["values"])
    times = np.asarray(times, np.float64)
    entries = {"omega": omega, "scale": omega + 1, "t": times[:-1], "s": times[1:]}
    if path.suffix == ".npz":
        np.savez(path, **entries)
    else:
        path.write_text(json.dumps({name: value.tolist() for name, value in entries.items()}))


# The most bytes of a file that `load_table` reads, and of the numbers that it unpacks to.
LIMIT = 64 * 2**20
# The most lists of a JSON file: each takes 60 bytes, be it empty.
_LISTS = 2**20
# zipfile bounds what a piece of these may unpack to; NumPy writes no others.
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def load_table(path: Any) -> Weight:
    """The `table` that `save_table` wrote, or any file with its entry "omega".

    A table with a column a sample comes back with a column a class. The file may be anybody's:
    nothing in it is run, and of files, or of an omega, of more than 64 MiB nothing is unpacked.

    Raises:
        ValueError: If the name ends in neither .npz nor .json, the file is none of that kind or is
            too large, or has no "omega" of finite numbers, (steps,) or (steps, classes).

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/omega.npz"
        >>> np.savez(path, omega=[3.0, 0.0])
        >>> load_table(path).table(jnp.array([1.0, 0.5, 0.0])).tolist()
        [3.0, 0.0]
    """
    path = pathlib.Path(path)
    if path.suffix not in (".npz", ".json"):
        raise ValueError(f"load_table reads .npz or .json, got {path.name!r}.")
    with open(path, "rb") as file:
        content = file.read(min(path.stat().st_size, LIMIT) + 1)
    if len(content) > LIMIT:
        raise ValueError(f"{path.name} has more than {LIMIT} bytes; load_table reads no more.")
    omega = (_from_npz if path.suffix == ".npz" else _from_json)(content, path.name)
    if omega.ndim not in (1, 2) or omega.size == 0:
        raise ValueError(
            f"{path.name}: 'omega' has shape {omega.shape}; expected (steps,) or (steps, classes)."
        )
    with np.errstate(over="ignore"):
        values = omega.astype(jnp.result_type(float))
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f"{path.name}: 'omega' holds NaN, infinite values or such as have no place in "
            f"{values.dtype}; expected finite numbers."
        )
    return table(values)


def _numbers(name: str, omega: np.ndarray) -> np.ndarray:
    if omega.dtype.kind not in "iuf":
        raise ValueError(
            f"{name}: 'omega' is an array of {omega.dtype}; expected real numbers, "
            "(steps,) or (steps, classes)."
        )
    return omega


def _without_omega(name: str, entries: Any) -> ValueError:
    listed = ", ".join(str(entry)[:40] for entry in list(entries)[:10]) or "none"
    more = ", ..." if len(entries) > 10 else ""
    return ValueError(f"{name} has no entry 'omega'; it has {listed}{more}.")


def _from_json(content: bytes, name: str) -> np.ndarray:
    if content.count(b"[") + content.count(b"{") > _LISTS:
        raise ValueError(f"{name} holds more than {_LISTS} lists; load_table reads no more.")
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise ValueError(f"{name} isn't the JSON of a table: {why}.") from None
    if not isinstance(entries, dict):
        raise ValueError(
            f"{name} holds a {type(entries).__name__}; expected an object with an entry 'omega'."
        )
    if "omega" not in entries:
        raise _without_omega(name, entries)
    if not isinstance(entries["omega"], list):
        raise ValueError(
            f"{name}: 'omega' is a {type(entries['omega']).__name__}; expected a list of numbers, "
            "one a step, or of lists, one number a class."
        )
    try:
        omega = np.asarray(entries["omega"])
    except (ValueError, OverflowError, RecursionError):
        raise ValueError(
            f"{name}: 'omega' is ragged or nested; expected (steps,) or (steps, classes) numbers."
        ) from None
    return omega if omega.size == 0 else _numbers(name, omega)


def _from_npz(content: bytes, name: str) -> np.ndarray:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = {member.filename: member for member in archive.infolist()}
            member = entries.get("omega.npy")
            array = None
            if member and member.file_size <= LIMIT and member.compress_type in _PACKED:
                with archive.open(member) as file:  # no more than the directory says, true or not
                    array = file.read(member.file_size)
    except Exception as error:  # a broken archive fails in any way: zlib's, by an offset, a lock
        raise ValueError(
            f"{name} isn't a whole .npz archive ({str(error)[:200]}); expected what numpy.savez "
            "writes."
        ) from None
    if member is None:
        raise _without_omega(name, [entry.removesuffix(".npy") for entry in entries])
    if array is None:
        raise ValueError(
            f"{name}: 'omega' unpacks to {member.file_size} bytes; load_table unpacks no more than "
            f"{LIMIT}, stored or deflated as NumPy has it."
        )
    return _from_npy(array, name)


def _from_npy(content: bytes, name: str) -> np.ndarray:
    """The array of an .npy file, made only once its header fits what follows it."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its format is {version}")
        one = np.lib.format.read_array_header_1_0
        header = one if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = header(file)
    except Exception as error:  # a header is parsed as Python's literals, which may fail in any way
        raise ValueError(
            f"{name}: 'omega' isn't an array ({str(error)[:200]}); expected what numpy.savez "
            "writes of numbers."
        ) from None
    _numbers(name, np.empty(0, dtype))
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(
            f"{name}: 'omega' says that it has shape {shape} of {dtype}, and has "
            f"{len(content) - file.tell()} bytes; expected as many as that takes."
        )
    flat = np.frombuffer(content, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if by_column else "C")

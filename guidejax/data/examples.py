"""Examples on disk, in array_record: latents, or evaluations of a network, written once."""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import grain
import numpy as np

from guidejax.data.pipeline import Batches, _integers, _shard

_VERSION = 1


def write_examples(directory: str | os.PathLike[str], batches: Iterable[Any]) -> int:
    """Write batches of examples, a record each: latents with their conditions, or evaluations.

    `directory/examples.array_record` holds each example's arrays end on end, little-endian, in the
    order of `directory/fields.json`, which has the path, shape and dtype of each. The directory
    appears when all is written: a killed run leaves nothing half done.

    Args:
      directory: where; must not exist.
      batches: mappings of arrays, and of mappings of them, all of one leading size: of
        `gj.learning.evaluate`, or one's own from any framework. For `fit` they hold "x0" and
        "cond"; to learn without the network also "evaluations": {"t", "x", "predictions"}, as
        `gj.learning.evaluate` has them.

    Returns:
      The number of examples written.

    Raises:
      ValueError: no batch comes, one is no mapping, an array has another shape or dtype than in the
        first batch, or one holds NaN or infinity.
      FileExistsError: the directory exists.

    Example:
      >>> import tempfile
      >>> x0 = np.zeros((6, 3), np.float32)
      >>> found = {"t": x0[:, 0], "x": x0[:, None], "predictions": {"cond": x0[:, None]}}
      >>> batch = {"x0": x0, "cond": np.arange(6), "evaluations": found}
      >>> write_examples(tempfile.mkdtemp() + "/evaluations", [batch, batch])
      12
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    directory = pathlib.Path(directory)
    if directory.exists():
        raise FileExistsError(f"{directory} exists; give another directory.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    try:
        writer = ArrayRecordWriter(str(temporary / "examples.array_record"), "group_size:1")
        fields, count = None, 0
        for index, batch in enumerate(batches):
            if not isinstance(batch, Mapping):
                raise ValueError(
                    f"batch {index} is a {type(batch).__name__}; expected a mapping, such as "
                    '{"x0": ..., "cond": ...}.'
                )
            arrays = dict(_flat(batch))
            size = _size(arrays, f"batch {index}")
            found = [
                {"path": list(path), "shape": list(a.shape[1:]), "dtype": a.dtype.str}
                for path, a in arrays.items()
            ]
            fields = found if fields is None else fields
            if found != fields:
                raise ValueError(
                    f"batch {index} has the fields {found}, the first {fields}; expected the same."
                )
            for row in range(size):
                writer.write(b"".join(a[row].tobytes() for a in arrays.values()))
            count += size
        writer.close()
        if not count:
            raise ValueError("no example came; expected at least one batch.")
        about = {"version": _VERSION, "examples": count, "fields": fields}
        (temporary / "fields.json").write_text(json.dumps(about, indent=1))
        temporary.chmod(0o755)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return count


def load_examples(
    directory: str | os.PathLike[str],
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    shard: tuple[int, int] | None = None,
    threads: int = 4,
) -> Batches:
    """Batches of what `write_examples` wrote, for `fit`.

    With evaluations among them `fit` takes the process in place of a denoiser.

    An epoch is a fresh permutation, cut into batches; its last, short batch is left out. Processes
    share a batch by rows, in order, and iterators are saved, restored and refused, as in `load`.

    Args:
      directory: where they are.
      batch_size: rows of the global batch, over all processes.
      seed: of the order.
      shuffle: False for the order on disk.
      epochs: how many; None for no end.
      shard: (index, count) of this process; default `jax.process_index()`, `process_count()`.
      threads: threads that read ahead.

    Returns:
      A `Batches`: iterate for mappings as they were written, (batch_size / count, ...) each.

    Raises:
      FileNotFoundError: nothing was written there.
      ValueError: the batch is larger than what was written, or the file is of another format.

    Example:
      >>> import tempfile
      >>> where = tempfile.mkdtemp() + "/evaluations"
      >>> x0 = np.zeros((6, 3), np.float32)
      >>> found = {"t": x0[:, 0], "x": x0[:, None], "predictions": {"cond": x0[:, None]}}
      >>> _ = write_examples(where, [{"x0": x0, "cond": np.arange(6), "evaluations": found}])
      >>> batch = next(iter(load_examples(where, batch_size=4)))
      >>> batch["evaluations"]["predictions"]["cond"].shape
      (4, 1, 3)
    """
    _integers(1, batch_size=batch_size, epochs=1 if epochs is None else epochs)
    _integers(0, seed=seed)
    shard = _shard(shard, batch_size=batch_size)
    source = _Examples(pathlib.Path(directory))
    if batch_size > source.count:
        raise ValueError(
            f"batch_size {batch_size} exceeds the {source.count} examples in {directory}."
        )
    rows = grain.MapDataset.range(source.count).seed(int(seed))
    if shuffle:
        rows = rows.shuffle()
    rows = rows.batch(batch_size, drop_remainder=True, batch_fn=np.asarray)
    return Batches(
        source, rows.repeat(epochs), len(rows), seed=seed, flip=False, shard=shard,
        threads=threads, worker_count=0, batch_size=int(batch_size), shuffle=bool(shuffle),
    )  # fmt: skip


class _Examples:
    """Random access to what was written."""

    info = None

    def __init__(self, directory: pathlib.Path):
        if not (directory / "fields.json").exists():
            raise FileNotFoundError(f"{directory} holds no examples of write_examples.")
        about = json.loads((directory / "fields.json").read_text())
        if about.get("version") != _VERSION:
            raise ValueError(
                f"{directory} is of version {about.get('version')}; expected {_VERSION}."
            )
        self._file = grain.sources.ArrayRecordDataSource(str(directory / "examples.array_record"))
        self.count, self.fields = about["examples"], about["fields"]
        if len(self._file) != self.count:
            raise ValueError(f"{directory} holds {len(self._file)} examples of {self.count}.")

    @property
    def identity(self) -> dict[str, Any]:
        """What two sources of the same examples share, in JSON types."""
        return {"examples": self.count, "fields": self.fields}

    def rows(self, indices: np.ndarray) -> dict[str, Any]:
        """The examples at `indices`, stacked."""
        return _nested(self.fields, self._file.__getitems__(indices.tolist()))


def _flat(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """(path, array) of every array of nested mappings, in the order of their names."""
    if isinstance(tree, Mapping):
        for name in sorted(tree):
            yield from _flat(tree[name], (*path, str(name)))
        return
    array = np.ascontiguousarray(tree)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{'/'.join(path)} is {array.dtype}; expected numbers that NumPy knows.")
    if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
        raise ValueError(f"{'/'.join(path)} holds NaN or infinite values.")
    yield path, array.astype(array.dtype.newbyteorder("<"), copy=False)


def _size(arrays: Mapping[tuple[str, ...], np.ndarray], where: str) -> int:
    sizes = {a.shape[0] if a.ndim else None for a in arrays.values()}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(f"{where} has arrays of {len(sizes)} leading sizes; expected one batch.")
    return sizes.pop() or 0


def _nested(fields: list[dict[str, Any]], records: list[bytes]) -> dict[str, Any]:
    """A batch of records as nested mappings."""
    batch: dict[str, Any] = {}
    start = 0
    for field in fields:
        dtype, shape = np.dtype(field["dtype"]), tuple(field["shape"])
        stop = start + dtype.itemsize * math.prod(shape)
        part = b"".join(record[start:stop] for record in records)
        # Of a bytearray, which may be written to, as other batches may.
        array = np.frombuffer(bytearray(part), dtype).reshape(len(records), *shape)
        inner = batch
        for name in field["path"][:-1]:
            inner = inner.setdefault(name, {})
        inner[field["path"][-1]] = array.astype(
            dtype.newbyteorder("="), copy=sys.byteorder == "big"
        )
        start = stop
    return batch

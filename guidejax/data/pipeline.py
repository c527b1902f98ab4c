"""Grain pipelines over TFDS datasets: sharded, resumable batches {"x0", "cond"}."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from guidejax.data.sources import Info, Key, Source

PathLike = str | os.PathLike[str]


def load(
    name: str,
    split: str = "train",
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    drop_remainder: bool = True,
    flip: bool = False,
    shard: tuple[int, int] | None = None,
    data_dir: PathLike | None = None,
    label_key: Key | None = "label",
    image_key: Key = "image",
    image_size: int | None = None,
    image_range: tuple[float, float] | None = None,
    threads: int = 4,
    worker_count: int = 0,
) -> Batches:
    """Batches of any image dataset of TFDS, by name.

    An epoch is a fresh permutation of the split, cut into batches of `batch_size`. That stream
    depends on the seed only: process i of n yields rows [i b, (i + 1) b) of each global batch,
    b = batch_size / n, in the order that `jax.make_array_from_process_local_data` wants, so a run
    sees the same global batches however many processes hold them, and may resume on another
    number of them.

    Args:
      name: "digits", or a dataset of the TFDS catalogue or of your own: "mnist", "cifar10",
        "celeb_a", "imagenet_resized/64x64". Prepared first if it is not on disk, see `prepare`.
      split: a split, or a slice of it in TFDS's notation: "train", "train[:50%]".
      batch_size: rows of the global batch, over all processes.
      seed: of the order and of the flips, 0 ≤ seed < 2³².
      shuffle: False for the order on disk.
      epochs: how many; None for no end.
      drop_remainder: drop an epoch's last, short batch (other examples each epoch). False keeps
        it: an epoch then holds each example once, and a process's part of its last batch may be
        shorter than the others', or empty.
      flip: mirror each image left to right with probability 1/2.
      shard: (index, count) of this process; default `jax.process_index()`, `process_count()`.
      data_dir: where datasets live. Default: `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
      label_key: the feature that becomes cond: a class, an integer or a bool; "attributes/Male"
        reads a nested one; None for none, cond is then 0.
      image_key: the feature that becomes x0.
      image_size: crop the central square and resize it to this many pixels (uint8 images).
      image_range: the pixel values that become -1 and 1. Default: 0 and 255 for uint8, 0 and
        65535 for uint16, 0 and 1 for floats.
      threads: threads that make batches ahead of time.
      worker_count: processes that do, instead of this one, for large images; the same batches. As
        with any `multiprocessing`, a script then needs its `if __name__ == "__main__":`.

    Returns:
      A `Batches`: iterate for {"x0": float32 (b, H, W, C) in [-1, 1], "cond": int32 (b,)}.

    Raises:
      ValueError: an argument, a split, a feature, a label or a pixel is not what it should be;
        what is wrong with an example is raised when the example is read.
      FileNotFoundError: the dataset is not there and can't be prepared here.

    Example:
      >>> batches = load("digits", "train", batch_size=128, seed=0)
      >>> it = iter(batches)
      >>> next(it)["x0"].shape
      (128, 8, 8, 1)
      >>> state = it.get_state()  # ... and later, in another process:
      >>> it.set_state(state)
    """
    _check_count("batch_size", batch_size)
    if epochs is not None:
        _check_count("epochs", epochs)
    seed = _check_seed(seed)
    index, count = _shard(shard)
    if batch_size % count:
        raise ValueError(
            f"batch_size {batch_size} is not a multiple of the {count} processes that share it."
        )
    source = Source(
        name,
        split,
        data_dir=data_dir,
        label_key=label_key,
        image_key=image_key,
        image_size=image_size,
        image_range=image_range,
    )
    size = len(source)
    if drop_remainder and batch_size > size:
        raise ValueError(
            f"batch_size {batch_size} exceeds the {size} examples of {source.where}; expected "
            "at most that many, or drop_remainder=False."
        )
    per_epoch = size // batch_size if drop_remainder else -(-size // batch_size)
    return Batches(
        source,
        _Epochs(size, batch_size, per_epoch, seed if shuffle else None),
        shard=(index, count),
        flip_seed=seed if flip else None,
        steps=None if epochs is None else per_epoch * epochs,
        steps_per_epoch=per_epoch,
        identity={
            **_identity(source, label_key, seed, flip),
            "batch_size": int(batch_size),
            "shuffle": bool(shuffle),
            "drop_remainder": bool(drop_remainder),
        },
        threads=threads,
        worker_count=worker_count,
    )


def grouped(
    name: str,
    split: str = "train",
    *,
    groups: int,
    per_group: int,
    seed: int = 0,
    steps: int | None = None,
    flip: bool = False,
    shard: tuple[int, int] | None = None,
    data_dir: PathLike | None = None,
    label_key: Key | None = "label",
    image_key: Key = "image",
    image_size: int | None = None,
    image_range: tuple[float, float] | None = None,
    threads: int = 4,
    worker_count: int = 0,
) -> Batches:
    """Batches of `groups` conditions, each `per_group` times in a row: for objective "rollout".

    Each batch draws `groups` conditions without repetition from those that the split holds
    (beyond their number, whole rounds of all of them), in rounds that visit a condition once; a
    visit takes `per_group` different examples of it, and all of them come up before any does
    again, except the few that don't fill a group. cond is sorted. Processes share a batch by
    whole groups, in order; the batches don't depend on their number.

    The labels of the split are read once, at the start.

    Args:
      name: as in `load`, like every argument that is not here.
      split: as in `load`.
      groups: conditions in the global batch, a multiple of the number of processes.
      per_group: examples of each.
      seed: of the choice of conditions and examples, and of the flips, 0 ≤ seed < 2³².
      steps: how many batches; None for no end.
      flip: as in `load`.
      shard: as in `load`.
      data_dir: as in `load`.
      label_key: as in `load`.
      image_key: as in `load`.
      image_size: as in `load`.
      image_range: as in `load`.
      threads: as in `load`.
      worker_count: as in `load`.

    Returns:
      A `Batches`: {"x0": (groups · per_group / n, H, W, C), "cond": (groups · per_group / n,)}.

    Raises:
      ValueError: as `load`; also where a condition has fewer than `per_group` examples.
      FileNotFoundError: the dataset is not there and can't be prepared here.

    Example:
      >>> batch = next(iter(grouped("digits", groups=2, per_group=3)))
      >>> first, second = batch["cond"][:3].tolist(), batch["cond"][3:].tolist()
      >>> len(set(first)), len(set(second))
      (1, 1)
    """
    _check_count("groups", groups)
    _check_count("per_group", per_group)
    if steps is not None:
        _check_count("steps", steps)
    seed = _check_seed(seed)
    index, count = _shard(shard)
    if groups % count:
        raise ValueError(f"groups {groups} is not a multiple of the {count} processes.")
    source = Source(
        name,
        split,
        data_dir=data_dir,
        label_key=label_key,
        image_key=image_key,
        image_size=image_size,
        image_range=image_range,
    )
    labels = source.labels()
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for rows in members:
        if len(rows) < per_group:
            raise ValueError(
                f"{source.where}: label {labels[rows[0]]} has {len(rows)} examples; expected "
                f"at least per_group = {per_group}."
            )
    return Batches(
        source,
        _Groups(members, groups, per_group, seed),
        shard=(index, count),
        flip_seed=seed if flip else None,
        steps=steps,
        steps_per_epoch=None,
        identity={
            **_identity(source, label_key, seed, flip),
            "groups": int(groups),
            "per_group": int(per_group),
        },
        threads=threads,
        worker_count=worker_count,
    )


def arrays(
    name: str,
    split: str = "train",
    *,
    data_dir: PathLike | None = None,
    label_key: Key | None = "label",
    image_key: Key = "image",
    image_size: int | None = None,
    image_range: tuple[float, float] | None = None,
) -> dict[str, np.ndarray]:
    """A whole split in memory, in the order on disk: for small data.

    Args:
      name: as in `load`, like every argument.
      split: as in `load`.
      data_dir: as in `load`.
      label_key: as in `load`.
      image_key: as in `load`.
      image_size: as in `load`.
      image_range: as in `load`.

    Returns:
      {"x0": float32 (n, H, W, C) in [-1, 1], "cond": int32 (n,)}.

    Raises:
      ValueError: as `load`.
      FileNotFoundError: the dataset is not there and can't be prepared here.

    Example:
      >>> test = arrays("digits", "test")
      >>> test["x0"].shape, test["cond"].shape
      ((400, 8, 8, 1), (400,))
    """
    source = Source(
        name,
        split,
        data_dir=data_dir,
        label_key=label_key,
        image_key=image_key,
        image_size=image_size,
        image_range=image_range,
    )
    return source.rows(np.arange(len(source)))


def info(
    name: str,
    split: str = "train",
    *,
    data_dir: PathLike | None = None,
    label_key: Key | None = "label",
    image_key: Key = "image",
    image_size: int | None = None,
) -> Info:
    """What a split holds, without reading it: its size, image shape and classes.

    Args:
      name: as in `load`, like every argument.
      split: as in `load`.
      data_dir: as in `load`.
      label_key: as in `load`.
      image_key: as in `load`.
      image_size: as in `load`.

    Returns:
      An `Info`.

    Raises:
      ValueError: as `load`.
      FileNotFoundError: the dataset is not there and can't be prepared here.

    Example:
      >>> info("digits", "test").num_examples
      400
    """
    return Source(
        name,
        split,
        data_dir=data_dir,
        label_key=label_key,
        image_key=image_key,
        image_size=image_size,
    ).info


class Batches(grain.IterDataset):
    """A grain dataset of batches, made by `load` and `grouped`; each `iter` starts at the first.

    Its iterators are grain's, so orbax saves them (`grain.checkpoint.CheckpointSave`). Their state
    is small, made of JSON types, and the same for every process and number of workers: how many
    batches were taken, and of what; a state taken from other batches is refused.

    Attributes:
      info: `Info` of the split.
      steps: number of batches; None for no end.
      steps_per_epoch: number of batches in an epoch; None where there are no epochs.

    Example:
      >>> it = iter(load("digits", batch_size=100, epochs=1))
      >>> len(list(it)), it.get_state()["step"]
      (9, 9)
    """

    def __init__(
        self,
        source: Source,
        plan: Callable[[int], np.ndarray],
        *,
        shard: tuple[int, int],
        flip_seed: int | None,
        steps: int | None,
        steps_per_epoch: int | None,
        identity: dict[str, Any],
        threads: int,
        worker_count: int,
    ):
        if threads < 0 or worker_count < 0:
            raise ValueError(
                f"threads {threads} and worker_count {worker_count}; expected 0 or more of each."
            )
        reader = _Reader(source, plan, shard, flip_seed, sys.maxsize if steps is None else steps)
        self._dataset = grain.MapDataset.source(reader)
        super().__init__(self._dataset)
        self.info = source.info
        self.steps = steps
        self.steps_per_epoch = steps_per_epoch
        self._identity = identity
        # An element is a batch, and grain's default is to hold 500 of them.
        self._read_options = grain.ReadOptions(threads, 2 * threads)
        self._worker_count = worker_count

    def __iter__(self) -> grain.DatasetIterator:
        return _BatchIterator(self)

    def iterate_from(self, step: int) -> Iterator[dict[str, np.ndarray]]:
        """The batches from number `step` on, as a bare iterator."""
        rest = self._dataset[step:].to_iter_dataset(self._read_options)
        if self._worker_count:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # Grain's workers read flags, which only absl.app sets.
                flags.FLAGS.mark_as_parsed()
            rest = rest.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._worker_count))
        return iter(rest)

    def check_state(self, state: Any) -> int:
        """The step of a saved iterator state, or a ValueError that says why it doesn't fit."""
        if not isinstance(state, dict) or set(state) != {"step", "of"}:
            raise ValueError(
                f"iterator state {state!r}; expected what get_state() of guidejax.data returned."
            )
        saved = state["of"]
        keys = sorted(set(saved) | set(self._identity))
        other = [key for key in keys if saved.get(key) != self._identity.get(key)]
        if other:
            differences = ", ".join(
                f"{key} {saved.get(key)!r} (now {self._identity.get(key)!r})" for key in other
            )
            raise ValueError(
                f"the iterator state was saved from other batches, with {differences}; expected "
                "the state of the same ones."
            )
        step, steps = state["step"], self.steps
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"iterator state at step {step!r}; expected a number of batches.")
        if steps is not None and step > steps:
            raise ValueError(f"iterator state at step {step}; expected at most {steps} steps.")
        return step


class _BatchIterator(grain.DatasetIterator):
    """Counts batches; the pipeline behind it starts at the count, whatever it was before."""

    def __init__(self, batches: Batches):
        super().__init__()
        self._batches = batches
        self._step = 0
        self._inner: Any = None

    def __next__(self) -> dict[str, np.ndarray]:
        self.start_prefetch()
        batch = next(self._inner)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"step": self._step, "of": dict(self._batches._identity)}

    def set_state(self, state: dict[str, Any]) -> None:
        step = self._batches.check_state(state)
        self._stop()
        self._step = step

    def start_prefetch(self) -> None:
        if getattr(self, "_closed", False):
            raise ValueError("the iterator is closed; expected an open one.")
        if self._inner is None:
            self._inner = self._batches.iterate_from(self._step)

    def close(self) -> None:
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        inner: Any = getattr(self, "_inner", None)
        self._inner = None
        if hasattr(inner, "close"):
            inner.close()

    def __str__(self) -> str:
        return f"guidejax.data iterator at step {self._step} of {self._batches.info.name}"


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Random access to this process's part of each global batch, which `plan` lists."""

    source: Source
    plan: Callable[[int], np.ndarray]
    shard: tuple[int, int]
    flip_seed: int | None
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        indices = self.plan(step)
        index, count = self.shard
        mine = slice(len(indices) * index // count, len(indices) * (index + 1) // count)
        batch = self.source.rows(indices[mine])
        if self.flip_seed is not None:
            # Drawn for the whole global batch: a flip doesn't depend on who holds the row.
            draws = np.random.default_rng((1, self.flip_seed, step)).random(len(indices))
            flipped = draws[mine, None, None, None] < 0.5
            batch["x0"] = np.where(flipped, batch["x0"][:, :, ::-1], batch["x0"])
        return batch


@dataclasses.dataclass(frozen=True)
class _Epochs:
    """The examples of each global batch: a permutation of the split an epoch, cut in pieces."""

    size: int
    batch_size: int
    steps_per_epoch: int
    seed: int | None

    def __call__(self, step: int) -> np.ndarray:
        epoch, part = divmod(step, self.steps_per_epoch)
        rows = np.arange(part * self.batch_size, min((part + 1) * self.batch_size, self.size))
        return rows if self.seed is None else _order(self.size, self.seed, epoch)[rows]


@dataclasses.dataclass(frozen=True)
class _Groups:
    """The examples of each grouped global batch."""

    members: list[np.ndarray]
    groups: int
    per_group: int
    seed: int

    def __call__(self, step: int) -> np.ndarray:
        classes = len(self.members)
        steps_per_round = max(classes // self.groups, 1)
        turns = -(-self.groups // classes)  # Of a class in a round, at most.
        round_, part = divmod(step, steps_per_round)
        order = _permutation(classes, 2, self.seed, round_)
        chosen = np.sort(np.resize(np.roll(order, -part * self.groups), self.groups)).tolist()
        rows = []
        for group, label in enumerate(chosen):
            # A class without its turn in a round skips a slot, so turns needn't be counted.
            turn = round_ * turns + group - chosen.index(label)
            members = self.members[label]
            epoch, slot = divmod(turn, len(members) // self.per_group)
            order = _permutation(len(members), 3, self.seed, label, epoch)
            rows.append(members[order[slot * self.per_group : (slot + 1) * self.per_group]])
        return np.concatenate(rows)


# The order of an epoch may be long: ImageNet's is 10 MB. Two are in use where epochs meet.
@functools.lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((4, seed, epoch)).permutation(n)


@functools.lru_cache(maxsize=1024)
def _permutation(n: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n)


def _identity(source: Source, label_key: Key | None, seed: int, flip: bool) -> dict[str, Any]:
    return {
        "dataset": source.info.name,
        "split": source.info.split,
        "examples": source.info.num_examples,
        "label_key": label_key if isinstance(label_key, str | None) else "/".join(label_key),
        "seed": int(seed),
        "flip": bool(flip),
    }


def _shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    if shard is None:
        import jax

        return jax.process_index(), jax.process_count()
    index, count = shard
    if count < 1 or not 0 <= index < count:
        raise ValueError(f"shard {shard!r}; expected (index, count) with 0 <= index < count.")
    return index, count


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} {value!r}; expected a positive integer.")


def _check_seed(seed: int) -> int:
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"seed {seed!r}; expected an integer, 0 <= seed < 2**32.")
    return int(seed)

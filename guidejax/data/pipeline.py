"""Grain pipelines over TFDS datasets: sharded, resumable batches {"x0", "cond"}."""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any

import grain
import numpy as np

from guidejax.data.sources import Images, Source


def load(
    images: Images | str,
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    drop_remainder: bool = True,
    flip: bool = False,
    shard: tuple[int, int] | None = None,
    threads: int = 4,
    worker_count: int = 0,
) -> Batches:
    """Batches of any image dataset of TFDS.

    An epoch is a fresh permutation of the split, cut into batches of `batch_size`. That stream
    depends on the seed only: process i of n yields rows [i b, (i + 1) b) of each global batch,
    b = batch_size / n, in the order that `jax.make_array_from_process_local_data` wants, so a run
    sees the same global batches however many processes hold them, and may resume on another
    number of them.

    Args:
      images: an `Images`, or the name of a dataset, for its split "train".
      batch_size: rows of the global batch, over all processes.
      seed: of the order and of the flips, 0 ≤ seed < 2³².
      shuffle: False for the order on disk.
      epochs: how many; None for no end.
      drop_remainder: drop an epoch's last, short batch (other examples each epoch). False keeps
        it: an epoch then holds each example once, and a process's part of its last batch may be
        shorter than the others', or empty.
      flip: mirror each image left to right with probability 1/2.
      shard: (index, count) of this process; default `jax.process_index()`, `process_count()`.
      threads: threads that make batches ahead of time.
      worker_count: processes that do, instead of this one, for large images; the same batches. As
        with any `multiprocessing`, a script then needs its `if __name__ == "__main__":`.

    Returns:
      A `Batches`: iterate for {"x0": float32 (b, H, W, C) in [-1, 1], "cond": int32 (b,)}, or
        (b, ...) of what `Images.encode` makes.

    Raises:
      ValueError: an argument, a split, a feature, a label or a pixel is not what it should be;
        what is wrong with an example is raised when the example is read.
      FileNotFoundError: the dataset is not there and can't be prepared here.

    Example:
      >>> batches = load("digits", batch_size=128, seed=0)
      >>> it = iter(batches)
      >>> next(it)["x0"].shape
      (128, 8, 8, 1)
      >>> state = it.get_state()  # ... and later, in another process:
      >>> it.set_state(state)
    """
    _integers(1, batch_size=batch_size, epochs=1 if epochs is None else epochs)
    _integers(0, seed=seed)
    shard = _shard(shard, batch_size=batch_size)
    source = Source(images)
    size = len(source)
    if drop_remainder and batch_size > size:
        raise ValueError(
            f"batch_size {batch_size} exceeds the {size} examples of {source.where}; expected "
            "at most that many, or drop_remainder=False."
        )
    rows = grain.MapDataset.range(size).seed(int(seed))
    if shuffle:
        rows = rows.shuffle()
    rows = rows.batch(batch_size, drop_remainder=drop_remainder, batch_fn=np.asarray)
    return Batches(
        source, rows.repeat(epochs), len(rows), seed=seed, flip=flip, shard=shard,
        threads=threads, worker_count=worker_count,
        batch_size=int(batch_size), shuffle=bool(shuffle), drop_remainder=bool(drop_remainder),
    )  # fmt: skip


def grouped(
    images: Images | str,
    *,
    groups: int,
    per_group: int,
    seed: int = 0,
    steps: int | None = None,
    flip: bool = False,
    shard: tuple[int, int] | None = None,
    threads: int = 4,
    worker_count: int = 0,
) -> Batches:
    """Batches of `groups` conditions, each `per_group` times in a row: for objective "rollout".

    Each batch draws `groups` conditions without repetition from those that the split holds
    (beyond their number, whole rounds of all of them), in rounds that visit a condition once; a
    visit takes `per_group` examples of it, which don't come up again in the same pass over that
    condition's. cond is sorted. Processes share a batch by whole groups, in order; the batches
    don't depend on their number.

    The labels of the split are read once, at the start.

    Args:
      images: as in `load`, like every argument that is not here.
      groups: conditions in the global batch, a multiple of the number of processes.
      per_group: examples of each.
      seed: of the choice of conditions and examples, and of the flips, 0 ≤ seed < 2³².
      steps: how many batches; None for no end.
      flip: as in `load`.
      shard: as in `load`.
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
    _integers(1, groups=groups, per_group=per_group, steps=1 if steps is None else steps)
    _integers(0, seed=seed)
    shard = _shard(shard, groups=groups)
    source = Source(images)
    labels = source.labels()
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for rows in members:
        if len(rows) < per_group:
            raise ValueError(
                f"{source.where}: label {labels[rows[0]]} has {len(rows)} examples; expected "
                f"at least per_group = {per_group}."
            )
    plan = _Groups(members, groups, per_group, int(seed), sys.maxsize if steps is None else steps)
    return Batches(
        source, grain.MapDataset.source(plan), None, seed=seed, flip=flip, shard=shard,
        threads=threads, worker_count=worker_count,
        groups=int(groups), per_group=int(per_group),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Groups:
    """The examples of each grouped global batch; `members` are those of each condition."""

    members: list[np.ndarray]
    groups: int
    per_group: int
    seed: int
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> np.ndarray:
        classes = len(self.members)
        round_, part = divmod(step, max(classes // self.groups, 1))
        turns = -(-self.groups // classes)  # Of a class in a round, at most; it may skip one.
        order = _order(classes, 1, self.seed, round_)
        chosen = sorted(
            (order[place % classes], round_ * turns + place // classes)
            for place in range(part * self.groups, (part + 1) * self.groups)
        )
        return np.concatenate([self._visit(label, turn) for label, turn in chosen])

    def _visit(self, label: int, turn: int) -> np.ndarray:
        rows = self.members[label]
        epoch, slot = divmod(turn, len(rows) // self.per_group)
        order = _order(len(rows), 2, self.seed, label, epoch)
        return rows[order[slot * self.per_group : (slot + 1) * self.per_group]]


@functools.lru_cache(maxsize=1024)
def _order(n: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n)


class Batches(grain.IterDataset):
    """A grain dataset of batches, made by `load`, `grouped` or `load_examples`.

    Each `iter` starts at the first.

    Its iterators are grain's, so orbax saves them (`grain.checkpoint.CheckpointSave`). Their state
    is small, made of JSON types, and the same for every process and number of workers: how many
    batches were taken, and of what; a state taken from other batches is refused.

    Attributes:
      info: `Info` of the split; None of `load_examples`.
      steps: number of batches; None for no end.
      steps_per_epoch: number of batches in an epoch; None where there are no epochs.

    Example:
      >>> it = iter(load("digits", batch_size=100, epochs=1))
      >>> len(list(it)), it.get_state()["step"]
      (9, 9)
    """

    def __init__(
        self,
        source: Any,
        rows: grain.MapDataset,
        steps_per_epoch: int | None,
        *,
        seed: int,
        flip: bool,
        shard: tuple[int, int],
        threads: int,
        worker_count: int,
        **settings: Any,
    ):
        """`rows` are the examples of each global batch; a state knows the `settings`.

        A `source` has `rows(indices)`, its `identity` in JSON types, and its `info`.
        """
        _integers(0, threads=threads, worker_count=worker_count)
        index, count = shard

        def read(chosen: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:
            mine = slice(len(chosen) * index // count, len(chosen) * (index + 1) // count)
            batch = source.rows(chosen[mine])
            if flip:
                # Drawn for the whole global batch: a flip doesn't depend on who holds the row.
                mirror = random.random(len(chosen))[mine, None, None, None] < 0.5
                batch["x0"] = np.where(mirror, batch["x0"][:, :, ::-1], batch["x0"])
            return batch

        self._batches = rows.random_map(read, seed=int(seed))
        super().__init__(self._batches)
        self.info = source.info
        self.steps = None if len(rows) == sys.maxsize else len(rows)
        self.steps_per_epoch = steps_per_epoch
        self._identity = {**source.identity, "seed": int(seed), "flip": bool(flip), **settings}
        # An element is a batch, and grain's default is to hold 500 of them.
        self._read_options = grain.ReadOptions(threads, 2 * threads)
        self._worker_count = worker_count

    def __iter__(self) -> grain.DatasetIterator:
        return _Iterator(self)

    def _from(self, step: int) -> grain.DatasetIterator:
        """An iterator of grain's own, from batch number `step` on."""
        rest = self._batches[step:].to_iter_dataset(self._read_options)
        if self._worker_count:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # Grain's workers read flags, which only absl.app sets.
                flags.FLAGS.mark_as_parsed()
            rest = rest.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._worker_count))
        return iter(rest)

    def _check(self, state: Any) -> int:
        """The step of a saved iterator state, or a ValueError that says why it doesn't fit."""
        known = isinstance(state, dict) and set(state) == {"step", "of"}
        if not known or not isinstance(state["of"], dict):
            raise ValueError(
                f"iterator state {state!r}; expected what get_state() of guidejax.data returned."
            )
        saved, now = state["of"], self._identity
        differences = [
            f"{key} {saved.get(key)!r} (now {now.get(key)!r})"
            for key in sorted(saved.keys() | now.keys())
            if saved.get(key) != now.get(key)
        ]
        if differences:
            raise ValueError(
                f"the iterator state was saved from other batches, with {', '.join(differences)}; "
                "expected the state of the same ones."
            )
        _integers(0, len(self._batches) + 1, step=state["step"])
        return state["step"]


class _Iterator(grain.DatasetIterator):
    """Counts batches: grain's own state depends on the number of workers."""

    def __init__(self, batches: Batches):
        super().__init__()
        self._of = batches
        self._step = 0
        self._rest = batches._from(0)

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._rest)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"step": self._step, "of": dict(self._of._identity)}

    def set_state(self, state: dict[str, Any]) -> None:
        step = self._of._check(state)
        self._rest.close()
        self._step, self._rest = step, self._of._from(step)

    def start_prefetch(self) -> None:
        self._rest.start_prefetch()

    def close(self) -> None:
        self._rest.close()

    def __str__(self) -> str:
        of = "examples" if self._of.info is None else self._of.info.name
        return f"guidejax.data iterator at step {self._step} of {of}"


def _shard(shard: tuple[int, int] | None, **shared: int) -> tuple[int, int]:
    if shard is None:
        import jax

        shard = jax.process_index(), jax.process_count()
    index, count = shard
    if count < 1 or not 0 <= index < count:
        raise ValueError(f"shard {shard!r}; expected (index, count) with 0 <= index < count.")
    for name, value in shared.items():
        if value % count:
            raise ValueError(
                f"{name} {value} is not a multiple of the {count} processes that share it."
            )
    return index, count


def _integers(low: int, /, high: int = 2**32, **values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ValueError(f"{name} {value!r}; expected an integer.")
        if not low <= value < high:
            raise ValueError(f"{name} {value!r}; expected {low} <= {name} < {high}.")

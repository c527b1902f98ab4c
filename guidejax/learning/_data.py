"""The batches of a run: checked, put on the devices, and where they stand."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from guidejax._arrays import batch_size, check_finite, same_structure, tree_map
from guidejax._denoisers import Denoiser
from guidejax._guidance import Guidance
from guidejax._inputs import as_branch, as_dtype_of, rows_for_all
from guidejax.learning.evaluations import as_evaluations
from guidejax.objectives.base import Batch


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What the branches of the rule are made of, beside what a batch carries."""

    names: tuple[str, ...]
    networks: dict[str, Denoiser]
    given: dict[str, Any]

    @classmethod
    def of(
        cls, guide: Guidance, denoise: Denoiser, uncond: Any, conditions: Mapping[str, Any]
    ) -> Conditions:
        """The branches that `guide` needs."""
        networks, given = {}, {} if uncond is None else {"uncond": uncond}
        for name, value in conditions.items():
            network, condition = as_branch(name, value, None, denoise.process)
            if network is not None:
                networks[name] = network
            if condition is not None:
                given[name] = condition
        guide.check_known(conditions)
        return cls(guide.branches[1:], networks, given)

    def batch(self, batch: Any, checks: list[Any], where: str) -> Batch:
        """A `Batch` of what the data gave, or an error that says what is wrong with it."""
        carried: Mapping[str, Any] = {}
        if isinstance(batch, Mapping):
            missing = {"x0", "cond"} - set(batch)
            if missing:
                raise ValueError(f"{where} has no {sorted(missing)}; expected 'x0' and 'cond'.")
            x0, cond, carried = batch["x0"], batch["cond"], batch
        elif isinstance(batch, (tuple, list)) and len(batch) == 2:
            x0, cond = batch
        else:
            several = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise ValueError(
                f"{where} is a {type(batch).__name__}{several}; expected a pair (x0, cond), or a "
                "mapping, which has the conditions of other branches by their names."
            )
        own = {name: carried[name] for name in self.names if name in carried}
        for name, tree in {**own, "x0": x0, "cond": cond}.items():
            _check_known(tree, name, where)
        size = batch_size(x0)
        for leaf in jax.tree.leaves(x0):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(
                    f"{where}: x0 is {leaf.dtype}; expected floats, scaled as the denoiser knows "
                    "them."
                )
        others, kept = {}, as_evaluations(carried.get("evaluations"), size, where)
        for name in self.names:
            value = carried.get(name, self.given.get(name))
            if value is None and name not in self.networks and kept is None:
                how = "uncond=..." if name == "uncond" else f"conditions={{{name!r}: ...}}"
                raise ValueError(f"{where} has no {name!r}; give fit({how}).")
            others[name] = cond if value is None else _like(value, cond, size, name, where)
        for name, tree in {"cond": cond, **others}.items():
            for leaf in jax.tree.leaves(tree):
                if np.ndim(leaf) == 0 or np.shape(leaf)[0] != size:
                    raise ValueError(
                        f"{where}: {name} has shape {np.shape(leaf)} for {size} samples."
                    )
        for name, tree in {"x0": x0, "cond": cond, **others}.items():
            check_finite(f"{name} of {where}", tree)
        found = Batch(x0, cond, others, kept)
        for check in checks:
            check(found, where)
        return found


def _check_known(tree: Any, name: str, where: str) -> None:
    """Raise `ValueError` where something is no array of numbers of NumPy or JAX."""
    for leaf in jax.tree.leaves(tree):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        try:
            known = any(jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_))
        except TypeError:  # another library's, as torch.float32
            known = False
        if not known:
            raise ValueError(
                f"{where}: {name} holds a {type(leaf).__name__} of {dtype}; expected numbers, in "
                "arrays of NumPy or JAX: of a text its embedding, of a class its index."
            )


def _like(value: Any, cond: Any, size: int, name: str, where: str) -> Any:
    """A branch's condition in the shape of `cond`; in NumPy, so as not to wait for the device."""
    if not same_structure(value, cond):
        return tree_map(lambda a: rows_for_all(np.asarray(a), size), value)

    def one(value, cond):
        cond = np.asarray(cond)
        value = as_dtype_of(cond, np.asarray(value), f"{where}: {name}")
        try:
            return np.broadcast_to(value, cond.shape)
        except ValueError:
            if value.ndim == cond.ndim and value.shape[0] in (1, cond.shape[0]):
                return np.broadcast_to(value, (cond.shape[0], *value.shape[1:]))
            raise ValueError(
                f"{where}: {name} has shape {value.shape}, which doesn't broadcast to cond's "
                f"{cond.shape}."
            ) from None

    return tree_map(one, value, cond)


class Feed:
    """The batches in their order; it counts those that were drawn.

    Args:
        batches: An iterable of batches.
        branches: What the other branches are made of.
        checks: What else a batch must be, `check(batch, where)`.
        leave_out: Numbers of batches, from 0, that are drawn and not used.
    """

    def __init__(
        self, batches: Iterable[Any], branches: Conditions, checks: list[Any], leave_out: Any = ()
    ):
        self._source, self._branches, self._checks = iter(batches), branches, checks
        self._left_out = frozenset(leave_out)
        self._ahead: list[Any] = []  # The first batch, looked at before it is used.
        self._shapes: Any = None
        self.drawn = 0

    def first(self) -> Batch | None:
        """The first batch, which stays to be taken; None where there is none."""
        self._ahead = self._ahead or list(itertools.islice(self._source, 1))
        if not self._ahead:
            return None
        return self._branches.batch(self._ahead[0], self._checks, "batch 0")

    def take(self, count: int) -> tuple[list[Batch], list[int]]:
        """The next batches that are used, and their numbers.

        Raises:
            ValueError: If the data end before, or a batch is not what it should be.
        """
        found: list[Batch] = []
        numbers: list[int] = []
        while len(found) < count:
            number = self.drawn
            for raw in itertools.islice(itertools.chain(self._ahead, self._source), 1):
                self._ahead, self.drawn = [], self.drawn + 1
                if number not in self._left_out:
                    batch = self._branches.batch(raw, self._checks, f"batch {number}")
                    self._check_shapes(batch, number)
                    found.append(batch)
                    numbers.append(number)
            if self.drawn == number:
                raise ValueError(
                    f"the data ended after {number} batches; expected one a step. Repeat it."
                )
        return found, numbers

    def _check_shapes(self, batch: Batch, number: int) -> None:
        found = tree_map(np.shape, tuple(batch))
        if self._shapes is not None and found != self._shapes:
            raise ValueError(
                f"batch {number} has shapes {found}, the ones before it {self._shapes}; expected "
                "all alike. Drop the remainder of an epoch."
            )
        self._shapes = found

    def position(self) -> dict[str, Any]:
        """Where the data stand, as JSON: how many were drawn, and the source's own state."""
        source, position = self._source, {"drawn": self.drawn}
        if not (hasattr(source, "get_state") and hasattr(source, "set_state")):
            return position
        state = source.get_state()
        if isinstance(state, bytes):
            return {**position, "bytes": state.decode("latin-1")}
        try:
            # There and back at once: a state that the iterator goes on to change is not ours.
            return {**position, "json": json.loads(json.dumps(state))}
        except TypeError as error:
            raise ValueError(
                f"the data's get_state() is no bytes and no JSON, so it can't be saved ({error})."
            ) from error

    def resume(self, position: Mapping[str, Any]) -> None:
        """Bring the data to where they stood."""
        count = position["drawn"]
        if count == 0:
            return
        state = position.get("json", position.get("bytes"))
        if state is None or not hasattr(self._source, "set_state"):
            # `first` has drawn one of them.
            rest = itertools.islice(self._source, count - len(self._ahead))
            collections.deque(rest, maxlen=0)
        else:
            self._source.set_state(state.encode("latin-1") if "bytes" in position else state)
        self._ahead, self.drawn = [], count


class Rows(NamedTuple):
    """What a process tells the others of its rows.

    Attributes:
        shapes: Of the first batch; empty where there is none.
        values: A fingerprint of it.
        held_out: The shapes of every held-out batch.
    """

    shapes: list[str]
    values: str
    held_out: list[list[str]]


def check_shares(parts: Sequence[tuple[int, ...]], said: Sequence[Rows], index: int) -> None:
    """Raise `ValueError` where the rows of the processes don't make one batch.

    Args:
        parts: The parts of a batch that the devices of each process hold.
        said: What each process says of its rows.
        index: The number of this process.
    """
    groups = sorted(set(parts))
    share = f"gj.data.load(..., shard=({groups.index(parts[index])}, {len(groups)})) in this one."
    alike: dict[tuple[int, ...], int] = {}  # For each part the first process that holds it.
    seen: dict[str, int] = {}  # For each fingerprint the first process that gives it.
    twice = ""
    for other, b in enumerate(said):
        a, who = said[0], f"processes 0 and {other}"
        if a.shapes != b.shapes:
            raise ValueError(
                f"{who} give first batches of other shapes, {a.shapes} and {b.shapes}; expected "
                "as many rows in each."
            )
        if len(a.held_out) != len(b.held_out):
            raise ValueError(
                f"{who} give {len(a.held_out)} and {len(b.held_out)} held_out batches; expected "
                "as many in each."
            )
        if a.held_out != b.held_out:
            raise ValueError(
                f"{who} give held_out batches of other shapes, {a.held_out} and {b.held_out}; "
                "expected as many rows in each."
            )
        one = alike.setdefault(parts[other], other)
        if said[one].values != b.values:
            raise ValueError(
                f"processes {one} and {other} hold the same rows of a batch on this mesh, and give "
                f"different ones; a process gives those that its devices hold: {share}"
            )
        one = seen.setdefault(b.values, other)
        if b.values and parts[one] != parts[other]:
            twice = twice or f"processes {one} and {other}"
    if twice:
        warnings.warn(
            f"{twice} hold different rows of a batch on this mesh, and the first ones that they "
            f"give are equal; a process gives those that its devices hold: {share}",
            stacklevel=4,
        )


def stack(chunk: list[Batch], mesh: Mesh | None, axes: tuple[str, ...]) -> Batch:
    """Batches along a new leading axis; on a mesh, each split over `axes`."""
    stacked = tree_map(lambda *leaves: np.stack([np.asarray(a) for a in leaves]), *chunk)
    if mesh is None:
        return stacked
    return shared(stacked, mesh, axes, at=1)


def shared(tree: Any, mesh: Mesh, axes: tuple[str, ...], at: int = 0) -> Any:
    """The rows that each process has, as arrays of all of them, split along dimension `at`.

    Raises:
        ValueError: If the batch is no multiple of the devices that it is split over.
    """
    parts = math.prod(mesh.shape[name] for name in axes)
    size = jax.tree.leaves(tree)[0].shape[at]
    if size * jax.process_count() % parts:
        raise ValueError(f"a batch of {size} can't be split over {parts} devices; give a multiple.")
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * at, axes))
    return tree_map(lambda a: jax.make_array_from_process_local_data(sharding, a), tree)

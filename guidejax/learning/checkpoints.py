"""Checkpoints of a run: its state, where the data stood, what it learns, and whose it is."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, tree_map
from guidejax.learning._identity import Identity, describe, is_key, plain
from guidejax.weights.omega_net import OmegaNet

BEST = "best"
LOCK = "lock"
DAMAGED = ".damaged"
OTHER = ".of-another-run"
SEAL = "checksums.json"


class Saved(NamedTuple):
    """What one checkpoint holds.

    Attributes:
        step: Updates that were made.
        arrays: The state's arrays by their place in it.
        about: JSON: "identity", and "position" of the data or "score" of the best φ.
    """

    step: int
    arrays: dict[str, np.ndarray]
    about: dict[str, Any]


class Damaged(Exception):
    """A checkpoint that doesn't hold what was written."""


def place(path: Any) -> str:
    """The place of a leaf in a pytree: "phi.omega"."""
    return jax.tree_util.keystr(path, simple=True, separator=".") or "value"


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their places: {"phi.omega": ...}."""
    return {place(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def on_host(tree: Any) -> dict[str, np.ndarray]:
    """The leaves by their places as they are saved: on the host, random keys as their data."""
    leaves = {name: plain(leaf) for name, leaf in named_leaves(tree).items()}
    return tree_map(np.asarray, jax.device_get(leaves))


def part(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Of the arrays by name, those that lie under `name`, by their places there."""
    return {
        where.removeprefix(name).removeprefix(".") or "value": array
        for where, array in arrays.items()
        if where == name or where.startswith(f"{name}.")
    }


def unflatten(arrays: dict[str, np.ndarray], like: Any) -> Any:
    """A pytree shaped as `like` of the arrays by name.

    Raises:
        ValueError: If names, shapes or dtypes differ.
    """
    wanted = named_leaves(like)
    lacking, more = sorted(wanted.keys() - arrays.keys()), sorted(arrays.keys() - wanted.keys())
    if lacking or more:
        raise ValueError(f"it lacks {lacking or 'nothing'} and has {more or 'nothing'} besides")
    leaves = []
    for name, leaf in wanted.items():
        expected, found = jax.eval_shape(plain, leaf), arrays[name]
        if (expected.dtype, expected.shape) != (found.dtype, found.shape):
            raise ValueError(
                f"it holds {found.dtype}{list(found.shape)} for {name}, expected "
                f"{expected.dtype}{list(expected.shape)}"
            )
        leaves.append(_as_key(found, leaf) if is_key(leaf) else found)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _as_key(data: np.ndarray, like: Any) -> Array:
    return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(like))


def _hashes(folder: pathlib.Path) -> dict[str, str]:
    """A hash of every file of a checkpoint, but for the seal."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SEAL
    }


def _write_seal(folder: pathlib.Path) -> None:
    """Write down what was written: the last thing done to a checkpoint."""
    part = folder / f"{SEAL}.part"
    part.write_text(json.dumps(_hashes(folder)))
    part.replace(folder / SEAL)


def _check_seal(folder: pathlib.Path) -> None:
    """Raise `Damaged` where a checkpoint's files are not those that were written."""
    try:
        sealed = json.loads((folder / SEAL).read_text())
        found = _hashes(folder)
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"its checksums can't be read: {error}") from error
    if sealed != found:
        names = sealed.keys() | found.keys() if isinstance(sealed, dict) else {SEAL}
        other = [n for n in sorted(names) if n == SEAL or sealed.get(n) != found.get(n)]
        raise Damaged(f"another checksum: {', '.join(other[:3])}")


def local(directory: str | os.PathLike[str]) -> pathlib.Path:
    """The directory as an absolute path.

    Raises:
        ValueError: If it is an address, as "gs://bucket/run".
    """
    # A path of "gs://bucket" reads "gs:/bucket"; one letter is a drive of Windows.
    if re.match(r"[A-Za-z][\w+.-]+:/", str(directory)):
        raise ValueError(
            f"checkpoint_dir is {directory}; expected a folder: mount the bucket, and give the "
            "path where it is mounted."
        )
    return pathlib.Path(directory).absolute()


def _steps(directory: pathlib.Path) -> list[int]:
    """The steps of finished checkpoints, newest first."""
    names = [p.name for p in directory.iterdir() if p.is_dir()] if directory.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _read(directory: pathlib.Path, step: int) -> Saved:
    """One checkpoint.

    Raises:
        Damaged: If it can't be read, or doesn't hold what was written.
    """
    import orbax.checkpoint as ocp

    args = ocp.args.Composite(state=ocp.args.StandardRestore(), about=ocp.args.JsonRestore())
    one = _alone()
    handlers = {
        "state": ocp.StandardCheckpointHandler(multiprocessing_options=one),
        "about": ocp.JsonCheckpointHandler(multiprocessing_options=one),
    }
    options = ocp.CompositeOptions(multiprocessing_options=one)
    _check_seal(directory / str(step))
    try:
        with (
            warnings.catch_warnings(),
            ocp.Checkpointer(
                ocp.CompositeCheckpointHandler(**handlers, composite_options=options),
                multiprocessing_options=one,
            ) as reader,
        ):
            warnings.simplefilter("ignore")  # Of arrays that lie on no device.
            found = reader.restore(directory / str(step), args=args)
        arrays = {name: np.asarray(array) for name, array in found["state"].items()}
    except Exception as error:
        raise Damaged(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    return Saved(step, arrays, dict(found["about"]))


def _alone() -> Any:
    """Of several processes each reads, and the first writes, by itself."""
    import orbax.checkpoint as ocp

    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process{here}"
    )


def newest(directory: pathlib.Path) -> tuple[Saved | None, dict[int, str]]:
    """(the newest intact checkpoint, why each newer one is not: {step: reason}).

    Raises:
        ValueError: If there are checkpoints, and none is intact.
    """
    damaged: dict[int, str] = {}
    for step in _steps(directory):
        try:
            return _read(directory, step), damaged
        except Damaged as error:
            damaged[step] = str(error)
    if damaged:
        raise ValueError(
            f"no checkpoint in {directory} is intact: "
            + "; ".join(f"step {step}: {why}" for step, why in damaged.items())
            + ". Restore the folder from a copy, or move it away to start from the beginning."
        )
    return None, {}


def _warn(directory: pathlib.Path, damaged: dict[int, str], used: int, how: str) -> None:
    for step, why in damaged.items():
        warnings.warn(
            f"the checkpoint {directory / str(step)} is damaged ({why}){how}; step {used} is used.",
            stacklevel=3,
        )


def _free(path: pathlib.Path, ending: str) -> pathlib.Path:
    """A path beside this one, with the ending and a number if need be, where nothing lies."""
    free = (path.with_name(f"{path.name}{ending}{n or ''}") for n in range(1000))
    return next(new for new in free if not new.exists())


class Checkpoints:
    """The checkpoints of one run in one directory, written in the background.

    Raises:
        RuntimeError: If another run writes there, or something can't be written.
    """

    def __init__(self, directory: str | pathlib.Path, keep: int = 2):
        self.directory, self._keep = local(directory), keep
        self._managers: dict[pathlib.Path, Any] = {}
        self._writing: concurrent.futures.Future[None] | None = None
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = (self.directory / LOCK).open("ab")
        except OSError as error:
            raise RuntimeError(
                f"nothing can be written in {self.directory} ({error.strerror or error}): give a "
                "checkpoint_dir that can be written to."
            ) from error
        if not _locked(self._lock):
            self._lock.close()
            raise RuntimeError(
                f"another run writes in {self.directory}: wait for its end, or give this one a "
                "checkpoint_dir of its own."
            )

    def best(self) -> Saved | None:
        """The best φ that was saved."""
        found, damaged = newest(self.directory / BEST)
        if found is not None:
            self.set_aside(damaged, found.step, BEST)
        return found

    def set_best_aside(self, why: str, above: int = -1) -> None:
        """Rename the best φ of steps after `above`, with a warning that says why."""
        for step in _steps(self.directory / BEST):
            if step > above:
                old = self.directory / BEST / str(step)
                new = _free(old, OTHER)
                old.rename(new)
                warnings.warn(
                    f"the best φ so far, of step {step}, is set aside as {new}: {why}.",
                    stacklevel=3,
                )

    def set_aside(self, damaged: dict[int, str], used: int, where: str = "") -> None:
        """Rename what `newest` found damaged, with a warning that names it and what is used."""
        directory = self.directory / where
        for step in damaged:
            old = directory / str(step)
            old.rename(_free(old, DAMAGED))
        _warn(directory, damaged, used, f" and set aside as {DAMAGED[1:]}")

    def save(self, step: int, state: Any, about: dict[str, Any]) -> None:
        """Write `state` and `about` as of `step` in the background, if they aren't there yet."""
        self._write(self.directory, step, state, about)

    def save_best(self, step: int, score: float, phi: Any, identity: Identity) -> None:
        """Write the best φ so far, with its score."""
        about = {"identity": identity, "score": score}
        self._write(self.directory / BEST, step, {"phi": phi}, about)

    def _write(self, where: pathlib.Path, step: int, state: Any, about: dict[str, Any]) -> None:
        self.wait()
        if step in _steps(where):
            return
        # From the host: whoever reads it may have other devices.
        arrays = on_host(state)
        about = json.loads(json.dumps(about))
        if self._threads is None:
            self._threads = concurrent.futures.ThreadPoolExecutor(1)
        self._writing = self._threads.submit(self._write_now, where, step, arrays, about)

    def _write_now(self, where: pathlib.Path, step: int, arrays: Any, about: Any) -> None:
        import orbax.checkpoint as ocp

        if not self.directory.is_dir():
            raise FileNotFoundError("the folder is gone")
        if where not in self._managers:
            where.mkdir(exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, create=False, enable_async_checkpointing=False,
                multiprocessing_options=_alone(),
            )  # fmt: skip
            self._managers[where] = ocp.CheckpointManager(where, options=options)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)
        )
        self._managers[where].save(step, args=args, force=True)
        _write_seal(where / str(step))

    def wait(self) -> None:
        """Wait for what is being written.

        Raises:
            RuntimeError: If it could not be.
        """
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except Exception as error:
            kept = _steps(self.directory)
            raise RuntimeError(
                f"a checkpoint could not be written in {self.directory} "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
                + (f"that of step {kept[0]} is kept. " if kept else "there is none before it. ")
                + "Make room or give the folder back, and start the same run again."
            ) from error

    def close(self) -> None:
        """Finish what is being written and let go of the directory."""
        try:
            self.wait()
        finally:
            if self._threads is not None:
                self._threads.shutdown()
            for manager in self._managers.values():
                manager.close()
            self._lock.close()


def _locked(file: Any) -> bool:
    """Whether the lock is ours now; it ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows has none of it.
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # A file system without locks.
        return True
    return True


def _for_reading(directory: str | pathlib.Path, best: bool | None) -> Saved:
    """The newest checkpoint in `directory`, or the best one; a damaged one is passed over."""
    directory = local(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"no checkpoint of a run in {directory}: no such folder.")
    if best is None:
        best = bool(_steps(directory / BEST))
    where = directory / BEST if best else directory
    if not where.is_dir():
        raise FileNotFoundError(f"the run in {directory} kept no best φ.")
    found, damaged = newest(where)
    if found is None:
        raise FileNotFoundError(f"no checkpoint of a run in {where}.")
    _warn(where, damaged, found.step, "")
    return found


def load(directory: str | pathlib.Path, like: Any, *, best: bool | None = None) -> Any:
    """φ of the run that `fit` saved in `directory`.

    A checkpoint that is damaged is passed over for the one before it, with a warning.

    Args:
        directory: The run's `checkpoint_dir`.
        like: φ of the same structure, shapes and dtypes: what the run started from.
        best: True for the best φ by the run's score, False for its newest; None, the best if the
            run kept one.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of another structure or other shapes, or none is intact.

    Example:
        `phi = load("runs/knots", jnp.ones(3)); guide = guidance(cfg, omega=schedules.table(phi))`
    """
    try:
        found = unflatten(part(_for_reading(directory, best).arrays, "phi"), like)
    except ValueError as error:
        raise ValueError(f"the checkpoint in {directory} is of other numbers: {error}.") from error
    return tree_map(jnp.asarray, found)


def load_omega(
    directory: str | pathlib.Path, net: Any = None, *, best: bool | None = None
) -> tuple[Any, Any]:
    """(net, phi) of the run that `fit_omega` saved in `directory`.

    A checkpoint that is damaged is passed over for the one before it, with a warning.

    Args:
        directory: The run's `checkpoint_dir`.
        net: The network that was learned; only an `OmegaNet` without functions among its settings
            can be made again from what was saved.
        best: As in `guidejax.learning.load`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of another network, or one that must be given, or none is intact.

    Example:
        `net, phi = load_omega("runs/omega"); guide = guidance(cfg, omega=net.weight(phi))`
    """
    found = _for_reading(directory, best)
    described = {n: v for n, v in found.about["identity"]["weight"].items() if n != "φ"}
    if net is None:
        net = _made_again(described, directory)
    elif json.loads(json.dumps(describe(net))) != described:
        raise ValueError(
            f"the checkpoint in {directory} is of another network: {described}, expected "
            f"{describe(net)}."
        )
    like = jax.eval_shape(net.init, jax.random.key(0))
    try:
        return net, tree_map(jnp.asarray, unflatten(part(found.arrays, "phi"), like))
    except ValueError as error:
        raise ValueError(f"the checkpoint in {directory} is of other numbers: {error}.") from error


def _made_again(described: Any, directory: Any) -> OmegaNet:
    settings = dict(described)
    if settings.pop("kind", None) != OmegaNet.__name__ or "a function" in str(settings):
        raise ValueError(
            f"the checkpoint in {directory} is of {described}, which can't be made again from its "
            "settings alone: give load_omega(directory, net)."
        )
    return OmegaNet.from_settings(settings)

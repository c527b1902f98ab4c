"""Checkpoints of a run: its state, where the data stood, and what it learns."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from guidejax.weights.omega_net import OmegaNet

BEST = "best"


def describe(guide: Any) -> Any:
    """What is written beside φ to know it again: settings, where the object has any, as JSON."""
    if hasattr(guide, "describe"):
        return guide.describe()
    if dataclasses.is_dataclass(guide) and not isinstance(guide, type):
        settings = {f.name: _setting(getattr(guide, f.name)) for f in dataclasses.fields(guide)}
        return {"kind": type(guide).__name__, **settings}
    return {"kind": "function"}


def _setting(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return describe(value)
    if isinstance(value, (tuple, list)):
        return [_setting(v) for v in value]
    if isinstance(value, dict):
        return {str(name): _setting(v) for name, v in value.items()}
    if callable(value):
        return "a function"
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def _check_like(expected: Any, found: Any) -> None:
    if (jnp.shape(expected), jnp.result_type(expected)) != (found.shape, found.dtype):
        raise ValueError(
            f"it holds {found.dtype}{found.shape} for "
            f"{jnp.result_type(expected)}{jnp.shape(expected)}"
        )


class Checkpoints:
    """The checkpoints of one run in one directory, newest last; orbax `CheckpointManager`s."""

    def __init__(self, directory: str | pathlib.Path, what: Any, keep: int = 2):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self.directory = pathlib.Path(directory).absolute()
        self.what = json.loads(json.dumps(what))
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._best: Any = None

    @property
    def latest(self) -> int | None:
        """The newest finished step, None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, position: Any) -> None:
        """Write `state` and the data's `position` (anything JSON) as of `step`; in background.

        The state is written from the host: whoever reads it may have other devices.
        """
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(
                state=args.StandardSave(jax.device_get(state._asdict())),
                position=args.JsonSave({"position": position}),
                net=args.JsonSave(self.what),
            ),
        )

    def save_best(self, step: int, score: float, phi: Any) -> None:
        """Write the best φ so far, if it is not the one that is there."""
        args, manager = self._ocp.args, self._best_manager()
        if manager.latest_step() != step:
            manager.save(
                step,
                args=args.Composite(
                    state=args.StandardSave({"phi": phi}),
                    position=args.JsonSave({"score": score}),
                    net=args.JsonSave(self.what),
                ),
            )

    def restore(self, state: Any) -> tuple[Any, Any, int] | None:
        """(state, position, step) of the newest checkpoint; None where there is none.

        Args:
            state: A state of the right structure, shapes and dtypes. What comes back is NumPy.

        Raises:
            ValueError: If the checkpoint is of other numbers, or of another optimizer.
        """
        step = self.latest
        if step is None:
            return None
        found, position = self._read(self._manager, step, state._asdict())
        return type(state)(**found), position["position"], step

    def restore_best(self, phi: Any, until: int) -> tuple[int, float, Any] | None:
        """(step, score, φ) of the best that was saved, no later than step `until`."""
        manager = self._best_manager()
        steps = [step for step in manager.all_steps() if step <= until]
        if not steps:
            return None
        found, position = self._read(manager, max(steps), {"phi": phi})
        return max(steps), position["score"], found["phi"]

    def _read(self, manager: Any, step: int, like: Any) -> tuple[Any, Any]:
        args = self._ocp.args
        saved = manager.restore(step, args=args.Composite(net=args.JsonRestore()))
        if saved["net"] != self.what:
            raise ValueError(
                f"the checkpoint in {self.directory} is of another network: it holds "
                f"{saved['net']}, expected {self.what}. Give another checkpoint_dir, or what it "
                "was written by."
            )
        try:
            saved = manager.restore(
                step,
                args=args.Composite(
                    state=args.StandardRestore(jax.device_get(like)), position=args.JsonRestore()
                ),
            )
            # Orbax itself gives back arrays of another shape or dtype without a word.
            jax.tree.map(_check_like, like, saved["state"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"the checkpoint in {self.directory} doesn't fit this run: another optimizer or "
                f"another network wrote it ({error})."
            ) from error
        return saved["state"], saved["position"]

    def _best_manager(self) -> Any:
        if self._best is None:
            options = self._ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
            self._best = self._ocp.CheckpointManager(self.directory / BEST, options=options)
        return self._best

    def close(self) -> None:
        """Finish what is being written and let go of the directory."""
        self._manager.close()
        if self._best is not None:
            self._best.close()


def _newest(directory: str | pathlib.Path, best: bool | None) -> tuple[Any, Any]:
    """(description, φ) of the newest checkpoint in `directory`, or of the best one."""
    import orbax.checkpoint as ocp

    directory = pathlib.Path(directory).absolute()
    if not directory.is_dir():
        raise FileNotFoundError(f"no checkpoint of a run in {directory}: no such folder.")
    if best is None:
        best = (directory / BEST).is_dir() and any((directory / BEST).iterdir())
    where = directory / BEST if best else directory
    if not where.is_dir():
        raise FileNotFoundError(f"the run in {directory} kept no best φ.")
    with ocp.CheckpointManager(where) as manager:
        step = manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"no checkpoint of a run in {where}.")
        saved = manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(), net=ocp.args.JsonRestore()),
        )
    return saved["net"], saved["state"]["phi"]


def load(directory: str | pathlib.Path, like: Any, *, best: bool | None = None) -> Any:
    """φ of the run that `fit` saved in `directory`.

    Args:
        directory: The run's `checkpoint_dir`.
        like: φ of the same structure, shapes and dtypes: what the run started from.
        best: True for the best φ by the run's score, False for its newest; None, the best if the
            run kept one.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of another structure or other shapes.
    """
    _, phi = _newest(directory, best)
    leaves, treedef = jax.tree.flatten(like)
    found = jax.tree.leaves(phi)
    if len(found) != len(leaves):
        raise ValueError(
            f"the checkpoint in {directory} holds {len(found)} arrays; `like` has {len(leaves)}."
        )
    for leaf, array in zip(leaves, found, strict=True):
        try:
            _check_like(leaf, array)
        except ValueError as error:
            raise ValueError(
                f"the checkpoint in {directory} is of other numbers: {error}."
            ) from None
    return jax.tree.unflatten(treedef, [jnp.asarray(array) for array in found])


def load_omega(
    directory: str | pathlib.Path, net: Any = None, *, best: bool | None = None
) -> tuple[Any, Any]:
    """(net, phi) of the run that `fit_omega` saved in `directory`.

    Args:
        directory: The run's `checkpoint_dir`.
        net: The network that was learned; only an `OmegaNet` without functions among its settings
            can be made again from what was saved.
        best: As in `guidejax.learning.load`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of another network, or one that must be given.

    Example:
        `net, phi = load_omega("runs/omega"); guide = guidance(cfg, omega=net.weight(phi))`
    """
    described, phi = _newest(directory, best)
    if net is None:
        net = _made_again(described, directory)
    elif json.loads(json.dumps(describe(net))) != described:
        raise ValueError(
            f"the checkpoint in {directory} is of another network: {described}, expected "
            f"{describe(net)}."
        )
    like = jax.eval_shape(net.init, jax.random.key(0))
    if jax.tree.structure(like) != jax.tree.structure(phi):  # type: ignore[operator]
        return net, load(directory, like, best=best)
    return net, jax.tree.map(jnp.asarray, phi)


def _made_again(described: Any, directory: Any) -> OmegaNet:
    settings = dict(described)
    if settings.pop("kind", None) != OmegaNet.__name__ or "a function" in str(settings):
        raise ValueError(
            f"the checkpoint in {directory} is of {described}, which can't be made again from its "
            "settings alone: give load_omega(directory, net)."
        )
    return OmegaNet.from_settings(settings)

"""Checkpoints of a run that learns ω: the state, where the data stood, and which network it is."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from guidejax.weights.omega_net import OmegaNet


def describe(net: Any) -> dict[str, Any]:
    """The network's settings, as they are written beside its parameters."""
    return {"kind": type(net).__name__, **dataclasses.asdict(net)}


def _check_like(expected: Any, found: Any) -> None:
    if (expected.shape, expected.dtype) != (found.shape, found.dtype):
        raise ValueError(
            f"it holds {found.dtype}{found.shape} for {expected.dtype}{expected.shape}"
        )


class Checkpoints:
    """The checkpoints of one run in one directory, newest last; an orbax `CheckpointManager`."""

    def __init__(self, directory: str | pathlib.Path, net: Any, keep: int = 2):
        self.directory = pathlib.Path(directory).absolute()
        self.net = net
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    @property
    def latest(self) -> int | None:
        """The newest finished step, None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, position: Any) -> None:
        """Write `state` and the data's `position` (anything JSON) as of `step`; in background.

        The state is written from the host: whoever reads it may have other devices.
        """
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(jax.device_get(state)),
                position=ocp.args.JsonSave({"position": position}),
                net=ocp.args.JsonSave(describe(self.net)),
            ),
        )

    def restore(self, state: Any) -> tuple[Any, Any, int] | None:
        """(state, position, step) of the newest checkpoint; None where there is none.

        Args:
            state: A state of the right structure, shapes and dtypes. What comes back is NumPy.

        Raises:
            ValueError: If the checkpoint is of another network or optimizer.
        """
        step = self.latest
        if step is None:
            return None
        saved = self._manager.restore(step, args=ocp.args.Composite(net=ocp.args.JsonRestore()))
        if saved["net"] != json.loads(json.dumps(describe(self.net))):
            raise ValueError(
                f"the checkpoint in {self.directory} is of another network: it holds "
                f"{saved['net']}, expected {describe(self.net)}. Give another checkpoint_dir, or "
                "the network it was written by."
            )
        try:
            saved = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(jax.device_get(state)),
                    position=ocp.args.JsonRestore(),
                ),
            )
            # Orbax itself gives back arrays of another shape or dtype without a word.
            jax.tree.map(_check_like, state, saved["state"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"the checkpoint in {self.directory} doesn't fit this run: another optimizer or "
                f"another network wrote it ({error})."
            ) from error
        return saved["state"], saved["position"]["position"], step

    def close(self) -> None:
        """Finish what is being written and let go of the directory."""
        self._manager.close()


def load_omega(directory: str | pathlib.Path) -> tuple[OmegaNet, Any]:
    """(net, phi) of the newest checkpoint that `fit_omega` wrote in `directory`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of another kind of network.

    Example:
        `net, phi = load_omega("runs/omega"); sample(..., guidance=guidance(cfg, net.weight(phi)))`
    """
    directory = pathlib.Path(directory).absolute()
    if not directory.is_dir():
        raise FileNotFoundError(f"no checkpoint of a learned omega in {directory}: no such folder.")
    with ocp.CheckpointManager(directory) as manager:
        step = manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"no checkpoint of a learned omega in {directory}.")
        saved = manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(), net=ocp.args.JsonRestore()),
        )
    settings = dict(saved["net"])
    if settings.pop("kind") != OmegaNet.__name__:
        raise ValueError(f"the checkpoint in {directory} is of {saved['net']}, not an OmegaNet.")
    return OmegaNet(**settings), jax.tree.map(jnp.asarray, saved["state"]["phi"])

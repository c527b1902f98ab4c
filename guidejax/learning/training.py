"""Learning ω with optax: one step on one shard, and the loop that feeds, saves and goes on."""

from __future__ import annotations

import collections
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from guidejax._arrays import Array, batch_size, check_finite, tree_map
from guidejax.denoisers import as_denoiser
from guidejax.guidance import guidance as make_guidance
from guidejax.learning.checkpoints import Checkpoints
from guidejax.learning.objectives import Batch
from guidejax.processes import Process
from guidejax.rules.linear import cfg
from guidejax.sampling import like
from guidejax.solvers.base import as_keys
from guidejax.weights.omega_net import OmegaNet, check_labels


class TrainState(TypedDict):
    """Everything a run needs to go on: a pytree of arrays."""

    phi: Any
    optimizer: Any
    step: Array
    key: Array


def init_state(key: Array, net: OmegaNet, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state. The key is kept as raw data, so that it can be saved."""
    init_key, run_key = jax.random.split(as_keys(key))
    phi = net.init(init_key)
    return {
        "phi": phi,
        "optimizer": optimizer.init(phi),
        "step": jnp.zeros((), jnp.int32),
        "key": jax.random.key_data(run_key),
    }


def omega_step(
    state: TrainState,
    denoise: Any,
    process: Process,
    batch: Batch,
    keys: Array,
    *,
    net: OmegaNet,
    objective: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    rule: Any = cfg,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One update of φ on one batch, or on one shard of it.

    Pure: call it under jit, or under `shard_map` and `pmap` with `axis_name`, which averages the
    gradient of φ over the devices, the one collective of the step. Nothing of the denoiser is
    differentiated but what the objective itself asks for (`rollout` differentiates in x).

    Args:
        state: From `init_state` or the step before.
        denoise: The frozen denoiser.
        process: The noising process.
        batch: (x0, cond, uncond) of this shard.
        keys: One key an example of this shard: the result doesn't depend on the number of shards.
        net: The ω network.
        objective: From `self_consistency`, `l2`, `rollout`, or any function of the same arguments.
        optimizer: An optax transformation.
        rule: The rule that ω steers.
        axis_name: The mapped axis or axes that the batch is split over.

    Returns:
        The next state and the metrics "loss", "grad_norm".
    """
    denoise = jax.lax.stop_gradient(denoise)

    def loss_fn(phi):
        guide = make_guidance(rule, omega=net.weight(phi))
        return jnp.mean(objective(keys, guide, denoise, process, batch))

    loss, gradient = jax.value_and_grad(loss_fn)(state["phi"])
    if axis_name is not None:
        loss, gradient = jax.lax.pmean((loss, gradient), axis_name)
    updates, opt_state = optimizer.update(gradient, state["optimizer"], state["phi"])
    after: TrainState = {
        "phi": optax.apply_updates(state["phi"], updates),
        "optimizer": opt_state,
        "step": state["step"] + 1,
        "key": state["key"],
    }
    return after, {"loss": loss, "grad_norm": optax.tree.norm(gradient)}


def _many_steps(net, optimizer, rule, mesh):
    """jit of a scan over a leading axis of batches, data-parallel over `mesh` if given."""

    def one(objective, denoise, process, axis_name, state, xs):
        batch, keys = xs
        return omega_step(
            state, denoise, process, batch, keys,
            net=net, objective=objective, optimizer=optimizer, rule=rule, axis_name=axis_name,
        )  # fmt: skip

    def keys_of(state, count, size):
        run = jax.random.wrap_key_data(state["key"])
        at = lambda n: jax.random.split(jax.random.fold_in(run, n), size)  # noqa: E731
        return jax.vmap(at)(state["step"] + jnp.arange(count))

    if mesh is None:

        @functools.partial(jax.jit, donate_argnums=0)
        def run(state, objective, denoise, process, batches):
            count, size = jax.tree.leaves(batches)[0].shape[:2]
            step = functools.partial(one, objective, denoise, process, None)
            return jax.lax.scan(step, state, (batches, keys_of(state, count, size)))

        return run

    axes = tuple(mesh.axis_names)
    whole, split = PartitionSpec(), PartitionSpec(None, axes)

    @functools.partial(jax.jit, donate_argnums=0)
    def run_sharded(state, objective, denoise, process, batches):
        count, size = jax.tree.leaves(batches)[0].shape[:2]

        @functools.partial(
            jax.shard_map, mesh=mesh, in_specs=(whole, whole, whole, whole, split, split),
            out_specs=whole, check_vma=False,
        )  # fmt: skip
        def shard(state, objective, denoise, process, batches, key_data):
            step = functools.partial(one, objective, denoise, process, axes)
            return jax.lax.scan(step, state, (batches, jax.random.wrap_key_data(key_data)))

        key_data = jax.random.key_data(keys_of(state, count, size))
        return shard(state, objective, denoise, process, batches, key_data)

    return run_sharded


def fit_omega(
    key: Array,
    net: OmegaNet,
    denoise: Any,
    process: Process,
    batches: Iterable[Any],
    *,
    objective: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    steps: int,
    uncond: Any = None,
    rule: Any = cfg,
    mesh: Mesh | None = None,
    checkpoint_dir: str | pathlib.Path | None = None,
    save_every: int = 500,
    steps_per_dispatch: int = 10,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> Any:
    """Learn φ of ω^φ(c, s, t) for a frozen denoiser.

    Goes on from the newest checkpoint in `checkpoint_dir`, with the same result as a run that was
    never stopped: saved are φ, the optimizer, the step, the key and where the data stood.
    `checkpoint_dir/metrics.jsonl` holds a line of metrics a step.

    Args:
        key: The run's key.
        net: The network to learn, from `OmegaNet`.
        denoise: The denoiser; its parameters get no gradient.
        process: The noising process.
        batches: An iterable of batches: mappings with "x0" and "cond" (and "uncond", if they carry
            their own), or pairs (x0, cond). If its iterator has `get_state` and `set_state`, as
            grain's have, it goes on from where it stood; any other is drawn from the start again
            and must give the same batches.
        objective: From `self_consistency`, `l2` or `rollout`.
        optimizer: An optax transformation.
        steps: Updates in all, those before a restart included.
        uncond: The null condition, one for all; by default the label `net.num_classes`.
        rule: The rule that ω steers.
        mesh: Devices to split each batch over, by all of its axes; the batch size must be a
            multiple of their number.
        checkpoint_dir: Where to save; None saves nothing.
        save_every: Updates between checkpoints.
        steps_per_dispatch: Updates compiled into one call.
        progress: Called as `progress(step, metrics)` after each dispatch.

    Returns:
        φ, for `net.weight(phi)`.

    Raises:
        ValueError: If a batch holds a NaN, a label out of range or shapes that don't fit, or the
            checkpoint is of another network. What was saved stays.
        FloatingPointError: If the loss turns NaN; the checkpoint before it stays.

    Example:
        >>> import guidejax as gj
        >>> process, net = gj.rectified_flow(), OmegaNet(num_classes=2)
        >>> denoise = lambda x, t, label: jnp.where(label[:, None] == 2, 0.0, 1.0) * x
        >>> batches = itertools.repeat({"x0": np.ones((4, 3)), "cond": np.array([0, 1, 0, 1])})
        >>> phi = fit_omega(jax.random.key(0), net, denoise, process, batches, steps=2,
        ...                 objective=gj.self_consistency(), optimizer=optax.adam(1e-3))
        >>> net.weight(phi)(0.4, 0.5, jnp.array([0, 1]), process=process).shape
        (2,)
    """
    if steps < 1 or save_every < 1 or steps_per_dispatch < 1:
        raise ValueError("fit_omega expects steps, save_every and steps_per_dispatch ≥ 1.")
    denoise = as_denoiser(denoise, process)
    replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    place = (lambda tree: tree) if mesh is None else (lambda tree: jax.device_put(tree, replicated))
    state = place(init_state(key, net, optimizer))
    source = iter(batches)
    run = _many_steps(net, optimizer, rule, mesh)
    done, saver, log = 0, None, None
    if checkpoint_dir is not None:
        saver = Checkpoints(checkpoint_dir, net)
        restored = saver.restore(state)
        if restored is not None:
            state, position, done = restored
            state = place(state)
            _resume(source, position, done)
        log = _log(pathlib.Path(checkpoint_dir) / "metrics.jsonl", done)
    objective, denoise, process = place((objective, denoise, process))
    try:
        while done < steps:
            until = min(steps, (done // save_every + 1) * save_every)
            count = min(steps_per_dispatch, until - done)
            chunk = [check_batch(b, net, uncond, done + i) for i, b in enumerate(_take(source, count, done))]
            state, metrics = run(state, objective, denoise, process, _stack(chunk, mesh))
            metrics = jax.device_get(metrics)
            _write(log, done, metrics)
            done += count
            last = {name: float(values[-1]) for name, values in metrics.items()}
            if not all(np.all(np.isfinite(values)) for values in metrics.values()):
                raise FloatingPointError(
                    f"the loss or its gradient is NaN or infinite by step {done}: {last}. The last "
                    "checkpoint is kept; a smaller learning rate or gradient clipping may help."
                )
            if progress is not None:
                progress(done, last)
            if saver is not None and (done == until):
                saver.save(done, state, _position(source))
    finally:
        if log is not None:
            log.close()
        if saver is not None:
            saver.close()
    return state["phi"]


def check_batch(batch: Any, net: OmegaNet, uncond: Any = None, step: int = 0) -> Batch:
    """A `Batch` of what the data gave, or an error that says what is wrong with it."""
    where = f"batch {step}"
    if isinstance(batch, Mapping):
        missing = {"x0", "cond"} - set(batch)
        if missing:
            raise ValueError(f"{where} has no {sorted(missing)}; expected 'x0' and 'cond'.")
        x0, cond, null = batch["x0"], batch["cond"], batch.get("uncond", uncond)
    elif isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
        x0, cond = batch[:2]
        null = batch[2] if len(batch) == 3 else uncond
    else:
        raise ValueError(f"{where} is a {type(batch).__name__}; expected a mapping or (x0, cond).")
    size = batch_size(x0)
    check_finite(f"x0 of {where}", x0)
    for leaf in jax.tree.leaves(cond):
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] != size:
            raise ValueError(f"{where}: cond has shape {np.shape(leaf)} for {size} samples.")
    if null is None:
        if net.num_classes is None:
            raise ValueError(f"{where} has no 'uncond'; give fit_omega(uncond=...).")
        null = net.num_classes
    if net.num_classes is not None:
        check_labels(cond, net.num_classes, where)
    else:
        net.check(cond)
    return Batch(x0, cond, like(null, cond, "uncond"))


def _take(source: Iterator[Any], count: int, done: int) -> list[Any]:
    batches = list(itertools.islice(source, count))
    if len(batches) < count:
        raise ValueError(
            f"the data ended after {done + len(batches)} batches; expected one a step. Repeat it."
        )
    return batches


def _stack(chunk: list[Batch], mesh: Mesh | None) -> Batch:
    stacked = tree_map(lambda *leaves: np.stack([np.asarray(a) for a in leaves]), *chunk)
    if mesh is None:
        return stacked
    if jax.tree.leaves(stacked)[0].shape[1] * jax.process_count() % mesh.size:
        raise ValueError(
            f"a batch of {jax.tree.leaves(stacked)[0].shape[1]} can't be split over {mesh.size} "
            "devices; give a multiple."
        )
    sharding = NamedSharding(mesh, PartitionSpec(None, tuple(mesh.axis_names)))
    return tree_map(lambda a: jax.make_array_from_process_local_data(sharding, a), stacked)


def _position(source: Any) -> Any:
    if not hasattr(source, "get_state"):
        return None
    state = source.get_state()
    return state.decode() if isinstance(state, bytes) else state


def _resume(source: Any, position: Any, done: int) -> None:
    """Bring the data to where it stood after `done` batches."""
    if position is not None and hasattr(source, "set_state"):
        source.set_state(position)
        return
    collections.deque(itertools.islice(source, done), maxlen=0)


def _log(path: pathlib.Path, done: int) -> Any:
    """The log, cut back to the steps that the checkpoint knows."""
    lines = path.read_text().splitlines()[:done] if path.exists() else []
    log = path.open("w")
    log.writelines(line + "\n" for line in lines)
    return log


def _write(log: Any, done: int, metrics: Mapping[str, np.ndarray]) -> None:
    if log is None:
        return
    for index in range(len(next(iter(metrics.values())))):
        line = {name: float(values[index]) for name, values in metrics.items()}
        log.write(json.dumps({"step": done + index + 1, **line}) + "\n")
    log.flush()



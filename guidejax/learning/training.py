"""Learning ω with optax: one step on one shard, and the loop that feeds, saves and goes on."""

from __future__ import annotations

import collections
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TextIO, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from guidejax._arrays import Array, batch_size, check_finite, same_structure, tree_map
from guidejax._denoisers import as_denoiser
from guidejax._guidance import guidance as make_guidance
from guidejax.learning.checkpoints import Checkpoints
from guidejax.objectives.base import Batch, as_pytree
from guidejax.processes import Process
from guidejax.rules.linear import cfg
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
    gradient of φ (and the loss, for the metrics) over the devices, the one collective of the step.
    Nothing of the denoiser is differentiated but what the objective itself asks for (`rollout`
    differentiates in x).

    Args:
        state: From `init_state` or the step before.
        denoise: The frozen denoiser, or any `denoise(x, t, cond) -> x0`.
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
    denoise = jax.lax.stop_gradient(as_denoiser(denoise, process))

    def loss_fn(phi):
        guide = make_guidance(rule, omega=net.weight(phi))
        return jnp.mean(objective(keys, guide, denoise, process, batch))

    loss, gradient = jax.value_and_grad(loss_fn)(_per_device(state["phi"], axis_name))
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


def _per_device(phi: Any, axis_name: str | tuple[str, ...] | None) -> Any:
    """φ, but in the eyes of `shard_map` another on each device.

    Where it keeps account of that (`check_vma`, its default), the gradient of a φ that all devices
    share comes summed over them, and the mean of those sums is too large by their number.
    """
    if axis_name is None:
        return phi
    zero = 0 * jax.lax.axis_index(axis_name)
    return tree_map(lambda a: a + zero.astype(a.dtype), phi)


def _compiled(net, optimizer, rule, mesh, impl):
    """jit of a scan over a leading axis of batches, data-parallel over `mesh` if given."""
    axes = None if mesh is None else tuple(mesh.axis_names)

    def run(state, objective, denoise, process, batches):
        size = jax.tree.leaves(batches)[0].shape[1]
        # An example's key is of its place in the global batch, whoever holds it.
        first = 0 if axes is None else jax.lax.axis_index(axes) * size

        def one(state, batch):
            key = jax.random.wrap_key_data(state["key"], impl=impl)
            key = jax.random.fold_in(key, state["step"])
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(size))
            return omega_step(
                state, denoise, process, batch, keys,
                net=net, objective=objective, optimizer=optimizer, rule=rule, axis_name=axes,
            )  # fmt: skip

        return jax.lax.scan(one, state, batches)

    if mesh is not None:
        whole, split = PartitionSpec(), PartitionSpec(None, axes)
        run = jax.shard_map(
            run, mesh=mesh, in_specs=(whole, whole, whole, whole, split), out_specs=whole,
            check_vma=False,
        )  # fmt: skip
    return jax.jit(run)


# Runs of the same network, optimizer and rule (seeds, a sweep) share one compiled program.
_cached = functools.lru_cache(maxsize=16)(_compiled)


def _many_steps(*program):
    """`_compiled`, the same one for the same arguments."""
    try:
        return _cached(*program)
    except TypeError:  # a rule that holds arrays has no hash
        return _compiled(*program)


class _Dispatch(NamedTuple):
    """One call of the compiled steps, of which the device may not be done."""

    first: int
    done: int
    state: TrainState
    metrics: dict[str, Array]
    save: bool
    position: Any


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
            and must give the same batches. Of several processes each gives its own rows.
        objective: From `self_consistency`, `l2`, `rollout`, or any function of the same arguments.
        optimizer: An optax transformation.
        steps: Updates in all, those before a restart included.
        uncond: The null condition, one for all; by default the label `net.num_classes`.
        rule: The rule that ω steers.
        mesh: Devices to split each batch over, by all of its axes; the batch size must be a
            multiple of their number.
        checkpoint_dir: Where to save; None saves nothing.
        save_every: Updates between checkpoints.
        steps_per_dispatch: Updates compiled into one call. Fewer, one by one, where `save_every`
            or `steps` is no multiple.
        progress: Called as `progress(step, metrics)` after each dispatch, one dispatch late: the
            next one runs by then.

    Returns:
        φ, for `net.weight(phi)`.

    Raises:
        ValueError: If a batch holds a NaN, a label out of range or shapes that don't fit, the
            data end early, or the checkpoint is of another network or a later step. What was
            saved stays.
        FloatingPointError: If the loss or φ turns NaN; the checkpoint before it stays.

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
    if hasattr(objective, "check"):
        objective.check(denoise, process)
    replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    place = (lambda tree: tree) if mesh is None else (lambda tree: jax.device_put(tree, replicated))
    state = place(init_state(key, net, optimizer))
    source, shapes = iter(batches), None
    run = _many_steps(net, optimizer, rule, mesh, jax.random.key_impl(as_keys(key)))
    frozen = place((as_pytree(objective), denoise, process))
    done, saver, log = 0, None, None

    def launch() -> _Dispatch:
        """Start the next steps; returns before the device is done."""
        nonlocal state, done, shapes
        until = min(steps, (done // save_every + 1) * save_every)
        # What is left over goes one by one: two programs compile at most.
        count = steps_per_dispatch if done + steps_per_dispatch <= until else 1
        chunk = []
        for index, batch in enumerate(_take(source, count, done)):
            chunk.append(check_batch(batch, net, uncond, done + index))
            shapes = _check_shapes(chunk[-1], shapes, done + index)
        state, metrics = run(state, *frozen, _stack(chunk, mesh))
        first, done = done, done + count
        save = done == until
        position = _position(source) if save and saver is not None else None
        return _Dispatch(first, done, state, metrics, save, position)

    def finish(launched: _Dispatch) -> None:
        """Wait for the device; log and save what is fit to go on from."""
        metrics = jax.device_get(launched.metrics)
        _write(log, launched.first, metrics)
        last = {name: float(values[-1]) for name, values in metrics.items()}
        # The last update may break φ after a loss that was finite.
        if not (_finite(metrics) and (not launched.save or _finite(launched.state["phi"]))):
            raise FloatingPointError(
                f"the loss, its gradient or φ is NaN or infinite by step {launched.done}: {last}. "
                "The last checkpoint is kept; a smaller learning rate or gradient clipping may "
                "help."
            )
        if saver is not None and launched.save:
            saver.save(launched.done, launched.state, launched.position)
        if progress is not None:
            progress(launched.done, last)

    try:
        if checkpoint_dir is not None:
            saver = Checkpoints(checkpoint_dir, net)
            restored = saver.restore(state)
            if restored is not None:
                found, position, done = restored
                if done > steps:
                    raise ValueError(
                        f"the checkpoint in {checkpoint_dir} is of step {done}; expected at most "
                        f"steps={steps}."
                    )
                state = place(found)
                _resume(source, position, done)
            log = _log(pathlib.Path(checkpoint_dir) / "metrics.jsonl", done)
        running = None
        while running is not None or done < steps:
            # The host takes and checks the next batches while the device runs the last ones;
            # what those came to is kept even where the next ones are found to be bad.
            try:
                following = launch() if done < steps else None
            finally:
                if running is not None:
                    finish(running)
            running = following
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
    for leaf in jax.tree.leaves(x0):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{where}: x0 is {leaf.dtype}; expected floats, scaled as the denoiser knows them."
            )
    if null is None:
        if net.num_classes is None:
            raise ValueError(f"{where} has no 'uncond'; give fit_omega(uncond=...).")
        null = net.num_classes
    null = _like(null, cond, where)
    for name, tree in (("cond", cond), ("uncond", null)):
        for leaf in jax.tree.leaves(tree):
            if np.ndim(leaf) == 0 or np.shape(leaf)[0] != size:
                raise ValueError(f"{where}: {name} has shape {np.shape(leaf)} for {size} samples.")
    for name, tree in (("x0", x0), ("cond", cond), ("uncond", null)):
        check_finite(f"{name} of {where}", tree)
    if net.num_classes is not None:
        check_labels(cond, net.num_classes, where)
    else:
        net.check(cond)
    return Batch(x0, cond, null)


def _like(value: Any, cond: Any, where: str) -> Any:
    """The null condition in the shape of `cond`; in NumPy, that it doesn't wait for the device."""
    if not same_structure(value, cond):
        return value

    def one(value, cond):
        value, cond = np.asarray(value), np.asarray(cond)
        if jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(cond.dtype, jnp.floating):
            value = value.astype(cond.dtype)
        try:
            return np.broadcast_to(value, cond.shape)
        except ValueError:
            raise ValueError(
                f"{where}: uncond has shape {value.shape}, which doesn't broadcast to cond's "
                f"{cond.shape}."
            ) from None

    return tree_map(one, value, cond)


def _check_shapes(batch: Batch, shapes: Any, step: int) -> Any:
    """Raise where `batch` is not shaped as those before it; its shapes."""
    found = tree_map(np.shape, batch)
    if shapes is not None and found != shapes:
        raise ValueError(
            f"batch {step} has shapes {tuple(found)}, the ones before it {tuple(shapes)}; expected "
            "all alike. Drop the remainder of an epoch."
        )
    return found


def _finite(tree: Any) -> bool:
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jax.device_get(tree)))


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
    """Where the data stand, as JSON; None where they don't say."""
    if not (hasattr(source, "get_state") and hasattr(source, "set_state")):
        return None
    state = source.get_state()
    if isinstance(state, bytes):
        return {"bytes": state.decode("latin-1")}
    try:
        # There and back at once: a state that the iterator goes on to change is not ours.
        return {"json": json.loads(json.dumps(state))}
    except TypeError as error:
        raise ValueError(
            f"the data's get_state() is no bytes and no JSON, so it can't be saved ({error})."
        ) from error


def _resume(source: Any, position: Any, done: int) -> None:
    """Bring the data to where they stood after `done` batches."""
    if position is None or not hasattr(source, "set_state"):
        collections.deque(itertools.islice(source, done), maxlen=0)
    elif "bytes" in position:
        source.set_state(position["bytes"].encode("latin-1"))
    else:
        source.set_state(position["json"])


def _log(path: pathlib.Path, done: int) -> TextIO | None:
    """The log, cut back in place to the steps that the checkpoint knows."""
    if jax.process_index():
        return None
    log = path.open("a+")
    log.seek(0)
    end = 0
    while line := log.readline():
        try:
            if json.loads(line)["step"] > done:
                break
        except ValueError:  # The run was killed while it wrote.
            break
        end = log.tell()
    log.truncate(end)
    return log


def _write(log: TextIO | None, first: int, metrics: Mapping[str, np.ndarray]) -> None:
    if log is None:
        return
    for index in range(len(next(iter(metrics.values())))):
        line = {name: float(values[index]) for name, values in metrics.items()}
        log.write(json.dumps({"step": first + index + 1, **line}) + "\n")
    log.flush()

"""Learning a guidance with optax: a step on one shard, the loop that feeds, saves and goes on."""

from __future__ import annotations

import collections
import dataclasses
import functools
import inspect
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from guidejax._arrays import Array, batch_size, check_finite, tree_map
from guidejax._denoisers import Denoiser, check_denoiser
from guidejax._guidance import Guidance
from guidejax._guidance import guidance as make_guidance
from guidejax._inputs import as_branch, every_weight
from guidejax._random import as_keys
from guidejax.learning.checkpoints import Checkpoints, describe
from guidejax.learning.evaluations import as_denoiser, as_evaluations
from guidejax.objectives.base import Batch, as_pytree
from guidejax.rules.linear import cfg


class TrainState(NamedTuple):
    """Everything a run needs to go on: a pytree of arrays.

    Attributes:
        phi: The numbers that are learned.
        optimizer: The optimizer's state.
        step: Updates made, an int32 scalar.
        key: The run's key as raw data, so that it can be saved.
    """

    phi: Any
    optimizer: Any
    step: Array
    key: Array


def init_state(key: Array, phi: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update.

    Example:
        >>> state = init_state(jax.random.key(0), {"omega": jnp.ones(3)}, optax.adam(1e-3))
        >>> int(state.step)
        0
    """
    data = jax.random.key_data(as_keys(key))
    # A copy: a compiled step may write over what it is given.
    phi = tree_map(lambda leaf: jnp.array(leaf, copy=True), phi)
    return TrainState(phi, optimizer.init(phi), jnp.zeros((), jnp.int32), data)


def train_step(
    state: TrainState,
    denoise: Denoiser,
    batch: Batch,
    keys: Array,
    *,
    guide: Callable[[Any], Guidance],
    objective: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    networks: Mapping[str, Denoiser] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One update of φ on one batch, or on one shard of it.

    Pure: call it under jit, or under `shard_map` and `pmap` with `axis_name`, which averages the
    gradient of φ (and the loss, for the metrics) over the devices, the one collective of the step.
    Nothing of the networks is differentiated but what the objective itself asks for (`rollout`
    differentiates in x).

    Args:
        state: From `init_state` or the step before.
        denoise: The frozen denoiser.
        batch: (x0, cond, conditions) of this shard.
        keys: One key an example of this shard: the result doesn't depend on the number of shards.
        guide: φ → `Guidance`: `lambda phi: gj.guidance(gj.cfg, omega=net.weight(phi))`.
        objective: From `self_consistency`, `l2`, `rollout`, or any function of the same arguments.
        optimizer: An optax transformation.
        networks: The denoisers of branches that aren't the main one's, by name.
        axis_name: The mapped axis or axes that the batch is split over.

    Returns:
        The next state and the metrics "loss", "grad_norm".
    """
    denoise, networks = jax.lax.stop_gradient((denoise, dict(networks or {})))

    def loss_fn(phi):
        return jnp.mean(objective(keys, guide(phi), denoise, batch, networks))

    loss, gradient = jax.value_and_grad(loss_fn)(_per_device(state.phi, axis_name))
    if axis_name is not None:
        loss, gradient = jax.lax.pmean((loss, gradient), axis_name)
    updates, opt_state = optimizer.update(gradient, state.optimizer, state.phi)
    phi = optax.apply_updates(state.phi, updates)
    after = TrainState(phi, opt_state, state.step + 1, state.key)
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


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled once for runs that share it (seeds, a sweep)."""

    guide: Callable[[Any], Guidance]
    optimizer: optax.GradientTransformation
    mesh: Mesh | None
    key_impl: Any

    def example_keys(self, state: TrainState, first: Array | int, count: int) -> Array:
        """One key an example: of its place in the global batch, whoever holds it."""
        key = jax.random.wrap_key_data(state.key, impl=self.key_impl)
        key = jax.random.fold_in(key, state.step)
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(count))

    def many_steps(self) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
        """jit of a scan over a leading axis of batches, data-parallel over the mesh if given."""
        axes = None if self.mesh is None else tuple(self.mesh.axis_names)

        def run(state, objective, frozen, batches):
            denoise, networks = frozen
            size = jax.tree.leaves(batches)[0].shape[1]
            first = 0 if axes is None else jax.lax.axis_index(axes) * size

            def one(state, batch):
                return train_step(
                    state, denoise, batch, self.example_keys(state, first, size),
                    guide=self.guide, objective=objective, optimizer=self.optimizer,
                    networks=networks, axis_name=axes,
                )  # fmt: skip

            return jax.lax.scan(one, state, batches)

        if self.mesh is not None:
            whole, split = PartitionSpec(), PartitionSpec(None, axes)
            run = jax.shard_map(
                run, mesh=self.mesh, in_specs=(whole, whole, whole, split), out_specs=whole,
                check_vma=False,
            )  # fmt: skip
        return jax.jit(run)

    def loss(self) -> Callable[..., Array]:
        """jit of the mean loss of one batch at φ."""

        def run(phi, objective, frozen, batch, keys):
            denoise, networks = frozen
            return jnp.mean(objective(keys, self.guide(phi), denoise, batch, networks))

        return jax.jit(run)


_many_steps = functools.lru_cache(maxsize=16)(Program.many_steps)
_loss = functools.lru_cache(maxsize=16)(Program.loss)


def _shared(cached: Callable[[Program], Any], program: Program) -> Any:
    """The compiled function of an equal program, where programs can be compared."""
    try:
        return cached(program)
    except TypeError:  # a rule that holds arrays has no hash
        return cached.__wrapped__(program)  # type: ignore[attr-defined]


class _Dispatch(NamedTuple):
    """One call of the compiled steps, of which the device may not be done."""

    first: int
    done: int
    state: TrainState
    metrics: dict[str, Array]
    save: bool
    position: Any


@dataclasses.dataclass(frozen=True)
class _OmegaGuide:
    """φ → a guidance of one rule; equal ones share a compiled program."""

    net: Any
    rule: Any

    def __call__(self, phi: Any) -> Guidance:
        return make_guidance(self.rule, **self.net.weights(phi))

    def describe(self) -> Any:
        return describe(self.net)


def fit_omega(
    key: Array,
    net: Any,
    denoise: Denoiser,
    batches: Iterable[Any],
    *,
    rule: Any = cfg,
    uncond: Any = None,
    **options: Any,
) -> Any:
    """Learn φ of ω^φ(c, s, t) for a frozen denoiser: `fit` with the usual weight.

        phi = fit_omega(key, net, ...)     # is
        phi = fit(key, lambda phi: guidance(rule, **net.weights(phi)), net.init(...), ...)

    Args:
        key: The run's key; φ starts from a part of it.
        net: The network to learn, from `OmegaNet`, or anything with `init(key)` and `weights(phi)`,
            a dict of `Weight`s by the names of the rule's numbers.
        denoise: As in `fit`, and so are all other arguments.
        batches: As in `fit`.
        rule: The rule that the weights steer.
        uncond: The null condition, one for all; by default the label `net.num_classes`.
        **options: Whatever else `fit` takes: `objective`, `optimizer`, `steps`, `conditions`, ...

    Returns:
        φ, for `net.weight(phi)`.

    Raises:
        ValueError: As `fit` does.

    Example:
        >>> import guidejax as gj
        >>> process, net = gj.processes.rectified_flow(), gj.OmegaNet(num_classes=2)
        >>> denoise = gj.denoiser(lambda x, t, c: jnp.where(c[:, None] == 2, 0.0, 1.0) * x, process)
        >>> batches = itertools.repeat({"x0": np.ones((4, 3)), "cond": np.array([0, 1, 0, 1])})
        >>> phi = fit_omega(jax.random.key(0), net, denoise, batches, steps=2,
        ...                 objective=gj.self_consistency(), optimizer=optax.adam(1e-3))
        >>> net.weight(phi)(0.4, 0.5, jnp.array([0, 1]), process=process).shape
        (2,)
    """
    if not (hasattr(net, "init") and hasattr(net, "weights")):
        raise ValueError(
            "fit_omega expects a network, such as gj.OmegaNet(num_classes=10), with init(key) and "
            f"weights(phi); got {net!r}. For any other numbers there is gj.fit."
        )
    if uncond is None:
        uncond = getattr(net, "num_classes", None)
    init_key, run_key = jax.random.split(as_keys(key))
    phi = net.init(init_key)
    return fit(run_key, _OmegaGuide(net, rule), phi, denoise, batches, uncond=uncond, **options)


def fit(
    key: Array,
    guide: Callable[[Any], Guidance],
    phi: Any,
    denoise: Denoiser,
    batches: Iterable[Any],
    *,
    objective: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    steps: int,
    uncond: Any = None,
    conditions: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    held_out: Iterable[Any] | None = None,
    score: Callable[[Any], float] | None = None,
    score_every: int = 500,
    checkpoint_dir: str | pathlib.Path | None = None,
    save_every: int = 500,
    steps_per_dispatch: int = 10,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> Any:
    """Learn any numbers φ of any guidance, for a frozen denoiser.

    `guide` says what φ is: `lambda phi: gj.guidance(gj.apg, **net.weights(phi))` for a network,
    `lambda phi: gj.guidance(gj.cfg, omega=gj.schedules.table(phi))` for a number a step.

    Goes on from the newest checkpoint in `checkpoint_dir`, with the same result as a run that was
    never stopped: saved are φ, the optimizer, the step, the key and where the data stood.
    `checkpoint_dir/metrics.jsonl` holds a line of metrics a step.

    Args:
        key: The run's key.
        guide: φ → `Guidance`. Define it once: another function compiles anew.
        phi: What to start from: a pytree of floating point arrays.
        denoise: The denoiser; its parameters get no gradient. The process alone, where the batches
            come with their evaluations (`guidejax.learning.evaluate`).
        batches: An iterable of batches: mappings with "x0" and "cond" (and a condition under the
            name of any other branch, "uncond" among them, where the data carry their own), or
            pairs (x0, cond). If its iterator has `get_state` and `set_state`, as grain's have, it
            goes on from where it stood; any other is drawn from the start again and must give the
            same batches. Of several processes each gives its own rows.
        objective: From `self_consistency`, `l2`, `rollout`, or any function of the same arguments.
        optimizer: An optax transformation.
        steps: Updates in all, those before a restart included.

    Other Args:
        uncond: The null condition, one for all.
        conditions: What every other branch of the rule is made of, one for all, as in `sample`: a
            condition, a `Denoiser` for the batch's own condition, or a pair of both.
        mesh: Devices to split each batch over, by all of its axes; the batch size must be a
            multiple of their number.
        held_out: Batches that are not learned from; their mean loss is logged as "held_out".
        score: `score(phi) -> float`, lower is better, any measure of yours (a Fréchet distance of
            samples); logged as "score". It chooses in place of `held_out`.
        score_every: Updates between scores. With either, the best φ is kept, saved under
            `checkpoint_dir/best`, and returned.
        checkpoint_dir: Where to save; None saves nothing.
        save_every: Updates between checkpoints.
        steps_per_dispatch: Updates compiled into one call. Fewer, one by one, where `save_every`
            or `steps` is no multiple.
        progress: Called as `progress(step, metrics)` after each dispatch, one dispatch late: the
            next one runs by then.

    Returns:
        φ after the last update; the best, where there is `held_out` or `score`.

    Raises:
        ValueError: If a batch holds a NaN, a label out of range or shapes that don't fit, the
            data end early, a branch has no condition, or the checkpoint is of other numbers or a
            later step. What was saved stays.
        FloatingPointError: If the loss or φ turns NaN; the checkpoint before it stays.

    Example:
        >>> import guidejax as gj
        >>> process = gj.processes.rectified_flow()
        >>> denoise = gj.denoiser(lambda x, t, c: c[:, None] * x, process)
        >>> batches = itertools.repeat({"x0": np.ones((4, 3)), "cond": np.ones(4)})
        >>> phi = fit(jax.random.key(0), lambda phi: gj.guidance(gj.cfg, omega=phi), jnp.array(1.0),
        ...           denoise, batches, uncond=0.0, objective=gj.self_consistency(),
        ...           optimizer=optax.adam(1e-2), steps=3)
        >>> phi.shape
        ()
    """
    for name, value in (
        ("steps", steps),
        ("save_every", save_every),
        ("steps_per_dispatch", steps_per_dispatch),
        ("score_every", score_every),
    ):
        if value < 1:
            raise ValueError(f"fit expects {name} ≥ 1, got {value}.")
    denoise = as_denoiser(denoise)
    check_denoiser(denoise)
    made_here = getattr(objective, "__module__", None) or ""
    if inspect.isfunction(objective) and made_here.startswith("guidejax.objectives"):
        raise ValueError(
            f"expected an objective, such as gj.self_consistency(); got the function "
            f"{objective.__name__} itself: call it."
        )
    if not callable(objective):
        raise ValueError(
            f"expected an objective, such as gj.self_consistency(); got {objective!r}."
        )
    if hasattr(objective, "check"):
        objective.check(denoise)
    example = _guidance_of(guide, phi)
    branches = _Conditions.of(example, denoise, uncond, conditions or {})
    checks = [w.fn.check for w in every_weight(example) if hasattr(w.fn, "check")]
    replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    place = (lambda tree: tree) if mesh is None else (lambda tree: jax.device_put(tree, replicated))
    state = place(init_state(key, phi, optimizer))
    source, shapes = iter(batches), None
    program = Program(guide, optimizer, mesh, jax.random.key_impl(as_keys(key)))
    run = _shared(_many_steps, program)
    frozen = place((as_pytree(objective), (denoise, branches.networks)))
    held = [branches.batch(b, checks, f"held-out batch {i}") for i, b in enumerate(held_out or ())]
    keeper = _Keeper(program, frozen, held, score) if held or score else None
    done, saver, log = 0, None, None
    scheduled = [save_every] + ([score_every] if keeper else [])

    def launch() -> _Dispatch:
        """Start the next steps; returns before the device is done."""
        nonlocal state, done, shapes
        until = min(steps, *((done // every + 1) * every for every in scheduled))
        # What is left over goes one by one: two programs compile at most.
        count = steps_per_dispatch if done + steps_per_dispatch <= until else 1
        chunk = []
        for index, batch in enumerate(_take(source, count, done)):
            chunk.append(branches.batch(batch, checks, f"batch {done + index}"))
            shapes = _check_shapes(chunk[-1], shapes, done + index)
        state, metrics = run(state, *frozen, _stack(chunk, mesh))
        first, done = done, done + count
        save = done == steps or done % save_every == 0
        position = _position(source) if save and saver is not None else None
        return _Dispatch(first, done, state, metrics, save, position)

    def finish(launched: _Dispatch) -> None:
        """Wait for the device; log and save what is fit to go on from."""
        metrics = jax.device_get(launched.metrics)
        last = {name: float(values[-1]) for name, values in metrics.items()}
        finite = _finite(metrics)
        scored = {}
        if finite and keeper and (launched.done == steps or launched.done % score_every == 0):
            scored = keeper.look(launched.done, launched.state.phi)
        _write(log, launched.first, metrics, scored)
        # The last update may break φ after a loss that was finite.
        if not (finite and (not launched.save or _finite(launched.state.phi))):
            raise FloatingPointError(
                f"the loss, its gradient or φ is NaN or infinite by step {launched.done}: {last}. "
                "The last checkpoint is kept; a smaller learning rate or gradient clipping may "
                "help."
            )
        if saver is not None and scored and keeper is not None:
            saver.save_best(keeper.step, keeper.value, keeper.phi)
        if saver is not None and launched.save:
            saver.save(launched.done, launched.state, launched.position)
        if progress is not None:
            progress(launched.done, {**last, **scored})

    try:
        if checkpoint_dir is not None:
            saver = Checkpoints(checkpoint_dir, describe(guide))
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
                if keeper is not None:
                    keeper.take(saver.restore_best(state.phi, done))
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
    return state.phi if keeper is None or keeper.step == 0 else tree_map(jnp.asarray, keeper.phi)


def _guidance_of(guide: Callable[[Any], Guidance], phi: Any) -> Guidance:
    """The guidance at φ, or an error that says what `guide` should have been."""
    made = guide(phi) if callable(guide) else None
    if not isinstance(made, Guidance):
        raise ValueError(
            "fit expects a function phi -> Guidance, such as lambda phi: gj.guidance(gj.cfg, "
            f"omega=net.weight(phi)); got {guide!r}."
        )
    for leaf in jax.tree.leaves(phi):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"phi holds {jnp.result_type(leaf)}; expected floats to learn.")
    return made


class _Keeper:
    """The best φ so far, by the held-out loss or the user's score."""

    def __init__(self, program: Program, frozen: Any, held: list[Batch], score: Any):
        self.loss, self.frozen = _shared(_loss, program), frozen
        self.held, self.score = held, score
        self.step, self.value, self.phi = 0, np.inf, None

    def look(self, step: int, phi: Any) -> dict[str, float]:
        """Score φ, and keep it if it is the best."""
        found = {}
        if self.held:
            keys = [
                jax.random.split(jax.random.key(i), batch_size(b.x0))
                for i, b in enumerate(self.held)
            ]
            losses = [
                self.loss(phi, *self.frozen, b, k) for b, k in zip(self.held, keys, strict=True)
            ]
            found["held_out"] = float(np.mean(jax.device_get(losses)))
        if self.score is not None:
            found["score"] = float(self.score(phi))
        value = found["score" if self.score is not None else "held_out"]
        if value < self.value:
            self.take((step, value, jax.device_get(phi)))
        return found

    def take(self, best: tuple[int, float, Any] | None) -> None:
        """Go on from the best of an earlier run."""
        if best is not None:
            self.step, self.value, self.phi = best


@dataclasses.dataclass(frozen=True)
class _Conditions:
    """What the branches of the rule are made of, beside what a batch carries."""

    names: tuple[str, ...]
    networks: dict[str, Denoiser]
    given: dict[str, Any]

    @classmethod
    def of(
        cls, guide: Guidance, denoise: Denoiser, uncond: Any, conditions: Mapping[str, Any]
    ) -> _Conditions:
        """The branches that `guide` needs."""
        networks, given = {}, {} if uncond is None else {"uncond": uncond}
        for name, value in conditions.items():
            network, condition = as_branch(name, value, None, denoise.process)
            if network is not None:
                networks[name] = network
            if condition is not None:
                given[name] = condition
        unknown = sorted(set(conditions) - set(guide.branches))
        if unknown:
            raise ValueError(
                f"the guidance has no branch {', '.join(unknown)}; it combines "
                f"{', '.join(guide.branches)}."
            )
        return cls(guide.branches[1:], networks, given)

    def batch(self, batch: Any, checks: list[Any], where: str) -> Batch:
        """A `Batch` of what the data gave, or an error that says what is wrong with it."""
        carried: Mapping[str, Any] = {}
        if isinstance(batch, Mapping):
            missing = {"x0", "cond"} - set(batch)
            if missing:
                raise ValueError(f"{where} has no {sorted(missing)}; expected 'x0' and 'cond'.")
            x0, cond, carried = batch["x0"], batch["cond"], batch
        elif isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
            x0, cond = batch[:2]
            carried = {"uncond": batch[2]} if len(batch) == 3 else {}
        else:
            raise ValueError(
                f"{where} is a {type(batch).__name__}; expected a mapping or (x0, cond)."
            )
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
            others[name] = cond if value is None else _like(value, cond, name, where)
        for name, tree in {"cond": cond, **others}.items():
            for leaf in jax.tree.leaves(tree):
                if np.ndim(leaf) == 0 or np.shape(leaf)[0] != size:
                    raise ValueError(
                        f"{where}: {name} has shape {np.shape(leaf)} for {size} samples."
                    )
        for name, tree in {"x0": x0, "cond": cond, **others}.items():
            check_finite(f"{name} of {where}", tree)
        for check in checks:
            check(cond, where)
        return Batch(x0, cond, others, kept)


def _like(value: Any, cond: Any, name: str, where: str) -> Any:
    """A branch's condition in the shape of `cond`; in NumPy, so as not to wait for the device."""
    if jax.tree.structure(value) != jax.tree.structure(cond):  # type: ignore[operator]
        return value

    def one(value, cond):
        value, cond = np.asarray(value), np.asarray(cond)
        if jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(cond.dtype, jnp.floating):
            value = value.astype(cond.dtype)
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


def _check_shapes(batch: Batch, shapes: Any, step: int) -> Any:
    """Raise where `batch` is not shaped as those before it; its shapes."""
    found = tree_map(np.shape, tuple(batch))
    if shapes is not None and found != shapes:
        raise ValueError(
            f"batch {step} has shapes {found}, the ones before it {shapes}; expected "
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


def _write(
    log: TextIO | None, first: int, metrics: Mapping[str, np.ndarray], scored: Mapping[str, float]
) -> None:
    """A line a step; `scored` goes with the last."""
    if log is None:
        return
    count = len(next(iter(metrics.values())))
    for index in range(count):
        line = {name: float(values[index]) for name, values in metrics.items()}
        line |= scored if index == count - 1 else {}
        log.write(json.dumps({"step": first + index + 1, **line}) + "\n")
    log.flush()

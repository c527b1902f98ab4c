"""Learning a guidance with optax: a step on one shard, and the program of many."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from guidejax._arrays import Array, shard_like, tree_map
from guidejax._denoisers import Denoiser
from guidejax._guidance import Guidance
from guidejax._random import as_keys
from guidejax.objectives.base import Batch


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
    # Copies: a compiled step may write over what it is given.
    copy = functools.partial(jnp.array, copy=True)
    phi, data = tree_map(copy, phi), copy(jax.random.key_data(as_keys(key)))
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
    gradient of φ (and the loss, for the metrics) over the devices, the one collective of the step;
    `rollout` gathers features too, where samples that it compares lie on several devices, or sums
    their moments at β = 2.
    Where the loss, its gradient or what they would make of φ and the optimizer's state is not
    finite, φ and the optimizer stay as they are.
    Nothing of the networks is differentiated but what the objective itself asks for (`rollout`
    differentiates in x).

    Args:
        state: From `init_state` or the step before.
        denoise: The frozen denoiser.
        batch: (x0, cond, conditions) of this shard.
        keys: One key an example of this shard, made of its place in the whole batch: then the
            result doesn't depend on the number of shards. Of several processes each counts from
            its own first row, `first = jax.process_index() * len(x0)`:
            `jax.vmap(lambda i: jax.random.fold_in(step_key, i))(first + jnp.arange(len(x0)))`.
        guide: φ → `Guidance`: `lambda phi: gj.guidance(gj.cfg, omega=net.weight(phi))`.
        objective: From `self_consistency`, `l2`, `rollout`, or any function of the same arguments.
        optimizer: An optax transformation; it is told the loss (`value`) and the gradient (`grad`).
        networks: The denoisers of branches that aren't the main one's, by name.
        axis_name: The mapped axis or axes that the batch is split over.

    Returns:
        The next state and the metrics "loss", "grad_norm" and "skipped", whether φ stayed.
    """
    denoise, networks = jax.lax.stop_gradient((denoise, dict(networks or {})))
    objective = _across(objective, axis_name)

    def loss_fn(phi):
        return jnp.mean(objective(keys, guide(phi), denoise, batch, networks))

    loss, gradient = jax.value_and_grad(loss_fn)(_per_device(state.phi, axis_name))
    if axis_name is not None:
        loss, gradient = jax.lax.pmean((loss, gradient), axis_name)
    updates, opt_state = propose(optimizer, gradient, state.optimizer, state.phi, loss)
    phi = optax.apply_updates(state.phi, updates)
    good = _finite((loss, gradient, phi)) & _as_finite(opt_state, state.optimizer)
    phi, opt_state = tree_map(
        lambda new, old: jnp.where(good, new, old), (phi, opt_state), (state.phi, state.optimizer)
    )
    after = TrainState(phi, opt_state, state.step + 1, state.key)
    return after, {"loss": loss, "grad_norm": optax.tree.norm(gradient), "skipped": ~good}


def _across(objective: Any, axis_name: str | tuple[str, ...] | None) -> Any:
    """The objective for a shard: one that compares rows compares those of the other shards too."""
    own = objective
    if isinstance(own, jax.tree_util.Partial) and not (own.args or own.keywords):
        own = own.func  # `fit` wraps what is no pytree.
    return objective if axis_name is None or not hasattr(own, "across") else own.across(axis_name)


def propose(
    optimizer: optax.GradientTransformation, gradient: Any, state: Any, phi: Any, loss: Array
) -> tuple[Any, Any]:
    """The updates of φ and the optimizer's next state, for any optimizer that looks at a loss."""
    optimizer = optax.with_extra_args_support(optimizer)
    return optimizer.update(gradient, state, phi, value=loss, grad=gradient)


def _floats(tree: Any) -> list[Array]:
    return [a for a in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(a), jnp.inexact)]


def _finite(tree: Any) -> Array:
    return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(a)) for a in _floats(tree)])


def _as_finite(new: Any, old: Any) -> Array:
    """Whether what was finite is: the best loss so far begins as infinite."""
    pairs = zip(_floats(new), _floats(old), strict=True)
    kept = [jnp.all(jnp.isfinite(after) | ~jnp.isfinite(before)) for after, before in pairs]
    return functools.reduce(jnp.logical_and, kept, jnp.array(True))


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
    """What is compiled once for runs that share it (seeds, a sweep).

    Attributes:
        guide: φ → `Guidance`.
        optimizer: An optax transformation.
        key_impl: Of the run's key.
        mesh: Devices; None for the default one.
        axes: The axes of the mesh that the batch is split over.
        mapped: Whether these axes are mapped over (`shard_map`), so that the gradient's mean is
            their one collective and a network needn't know of them; the other axes stay the
            compiler's. If not, all are.
    """

    guide: Callable[[Any], Guidance]
    optimizer: optax.GradientTransformation
    key_impl: Any
    mesh: Mesh | None = None
    axes: tuple[str, ...] = ()
    mapped: bool = True

    def example_keys(self, state: TrainState, first: Array | int, like: Array) -> Array:
        """One key an example of `like`: of its place in the global batch, whoever holds it."""
        key = jax.random.wrap_key_data(state.key, impl=self.key_impl)
        key = jax.random.fold_in(key, state.step)
        places = shard_like(first + jnp.arange(like.shape[0]), like)
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(places)

    @property
    def _mapped_axes(self) -> tuple[str, ...] | None:
        return self.axes if self.mesh is not None and self.mapped else None

    def many_steps(self) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
        """jit of a scan over a leading axis of batches, data-parallel over the mesh if given."""
        axes = self._mapped_axes

        def run(state, objective, frozen, batches):
            denoise, networks = frozen
            size = jax.tree.leaves(batches)[0].shape[1]
            first = 0 if axes is None else jax.lax.axis_index(axes) * size

            def one(state, batch):
                keys = self.example_keys(state, first, jax.tree.leaves(batch.x0)[0])
                return train_step(
                    state, denoise, batch, keys,
                    guide=self.guide, objective=objective, optimizer=self.optimizer,
                    networks=networks, axis_name=axes,
                )  # fmt: skip

            return jax.lax.scan(one, state, batches)

        if axes is not None:
            whole, split = PartitionSpec(), PartitionSpec(None, axes)
            run = jax.shard_map(
                run, mesh=self.mesh, in_specs=(whole, whole, whole, split), out_specs=whole,
                axis_names=set(axes), check_vma=False,
            )  # fmt: skip
        if self.mesh is None:
            return jax.jit(run)
        return jax.jit(run, out_shardings=NamedSharding(self.mesh, PartitionSpec()))

    def loss(self) -> Callable[..., Array]:
        """jit of the mean loss of one batch at φ, by the keys of a seed; mapped as the steps are.

        The keys are those of the places in the whole batch, however it is split.
        """
        axes = self._mapped_axes

        def run(phi, objective, frozen, batch, seed):
            denoise, networks = frozen
            like = jax.tree.leaves(batch.x0)[0]
            size = like.shape[0]
            parts = 1 if axes is None else jax.lax.psum(1, axes)
            keys = jax.random.key_data(jax.random.split(jax.random.key(seed), size * parts))
            if axes is not None:
                first = jax.lax.axis_index(axes) * size
                keys = jax.lax.dynamic_slice_in_dim(keys, first, size)
            keys = jax.random.wrap_key_data(shard_like(keys, like))
            ours = _across(objective, axes)
            found = jnp.mean(ours(keys, self.guide(phi), denoise, batch, networks))
            return found if axes is None else jax.lax.pmean(found, axes)

        if axes is not None:
            whole, split = PartitionSpec(), PartitionSpec(axes)
            run = jax.shard_map(
                run, mesh=self.mesh, in_specs=(whole, whole, whole, split, whole),
                out_specs=whole, axis_names=set(axes), check_vma=False,
            )  # fmt: skip
        return jax.jit(run)


def _once(make: Callable[[Program], Any]) -> Callable[[Program], Any]:
    """`make`, which gives equal programs one compiled function."""
    cached = functools.lru_cache(maxsize=16)(make)

    def get(program: Program) -> Any:
        try:
            hash(program)
        except TypeError:  # a rule that holds arrays has none
            return make(program)
        return cached(program)

    return get


many_steps = _once(Program.many_steps)
loss = _once(Program.loss)

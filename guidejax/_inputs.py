"""What the sampler is given, checked before anything compiles."""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import functools
import inspect
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import (
    Times,
    Tree,
    batch_size,
    broadcasts_to,
    check_floating,
    check_not_nan,
    concretely,
    is_concrete,
    same_structure,
    shard_like,
    tree_map,
    upcast,
)
from guidejax._branches import Branches
from guidejax._denoisers import Denoiser, check_denoiser, same_process
from guidejax._guidance import Guidance, every_weight, unguided
from guidejax.processes.base import Process
from guidejax.solvers._ddim import ddim
from guidejax.solvers._replay import kinds
from guidejax.solvers.base import Solver

# Branches that only a network of their own can make differ from the conditional one.
OWN_NETWORK = ("weak", "perturbed", "gradient")


def as_guidance(guide: Any) -> Guidance:
    """`guide` itself, no guidance for None, or an error that says what to write."""
    if guide is None:
        return unguided()
    if not isinstance(guide, Guidance):
        hint = "gj.guidance(gj.cfg, omega=...)"
        if isinstance(guide, (int, float)):
            hint = f"gj.guidance(gj.cfg, omega=gj.from_scale({guide}))"
        elif callable(guide):
            hint = f"gj.guidance(gj.{getattr(guide, 'name', 'cfg')}, omega=...)"
        raise ValueError(f"expected a guidance, such as {hint}; got {guide!r}.")
    return guide


def as_solver(solver: Any) -> Solver:
    """`solver` itself, DDIM for None, or an error that says what to write."""
    if solver is None:
        return ddim()
    if not isinstance(solver, Solver):
        called = f": call it, {solver.__name__}()" if callable(solver) else ""
        named = f": gj.solvers.{solver}()" if isinstance(solver, str) else ""
        raise ValueError(f"expected a solver, such as gj.ddim(); got {solver!r}{called}{named}.")
    return solver


def check(
    times: Times, noise: Tree, cond: Any, guide: Guidance, denoise: Any, solver: Solver
) -> None:
    """Raise `ValueError` for whatever is known to be wrong with the arguments of `sample`."""
    check_denoiser(denoise)
    check_floating("noise", noise)
    batch = batch_size(noise)
    if times.ndim not in (1, 2) or times.shape[0] < 2:
        raise ValueError(f"times must be (steps + 1,) with steps ≥ 1, got shape {times.shape}.")
    if times.ndim == 2 and times.shape[1] != batch:
        raise ValueError(f"times of shape {times.shape} don't fit a batch of {batch}.")
    if is_concrete(times):
        _check_times(np.asarray(times), noise, denoise, solver)
    _check_rows("cond", cond, batch, "noise")
    for name, weight in guide.weights:
        check_not_nan(name, weight.params)
    _check_mask(guide, noise)
    for weight in every_weight(guide):
        if hasattr(weight.fn, "check"):
            weight.fn.check(cond)
    _warn_of_new_functions(denoise, guide)


def _check_times(grid: np.ndarray, noise: Tree, denoise: Denoiser, solver: Solver) -> None:
    process = denoise.process
    if not np.all(np.isfinite(grid)) or grid.max() > 1 or grid.min() < 0:
        raise ValueError(f"times must lie in [0, 1], 1 being noise; got {grid}.")
    falls, rises = (bool(np.all(sign * np.diff(grid, axis=0) > 0)) for sign in (-1, 1))
    if not falls and not (rises and solver.both_ways):
        raise ValueError(
            "times must fall from noise to data, each below the last"
            + (", with this solver" if rises else "")
            + f"; got {grid}."
        )
    for time in _asked_ends(grid, noise, process, solver):
        check_sighted(denoise, time)
        _check_told(denoise, time)
    if not is_concrete(process):
        return
    with concretely():
        sigma = np.asarray(process.sigma(jnp.asarray(grid)))
        alpha = np.asarray(process.alpha(jnp.asarray(grid[0])))
    if rises and np.any(sigma[0] <= 0):
        raise ValueError(
            "times must fall from noise to data, or rise from a little above t = 0, where there is "
            "no noise to scale: uniform_times(steps, stop=0.02)[::-1]."
        )
    lost = (grid > 0) & (np.abs(sigma) < np.finfo(np.float32).tiny)
    if np.any(lost):
        raise ValueError(
            f"at t = {grid[lost].max():g} σ underflows to 0 in {sigma.dtype} on "
            f"{type(process).__name__}; end at 0 itself, or take gj.karras_times."
        )
    _warn_of_other_noise(float(np.max(alpha)), np.atleast_1d(sigma[0]), noise, process)


def check_sighted(denoise: Denoiser, time: Any, whose: str = "") -> None:
    """Raise `ValueError` where a network is known to say nothing of x0 at a time."""
    if denoise.blind_at(time):
        raise ValueError(
            f"{whose}at t = {time} α is 0, where {denoise.noisiest.prediction!r} says nothing of "
            "x0; start lower: uniform_times(steps, start=0.999)."
        )


def _check_told(denoise: Denoiser, time: Any, whose: str = "") -> None:
    told = denoise.told_at(time)
    if told is None or np.all(np.isfinite(told[1])):
        return
    name, value = told
    raise ValueError(
        f"{whose}the network would be told {name} = {value[~np.isfinite(value)].flat[0]} at "
        f"t = {time}; start lower, uniform_times(steps, start=0.999), or give `time` of "
        "gj.denoiser a function of t that is finite there."
    )


def _asked_ends(grid: np.ndarray, noise: Tree, process: Process, solver: Solver) -> list[Any]:
    """The ends of a grid at which a network is asked: the last, which may be pure noise in an
    inversion, by those solvers alone that evaluate at the end of a step.
    """
    rises = bool(np.all(grid[-1] > grid[0]))
    if rises and "end" in kinds(solver, process, grid.ndim == 2, into_data=False, like=noise):
        return [grid[0], grid[-1]]
    return [grid[0]]


def check_branches(
    branches: Branches,
    active: Mapping[str, Any],
    times: Times,
    noise: Tree,
    denoise: Denoiser,
    solver: Solver,
) -> None:
    """Raise `ValueError` where a branch's own network is asked for what it can't know.

    Args:
        branches: As `find_branches` gives them.
        active: Whether each is evaluated, at each evaluation of the run.
        times: The grid.
        noise: The state at its start.
        denoise: The main network.
        solver: The solver.
    """
    if not is_concrete(times):
        return
    grid = np.asarray(times)
    for name, (network, _) in branches.items():
        flags = active.get(name, True)
        if network is None or not is_concrete(flags):
            continue
        first, last = (bool(np.ravel(np.asarray(flags))[i]) for i in (0, -1))
        whose = f"the branch {name!r}: "
        asked = _asked_ends(grid, noise, denoise.process, solver)
        for time, made in ((grid[0], first), (grid[-1], last and len(asked) > 1)):
            if made:
                check_sighted(network, time, whose)
                _check_told(network, time, whose)


# Processes, with shapes of noise, of which the size of noise was looked at.
_MEASURED: set[Any] = set()


def _warn_of_other_noise(alpha: float, sigma: np.ndarray, noise: Tree, process: Process) -> None:
    """Say where a run begins from noise of another size than its process has at the first time."""
    least, most = float(sigma.min()), float(sigma.max())
    if least < alpha:  # Not from noise.
        return
    known = is_concrete(noise) and all(
        getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(noise)
    )
    if not known:
        return
    if least < 4:  # To look at noise is to wait for it: once for a kind of run.
        kind = (type(process), tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(noise)))
        if kind in _MEASURED:
            return
        _MEASURED.add(kind)
    for leaf in jax.tree.leaves(noise):
        with concretely():
            size = float(jnp.sqrt(jnp.mean(jnp.square(upcast(leaf)))))
        # Pictures within what is noised may be larger than noise; on EDM's scale it is all noise.
        if (least >= 4 and size < least / 4) or size > 4 * (most + alpha):
            warnings.warn(
                f"noise has a root mean square of {size:.3g}, and σ is {least:.3g} at times[0] on "
                f"{type(process).__name__}: x there is σ ε, as gj.processes.initial_noise(key, "
                "process, shape) gives.",
                stacklevel=5,
            )


def _check_rows(name: str, cond: Any, batch: int, like: str) -> None:
    for leaf in jax.tree.leaves(cond):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != batch:
            listed = isinstance(cond, (list, tuple)) and not hasattr(leaf, "shape")
            hint = (
                f" {name} is a {type(cond).__name__} of numbers: give an array." if listed else ""
            )
            raise ValueError(
                f"{name} has shape {jnp.shape(leaf)}; expected a leading axis of {batch}, the "
                f"batch of `{like}`.{hint}"
            )


def _check_mask(guide: Guidance, noise: Tree) -> None:
    """Masks broadcast against the state: one for every leaf, one a leaf, or one a part."""
    paths, _ = jax.tree_util.tree_flatten_with_path(noise)
    leaves = [leaf for _, leaf in paths]
    parts = [str(getattr(path[0], "key", "")) if path else "" for path, _ in paths]
    for what, given in (("mask", guide.mask), ("omega", guide.omega)):
        if isinstance(given, dict) and set(given) != set(parts):
            raise ValueError(
                f"{what} has the parts {', '.join(given)}; the state has "
                f"{', '.join(dict.fromkeys(filter(None, parts))) or 'none'}."
            )
    masks = guide._masks(parts)
    if len(masks) != len(leaves):
        raise ValueError(f"the mask has {len(masks)} arrays; the state has {len(leaves)}.")
    for one, leaf in zip(masks, leaves, strict=True):
        shape = np.shape(one)
        padded = (1,) * (leaf.ndim - len(shape)) + shape
        if one is not None and not broadcasts_to(padded, leaf.shape):
            raise ValueError(
                f"the mask has shape {np.shape(one)}, which doesn't broadcast to the state's "
                f"{leaf.shape}."
            )


@dataclasses.dataclass
class _Seen:
    """A function that was seen, without keeping it or what it reads alive."""

    function: Callable[[], Any]
    arrays: dict[str, tuple[Any, ...]]
    call: int
    told: bool = False


# For each place in the source that makes functions, those that were seen.
_SEEN: dict[Any, list[_Seen]] = {}
# Where so many calls brought new ones from one place, it is said that they are made anew at each.
_MANY = 4
_CALLS = itertools.count()
# Beyond so many arrays what a function reads isn't looked at.
_LEAVES = 4096


def _warn_of_new_functions(denoise: Denoiser, guide: Guidance) -> None:
    """Say where a function is made anew at each call, or reads what changed since it compiled."""
    network: Any = denoise.network
    functions = [getattr(network, "fn", network), denoise.time]
    functions += [link.rule.fn for link in guide.links]
    functions += [getattr(weight.fn, "fn", weight.fn) for weight in every_weight(guide)]
    call = next(_CALLS)
    for function in functions:
        warn_of_new_function(function, level=5, call=call)


def warn_of_new_function(function: Any, level: int = 4, call: int | None = None) -> None:
    """Say where a function is made anew at each call, or reads what changed since it compiled.

    `level` is that of the caller whom it concerns, as `stacklevel` has it. `call` is the same for
    all functions of a call, which may have several of one place, as of a weight a class.
    """
    call = next(_CALLS) if call is None else call
    code = getattr(function, "__code__", getattr(type(function).__call__, "__code__", None))
    if code is None:
        return
    seen = _SEEN.setdefault(code, [])
    where = f"{_name(function)} ({code.co_filename}:{code.co_firstlineno})"
    known = next((one for one in seen if _is_same(one.function(), function)), None)
    if known is not None:
        now = _reads(function, code) if known.arrays and not known.told else {}
        changed = [n for n, old in known.arrays.items() if n in now and _differ(old, now[n])]
        if changed:
            known.told = True
            warnings.warn(
                f"{where} reads {', '.join(changed)} beside its arguments, and was compiled with "
                "other values, with which it may go on. What changes goes in as `params`: "
                "gj.denoiser(network, process, params=...) of a network(params, x, t, cond); what "
                "is learned, as φ of gj.fit.",
                stacklevel=level,
            )
    elif len({one.call for one in seen}) < _MANY and (weak := _weakly(function)) is not None:
        seen.append(_Seen(weak, _reads(function, code), call))
        if len({one.call for one in seen}) == _MANY and hasattr(function, "__code__"):
            warnings.warn(
                f"{where} is a new function at each call, so that each call compiles anew; define "
                "it once.",
                stacklevel=level,
            )


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


def _weakly(function: Any) -> Callable[[], Any] | None:
    try:
        # A method is made anew each time that one asks for it.
        return (weakref.WeakMethod if inspect.ismethod(function) else weakref.ref)(function)
    except TypeError:
        return None


def _is_same(a: Any, b: Any) -> bool:
    if inspect.ismethod(a) and inspect.ismethod(b):
        return a.__self__ is b.__self__ and a.__func__ is b.__func__
    return a is b


def _reads(function: Any, code: Any) -> dict[str, tuple[Any, ...]]:
    """The arrays that a function reads beside its arguments, as far as a look at it tells."""
    plain = function if hasattr(function, "__code__") else type(function).__call__
    owner = getattr(function, "__self__", None if plain is function else function)
    attributes = getattr(owner, "__dict__", {})
    found = {f"self.{name}": attributes[name] for name in code.co_names if name in attributes}
    of, cells = getattr(plain, "__globals__", {}), getattr(plain, "__closure__", None) or ()
    found |= {name: of[name] for name in _globals_of(code) if name in of}
    for name, cell in zip(code.co_freevars, cells, strict=False):
        with contextlib.suppress(ValueError):  # Nothing is in it yet.
            found[name] = cell.cell_contents
    return {name: arrays for name, value in found.items() if (arrays := _arrays_of(value))}


@functools.lru_cache(maxsize=1024)
def _globals_of(code: Any) -> tuple[str, ...]:
    names = (i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL")
    return tuple(dict.fromkeys(names))


def _arrays_of(value: Any) -> tuple[Any, ...]:
    """Weak references to the arrays of a pytree; none where some aren't known now."""
    try:
        leaves = jax.tree.leaves(value)
    except (TypeError, ValueError):  # Keys of a dict that can't be sorted.
        return ()
    if len(leaves) > _LEAVES or not is_concrete(leaves):
        return ()
    return tuple(weakref.ref(a) for a in leaves if isinstance(a, (jax.Array, np.ndarray)))


def _differ(old: tuple[Any, ...], new: tuple[Any, ...]) -> bool:
    """Whether these are other arrays."""
    return len(old) != len(new) or any(a() is not b() for a, b in zip(old, new, strict=True))


def check_conditions(given: Any, guide: Guidance, others: Iterable[str] = ()) -> None:
    """Raise `ValueError` where a condition is of a branch that nothing asks for.

    A null condition that isn't asked for does no harm, and whoever gives no rule wants no branch.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"conditions must be a mapping by branch, got {type(given).__name__}.")
    if guide.links:
        guide.check_known(set(given) - {"uncond", *others})


def find_branches(
    names: Iterable[str],
    denoise: Denoiser,
    cond: Any,
    uncond: Any,
    given: Mapping[str, Any],
    who: str = "sample",
) -> Branches:
    """The condition of each named branch, and its network where that isn't the main one."""
    check_batched("cond", cond)
    found: dict[str, tuple[Denoiser | None, Any]] = {}
    known = {**({} if uncond is None else {"uncond": uncond}), **given}
    for name in names:
        if name not in known:
            how = "uncond=..." if name == "uncond" else f"conditions={{{name!r}: ...}}"
            raise ValueError(f"the guidance needs the branch {name!r}; give {who}({how}).")
        network, value = as_branch(name, known[name], cond, denoise.process)
        found[name] = (network, like_cond(value, cond, name))
        check_batched(name, found[name][1])
    return found


def check_batched(name: str, cond: Any) -> None:
    """Raise `ValueError` where a condition is a number or a list of them, without a batch axis."""
    for leaf in jax.tree.leaves(cond):
        if jnp.ndim(leaf) == 0:
            raise ValueError(
                f"{name} holds {leaf!r} without a batch axis"
                + (f" ({name} is a {type(cond).__name__})" if cond is not leaf else "")
                + "; expected arrays, (batch, ...)."
            )


def as_branch(name: str, value: Any, cond: Any, process: Process) -> tuple[Denoiser | None, Any]:
    """(network, condition) of what stands for a branch: a condition, a denoiser, or both."""
    network = None
    if isinstance(value, tuple) and len(value) == 2 and callable(value[0]):
        network, value = value
        value = cond if value is Ellipsis else value
    elif isinstance(value, Denoiser) or (callable(value) and not hasattr(value, "shape")):
        network, value = value, cond
    if network is None:
        if name in OWN_NETWORK or (value is cond and cond is not None):
            raise ValueError(
                f"the branch {name!r} is the main network under "
                + ("the same condition" if value is cond else "another condition")
                + f"; give it a network of its own: conditions={{{name!r}: (denoiser, condition)}}."
            )
        return None, value
    check_denoiser(network)
    if not same_process(network.process, process) and is_concrete(network.process, process):
        raise ValueError(
            f"the network of {name!r} is of another process than the main one: give "
            f"denoiser.on(process) ({type(process).__name__})."
        )
    return network, value


def as_dtype_of(cond: Any, value: Any, name: str) -> Any:
    """A branch's array in the dtype of `cond`: a null label 1000 is float where embeddings are.

    Raises:
        ValueError: If its numbers, where they are known, don't fit: 1000 among labels of 8 bits.
    """
    integers = jnp.issubdtype(value.dtype, jnp.integer)
    if not (integers or jnp.issubdtype(cond.dtype, jnp.floating)):
        return value
    known = is_concrete(value) and getattr(value, "is_fully_addressable", True)
    if integers and jnp.issubdtype(cond.dtype, jnp.integer) and known and value.size:
        numbers = np.asarray(value)
        least, most = int(numbers.min()), int(numbers.max())
        fits = jnp.iinfo(cond.dtype)
        if least < fits.min or most > fits.max:
            raise ValueError(
                f"{name} holds {most if most > fits.max else least}, and cond is {cond.dtype}, "
                "which has no such number; give cond as int32."
            )
    return value.astype(cond.dtype)


def rows_for_all(a: Any, batch: int) -> Any:
    """One row for all samples, (1, ...), as one a sample; anything else as it is."""
    lib: Any = jnp if isinstance(a, jax.Array) else np
    return lib.broadcast_to(a, (batch, *a.shape[1:])) if a.ndim and a.shape[0] == 1 else a


def like_cond(value: Any, cond: Any, name: str) -> Any:
    """A branch's condition in the shape of `cond`: a null label or embedding is broadcast.

    One that doesn't broadcast but has a row a sample, as a prompt of other length, stays as it is;
    so does one of other parts, {"text"} beside {"text", "tokens"}, but for rows of all samples.
    """
    if not same_structure(value, cond):
        if not jax.tree.leaves(cond):
            return value
        return tree_map(lambda a: rows_for_all(jnp.asarray(a), batch_size(cond)), value)

    def one(value, cond):
        value = value if isinstance(value, jax.Array) else np.asarray(value)
        value = as_dtype_of(cond, value, name)
        try:
            return shard_like(jnp.broadcast_to(value, cond.shape), cond)
        except ValueError:
            if value.ndim == cond.ndim and value.shape[0] == cond.shape[0]:
                return value
            if value.ndim == cond.ndim and value.shape[0] == 1:
                return jnp.broadcast_to(value, (cond.shape[0], *value.shape[1:]))
            raise ValueError(
                f"{name} has shape {value.shape}, which doesn't broadcast to cond's {cond.shape}; "
                f"expected that, or ({cond.shape[0]}, ...) of its own shape."
            ) from None

    return tree_map(one, value, tree_map(jnp.asarray, cond))

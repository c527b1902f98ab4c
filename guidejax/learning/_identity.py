"""What a run is, so that a checkpoint is gone on with by the run that wrote it and by no other.

An identity is JSON, section by section: the weight, the guidance, the objective, the optimizer,
the denoiser, the conditions of the branches, the data, the key. A dataclass is known by its
settings, an array by a fingerprint of its values, a function by the program that it traces to.
Arrays of an objective may be statistics that were computed on other cores or on another chip than
the last time, which round otherwise: of these there is a sketch, compared within a tolerance.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Tree, tree_map
from guidejax.learning.training import propose
from guidejax.objectives.base import as_pytree

Identity = dict[str, Any]
# Programs are compared where the same versions of these traced both.
TRACERS = ("jax", "flax", "optax")
# Arrays up to this many bytes are fingerprinted on the host, larger ones where they lie.
SMALL = 1 << 20
FEW = 16  # Numbers that are written out; of more there is a fingerprint.
# By how much an objective's numbers may differ, relative to themselves and to the largest beside
# them, and a sketch to its length: sums of float32 round by less, and one of a million elements
# that is another moves a sketch by 1e-3.
NUMBERS, LARGEST, SKETCH = 1e-5, 1e-6, 1e-4
SIGNS = 4
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# Of a program: names, and where it runs, which may be on other devices the next time.
PLACEMENT = {
    "name", "debug_info", "mesh", "ctx_mesh", "sharding", "out_sharding", "in_shardings",
    "out_shardings", "in_layouts", "out_layouts", "donated_invars", "resource_env",
}  # fmt: skip


def describe(value: Any, of_array: Callable[[Any], Any] | None = None) -> Any:
    """What is written beside φ to know it again: settings, where the object has any, as JSON.

    `of_array` says what an array of many numbers is known by, a fingerprint by default.
    """
    if hasattr(value, "describe"):
        return value.describe()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            "kind": type(value).__name__,
            **{f.name: _setting(getattr(value, f.name), of_array or fingerprint)
               for f in dataclasses.fields(value)},
        }  # fmt: skip
    return {"kind": "function"}


def _setting(value: Any, of_array: Callable[[Any], Any]) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return describe(value, of_array)
    if isinstance(value, (tuple, list)):
        return [_setting(v, of_array) for v in value]
    if isinstance(value, Mapping):
        return {str(name): _setting(v, of_array) for name, v in value.items()}
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return np.asarray(value).tolist() if np.size(value) <= FEW else of_array(value)
    if isinstance(value, jax.tree_util.Partial):
        return [getattr(value.func, "__qualname__", "a function"), _setting(value.args, of_array)]
    if callable(value):
        return "a function"
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def versions() -> dict[str, str]:
    """Of what programs are traced by."""
    return {name: metadata.version(name) for name in TRACERS}


def program(function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """What a function computes: a hash of its program, and the numbers that stand in it.

    Numbers that hide in a closure, as a learning rate does in an optimizer's, are among them.
    """
    made = jax.make_jaxpr(function)(*args)
    whole, numbers = hashlib.sha256(), set()
    consts = [c for c in made.consts if hasattr(c, "dtype")]

    def note(value: Any) -> None:
        if jnp.ndim(value) == 0 and jnp.issubdtype(jnp.result_type(value), jnp.number):
            number = complex(value).real
            # NaN stands in the program, and has no place in an order.
            numbers.update([] if math.isnan(number) else [number])

    def walk(jaxpr: Any) -> None:
        places = {v: i for i, v in enumerate([*jaxpr.constvars, *jaxpr.invars])}

        def place(var: Any) -> str:
            if hasattr(var, "val"):
                note(var.val)
                return f"{var.val}"
            return str(places[var])

        for line in jaxpr.eqns:
            given = ",".join(place(var) for var in line.invars)
            for var in line.outvars:
                places[var] = len(places)
            shapes = [(var.aval.dtype, var.aval.shape) for var in line.outvars]
            whole.update(f"{line.primitive.name}({given}) {shapes};".encode())
            for name in sorted(line.params.keys() - PLACEMENT):
                option(name, line.params[name])
        whole.update(",".join(place(var) for var in jaxpr.outvars).encode())

    def option(name: str, value: Any) -> None:
        if hasattr(value, "consts") and hasattr(value, "jaxpr"):
            for const in value.consts:
                note(const)
            whole.update(fingerprint([c for c in value.consts if hasattr(c, "dtype")]).encode())
            value = value.jaxpr
        if hasattr(value, "eqns"):
            walk(value)
        elif isinstance(value, (tuple, list)):
            for one in value:
                option(name, one)
        elif not callable(value):
            whole.update(f"{name}={_ADDRESS.sub('', repr(value))};".encode())

    for const in consts:
        note(const)
    walk(made.jaxpr)
    whole.update(fingerprint(consts).encode())
    return {"program": whole.hexdigest()[:16], "numbers": [_as_json(n) for n in sorted(numbers)]}


def _as_json(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def shapes(tree: Tree) -> list[str]:
    """Every leaf by its place, dtype and shape."""
    return [
        f"{jax.tree_util.keystr(path)} {jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def values(tree: Tree, of_tree: Callable[[Tree], Any] | None = None) -> dict[str, Any]:
    """The places, dtypes, shapes and values of a pytree's arrays.

    `of_tree` says what many values are known by, a fingerprint by default.
    """
    leaves = [plain(leaf) for leaf in jax.tree.leaves(tree)]
    if sum(leaf.size for leaf in leaves) <= FEW and all(_is_here(leaf) for leaf in leaves):
        return {"arrays": shapes(tree), "values": [np.asarray(leaf).tolist() for leaf in leaves]}
    return {"arrays": shapes(tree), "values": (of_tree or fingerprint)(tree)}


def sketches(tree: Tree) -> list[Any]:
    """`sketch` of each leaf."""
    return [sketch(leaf) for leaf in jax.tree.leaves(tree)]


def sketch(leaf: Any) -> Any:
    """An array's length ‖a‖, and Σ a · r of some random signs r, which rounding hardly moves.

    They do move where elements change, or change places. What isn't of floats has a fingerprint.
    """
    leaf = plain(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return fingerprint(leaf)
    if _is_here(leaf) and leaf.nbytes <= SMALL:
        with np.errstate(over="ignore"):
            found = _sketch(np, np.asarray(leaf))
    else:
        found = jax.jit(_sketch, static_argnums=0)(jnp, leaf)
    return {"sketch": [_as_json(float(number)) for number in found]}


def _sketch(lib: Any, a: Any) -> Any:
    wide = a.astype(lib.promote_types(a.dtype, lib.float32))
    mixed = _mixed(lib, a.shape)
    signs = [1 - 2.0 * ((mixed >> lib.uint32(16 + k)) & lib.uint32(1)) for k in range(SIGNS)]
    sums = [lib.sum(wide * sign.astype(wide.dtype)) for sign in signs]
    return lib.stack([lib.sqrt(lib.sum(wide * wide)), *sums])


def fingerprint(tree: Tree) -> str:
    """A hash of the shapes and values of a pytree, the same however its arrays are sharded."""
    whole = hashlib.sha256()
    for place, leaf in zip(shapes(tree), jax.tree.leaves(tree), strict=True):
        whole.update(f"{place} {_bits(plain(leaf))};".encode())
    return whole.hexdigest()[:16]


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed random key."""
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def plain(leaf: Any) -> Any:
    """A leaf as an array of numbers: of a typed random key, its data."""
    if is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if hasattr(leaf, "dtype") else np.asarray(leaf)


def _is_here(leaf: Any) -> bool:
    """Whether this process alone can read all of it."""
    return getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated


def _bits(leaf: Any) -> int:
    if _is_here(leaf) and leaf.nbytes <= SMALL:
        with np.errstate(over="ignore"):
            return int(_sum(np, np.asarray(leaf)))
    return int(jax.jit(_sum, static_argnums=0)(jnp, leaf))


def _sum(lib: Any, a: Any) -> Any:
    """Σ bits · h(place) modulo 2³²: a sum of integers, whatever its order, and so the sharding."""
    if a.dtype == bool:
        a = a.astype(lib.uint8)
    wide = max(a.dtype.itemsize // 4, 1)
    kind = {1: lib.uint8, 2: lib.uint16}.get(a.dtype.itemsize, lib.uint32)
    if lib is np:
        bits = np.ascontiguousarray(a).view(kind).reshape(a.shape + (wide,) * (wide > 1))
    else:
        bits = jax.lax.bitcast_convert_type(a, kind)
    mixed = _mixed(lib, bits.shape) | lib.uint32(1)
    return lib.sum(bits.astype(lib.uint32) * mixed, dtype=lib.uint32)


def _mixed(lib: Any, shape: tuple[int, ...]) -> Any:
    """A hash of each element's place."""
    place: Any = lib.zeros(shape, lib.uint32)
    for axis, size in enumerate(shape):
        along = [1] * len(shape)
        along[axis] = size
        place = place * lib.uint32(size) + lib.arange(size, dtype=lib.uint32).reshape(along)
    mixed = (place * lib.uint32(2654435761)) ^ lib.uint32(0x9E3779B9)
    return (mixed ^ (mixed >> lib.uint32(15))) * lib.uint32(0x85EBCA6B)


# The sections.


def of_run(
    guide: Callable[[Any], Any],
    phi: Any,
    objective: Any,
    optimizer: Any,
    denoise: Any,
    conditions: Mapping[str, Any],
    key: Any,
) -> Identity:
    """The identity of a run, but for its data.

    Args:
        guide: φ → `Guidance`.
        phi: φ, of which the shapes alone count.
        objective: The objective.
        optimizer: The optax transformation.
        denoise: The denoiser.
        conditions: What every other branch is made of, a condition or a `Denoiser` by a name.
        key: The run's key, as data.
    """
    shaped = tree_map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), phi)
    made, arrays = guide(phi), as_pytree(objective)
    found = {
        "weight": {**describe(guide), "φ": shapes(phi)},
        "guidance": {
            "rules": [
                [k.rule.name, k.space, _setting(dict(k.options), fingerprint)] for k in made.links
            ],
            "weights": {name: describe(weight.fn) for name, weight in made.weights},
            "numbers": program(lambda phi: jax.tree.leaves(guide(phi)), shaped),
        },
        "objective": {
            **describe(objective, sketch),
            "name": getattr(objective, "__qualname__", None),
            "arrays": values(arrays, sketches) if jax.tree.leaves(arrays) else None,
        },
        "optimizer": program(
            lambda phi: propose(optimizer, phi, optimizer.init(phi), phi, jnp.float32(0)), shaped
        ),
        "denoiser": of_denoiser(denoise),
        "conditions": {
            name: of_denoiser(value) if hasattr(value, "process") else values(value)
            for name, value in conditions.items()
        },
        "key": values(key)["values"],
        "versions": versions(),
    }  # fmt: skip
    return json.loads(json.dumps(found))


def of_denoiser(denoise: Any) -> dict[str, Any]:
    """Process, prediction, what the network is told, and a fingerprint of its parameters."""
    return {
        "process": describe(denoise.process),
        "trained on": None if denoise.trained_on is None else describe(denoise.trained_on),
        "prediction": denoise.prediction,
        "time": denoise.time if isinstance(denoise.time, str) else "a function",
        "parameters": {"arrays": shapes(denoise.params), "values": fingerprint(denoise.params)},
    }


def of_data(
    guide: Any, phi: Any, objective: Any, denoise: Any, networks: Mapping[str, Any], batch: Any
) -> Identity:
    """What is known once a batch is: the data, and the program of the loss."""
    size = jax.tree.leaves(batch)[0].shape[0]
    # By their shapes alone: arrays on a mesh with explicit axes trace to another program.
    given = tree_map(
        lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)),
        (phi, objective, denoise, networks, batch),
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
    loss = program(
        lambda phi, objective, denoise, networks, batch, keys: objective(
            keys, guide(phi), denoise, batch, networks
        ),
        *given, keys,
    )  # fmt: skip
    first = {"arrays": shapes(tuple(batch)), "values": fingerprint(tuple(batch))}
    return {"data": {"first batch": first}, "loss": loss}


def differences(saved: Identity, now: Identity) -> list[str]:
    """What differs between two identities, a line each; a section that one lacks is passed over."""
    same = saved.get("versions") == now.get("versions")
    found: list[str] = []
    for section in now:
        if section != "versions" and section in saved:
            found += _differ(section, saved[section], now[section], same)
    return found


def _differ(where: str, saved: Any, now: Any, same_versions: bool) -> list[str]:
    if saved == now or (where.startswith("objective") and _close(saved, now)):
        return []
    if not (isinstance(saved, dict) and isinstance(now, dict)):
        return [f"{where}: saved {_short(saved)}, now {_short(now)}"]
    if "program" in saved and "program" in now:
        if not same_versions:
            return []
        gone, come = (
            [n for n in a["numbers"] if n not in b["numbers"]]
            for a, b in ((saved, now), (now, saved))
        )
        if gone or come:
            return [f"{where}: its numbers {_short(gone)} were saved, now {_short(come)}"]
        return [f"{where}: it computes something else"]
    found = []
    for name in sorted(saved.keys() | now.keys()):
        found += _differ(f"{where}, {name}", saved.get(name), now.get(name), same_versions)
    return found


def _close(saved: Any, now: Any) -> bool:
    """Whether numbers, sketches, or lists of these are the same up to rounding."""
    if isinstance(saved, dict) and isinstance(now, dict) and "sketch" in saved and "sketch" in now:
        return _near(saved["sketch"], now["sketch"], 0.0, SKETCH)
    if isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        near = all(map(_is_number, (*saved, *now)))
        return _near(saved, now, NUMBERS, LARGEST) if near else all(map(_close, saved, now))
    if _is_number(saved) and _is_number(now):
        return _near([saved], [now], NUMBERS, 0.0)
    return bool(saved == now)


def _near(saved: list[float], now: list[float], own: float, largest: float) -> bool:
    one, other = np.asarray(saved, np.float64), np.asarray(now, np.float64)
    size = np.maximum(np.abs(one), np.abs(other))
    return bool(np.all(np.abs(one - other) <= own * size + largest * size.max(initial=0.0)))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."

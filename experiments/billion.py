"""Compile a SiT of a billion parameters for 8 and 64 devices, from shapes alone.

    python -m experiments.billion              # half an hour on two cores; goes on if stopped
    python -m experiments.billion --publish    # and write its section of docs/scaling.md

Guided sampling and one update of a learned ω, as `gj.sample` and `gj.fit` compile them, on virtual
CPU devices and, where libtpu is installed, on TPUs that aren't there. Nothing is allocated or run.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import guidejax as gj
from experiments.tpu import reading
from guidejax import learning
from guidejax.learning.training import Program
from guidejax.models import _files, dit
from guidejax.objectives import Batch

NAME = "SiT-1p0B/2"
STEPS, PARTICLES = 8, 4
PROGRAMS = ("pass", "sampler", "step")
OPTIMIZER = optax.adamw(1e-3)
# A jitted function and its arguments' shapes.
Built = tuple[Any, tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A program for some devices.

    Attributes:
        what: One of `PROGRAMS`.
        platform: "cpu", or "tpu", a v5e.
        devices: How many, 8 or 64.
        model: Devices that the network is split over; the batch is split over the others.
        batch: Images for each device of the data axis.
    """

    what: str
    platform: str
    devices: int
    model: int
    batch: int = 8

    @property
    def name(self) -> str:
        """A name for a line."""
        return f"{self.what} on {self.devices} {self.platform}, model {self.model}"


CELLS = tuple(
    Cell(what, platform, devices, model)
    for platform, meshes in (
        ("cpu", ((8, 1), (8, 2), (8, 8), (64, 4))),
        ("tpu", ((8, 2),)),
    )
    for devices, model in meshes
    for what in PROGRAMS
)


# What is compiled


def mesh_of(cell: Cell) -> Mesh:
    """Its devices as data x model, each there or described."""
    shape = (cell.devices // cell.model, cell.model)
    if cell.platform == "cpu":
        return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    from jax.experimental import mesh_utils, topologies

    chips = topologies.get_topology_desc(
        platform="tpu", topology_name={8: "v5e:2x4", 64: "v5e:8x8"}[cell.devices]
    )
    placed = mesh_utils.create_device_mesh(
        shape, list(chips.devices), allow_split_physical_axes=True
    )
    return Mesh(placed, ("data", "model"))


def _at(mesh: Mesh, spec: P, tree: Any) -> Any:
    """The shapes of `tree`, split so."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def parameters(config: dit.Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The network's parameters in bfloat16, placed as `dit.load` places them."""
    return {
        key: jax.ShapeDtypeStruct(
            shape, jnp.bfloat16, sharding=_files.placement(key, shape, mesh, dit.RULES)
        )
        for key, shape in dit.shapes(config).items()
    }


def build(what: str, config: dit.Config, mesh: Mesh, batch: int) -> Built:
    """A program and the shapes of its arguments."""
    params, rows = parameters(config, mesh), batch * mesh.shape["data"]
    images = jax.ShapeDtypeStruct((rows, config.side, config.side, config.channels), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
    if what == "pass":
        bare = lambda params, x, y: dit.ready(config, params)(x, jnp.full(rows, 0.5), y)  # noqa: E731
        return jax.jit(bare), (params, *_at(mesh, P("data"), (images, labels)))
    if what == "sampler":
        return jax.jit(_sampler(config)), (params, *_at(mesh, P("data"), (images, labels)))
    return _step(config, mesh, params, images, labels)


def _sampler(config: dit.Config) -> Callable[..., Any]:
    def sample(params, noise, labels):
        guidance = gj.guidance(gj.cfg, omega=gj.interval(1.5, lo=0.2, hi=0.8))
        return gj.sample(
            jax.random.key(0), dit.ready(config, params), noise, cond=labels,
            uncond=config.classes, guidance=guidance, times=gj.uniform_times(STEPS),
        )  # fmt: skip

    return sample


def _step(config: dit.Config, mesh: Mesh, params: Any, images: Any, labels: Any) -> Built:
    """The program of `gj.fit` for one update of ω(class, s, t)."""
    net = gj.OmegaNet(num_classes=config.classes)
    state = jax.eval_shape(
        lambda: learning.init_state(jax.random.key(0), net.init(jax.random.key(1)), OPTIMIZER)
    )
    guide = lambda phi: gj.guidance(gj.cfg, omega=net.weight(phi))  # noqa: E731
    program = Program(guide, OPTIMIZER, "threefry2x32", mesh, ("data",))
    # An axis in front: updates of one dispatch.
    one = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype),
        Batch(images, labels, {"uncond": labels}),
    )
    objective = gj.self_consistency(particles=PARTICLES)
    return program.many_steps(), (
        _at(mesh, P(), state), objective, (dit.ready(config, params), {}),
        _at(mesh, P(None, "data"), one),
    )  # fmt: skip


# What is read off it


def groups(rest: str) -> list[list[int]]:
    """The devices that a collective brings together, of what follows its name in the text."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", rest):
        return [list(map(int, each.split(","))) for each in re.findall(r"\{([\d,]+)\}", listed[1])]
    if counted := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, dims, order = (
            tuple(map(int, part.split(","))) if part else None for part in counted.groups()
        )
        assert shape is not None
        assert dims is not None
        return np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(shape).tolist()
    if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        over = re.findall(r"'(\w+)'", named[2])
        ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        last = [list(sizes).index(name) for name in over]
        size = math.prod(sizes[name] for name in over)
        return np.moveaxis(ids, last, range(-len(last), 0)).reshape(-1, size).tolist()
    raise ValueError(f"no groups of devices in {rest!r}")


def read(compiled: Any, cell: Cell, params: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """Memory, FLOPs and collectives of one device.

    "data" and "model" are the collectives between devices that hold other samples, and those
    between devices that hold the same ones; "gathered" are parameters that a collective puts
    together again.
    """
    text, memory = compiled.as_text(), compiled.memory_analysis()
    own = {key: math.prod(leaf.sharding.shard_shape(leaf.shape)) for key, leaf in params.items()}
    split = [key for key, leaf in params.items() if own[key] < leaf.size]
    pieces = {tuple(sorted(params[key].shape)) for key in split}
    every = reading._instructions(text)
    starts = {(i.where, i.name): i for i in every if i.operation.endswith("-start")}
    found: dict[str, dict[str, dict[str, int]]] = {"data": {}, "model": {}}
    largest, gathered = 0, []
    for i in every:
        kind = i.operation.removesuffix("-done")
        if kind not in reading.COLLECTIVES:
            continue
        of = i
        if i.operation.endswith("-done"):
            of = starts[i.where, re.findall(r"%([\w.\-]+)", i.rest)[0]]
        together = [set(group) for group in groups(of.rest)]
        if all(len(group) == 1 for group in together):
            continue  # a mean over the one device of an axis
        across = any(len({n // cell.model for n in group}) > 1 for group in together)
        each = found["data" if across else "model"].setdefault(kind, {"count": 0, "bytes": 0})
        each["count"] += 1
        each["bytes"] += reading._bytes(i.result)
        for array in reading._ARRAY.finditer(i.result):
            largest = max(largest, reading._bytes(array[0]))
            if tuple(sorted(int(n) for n in array[2].split(",") if n)) in pieces:
                gathered.append(f"{kind} {array[0]}")
    return {
        "parameters": sum(leaf.size for leaf in params.values()),
        "split": sum(params[key].size for key in split),
        "held": 2 * sum(own.values()),
        "flops": compiled.cost_analysis()["flops"],
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "collectives": found,
        "largest": largest,
        "gathered": gathered,
    }


def measure(cell: Cell, config: dit.Config) -> dict[str, Any]:
    """All of a cell."""
    mesh, start = mesh_of(cell), time.perf_counter()
    function, arguments = build(cell.what, config, mesh, cell.batch)
    lowered = function.lower(*arguments)
    # How fast a CPU's code is, is nothing that is asked here, and takes half of the time.
    quick = {"xla_backend_optimization_level": 0} if cell.platform == "cpu" else {}
    compiled = lowered.compile(quick)
    took = time.perf_counter() - start
    return read(compiled, cell, parameters(config, mesh)) | {"seconds": round(took, 1)}


# The run


@dataclasses.dataclass(frozen=True)
class Config:
    """Compile a network of a billion parameters for 8 and 64 devices."""

    only: tuple[str, ...] = ()
    """Words, all of which a cell's name must hold: `--only 64 cpu`."""
    again: bool = False
    """Compile what is there already too."""
    out: pathlib.Path = pathlib.Path("runs/billion")
    """Where results.json goes."""
    publish: bool = False
    """Write docs/scaling/billion.json, and docs/scaling.md anew."""
    docs: pathlib.Path = pathlib.Path("docs")
    """Where that is."""
    worker: bool = False
    """Compile the cells on stdin, one JSON line each: what the command starts for itself."""


def compiled(todo: list[Cell]) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Each cell with what was found, in a process that has its devices."""
    from experiments.tpu import worker

    for platform, devices in dict.fromkeys((cell.platform, cell.devices) for cell in todo):
        mine = [cell for cell in todo if (cell.platform, cell.devices) == (platform, devices)]
        count = f"--xla_force_host_platform_device_count={devices}"
        environment = {
            **(worker.environment() if platform == "tpu" else os.environ),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count}",
        }
        with subprocess.Popen(
            [sys.executable, "-m", "experiments.billion", "--worker"], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            json.dump([dataclasses.asdict(cell) for cell in mine], process.stdin)
            process.stdin.close()
            for cell, line in zip(mine, process.stdout, strict=False):
                yield cell, json.loads(line)
        if process.returncode:
            raise SystemExit(f"the compiler of {devices} {platform} ended: {process.returncode}")


def run(config: Config) -> dict[str, Any]:
    """Compile what isn't there yet; results.json is written after each cell."""
    path = config.out / "results.json"
    config.out.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {"cells": {}}
    results["network"] = NAME
    results.setdefault("versions", {})
    chosen = [cell for cell in CELLS if all(word in cell.name for word in config.only)]
    if importlib.util.find_spec("libtpu") is None:
        chosen = [cell for cell in chosen if cell.platform != "tpu"]
    todo = [cell for cell in chosen if config.again or cell.name not in results["cells"]]
    for cell, found in compiled(todo):
        results["cells"][cell.name] = dataclasses.asdict(cell) | found
        made = ("jax", "jaxlib", *(["libtpu"] if cell.platform == "tpu" else []))
        results["versions"] |= {name: importlib.metadata.version(name) for name in made}
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{cell.name}: {found['seconds']} s", flush=True)
    return results


def main(config: Config) -> None:
    """Compile, and write the section."""
    if config.worker:
        for fields in json.load(sys.stdin):
            print(json.dumps(measure(Cell(**fields), dit.config(NAME))), flush=True)
            jax.clear_caches()
        return
    results = run(config)
    if config.publish:
        from experiments.tpu import report

        report.publish_billion(results, config.docs)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

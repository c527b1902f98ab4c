"""A cell as a function and the shapes, with shardings, of its arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import mesh_utils, topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import guidejax as gj
from experiments.rules.config import guide as guide_of
from experiments.rules.config import setting
from experiments.tpu import network
from experiments.tpu.cells import Cell
from guidejax import learning, objectives, solvers
from guidejax.objectives.base import repeat

STEPS = 8
PROCESS = gj.processes.rectified_flow()
SMALL = (8, 8, 1)  # an image of the small network
SOLVERS: dict[str, Callable[[], gj.solvers.Solver]] = {
    "ddim": gj.ddim,
    "ddim churn": lambda: gj.ddim(churn=0.7),
    "euler": solvers.euler,
    "heun": solvers.heun,
    "midpoint": solvers.midpoint,
    "rk4": solvers.rk4,
    "dpm_solver_2": solvers.dpm_solver_2,
    "unipc": solvers.unipc,
    "ancestral": solvers.ancestral,
    "edm_heun": lambda: solvers.edm_heun(gamma=0.2, lo=0.1, hi=5.0, noise=1.003),
    "dpmpp_2m": solvers.dpmpp_2m,
    "dpmpp_2m churn": lambda: solvers.dpmpp_2m(churn=1.0),
    "cfgpp": lambda: solvers.cfgpp(solvers.ddim()),
}
# Groups of four, so that eight images a chip hold two.
OBJECTIVES: dict[str, Callable[[], Any]] = {
    "self_consistency": lambda: gj.self_consistency(particles=4),
    "l2": objectives.l2,
    "rollout": lambda: gj.rollout(particles=4, steps=4),
    "rollout pooled": lambda: gj.rollout(particles=4, steps=4, pooled=0.5),
}
CHOICES: dict[str, dict[str, Any]] = {
    "keep final": {"keep": "final"},
    "keep stats": {"keep": "stats"},
    "keep all": {"keep": "all"},
    "keep some": {"keep": (0, 4, -1)},
    "skip never": {"skip": "never"},
    "sequential": {"branches": "sequential"},
    "batched": {"branches": "batched"},
    "vmapped": {"branches": "vmapped"},
    "gradient": {"remat": "none"},
    "gradient remat step": {"remat": "step"},
    "gradient remat recursive": {"remat": "recursive"},
}
NET = gj.OmegaNet(num_classes=network.CLASSES)
Program = tuple[Callable[..., Any], tuple[Any, ...]]


def mesh_of(cell: Cell) -> Mesh:
    """Its chips, described and not there, as data x model."""
    # By default a host has four chips.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if cell.topology.endswith(":1x1") else {}
    described = topologies.get_topology_desc(platform="tpu", topology_name=cell.topology, **alone)
    shape = (len(described.devices) // cell.model, cell.model)
    # 4 of a row of 8 or 16 chips stay neighbours.
    devices = mesh_utils.create_device_mesh(
        shape, list(described.devices), allow_split_physical_axes=True
    )
    return Mesh(devices, ("data", "model"))


def _at(mesh: Mesh, spec: P, tree: Any) -> Any:
    """The shapes of `tree`, split so."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def build(cell: Cell) -> Program:
    """The cell's function and the shapes of its arguments."""
    mesh = mesh_of(cell)
    if cell.group == "small":
        return _small(cell, mesh)
    return _large(cell, mesh, {"billion": network.BILLION, "xl": network.XL}[cell.group])


# A part of the library on a small network


def _tiny(params: Any, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
    """All in bfloat16, so that a sum or product of float32 is the library's."""
    h = x.reshape(len(x), -1) @ params["in"] + params["label"][label]
    h = jnp.tanh(h + t[:, None].astype(h.dtype)) @ params["out"]
    return h.reshape(x.shape).astype(x.dtype)


def _small(cell: Cell, mesh: Mesh) -> Program:
    kind, name = cell.what.split(":")
    rows, pixels = cell.batch * mesh.size, int(np.prod(SMALL))
    bf16 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)  # noqa: E731
    params = {"in": bf16(pixels, 128), "out": bf16(128, pixels), "label": bf16(11, 128)}
    whole = _at(mesh, P(), params)
    x, labels = bf16(rows, *SMALL), jax.ShapeDtypeStruct((rows,), jnp.int32)
    split = _at(mesh, P("data"), (x, labels))
    if kind == "objective":
        return _step(OBJECTIVES[name](), _tiny, whole, split, mesh)

    options: dict[str, Any] = {"times": gj.uniform_times(STEPS)}
    guidance: Callable[..., gj.Guidance] = functools.partial(gj.guidance, gj.cfg)
    if kind == "rule":
        measured = {"ratio": 0.8} if name == "recfg" else {}
        numbers = {**setting(name).digits_numbers, **measured}
        guidance = functools.partial(guide_of, name, numbers=numbers)
    elif kind == "schedule":
        facts = gj.schedules.SCHEDULES[name]
        weight = facts.make(**facts.example, **facts.options)
        guidance = lambda omega: gj.guidance(gj.cfg, omega * weight)  # noqa: E731
    elif kind == "solver":
        options["solver"] = SOLVERS[name]()
    else:
        options |= CHOICES[name]
    run = functools.partial(_sample, _tiny, options, guidance)
    if name.startswith("gradient"):

        def loss(omega: jax.Array, params: Any, noise: jax.Array, labels: jax.Array) -> jax.Array:
            return jnp.mean(run(params, noise, labels, omega) ** 2)

        return jax.grad(loss), (_scalar(mesh), whole, *split)
    return run, (whole, *split, _scalar(mesh))


def _scalar(mesh: Mesh) -> Any:
    return _at(mesh, P(), jax.ShapeDtypeStruct((), jnp.float32))


def _sample(net, options, guidance, params, noise, labels, omega):
    """The sampler; every branch but "uncond" has a network of its own."""
    denoise = gj.denoiser(net, PROCESS, "velocity", params=params)
    guide = guidance(omega)
    own = {name: (denoise, labels) for name in guide.branches if name not in ("cond", "uncond")}
    if "gradient" in own:
        own["gradient"] = (gj.rules.input_gradient(denoise), labels)
    return gj.sample(
        jax.random.key(0), denoise, noise, cond=labels, uncond=network.CLASSES,
        conditions=own, guidance=guide, **options,
    )  # fmt: skip


# The sampler and the steps on a large frozen network


def _large(cell: Cell, mesh: Mesh, size: network.Size) -> Program:
    net = functools.partial(network.velocity, size)
    params = jax.tree.map(
        lambda pair: _at(mesh, pair[1], pair[0]),
        network.arrays(size),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    rows = cell.batch * mesh.size // cell.model
    shapes = (
        jax.ShapeDtypeStruct((rows, *size.shape), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    split = _at(mesh, P("data"), shapes)
    if cell.what == "step":
        return _step(gj.self_consistency(particles=4), net, params, split, mesh)
    if cell.what == "rollout":
        return _step(gj.rollout(particles=4, steps=STEPS), net, params, split, mesh)
    if cell.what == "step's passes":
        return functools.partial(_evaluations, net, 4), (params, *split)
    arguments = (params, *split, _scalar(mesh))
    if cell.what == "passes":
        return functools.partial(_passes, net, cell.branches), arguments
    options = {"times": gj.uniform_times(STEPS), "branches": cell.branches}
    guidance = functools.partial(gj.guidance, gj.cfg)
    return functools.partial(_sample, net, options, guidance), arguments


def _passes(net, branches, params, x, labels, omega):
    """The network's passes in a loop over the steps, and Euler's line between them."""
    null = jnp.full_like(labels, network.CLASSES)
    times = gj.uniform_times(STEPS)

    def step(x, times):
        t, s = times
        now = jnp.broadcast_to(t, labels.shape)
        if branches == "sequential":
            cond, uncond = net(params, x, now, labels), net(params, x, now, null)
        else:
            wide, told, both = (
                jnp.stack(pair, 1).reshape(-1, *pair[0].shape[1:])
                for pair in ((x, x), (now, now), (labels, null))
            )
            out = net(params, wide, told, both).reshape(-1, 2, *x.shape[1:])
            cond, uncond = out[:, 0], out[:, 1]
        return x + (s - t) * (cond + omega * (cond - uncond)), None

    return jax.lax.scan(step, x, (jnp.asarray(times[:-1]), jnp.asarray(times[1:])))[0]


def _evaluations(net, particles, params, x, labels):
    """The two passes that a step of self-consistency can't do without."""
    x, labels = repeat((x, labels), particles)
    t = jnp.full(labels.shape, 0.5)
    null = jnp.full_like(labels, network.CLASSES)
    return net(params, x, t, labels), net(params, x, t, null)


def _step(objective: Any, net: Any, params: Any, split: tuple[Any, Any], mesh: Mesh) -> Program:
    """One update of ω; the batch's axis is each device's own, the network's is XLA's."""
    optimizer = optax.adamw(1e-3)
    state = jax.eval_shape(
        lambda: learning.init_state(jax.random.key(0), NET.init(jax.random.key(1)), optimizer)
    )
    guide = lambda phi: gj.guidance(gj.cfg, omega=NET.weight(phi))  # noqa: E731

    def step(state, params, x0, labels):
        count, first = len(labels), len(labels) * jax.lax.axis_index("data")
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(count))
        null = jnp.full_like(labels, network.CLASSES)
        return learning.train_step(
            state, gj.denoiser(net, PROCESS, "velocity", params=params),
            objectives.Batch(x0, labels, {"uncond": null}), keys,
            guide=guide, objective=objective, optimizer=optimizer, axis_name="data",
        )  # fmt: skip

    whole, rows = P(), P("data")
    run = jax.shard_map(
        step, mesh=mesh, in_specs=(whole, whole, rows, rows), out_specs=whole,
        axis_names={"data"}, check_vma=False,
    )  # fmt: skip
    return run, (_at(mesh, P(), state), params, *split)

"""One device or many: the same φ, and one collective."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import guidejax as gj
from guidejax import learning, objectives
from guidejax.learning import training
from tests.learning.common import (
    EXACT,
    KEY,
    NET,
    PROCESS,
    SGD,
    batches,
    begin,
    chase,
    examples,
    fit,
    flat,
    guide,
)

OBJECTIVE = objectives.self_consistency(particles=2)
N = 16
BATCH = examples(N)
KEYS = jax.random.split(KEY, N)


def step(state, batch, keys, axis_name=None, objective=OBJECTIVE):
    return learning.train_step(
        state, EXACT, batch, keys,
        guide=guide, objective=objective, optimizer=SGD, axis_name=axis_name,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone():
    """φ after a step on one device, as changes."""
    state = begin(SGD)
    after, metrics = jax.jit(step)(state, BATCH, KEYS)
    assert np.linalg.norm(flat(after.phi) - flat(state.phi)) > 1e-3
    return flat(after.phi), {name: float(value) for name, value in metrics.items()}


def check(alone, after, metrics):
    np.testing.assert_allclose(flat(after.phi), alone[0], atol=2e-6)
    for name, value in alone[1].items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(mesh, alone, check_vma):
    spec = P("data")
    state = jax.device_put(begin(SGD), NamedSharding(mesh, P()))
    batch, keys = jax.device_put((BATCH, KEYS), NamedSharding(mesh, spec))
    fn = functools.partial(step, axis_name="data")
    sharded = jax.shard_map(
        fn, mesh=mesh, in_specs=(P(), spec, spec), out_specs=P(), check_vma=check_vma
    )
    check(alone, *jax.jit(sharded)(state, batch, keys))


@pytest.mark.slow
def test_jit_of_a_sharded_batch(mesh, alone):
    state = jax.device_put(begin(SGD), NamedSharding(mesh, P()))
    batch, keys = jax.device_put((BATCH, KEYS), NamedSharding(mesh, P("data")))
    check(alone, *jax.jit(step)(state, batch, keys))


@pytest.mark.devices
def test_pmap(alone):
    split = lambda a: a.reshape(8, N // 8, *a.shape[1:])
    state = begin(SGD)
    mapped = jax.pmap(functools.partial(step, axis_name="data"), "data", in_axes=(None, 0, 0))
    after, metrics = mapped(state, jax.tree.map(split, BATCH), split(KEYS))
    for device in (0, 7):
        check(alone, *jax.tree.map(lambda a, d=device: a[d], (after, metrics)))


@pytest.mark.slow
def test_vmap_with_an_axis_name(alone):
    """What stands in for devices where there is one."""
    split = lambda a: a.reshape(4, N // 4, *a.shape[1:])
    state = begin(SGD)
    mapped = jax.vmap(
        functools.partial(step, axis_name="data"), in_axes=(None, 0, 0), axis_name="data"
    )
    after, metrics = jax.jit(mapped)(state, jax.tree.map(split, BATCH), split(KEYS))
    check(alone, *jax.tree.map(lambda a: a[3], (after, metrics)))


def pairs(count, shape=(1,)):
    """Batches of two examples of one condition on end, as a rollout compares them."""
    drawn = batches(count, N, shape=shape)
    return [batch | {"cond": np.repeat(batch["cond"][::2], 2)} for batch in drawn]


@pytest.fixture(scope="module")
def one_device():
    return {name: flat(fit(pairs(4), **options(name))) for name in OBJECTIVES}


OBJECTIVES = {"energy": OBJECTIVE, "rollout": objectives.rollout(particles=2, steps=2)}


def options(name):
    return {"steps": 4, "optimizer": SGD, "denoise": EXACT, "objective": OBJECTIVES[name]}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_fit_omega_on_a_mesh(mesh, one_device, name):
    phi = fit(pairs(4), mesh=mesh, **options(name))
    np.testing.assert_allclose(flat(phi), one_device[name], atol=5e-6)


@pytest.mark.slow
@pytest.mark.devices
def test_fit_omega_on_a_mesh_of_two_axes_resumes_on_one_device(tmp_path, one_device):
    mesh = jax.make_mesh((4, 2), ("replica", "data"), axis_types=(AxisType.Explicit,) * 2)
    data, rest = pairs(4), options("energy")
    fit(data, **{**rest, "steps": 3}, mesh=mesh, checkpoint_dir=tmp_path)
    phi = fit(data, **rest, checkpoint_dir=tmp_path)
    np.testing.assert_allclose(flat(phi), one_device["energy"], atol=5e-6)


def test_a_batch_that_does_not_divide(mesh):
    with pytest.raises(ValueError, match="a batch of 12 can't be split over 8 devices"):
        fit(batches(2, 12), mesh=mesh)


def test_a_group_that_would_be_split(mesh):
    with pytest.raises(ValueError, match=r"groups of 3 .* batch of 16, which is no multiple"):
        fit(batches(2, N), mesh=mesh, objective=objectives.rollout(particles=3))
    some = objectives.rollout(particles=4, differentiate=1)
    grouped = [batch | {"cond": np.arange(N, dtype=np.int32) // 4 % 2} for batch in batches(2, N)]
    with pytest.raises(ValueError, match=r"groups of 4 .* batch of 2"):
        fit(grouped, mesh=mesh, objective=some)


# Samples that are compared, on several devices.

FEATURE = jax.tree_util.Partial(lambda x: jnp.concatenate([x[:, :1], x[:, :1] ** 2], axis=-1))
REAL = np.random.default_rng(2).normal(size=(20, 4)).astype(np.float32)
KINDS = np.arange(20) % 3 % 2
ACROSS = {
    "groups over two devices": {"particles": 4},
    "pooled": {"particles": 2, "pooled": 0.9},
    "both": {"particles": 8, "pooled": 0.5},
    "a reference": {"particles": 2, "pooled": 0.5, "reference": (REAL, KINDS)},
}
ACROSS |= {f"{name}, moments": {**given, "beta": 2.0} for name, given in ACROSS.items()}
PULLED = gj.denoiser(lambda x, t, cond: jnp.where(cond == 2, 0.2, 0.6)[:, None] * x, PROCESS)
FOUR = objectives.Batch(
    jnp.asarray(batches(1, N, shape=(4,))[0]["x0"]), jnp.arange(N) // 8, {"uncond": np.full(N, 2)}
)


def _across(name):
    return objectives.rollout([FEATURE], steps=2, **ACROSS[name])


def _update(state, batch, keys, name, axis_name=None):
    return learning.train_step(
        state, PULLED, batch, keys,
        guide=guide, objective=_across(name), optimizer=SGD, axis_name=axis_name,
    )  # fmt: skip


def _placed(mesh):
    state = jax.device_put(begin(SGD), NamedSharding(mesh, P()))
    return state, *jax.device_put((FOUR, KEYS), NamedSharding(mesh, P("data")))


def _mapped(mesh, name, check_vma):
    return jax.shard_map(
        functools.partial(_update, name=name, axis_name="data"), mesh=mesh,
        in_specs=(P(), P("data"), P("data")), out_specs=P(), check_vma=check_vma,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    """What one device comes to: as `alone`, of each."""
    found = {}
    for name in ACROSS:
        state = begin(SGD)
        after, metrics = jax.jit(_update, static_argnums=3)(state, FOUR, KEYS, name)
        assert np.linalg.norm(flat(after.phi) - flat(state.phi)) > 1e-4
        found[name] = flat(after.phi), {n: float(v) for n, v in metrics.items()}
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "check_vma"),
    [*((n, True) for n in ACROSS), ("both", False), ("both, moments", False)],
)
def test_samples_on_several_devices_are_compared(mesh, whole, name, check_vma):
    state, batch, keys = _placed(mesh)
    check(whole[name], *jax.jit(_mapped(mesh, name, check_vma))(state, batch, keys))


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("name", ACROSS)
def test_samples_on_several_devices_of_pmap(whole, name):
    split = lambda a: a.reshape(8, N // 8, *a.shape[1:])
    mapped = jax.pmap(
        functools.partial(_update, name=name, axis_name="data"), "data", in_axes=(None, 0, 0)
    )
    after, metrics = mapped(begin(SGD), jax.tree.map(split, FOUR), split(KEYS))
    check(whole[name], *jax.tree.map(lambda a: a[5], (after, metrics)))


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("name", ["both", "a reference", "both, moments", "a reference, moments"])
def test_samples_on_several_devices_of_two_axes(name):
    data = [{"x0": FOUR.x0, "cond": FOUR.cond}] * 3
    options = {"steps": 3, "optimizer": SGD, "denoise": PULLED, "objective": _across(name)}
    mesh = jax.make_mesh((4, 2), ("replica", "data"), axis_types=(AxisType.Explicit,) * 2)
    np.testing.assert_allclose(
        flat(fit(data, mesh=mesh, **options)), flat(fit(data, **options)), atol=2e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), [("both", [N * 4]), ("both, moments", [])])
def test_features_are_gathered_once_and_no_images(mesh, name, sizes):
    """Both sides' two features of all examples in one piece; their slopes come back summed."""
    text = jax.jit(_mapped(mesh, name, False)).lower(*_placed(mesh)).compile().as_text()
    found = [(kind, shape) for kind, shapes in _collectives(text) for shape in shapes]
    gathered = [shape for kind, shape in found if kind.startswith("all-gather")]
    assert [int(np.prod(shape)) for shape in gathered] == sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("particles", "beta", "mapped"),
    [*((p, b, True) for p in (2, 3, 4, 6) for b in (1.0, 2.0)), (3, 2.0, False)],
)
def test_groups_that_no_device_holds_whole(mesh, particles, beta, mapped):
    """The losses and slopes of one device; at β = 2 from the groups' moments, nothing larger.

    The devices hold 3 samples each, of one group or of two.
    """
    objective = objectives.rollout(steps=2, particles=particles, pooled=0.3, beta=beta, lam=0.7)
    x, y = np.random.default_rng(3).normal(2.0, size=(2, 24, 3)).astype(np.float32)
    weights = np.linspace(-1, 1, 24, dtype=np.float32)

    def run(objective, x, y, weights):
        batch = objectives.Batch(x0=y, cond=None, conditions={})
        losses, pull = jax.vjp(lambda x: objective.compare(x, batch), x)
        return losses, *pull(weights)

    across = functools.partial(run, objective.across("data") if mapped else objective)
    if mapped:
        across = jax.shard_map(across, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    args = jax.device_put((x, y, weights), NamedSharding(mesh, P("data")))
    program = jax.jit(across).lower(*args).compile()
    expected = jax.jit(functools.partial(run, objective))(x, y, weights)
    for ours, theirs in zip(program(*args), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    if beta == 2:
        found = _collectives(program.as_text())
        assert {kind.removesuffix("-start") for kind, _ in found} == {"all-reduce"}
        means = 3 * (1 if particles == 3 else 24 // particles)
        assert max(int(np.prod(shape)) for _, shapes in found for shape in shapes) == means


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradients_all_reduce_is_the_only_collective(mesh, name):
    """And it is as large as φ, and the loss, whatever the batch."""
    sizes = {}
    for n in (N, 4 * N) if name == "energy" else (N,):
        run = training.Program(guide, SGD, jax.random.key_impl(KEY), mesh, ("data",)).many_steps()
        whole = NamedSharding(mesh, P())
        args = (begin(SGD), OBJECTIVES[name], (EXACT, {}))
        batch = jax.tree.map(lambda a: np.asarray(a)[None], examples(n))
        batch = jax.device_put(batch, NamedSharding(mesh, P(None, "data")))
        text = run.lower(*jax.device_put(args, whole), batch).compile().as_text()
        found = re.findall(
            r"= (.*?) (all-[a-z-]+|collective-[a-z-]+|reduce-scatter[a-z-]*)\(", text
        )
        assert {kind for _, kind in found} <= {"all-reduce", "all-reduce-start", "all-reduce-done"}
        shapes = [s for out, kind in found if kind != "all-reduce-done" for s in _shapes(out)]
        sizes[n] = sum(int(np.prod(shape)) for shape in shapes)
    params = sum(leaf.size for leaf in jax.tree.leaves(NET.init(KEY)))
    assert set(sizes.values()) == {params + 1}


def _shapes(out):
    """The dimensions of each array of an HLO result: "(f32[8]{0}, f32[])" -> (8,), ()."""
    return [
        tuple(int(d) for d in dims.split(",") if d)
        for dims in re.findall(r"[a-z]\d*\[([\d,]*)\]", out)
    ]


@pytest.mark.slow
def test_samples_of_a_shard_are_those_of_the_batch():
    """An example's loss doesn't depend on who else is in the batch."""
    guide = gj.guidance(gj.cfg, omega=0.5)
    whole = OBJECTIVE(KEYS, guide, EXACT, BATCH)
    half = OBJECTIVE(KEYS[8:], guide, EXACT, jax.tree.map(lambda a: a[8:], BATCH))
    np.testing.assert_allclose(half, whole[8:], rtol=1e-5)
    assert jnp.ptp(whole) > 0


@dataclasses.dataclass(frozen=True)
class Mean:
    """An objective of one's own that compares rows: the mean of ω x0 over the batch should be 1."""

    axis: Any = None

    def across(self, axis):
        return Mean(axis)

    def __call__(self, keys, guidance, denoise, batch, networks=()):
        omega = guidance.omega(jnp.float32(0.3), jnp.float32(0.6), batch.cond, process=PROCESS)
        mean = jnp.mean(omega[:, None] * batch.x0)
        mean = mean if self.axis is None else jax.lax.pmean(mean, self.axis)
        return (mean - 1) ** 2 * jnp.ones(len(keys))


@pytest.mark.slow
def test_an_objective_of_one_s_own_that_compares_rows(mesh):
    run = lambda mesh: flat(
        fit(batches(3, N), steps=3, optimizer=SGD, objective=Mean(), mesh=mesh)
    )  # fmt: skip
    np.testing.assert_allclose(run(mesh), run(None), atol=2e-6)


# Batches held out.

TABLE = jnp.asarray(np.random.default_rng(4).normal(size=(3, 1)), jnp.float32)
# On an explicit mesh this look-up is of rows that are mapped over, or it raises.
LOOKS_UP = gj.denoiser(lambda p, x, t, cond: jnp.tanh(x + p[cond]), PROCESS, params=TABLE)


def _held_out(held, **options):
    """The held-out loss before and after the second of two updates."""
    found = []
    options = {"objective": OBJECTIVE, "denoise": LOOKS_UP, **options}
    fit(
        pairs(2), steps=2, optimizer=SGD, held_out=held, score_every=1, steps_per_dispatch=1,
        progress=lambda step, metrics: found.append(metrics["held_out"]), **options,
    )  # fmt: skip
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("size", [N, 12])  # 12 is no multiple of the devices.
def test_held_out_batches_are_those_of_one_device(mesh, name, size):
    held = [batch | {"cond": batch["cond"] // 2} for batch in batches(2, size, shape=(1,), seed=3)]
    options = {"objective": OBJECTIVES[name]}
    alone, shared = (_held_out(held, mesh=m, **options) for m in (None, mesh))
    np.testing.assert_allclose(shared, alone, rtol=1e-4)


def test_held_out_batches_are_shared_out(mesh):
    rows = []

    def counted(keys, guidance, denoise, batch, networks=()):
        rows.append(len(keys))
        return chase(keys, guidance, denoise, batch)

    _held_out(batches(1, 3 * N, shape=(1,)), mesh=mesh, objective=counted)
    assert set(rows) == {N // 8, 3 * N // 8}


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_held_out_batches_of_a_network_in_pieces(kind):
    held = pairs(2, (WIDTH,))
    mesh, denoise = _frozen("data and model", kind)
    options = {"denoise": denoise, "mesh": mesh, "batch_axes": "data"}
    update = lambda **options: fit(
        pairs(1, (WIDTH,)), steps=1, optimizer=SGD, objective=OBJECTIVE, held_out=held,
        progress=lambda step, metrics: found.append(metrics["held_out"]), **options,
    )  # fmt: skip
    found = []
    update(denoise=WHOLE)
    update(**options)
    np.testing.assert_allclose(*found, rtol=1e-4)


# A frozen network in pieces.

WIDTH, HIDDEN = 4, 24
WEIGHTS = {
    "in": np.random.default_rng(0).normal(size=(WIDTH, HIDDEN)).astype(np.float32) / 2,
    "out": np.random.default_rng(1).normal(size=(HIDDEN, WIDTH)).astype(np.float32) / 4,
}
# How the weights lie, and over which axes the batch is split.
LAYOUTS = {
    "data and model": (
        (4, 2),
        ("data", "model"),
        {"in": P(None, "model"), "out": P("model", None)},
    ),
    "both over data": ((8,), ("data",), {"in": P(None, "data"), "out": P("data", None)}),
    "whole beside a model axis": ((4, 2), ("data", "model"), {"in": P(), "out": P()}),
    "model alone": ((8,), ("model",), {"in": P(None, "model"), "out": P("model", None)}),
}


def _network(explicit, split):
    """What sums over a sharded axis has to say so, on a mesh with explicit axes."""
    where = {"out_sharding": P(split, None)} if explicit else {}

    def network(params, x, t, cond):
        h = jnp.tanh(x @ params["in"] + (t + cond)[:, None])
        return jnp.einsum("bh,hd->bd", h, params["out"], **where)

    return network


def _frozen(layout, kind):
    shape, names, specs = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(names))
    params = {n: jax.device_put(WEIGHTS[n], NamedSharding(mesh, s)) for n, s in specs.items()}
    split = "data" if layout == "data and model" else None
    network = _network(kind == AxisType.Explicit and layout == "data and model", split)
    return mesh, gj.denoiser(network, PROCESS, params=params)


CASES = [
    ("data and model", AxisType.Auto),
    ("data and model", AxisType.Explicit),
    ("both over data", AxisType.Auto),
    ("whole beside a model axis", AxisType.Auto),
    ("model alone", AxisType.Auto),
]
WHOLE = gj.denoiser(_network(False, None), PROCESS, params=WEIGHTS)


@pytest.fixture(scope="module")
def on_one_device():
    data = pairs(4, (WIDTH,))
    return {
        name: flat(fit(data, steps=4, optimizer=SGD, denoise=WHOLE, objective=OBJECTIVES[name]))
        for name in OBJECTIVES
    }


def _copies(denoise):
    """Live arrays that hold a whole weight on a device."""
    sizes = {leaf.shape for leaf in jax.tree.leaves(denoise.params)}
    return [a for a in jax.live_arrays() if a.shape in sizes and a.is_fully_replicated]


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("layout", "kind"), CASES)
def test_a_frozen_network_stays_where_it_is(on_one_device, layout, kind, name):
    mesh, denoise = _frozen(layout, kind)
    before, held = len(_copies(denoise)), []
    phi = fit(
        pairs(4, (WIDTH,)), steps=4, optimizer=SGD, denoise=denoise, mesh=mesh,
        objective=OBJECTIVES[name], batch_axes=[n for n in mesh.axis_names if n == "data"],
        progress=lambda step, metrics: held.append(len(_copies(denoise))),
    )  # fmt: skip
    np.testing.assert_allclose(flat(phi), on_one_device[name], atol=2e-6)
    assert set(held) == {before}


def _collectives(text):
    """(kind, dimensions of each array) of every collective of a compiled program."""
    found = re.findall(r"= (.*?) (all-[a-z-]+|collective-[a-z-]+|reduce-scatter[a-z-]*)\(", text)
    return [(kind, _shapes(out)) for out, kind in found if not kind.endswith("-done")]


@pytest.mark.slow
@pytest.mark.devices
def test_nothing_of_a_network_is_gathered_where_no_axis_splits_the_batch(monkeypatch):
    """Mapping over no axis would be over all of them, with the whole network on each device."""
    mesh, denoise = _frozen("model alone", AxisType.Auto)
    programs = []
    made = lambda *args, **kwargs: programs.append(training.Program(*args, **kwargs)) or programs[0]
    monkeypatch.setattr("guidejax.learning._fit.Program", made)
    with pytest.warns(UserWarning, match="leaves no axis of the mesh"):
        fit(pairs(1, (WIDTH,)), steps=1, optimizer=SGD, denoise=denoise, mesh=mesh)
    assert not programs[0].mapped


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_nothing_of_a_sharded_network_is_gathered(kind):
    """Its own sums over "model" and the mean of φ's gradient are all that is communicated."""
    mesh, denoise = _frozen("data and model", kind)
    run = training.Program(
        guide, SGD, jax.random.key_impl(KEY), mesh, ("data",), mapped=kind == AxisType.Auto
    ).many_steps()
    args = jax.device_put((begin(SGD), OBJECTIVE), NamedSharding(mesh, P()))
    data = batches(1, N, shape=(WIDTH,))[0]
    batch = objectives.Batch(data["x0"], data["cond"], {"uncond": np.full(N, 2)})
    batch = jax.tree.map(lambda a: np.asarray(a)[None], batch)
    batch = jax.device_put(batch, NamedSharding(mesh, P(None, "data")))
    with jax.set_mesh(mesh):
        text = run.lower(*args, (denoise, {}), batch).compile().as_text()
    found = _collectives(text)
    assert {kind for kind, _ in found} == {"all-reduce"}
    params = sum(leaf.size for leaf in jax.tree.leaves(NET.init(KEY)))
    # Both branches' predictions of a device's particles, and φ's gradient with the loss.
    sizes = sorted(sum(int(np.prod(shape)) for shape in shapes) for _, shapes in found)
    assert sizes == [2 * (N // 4) * 2 * WIDTH, params + 1]


@pytest.mark.slow
@pytest.mark.devices
def test_samples_of_a_sharded_network():
    """Nothing of it is gathered there either."""
    mesh, denoise = _frozen("data and model", AxisType.Auto)
    noise = jax.random.normal(KEY, (N, WIDTH))
    cond = jnp.arange(N) % 2

    def run(denoise, noise, cond):
        return gj.sample(
            KEY, denoise, noise, cond=cond, uncond=2, guidance=gj.guidance(gj.cfg, omega=1.0),
            times=gj.uniform_times(4),
        )  # fmt: skip

    placed = jax.device_put((noise, cond), NamedSharding(mesh, P("data")))
    program = jax.jit(run).lower(denoise, *placed).compile()
    assert {kind for kind, _ in _collectives(program.as_text())} == {"all-reduce"}
    np.testing.assert_allclose(
        program(denoise, *placed), jax.jit(run)(WHOLE, noise, cond), atol=1e-5
    )


def test_axes_that_a_batch_is_split_over(mesh):
    with pytest.raises(ValueError, match="batch_axes names model; the mesh has data"):
        fit(batches(2), mesh=mesh, batch_axes="model")

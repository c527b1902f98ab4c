"""One device or many: the same φ, and one collective."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import guidejax as gj
from guidejax import learning, objectives
from guidejax.learning import training
from tests.learning.common import EXACT, KEY, NET, SGD, batches, begin, examples, fit, flat, guide

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


@pytest.fixture(scope="module")
def one_device():
    return {name: flat(fit(batches(4, N, shape=(1,)), **options(name))) for name in OBJECTIVES}


OBJECTIVES = {"energy": OBJECTIVE, "rollout": objectives.rollout(particles=2, steps=2)}


def options(name):
    return {"steps": 4, "optimizer": SGD, "denoise": EXACT, "objective": OBJECTIVES[name]}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_fit_omega_on_a_mesh(mesh, one_device, name):
    phi = fit(batches(4, N, shape=(1,)), mesh=mesh, **options(name))
    np.testing.assert_allclose(flat(phi), one_device[name], atol=5e-6)


@pytest.mark.slow
@pytest.mark.devices
def test_fit_omega_on_a_mesh_of_two_axes_resumes_on_one_device(tmp_path, one_device):
    mesh = jax.make_mesh((4, 2), ("replica", "data"), axis_types=(AxisType.Explicit,) * 2)
    data, rest = batches(4, N, shape=(1,)), options("energy")
    fit(data, **{**rest, "steps": 3}, mesh=mesh, checkpoint_dir=tmp_path)
    phi = fit(data, **rest, checkpoint_dir=tmp_path)
    np.testing.assert_allclose(flat(phi), one_device["energy"], atol=5e-6)


def test_a_batch_that_does_not_divide(mesh):
    with pytest.raises(ValueError, match="a batch of 12 can't be split over 8 devices"):
        fit(batches(2, 12), mesh=mesh)


def test_a_group_that_would_be_split(mesh):
    with pytest.raises(ValueError, match=r"groups of 3 .* batch of 2"):
        fit(batches(2, N), mesh=mesh, objective=objectives.rollout(particles=3))


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

"""How the passes of a step are made: four ways, the same samples."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import guidejax as gj
from guidejax.rules import make_rule
from tests.helpers import sample

PROCESS = gj.processes.rectified_flow()
KEY = jax.random.key(0)
BATCH = 8
NOISE = jax.random.normal(jax.random.key(1), (BATCH, 4))
LABELS = jnp.arange(BATCH) / BATCH
MATRIX = jax.random.normal(jax.random.key(2), (4, 4)) / 2
WAYS = ["sequential", "batched", "vmapped"]


def _network(x, t, cond):
    return jnp.tanh(x @ MATRIX + (cond - t)[:, None])


def _run(branches, noise=NOISE, cond=LABELS, denoise=_network, **kwargs):
    kwargs = {
        "guidance": gj.guidance(gj.adg, omega=gj.interval(1.0, 0.2, 0.8)),
        "times": gj.uniform_times(5),
        "key": KEY,
        **kwargs,
    }
    key = kwargs.pop("key")
    return sample(key, denoise, PROCESS, noise, cond=cond, uncond=-1.0, branches=branches, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("branches", WAYS[1:])
@pytest.mark.parametrize("solver", [gj.ddim(0.5), gj.heun(), gj.solvers.cfgpp(gj.ddim())])
def test_same_samples(branches, solver):
    want = _run("sequential", solver=solver)
    np.testing.assert_allclose(_run(branches, solver=solver), want, rtol=1e-5, atol=1e-6)
    times = jnp.linspace(1, 0, 5)[:, None] * jnp.linspace(0.8, 1, BATCH)
    times = times + 1e-3 * (1 - jnp.linspace(0, 1, 5)[:, None])
    times = jnp.clip(times, 0, 1)
    run = lambda how: _run(how, solver=solver, times=times)
    np.testing.assert_allclose(run(branches), run("sequential"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("branches", "calls"), [("sequential", 2), ("batched", 1), ("vmapped", 1)])
def test_calls_of_the_network(branches, calls):
    """The network is called once for all branches, with the shapes it has been told."""
    seen = []

    def network(x, t, cond):
        seen.append((x.shape, t.shape, cond.shape))
        return _network(x, t, cond)

    _run(branches, denoise=network, guidance=gj.guidance(gj.cfg, 1.0))
    batch = BATCH * (2 if branches == "batched" else 1)
    assert seen == [((batch, 4), (batch,), (batch,))] * calls


@pytest.mark.slow
@pytest.mark.parametrize("branches", WAYS)
def test_pytrees_and_many_branches(branches):
    """Three branches of the same network in one pass, a fourth with a network of its own."""
    rule = make_rule(
        lambda cond, uncond, negative, weak, omega: cond + 0.3 * (cond - uncond)
        - 0.2 * negative - 0.1 * weak, space="any", exact_at_zero=False,
    )  # fmt: skip
    network = lambda x, t, cond: {
        "image": jnp.tanh(x["image"] + cond["c"][:, :, None]),
        "text": x["text"] * t[:, None] + cond["c"],
    }
    other = lambda x, t, cond: jax.tree.map(jnp.zeros_like, x)
    cond = {"c": jnp.ones((BATCH, 3))}
    noise = {"image": jnp.ones((BATCH, 3, 2)), "text": jnp.ones((BATCH, 3))}
    run = lambda branches: sample(
        KEY, network, PROCESS, noise, cond=cond, uncond={"c": jnp.zeros(3)}, branches=branches,
        conditions={
            "negative": {"c": jnp.full((BATCH, 3), 2.0)},
            "weak": (gj.denoiser(other, PROCESS), None),
        },
        guidance=gj.guidance(rule, 1.0), times=gj.uniform_times(3),
    )  # fmt: skip
    chex.assert_trees_all_close(run(branches), run("sequential"), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("branches", WAYS[1:])
def test_on_a_mesh_nothing_is_moved(mesh, branches):
    rows = NamedSharding(mesh, P("data"))
    keys = jax.random.split(KEY, BATCH)
    want = np.asarray(_run(branches, key=keys, solver=gj.ddim(0.5)))
    key, noise, cond = jax.device_put((keys, NOISE, LABELS), rows)
    run = jax.jit(lambda k, x, c: _run(branches, x, c, key=k, solver=gj.ddim(0.5)))
    with jax.set_mesh(mesh):
        got = run(key, noise, cond)
        text = run.lower(key, noise, cond).compile().as_text()
    assert got.sharding.is_equivalent_to(rows, 2)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text


@pytest.mark.slow
def test_sharded(branch_mesh):
    """A branch a device, the batch split too, and one collective a step."""
    rows = NamedSharding(branch_mesh, P("data"))
    keys = jax.random.split(KEY, BATCH)
    guidance = gj.guidance(gj.cfg, 1.0)
    want = np.asarray(_run("sequential", key=keys, solver=gj.ddim(0.5), guidance=guidance))
    key, noise, cond = jax.device_put((keys, NOISE, LABELS), rows)
    run = jax.jit(
        lambda k, x, c: _run("sharded", x, c, key=k, solver=gj.ddim(0.5), guidance=guidance)
    )
    with jax.set_mesh(branch_mesh):
        got = run(key, noise, cond)
        text = run.lower(key, noise, cond).compile().as_text()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    found = [
        line
        for line in text.splitlines()
        for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute")
        if f" {name}(" in line or f" {name}-start(" in line
    ]
    assert len(found) == 1
    assert "all-reduce" in found[0]


@pytest.mark.slow
def test_sharded_with_an_interval(branch_mesh):
    want = np.asarray(_run("sequential"))
    rows = NamedSharding(branch_mesh, P("data"))
    noise, cond = jax.device_put((NOISE, LABELS), rows)
    with jax.set_mesh(branch_mesh):
        np.testing.assert_allclose(_run("sharded", noise, cond), want, rtol=1e-5, atol=1e-6)


def test_wrong_choice():
    with pytest.raises(ValueError, match=r"unknown branches='parallel'.*sequential, batched"):
        _run("parallel")
    with pytest.raises(ValueError, match=r"unknown branches=.*conditions="):
        _run({"negative": LABELS})
    with pytest.raises(ValueError, match=r"axis 'branch' of the size 2.*no such axis"):
        _run("sharded")


@pytest.mark.parametrize(("batch", "rows"), [(1, [2]), (4, [8]), (5, [5, 5])])
def test_auto_is_batched_for_few_samples(batch, rows):
    seen = []

    def network(x, t, cond):
        seen.append(len(x))
        return _network(x, t, cond)

    few = {"noise": NOISE[:batch], "cond": LABELS[:batch], "guidance": gj.guidance(gj.cfg, 1.0)}
    got = _run("auto", denoise=network, **few)
    assert seen == rows
    np.testing.assert_allclose(got, _run("sequential", **few), rtol=1e-5, atol=1e-6)


@pytest.mark.devices
def test_auto_counts_the_samples_of_a_device():
    """Where an explicit mesh says how the batch is split."""
    seen = []

    def network(x, t, cond):
        seen.append(len(x))
        return _network(x, t, cond)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        few = jax.device_put((NOISE, LABELS), NamedSharding(mesh, P("data")))
        got = _run("auto", *few, denoise=network, guidance=gj.guidance(gj.cfg, 1.0))
    assert seen == [2 * BATCH]
    want = _run("sequential", guidance=gj.guidance(gj.cfg, 1.0))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_auto_with_a_network_that_holds_arrays_of_its_batch():
    """As one that is told of an image beside each sample; and what is wrong of itself still is."""
    hints = jax.random.normal(jax.random.key(3), (3, 4))
    told = lambda x, t, cond: _network(x + hints, t, cond)
    few = {"noise": NOISE[:3], "cond": LABELS[:3]}
    want = _run("sequential", denoise=told, **few)
    np.testing.assert_array_equal(_run("auto", denoise=told, **few), want)
    with pytest.raises(ValueError, match="the network returned shape"):
        _run("auto", denoise=lambda x, t, cond: _network(x, t, cond)[:, :2], **few)

"""Which passes a run makes: counted, compared bit for bit with all of them, weighed in FLOPs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from solvers.common import DETERMINISTIC, SOLVERS, TWO_STAGE

import guidejax as gj
from guidejax.rules import make_rule

PROCESS = gj.rectified_flow()
KEY = jax.random.key(0)
BATCH, STEPS = 8, 8
NOISE = jax.random.normal(jax.random.key(1), (BATCH, 4))
LABELS = jnp.ones(BATCH)
INTERVAL = gj.interval(1.5, lo=0.3, hi=0.8)  # of t = 1, 7/8, ..., 1/8: steps 2, 3, 4, 5
MATRIX = jax.random.normal(jax.random.key(2), (4, 4)) / 2


def _network(x, t, cond):
    return jnp.tanh(x @ MATRIX + (cond - t)[:, None])


def _counting(network=_network):
    """A network and the conditions it was evaluated with, one an evaluation."""
    calls = []

    def counted(x, t, cond):
        jax.debug.callback(lambda c: calls.append(float(c)), cond[0])
        return network(x, t, cond)

    return counted, calls


def _run(omega=1.0, denoise=_network, rule=gj.cfg, noise=NOISE, cond=LABELS, **kwargs):
    kwargs.setdefault("times", gj.uniform_times(STEPS))
    guidance = gj.guidance(rule, omega=omega)
    return gj.sample(
        kwargs.pop("key", KEY), denoise, PROCESS, noise, cond=cond, uncond=-1.0,
        **{"guidance": guidance, **kwargs},
    )  # fmt: skip


def _count(*args, **kwargs):
    """(conditional, unconditional) evaluations of a run."""
    network, calls = _counting()
    _run(*args, denoise=network, **kwargs)
    jax.effects_barrier()
    return calls.count(1.0), calls.count(-1.0)


@pytest.mark.parametrize("name", [n for n in DETERMINISTIC if n not in TWO_STAGE])
def test_passes_of_one_stage(name):
    solver = SOLVERS[name]()
    assert _count(INTERVAL, solver=solver) == (8, 4)
    assert _count(INTERVAL, solver=solver, skip="never") == (8, 8)
    assert _count(0.0, solver=solver) == (8, 0)


@pytest.mark.parametrize("solver", [gj.heun(), gj.edm_heun(0.1)])
def test_passes_of_two_stages(solver):
    """At steps 2 to 5, and at the ends of steps 1 to 4: by the ω of where it denoises from."""
    assert _count(INTERVAL, solver=solver) == (15, 8)
    assert _count(INTERVAL, solver=solver, skip="never") == (15, 15)
    assert _count(1.0, solver=solver) == (15, 15)
    assert _count(0.0, solver=solver) == (15, 0)
    # No data at the end: the last step has both its predictions.
    assert _count(1.0, solver=solver, times=gj.uniform_times(4, 1.0, 0.1)) == (8, 8)
    assert _count(1.0, solver=solver, times=gj.uniform_times(1)) == (1, 1)


def test_run_time_gate_of_two_stages():
    run = jax.jit(lambda lo: _run(gj.interval(1.5, lo, 0.8), denoise=network, solver=gj.heun()))
    network, calls = _counting()
    got = run(0.3)
    jax.effects_barrier()
    assert (calls.count(1.0), calls.count(-1.0)) == (15, 8)
    np.testing.assert_array_equal(got, _run(INTERVAL, solver=gj.heun()))


def test_adaptive_under_vmap_and_grad():
    total = lambda omega: _run(omega, rule=gj.adaptive(threshold=-1.0)).sum()
    grads = jax.vmap(jax.grad(total))(jnp.array([0.5, 1.0]))
    want = [jax.grad(total)(omega) for omega in (0.5, 1.0)]
    np.testing.assert_allclose(grads, want, rtol=1e-4)


def test_each_branch_has_its_own_steps():
    calls = []
    both = make_rule(
        lambda cond, uncond, weak, omega, *, weak_omega=0.0: (
            cond + jnp.reshape(omega, (-1, 1)) * (cond - uncond)
            + jnp.reshape(weak_omega, (-1, 1)) * (cond - weak)
        ),
        space="any", exact_at_zero=False,
        gates={"uncond": lambda n: n["omega"], "weak": lambda n: n["weak_omega"]},
    )  # fmt: skip
    network, calls = _counting()
    guidance = gj.guidance(both, INTERVAL, weak_omega=gj.interval(1.0, lo=0.0, hi=0.3))
    run = lambda skip: _run(
        guidance=guidance, denoise=network, conditions={"weak": jnp.full(BATCH, 7.0)}, skip=skip
    )
    got = run("auto")
    jax.effects_barrier()
    assert (calls.count(1.0), calls.count(-1.0), calls.count(7.0)) == (8, 4, 2)
    np.testing.assert_array_equal(got, run("never"))


def test_skipping_on_a_mesh(mesh):
    rows = NamedSharding(mesh, P("data"))
    noise, labels = jax.device_put((NOISE, LABELS), rows)
    for rule, omega in ((gj.cfg, INTERVAL), (gj.adaptive(threshold=-1.0), 1.0)):
        want = np.asarray(_run(omega, rule=rule))
        with jax.set_mesh(mesh):
            runs = [
                _run(omega, rule=rule, noise=noise, cond=labels, skip=skip)
                for skip in ("auto", "never")
            ]
        np.testing.assert_array_equal(*runs)
        np.testing.assert_allclose(runs[0], want, rtol=1e-5, atol=1e-6)


def _flops(run, *args):
    return jax.jit(run).lower(*args).compile().cost_analysis()["flops"]


def test_unknown_skip():
    with pytest.raises(ValueError, match="unknown skip='no'"):
        _run(skip="no")

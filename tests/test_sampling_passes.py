"""Which passes a run makes: counted, and compared with all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from solvers.common import DETERMINISTIC, EVALUATIONS, SOLVERS

import guidejax as gj
from guidejax.rules import make_rule
from tests.helpers import sample

PROCESS = gj.processes.rectified_flow()
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
    return sample(
        kwargs.pop("key", KEY), denoise, PROCESS, noise, cond=cond, uncond=-1.0,
        **{"guidance": guidance, **kwargs},
    )  # fmt: skip


def _count(*args, **kwargs):
    """(conditional, unconditional) evaluations of a run."""
    network, calls = _counting()
    _run(*args, denoise=network, **kwargs)
    jax.effects_barrier()
    return calls.count(1.0), calls.count(-1.0)


# Products in library calls, and products that XLA fuses with the sampler's own lines.
WIDE = jax.random.normal(jax.random.key(3), (128, 128)) / 11
WIDE_NOISE = jax.random.normal(jax.random.key(4), (BATCH, 128))


def _wide(x, t, cond):
    return jax.nn.relu(x @ WIDE + (cond - t)[:, None]) @ WIDE


def _small(x, t, cond):
    return _network(x, t, cond) @ MATRIX


NETWORKS = {"wide": (_wide, WIDE_NOISE, "velocity"), "small": (_small, NOISE, "x0")}


def skipped_is_unskipped(name, network):
    """The same samples whether passes of no weight are made or not."""
    network, noise, prediction = NETWORKS[network]
    denoise = gj.denoiser(network, PROCESS, prediction)
    run = lambda skip, omega=INTERVAL: _run(
        omega, denoise=denoise, noise=noise, solver=SOLVERS[name](), skip=skip
    )
    got = run("auto")
    np.testing.assert_allclose(got, run("never"), rtol=1e-5, atol=1e-5)
    if name == "ddim":  # Guidance does something.
        assert not np.allclose(got, run("auto", 0.0))


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", [n for n in SOLVERS if "cfgpp" not in n])
def test_skipped_is_unskipped(name, network):
    skipped_is_unskipped(name, network)


EACH = gj.interval(jnp.linspace(0, 2, BATCH), 0.3, 0.8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "omega"), [("ddim", INTERVAL), ("ddim", EACH), ("heun", INTERVAL)]
)
@pytest.mark.parametrize(
    "rule", [gj.adg, gj.apg, gj.rescale, gj.rules.adaptive, gj.rules.cached_difference]
)
def test_skipped_is_unskipped_for_every_kind_of_rule(rule, omega, solver):
    rule = gj.chain(gj.cfg, rule) if "guided" in rule.takes else rule
    run = lambda skip: _run(
        omega, denoise=_wide, noise=WIDE_NOISE, rule=rule, skip=skip, solver=SOLVERS[solver]()
    )
    np.testing.assert_allclose(run("auto"), run("never"), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_skipped_is_unskipped_where_only_the_run_knows():
    wide = {"denoise": _wide, "noise": WIDE_NOISE}
    run = jax.jit(
        lambda lo, skip: _run(gj.interval(1.5, lo, 0.8), skip=skip, **wide),
        static_argnames="skip",
    )
    np.testing.assert_allclose(run(0.3, "auto"), run(0.3, "never"), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(0.3, "auto"), _run(INTERVAL, **wide), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in DETERMINISTIC if n not in EVALUATIONS])
def test_passes_of_one_stage(name):
    solver = SOLVERS[name]()
    assert _count(INTERVAL, solver=solver) == (8, 4)
    assert _count(INTERVAL, solver=solver, skip="never") == (8, 8)
    assert _count(0.0, solver=solver) == (8, 0)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [gj.heun(), gj.solvers.edm_heun(0.1)])
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
    np.testing.assert_allclose(got, _run(INTERVAL, solver=gj.heun()), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_cached_difference_leaves_the_pass_out():
    rule = gj.rules.cached_difference.bind(every=3)
    assert _count(1.0, rule=rule) == (8, 3)  # steps 0, 3, 6
    assert _count(INTERVAL, rule=rule) == (8, 2)  # steps 2, 5
    assert _count(1.0, rule=rule, skip="never") == (8, 8)
    np.testing.assert_allclose(
        _run(1.0, rule=gj.rules.cached_difference.bind(every=1)), _run(1.0), rtol=1e-5, atol=1e-5
    )
    x = NOISE
    for i, (t, s) in enumerate(zip(np.arange(8, 0, -1) / 8, np.arange(7, -1, -1) / 8, strict=True)):
        at = jnp.full(BATCH, t)
        c = _network(x, at, LABELS)
        if i % 3 == 0:
            delta = (_network(x, at, -LABELS) - c) / t  # as velocity, (x − x0)/t
        x = x + (s - t) * ((x - c) / t + delta)
    np.testing.assert_allclose(_run(1.0, rule=rule), x, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_adaptive_switches_off_for_real():
    """Once every sample is past its threshold no unconditional pass is left."""
    grid = {"times": gj.uniform_times(8, 0.95)}
    always = {"rule": gj.rules.adaptive.bind(threshold=-1.0)}
    assert _count(1.0, **always) == (8, 2)  # t = 1, where ε says nothing, and the step that shuts
    assert _count(1.0, **always, **grid) == (8, 1)
    assert _count(1.0, rule=gj.rules.adaptive.bind(threshold=2.0)) == (8, 8)
    run = lambda skip: _run(1.0, skip=skip, **always, **grid)
    np.testing.assert_allclose(run("auto"), run("never"), rtol=1e-5, atol=1e-6)
    # One sample that is not past it keeps the pass for all, and changes nothing for the others.
    guidance = gj.guidance(
        gj.rules.adaptive, 1.0, threshold=jnp.array([2.0] + [-1.0] * (BATCH - 1))
    )
    assert _count(guidance=guidance) == (8, 8)
    mixed = _run(guidance=guidance, **grid)
    np.testing.assert_allclose(mixed[1:], run("auto")[1:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed[0], _run(1.0, **grid)[0], rtol=1e-4)


@pytest.mark.slow
def test_adaptive_under_vmap_and_grad():
    total = lambda omega: _run(omega, rule=gj.rules.adaptive.bind(threshold=-1.0)).sum()
    grads = jax.vmap(jax.grad(total))(jnp.array([0.5, 1.0]))
    want = [jax.grad(total)(omega) for omega in (0.5, 1.0)]
    np.testing.assert_allclose(grads, want, rtol=1e-4)


def test_each_branch_has_its_own_steps():
    calls = []
    both = make_rule(
        lambda cond, uncond, other, omega, *, other_omega=0.0: (
            cond + jnp.reshape(omega, (-1, 1)) * (cond - uncond)
            + jnp.reshape(other_omega, (-1, 1)) * (cond - other)
        ),
        space="any", exact_at_zero=False,
        needs={"uncond": lambda n: n["omega"], "other": lambda n: n["other_omega"]},
    )  # fmt: skip
    network, calls = _counting()
    guidance = gj.guidance(both, INTERVAL, other_omega=gj.interval(1.0, lo=0.0, hi=0.3))
    run = lambda skip: _run(
        guidance=guidance, denoise=network, conditions={"other": jnp.full(BATCH, 7.0)}, skip=skip
    )
    got = run("auto")
    jax.effects_barrier()
    assert (calls.count(1.0), calls.count(-1.0), calls.count(7.0)) == (8, 4, 2)
    np.testing.assert_allclose(got, run("never"), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_skipping_on_a_mesh(mesh):
    rows = NamedSharding(mesh, P("data"))
    noise, labels = jax.device_put((NOISE, LABELS), rows)
    for rule, omega in ((gj.cfg, INTERVAL), (gj.rules.adaptive.bind(threshold=-1.0), 1.0)):
        want = np.asarray(_run(omega, rule=rule))
        with jax.set_mesh(mesh):
            runs = [
                _run(omega, rule=rule, noise=noise, cond=labels, skip=skip)
                for skip in ("auto", "never")
            ]
        np.testing.assert_allclose(*runs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(runs[0], want, rtol=1e-5, atol=1e-6)


def test_unknown_skip():
    with pytest.raises(ValueError, match="unknown skip='no'"):
        _run(skip="no")

"""What a run keeps, tells and remembers."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import guidejax as gj
from guidejax._keep import kept_steps
from tests.helpers import sample

PROCESS = gj.processes.rectified_flow()
KEY = jax.random.key(0)
BATCH, STEPS = 8, 6
NOISE = jax.random.normal(jax.random.key(1), (BATCH, 4))
LABELS = jnp.arange(BATCH) / BATCH
TIMES = gj.uniform_times(STEPS)
INTERVAL = gj.interval(1.5, lo=0.4, hi=0.9)  # t = 5/6, 4/6, 3/6


def _network(x, t, cond):
    return jnp.tanh(x + (cond - t)[:, None])


def _run(noise=NOISE, cond=LABELS, omega=INTERVAL, denoise=_network, rule=gj.cfg, **kwargs):
    return sample(
        KEY, denoise, PROCESS, noise, cond=cond, uncond=-1.0,
        **{"times": TIMES, "guidance": gj.guidance(rule, omega=omega), **kwargs},
    )  # fmt: skip


def _states():
    """x_s and x̂0 of every step, by ending the run early."""
    found = []
    for stop in range(1, STEPS + 1):
        x, trail = _run(times=TIMES[: stop + 1], keep=[stop - 1])
        found.append((x, trail.x0[0]))
        np.testing.assert_array_equal(trail.x[0], x)
    return found


def test_all_and_chosen_steps():
    x, trail = _run(keep="all")
    np.testing.assert_allclose(x, _run(), rtol=1e-5, atol=1e-6)
    assert trail.x.shape == trail.x0.shape == (STEPS, BATCH, 4)
    np.testing.assert_array_equal(trail.x[-1], x)
    for i, (state, x0) in enumerate(_states()):
        np.testing.assert_allclose(trail.x[i], state, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(trail.x0[i], x0, rtol=1e-5, atol=1e-6)
    chosen_x, chosen = _run(keep=(0, 3, -1))
    picked = jnp.array([0, 3, 5])
    np.testing.assert_allclose(chosen_x, x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(chosen.x, trail.x[picked], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(chosen.x0, trail.x0[picked], rtol=1e-5, atol=1e-6)
    assert chosen.stats is None


@pytest.mark.slow
def test_stats():
    x, trail = _run(keep="stats", rule=gj.cfg)
    np.testing.assert_allclose(x, _run(), rtol=1e-5, atol=1e-6)
    assert trail.x is None
    assert trail.x0 is None
    stats, on = trail.stats, np.array([0, 1, 1, 1, 0, 0], bool)
    assert all(leaf.shape == (STEPS, BATCH) for leaf in stats)
    np.testing.assert_allclose(stats.omega, np.where(on, 1.5, 0)[:, None] * np.ones(BATCH))
    np.testing.assert_allclose(stats.effective_omega, stats.omega, rtol=1e-4)
    for leaf in (stats.angle, stats.delta_norm):
        np.testing.assert_array_equal(np.isfinite(leaf), on[:, None] & np.ones(BATCH, bool))
    # The first step looks at the noise itself.
    c = _network(NOISE, jnp.ones(BATCH), LABELS)
    np.testing.assert_allclose(stats.cond_norm[0], jnp.linalg.norm(c, axis=1), rtol=1e-5)
    np.testing.assert_allclose(stats.guided_norm[0], stats.cond_norm[0], rtol=1e-6)
    # With every pass made the other branch is measured at every step.
    full = _run(keep="stats", skip="never")[1].stats
    assert np.all(np.isfinite(full.angle))
    np.testing.assert_allclose(full.angle[1], stats.angle[1], rtol=1e-4)


def test_stats_of_a_rule_that_weakens():
    stats = _run(keep="stats", rule=gj.rules.mambo_g, omega=2.0)[1].stats
    assert np.all(stats.effective_omega < 2.0)
    assert np.all(stats.effective_omega > 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["all", "stats", (1, 4)])
def test_keep_of_pytrees_under_jit_vmap_and_grad(keep):
    network = lambda x, t, cond: jax.tree.map(lambda leaf: 0.5 * leaf + cond[0], x)
    noise = {"a": NOISE, "b": NOISE[:, :1]}
    run = lambda omega: _run(noise, denoise=network, omega=omega, keep=keep)
    x, trail = jax.jit(jax.vmap(run))(jnp.array([0.5, 1.0]))
    want_x, want = run(1.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-5), (x, trail),
        (want_x, want),
    )  # fmt: skip
    seen = lambda omega: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(run(omega)[1]))
    assert np.isfinite(jax.grad(seen)(1.0))
    assert jax.grad(seen)(1.0) != 0


@pytest.mark.slow
def test_keep_on_a_mesh(mesh):
    rows = NamedSharding(mesh, P("data"))
    noise, cond = jax.device_put((NOISE, LABELS), rows)
    for keep in ("all", "stats", (1, 4)):
        want = jax.tree.map(np.asarray, _run(keep=keep))
        with jax.set_mesh(mesh):
            got = _run(noise, cond, keep=keep)
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_memory_grows_with_what_is_kept():
    noise = jnp.ones((64, 256))

    def bytes_of(keep, steps):
        run = jax.jit(lambda x: _run(x, jnp.ones(64), keep=keep, times=gj.uniform_times(steps)))
        memory = run.lower(noise).compile().memory_analysis()
        return memory.output_size_in_bytes + memory.temp_size_in_bytes

    def states_of_50_steps(keep):
        return (bytes_of(keep, 100) - bytes_of(keep, 50)) / noise.nbytes

    assert states_of_50_steps("final") < 1
    assert states_of_50_steps((9, 29)) < 1
    assert states_of_50_steps("stats") < 4  # 6 numbers a step and sample, of 256
    assert states_of_50_steps("all") > 95


@pytest.mark.parametrize("keep", ["some", (), (3, 1), (0, 6), (-7,)])
def test_wrong_keep(keep):
    with pytest.raises(ValueError, match="keep="):
        _run(keep=keep)


# Progress.


@pytest.mark.parametrize("jit", [False, True])
def test_progress(jit):
    told = []
    run = lambda x: _run(x, progress=progress)
    progress = lambda step, steps: told.append((step, steps))
    got = (jax.jit(run) if jit else run)(NOISE)
    jax.effects_barrier()
    assert sorted(told) == [(i, STEPS) for i in range(1, STEPS + 1)]
    np.testing.assert_array_equal(got, _run())


def test_progress_on_many_devices(mesh):
    told = []
    rows = NamedSharding(mesh, P("data"))
    noise, cond = jax.device_put((NOISE, LABELS), rows)
    with jax.set_mesh(mesh):
        _run(noise, cond, progress=lambda step, steps: told.append(step))
        jax.effects_barrier()
    assert sorted(told) == list(range(1, STEPS + 1))


def test_progress_on_stderr(capsys):
    _run(progress=True)
    jax.effects_barrier()
    assert f"{STEPS}/{STEPS}\n" in capsys.readouterr().err
    _run()
    jax.effects_barrier()
    assert capsys.readouterr().err == ""


# Rematerialisation.


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_remat_changes_nothing(steps):
    def total(omega, remat):
        x, trail = _run(omega=gj.interval(omega, 0.2, 0.8), remat=remat, keep="all",
                        times=gj.uniform_times(steps), solver=gj.ddim(0.3))  # fmt: skip
        return x.sum() + trail.x0.sum()

    want, want_grad = jax.value_and_grad(total)(1.0, "none")
    for remat in ("step", "recursive"):
        value, grad = jax.value_and_grad(total)(1.0, remat)
        np.testing.assert_allclose(value, want, rtol=1e-5)
        np.testing.assert_allclose(grad, want_grad, rtol=1e-4)


def _temporary(steps, remat, width=256, batch=128):
    """Bytes that the gradient in ω through a run holds at once, over those of a state."""
    matrix = jnp.ones((width, width)) / width
    network = lambda x, t, cond: jnp.tanh(jnp.tanh(x @ matrix) @ matrix) * cond[:, None]
    noise = jnp.ones((batch, width))

    def total(omega, noise):
        return sample(
            KEY, network, PROCESS, noise, cond=jnp.ones(batch), uncond=0.5, remat=remat,
            times=gj.uniform_times(steps), guidance=gj.guidance(gj.cfg, omega),
        ).sum()  # fmt: skip

    compiled = jax.jit(jax.grad(total)).lower(1.0, noise).compile()
    return compiled.memory_analysis().temp_size_in_bytes / noise.nbytes


@pytest.mark.slow
def test_recursive_memory_hardly_grows():
    memory = {
        (remat, steps): _temporary(steps, remat)
        for remat, steps in itertools.product(("none", "step", "recursive"), (25, 400))
    }
    assert memory["recursive", 400] < 2.5 * memory["recursive", 25]
    assert memory["step", 400] > 8 * memory["step", 25]
    assert memory["recursive", 400] < memory["step", 400] / 5
    assert memory["step", 400] < memory["none", 400] / 2


def test_wrong_remat():
    with pytest.raises(ValueError, match="unknown remat='all'"):
        _run(remat="all")


@pytest.mark.parametrize("keep", [2, [0.9, 2.7], 1.5])
def test_what_is_kept_are_whole_steps(keep):
    with pytest.raises(ValueError, match="must be indices of steps"):
        kept_steps(keep, 4)


def test_what_is_kept_may_be_counted_once():
    assert kept_steps((i for i in (0, np.int64(2), -1)), 4) == (0, 2, 3)
    with pytest.raises(ValueError, match=r"keep=\(3, 1\) must be rising"):
        kept_steps((i for i in (3, 1)), 4)

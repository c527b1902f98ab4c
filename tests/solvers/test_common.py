"""What every solver keeps to: a new one is tested by being listed in `common.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import guidejax as gj
from guidejax import analytic
from tests.helpers import sample

from .common import (
    DETERMINISTIC,
    MEAN,
    ORDER,
    PROCESSES,
    RENOISED,
    SOLVERS,
    STD,
    TWO_STAGE,
    flow,
)

KEY = jax.random.key(0)
RF = gj.processes.rectified_flow()
EACH = pytest.mark.parametrize("name", SOLVERS)
BATCH = 8
NOISE = jax.random.normal(jax.random.key(1), (BATCH, 2))
LABELS = jnp.arange(BATCH) / BATCH


def _network(x, t, cond):
    return jax.tree.map(
        lambda leaf: jnp.tanh(leaf + jnp.reshape(cond - t, (-1, *[1] * (leaf.ndim - 1)))), x
    )


def _run(name, noise=NOISE, denoise=_network, process=RF, omega=0.5, key=KEY, **kwargs):
    solver = SOLVERS[name]() if isinstance(name, str) else name
    kwargs.setdefault("times", gj.uniform_times(4))
    kwargs.setdefault("cond", LABELS)
    return sample(
        key, denoise, process, noise, uncond=-1.0, solver=solver,
        guidance=gj.guidance(gj.cfg, omega=omega), **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", ORDER)
def test_order_of_convergence(x64, name, process):
    process = PROCESSES[process]
    denoise = analytic.denoiser(analytic.gaussian(jnp.array([MEAN]), STD), process)
    x = process.sigma(0.95) * jnp.linspace(-2, 2, 5)[:, None]
    exact = flow(process, x, 0.95, 0.05)

    def error(steps):
        got = sample(
            KEY, denoise, process, x, times=gj.uniform_times(steps, 0.95, 0.05),
            solver=SOLVERS[name](),
        )  # fmt: skip
        return float(jnp.abs(got - exact).max())

    coarse, fine = error(100), error(200)
    np.testing.assert_allclose(np.log2(coarse / fine), ORDER[name], atol=0.12)
    assert fine < (0.05 if ORDER[name] == 1 else 1e-3)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", ["heun", "edm_heun", "dpmpp_2m"])
def test_second_order_beats_first_from_noise_to_data(x64, name, process):
    """The whole way, α = 0 at one end and σ = 0 at the other: 5 times closer than DDIM."""
    process = PROCESSES[process]
    denoise = analytic.denoiser(analytic.gaussian(jnp.array([MEAN]), STD), process)
    x = process.sigma(1.0) * jnp.linspace(-2, 2, 5)[:, None]
    exact = flow(process, x, 1.0, 0.0)
    run = lambda name: sample(
        KEY, denoise, process, x, times=gj.uniform_times(100), solver=SOLVERS[name]()
    )
    error, plain = (float(jnp.abs(run(n) - exact).max()) for n in (name, "ddim"))
    assert error < plain / 5


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", [n for n in SOLVERS if "euler" not in n])
def test_exact_where_the_denoiser_is_constant(name, process):
    """x̂0 known: whatever the solver, the last step lands on it. Euler does so on straight paths."""
    point = jnp.array([[1.5, -2.0]])
    got = sample(
        KEY, lambda x, t, c: jnp.broadcast_to(point, x.shape), PROCESSES[process], 3 * point,
        times=gj.uniform_times(3), solver=SOLVERS[name](), cond=jnp.ones(1), uncond=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(got, point, rtol=2e-6)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_exact_on_straight_paths(name):
    """x̂0 and ε̂ constant along the path: one step is as good as many, on rectified flow."""
    x = jnp.array([[0.3, -2.0]])
    denoise = gj.denoiser(lambda x, t, c: jnp.full_like(x, 0.7), RF, "velocity")
    run = lambda times: sample(KEY, denoise, RF, x, times=times, solver=SOLVERS[name]())
    np.testing.assert_allclose(run(jnp.array([0.9, 0.2])), x - 0.7 * 0.7, rtol=1e-5)
    np.testing.assert_allclose(run(jnp.array([1.0, 0.6, 0.5, 0.0])), x - 0.7, rtol=1e-5)


@EACH
def test_dtype_is_kept(name):
    got = _run(name, NOISE.astype(jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    assert np.all(np.isfinite(got.astype(jnp.float32)))
    if name in DETERMINISTIC:
        np.testing.assert_allclose(got.astype(jnp.float32), _run(name), atol=0.08)


@EACH
@pytest.mark.parametrize("process", ["cosine", "linear_vp", "edm"])
def test_finite_at_both_ends(name, process):
    got = _run(name, process=PROCESSES[process], times=gj.uniform_times(3))
    assert np.all(np.isfinite(got))


@EACH
def test_one_step_and_an_early_end(name):
    for times in (gj.uniform_times(1), gj.uniform_times(3, 0.9, 0.1)):
        assert np.all(np.isfinite(_run(name, times=times)))


@EACH
def test_pytrees(name):
    noise = {"image": NOISE.reshape(BATCH, 2, 1), "text": -NOISE}
    got = _run(name, noise)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, noise)
    if name in DETERMINISTIC:
        np.testing.assert_allclose(got["image"][..., 0], _run(name), rtol=1e-5, atol=1e-6)


@EACH
def test_times_of_each_sample(name):
    first, second = gj.uniform_times(4), gj.uniform_times(4, 0.9, 0.05)
    keys = jax.random.split(KEY, BATCH)
    got = _run(name, key=keys, times=jnp.stack([first, second] * (BATCH // 2), axis=1))
    for i, grid in enumerate((first, second)):
        want = _run(name, key=keys, times=grid)[i::2]
        np.testing.assert_allclose(got[i::2], want, rtol=1e-5, atol=1e-5)


@EACH
def test_transformations(name):
    """One compilation for any ω; vmap and jit agree with the plain call; gradients are finite."""
    traces = []

    def network(x, t, cond):
        traces.append(0)
        return _network(x, t, cond)

    network = gj.denoiser(network, RF)
    omegas = jnp.array([0.5, 1.0])
    want = [_run(name, denoise=network, omega=float(omega)) for omega in omegas]
    count = len(traces)
    _run(name, denoise=network, omega=3.0)
    assert len(traces) == count
    got = jax.jit(jax.vmap(lambda omega: _run(name, omega=omega)))(omegas)
    np.testing.assert_allclose(got, jnp.stack(want), rtol=1e-4, atol=1e-5)
    grads = jax.grad(lambda omega, x: _run(name, x, omega=omega).sum(), (0, 1))(0.5, NOISE)
    assert all(np.all(np.isfinite(g)) for g in grads)
    assert np.any(grads[0] != 0)


@pytest.mark.parametrize("name", SOLVERS)
def test_mesh(name, mesh):
    keys = jax.random.split(KEY, BATCH)
    want = np.asarray(_run(name, key=keys))
    rows = NamedSharding(mesh, P("data"))
    key, noise, labels = jax.device_put((keys, NOISE, LABELS), rows)
    with jax.set_mesh(mesh):
        got = _run(name, noise, key=key, cond=labels)
    assert got.sharding.is_equivalent_to(rows, 2)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_passes(name):
    """Steps times stages, less the second one into s = 0; CFG++ has its second branch always."""
    calls = []

    def network(x, t, cond):
        jax.debug.callback(lambda c: calls.append(float(c)), cond[0])
        return _network(x, t, cond)

    _run(name, denoise=network, omega=0.0)
    jax.effects_barrier()
    cond = 7 if name in TWO_STAGE else 4
    assert calls.count(0.0) == cond
    assert calls.count(-1.0) == (4 if name in RENOISED else 0)

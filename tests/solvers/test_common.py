"""What every solver keeps to: a new one is tested by being listed in `common.py`."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import guidejax as gj
from guidejax import analytic
from guidejax.solvers import _replay, base
from tests.helpers import sample

from .common import (
    BOTH_WAYS,
    DETERMINISTIC,
    EVALUATIONS,
    MEAN,
    ORDER,
    PROCESSES,
    RENOISED,
    SOLVERS,
    STD,
    flow,
    on_each_process,
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


MODES = analytic.mixture([[-1.0], [1.5]], stds=[0.5, 0.4])
INNER = (0.95, 0.05)


@functools.cache
def _along_the_flow(process, name, steps):
    """A run over two modes, away from both ends."""
    process = PROCESSES[process]
    x = process.sigma(INNER[0]) * jnp.linspace(-2, 2, 5)[:, None]
    return sample(
        KEY, analytic.denoiser(MODES, process), process, x,
        times=gj.uniform_times(steps, *INNER), solver=SOLVERS[name](),
    )  # fmt: skip


@on_each_process("rectified_flow")
@pytest.mark.parametrize("name", ORDER)
def test_order_of_convergence(x64, name, process):
    """Two modes: on one Gaussian alone a method may be better than its order."""
    exact = _along_the_flow(process, "rk4", 4000)  # to 1e-13, by its order, which is tested too
    error = lambda steps: float(jnp.abs(_along_the_flow(process, name, steps) - exact).max())
    coarse, fine = error(400), error(800)
    np.testing.assert_allclose(np.log2(coarse / fine), ORDER[name], atol=0.12)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_the_flow_of_one_gaussian(x64, process):
    """The closed form: rk4, beside which the orders of the others are measured, is at it."""
    process = PROCESSES[process]
    denoise = analytic.denoiser(analytic.gaussian(jnp.array([MEAN]), STD), process)
    x = process.sigma(0.95) * jnp.linspace(-2, 2, 5)[:, None]
    got = sample(
        KEY, denoise, process, x, times=gj.uniform_times(200, *INNER), solver=SOLVERS["rk4"]()
    )
    error = float(jnp.abs(got - flow(process, x, *INNER)).max())
    assert error < 1e-8


@pytest.mark.slow
@on_each_process("cosine")
@pytest.mark.parametrize("name", [name for name, order in ORDER.items() if order > 1])
def test_higher_order_beats_first_from_noise_to_data(x64, name, process):
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_exact_on_straight_paths(name):
    """x̂0 and ε̂ constant along the path: one step is as good as many, on rectified flow."""
    x = jnp.array([[0.3, -2.0]])
    denoise = gj.denoiser(lambda x, t, c: jnp.full_like(x, 0.7), RF, "velocity")
    run = lambda times: sample(KEY, denoise, RF, x, times=times, solver=SOLVERS[name]())
    np.testing.assert_allclose(run(jnp.array([0.9, 0.2])), x - 0.7 * 0.7, rtol=1e-5)
    np.testing.assert_allclose(run(jnp.array([1.0, 0.6, 0.5, 0.0])), x - 0.7, rtol=1e-5)


@pytest.mark.slow
@EACH
def test_dtype_is_kept(name):
    got = _run(name, NOISE.astype(jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    assert np.all(np.isfinite(got.astype(jnp.float32)))
    if name in DETERMINISTIC:
        np.testing.assert_allclose(got.astype(jnp.float32), _run(name), atol=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in SOLVERS if "euler" in n])  # Others are exact there.
@pytest.mark.parametrize("process", ["cosine", "linear_vp", "edm"])
def test_finite_at_both_ends(name, process):
    got = _run(name, process=PROCESSES[process], times=gj.uniform_times(3))
    assert np.all(np.isfinite(got))


@pytest.mark.slow
@EACH
def test_one_step_and_an_early_end(name):
    for times in (gj.uniform_times(1), gj.uniform_times(3, 0.9, 0.1)):
        assert np.all(np.isfinite(_run(name, times=times)))


@pytest.mark.slow
@EACH
def test_pytrees(name):
    noise = {"image": NOISE.reshape(BATCH, 2, 1), "text": -NOISE}
    got = _run(name, noise)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, noise)
    if name in DETERMINISTIC:
        np.testing.assert_allclose(got["image"][..., 0], _run(name), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@EACH
def test_times_of_each_sample(name):
    first, second = gj.uniform_times(4), gj.uniform_times(4, 0.9, 0.05)
    keys = jax.random.split(KEY, BATCH)
    got = _run(name, key=keys, times=jnp.stack([first, second] * (BATCH // 2), axis=1))
    for i, grid in enumerate((first, second)):
        want = _run(name, key=keys, times=grid)[i::2]
        np.testing.assert_allclose(got[i::2], want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_passes(name):
    """Steps times evaluations, with those of a last step into s = 0; CFG++ always has its own."""
    calls = []

    def network(x, t, cond):
        jax.debug.callback(lambda c: calls.append(float(c)), cond[0])
        return _network(x, t, cond)

    _run(name, denoise=network, omega=0.0)
    jax.effects_barrier()
    usual, last = EVALUATIONS.get(name, (1, 1))
    assert calls.count(0.0) == 3 * usual + last
    assert calls.count(-1.0) == (4 if name in RENOISED else 0)


@pytest.mark.slow
@EACH
def test_the_network_stands_once_in_the_program(name):
    """However often a step evaluates it, and for a last step into data too."""
    branches = 2 if name in RENOISED else 1

    def network(x, t, cond):
        return jnp.arctan(x)

    program = jax.make_jaxpr(lambda x: _run(name, x, network, omega=0.0))(NOISE)
    assert str(program).count(" atan ") == branches
    guided = jax.make_jaxpr(lambda x: _run(name, x, network, omega=1.0))(NOISE)
    assert str(guided).count(" atan ") == 2


TWO = analytic.by_class(MODES, [0, 1])


@pytest.mark.slow
@pytest.mark.parametrize("process", ["rectified_flow", "edm"])
@pytest.mark.parametrize("name", BOTH_WAYS)
def test_there_and_back(x64, name, process):
    """Under guidance: times that rise, then the same falling, give x again, by the order."""
    process = PROCESSES[process]
    denoise = analytic.denoiser(TWO, process)
    x = jnp.linspace(-1.5, 1.5, 4)[:, None]
    options = {"cond": jnp.array([0, 1, 0, 1]), "uncond": TWO.null, "omega": 0.5}

    def gap(steps):
        times = gj.uniform_times(steps, 0.9, 0.1)
        noise = gj.sample(KEY, denoise, x, times=times[::-1], **_guided(name, **options))
        back = gj.sample(KEY, denoise, noise, times=times, **_guided(name, **options))
        assert float(jnp.abs(noise - x).max()) > 0.1
        return float(jnp.abs(back - x).max())

    # Errors of the two ways may cancel: at least the order.
    assert np.log2(gap(150) / gap(300)) > ORDER[name] - 0.25


def _guided(name, omega, **conditions):
    guidance = gj.guidance(gj.cfg, omega=omega)
    return {"solver": SOLVERS[name](), "guidance": guidance, **conditions}


@pytest.mark.parametrize("name", sorted(set(DETERMINISTIC) - set(BOTH_WAYS)))
def test_rising_times_are_refused_where_they_have_no_meaning(name):
    with pytest.raises(ValueError, match="times"):
        _run(name, times=gj.uniform_times(4, 0.9, 0.1)[::-1])


@pytest.mark.slow
@EACH
def test_a_last_time_of_zero_known_only_at_run_time(name):
    """Under jit with the grid as an argument: finite, and data where x̂0 is constant."""
    point = jnp.linspace(-2.0, 2.0, 2 * BATCH).reshape(BATCH, 2)
    constant = gj.denoiser(lambda x, t, c: point, RF)
    run = jax.jit(lambda times: _run(name, denoise=constant, times=times))
    np.testing.assert_allclose(run(jnp.asarray(gj.uniform_times(4))), point, rtol=1e-5, atol=1e-5)


def _by_shape(numbers, denoise, process, x, t, s, key, memory):
    """One's own step, of images by name, whose shape it looks at."""
    height, width = x["image"].shape[1:3]
    middle = (t + s) / 2
    x0 = denoise({"image": x["image"].reshape(-1, height, width, 3)}, middle)
    return base.along(process, x, t, s, base.straight_slope(process, x, x0, t)), memory


@pytest.mark.parametrize("batched", [False, True])
def test_a_step_of_one_s_own_may_look_at_the_state(batched):
    solver, noise = base.Solver({}, _by_shape), {"image": jnp.ones((2, 4, 5, 3))}
    found = _replay.kinds(solver, RF, batched, into_data=False, like=noise)
    assert found == ("between",)
    times = jnp.array([1.0, 0.5, 0.25])
    times = jnp.stack([times] * 2, axis=1) if batched else times
    (asked,) = _replay.asked_times(solver, RF, times, into_data=False, like=noise)
    np.testing.assert_allclose(asked, (times[1:] + times[:-1]) / 2)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_in_sigma_of_a_shifted_flow_is_ddim(shift):
    """What diffusers' FlowMatchEulerDiscreteScheduler does: x + (σ_s − σ_t) v at shifted σ."""
    flow = gj.processes.rectified_flow()
    denoise = gj.denoiser(lambda x, t, c: jnp.tanh(x) + t[:, None], flow, "velocity")
    times = gj.uniform_times(6)
    sigmas = shift * times / (1 + (shift - 1) * times)
    x = NOISE
    for t, s in itertools.pairwise(sigmas):
        x = x + (s - t) * (jnp.tanh(x) + t)
    moved = denoise.on(gj.processes.shifted(flow, shift))
    got = gj.sample(KEY, moved, NOISE, times=times, solver=gj.ddim())
    np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-5)


EDGES = (0.8, 0.2)


def _within(name, steps, **options):
    """A run under guidance between two times of its grid, the last of five samples by itself."""
    denoise = analytic.denoiser(TWO, RF)
    x = jnp.linspace(-1.5, 1.5, 5)[:, None]
    omega = options.pop("omega", 2.0)
    return gj.sample(
        KEY, denoise, x, cond=jnp.array([0, 1, 0, 1, 0]), uncond=TWO.null,
        times=gj.uniform_times(steps, 1.0, 0.1), solver=SOLVERS[name](),
        guidance=gj.guidance(gj.cfg, gj.interval(omega, lo=EDGES[1], hi=EDGES[0])), **options,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["midpoint", "dpm_solver_2", "dpmpp_2m", "unipc"])
def test_second_order_where_guidance_turns_on_and_off(x64, name):
    """Multistep solvers begin anew there: what they remember is of another field."""
    exact = _within("midpoint", 9 * 512)
    error = [float(jnp.abs(_within(name, 9 * k) - exact).max()) for k in (16, 32)]
    assert np.log2(error[0] / error[1]) > 1.75


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m sde", "unipc", "cfgpp dpmpp_2m"])
def test_it_begins_anew_however_guidance_is_known(name):
    """Passes left out or made, ω known or traced: the same samples; and by three runs by hand."""
    want = _within(name, 18)
    np.testing.assert_allclose(_within(name, 18, skip="never"), want, rtol=2e-5, atol=2e-5)
    traced = jax.jit(lambda omega: _within(name, 18, omega=omega))(2.0)
    np.testing.assert_allclose(traced, want, rtol=2e-5, atol=2e-5)
    if name not in DETERMINISTIC:
        return
    x, times = jnp.linspace(-1.5, 1.5, 5)[:, None], gj.uniform_times(18, 1.0, 0.1)
    for part, omega in ((times[:5], 0.0), (times[4:18], 2.0), (times[17:], 0.0)):
        x = gj.sample(
            KEY, analytic.denoiser(TWO, RF), x, cond=jnp.array([0, 1, 0, 1, 0]), uncond=TWO.null,
            times=part, solver=SOLVERS[name](), guidance=gj.guidance(gj.cfg, omega),
        )  # fmt: skip
    np.testing.assert_allclose(x, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc"])
@pytest.mark.parametrize("jit", [False, True])
def test_each_sample_begins_anew_by_itself(name, jit):
    """Windows of each sample: as in a batch of that window alone."""
    lo, hi = jnp.linspace(0.1, 0.4, 5), jnp.linspace(0.6, 0.9, 5)

    def run(lo, hi):
        return gj.sample(
            KEY, analytic.denoiser(TWO, RF), jnp.linspace(-1.5, 1.5, 5)[:, None],
            cond=jnp.array([0, 1, 0, 1, 0]), uncond=TWO.null, times=gj.uniform_times(12, 1.0, 0.1),
            solver=SOLVERS[name](), guidance=gj.guidance(gj.cfg, gj.interval(2.0, lo, hi)),
        )  # fmt: skip

    got = (jax.jit(run) if jit else run)(lo, hi)
    for i in range(5):
        np.testing.assert_allclose(got[i], run(lo[i], hi[i])[i], rtol=2e-5, atol=2e-5)

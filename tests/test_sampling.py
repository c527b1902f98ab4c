import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import guidejax as gj
from guidejax import analytic
from guidejax.rules import make_rule
from tests.helpers import sample

PROCESS = gj.processes.rectified_flow()
TIMES = gj.uniform_times(8)
KEY = jax.random.key(0)
MODEL = analytic.by_class(analytic.mixture([[-2.0, 0.0], [2.0, 1.0]], stds=0.4), [0, 1])
EXACT = analytic.denoiser(MODEL, PROCESS)
BATCH = 8
NOISE = jax.random.normal(jax.random.key(1), (BATCH, 2))
LABELS = jnp.arange(BATCH) % 2


def _sample(omega=1.0, *, key=KEY, denoise=EXACT, noise=NOISE, cond=LABELS, times=TIMES, **kwargs):
    kwargs.setdefault("guidance", gj.guidance(gj.cfg, omega=omega))
    kwargs.setdefault("uncond", MODEL.null)
    return sample(key, denoise, PROCESS, noise, cond=cond, times=times, **kwargs)


def _by_hand(omega_of_step, rule=gj.cfg, noise=NOISE, times=TIMES, cond=LABELS):
    """DDIM in NumPy's loop; ω = 0 makes no unconditional pass."""
    x = noise
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        x0, omega = EXACT(x, t, cond), omega_of_step(i)
        if np.any(np.asarray(omega) != 0):
            x0 = rule(x0, EXACT(x, t, jnp.full(x.shape[0], MODEL.null)), omega)
        ratio = PROCESS.sigma(s) / PROCESS.sigma(t)
        x = ratio * x + (PROCESS.alpha(s) - ratio * PROCESS.alpha(t)) * x0
    return x


def _counting():
    """A network that counts its traces, and its evaluations by label."""
    traces, calls = [], []

    def network(x, t, cond):
        traces.append(0)
        jax.debug.callback(lambda c: calls.append(int(c)), cond[0])
        return MODEL.denoise(x, t, cond, PROCESS)

    return gj.denoiser(network, PROCESS), traces, calls


# What it computes.


def test_uniform_times():
    np.testing.assert_allclose(gj.uniform_times(4, 0.8, 0.2), [0.8, 0.65, 0.5, 0.35, 0.2])
    for wrong in ((0,), (4, 1.5), (4, 0.2, 0.8), (4, 1.0, -0.1), (4, 0.5, 0.5)):
        with pytest.raises(ValueError, match="expected steps"):
            gj.uniform_times(*wrong)


@pytest.mark.parametrize("rule", [gj.cfg, gj.adg])
@pytest.mark.parametrize(
    "times", [TIMES, jnp.array([1.0, 0.3, 0.2, 0.01, 0.0]), gj.uniform_times(3, 0.9, 0.1)]
)
def test_a_run_is_the_loop_written_out(rule, times):
    got = _sample(guidance=gj.guidance(rule, omega=0.7), times=times)
    want = _by_hand(lambda i: 0.7, rule, times=times)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)


def test_times_of_each_sample():
    first, second = TIMES, 0.9 * TIMES**1.5 + 0.05
    times = jnp.stack([first, second] * (BATCH // 2), axis=1)
    got = _sample(times=times)
    for i, grid in enumerate((first, second)):
        np.testing.assert_allclose(got[i::2], _sample(times=grid)[i::2], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_omega_of_each_sample():
    omega = jnp.linspace(0, 2, BATCH)
    got = _sample(omega)
    for i in range(0, BATCH, 3):
        np.testing.assert_allclose(got[i], _sample(omega[i])[i], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_omega_zero_is_the_conditional_model():
    conditional = sample(KEY, EXACT, PROCESS, NOISE, cond=LABELS, times=TIMES)
    for omega in (0.0, jnp.zeros(BATCH), gj.interval(0.0, 0.1, 0.9)):
        np.testing.assert_array_equal(_sample(omega), conditional)
    # Traced, the program can't know, and the value is the same.
    np.testing.assert_array_equal(jax.jit(_sample)(0.0), conditional)


def test_churn_draws_from_the_key():
    run = lambda key, churn=0.8: _sample(key=key, solver=gj.ddim(churn=churn))
    assert not np.allclose(run(KEY), run(jax.random.key(7)))
    np.testing.assert_array_equal(run(KEY), run(KEY))
    np.testing.assert_array_equal(run(KEY, 0.0), run(jax.random.key(7), 0.0))
    # Raw keys are the same keys.
    np.testing.assert_array_equal(run(jax.random.PRNGKey(0)), run(KEY))


@pytest.mark.slow
def test_keys_of_each_sample():
    keys = jax.random.split(KEY, BATCH)
    run = lambda keys, noise, cond: _sample(
        key=keys, noise=noise, cond=cond, solver=gj.ddim(churn=1.0)
    )
    whole = run(keys, NOISE, LABELS)
    np.testing.assert_allclose(whole[2:4], run(keys[2:4], NOISE[2:4], LABELS[2:4]), rtol=1e-5)
    raw = jax.random.key_data(keys)
    np.testing.assert_array_equal(whole, run(raw, NOISE, LABELS))


@pytest.mark.parametrize("churn", [0.0, 1.0])
def test_bfloat16_states(churn):
    got = _sample(noise=NOISE.astype(jnp.bfloat16), solver=gj.ddim(churn=churn))
    assert got.dtype == jnp.bfloat16
    assert np.all(np.isfinite(got.astype(jnp.float32)))
    if churn == 0:
        want = _by_hand(lambda i: 1.0, noise=NOISE.astype(jnp.bfloat16).astype(jnp.float32))
        np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("churn", [0.0, 0.5])
def test_pytrees_of_states(churn):
    def network(x, t, cond):
        return jax.tree.map(
            lambda leaf: jnp.tanh(leaf) + cond.reshape(-1, *[1] * (leaf.ndim - 1)), x
        )

    noise = {"image": jnp.ones((2, 3, 3, 1)), "text": jnp.full((2, 5), -1.0)}
    run = lambda noise, guidance: sample(
        KEY, network, PROCESS, noise, cond=jnp.array([0.5, 1.0]), uncond=0.0, times=TIMES,
        guidance=guidance, solver=gj.ddim(churn=churn),
    )  # fmt: skip
    got = run(noise, gj.guidance(gj.cfg, omega=2.0))
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, noise)
    if churn == 0:
        alone = run(noise["image"], gj.guidance(gj.cfg, omega=2.0))
        np.testing.assert_allclose(got["image"], alone, rtol=1e-5)
    mask = {"image": jnp.ones(()), "text": jnp.zeros(())}
    half = run(noise, gj.guidance(gj.cfg, omega=2.0, mask=mask))
    np.testing.assert_array_equal(half["image"], got["image"])
    np.testing.assert_allclose(half["text"], run(noise, None)["text"], rtol=1e-6)


@pytest.mark.slow
def test_remat_changes_nothing():
    total = lambda omega, remat: _sample(omega, remat=remat).sum()
    for part in (total, jax.grad(total)):
        np.testing.assert_allclose(part(1.5, "step"), part(1.5, "none"), rtol=1e-5)


class _Linen(nn.Module):
    @nn.compact
    def __call__(self, x, t, cond):
        return nn.Dense(2)(jnp.concatenate([x, t[:, None], jax.nn.one_hot(cond, 3)], axis=-1))


class _NNX(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x, t, cond):
        return self.dense(jnp.concatenate([x, t[:, None], jax.nn.one_hot(cond, 3)], axis=-1))


def _linen():
    module = _Linen()
    variables = module.init(KEY, NOISE, jnp.zeros(BATCH), LABELS)
    return gj.denoiser(module, PROCESS, "velocity", params=variables)


@pytest.mark.slow
def test_flax_modules():
    module = _NNX(nnx.Rngs(0))
    dense = _linen().params["params"]["Dense_0"]
    dense["kernel"], dense["bias"] = module.dense.kernel[...], module.dense.bias[...]
    variables = {"params": {"Dense_0": dense}}
    linen = gj.denoiser(_Linen(), PROCESS, "velocity", params=variables)

    def plain(x, t, cond):
        features = jnp.concatenate([x, t[:, None], jax.nn.one_hot(cond, 3)], axis=-1)
        return features @ dense["kernel"] + dense["bias"]

    want = _sample(denoise=gj.denoiser(plain, PROCESS, "velocity"))
    got = _sample(denoise=gj.denoiser(module, PROCESS, "velocity"))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(_sample(denoise=linen), want, rtol=1e-5, atol=1e-6)


def test_a_branch_with_a_network_of_its_own():
    weak = make_rule(lambda cond, weak, omega: cond + omega * (cond - weak), space="any")
    zero = lambda x, t, cond: jnp.zeros_like(x)
    got = _sample(
        guidance=gj.guidance(weak, omega=0.5),
        uncond=None,
        conditions={"weak": gj.denoiser(zero, PROCESS)},
    )
    double = lambda x, t, cond: 1.5 * EXACT(x, t, cond)
    want = sample(KEY, double, PROCESS, NOISE, cond=LABELS, times=TIMES)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_null_of_any_shape():
    want = _sample(uncond=jnp.full(BATCH, MODEL.null))
    np.testing.assert_array_equal(_sample(uncond=MODEL.null), want)
    np.testing.assert_array_equal(_sample(uncond=np.int64(MODEL.null)), want)
    embed = lambda x, t, cond: x * 0.1 + cond["a"]
    cond = {"a": jnp.ones((BATCH, 2))}
    got = sample(
        KEY, embed, PROCESS, NOISE, cond=cond, uncond={"a": jnp.zeros(2)}, times=TIMES,
        guidance=gj.guidance(gj.cfg, omega=1.0),
    )  # fmt: skip
    double = lambda x, t, cond: x * 0.1 + 2 * cond["a"]
    want = sample(KEY, double, PROCESS, NOISE, cond=cond, times=TIMES)
    np.testing.assert_allclose(got, want, rtol=1e-5)


# What it compiles and what it evaluates.


def test_one_scan_and_one_trace_a_branch():
    denoise, traces, _ = _counting()
    jaxpr = str(jax.make_jaxpr(lambda x: _sample(2.0, denoise=denoise, noise=x))(NOISE))
    assert jaxpr.count("scan[") == 1
    assert len(traces) == 2


def test_sweeping_omega_compiles_once():
    denoise, traces, _ = _counting()
    results = [_sample(omega, denoise=denoise) for omega in np.linspace(0.1, 5, 50)]
    assert len(traces) == 2  # the conditional and the unconditional pass of one program
    assert len({np.asarray(r).tobytes() for r in results}) == 50


def test_sweeping_omega_under_vmap_compiles_once():
    denoise, traces, _ = _counting()
    omegas = jnp.linspace(0.1, 5, 50)
    swept = jax.jit(jax.vmap(lambda omega: _sample(omega, denoise=denoise)))(omegas)
    assert len(traces) == 2
    for i in (0, 17, 49):
        np.testing.assert_allclose(swept[i], _sample(omegas[i]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_new_numbers_of_an_interval_reuse_its_program():
    denoise, traces, _ = _counting()
    run = jax.jit(lambda lo, omega: _sample(gj.interval(omega, lo, 0.8), denoise=denoise))
    for lo in (0.1, 0.3, 0.5):
        np.testing.assert_allclose(
            run(lo, 2.0), _sample(gj.interval(2.0, lo, 0.8)), rtol=1e-4, atol=1e-5
        )
    assert len(traces) == 3  # both passes of a guided step, one of an unguided step


INTERVAL = gj.interval(3.0, lo=0.3, hi=0.8)  # of t = 1, 7/8, ..., 1/8: 6/8, 5/8, 4/8, 3/8


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["known", "all in jit", "omega traced", "end traced"])
def test_no_unconditional_pass_outside_the_interval(mode):
    denoise, traces, calls = _counting()
    run = {
        "known": lambda: _sample(INTERVAL, denoise=denoise),
        "all in jit": lambda: jax.jit(
            lambda: _sample(gj.interval(3.0, 0.3, 0.8), denoise=denoise, times=gj.uniform_times(8))
        )(),
        "omega traced": lambda: jax.jit(
            lambda omega: _sample(gj.interval(omega, 0.3, 0.8), denoise=denoise)
        )(3.0),
        "end traced": lambda: jax.jit(
            lambda lo: _sample(gj.interval(3.0, lo, 0.8), denoise=denoise)
        )(0.3),
    }[mode]
    got = run()
    jax.effects_barrier()
    assert len(traces) == (3 if mode == "end traced" else 4)  # one scan with a gate, or three
    assert calls.count(MODEL.null) == 4
    assert calls.count(int(LABELS[0])) == 8
    want = _by_hand(lambda i: 3.0 if 2 <= i <= 5 else 0.0)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)


def test_omega_zero_is_one_pass():
    denoise, traces, calls = _counting()
    _sample(0.0, denoise=denoise)
    jax.effects_barrier()
    assert len(traces) == 1
    assert MODEL.null not in calls
    assert len(calls) == 8


def test_more_alternations_than_segments():
    on = lambda i: i % 2 == 0
    omega = sum(
        (gj.interval(1.0, i, i, unit="step") for i in range(0, 24, 2)), gj.schedules.constant(0.0)
    )
    denoise, traces, calls = _counting()
    times = gj.uniform_times(24)
    got = _sample(omega, denoise=denoise, times=times)
    jax.effects_barrier()
    assert len(traces) == 3  # one scan with a gate, not 24
    assert calls.count(MODEL.null) == 12
    want = _by_hand(lambda i: 1.0 if on(i) else 0.0, times=times)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_sweeping_an_interval_copies_no_parameters():
    width, sweep = 64, 5
    params = jax.random.normal(KEY, (width, width)) / 8
    network = lambda params, x, t, cond: jnp.tanh(x @ params) * cond[:, None]
    denoise = gj.denoiser(network, PROCESS, params=params)
    noise = jax.random.normal(KEY, (2, width))

    def run(lo):
        return sample(
            KEY, denoise, PROCESS, noise, cond=jnp.ones(2), uncond=0.5, times=TIMES,
            guidance=gj.guidance(gj.cfg, omega=gj.interval(1.0, lo, 0.9)),
        )  # fmt: skip

    los = jnp.linspace(0.1, 0.8, sweep)
    assert f"{sweep},{width},{width}" not in str(jax.make_jaxpr(jax.vmap(run))(los))
    want = jnp.stack([run(lo) for lo in los])
    np.testing.assert_allclose(jax.vmap(run)(los), want, rtol=1e-4, atol=1e-5)


# Gradients.


@pytest.mark.slow
@pytest.mark.parametrize("rule", [gj.cfg, gj.adg])
def test_gradient_in_omega_is_the_finite_difference(x64, rule):
    noise = NOISE.astype(jnp.float64)
    total = lambda omega: _sample(
        noise=noise, guidance=gj.guidance(rule, omega=omega), times=gj.uniform_times(8),
        solver=gj.ddim(churn=0.3),
    ).sum()  # fmt: skip
    h = 1e-5
    difference = (total(0.7 + h) - total(0.7 - h)) / (2 * h)
    assert abs(difference) > 1e-3
    np.testing.assert_allclose(jax.grad(total)(0.7), difference, rtol=1e-6)
    each = jax.jacobian(lambda w: _sample(w, noise=noise).sum(axis=1))(jnp.full(BATCH, 0.7))
    assert np.count_nonzero(each - np.diag(np.diag(each))) == 0


@pytest.mark.slow
def test_gradient_through_an_interval_and_under_vmap():
    total = lambda omega, lo: _sample(gj.interval(omega, lo, 0.8)).sum()
    grads = jax.vmap(jax.grad(total), in_axes=(None, 0))(1.0, jnp.array([0.2, 0.6]))
    want = [jax.grad(total)(1.0, lo) for lo in (0.2, 0.6)]
    np.testing.assert_allclose(grads, want, rtol=1e-4)


@pytest.mark.slow
def test_gradient_in_parameters_held_by_a_closure():
    total = lambda scale: sample(
        KEY, lambda x, t, cond: scale * EXACT(x, t, cond), PROCESS, NOISE, cond=LABELS, times=TIMES
    ).sum()
    h = 1e-2
    difference = (total(1.0 + h) - total(1.0 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(total)(1.0), difference, rtol=1e-2)


# Many devices.


def _tensors(key):
    """A run that uses the keys, the interval and a rule of norms."""
    return {
        "key": key,
        "guidance": gj.guidance(gj.adg, omega=gj.interval(0.8, 0.2, 0.8)),
        "solver": gj.ddim(churn=0.5),
    }


@pytest.mark.parametrize("split", [True, False], ids=["key_of_each_sample", "one_key"])
def test_mesh_doesn_t_change_the_samples(mesh, split):
    if split and mesh.axis_types == (AxisType.Explicit,) and jax.__version_info__ < (0, 10):
        pytest.skip("before 0.10, JAX draws nothing from keys that lie along an explicit axis")
    # Sums and products alone, 32 numbers on each device: a function that XLA computes otherwise
    # for a vector than for what is left of one differs in the last bit, whatever the sampler does.
    keys, noise = jax.random.split(KEY, 64), jax.random.normal(KEY, (64, 4))
    labels = jnp.arange(64) % 3 * 1.0
    linear = lambda x, t, cond: 0.5 * x + cond[:, None]
    run = lambda key, noise, labels: _sample(
        gj.interval(0.8, 0.2, 0.8), key=key, noise=noise, cond=labels, denoise=linear,
        solver=gj.ddim(churn=0.5),
    )  # fmt: skip
    rows = NamedSharding(mesh, P("data"))
    key = keys if split else KEY
    want = np.asarray(run(key, noise, labels))
    with jax.set_mesh(mesh):
        key = jax.device_put(key, rows) if split else key
        got = run(key, *jax.device_put((noise, labels), rows))
    assert got.sharding.is_equivalent_to(rows, 2)
    if split:
        np.testing.assert_array_equal(got, want)
    else:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_no_mesh_need_be_in_scope(mesh):
    """What lies on a mesh stays there; the null condition, given once for all, joins it."""
    noise, labels = jax.random.normal(KEY, (64, 4)), jnp.arange(64) % 3 * 1.0
    network = lambda x, t, cond: 0.5 * x + cond[:, None]
    denoise = gj.denoiser(network, PROCESS, "velocity")
    run = lambda noise, labels: gj.sample(
        KEY, denoise, noise, cond=labels, uncond=0.0, guidance=gj.guidance(gj.adg, omega=0.8),
        times=TIMES,
    )  # fmt: skip
    rows = NamedSharding(mesh, P("data"))
    got = run(*jax.device_put((noise, labels), rows))
    assert got.sharding.is_equivalent_to(rows, 2)
    np.testing.assert_allclose(got, run(noise, labels), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_mesh_with_a_network_and_a_learned_omega(mesh):
    denoise = _linen()
    net = gj.OmegaNet(num_classes=2, hidden=8)
    phi = net.init(KEY)
    want = np.asarray(_sample(denoise=denoise, guidance=gj.guidance(omega=net.weight(phi))))
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    noise, labels = jax.device_put((NOISE, LABELS), rows)
    denoise, phi = jax.device_put((denoise, phi), whole)
    run = jax.jit(
        lambda d, phi, x, y: _sample(
            denoise=d, noise=x, cond=y, guidance=gj.guidance(omega=net.weight(phi))
        )
    )
    with jax.set_mesh(mesh):
        got = run(denoise, phi, noise, labels)
        text = run.lower(denoise, phi, noise, labels).compile().as_text()
    assert got.sharding.is_equivalent_to(rows, 2)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text


def test_mesh_with_an_omega_of_each_sample(mesh):
    rows = NamedSharding(mesh, P("data"))
    omega = jnp.linspace(0, 2, BATCH)
    want = np.asarray(_sample(omega))
    noise, labels, omega = jax.device_put((NOISE, LABELS, omega), rows)
    with jax.set_mesh(mesh):
        got = _sample(omega, noise=noise, cond=labels)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_shard_map(mesh):
    keys = jax.random.split(KEY, BATCH)
    want = np.asarray(_sample(noise=NOISE, cond=LABELS, **_tensors(keys)))
    run = jax.shard_map(
        lambda keys, x, y: _sample(noise=x, cond=y, **_tensors(keys)),
        mesh=mesh, in_specs=P("data"), out_specs=P("data"),
    )  # fmt: skip
    rows = NamedSharding(mesh, P("data"))
    with jax.set_mesh(mesh):
        got = jax.jit(run)(*jax.device_put((keys, NOISE, LABELS), rows))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.devices
def test_pmap():
    keys = jax.random.split(KEY, BATCH)
    want = _sample(noise=NOISE, cond=LABELS, **_tensors(keys))
    cut = lambda v: v.reshape(8, 1, *v.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = jax.pmap(lambda k, x, y: _sample(noise=x, cond=y, **_tensors(k)))(
            cut(keys), cut(NOISE), cut(LABELS)
        )
    np.testing.assert_allclose(np.asarray(got).reshape(BATCH, 2), want, rtol=1e-5, atol=1e-6)


# Wrong input.


def _never(x, t, cond):
    raise AssertionError("the network was traced before the input was checked")


NET = gj.OmegaNet(num_classes=2, hidden=4)
PHI = NET.init(KEY)
NAN_PHI = jax.tree.map(lambda v: v * jnp.nan, PHI)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"times": TIMES[::-1]}, "times must fall"),
        ({"times": jnp.array([1.0, 0.5, 0.5, 0.0])}, "times must fall"),
        ({"times": jnp.array([1.0, jnp.nan, 0.0])}, r"times must lie in \[0, 1\]"),
        ({"times": jnp.array([999.0, 500.0, 0.0])}, r"times must lie in \[0, 1\]"),
        ({"times": jnp.array([1.0])}, "steps ≥ 1"),
        ({"times": jnp.ones((3, 2, 2))}, "steps ≥ 1"),
        ({"times": jnp.tile(TIMES[:, None], (1, 3))}, "batch of 8"),
        ({"cond": LABELS[:3]}, r"cond has shape \(3,\).*8"),
        ({"cond": 1}, r"cond has shape \(\)"),
        ({"noise": jnp.float32(1.0)}, "leading batch axis"),
        ({"noise": {"a": NOISE, "b": NOISE[:2]}}, r"one batch size.*\[2, 8\]"),
        ({"key": jax.random.split(KEY, 3)}, r"one key or \(8,\) keys.*\(3,\)"),
        ({"uncond": None}, "needs the branch 'uncond'"),
        ({"uncond": jnp.zeros(3, int)}, r"uncond has shape \(3,\)"),
        ({"omega": jnp.ones(3)}, r"omega has shape \(3,\).*\(8,\)"),
        ({"omega": jnp.ones((8, 3))}, r"omega has shape \(8, 3\)"),
        ({"omega": lambda s, t, cond: jnp.ones(3)}, r"omega has shape \(3,\)"),
        ({"omega": NET.weight(NAN_PHI)}, "omega is NaN"),
        (
            {"omega": NET.weight(PHI), "cond": LABELS + 1},
            "label 2 is out of range; expected 0 to 1",
        ),
        ({"omega": NET.weight(PHI), "cond": LABELS - 1}, "label -1 is out of range"),
        ({"omega": 2 * NET.weight(PHI), "cond": LABELS + 1}, "label 2 is out of range"),
        ({"omega": NET.weight(PHI), "cond": LABELS[:, None] * 1.0}, "OmegaNet|class ids|labels"),
        ({"guidance": gj.guidance(gj.cfg, 1.0, mask=jnp.ones(3))}, r"mask has shape \(3,\)"),
        (
            {"guidance": gj.guidance(gj.adg, 1.0, max_angle=jnp.ones(3))},
            r"adg's max_angle has shape \(3,\)",
        ),
        ({"denoise": gj.denoiser(_never, PROCESS, "eps")}, "α is 0.*start lower"),
    ],
)
def test_wrong_input(kwargs, match):
    kwargs = {"denoise": gj.denoiser(_never, PROCESS), **kwargs}
    with pytest.raises(ValueError, match=match):
        _sample(**kwargs)


def test_wrong_input_under_jit():
    with pytest.raises(ValueError, match="times must fall"):
        jax.jit(lambda x: _sample(noise=x, times=gj.uniform_times(4)[::-1]))(NOISE)
    with pytest.raises(ValueError, match="α is 0"):
        jax.jit(lambda x: _sample(noise=x, denoise=gj.denoiser(_never, PROCESS, "eps")))(NOISE)
    with pytest.raises(ValueError, match="omega has shape"):
        jax.jit(lambda w: _sample(w))(jnp.ones(3))


def test_infinite_ends_are_no_error():
    weight = gj.schedules.constant(1.0).clip(hi=np.inf) * gj.interval(
        1.0, -np.inf, np.inf, unit="log_snr"
    )
    np.testing.assert_array_equal(_sample(weight), _sample(lambda s, t, cond: 1.0))


def test_wrong_network():
    with pytest.raises(ValueError, match="the network returned shape"):
        _sample(denoise=lambda x, t, cond: x[:, :1])

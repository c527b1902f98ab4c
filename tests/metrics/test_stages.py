"""The three stages of guidance, beside the closed forms of the setting that they were proved in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, jaxtyped
from solvers.common import PROCESSES, SOLVERS

import guidejax as gj
from guidejax import analytic
from guidejax.metrics import StageDiagnostics, mean_pairwise_distance, stage_diagnostics

RF, KEY = gj.processes.rectified_flow(), jax.random.key(0)
MODEL = analytic.stagewise()  # modes (∓1.5, 1.5) of weights .3 and .7, σ_y = .3
DENOISE = analytic.denoiser(MODEL, RF)
MODES, MEAN = MODEL.components.means[:2], np.array([0.6, 1.5])
HALF = jax.random.normal(jax.random.key(1), (16, 2))
NOISE = jnp.concatenate([HALF, -HALF])  # of mean 0
STEPS, N = 12, 32
# A first step that is all but none: there the theorem's expansion is exact.
TIMES = np.concatenate([[1.0], gj.uniform_times(STEPS - 1, 0.999)]).astype(np.float32)


def measure(weight, noise=NOISE, denoise=DENOISE, **options):
    options = {
        "cond": jnp.zeros(noise.shape[0], int), "uncond": MODEL.null, "samples": N,
        "times": TIMES, "modes": MODES, "perturb": [8], "guidance": gj.guidance(gj.cfg, weight),
        **options,
    }  # fmt: skip
    return stage_diagnostics(KEY, denoise, noise, **options)


def leaves(found):
    """Every array but the modes' shares and what is the same of all runs, by name."""
    return {k: v for k, v in found._asdict().items() if v is not None and k not in ("t", "s")}


# What is true of the paper's setting


@pytest.mark.slow
def test_direction_shift_is_the_theorem_s():
    """Theorem 3.2, and its first order: the gap is 2 ω (1 + ω) ‖μ̄‖² (1 − t)."""
    for omega in (1.0, 2.0, 4.0):
        found = measure(omega)
        np.testing.assert_allclose(found.mean[0], MEAN, rtol=1e-6)
        np.testing.assert_allclose(found.omega, [omega], rtol=1e-6)
        assert np.all(found.guided_distance[:5] < found.cond_distance[:5])
        gap = (found.cond_distance - found.guided_distance)[0, 0]
        np.testing.assert_allclose(gap, 2 * omega * (1 + omega) * (MEAN @ MEAN) * 0.001, rtol=0.02)
        np.testing.assert_allclose(found.cosine[0], 1, rtol=1e-4)
        assert np.all(np.diff(found.norm_growth[:4, 0]) > 0)
        assert np.all(found.norm_growth[1:6] > 1)


def test_the_weak_mode_starves_and_modes_narrow():
    found = [measure(omega) for omega in (1.0, 2.0, 4.0)]
    weak = [float(each.guided_shares[-1, 0, 0]) for each in found]
    assert weak[0] > weak[1] > weak[2]
    assert weak[0] < found[0].cond_shares[-1, 0, 0]
    for each in found:
        np.testing.assert_allclose(each.guided_shares.sum(-1), 1, rtol=1e-6)
        assert each.growth_ratio[0, 0] < 1
        assert each.spread_ratio[-1, 0] < 1
    growth = [float(each.growth_ratio[0, 0]) for each in found]
    assert growth[0] > growth[1] > growth[2]


def test_without_guidance_nothing_differs():
    found = measure(0.0)
    for ratio in (found.norm_growth, found.spread_ratio, found.growth_ratio):
        np.testing.assert_array_equal(ratio, 1)
    np.testing.assert_array_equal(found.guided_distance, found.cond_distance)
    np.testing.assert_array_equal(found.guided_shares, found.cond_shares)
    np.testing.assert_array_equal(found.cosine, 0)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["ddim", "heun", "ddim churn"])
def test_without_guidance_nothing_differs_under_jit_either(solver):
    """Nor where noise is drawn: all runs draw the same."""
    found = jax.jit(lambda omega: measure(omega, solver=SOLVERS[solver](), perturb=[3, 8]))(0.0)
    for ratio in (found.norm_growth, found.spread_ratio, found.growth_ratio):
        np.testing.assert_allclose(ratio, 1, rtol=1e-5)


@jaxtyped(typechecker=beartype)
def typed(
    found: StageDiagnostics,
    t: Float[Array, " T"],
    s: Float[Array, " T"],
    mean: Float[Array, "C ..."],
    omega: Float[Array, " C"],
    of_steps: list[Float[Array, "T C"]],
    shares: list[Float[Array, "T C k"]],
    perturbed_t: Float[Array, " P"],
    of_kicks: list[Float[Array, "P C"]],
) -> None:
    """Every field, in the shapes that the docstring says."""
    count = 7 + len(of_steps) + len(shares) + len(of_kicks) - 2
    assert len(found) == count


def test_shapes_times_and_kept_steps():
    found = measure(2.0)
    typed(
        found, found.t, found.s, found.mean, found.omega, list(found[4:11]),
        [found.guided_shares, found.cond_shares], found.perturbed_t, list(found[14:]),
    )  # fmt: skip
    np.testing.assert_array_equal(found.t, TIMES[:-1])
    np.testing.assert_array_equal(found.s, TIMES[1:])
    np.testing.assert_array_equal(found.perturbed_t, TIMES[[8]])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))


@pytest.mark.slow
@pytest.mark.parametrize("keep", [[0, 3, 11], [4, -1]])
def test_kept_steps_are_those_of_all(keep):
    whole, some = measure(2.0), measure(2.0, keep=keep)
    for name, value in leaves(whole).items():
        want = value[np.asarray(keep)] if value.shape[0] == STEPS else value
        np.testing.assert_allclose(getattr(some, name), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(some.t, TIMES[:-1][keep])


# Beside arithmetic by hand


def _bends(x, t, cond):
    x = x.reshape(6, 4)
    x0 = x / (5 + 5 * t[:, None]) + jnp.tanh(x / 20 + cond[:, None])
    return x0.reshape(6, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_every_field_by_hand(process):
    process = PROCESSES[process]
    n, weight = 3, gj.schedules.clamp_linear(1.5)  # 0 at t = 1
    noise = gj.processes.initial_noise(KEY, process, (6, 2, 2))
    cond = jnp.repeat(jnp.array([0.4, -1.0]), n)
    denoise = gj.denoiser(_bends, process)
    times = gj.uniform_times(5)
    common = {"cond": cond, "uncond": 0.0, "times": times}
    modes = np.random.default_rng(0).normal(size=(2, 4, 2, 2)).astype(np.float32)
    runs = [
        gj.sample(KEY, denoise, noise, guidance=gj.guidance(gj.cfg, w), keep="all", **common)[1]
        for w in (weight, 0.0)
    ]
    found = stage_diagnostics(
        KEY, denoise, noise, guidance=gj.guidance(gj.cfg, weight), samples=n, modes=modes, **common
    )
    shape = np.asarray(process.alpha(times) + process.sigma(times))
    clock = np.asarray(process.sigma(times)) / shape
    table = np.asarray(weight.table(times, process=process))
    target = table @ np.diff(clock) / (clock[-1] - clock[0])
    mean = np.asarray(runs[1].x0[0]).reshape(2, n, 4).mean(1)
    np.testing.assert_allclose(found.mean.reshape(2, 4), mean, rtol=1e-5)
    np.testing.assert_allclose(found.omega, target, rtol=1e-5)
    flat = [np.asarray(r.x, float).reshape(5, 2, n, 4) / shape[1:, None, None, None] for r in runs]
    norms = [np.linalg.norm(x, axis=-1).mean(-1) for x in flat]
    far = [((x - (1 + target) * mean[:, None]) ** 2).sum(-1).mean(-1) for x in flat]
    np.testing.assert_allclose(found.guided_distance, far[0], rtol=1e-4)
    np.testing.assert_allclose(found.cond_distance, far[1], rtol=1e-4)
    np.testing.assert_allclose(found.norm_growth, norms[0] / norms[1], rtol=1e-4)
    moved = flat[0] - flat[1]
    length = np.linalg.norm(moved, axis=-1)
    cosine = (moved * mean[:, None]).sum(-1) / np.where(length == 0, 1, length)
    cosine = (cosine / np.linalg.norm(mean, axis=-1)[:, None]).mean(-1)
    np.testing.assert_allclose(found.cosine, cosine, rtol=2e-3, atol=1e-3)
    for kind, run in zip(("guided", "cond"), runs, strict=True):
        x0 = np.asarray(run.x0).reshape(5, 2, n, 4)
        want = [[float(mean_pairwise_distance(group)) for group in step] for step in x0]
        np.testing.assert_allclose(getattr(found, f"{kind}_spread"), want, rtol=1e-4)
        away = ((x0[:, :, :, None] - modes.reshape(2, 1, 4, 4)) ** 2).sum(-1)
        want = np.eye(4)[away.argmin(-1)].mean(2)
        np.testing.assert_allclose(getattr(found, f"{kind}_shares"), want, atol=1e-6)


# Concentration, where the flow is linear and its rate known


def _gaussian(process, std=0.5):
    return analytic.denoiser(analytic.stagewise([[1.0]], [1.0], std), process)


def _one_mode(omega, times, process=RF, **options):
    noise = process.sigma(times[0]) * jax.random.normal(KEY, (4, 1))
    return measure(
        omega, noise, _gaussian(process), samples=4, uncond=1, times=times,
        **{"modes": None, **options},
    )  # fmt: skip


def _shrink(std, omega, t):
    """δ_0/δ_t of a mode for a constant ω, of rectified flow, and its ratio to that of ω = 0."""
    rho = (t / (1 - t)) ** 2
    ratio = (std**2 / ((std**2 + rho) / (1 + rho))) ** (omega / 2)
    return ratio * std / np.sqrt((1 - t) ** 2 * std**2 + t**2), ratio


@pytest.mark.slow
@pytest.mark.parametrize("omega", [2.0, -0.5])
def test_growth_of_one_mode(x64, omega):
    times, at = gj.uniform_times(120), [0, 20, 60, 100]
    found = _one_mode(omega, times, solver=gj.solvers.rk4(), perturb=at)
    for i, k in list(enumerate(at))[1:]:
        growth, ratio = _shrink(0.5, omega, times[k])
        np.testing.assert_allclose(found.growth_ratio[i], ratio, rtol=1e-5)
        np.testing.assert_allclose(found.guided_growth[i], growth, rtol=1e-5)
        np.testing.assert_allclose(found.cond_growth[i], growth / ratio, rtol=1e-5)
    # From pure noise it is the whole run's, whose samples have width σ_y^(1 + ω).
    np.testing.assert_allclose(found.guided_growth[0], 0.5 ** (1 + omega), rtol=1e-5)
    np.testing.assert_allclose(found.spread_ratio[-1], 0.5**omega, rtol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_growth_of_every_process_and_a_schedule_of_the_whole_grid(x64, process):
    """A budget over the grid stays one over the whole grid, wherever the path is perturbed."""
    process, times = PROCESSES[process], gj.uniform_times(1500, 0.95, 0.05)
    weight = gj.schedules.triangular(2.0)
    found = _one_mode(weight, times, process, perturb=[600])
    table = weight.table(times, process=process)[600:]
    signal, noise = process.alpha(times[600:]) ** 2, process.sigma(times[600:]) ** 2
    b, a = signal * 0.25 + noise, signal + noise
    log_ratio = np.log(np.asarray(b)) - np.log(np.asarray(a))
    want = np.exp(np.sum(np.asarray(table) * np.diff(log_ratio)) / 2)
    np.testing.assert_allclose(found.growth_ratio[0], want, rtol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "unipc"])
def test_growth_by_every_solver(solver):
    found = _one_mode(1.0, gj.uniform_times(100), perturb=[40, 70], solver=SOLVERS[solver]())
    for i, k in enumerate([40, 70]):
        _, ratio = _shrink(0.5, 1.0, 1 - k / 100)
        np.testing.assert_allclose(found.growth_ratio[i], ratio, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("delta", [1e-3, 1.0])
def test_growth_of_a_linear_flow_doesn_t_depend_on_delta(x64, delta):
    times = gj.uniform_times(20)
    got = _one_mode(1.0, times, delta=delta, perturb=[10]).guided_growth
    np.testing.assert_allclose(got, _one_mode(1.0, times, perturb=[10]).guided_growth, rtol=1e-9)


# Programs


def _traced():
    calls = []

    def network(params, x, t, cond):
        calls.append(1)
        return jnp.tanh(x * params + cond[:, None])

    return network, calls


@pytest.mark.slow
def test_new_numbers_compile_nothing():
    network, calls = _traced()

    def go(omega, scale, delta, key):
        denoise = gj.denoiser(network, RF, params=scale)
        return stage_diagnostics(
            key, denoise, jax.random.normal(key, (4, 3)), cond=jnp.zeros(4), uncond=1.0, samples=2,
            guidance=gj.guidance(gj.cfg, omega), times=gj.uniform_times(6), delta=delta,
        )  # fmt: skip

    one = go(1.0, 0.5, 0.01, KEY)
    count = len(calls)
    assert count <= 16  # four programs: guided and not, perturbed and not
    two = go(3.0, 0.7, 0.1, jax.random.key(5))
    assert len(calls) == count
    assert not np.allclose(one.guided_distance, two.guided_distance)


@pytest.mark.slow
def test_jit_and_vmap():
    omegas = jnp.array([0.5, 3.0])
    go = lambda omega: measure(omega, perturb=[2, 8])
    swept = jax.jit(jax.vmap(go))(omegas)
    for i, omega in enumerate(omegas):
        alone = go(float(omega))
        for name, value in leaves(alone).items():
            got = getattr(swept, name)[i]
            # At t = 1 the spread of x̂0 is rounding.
            if "spread" in name:
                got, value = got[1:], value[1:]
            np.testing.assert_allclose(got, value, rtol=2e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_conditions_are_by_themselves():
    """Two conditions at once are each of them alone, keys, ω and all."""
    model = analytic.by_class(analytic.mixture([[-2.0, 0.0], [2.0, 1.0]], stds=0.5), [0, 1])
    denoise, keys = analytic.denoiser(model, RF), jax.random.split(KEY, 8)
    noise = jax.random.normal(jax.random.key(3), (8, 2))
    cond, omega = jnp.repeat(jnp.arange(2), 4), jnp.repeat(jnp.array([1.0, 3.0]), 4)

    def go(part):
        return stage_diagnostics(
            keys[part], denoise, noise[part], cond=cond[part], uncond=model.null, samples=4,
            guidance=gj.guidance(gj.cfg, omega[part]), times=gj.uniform_times(6), perturb=[1, 4],
            solver=gj.ddim(0.5), mean=jnp.array([1.0, -1.0]), modes=jnp.eye(2),
        )  # fmt: skip

    both, halves = go(slice(None)), [go(slice(0, 4)), go(slice(4, 8))]
    for name, value in leaves(both).items():
        axis = 0 if name in ("mean", "omega") else 1
        if name != "perturbed_t":
            want = np.concatenate([getattr(half, name) for half in halves], axis)
            np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(both.omega, [1.0, 3.0])


@pytest.mark.slow
def test_on_a_mesh(mesh):
    rows = NamedSharding(mesh, P("data"))
    cond = jnp.zeros(N, int)
    want = measure(2.0)
    noise, cond = jax.device_put((NOISE, cond), rows)
    with jax.set_mesh(mesh):
        got = measure(2.0, noise, cond=cond)
    for name, value in leaves(want).items():
        if "spread" not in name:
            np.testing.assert_allclose(
                getattr(got, name), value, rtol=1e-3, atol=1e-4, err_msg=name
            )


# What it takes


@pytest.mark.slow
def test_pytrees_are_their_leaves_side_by_side():
    bend = lambda x, t, c: jax.tree.map(lambda leaf: jnp.tanh(leaf * (1 + t[:, None])), x)
    whole, noise = jax.random.normal(KEY, (6, 3)), {}
    noise = {"a": whole[:, :2], "b": whole[:, 2:]}
    modes = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    options = {
        "cond": jnp.zeros(6), "uncond": 0.0, "samples": 3, "times": gj.uniform_times(4),
        "guidance": gj.guidance(gj.cfg, 1.0), "perturb": (),
    }  # fmt: skip
    denoise = gj.denoiser(bend, RF)
    want = stage_diagnostics(KEY, denoise, whole, modes=modes, mean=modes[0], **options)
    split = lambda a: {"a": a[..., :2], "b": a[..., 2:]}
    got = stage_diagnostics(
        KEY, denoise, noise, modes=split(modes), mean=split(modes[0]), **options
    )
    np.testing.assert_array_equal(got.mean["b"], want.mean[:, 2:])
    assert got.growth_ratio.shape == (0, 2)
    for name, value in leaves(want).items():
        if name != "mean":
            np.testing.assert_allclose(getattr(got, name), value, rtol=1e-5, err_msg=name)
    kicked = stage_diagnostics(KEY, denoise, noise, **options | {"perturb": [2]})
    assert np.all(np.isfinite(kicked.growth_ratio))


def _seeing(params, step):
    gap = step.predictions["cond"] - step.predictions["uncond"]
    return params * jnp.sum(gap**2, axis=-1)


@pytest.mark.slow
def test_weights_that_see_learn_and_rules_with_state():
    sees = gj.Weight(jnp.array(0.3), _seeing, None, True)
    found = measure(sees)
    assert found.omega[0] > 0
    with pytest.raises(ValueError, match="keep='all'"):
        measure(sees, keep=[0, 3])
    assert measure(sees, keep=[0, 3], omega=2.0).omega.tolist() == [2.0]
    net = gj.OmegaNet(num_classes=2)
    learned = measure(0.0, guidance=gj.guidance(gj.cfg, net.weight(net.init(KEY))))
    np.testing.assert_allclose(learned.omega, 1.0, rtol=0.1)  # where it starts
    for rule in (gj.rules.apg_momentum, gj.adg):
        found = measure(0.0, guidance=gj.guidance(rule, 2.0))
        assert np.all(np.isfinite(found.growth_ratio))
        assert np.any(found.guided_distance != found.cond_distance)
    renoised = measure(1.0, guidance=gj.guidance(gj.cfg, 1.0), solver=SOLVERS["cfgpp ddim"]())
    assert np.all(np.isfinite(renoised.growth_ratio))


@pytest.mark.slow
def test_assign_is_modes_by_a_function():
    nearest = lambda x0: jax.nn.one_hot(analytic.nearest_mode(x0, MODES), 2)
    got, want = measure(2.0, modes=None, assign=nearest), measure(2.0)
    np.testing.assert_allclose(got.guided_shares, want.guided_shares, atol=1e-6)
    np.testing.assert_allclose(got.cond_shares, want.cond_shares, atol=1e-6)
    with pytest.raises(ValueError, match="one-hot"):
        measure(2.0, modes=None, assign=lambda x0: jnp.argmax(x0, axis=1))


@pytest.mark.slow
def test_bfloat16_is_finite():
    found = measure(2.0, NOISE.astype(jnp.bfloat16), delta=0.2)
    want = measure(2.0, delta=0.2)
    for leaf in jax.tree.leaves(found):
        assert leaf.dtype == jnp.float32
        assert np.all(np.isfinite(leaf))
    np.testing.assert_allclose(found.guided_distance, want.guided_distance, rtol=0.1)
    np.testing.assert_allclose(found.growth_ratio, want.growth_ratio, rtol=0.3, atol=0.05)


@pytest.mark.slow
def test_one_sample_and_no_mean():
    """Of one sample there is no spread; where μ̄ = 0 nothing points to it."""
    found = measure(2.0, samples=1, mean=jnp.zeros(2))
    for name, value in leaves(found).items():
        np.testing.assert_array_equal(np.isnan(value), "spread" in name, err_msg=name)
    np.testing.assert_array_equal(found.cosine, 0)
    balanced = analytic.stagewise([[-1.5, 0.0], [1.5, 0.0]], [0.5, 0.5])
    found = measure(
        2.0, denoise=analytic.denoiser(balanced, RF), modes=balanced.components.means[:2]
    )
    np.testing.assert_allclose(found.mean, 0, atol=1e-6)
    np.testing.assert_allclose(found.guided_distance[0], found.cond_distance[0], rtol=1e-4)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


@pytest.mark.slow
def test_a_network_that_knows_its_answer():
    """Where both runs end in one point, both growths are 0 and neither is less."""
    denoise = gj.denoiser(lambda x, t, c: 0 * x + c[:, None], RF)
    found = measure(2.0, denoise=denoise, cond=jnp.ones(N), uncond=1.0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    np.testing.assert_array_equal(found.guided_growth, 0)
    np.testing.assert_array_equal(found.growth_ratio, 1)
    np.testing.assert_array_equal(found.spread_ratio, 1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"samples": 5}, "no multiple"),
        ({"samples": 0}, "samples is 0"),
        ({"cond": jnp.arange(N) % 2}, "jnp.repeat"),
        ({"times": TIMES[::-1]}, "fall"),
        ({"times": np.stack([TIMES] * N, 1)}, "one grid"),
        ({"perturb": [0.5]}, "indices"),
        ({"perturb": [STEPS]}, "rising indices"),
        ({"perturb": [3, 1]}, "rising indices"),
        ({"keep": "final"}, "keep='final'"),
        ({"keep": [3, 1]}, "rising"),
        ({"delta": 0.0}, "positive"),
        ({"delta": np.ones(3)}, "positive"),
        ({"delta": np.nan}, "delta holds NaN"),
        ({"assign": lambda x0: x0}, "not both"),
        ({"modes": jnp.ones(2)}, "modes has shape"),
        ({"modes": jnp.ones((3, 2, 2))}, "modes has shape"),
        ({"modes": [jnp.ones((2, 2))]}, "structure"),
        ({"mean": jnp.ones(3)}, "mean has shape"),
        ({"mean": jnp.array([jnp.nan, 0.0])}, "mean holds NaN"),
        ({"omega": jnp.ones(3)}, "omega has shape"),
        ({"omega": jnp.nan}, "omega holds NaN"),
        ({"guidance": 3.0}, "expected a guidance"),
        ({"solver": gj.ddim}, "call it"),
        ({"uncond": None}, "uncond"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(options, match):
    with pytest.raises(ValueError, match=match):
        measure(2.0, **options)
    with pytest.raises(ValueError, match="expected a denoiser"):
        measure(2.0, denoise=lambda x, t, c: x)

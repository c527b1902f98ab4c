import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax import analytic
from guidejax import processes as pr

PROCESSES = {
    "rectified_flow": pr.rectified_flow,
    "cosine": pr.cosine,
    "linear_vp": pr.linear_vp,
    "edm": pr.edm,
    "edm_linear": lambda: pr.edm(sigma_max=5.0, rho=1.0),
}
CHURNS = (0.0, 0.3, 0.7, 1.0)


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]()


def _truth(process, t):
    """x_t and every prediction of one (x0, ε), written from the definitions."""
    rng = np.random.default_rng(0)
    x0, eps = rng.normal(size=(2, len(t), 3))
    alpha, sigma = (np.asarray(c)[:, None] for c in (process.alpha(t), process.sigma(t)))
    return alpha * x0 + sigma * eps, {
        "x0": x0,
        "eps": eps,
        "v": alpha * eps - sigma * x0,
        "velocity": eps - x0,
        "score": -eps / sigma,
    }


@pytest.mark.parametrize("source", pr.PREDICTIONS)
def test_conversions_in_every_direction(x64, process, source):
    t = np.array([0.2, 0.5, 0.9])
    x, truth = _truth(process, t)
    x = jnp.asarray(x)
    for target in pr.PREDICTIONS:
        got = pr.convert(jnp.asarray(truth[source]), x, t, process, source, target)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, truth[target], rtol=1e-9, atol=1e-9, err_msg=target)
        back = pr.convert(got, x, t, process, target, source)
        np.testing.assert_allclose(back, truth[source], rtol=1e-9, atol=1e-9, err_msg=target)


def test_noise_to(process):
    t = jnp.array([0.1, 0.8])
    x0, eps = jnp.ones((2, 2, 2)), jnp.full((2, 2, 2), 2.0)
    states = [{"image": v, "text": v[:, 0]} for v in (x0, eps)]
    got = pr.noise_to(process, states[0], t, states[1])
    want = process.alpha(t) + 2 * process.sigma(t)
    np.testing.assert_allclose(got["image"], np.broadcast_to(want[:, None, None], (2, 2, 2)))
    np.testing.assert_allclose(got["text"], np.broadcast_to(want[:, None], (2, 2)))
    low = pr.noise_to(process, x0.astype(jnp.bfloat16), t, eps.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16


@pytest.mark.slow
def test_ends(process):
    assert float(process.alpha(0.0)) == 1
    assert float(process.sigma(0.0)) == 0
    grid = jnp.linspace(0, 1, 101)
    assert np.all(np.isfinite(process.alpha(grid)) & np.isfinite(process.sigma(grid)))
    assert np.all(np.diff(process.sigma(grid)) > 0)
    assert np.all(np.diff(process.log_snr(grid[1:-1])) < 0)
    assert float(process.log_snr(0.0)) == np.inf


@pytest.mark.parametrize("name", ["rectified_flow", "cosine"])
def test_pure_noise_at_one(name):
    process = PROCESSES[name]()
    assert float(process.alpha(1.0)) == 0
    assert float(process.sigma(1.0)) == 1
    assert float(process.log_snr(1.0)) == -np.inf
    assert float(process.inverse_log_snr(-jnp.inf)) == 1
    assert float(process.inverse_log_snr(jnp.inf)) == 0


def test_log_snr_and_its_inverse(x64, process):
    t = jnp.linspace(0.01, 0.99, 25)
    log_snr = process.log_snr(t)
    want = 2 * np.log(process.alpha(t) / process.sigma(t))
    np.testing.assert_allclose(log_snr, want, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(process.inverse_log_snr(log_snr), t, rtol=1e-9)
    again = process.log_snr(process.inverse_log_snr(log_snr))
    np.testing.assert_allclose(again, log_snr, rtol=1e-9, atol=1e-12)


def test_log_snr_in_float32(process):
    t = jnp.linspace(0.001, 0.999, 50)
    np.testing.assert_allclose(process.inverse_log_snr(process.log_snr(t)), t, rtol=2e-5)


@pytest.mark.parametrize("churn", CHURNS)
def test_bridge_keeps_the_marginals(x64, process, churn):
    t = np.array([1.0, 1.0, 0.9, 0.5, 0.3, 1e-3])
    s = np.array([0.0, 0.5, 0.89, 0.1, 0.0, 1e-4])
    a, b, c = pr.bridge(process, s, t, churn)
    alpha_t, sigma_t = process.alpha(t), process.sigma(t)
    np.testing.assert_allclose(a * alpha_t + b, process.alpha(s), rtol=1e-12)
    np.testing.assert_allclose(
        a**2 * sigma_t**2 + c**2, process.sigma(s) ** 2, rtol=1e-11, atol=1e-300
    )
    assert np.all(c >= 0)


def test_bridge_at_both_ends_of_churn(x64, process):
    s, t = 0.4, 0.6
    a, _, c = pr.bridge(process, s, t, 0.0)
    assert float(c) == 0
    np.testing.assert_allclose(a, process.sigma(s) / process.sigma(t))
    # DDPM's posterior q(x_s | x_t, x0) of the Markov chain, from Bayes' rule.
    keep = process.alpha(t) / process.alpha(s)
    added = process.sigma(t) ** 2 - keep**2 * process.sigma(s) ** 2
    variance = 1 / (keep**2 / added + 1 / process.sigma(s) ** 2)
    a, b, c = pr.bridge(process, s, t, 1.0)
    np.testing.assert_allclose(c**2, variance, rtol=1e-10)
    np.testing.assert_allclose(a, variance * keep / added, rtol=1e-10)
    np.testing.assert_allclose(b, variance * process.alpha(s) / process.sigma(s) ** 2, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
def test_bridge_by_monte_carlo(process, churn):
    n, s, t, x0 = 200_000, 0.3, 0.6, 1.3
    noise, fresh = jax.random.normal(jax.random.key(0), (2, n))
    x_t = pr.noise_to(process, jnp.full(n, x0), t, noise)
    a, b, c = pr.bridge(process, s, t, churn)
    x_s = a * x_t + b * x0 + c * fresh
    sigma = float(process.sigma(s))
    assert abs(float(x_s.mean()) - float(process.alpha(s)) * x0) < 5 * sigma / n**0.5
    assert abs(float(x_s.var()) / sigma**2 - 1) < 5 * (2 / n) ** 0.5


@pytest.mark.slow
def test_bridge_gradient_without_churn_is_finite(process):
    grads = jax.grad(lambda e: sum(pr.bridge(process, 0.3, 0.6, e)))(0.0)
    assert np.isfinite(grads)


@pytest.mark.parametrize("space", pr.PREDICTIONS)
def test_x0_per_unit_is_the_slope(x64, process, space):
    x, t = jnp.ones((1, 1)), 0.7
    slope = jax.grad(lambda v: pr.to_x0(v, x, t, process, space).sum())(jnp.ones((1, 1)))
    np.testing.assert_allclose(pr.x0_per_unit(process, t, space), slope[0, 0], rtol=1e-12)


def test_x0_per_unit_where_alpha_is_zero():
    assert float(pr.x0_per_unit(pr.rectified_flow(), 1.0, "eps")) == 0
    assert float(pr.x0_per_unit(pr.cosine(), 1.0, "score")) == 0
    assert float(pr.x0_per_unit(pr.cosine(), 1.0, "velocity")) == -1


def test_numbers_are_traced_leaves():
    traces = []

    @jax.jit
    def alpha(process, t):
        traces.append(0)
        return process.alpha(t)

    a, b = alpha(pr.linear_vp(0.1, 20.0), 0.5), alpha(pr.linear_vp(0.2, 10.0), 0.5)
    assert len(traces) == 1
    np.testing.assert_allclose([a, b], np.exp([-0.5 * (0.05 + 19.9 / 8), -0.5 * (0.1 + 9.8 / 8)]))
    grad = jax.grad(lambda p: p.sigma(0.5))(pr.edm(80.0, 7.0))
    np.testing.assert_allclose(grad.sigma_max, 0.5**7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("prediction", pr.PREDICTIONS)
def test_to_x0_keeps_the_dtype(process, prediction, dtype):
    x = jnp.ones((2, 3), dtype)
    x0 = pr.to_x0(x, x, jnp.array([0.3, 0.6]), process, prediction)
    assert x0.dtype == dtype
    assert pr.from_x0(x0, x, 0.5, process, prediction).dtype == dtype


@pytest.mark.parametrize(
    "make",
    [
        lambda: pr.linear_vp(0.0, 1.0),
        lambda: pr.linear_vp(2.0, 1.0),
        lambda: pr.linear_vp(float("nan"), 1.0),
        lambda: pr.edm(sigma_max=-1.0),
        lambda: pr.edm(rho=0.0),
        lambda: pr.to_x0(jnp.ones(1), jnp.ones(1), 0.5, pr.cosine(), "noise"),
        lambda: pr.from_x0(jnp.ones(1), jnp.ones(1), 0.5, pr.cosine(), "noise"),
    ],
)
def test_wrong_input(make):
    with pytest.raises(ValueError, match="expected"):
        make()


def test_no_two_kinds_of_process_share_a_program():
    """Equal treedefs of unequal hash: jit's cache would now and then mistake one for another."""
    kinds = [pr.rectified_flow, pr.cosine, pr.linear_vp, pr.edm]
    for one in kinds:
        same = [jax.tree.structure(one()) == jax.tree.structure(other()) for other in kinds]
        assert same == [other is one for other in kinds]


# Tables.


def _bars(steps=50):
    """Stable Diffusion's ᾱ with fewer steps, by its code: √β evenly spaced."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.12**0.5, steps) ** 2)


def _zero_terminal(bars):
    """Algorithm 1 of 2305.08891, on √ᾱ."""
    root = np.sqrt(bars)
    first, last = root[0], root[-1]
    return ((root - last) * first / (first - last)) ** 2


TABLES = {"sd": _bars(), "zero terminal": _zero_terminal(_bars())}
EACH_TABLE = pytest.mark.parametrize("bars", TABLES.values(), ids=TABLES)


@pytest.mark.slow
@EACH_TABLE
def test_a_table_at_its_entries(x64, bars):
    process, count = pr.discrete(bars), len(bars)
    t = (np.arange(count) + 1) / count
    np.testing.assert_allclose(process.alpha(t) ** 2, bars, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(process.sigma(t) ** 2, 1 - bars, rtol=1e-11, atol=1e-15)
    np.testing.assert_array_equal(process.index(t), np.arange(count))
    np.testing.assert_allclose(process.times(np.arange(count)), t)


@pytest.mark.slow
@EACH_TABLE
def test_a_table_between_its_entries(x64, bars):
    """Linear in the log-SNR; from clean to the first entry σ/α is linear, into zero SNR α/σ is."""
    process, count = pr.discrete(bars), len(bars)
    finite = bars[bars > 0]
    log_snr = np.log(finite / (1 - finite))
    u = np.linspace(1, len(finite), 301)
    want = np.interp(u, np.arange(1, len(finite) + 1), log_snr)
    np.testing.assert_allclose(process.log_snr(u / count), want, rtol=1e-9, atol=1e-9)
    share = np.linspace(0, 1, 11)
    ratio = process.sigma(share / count) / process.alpha(share / count)
    np.testing.assert_allclose(ratio, share * np.sqrt((1 - bars[0]) / bars[0]), rtol=1e-9)
    assert float(process.alpha(0.0)) == 1
    assert float(process.sigma(0.0)) == 0
    if bars[-1] == 0:
        t = (count - 1 + share) / count
        ratio = process.alpha(t) / process.sigma(t)
        start = np.sqrt(bars[-2] / (1 - bars[-2]))
        np.testing.assert_allclose(ratio, (1 - share) * start, rtol=1e-9, atol=1e-12)


def test_the_index_that_a_network_is_told():
    """N t − 1, whole within a rounding of an entry, 0 between clean and the first entry."""
    process = pr.scaled_linear()
    told = []
    denoise = gj.denoiser(lambda x, t, cond: told.append(t) or x, process, time="index")
    t = jnp.array([0.0, 0.0004, 0.001, 0.0015, 0.5, 0.9995, 1.0])
    denoise(jnp.ones((7, 2)), t)
    np.testing.assert_allclose(told[0], [0, 0, 0, 0.5, 499, 998.5, 999], rtol=1e-5, atol=1e-3)
    grid = jnp.arange(1, 1001) / 1000
    np.testing.assert_array_equal(process.index(grid), np.arange(1000))
    # As a sampler's loop has them, in float32: any of diffusers' leading grids of 50.
    leading = np.arange(0, 1000, 20)[::-1] + 1
    np.testing.assert_array_equal(process.index(process.times(leading)), leading)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@EACH_TABLE
def test_a_table_s_inverse(bars, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        process = pr.discrete(bars)
        t = jnp.linspace(0, 1, 401, dtype=dtype)
        back = jax.jit(lambda t: process.inverse_log_snr(process.log_snr(t)))(t)
        assert back.dtype == dtype
        np.testing.assert_allclose(back, t, rtol=2e-5 if dtype == jnp.float32 else 1e-10, atol=1e-7)
        wanted = jnp.asarray([-jnp.inf, -200.0, -8.0, 0.0, 5.0, 30.0, jnp.inf, jnp.nan], dtype)
        found = jax.jit(process.inverse_log_snr)(wanted)
        assert float(found[0]) == 1
        assert float(found[-2]) == 0
        assert np.all(np.diff(found[:-1]) <= 0)
        assert np.isnan(found[-1])


@pytest.mark.slow
@EACH_TABLE
def test_a_table_s_gradients_are_finite(bars):
    process, count = pr.discrete(bars), len(bars)
    inner = jnp.asarray([1e-4, 0.5 / count, 1.5 / count, 0.31, 0.53, 0.97, 0.999])
    whole = jnp.concatenate([inner, jnp.array([0.0, 1 / count, 0.5, 1.0])])  # and at entries

    @jax.jit
    def slopes(process):
        each = lambda f, t: jax.vmap(jax.grad(f))(t)
        back = each(process.inverse_log_snr, process.log_snr(inner))
        here = [each(f, whole) for f in (process.alpha, process.sigma, process.index)]
        number = jax.grad(lambda process: process.alpha(0.37) + process.sigma(0.5 / count))
        return here, each(process.log_snr, inner), back, number(process).log_snrs

    here, log_snr, back, number = slopes(process)
    assert all(np.all(np.isfinite(slope)) for slope in here)
    assert np.all(np.isfinite(log_snr) & (log_snr < 0))
    np.testing.assert_allclose(back * log_snr, 1, rtol=1e-3)
    assert np.all(np.isfinite(number))
    assert np.any(number != 0)


@pytest.mark.slow
def test_presets_are_their_papers_formulas(x64):
    entries = np.arange(1, 1001) / 1000
    bars = lambda process: np.asarray(process.alpha(entries)) ** 2
    linear = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(bars(pr.linear()), linear, rtol=1e-9)
    scaled = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    np.testing.assert_allclose(bars(pr.scaled_linear()), scaled, rtol=1e-9)
    # Nichol & Dhariwal, Eq. (17), with β clipped at 0.999.
    f = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = [min(1 - f((i + 1) / 1000) / f(i / 1000), 0.999) for i in range(1000)]
    squared = np.cumprod(1 - np.array(betas))
    np.testing.assert_allclose(bars(pr.squared_cosine()), squared, rtol=1e-8)
    zero = pr.zero_terminal_snr(pr.scaled_linear())
    np.testing.assert_allclose(bars(zero), _zero_terminal(scaled), rtol=1e-8, atol=1e-15)
    assert float(zero.alpha(1.0)) == 0
    assert float(zero.sigma(1.0)) == 1
    np.testing.assert_allclose(zero.alpha(0.001), pr.scaled_linear().alpha(0.001), rtol=1e-12)


@pytest.mark.parametrize(
    "bars",
    [[0.5], [0.5, 0.9], [1.0, 0.5], [0.9, 0.0, 0.0], [0.9, -0.1], [0.9, np.nan], [[0.9, 0.5]]],
)
def test_no_table(bars):
    with pytest.raises(ValueError, match="alphas_cumprod"):
        pr.discrete(bars)


# Shifts.

EVERY = PROCESSES | {
    "linear table": lambda: pr.discrete(_bars()),
    "zero terminal": lambda: pr.discrete(_zero_terminal(_bars())),
    "shifted flow": lambda: pr.shifted(pr.rectified_flow(), 3.0),
    "shifted edm": lambda: pr.shifted(pr.edm(), 0.5),
    "shifted table": lambda: pr.shifted(pr.discrete(_bars()), 2.0),
}


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 6.5])
def test_the_shift_of_flow_matching(x64, shift):
    """diffusers' shift · s/(1 + (shift − 1) · s) on σ, which is −2 log shift in the log-SNR."""
    process, s = pr.shifted(pr.rectified_flow(), shift), np.linspace(0, 1, 21)
    np.testing.assert_allclose(process.sigma(s), shift * s / (1 + (shift - 1) * s), rtol=1e-12)
    np.testing.assert_allclose(process.alpha(s), 1 - process.sigma(s), rtol=1e-12, atol=1e-15)
    inner = s[1:-1]
    moved = process.log_snr(inner) - pr.rectified_flow().log_snr(inner)
    np.testing.assert_allclose(moved, -2 * np.log(shift), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_process_keeps_its_promises(name):
    pr.check(EVERY[name]())


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_any_process_may_be_shifted(x64, name):
    plain, t = EVERY[name](), np.linspace(0.02, 0.98, 13)
    process, inner = pr.shifted(plain, 2.5), 2.5 * t / (1 + 1.5 * t)
    for which in ("alpha", "sigma", "log_snr"):
        got, want = getattr(process, which)(t), getattr(plain, which)(inner)
        np.testing.assert_allclose(got, want, rtol=1e-12, err_msg=which)
    np.testing.assert_allclose(process.inverse_log_snr(process.log_snr(t)), t, rtol=1e-9)
    if hasattr(plain, "log_snrs"):
        np.testing.assert_allclose(process.index(t), plain.index(inner))


# One denoiser on every process.


def _exact(process):
    return analytic.denoiser(analytic.gaussian(jnp.array([0.7, -1.0]), 0.4), process)


def _check_moved(source, target):
    """At equal log-SNR: the exact denoiser of a Gaussian, moved, is that of the other process."""
    source, target = EVERY[source](), EVERY[target]()
    moved, truth = _exact(source).on(target), _exact(target)
    x = jnp.array([[0.3, -2.0], [1.5, 0.1]])
    t = np.array([1e-3, 0.02, 0.3, 0.5, 0.9, 0.999, 1.0])
    trained = np.asarray(target.log_snr(t)) >= float(source.log_snr(1.0))

    @jax.jit
    def run(t):
        slope = lambda x, t: jax.grad(lambda x, t: moved(x, t).sum(), (0, 1))(x, t)
        each = lambda f: jax.vmap(lambda t: f(x, t))(t)
        return each(moved), each(truth), each(slope)

    got, want, slopes = run(jnp.asarray(t))
    assert np.all(np.isfinite(got))
    np.testing.assert_allclose(got[trained], want[trained], rtol=1e-6, atol=1e-8)
    assert np.all(np.isfinite(slopes[0]))  # in x everywhere, in t but for the end
    assert np.all(np.isfinite(slopes[1][:-1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target"), list(zip(EVERY, [*EVERY][3:] + [*EVERY][:3], strict=True))
)
def test_a_moved_denoiser_is_the_exact_one(x64, source, target):
    """Each process once on either side: a move is one's λ⁻¹ after the other's λ."""
    _check_moved(source, target)


def test_a_moved_denoiser_at_both_ends():
    """t = 0 gives x back, and beyond what it was trained on it is asked at its noisiest."""
    asked = []
    network = lambda x, t, cond: asked.append(t) or x
    denoise = gj.denoiser(network, pr.linear_vp()).on(pr.rectified_flow())
    x = jnp.array([[1.0, 2.0]])
    assert np.all(np.isfinite(denoise(x, 1.0)))
    np.testing.assert_allclose(asked[-1], 1.0)
    exact = analytic.denoiser(analytic.gaussian(jnp.zeros(2), 1.0), pr.edm())
    np.testing.assert_allclose(exact.on(pr.cosine())(x, 0.0), x, rtol=1e-6)


def test_moving_back_is_where_it_was():
    denoise = gj.denoiser(lambda x, t, cond: x * t[:, None], pr.rectified_flow())
    there = denoise.on(pr.edm())
    assert there.on(pr.rectified_flow()).trained_on is None
    assert there.on(pr.cosine()).trained_on is denoise.process
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(there.on(pr.rectified_flow())(x, 0.3), denoise(x, 0.3))


def test_samples_are_the_same_on_every_process():
    """DDIM sees the log-SNRs of a grid alone: the same ones give the same samples."""
    model = analytic.mixture([[-1.0], [1.5]], stds=[0.5, 0.4])
    flow, edm = pr.rectified_flow(), pr.edm()
    times = np.linspace(0.98, 0.05, 6)
    denoise = analytic.denoiser(model, flow)
    x = flow.sigma(times[0]) * jnp.array([[-1.0], [0.3]])
    run = lambda denoise, x, times: gj.sample(jax.random.key(0), denoise, x, times=times)
    want = run(denoise, x, times)
    other = edm.inverse_log_snr(flow.log_snr(jnp.asarray(times)))
    got = run(denoise.on(edm), x / flow.alpha(times[0]), np.asarray(other))
    np.testing.assert_allclose(got * flow.alpha(times[-1]), want, rtol=1e-4)


def test_one_process_at_a_time():
    """A denoiser has its process; `sample` takes none, and a branch of another is refused."""
    flow = gj.denoiser(lambda x, t, cond: x, pr.rectified_flow())
    other = gj.denoiser(lambda x, t, cond: x, pr.linear_vp())
    with pytest.raises(TypeError):
        gj.sample(
            jax.random.key(0), flow, jnp.ones((2, 3)), times=gj.uniform_times(2),
            process=pr.linear_vp(),
        )  # fmt: skip
    run = lambda weak: gj.sample(
        jax.random.key(0), flow, jnp.ones((2, 3)), times=gj.uniform_times(2), cond=jnp.zeros(2),
        guidance=gj.guidance(gj.autoguidance, 1.0), conditions={"weak": weak},
    )  # fmt: skip
    with pytest.raises(ValueError, match="weak"):
        run(other)
    assert run(other.on(pr.rectified_flow())).shape == (2, 3)


# A process of one's own.


class Power(pr.Process):
    """σ = t^exponent."""

    exponent: float
    kind: str = dataclasses.field(default="plain", metadata={"static": True})

    def alpha(self, t):
        return 1 - jnp.asarray(t) ** self.exponent

    def sigma(self, t):
        return jnp.asarray(t) ** self.exponent


@pytest.mark.slow
def test_a_process_of_one_s_own(x64):
    process = Power(2.0)
    pr.check(process)
    assert jax.tree.leaves(process) == [2.0]
    t = jnp.array([0.2, 0.5, 0.9])
    np.testing.assert_allclose(process.log_snr(t), 2 * np.log((1 - t**2) / t**2), rtol=1e-12)
    np.testing.assert_allclose(process.inverse_log_snr(process.log_snr(t)), t, rtol=1e-12)
    np.testing.assert_allclose(process.derivatives(t), [-2 * t, 2 * t], rtol=1e-12)
    # d t/dλ of the bisection is that of the closed form.
    slope = jax.vmap(jax.grad(process.inverse_log_snr))(process.log_snr(t))
    np.testing.assert_allclose(slope, 1 / jax.vmap(jax.grad(process.log_snr))(t), rtol=1e-9)
    # jit, vmap and grad in its number.
    traces = []
    run = jax.jit(lambda process, t: traces.append(0) or process.sigma(t))
    np.testing.assert_allclose([run(Power(p), 0.5) for p in (1.0, 3.0)], [0.5, 0.125])
    assert len(traces) == 1
    swept = jax.vmap(lambda p: Power(p).sigma(0.5))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(swept, [0.5, 0.25])
    grad = jax.grad(lambda process: process.sigma(0.5))(process)
    np.testing.assert_allclose(grad.exponent, 0.25 * np.log(0.5))
    # What is static is structure.
    assert jax.tree.structure(Power(2.0, "a")) != jax.tree.structure(Power(2.0, "b"))


@pytest.mark.slow
def test_a_process_of_one_s_own_samples_and_trains():
    denoise = analytic.denoiser(analytic.gaussian(jnp.array([0.7]), 0.4), Power(2.0))
    x = jnp.linspace(-1, 1, 3)[:, None]
    run = jax.jit(
        lambda d: gj.sample(jax.random.key(0), d, x, times=gj.uniform_times(20), solver=gj.heun())
    )
    want = 0.7 + 0.4 * x  # the flow of a Gaussian from σ = 1, α = 0
    np.testing.assert_allclose(run(denoise), want, atol=5e-3)
    gradient = jax.grad(lambda d: run(d).sum())(denoise)
    assert np.isfinite(gradient.process.exponent)


@pytest.mark.slow
def test_fresh_pairs_of_processes_never_share_a_program():
    """Pairs of fresh classes with the same leaves take turns under one jit."""
    run = jax.jit(lambda process, t: process.sigma(t))
    for i in range(20):
        pair = []
        for factor in (1.0, 2.0):

            class Fresh(pr.Process):
                scale: float

                def alpha(self, t):
                    return 1 - jnp.asarray(t)

                def sigma(self, t, factor=factor):
                    return factor * self.scale * jnp.asarray(t)

            pair.append(Fresh)
        one, two = (kind(3.0) for kind in pair)
        assert jax.tree.structure(one) != jax.tree.structure(two)
        for _ in range(3):
            assert (float(run(one, 0.5)), float(run(two, 0.5))) == (1.5, 3.0), i


@pytest.mark.parametrize("shape", ["tanh", "constant"])
def test_power_law_on_edm_with_many_steps(shape):
    """256 uniform steps, t⁷ · 80 from 1e-15 to 80: a power of ‖δ‖ is neither 0/0 nor infinite."""
    networks = {
        "tanh": lambda x, t, cond: jnp.tanh(x + cond[:, None]),
        "constant": lambda x, t, cond: jnp.broadcast_to(cond[:, None], x.shape),
    }
    process = pr.edm()
    x = gj.sample(
        jax.random.key(0), gj.denoiser(networks[shape], process),
        80 * jnp.ones((2, 3)), times=gj.uniform_times(256), cond=jnp.array([0.5, 1.0]), uncond=0.0,
        guidance=gj.guidance(gj.rules.power_law, omega=2.0),
    )  # fmt: skip
    assert np.all(np.isfinite(x))
    assert np.all(np.abs(x) < 100)


def test_a_shifted_process_ends_where_its_process_does():
    """At 1, and not by rounding a little after it, where α is negative and λ is no number."""
    for shift in (0.2, 0.3, 3.0, 7.0, 100.0):
        process = pr.shifted(pr.cosine(), shift)
        assert float(process.alpha(1.0)) == 0
        assert float(process.log_snr(1.0)) == -np.inf
        assert float(process.sigma(0.0)) == 0


@pytest.mark.slow
def test_a_table_of_times_in_bfloat16():
    """It counts a thousand entries, of which bfloat16 tells 256 apart."""
    process, t = pr.scaled_linear(), jnp.asarray([1.0, 1 / 3, 0.7, 1e-4, 0.0], jnp.bfloat16)
    for name in ("alpha", "sigma", "log_snr", "index"):
        found, want = (getattr(process, name)(each) for each in (t, t.astype(jnp.float32)))
        np.testing.assert_array_equal(found, want)
    assert all(np.all(np.isfinite(d)) for d in process.derivatives(t))


@pytest.mark.parametrize("prediction", ["eps", "v", "velocity", "score"])
def test_conversions_where_a_part_is_out_of_range(prediction):
    """The noise (x − α x0)/σ has a place where x/σ and α x0/σ have none."""
    process, t = pr.rectified_flow(), jnp.float32(1e-12)
    x0 = jnp.asarray([[1e30, -2e30, 0.0]], jnp.float32)
    x = (1 - t) * x0
    np.testing.assert_array_equal(np.isnan(pr.from_x0(x0, x, t, process, prediction)), False)
    if prediction in ("eps", "score"):
        steep = pr.linear_vp(1e-6, 200.0)  # α(1) is 2e-22
        value = x if prediction == "eps" else -x
        np.testing.assert_array_equal(pr.to_x0(value, x, 1.0, steep, prediction), 0 * x)


def test_slopes_at_the_ends_of_time():
    """σ of a linear β has an infinite one at t = 0: it counts as 0."""
    assert float(jax.grad(pr.linear_vp().sigma)(0.0)) == 0
    for log_snr in (-1e30, -1e4, -200.0, 200.0):
        assert float(jax.grad(pr.cosine().inverse_log_snr)(log_snr)) == 0


INDEX = np.array([500, 20])


@pytest.mark.parametrize(
    "call",
    [
        lambda p, x, t: pr.noise_to(p, x, t, x),
        lambda p, x, t: pr.to_x0(x, x, t, p, "eps"),
        lambda p, x, t: pr.from_x0(x, x, t, p, "v"),
        lambda p, x, t: pr.bridge(p, t, t, 0.0),
        lambda p, x, t: pr.bridge(p, 0.5, t, 0.0),
        lambda p, x, t: pr.x0_per_unit(p, t, "eps"),
        lambda p, x, t: pr.initial_noise(jax.random.key(0), p, x.shape, t),
    ],
)
def test_an_index_is_no_time(call):
    """DDPM's habit: beyond t = 1 a table is pure noise, in silence."""
    process, x = pr.scaled_linear(), jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        call(process, x, INDEX)
    with pytest.raises(ValueError, match="an index and no time"):
        jax.jit(lambda t: call(process, x, t))(INDEX)


def test_integers_are_no_pictures():
    picture = np.full((1, 3), 200, np.uint8)
    for call in (
        lambda: pr.noise_to(pr.rectified_flow(), picture, 0.5, np.ones((1, 3))),
        lambda: pr.to_x0(np.ones((1, 3)), picture, 0.5, pr.rectified_flow(), "v"),
        lambda: pr.from_x0(np.ones((1, 3)), picture, 0.5, pr.rectified_flow(), "v"),
    ):
        with pytest.raises(ValueError, match="is uint8; expected floating"):
            call()


def test_initial_noise_of_each_sample():
    times = np.array([1.0, 0.5, 0.1])
    process = pr.edm()
    noise = pr.initial_noise(jax.random.key(0), process, (3, 3, 3), times)
    unit = pr.initial_noise(jax.random.key(0), pr.rectified_flow(), (3, 3, 3))
    for i, sigma in enumerate(process.sigma(times)):
        np.testing.assert_allclose(noise[i], sigma * unit[i], rtol=1e-6)


class _Wrong(type(pr.rectified_flow())):
    """Rectified flow, some of it wrong."""

    of: str = dataclasses.field(default="", metadata={"static": True})

    def log_snr(self, t):
        return super().log_snr(t) / (2 if self.of == "log_snr" else 1)

    def inverse_log_snr(self, log_snr):
        if self.of == "log_snr":
            log_snr = 2 * log_snr
        found = super().inverse_log_snr(log_snr)
        return found * jnp.nan if self.of == "inverse_log_snr" else found

    def derivatives(self, t):
        alpha, sigma = super().derivatives(t)
        return (-alpha if self.of == "derivatives" else alpha), sigma


def test_a_process_that_breaks_its_promises_is_found():
    pr.check(_Wrong())
    for of in ("log_snr", "inverse_log_snr", "derivatives"):
        with pytest.raises(ValueError, match=f"_Wrong.{of}"):
            pr.check(_Wrong(of))


def test_tables_say_what_is_wrong_with_them():
    with pytest.warns(UserWarning, match="alphas_cumprod, not of alphas"):
        pr.discrete(1 - np.linspace(1e-4, 0.02, 1000))
    with pytest.warns(UserWarning, match="whatever the steps of sampling"):
        pr.scaled_linear(50)
    with pytest.raises(ValueError, match="whole number of noise levels"):
        pr.linear(1000.0)
    with pytest.raises(ValueError, match="indices 0 to 999"):
        pr.linear().times([-1, 3])
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(pr.zero_terminal_snr)(pr.linear())
    for grid in (gj.uniform_times, lambda steps: gj.karras_times(pr.edm(), steps)):
        with pytest.raises(ValueError, match="whole number of steps"):
            grid(50.0)

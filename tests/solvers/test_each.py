"""What is true of one solver alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax import analytic, solvers
from guidejax.rules import make_rule
from guidejax.schedules import cfgpp_omega
from tests.helpers import sample

from .common import MEAN, PROCESSES, STD, flow

KEY = jax.random.key(0)
RF = gj.processes.rectified_flow()
NOISE = jax.random.normal(jax.random.key(1), (6, 3))
half = lambda x, t, cond: 0.3 * x + jnp.sin(3 * t)[:, None]


def _sample(solver, process=RF, denoise=half, noise=NOISE, steps=6, key=KEY, **kwargs):
    return sample(
        key, denoise, process, noise, solver=solver,
        **{"times": gj.uniform_times(steps), **kwargs},
    )  # fmt: skip


def test_euler_is_ddim_on_rectified_flow():
    np.testing.assert_allclose(
        _sample(solvers.euler()), _sample(solvers.ddim()), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_ancestral_at_its_ends(process):
    process = PROCESSES[process]
    run = lambda solver: _sample(solver, process)
    np.testing.assert_allclose(
        run(solvers.ancestral(1.0)), run(solvers.ddim(churn=1.0)), rtol=2e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        run(solvers.ancestral(0.0)), run(solvers.ddim()), rtol=2e-4, atol=1e-5
    )


@pytest.mark.slow
def test_ancestral_is_k_diffusion_s():
    """σ_up, σ_down of k-diffusion's get_ancestral_step, in its own coordinates."""
    process = gj.processes.edm(sigma_max=10.0, rho=3.0)
    times = gj.uniform_times(4)
    x = 10 * NOISE
    got = _sample(solvers.ancestral(0.6), process, noise=x, times=times)
    sigmas = process.sigma(times)
    for i in range(4):
        a, b = float(sigmas[i]), float(sigmas[i + 1])
        up = min(b, 0.6 * (b**2 * (a**2 - b**2) / a**2) ** 0.5)
        down = (b**2 - up**2) ** 0.5
        slope = (x - half(x, jnp.full(6, times[i]), None)) / a
        eps = jax.random.normal(jax.random.fold_in(KEY, i), x.shape)
        x = x + slope * (down - a) + up * eps
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_edm_heun_is_the_paper_s_algorithm(gamma):
    process = gj.processes.edm(sigma_max=10.0, rho=3.0)
    times = gj.uniform_times(5)
    network = lambda x, sigma: 0.3 * x + jnp.sin(3 * sigma)
    denoise = lambda x, t, cond: network(x, process.sigma(t)[:, None])
    got = _sample(
        solvers.edm_heun(gamma, lo=0.2, hi=8.0, noise=1.01), process, denoise, 10 * NOISE, 5
    )
    x, sigmas = 10 * NOISE, np.asarray(process.sigma(times))
    for i in range(5):
        a, b = sigmas[i], sigmas[i + 1]
        if gamma and 0.2 <= a <= 8.0:
            raised = a * (1 + gamma)
            eps = jax.random.normal(jax.random.fold_in(KEY, i), x.shape)
            x, a = x + (raised**2 - a**2) ** 0.5 * 1.01 * eps, raised
        slope = (x - network(x, a)) / a
        end = x + (b - a) * slope
        if b > 0:
            end = x + (b - a) * (slope + (end - network(end, b)) / b) / 2
        x = end
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_edm_heun_stays_within_the_process():
    seen = []

    def network(x, t, cond):
        jax.debug.callback(lambda t: seen.append(float(t.max())), t)
        return 0.5 * x

    for process in (gj.processes.linear_vp(), gj.processes.cosine()):
        assert np.all(np.isfinite(_sample(solvers.edm_heun(0.4), process, network, steps=3)))
    jax.effects_barrier()
    assert max(seen) <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_dpmpp_2m_is_the_paper_s_algorithm(x64, process):
    """Algorithm 2 of 2211.01095 with its own exponentials, first and last step of first order."""
    process, times = PROCESSES[process], gj.uniform_times(5, 0.95, 0.05)
    noise = NOISE.astype(jnp.float64)
    got = _sample(solvers.dpmpp_2m(), process, noise=noise, times=times)
    lam = process.log_snr(times) / 2
    x, before = noise, None
    for i in range(5):
        s, t = times[i + 1], times[i]
        x0, h = half(x, jnp.full(6, t), None), lam[i + 1] - lam[i]
        d = x0
        if before is not None:
            r = (lam[i] - lam[i - 1]) / h
            d = (1 + 1 / (2 * r)) * x0 - before / (2 * r)
        ratio = process.sigma(s) / process.sigma(t)
        x, before = ratio * x - process.alpha(s) * jnp.expm1(-h) * d, x0
    np.testing.assert_allclose(got, x, rtol=1e-9, atol=1e-9)


def _time(process, log_snr):
    """The time of a log-SNR, by bisection in NumPy."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        noisier = 2 * np.log(process.alpha(middle) / process.sigma(middle)) < log_snr
        low, high = (low, middle) if noisier else (middle, high)
    return (low + high) / 2


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_dpm_solver_2_is_the_paper_s_algorithm(x64, process):
    """Algorithm 1 of 2206.00927, in ε̂ and with its own exponentials."""
    process, times = PROCESSES[process], np.asarray(gj.uniform_times(4, 0.9, 0.1))
    noise = np.asarray(NOISE, np.float64)
    got = _sample(solvers.dpm_solver_2(), process, noise=jnp.asarray(noise), times=times)
    alpha, sigma = (lambda t, f=f: float(f(t)) for f in (process.alpha, process.sigma))
    lam = lambda t: np.log(alpha(t) / sigma(t))

    def eps(x, t):
        return (x - alpha(t) * np.asarray(half(x, jnp.full(6, t), None))) / sigma(t)

    x = noise
    for t, s in itertools.pairwise(times):
        h = lam(s) - lam(t)
        m = _time(process, lam(t) + lam(s))
        u = alpha(m) / alpha(t) * x - sigma(m) * np.expm1(h / 2) * eps(x, t)
        x = alpha(s) / alpha(t) * x - sigma(s) * np.expm1(h) * eps(u, m)
    np.testing.assert_allclose(got, x, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_unipc_is_the_paper_s_algorithm(x64, process):
    """2302.04867 in x̂0: the coefficients from their linear system, the corrector from the start.

    φ_k as integrals: φ_k(h) = ∫₀¹ e^((1−δ)h) δ^(k−1)/(k−1)! dδ, at −h for x̂0.
    """
    process, times = PROCESSES[process], np.asarray(gj.uniform_times(6, 0.95, 0.05))
    noise = np.asarray(NOISE, np.float64)
    got = _sample(solvers.unipc(), process, noise=jnp.asarray(noise), times=times)
    nodes, shares = np.polynomial.legendre.leggauss(30)
    nodes, shares = (nodes + 1) / 2, shares / 2
    lam = np.log(process.alpha(times) / process.sigma(times))
    alpha, sigma = np.asarray(process.alpha(times)), np.asarray(process.sigma(times))

    def coefficients(h, ratios):
        # Σ_m a_m r_m^(k−1) = k! φ_(k+1)(−h)/φ₁(−h) for D_m/r_m, B = φ₁ h up to its sign.
        rhs = [
            np.sum(shares * np.exp(-h * (1 - nodes)) * nodes**k)
            / np.sum(shares * np.exp(-h * (1 - nodes)))
            for k in (1, 2)[: len(ratios)]
        ]
        return np.linalg.solve(np.vander(ratios, len(ratios), increasing=True).T, rhs)

    def move(i, x, start, differences):
        """From time i − 1 to i."""
        h = lam[i] - lam[i - 1]
        ahead = sigma[i] / sigma[i - 1] * x - alpha[i] * np.expm1(-h) * start
        return ahead - alpha[i] * np.expm1(-h) * differences

    x = corrected = noise
    before = []  # x̂0 at times 0, 1, ...
    for i in range(6):
        x0 = np.asarray(half(x, jnp.full(6, times[i]), None))
        change = 0.0
        if i:  # UniC: of first order at first, with its simplified coefficient 1/2
            h = lam[i] - lam[i - 1]
            if i == 1:
                change = (x0 - before[0]) / 2
            else:
                r = (lam[i - 2] - lam[i - 1]) / h
                rho = coefficients(h, [r, 1.0])
                change = rho[0] * (before[-2] - before[-1]) / r + rho[1] * (x0 - before[-1])
            corrected = move(i, corrected, before[-1], change)
            r = (lam[i - 1] - lam[i]) / (lam[i + 1] - lam[i])
            change = (before[-1] - x0) / r / 2
        x = move(i + 1, corrected, x0, change)
        before.append(x0)
    np.testing.assert_allclose(got, x, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("end", [0.0, 0.1])
def test_midpoint_and_rk4_by_hand(x64, end):
    """On rectified flow they are the textbook's in t, on dx/dt = (x − x̂0)/t."""
    times, noise = np.asarray(gj.uniform_times(4, 1.0, end)), np.asarray(NOISE, np.float64)
    f = lambda x, t: (x - np.asarray(half(x, jnp.full(6, t), None))) / t
    one, four = noise, noise
    for t, s in itertools.pairwise(times):
        h = s - t
        one = one + h * f(one + h / 2 * f(one, t), t + h / 2)
        k1 = f(four, t)
        if s == 0:  # Heun's third-order tableau
            k2 = f(four + h / 3 * k1, t + h / 3)
            k3 = f(four + 2 * h / 3 * k2, t + 2 * h / 3)
            four = four + h * (k1 + 3 * k3) / 4
            continue
        k2 = f(four + h / 2 * k1, t + h / 2)
        k3 = f(four + h / 2 * k2, t + h / 2)
        four = four + h * (k1 + 2 * k2 + 2 * k3 + f(four + h * k3, s)) / 6
    run = lambda solver: _sample(solver, noise=jnp.asarray(noise), times=times)
    np.testing.assert_allclose(run(solvers.midpoint()), one, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(run(solvers.rk4()), four, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("process", ["rectified_flow", "cosine"])
def test_rk4_is_of_fourth_order_from_noise_to_data(x64, process):
    """A last step of third order, and a first from α = 0, cost no order of the whole."""
    process = PROCESSES[process]
    denoise = analytic.denoiser(analytic.gaussian(jnp.array([MEAN]), STD), process)
    x = process.sigma(1.0) * jnp.linspace(-2, 2, 5)[:, None]
    exact = flow(process, x, 1.0, 0.0)
    run = lambda steps: _sample(solvers.rk4(), process, denoise, x, steps)
    errors = [float(jnp.abs(run(steps) - exact).max()) for steps in (40, 80)]
    assert np.log2(errors[0] / errors[1]) > 3.85


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "asked"),
    [(0.0, [0.5, 1 / 3, 1 / 6]), (0.2, [0.5, 0.35, 0.35, 0.2])],
)
def test_a_weight_is_taken_at_the_time_of_each_evaluation(end, asked):
    """ω = t: that of each evaluation's own time, in a last step into data too.

    Only at the very end, where no step departs, it is that of the last step.
    """
    seen = []

    def rule(cond, uncond, omega, *, t):
        jax.debug.callback(lambda o, t: seen.append((float(o), float(t))), omega, t)
        return cond + omega * (cond - uncond)

    rule = make_rule(rule, space="x0", takes=("cond", "uncond", "omega", "t"))
    _sample(
        solvers.rk4(), RF, lambda x, t, cond: x * cond[:, None], cond=jnp.ones(6), uncond=0.0,
        guidance=gj.guidance(rule, omega=lambda s, t, cond: t), times=np.array([0.8, 0.5, end]),
    )  # fmt: skip
    jax.effects_barrier()
    omegas, times = np.array(seen).T
    np.testing.assert_allclose(times, [0.8, 0.65, 0.65, 0.5, *asked], rtol=1e-5)
    np.testing.assert_allclose(omegas[:-1], times[:-1], rtol=1e-5)
    np.testing.assert_allclose(omegas[-1], 0.5 if end else times[-1], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver", [solvers.ancestral(0.5), solvers.dpmpp_2m(1.0), solvers.edm_heun(0.1, lo=0.05)]
)
def test_stochastic_samples_have_the_law_of_the_data(solver):
    process, n = gj.processes.cosine(), 20_000
    denoise = analytic.denoiser(analytic.gaussian(jnp.array([MEAN]), STD), process)
    noise = jax.random.normal(jax.random.key(1), (n, 1))
    got = _sample(solver, process, denoise, noise, steps=60)
    assert abs(float(got.mean()) - MEAN) < 5 * STD / n**0.5 + 0.005
    assert abs(float(got.std()) / STD - 1) < 5 / (2 * n) ** 0.5 + 0.02


@pytest.mark.slow
def test_the_sde_form_is_closer_than_ancestral():
    """Both have DDPM's noise; the extrapolation is what makes the width second order."""
    process, n = gj.processes.cosine(), 50_000
    denoise = analytic.denoiser(analytic.gaussian(jnp.array([MEAN]), STD), process)
    noise = jax.random.normal(jax.random.key(1), (n, 1))
    width = lambda solver: float(_sample(solver, process, denoise, noise, steps=20).std())
    sde, plain = (abs(width(s(1.0)) / STD - 1) for s in (solvers.dpmpp_2m, solvers.ancestral))
    assert sde < plain / 2
    assert plain > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_cfgpp_is_ddim_with_its_own_omega(x64, process):
    process, times = PROCESSES[process], gj.uniform_times(5, 0.9, 0.0)
    network = lambda x, t, cond: jnp.tanh(x + cond[:, None])
    common = {"denoise": network, "cond": jnp.ones(6), "uncond": -0.5, "times": times}
    common["noise"] = NOISE.astype(jnp.float64)
    got = _sample(solvers.cfgpp(solvers.ddim(), 0.6), process, **common)
    omega = lambda s, t, cond: cfgpp_omega(process, s, t, 0.6)
    want = _sample(solvers.ddim(), process, guidance=gj.guidance(gj.cfg, omega), **common)
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_cfgpp_by_hand():
    """x_s = α_s (u + λ (c − u)) + σ_s ε̂_u, and for the ends of λ what they mean."""
    network = lambda x, t, cond: 0.2 * x + cond[:, None]
    common = {"denoise": network, "cond": jnp.ones(6), "uncond": -0.5}
    common["times"] = jnp.array([0.8, 0.3])
    got = _sample(solvers.cfgpp(solvers.ddim(), 0.6), **common)
    c, u = 0.2 * NOISE + 1, 0.2 * NOISE - 0.5
    np.testing.assert_allclose(
        got, 0.7 * (u + 0.6 * (c - u)) + 0.3 * (NOISE - 0.2 * u) / 0.8, rtol=1e-5, atol=1e-6
    )
    alone = _sample(solvers.ddim(), **{**common, "cond": jnp.full(6, -0.5)})
    none = _sample(solvers.cfgpp(solvers.ddim(), 0.0), **common)
    np.testing.assert_allclose(none, alone, rtol=1e-5, atol=1e-6)


def test_cfgpp_takes_a_lambda_a_sample_and_refines_a_guidance():
    network = lambda x, t, cond: 0.2 * x + cond[:, None]
    run = lambda lam, **kw: _sample(
        solvers.cfgpp(solvers.ddim(), lam), RF, network, cond=jnp.ones(6), uncond=-0.5, **kw
    )
    each = run(jnp.linspace(0, 1, 6))
    np.testing.assert_allclose(each[3], run(0.6)[3], rtol=1e-5)
    # λ of the way to a guided x̂0 with ω is λ (1 + ω) of the way to c.
    np.testing.assert_allclose(
        run(0.3, guidance=gj.guidance(gj.cfg, 1.0)), run(0.6), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_second_prediction_takes_the_next_step_s_omega():
    process, times = RF, jnp.array([0.9, 0.6, 0.3])
    network = lambda x, t, cond: 0.5 * x * cond[:, None]
    weight = gj.schedules.table([1.0, 4.0])
    got = _sample(
        solvers.heun(), process, network, times=times, cond=jnp.ones(6), uncond=0.0,
        guidance=gj.guidance(gj.cfg, weight),
    )  # fmt: skip

    def slope(x, t, omega):
        return (x - 0.5 * (1 + omega) * x) / t

    x = NOISE
    for (t, s), (here, there) in zip(
        [(0.9, 0.6), (0.6, 0.3)], [(1.0, 4.0), (4.0, 4.0)], strict=True
    ):
        end = x + (s - t) * slope(x, t, here)
        x = x + (s - t) * (slope(x, t, here) + slope(end, s, there)) / 2
    np.testing.assert_allclose(got, x, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: solvers.ancestral(1.2), r"ancestral expects eta in \[0, 1\]"),
        (lambda: solvers.dpmpp_2m(float("nan")), r"dpmpp_2m expects churn in \[0, 1\]"),
        (lambda: solvers.edm_heun(0.9), "edm_heun expects gamma in"),
        (lambda: solvers.edm_heun(0.1, lo=2.0, hi=1.0), "lo ≤ hi"),
        (lambda: solvers.cfgpp(solvers.ddim(), 7.5), r"lam in \[0, 1\]"),
        (lambda: solvers.cfgpp(solvers.heun()), "one evaluation a step"),
    ],
)
def test_wrong_numbers(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.slow
def test_edm_heun_takes_a_gamma_of_each_sample():
    """One program for the batch; each sample as in a run of its own γ, 0 among them."""
    process, noise = gj.processes.edm(sigma_max=10.0, rho=3.0), jax.random.normal(KEY, (3, 2))
    denoise = gj.denoiser(lambda x, t, cond: 0.5 * x, process)
    gammas = jnp.array([0.0, 0.1, 0.3])

    def run(gamma, lo=0.1):
        solver = gj.solvers.edm_heun(gamma=gamma, lo=lo)
        return sample(KEY, denoise, process, noise, times=gj.uniform_times(4), solver=solver)

    got = run(gammas, jnp.full(3, 0.1))
    for i, gamma in enumerate(gammas):
        np.testing.assert_allclose(got[i], run(gamma)[i], rtol=1e-5, atol=1e-6)
    ends = jnp.array([0.0, 0.5, 20.0])  # and one end of the range each, with one γ for all
    for i, lo in enumerate(ends):
        want = run(0.2, lo)[i]
        np.testing.assert_allclose(run(0.2, ends)[i], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("eta", [1e-4, 1e-3, 0.1])
def test_ancestral_noise_is_as_large_as_it_is_said(eta):
    """However small: in float32 1 − (1 − f²) is 0 long before f is."""
    process, s, t = gj.processes.rectified_flow(), 0.3, 0.6
    x = jnp.zeros((4, 512))
    denoise = gj.denoiser(lambda x, t, c: 0 * x, process)
    run = lambda eta: gj.sample(
        jax.random.key(0), denoise, x, times=np.array([t, s]), solver=gj.solvers.ancestral(eta)
    )
    ratio = (1 - t) * s / ((1 - s) * t)
    expected = s * eta * np.sqrt(1 - ratio**2)
    np.testing.assert_allclose(float(jnp.std(run(eta))) / expected, 1, rtol=0.05)
    np.testing.assert_allclose(run(eta) / eta, run(1.0), rtol=1e-3, atol=1e-4)


def test_solvers_say_which_number_is_wrong():
    for make, message in (
        (lambda: gj.ddim("0.5"), "ddim expects churn to be a number"),
        (lambda: gj.ddim(1.5), "ddim expects churn in"),
        (lambda: gj.solvers.edm_heun(gamma=0.1, noise=np.nan), "edm_heun expects noise in"),
        (lambda: gj.solvers.edm_heun(gamma=0.1, noise=-1.0), "edm_heun expects noise in"),
    ):
        with pytest.raises(ValueError, match=message):
            make()

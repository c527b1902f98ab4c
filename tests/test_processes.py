import jax
import jax.numpy as jnp
import numpy as np
import pytest

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

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import guidejax as gj
from guidejax import analytic

PROCESSES = {
    "rectified_flow": gj.processes.rectified_flow(),
    "cosine": gj.processes.cosine(),
    "linear_vp": gj.processes.linear_vp(),
    "edm": gj.processes.edm(),
}
TIMES = (0.0, 1e-4, 0.3, 0.8, 1.0)
COVARIANCES = np.array([[[1.0, 0.6], [0.6, 0.5]], [[0.2, -0.1], [-0.1, 0.3]]])
MEANS, WEIGHTS = np.array([[-1.0, 0.5], [2.0, 1.0]]), np.array([0.3, 0.7])


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


@pytest.mark.parametrize("t", [0.2, 0.7])
def test_denoise_is_the_posterior_mean_by_quadrature(x64, process, t):
    means, stds, weights = np.array([-1.0, 0.5, 2.0]), np.array([0.3, 0.1, 0.6]), [0.2, 0.5, 0.3]
    model = analytic.mixture(means[:, None], stds=stds, weights=weights)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    grid = np.linspace(-6, 8, 40_001)
    prior = sum(
        w * stats.norm.pdf(grid, m, s) for w, m, s in zip(weights, means, stds, strict=True)
    )
    x = alpha * np.array([-1.5, 0.0, 0.7, 3.0]) + sigma * np.array([0.3, -1.0, 0.5, 2.0])
    joint = prior * stats.norm.pdf(x[:, None], alpha * grid, sigma)
    want = (joint @ grid) / joint.sum(1)
    got = model.denoise(jnp.asarray(x)[:, None], t, process)
    np.testing.assert_allclose(got[:, 0], want, rtol=1e-8, atol=1e-8)
    density = joint.sum(1) * (grid[1] - grid[0])
    np.testing.assert_allclose(
        model.log_prob(jnp.asarray(x)[:, None], t, process), np.log(density), rtol=1e-8, atol=1e-8
    )


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_density_against_scipy(x64, process, full):
    stds = np.array([[0.5, 1.0], [0.2, 0.3]])
    covariances = COVARIANCES if full else np.stack([np.diag(s**2) for s in stds])
    kwargs = {"covariances": COVARIANCES} if full else {"stds": stds}
    model = analytic.mixture(MEANS, weights=2 * WEIGHTS, **kwargs)
    t = np.array([0.0, 0.4, 0.9])
    x = np.array([[0.3, -0.2], [1.0, 1.0], [-2.0, 0.5]])
    want = np.zeros((3, 2))
    for i, (row, alpha, sigma) in enumerate(
        zip(x, process.alpha(t), process.sigma(t), strict=True)
    ):
        for k in range(2):
            noised = alpha**2 * covariances[k] + sigma**2 * np.eye(2)
            want[i, k] = WEIGHTS[k] * stats.multivariate_normal.pdf(row, alpha * MEANS[k], noised)
    x = jnp.asarray(x)
    np.testing.assert_allclose(model.log_prob(x, t, process), np.log(want.sum(1)), rtol=1e-10)
    np.testing.assert_allclose(
        model.responsibilities(x, t, process), want / want.sum(1, keepdims=True), rtol=1e-8
    )


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_score_is_the_gradient_and_tweedie_s_formula_holds(x64, process, full):
    kwargs = {"covariances": COVARIANCES} if full else {"stds": [0.5, 0.2]}
    model = analytic.mixture(MEANS, weights=WEIGHTS, **kwargs)
    t, x = jnp.array([0.2, 0.5, 0.9]), jnp.array([[0.3, -0.2], [1.0, 1.0], [-2.0, 0.5]])
    score = model.score(x, t, process)
    gradient = jax.grad(lambda x: model.log_prob(x, t, process).sum())(x)
    np.testing.assert_allclose(score, gradient, rtol=1e-9, atol=1e-12)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    x0 = model.denoise(x, t, process)
    np.testing.assert_allclose((alpha * x0 - x) / sigma**2, score, rtol=1e-7, atol=1e-10)


def test_diagonal_and_full_covariances_agree(x64):
    stds = np.array([[0.5, 1.0], [0.2, 0.3]])
    diagonal = analytic.mixture(MEANS, stds=stds, weights=WEIGHTS)
    full = analytic.mixture(MEANS, covariances=[np.diag(s**2) for s in stds], weights=WEIGHTS)
    x = jnp.array([[0.3, -0.2], [1.0, 1.0]])
    for name in ("denoise", "score", "log_prob", "responsibilities"):
        one, other = (getattr(m, name)(x, 0.4, gj.processes.cosine()) for m in (diagonal, full))
        np.testing.assert_allclose(one, other, rtol=1e-10, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("std", [1e-3, 0.5])
@pytest.mark.parametrize("t", TIMES)
def test_float32_from_end_to_end(process, t, std):
    """Right, not only finite, at both ends and far from every mode."""
    means = np.array([[-1.0, 0.5], [2.0, 1.0], [0.0, -3.0]])
    scale = 1 + float(process.sigma(t))
    x = scale * jnp.array([[-1.0, 0.5], [30.0, -20.0], [0.4, 0.6]])
    model = analytic.mixture(means, stds=std)
    got = {n: getattr(model, n)(x, t, process) for n in ("denoise", "score", "log_prob")}
    grads = jax.grad(lambda x: model.denoise(x, t, process).sum())(x)
    assert all(np.all(np.isfinite(leaf)) for leaf in (*got.values(), grads))
    with jax.enable_x64(True):
        wide = analytic.mixture(means, stds=std)
        want = wide.denoise(jnp.asarray(x, jnp.float64), t, process)
    np.testing.assert_allclose(got["denoise"], want, rtol=1e-4, atol=1e-4)
    if t == 0:
        np.testing.assert_allclose(got["denoise"], x, rtol=1e-6)
    if float(process.alpha(t)) == 0:
        np.testing.assert_allclose(got["denoise"], np.tile(means.mean(0), (3, 1)), atol=1e-6)


@pytest.mark.slow
def test_times_of_each_sample_and_states_of_any_shape(process):
    model = analytic.mixture(np.arange(12.0).reshape(3, 4), stds=0.5)
    x, t = jax.random.normal(jax.random.key(0), (2, 2, 2)), jnp.array([0.2, 0.9])
    got = model.denoise(x, t, process)
    assert got.shape == model.score(x, t, process).shape == x.shape
    for i in range(2):
        alone = model.denoise(x[i : i + 1].reshape(1, 4), t[i], process)
        np.testing.assert_allclose(got[i].reshape(1, 4), alone, rtol=1e-5, atol=1e-6)
    assert model.denoise(x.astype(jnp.bfloat16), t, process).dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_samples_and_moments(full):
    n = 100_000
    kwargs = {"covariances": COVARIANCES} if full else {"stds": [0.5, 0.2]}
    model = analytic.mixture(MEANS, weights=WEIGHTS, **kwargs)
    x = np.asarray(model.sample(jax.random.key(0), n))
    assert x.shape == (n, 2)
    covariance = np.asarray(model.covariance())
    error = np.sqrt(np.diag(covariance) / n)
    assert np.all(np.abs(x.mean(0) - model.mean()) < 5 * error)
    np.testing.assert_allclose(model.mean(), WEIGHTS @ MEANS, rtol=1e-6)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.05)
    within = COVARIANCES if full else np.eye(2) * np.array([0.25, 0.04])[:, None, None]
    centred = MEANS - WEIGHTS @ MEANS
    want = np.einsum("k,kij->ij", WEIGHTS, within + centred[:, :, None] * centred[:, None])
    np.testing.assert_allclose(covariance, want, rtol=1e-5, atol=1e-6)


def test_gaussian_is_linear(x64):
    process, t = gj.processes.cosine(), 0.4
    model = analytic.gaussian(jnp.array([1.0, -1.0]), jnp.array([0.5, 2.0]))
    x = jnp.array([[0.2, 0.7]])
    alpha, sigma = process.alpha(t), process.sigma(t)
    gain = alpha * np.array([0.25, 4.0]) / (alpha**2 * np.array([0.25, 4.0]) + sigma**2)
    want = np.array([1.0, -1.0]) + gain * (x - alpha * np.array([1.0, -1.0]))
    np.testing.assert_allclose(model.denoise(x, t, process), want, rtol=1e-12)
    full = analytic.gaussian(jnp.array([1.0, -1.0]), covariance=jnp.diag(jnp.array([0.25, 4.0])))
    np.testing.assert_allclose(full.denoise(x, t, process), want, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: analytic.mixture([1.0, 2.0]), r"\(components, d\)"),
        (lambda: analytic.mixture(MEANS, stds=0.0), "stds must be positive"),
        (lambda: analytic.mixture(MEANS, stds=[1.0, 2.0, 3.0]), "stds must be a number"),
        (lambda: analytic.mixture(MEANS, stds=1.0, covariances=COVARIANCES), "not both"),
        (lambda: analytic.mixture(MEANS, covariances=-COVARIANCES), "eigenvalues"),
        (lambda: analytic.mixture(MEANS, covariances=np.eye(3)), "covariances must be"),
        (
            lambda: analytic.gaussian(np.zeros(2), covariance=[[1.0, 0.0], [0.9, 0.5]]),
            "symmetric; they are 0.9 off",
        ),
        (lambda: analytic.mixture(MEANS, weights=[1.0, -1.0]), "weights must be positive"),
        (lambda: analytic.mixture(MEANS, weights=[1.0]), "weights must be"),
        (
            lambda: analytic.mixture(MEANS).denoise(jnp.ones((2, 3)), 0.5, gj.processes.cosine()),
            "2 numbers a sample",
        ),
    ],
)
def test_wrong_input(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_all_is_in_the_dtype_of_the_state():
    x = jnp.ones((3, 2), jnp.bfloat16)
    model, process = analytic.mixture(MEANS), gj.processes.cosine()
    assert model.denoise(x, 0.5, process).dtype == model.score(x, 0.5, process).dtype == x.dtype

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import guidejax as gj
from guidejax import analytic

PROCESS = gj.processes.rectified_flow()
MEANS, WEIGHTS = np.array([[-2.0, 0.0], [2.0, 1.0], [3.0, -1.0]]), np.array([0.5, 0.2, 0.3])
WHOLE = analytic.mixture(MEANS, stds=[0.4, 0.3, 0.5], weights=WEIGHTS)
MODEL = analytic.by_class(WHOLE, [0, 1, 1])
X = jnp.array([[0.5, 0.1], [1.0, -1.0], [0.3, 2.0]])
LABELS = jnp.array([0, 1, 2])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["denoise", "score", "log_prob"])
def test_each_label_is_its_own_mixture(name):
    parts = [
        analytic.mixture(MEANS[:1], stds=0.4),
        analytic.mixture(MEANS[1:], stds=[0.3, 0.5], weights=WEIGHTS[1:]),
        WHOLE,
    ]
    assert MODEL.null == 2
    for t in (0.0, 0.4, 1.0):
        got = getattr(MODEL, name)(X, t, LABELS, PROCESS)
        want = [getattr(p, name)(X[i : i + 1], t, PROCESS)[0] for i, p in enumerate(parts)]
        np.testing.assert_allclose(got, jnp.stack(want), rtol=1e-5, atol=1e-6)
    unconditional = getattr(MODEL, name)(X, 0.4, None, PROCESS)
    np.testing.assert_allclose(unconditional, getattr(WHOLE, name)(X, 0.4, PROCESS), rtol=1e-6)


def test_the_null_model_is_the_sum_of_the_classes(x64):
    model = analytic.by_class(analytic.mixture(MEANS, stds=0.4, weights=WEIGHTS), [0, 1, 1])
    x = jnp.asarray(X, jnp.float64)
    each = [model.log_prob(x, 0.4, jnp.full(3, y), PROCESS) for y in (0, 1, 2)]
    total = np.log(0.5 * np.exp(each[0]) + 0.5 * np.exp(each[1]))
    np.testing.assert_allclose(each[2], total, rtol=1e-10)


@pytest.mark.slow
def test_gradients_are_finite_with_components_of_no_share():
    grads = jax.grad(lambda m, x: m.denoise(x, 0.4, LABELS, PROCESS).sum(), argnums=(0, 1))(
        MODEL, X
    )
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
def test_samples_are_of_their_class():
    labels = jnp.tile(LABELS, 2000)
    x = MODEL.sample(jax.random.key(0), labels)
    mode = np.asarray(analytic.nearest_mode(x, MEANS))
    assert np.all(mode[labels == 0] == 0)
    assert np.mean(mode[labels == 1] == 2) == pytest.approx(0.6, abs=0.06)
    assert np.mean(mode[labels == 2] == 0) == pytest.approx(0.5, abs=0.06)


@pytest.mark.slow
def test_an_unconditional_model_of_its_own():
    parts = [analytic.mixture(MEANS[:2], stds=0.3), analytic.gaussian(MEANS[2], 0.5)]
    base = analytic.gaussian(jnp.zeros(2), 1.0)
    model = analytic.with_unconditional(parts, base)
    got = model.denoise(X, 0.4, LABELS, PROCESS)
    for i, part in enumerate([*parts, base]):
        np.testing.assert_allclose(got[i], part.denoise(X, 0.4, PROCESS)[i], rtol=1e-5, atol=1e-6)
    full = analytic.gaussian(jnp.zeros(2), covariance=jnp.eye(2))
    turned = analytic.with_unconditional([full, full], full)
    np.testing.assert_allclose(
        turned.denoise(X, 0.4, LABELS, PROCESS), base.denoise(X, 0.4, PROCESS), rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("omega", [0.0, 1.0])
def test_sampling(omega):
    labels = jnp.tile(jnp.array([0, 1]), 500)
    noise = jax.random.normal(jax.random.key(1), (1000, 2))
    x = gj.sample(
        jax.random.key(0), analytic.denoiser(MODEL, PROCESS), noise, cond=labels,
        uncond=MODEL.null, guidance=gj.guidance(gj.cfg, omega=omega), times=gj.uniform_times(50),
    )  # fmt: skip
    mode = np.asarray(analytic.nearest_mode(x, MEANS))
    np.testing.assert_array_equal(mode == 0, labels == 0)
    width = float(jnp.std(x[::2], axis=0).mean())
    assert (width == pytest.approx(0.4, rel=0.1)) == (omega == 0)


def test_a_mixture_s_numbers_are_traced():
    traces = []
    run = jax.jit(lambda denoise: traces.append(0) or denoise(X, 0.4, LABELS))
    for std in (0.2, 0.4):
        model = analytic.by_class(analytic.mixture(MEANS, stds=std), [0, 1, 1])
        got = run(analytic.denoiser(model, PROCESS))
        np.testing.assert_allclose(got, model.denoise(X, 0.4, LABELS, PROCESS), rtol=1e-5)
    assert len(traces) == 1
    plain = analytic.denoiser(WHOLE, PROCESS)(X, 0.4, LABELS)
    np.testing.assert_allclose(plain, WHOLE.denoise(X, 0.4, PROCESS), rtol=1e-6)


@pytest.mark.slow
def test_labels_over_a_mesh(mesh):
    x, labels = jnp.tile(X[:1], (8, 1)), jnp.arange(8) % 3
    want = np.asarray(MODEL.denoise(x, 0.4, labels, PROCESS))
    rows = NamedSharding(mesh, P("data"))
    run = jax.jit(lambda x, labels: MODEL.denoise(x, 0.4, labels, PROCESS))
    with jax.set_mesh(mesh):
        got = run(*jax.device_put((x, labels), rows))
    assert got.sharding.is_equivalent_to(rows, 2)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: analytic.by_class(WHOLE, [0, 1]), r"\(3,\) integer labels"),
        (lambda: analytic.by_class(WHOLE, [0.0, 1.0, 1.0]), "integer labels"),
        (lambda: analytic.by_class(WHOLE, [0, 2, 2]), "each with a component"),
        (lambda: analytic.by_class(WHOLE, [-1, 0, 1]), "each with a component"),
        (lambda: MODEL.denoise(X, 0.4, LABELS + 1, PROCESS), "labels must be 0 to 2"),
        (lambda: MODEL.denoise(X, 0.4, LABELS - 1, PROCESS), "labels must be 0 to 2"),
        (lambda: MODEL.denoise(X, 0.4, LABELS[:2], PROCESS), r"\(3,\) labels"),
        (lambda: MODEL.denoise(X, 0.4, jnp.array([0.0, 0.5, 1.0]), PROCESS), "got 0.5"),
        (
            lambda: analytic.with_unconditional([WHOLE], analytic.gaussian(jnp.zeros(3), 1.0)),
            "dimensions differ",
        ),
        (
            lambda: analytic.with_unconditional(
                [WHOLE], analytic.gaussian(jnp.zeros(2), covariance=jnp.eye(2))
            ),
            "covariances",
        ),
    ],
)
def test_wrong_input(make, match):
    with pytest.raises(ValueError, match=match):
        make()

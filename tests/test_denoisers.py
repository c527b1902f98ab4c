import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import guidejax as gj

PROCESS = gj.processes.rectified_flow()


def _plain(x, t, cond):
    return x * t[:, None] + cond[:, None]


X, T, C = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([0.25, 0.5]), jnp.array([0.5, -0.5])


def test_plain_function():
    denoise = gj.denoiser(_plain, PROCESS)
    np.testing.assert_array_equal(denoise(X, T, C), _plain(X, T, C))
    # The network sees one time a sample whatever it was given.
    np.testing.assert_array_equal(denoise(X, 0.5, C), _plain(X, jnp.full(2, 0.5), C))


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "velocity", "score"])
def test_predictions(prediction):
    x0 = jnp.array([[0.3, -1.0], [2.0, 0.1]])
    network = lambda x, t, cond: gj.processes.convert(x0, x, t, PROCESS, "x0", prediction)
    denoise = gj.denoiser(network, PROCESS, prediction)
    np.testing.assert_allclose(denoise(X, T), x0, rtol=1e-5, atol=1e-6)


def test_parameters_are_traced():
    traces = []

    def network(params, x, t, cond):
        traces.append(0)
        return params["scale"] * x

    run = jax.jit(lambda denoise, x: denoise(x, 0.5))
    for scale in (1.0, 2.0, 3.0):
        params = {"scale": jnp.asarray(scale)}
        got = run(gj.denoiser(network, PROCESS, params=params), X)
        np.testing.assert_array_equal(got, scale * X)
    assert len(traces) == 1
    grad = jax.grad(lambda d: d(X, 0.5).sum())(gj.denoiser(network, PROCESS, params=params))
    np.testing.assert_allclose(grad.params["scale"], X.sum())


class _Linen(nn.Module):
    @nn.compact
    def __call__(self, x, t, cond):
        return nn.Dense(x.shape[-1])(jnp.concatenate([x, t[:, None], cond[:, None]], axis=-1))


class _NNX(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x, t, cond):
        return self.dense(jnp.concatenate([x, t[:, None], cond[:, None]], axis=-1))


def _by_hand(kernel, bias):
    return jnp.concatenate([X, T[:, None], C[:, None]], axis=-1) @ kernel + bias


def test_linen():
    module = _Linen()
    variables = module.init(jax.random.key(0), X, T, C)
    dense = variables["params"]["Dense_0"]
    want = gj.processes.convert(
        _by_hand(dense["kernel"], dense["bias"]), X, T, PROCESS, "velocity", "x0"
    )
    denoise = gj.denoiser(module, PROCESS, "velocity", params=variables)
    np.testing.assert_allclose(denoise(X, T, C), want, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="variables"):
        gj.denoiser(module, PROCESS)


def test_nnx():
    module = _NNX(nnx.Rngs(0))
    want = _by_hand(module.dense.kernel[...], module.dense.bias[...])
    denoise = gj.denoiser(module, PROCESS)
    np.testing.assert_allclose(jax.jit(lambda d: d(X, T, C))(denoise), want, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="holds its parameters"):
        gj.denoiser(module, PROCESS, params={})


class _Gain(nnx.Module):
    def __init__(self):
        self.gain = nnx.Param(jnp.array(2.0))

    def __call__(self, x, t, cond):
        return self.gain[...] * x


def test_an_nnx_module_s_parameters_are_taken_as_they_are():
    for change in ("value", "variable"):
        module = _Gain()
        denoise = gj.denoiser(module, PROCESS)
        if change == "value":  # as an optimizer's update does
            module.gain[...] = jnp.array(5.0)
        else:
            module.gain = nnx.Param(jnp.array(5.0))
        np.testing.assert_array_equal(denoise(X, T), 2 * X)
        np.testing.assert_array_equal(gj.denoiser(module, PROCESS)(X, T), 5 * X)


class _Counting(_Gain):
    def __call__(self, x, t, cond):
        self.gain[...] += 1
        return self.gain[...] * x


def test_a_call_leaves_the_denoiser_s_parameters_alone():
    denoise = gj.denoiser(_Counting(), PROCESS)
    for _ in range(2):
        with pytest.raises(ValueError, match="changes its own state"):
            denoise(X, T)
    assert jax.tree.leaves(denoise.params)[0] == 2


@dataclasses.dataclass(frozen=True)
class _Holding:
    kernel: jax.Array

    def __call__(self, x, t, cond):
        return self.kernel * x


@dataclasses.dataclass(eq=False)
class _HoldingByIdentity:
    kernel: jax.Array

    def __call__(self, x, t, cond):
        return self.kernel * x


def test_a_dataclass_that_holds_arrays_is_told_where_they_go():
    with pytest.raises(ValueError, match=r"_Holding, holds arrays as 'kernel'.*params="):
        gj.denoiser(_Holding(jnp.ones(2)), PROCESS)
    # One number can be compared, and so can what is compared by identity.
    for network in (_Holding(jnp.array(3.0)), _HoldingByIdentity(jnp.full(2, 3.0))):
        np.testing.assert_array_equal(gj.denoiser(network, PROCESS)(X, T), 3 * X)


def test_a_traced_index_is_no_time():
    denoise = gj.denoiser(_plain, PROCESS)
    assert jnp.isfinite(denoise(X, 1, C)).all()
    with pytest.raises(ValueError, match="t is int32, an index"):
        jax.eval_shape(lambda t: denoise(X, t, C), 1)


def test_two_nnx_modules_of_one_kind_share_a_program():
    traces = []
    run = jax.jit(lambda d: traces.append(0) or d(X, T, C))
    first, second = (run(gj.denoiser(_NNX(nnx.Rngs(seed)), PROCESS)) for seed in (0, 1))
    assert len(traces) == 1
    assert not np.allclose(first, second)


def test_pytree_state():
    state = {"image": jnp.ones((2, 4, 4, 1)), "text": jnp.ones((2, 3))}
    network = lambda x, t, cond: {"image": x["image"] + x["text"].sum(), "text": 0 * x["text"]}
    got = gj.denoiser(network, PROCESS, "velocity")(state, T)
    np.testing.assert_allclose(got["image"][0], 1 - 0.25 * 7)
    np.testing.assert_allclose(got["image"][1], 1 - 0.5 * 7)
    np.testing.assert_array_equal(got["text"], state["text"])


@pytest.mark.parametrize("prediction", ["x0", "velocity"])
def test_the_dtype_is_the_state_s(prediction):
    network = lambda x, t, cond: x.astype(jnp.float32)
    denoise = gj.denoiser(network, PROCESS, prediction)
    assert denoise(X.astype(jnp.bfloat16), T).dtype == jnp.bfloat16


@pytest.mark.slow
def test_a_noise_network_that_never_saw_pure_noise_starts_at_it_elsewhere():
    """On rectified flow it is asked at the noisiest of its own times, where its α isn't 0."""
    trained = gj.processes.scaled_linear()
    denoise = gj.denoiser(_plain, trained, "eps").on(gj.processes.rectified_flow())
    assert not denoise.blind_at(1.0)
    assert gj.denoiser(_plain, gj.processes.rectified_flow(), "eps").blind_at(1.0)
    x = gj.sample(jax.random.key(0), denoise, X, times=gj.uniform_times(3), cond=jnp.ones(2))
    assert np.all(np.isfinite(x))
    # So is a pair of networks, wherever it is moved to.
    flow = gj.denoiser(_plain, PROCESS, "eps")
    assert flow.then(flow, at=0.5).blind_at(1.0)
    assert not flow.then(flow, at=0.5).on(gj.processes.edm()).blind_at(1.0)
    assert not denoise.then(denoise, at=0.5).blind_at(1.0)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: gj.denoiser(_plain, PROCESS, "noise"), "unknown prediction"),
        (lambda: gj.denoiser(gj.denoiser(_plain, PROCESS), PROCESS), "already"),
        (lambda: gj.denoiser(3, PROCESS), "int"),
        (lambda: gj.denoiser(lambda x, t, c: x[:, :1], PROCESS)(X, T), r"\(2, 1\).*\(2, 2\)"),
        (lambda: gj.denoiser(lambda x, t, c: (x, x), PROCESS)(X, T), "same shape"),
        (lambda: gj.denoiser(_plain, PROCESS)(jnp.float32(1.0), T), "batch axis"),
        (lambda: gj.denoiser(_plain, PROCESS)({"a": X, "b": X[:1]}, T), r"\[1, 2\]"),
    ],
)
def test_wrong_input(make, match):
    with pytest.raises(ValueError, match=match):
        make()

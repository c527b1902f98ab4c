"""Gradients reach ω alone, and the denoiser is never differentiated where it needn't be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import guidejax as gj
from guidejax import learning, objectives
from tests.learning.common import EXACT, KEY, PROCESS, begin, examples, guide

N, D = 6, 3
COND = jnp.array([0, 0, 0, 1, 1, 1])
BATCH = objectives.Batch(
    jax.random.normal(jax.random.key(5), (N, D)), COND, {"uncond": jnp.full((N,), 2, jnp.int32)}
)
KEYS = jax.random.split(KEY, N)
LOCAL = {
    "energy": objectives.self_consistency(particles=3),
    "l2": objectives.l2(particles=2),
    "reward": objectives.self_consistency(
        particles=2, reward=lambda x0, c: jnp.sum(jnp.sin(x0), -1), reward_weight=0.5
    ),
}
ALL = {**LOCAL, "rollout": objectives.rollout(particles=3, steps=4)}
OPTIMIZER = optax.adam(1e-2)


def network(params, x, t, cond):
    # The condition goes in first: the passes have no product in common.
    gain = 1 + jax.nn.one_hot(cond, 3, dtype=x.dtype) @ params["class"]
    return jnp.tanh(x * (gain + t)[:, None] @ params["in"]) @ params["out"]


def params(hidden=37, d=D):
    a, b, c = jax.random.split(jax.random.key(6), 3)
    return {
        "in": jax.random.normal(a, (d, hidden)),
        "out": jax.random.normal(b, (hidden, d)) / hidden,
        "class": jax.random.normal(c, (3,)),
    }


def step(objective, denoise, batch=BATCH, keys=KEYS):
    state = begin(OPTIMIZER)
    return functools.partial(
        learning.train_step, state, denoise, batch, keys,
        guide=guide, objective=objective, optimizer=OPTIMIZER,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reward", "rollout"])
def test_the_denoiser_gets_no_gradient_and_omega_does(name):
    def loss(params):
        denoise = gj.denoiser(network, PROCESS, params=params)
        _, metrics = step(ALL[name], denoise)()
        return metrics["loss"], metrics["grad_norm"]

    gradient, grad_norm = jax.jit(jax.grad(loss, has_aux=True))(params())
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0)
    assert grad_norm > 1e-4


@jax.custom_vjp
def marked(x):
    return jnp.tanh(x)


def _backward(residual, cotangent):
    raise AssertionError("the denoiser was differentiated")


marked.defvjp(lambda x: (marked(x), None), _backward)


def test_no_backward_pass_through_the_denoiser():
    denoise = gj.denoiser(lambda x, t, cond: marked(x) * (1 + cond)[:, None], PROCESS)
    for objective in LOCAL.values():
        jax.eval_shape(step(objective, denoise))
    # The mark works: a rollout does differentiate in x.
    with pytest.raises(AssertionError, match="was differentiated"):
        jax.eval_shape(step(ALL["rollout"], denoise))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_matrix_products_of_the_step(name):
    """Two products a pass, two passes, forward; of width 37, which nothing else has."""
    denoise = gj.denoiser(network, PROCESS, params=params(37))
    program = jax.jit(step(ALL[name], denoise)).lower().as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    wide = [line for line in products if "37x" in line]
    assert len(wide) < len(products)
    if name == "rollout":  # And in the backward pass, for the gradient in x.
        assert len(wide) > 4
    else:
        assert len(wide) == 4


@pytest.mark.slow
def test_flops_of_a_step_are_those_of_its_forward_passes():
    """Within 5%, the optimizer, the noise and the pairwise distances included."""
    d, objective = 64, LOCAL["energy"]
    denoise = gj.denoiser(network, PROCESS, params=params(4096, d))
    batch = BATCH._replace(x0=jnp.ones((N, d)))

    def forward(x, t, cond):
        return denoise(x, t, cond), denoise(x, t, jnp.full_like(cond, 2))

    n = N * objective.particles
    x, cond = jnp.ones((n, d)), jnp.zeros((n,), jnp.int32)
    flops = lambda fn, *args: jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]
    bare = flops(forward, x, jnp.full((n,), 0.5), cond)
    assert bare > 0.95 * 2 * n * 2 * (2 * d * 4096)  # The count counts the products.
    assert flops(step(objective, denoise, batch)) < 1.05 * bare


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["reward", "rollout"])
def test_gradients_in_omega_agree_with_finite_differences(name):
    wide = lambda tree: jax.tree.map(
        lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
    )
    objective, batch = ALL[name], wide(BATCH)
    if name == "rollout":
        objective = objectives.rollout(particles=3, steps=4)  # Its grid of times in float64 too.
    denoise = gj.denoiser(network, PROCESS, params=wide(params()))

    @jax.jit
    @jax.value_and_grad
    def loss(omega):
        guide = gj.guidance(gj.cfg, omega=omega)
        return jnp.mean(objective(KEYS, guide, denoise, batch))

    h = 1e-5
    low, high = loss(jnp.float64(0.6 - h))[0], loss(jnp.float64(0.6 + h))[0]
    value, gradient = loss(jnp.float64(0.6))
    assert value.dtype == jnp.float64
    assert abs(gradient) > 1e-4
    np.testing.assert_allclose(gradient, (high - low) / (2 * h), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [1.0, 1.75])
def test_compiled_gradients_in_single_precision(beta):
    """No particle is at a distance from itself, which rounding in a compiled program puts there."""
    objective, batch, keys = (
        objectives.self_consistency(beta, 2),
        examples(64),
        jax.random.split(KEY, 64),
    )

    def gradient(omega):
        guide = lambda w: gj.guidance(gj.cfg, omega=w)
        loss = lambda w: jnp.sum(objective(keys, guide(w), EXACT, batch))
        return jax.grad(loss)(omega)

    omega = jnp.linspace(0.1, 1.0, 64)
    np.testing.assert_allclose(jax.jit(gradient)(omega), gradient(omega), atol=2e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_rematerialisation_changes_nothing():
    denoise = gj.denoiser(network, PROCESS, params=params())

    def loss(omega, remat):
        objective = objectives.rollout(particles=3, steps=4, remat=remat)
        guide = gj.guidance(gj.cfg, omega=omega)
        return jnp.mean(objective(KEYS, guide, denoise, BATCH))

    both = jax.jit(lambda omega: [jax.value_and_grad(loss)(omega, r) for r in ("none", "step")])
    np.testing.assert_allclose(*both(0.6), rtol=1e-6)
    jaxprs = [
        str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(0.6, r)) for r in ("none", "step")
    ]
    assert ["checkpoint" in jaxpr or "remat" in jaxpr for jaxpr in jaxprs] == [False, True]

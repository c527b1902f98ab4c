import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidejax._guidance import chain, guidance
from guidejax.processes import cosine, edm, rectified_flow
from guidejax.rules import cfg, ep_cfg, epsilon_scaling, norm_cap, rescale, token_norm, tsr
from guidejax.weights import Step


def normal(seed, shape=(2, 4, 4, 3)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_rescale_is_the_papers_formula_with_numpys_std():
    c, g = normal(0), 3 * normal(1) + 2
    axes = (1, 2, 3)
    expected = 0.7 * g * np.std(c, axis=axes, keepdims=True) / np.std(g, axis=axes, keepdims=True)
    expected += 0.3 * g
    np.testing.assert_allclose(rescale(c, g), expected, rtol=1e-12)
    np.testing.assert_allclose(np.std(rescale(c, g, phi=1.0), axis=axes), np.std(c, axis=axes))


@pytest.mark.slow
def test_rescale_leaves_a_constant_as_it_is():
    # 0.1 has a standard deviation of rounding errors, which must not be divided by.
    g = jnp.full((1, 1000), 0.1)
    np.testing.assert_array_equal(rescale(jnp.asarray(normal(0, (1, 1000))), g), g)


@pytest.mark.slow
@pytest.mark.parametrize("refine", [rescale, norm_cap, token_norm, ep_cfg])
def test_what_needs_no_change_is_returned_bit_for_bit(refine):
    c = normal(2).astype(jnp.float32)
    np.testing.assert_array_equal(refine(c, c), c)


def test_norm_cap_shrinks_only_what_is_over():
    c, g = jnp.ones((2, 4)), jnp.stack([jnp.full(4, 3.0), jnp.full(4, 1.25)])
    np.testing.assert_allclose(norm_cap(c, g, rho=1.5), [[1.5] * 4, [1.25] * 4], rtol=1e-6)
    np.testing.assert_allclose(
        norm_cap(c, g, rho=jnp.array([2.0, 1.0])), [[2.0] * 4, [1.0] * 4], rtol=1e-6
    )


def test_token_norm_along_another_axis_and_shrinking():
    c = jnp.array([[[3.0, 0.0], [4.0, 1.0]]])
    g = jnp.array([[[0.0, 0.5], [10.0, 0.0]]])
    np.testing.assert_allclose(token_norm(c, g, axis=1), [[[0, 1.0], [5, 0]]], rtol=1e-6)
    np.testing.assert_allclose(
        token_norm(c, g, axis=1, shrink=True), [[[0, 0.5], [5, 0]]], rtol=1e-6
    )
    np.testing.assert_allclose(
        token_norm(c, g, axis=1, strength=0.5), [[[0, 0.75], [7.5, 0]]], rtol=1e-6
    )


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("lo", "hi"), [(45.0, 55.0), (0.0, 100.0), (10.0, 90.0)])
def test_ep_cfg_with_numpys_percentiles(lo, hi):
    c, g = normal(3, (2, 101)), 4 * normal(4, (2, 101))

    def energy(x):
        squares = np.asarray(x) ** 2
        ends = np.percentile(squares, [lo, hi], axis=1)[:, :, None]
        return np.sum(squares * (squares >= ends[0]) * (squares <= ends[1]), axis=1)

    expected = g * np.sqrt(energy(c) / energy(g))[:, None]
    np.testing.assert_allclose(ep_cfg(c, g, lo=lo, hi=hi), expected, rtol=1e-12)


def test_ep_cfg_keeps_the_norm_over_all_percentiles():
    c, g = normal(5), 7 * normal(6)
    kept = ep_cfg(c, g, lo=0.0, hi=100.0)
    np.testing.assert_allclose(
        jnp.linalg.norm(kept.reshape(2, -1), axis=1),
        jnp.linalg.norm(c.reshape(2, -1), axis=1),
        rtol=1e-5,
    )


def test_ep_cfg_on_a_handful_of_elements_counts_the_middle_ones():
    # No element of four lies between the 45th and 55th percentile; the two around them count.
    c, g = jnp.array([[1.0, 3.0, 4.0, 9.0]]), jnp.array([[0.1, 6.0, 8.0, 50.0]])
    np.testing.assert_allclose(ep_cfg(c, g), g / 2, rtol=1e-6)


def test_ep_cfg_refuses_percentiles_the_wrong_way_round():
    with pytest.raises(ValueError, match="lo ≤ hi"):
        ep_cfg(jnp.ones((1, 2)), jnp.ones((1, 2)), lo=60.0, hi=40.0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process", [rectified_flow(), cosine(), edm()])
@pytest.mark.parametrize("k", [0.25, 0.9, 2.0])
def test_tsr_turns_a_gaussian_into_its_power(process, k):
    scale, t, x = 1.7, 0.4, normal(7)
    a, s = process.alpha(t), process.sigma(t)
    eps = s * x / (a**2 * scale**2 + s**2)
    # N(0, s²)^k is N(0, s²/k).
    expected = s * x / (a**2 * scale**2 / k + s**2)
    np.testing.assert_allclose(tsr(eps, t, process, k=k, scale=scale), expected, rtol=1e-12)


def test_tsr_is_the_guidance_of_x0_by_comfys_interpolation():
    """ComfyUI interpolates x0 between x/α and itself by r."""
    x, c = normal(8), normal(9)
    process, t = rectified_flow(), 0.5
    g = guidance(tsr, 0.0, k=0.8)
    got, _ = g.apply(
        g.init(x), {"cond": c}, Step(jnp.asarray(0.4), jnp.asarray(t), None, process, None, x)
    )
    r = (1 + 1) / (1 / 0.8 + 1)
    np.testing.assert_allclose(got, x / 0.5 + r * (c - x / 0.5), rtol=1e-4, atol=1e-5)


def test_epsilon_scaling_takes_a_schedule():
    g = guidance(chain(cfg, epsilon_scaling.bind(scale=lambda s, t, cond: 1 + t)), 0.0)
    x, c = jnp.array([[1.0]]), jnp.array([[0.0]])
    process, t = rectified_flow(), jnp.asarray(0.5)
    got, _ = g.apply(
        g.init(x), {"cond": c, "uncond": c}, Step(jnp.asarray(0.4), t, None, process, None, x)
    )
    # ε = 1/0.5 = 2; ε/1.5 = 4/3; x0 = (1 − 0.5 · 4/3)/0.5.
    np.testing.assert_allclose(got, [[2 / 3]], rtol=1e-5)


def test_a_chain_refines_in_the_space_of_each_rule():
    """In v the spread of x/2-like predictions differs from that in x0: `rescale` converts."""
    x, c, u = normal(10), normal(11), normal(12)
    process, t, s = cosine(), jnp.asarray(0.5), jnp.asarray(0.4)

    def guided(space):
        g = guidance(chain(cfg, rescale.bind(phi=1.0)), 4.0, space=space)
        return g.apply(g.init(x), {"cond": c, "uncond": u}, Step(s, t, None, process, None, x))[0]

    a, sigma = process.alpha(t), process.sigma(t)
    v = lambda x0: (a * x - x0) / sigma
    by_hand = rescale(v(c), v(c + 4 * (c - u)), phi=1.0)
    np.testing.assert_allclose(guided(None), a * x - sigma * by_hand, rtol=1e-4, atol=1e-5)
    assert jnp.max(jnp.abs(guided("x0") - guided(None))) > 0.1


def test_numbers_are_differentiated():
    c, g = normal(13), 3 * normal(14)
    slope = jax.grad(lambda phi: jnp.sum(rescale(c, g, phi=phi)))(0.5)
    np.testing.assert_allclose(
        slope, jnp.sum(rescale(c, g, phi=1.0)) - jnp.sum(g), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [(rescale, {"phi": 1.0}), (ep_cfg, {"lo": 0.0, "hi": 100.0}), (token_norm, {})],
)
@pytest.mark.parametrize("times", [1e-38, 1e-30, 1e-6, 1e4, 1e8, 1e30])
def test_a_length_is_set_however_far_it_is(rule, numbers, times):
    """A ratio of lengths may have no place in float32 where both lengths have one."""
    size = 1e-2 if times > 1e6 else 1e8
    c = size * np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    c = c - (c.mean((1, 2), keepdims=True) if rule is rescale else 0)
    got = rule(jnp.asarray(c), jnp.asarray(c * times, jnp.float32), **numbers)
    np.testing.assert_allclose(got, c, rtol=2e-5, atol=2e-5 * size)
    back = norm_cap(jnp.asarray(c), jnp.asarray(c * 1e6, jnp.float32))
    np.testing.assert_allclose(back, c, rtol=2e-5)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidejax.rules import adg, cfg_zero, slerp

pytestmark = pytest.mark.usefixtures("x64")

OMEGA = np.array([0.0, 0.6, 9.0])


@pytest.fixture
def pair():
    return tuple(map(jnp.asarray, np.random.default_rng(0).normal(size=(2, 3, 4, 4, 3))))


def norm(a):
    return np.linalg.norm(np.asarray(a).reshape(len(a), -1), axis=1)


def angle(a, b):
    a, b = (np.asarray(v).reshape(len(v), -1) for v in (a, b))
    cosine = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return np.arccos(cosine)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def numpy_adg(c, u, omega, cap=np.pi / 3):
    """One sample, as the authors' program goes, with their k at ω instead of ω + 10⁻³."""
    cosine = np.vdot(c, u) / np.linalg.norm(c) / np.linalg.norm(u)
    theta = np.arccos(cosine)
    turn = np.clip(omega * theta, -cap, cap)
    difference = c - u
    e = difference - np.vdot(difference, u) / np.vdot(u, u) * u
    return np.cos(turn) * c + e * np.sin(turn) / np.sin(theta)


@pytest.mark.slow
def test_adg_against_the_program(pair):
    c, u = pair
    expected = [numpy_adg(*each) for each in zip(*map(np.asarray, pair), OMEGA, strict=True)]
    close(adg(c, u, OMEGA), np.stack(expected))
    expected = [
        numpy_adg(*each, cap=9e9) for each in zip(*map(np.asarray, pair), OMEGA, strict=True)
    ]
    close(adg(c, u, OMEGA, max_angle=None), np.stack(expected))
    close(adg(c, u, OMEGA, max_angle=jnp.inf), np.stack(expected))


@pytest.mark.slow
def test_adg_by_hand():
    """c and u at 60°, w = 1.78 in the notes on the paper."""
    c, u = jnp.asarray([[1.0, 0.0]]), jnp.asarray([[0.5, 3**0.5 / 2]])
    np.testing.assert_allclose(norm(adg(c, u, 0.78)), [1.36539976], atol=5e-9)


def test_adg_norm_is_bounded(pair):
    c, u = pair
    theta = angle(c, u)
    turn = np.minimum(OMEGA * theta, np.pi / 3)
    guided = adg(c, u, OMEGA)
    close(norm(guided) ** 2, norm(c) ** 2 * (1 + np.sin(2 * turn) * np.sin(theta)))
    rng = np.random.default_rng(4)
    c = jnp.asarray(rng.normal(size=(500, 2)))
    u, omega = jnp.asarray(rng.normal(size=(500, 2))), jnp.asarray(rng.exponential(3, 500))
    ratio = norm(jax.jit(adg.fn)(c, u, omega)) / norm(c)
    assert ratio.max() <= np.sqrt(2) + 1e-12
    assert ratio.min() >= 1 - 1e-12  # never shorter than c
    assert ratio.max() > 1.4  # and the bound is reached


def test_adg_saturates_in_omega(pair):
    c, u = pair
    np.testing.assert_array_equal(adg(c, u, 50.0), adg(c, u, 500.0))
    assert not np.allclose(adg(c, u, 50.0), adg(c, u, 50.0, max_angle=1.0))
    np.testing.assert_array_equal(adg(c, u, -2.0), c)


@pytest.mark.slow
def test_adg_at_small_angles_drops_what_is_along_u():
    """It becomes c + ω P_u⊥(c − u), the formula of CFG-Zero* on x̂0, to second order in c − u."""
    u, direction = map(jnp.asarray, np.random.default_rng(5).normal(size=(2, 3, 30)))
    off = []
    for size in (1e-3, 1e-4):
        c = u + size * direction
        off.append(norm(adg(c, u, 5.0) - cfg_zero(c, u, 5.0)))
    assert np.all(off[0] < 0.1 * 1e-3 * 5.0 * norm(direction))
    np.testing.assert_allclose(off[1], 1e-2 * off[0], rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [adg, slerp])
def test_angle_of_each_pixel_and_each_channel(pair, rule):
    c, u = pair
    pixels = lambda a: a.reshape(-1, 3)
    channels = lambda a: jnp.moveaxis(a, -1, 1).reshape(9, -1)
    omega, whole = jnp.asarray(OMEGA), jax.jit(rule.fn)
    close(pixels(rule(c, u, omega, axis=-1)), whole(pixels(c), pixels(u), jnp.repeat(omega, 16)))
    by_channel = whole(channels(c), channels(u), jnp.repeat(omega, 3))
    close(channels(rule(c, u, omega, axis=(1, 2))), by_channel)


def test_adg_renormalised_keeps_the_norm_of_each_pixel(pair):
    c, u = pair
    guided = adg(c, u, OMEGA, norm_axis=-1)
    free = adg(c, u, OMEGA)
    length = lambda a: np.linalg.norm(a, axis=-1, keepdims=True)
    close(length(guided), length(c))
    close(guided / length(guided), free / length(free))
    np.testing.assert_array_equal(guided[0], c[0])


@pytest.mark.parametrize("rule", [adg, slerp])
def test_without_a_plane_or_an_angle(rule):
    c = jnp.asarray([[3.0, 4.0]])
    np.testing.assert_array_equal(rule(c, 0 * c, 2.0), c)
    np.testing.assert_array_equal(rule(0 * c, c, 2.0), 0 * c)
    close(rule(c, 2 * c, 2.0), c)
    close(rule(c, -c, 2.0), c / 2)  # π · 2 capped at π/3


@pytest.mark.parametrize("rule", [adg, slerp])
def test_gradient_in_omega_at_zero_is_the_slope_above(pair, rule):
    c, u = pair
    one_sided = (rule(c, u, 1e-6) - c) / 1e-6
    slope = jax.jit(jax.jacrev(lambda omega: rule(c, u, omega)[:1, 0, 0]))(0.0)
    np.testing.assert_allclose(slope, one_sided[:1, 0, 0], rtol=1e-4, atol=1e-4)


def test_slerp_turns_by_exactly_that_angle(pair):
    c, u = pair
    omega = np.array([0.2, 0.4, 0.55])  # θ + ω θ < π
    guided, theta = slerp(c, u, omega), angle(c, u)
    close(angle(guided, u), theta + omega * theta)
    close(norm(guided), norm(c))
    capped = slerp(c, u, 50.0)
    close(angle(capped, c), [np.pi / 3] * 3)
    # ADG turns by less.
    assert np.all(angle(adg(c, u, omega), u) < theta + omega * theta - 0.05)


def test_slerp_is_shoemakers(pair):
    c, u = (np.asarray(v) / norm(v)[:, None, None, None] for v in pair)
    theta, w = angle(c, u)[:, None, None, None], 1.3
    expected = np.sin((1 - w) * theta) * u + np.sin(w * theta) * c
    close(slerp(jnp.asarray(c), jnp.asarray(u), w - 1), expected / np.sin(theta))


def test_slerp_backwards_ends_at_u(pair):
    c, u = pair
    back = slerp(c, u, -1.0, max_angle=None)
    close(back, u * (norm(c) / norm(u))[:, None, None, None])


@pytest.mark.parametrize("shape", [(1,), (4, 4, 1)])
@pytest.mark.parametrize("rule", [adg, slerp])
def test_one_element_is_a_vector_too(rule, shape):
    """It is parallel to any other: what is left across it is rounding, or 0, as the compiler has
    it."""
    c, u = np.random.default_rng(0).normal(size=(2, 64, *shape)).astype(np.float32)
    u[::4], c[1::4] = 0, 0

    def total(c, u, omega):
        guided = rule(c, u, omega, axis=-1)
        return guided.sum(), guided

    omega = jnp.linspace(-0.5, 5.0, 64)
    slopes, guided = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(c, u, omega)
    for leaf in (guided, *slopes):
        assert np.all(np.isfinite(leaf))

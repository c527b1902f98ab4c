import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidejax.metrics import branch_angle, effective_omega, off_line_fraction


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_recovers_omega_per_sample(x64):
    cond, uncond = draw(0, 4, 2, 3), draw(1, 4, 2, 3)
    omega = np.array([-1.0, 0.0, 0.5, 7.5])
    guided = cond + omega[:, None, None] * (cond - uncond)
    np.testing.assert_allclose(effective_omega(guided, cond, uncond), omega, atol=1e-12)
    np.testing.assert_allclose(off_line_fraction(guided, cond, uncond), 0, atol=1e-12)


def test_is_the_least_squares_fit(x64):
    cond, uncond, guided = draw(0, 5, 6), draw(1, 5, 6), draw(2, 5, 6)
    got, off = effective_omega(guided, cond, uncond), off_line_fraction(guided, cond, uncond)
    for i in range(5):
        delta, move = (cond - uncond)[i], (guided - cond)[i]
        omega, residual = np.linalg.lstsq(delta[:, None], move, rcond=None)[:2]
        np.testing.assert_allclose(got[i], omega[0], rtol=1e-10)
        np.testing.assert_allclose(off[i], np.sqrt(residual[0] / (move @ move)), rtol=1e-10)


def test_off_line_fraction_is_a_sine():
    cond, uncond = np.array([[1.0, 0.0]]), np.zeros((1, 2))
    for angle in (0.0, 0.3, np.pi / 2, 2.5):
        move = 1e-4 * np.array([[np.cos(angle), np.sin(angle)]])
        got = off_line_fraction(cond + move, cond, uncond)
        np.testing.assert_allclose(got, np.sin(angle), atol=2e-3)


def test_where_the_branches_agree():
    x = draw(0, 2, 3)
    moved = x + 1
    np.testing.assert_array_equal(effective_omega(moved, x, x), 0)
    np.testing.assert_array_equal(off_line_fraction(moved, x, x), 1)
    np.testing.assert_array_equal(off_line_fraction(x, x, moved), 0)
    np.testing.assert_allclose(branch_angle(x, x), 0, atol=1e-6)
    zero = np.zeros_like(x)
    for a, b in ((zero, x), (x, zero), (zero, zero)):
        np.testing.assert_array_equal(branch_angle(a, b), 0)


@pytest.mark.parametrize("metric", [effective_omega, off_line_fraction])
def test_gradients_finite_everywhere(metric):
    x, zero = draw(0, 2, 3), np.zeros((2, 3))
    slope = jax.jit(jax.grad(lambda *a: jnp.sum(metric(*a)), (0, 1, 2)))
    for triple in ((x, x, x), (x + 1, x, x), (x, x, x + 1), (zero, zero, zero), (x, zero, -x)):
        grads = slope(*triple)
        assert all(np.all(np.isfinite(g)) for g in grads)


def test_angle_gradients_finite_everywhere():
    x, zero = draw(0, 2, 3), np.zeros((2, 3))
    slope = jax.jit(jax.grad(lambda *a: jnp.sum(branch_angle(*a)), (0, 1)))
    for pair in ((x, x), (x, -x), (x, 2 * x), (x, zero), (zero, x), (zero, zero)):
        grads = slope(*pair)
        assert all(np.all(np.isfinite(g)) for g in grads)


@pytest.mark.parametrize("angle", [1e-5, 1e-3, 1.0, np.pi / 2, 3.0, np.pi])
def test_angle_in_float32(angle):
    a = np.array([[2.0, 0.0]])
    b = 5 * np.array([[np.cos(angle), np.sin(angle)]])
    np.testing.assert_allclose(branch_angle(a, b), angle, rtol=1e-5)
    np.testing.assert_allclose(branch_angle(b, a), angle, rtol=1e-5)


@pytest.mark.slow
def test_gradients_are_those_of_the_formula(x64):
    cond, uncond, guided = draw(0, 1, 4), draw(1, 1, 4), draw(2, 1, 4)
    d, step = draw(3, 3, 1, 4), 1e-6

    @jax.jit
    def along(t):
        g, c, u = guided + t * d[0], cond + t * d[1], uncond + t * d[2]
        return jnp.stack([effective_omega(g, c, u), off_line_fraction(g, c, u), branch_angle(c, u)])

    want = (along(step) - along(-step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.jacrev(along))(0.0), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: effective_omega(x, x, x[:1]), "one shape"),
        (lambda x: off_line_fraction(x, x[0], x), "one shape"),
        (lambda x: branch_angle(x[0, 0], x[0, 0]), "one shape"),
        (lambda x: effective_omega(x, x * np.nan, x), "NaN"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(draw(0, 2, 3))

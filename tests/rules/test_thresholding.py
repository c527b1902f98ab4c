import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidejax._arrays import quantile
from guidejax.rules import cfg, dynamic_threshold, ep_cfg, mimic, threshold


def normal(seed, shape=(3, 6, 5, 2)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_quantile_is_numpys_per_sample_and_per_column():
    x = normal(0, (3, 17, 2))
    for q in (0.0, 0.3, 0.995, 1.0):
        np.testing.assert_allclose(quantile(x, q), np.quantile(x, q, axis=1), rtol=1e-12)
    qs = jnp.array([0.1, 0.5, 0.77])
    expected = [np.quantile(x[i], float(q), axis=0) for i, q in enumerate(qs)]
    np.testing.assert_allclose(quantile(x, qs), expected, rtol=1e-12)
    slope = jax.grad(lambda q: quantile(x, q)[0, 0])(0.3)
    np.testing.assert_allclose(
        slope, (quantile(x, 0.301) - quantile(x, 0.3))[0, 0] / 1e-3, rtol=1e-6
    )


def test_threshold_has_an_end_for_each_sample():
    got = threshold(jnp.full((2, 3), 5.0), hi=jnp.array([1.0, 4.0]))
    np.testing.assert_array_equal(got, [[1] * 3, [4] * 3])
    with pytest.raises(ValueError, match="lo ≤ hi"):
        threshold(jnp.ones((1, 2)), lo=1.0, hi=0.0)


@pytest.mark.usefixtures("x64")
def test_dynamic_threshold_is_imagens_per_sample():
    g = normal(1) * jnp.array([0.1, 1.0, 9.0]).reshape(3, 1, 1, 1)
    got = dynamic_threshold(g, percentile=80.0)
    for i in range(3):
        s = max(1.0, np.percentile(np.abs(g[i]), 80))
        np.testing.assert_allclose(got[i], np.clip(g[i], -s, s) / s, rtol=1e-12)
    np.testing.assert_array_equal(got[0], g[0])
    assert jnp.max(jnp.abs(got)) <= 1


@pytest.mark.usefixtures("x64")
def test_dynamic_threshold_with_a_cap_of_one_is_static():
    g = 4 * normal(2)
    np.testing.assert_array_equal(dynamic_threshold(g, most=1.0), threshold(g))


@pytest.mark.usefixtures("x64")
def test_dynamic_threshold_of_other_ranges_is_the_same_rule_in_other_units():
    g = 4 * normal(3)
    np.testing.assert_allclose(
        dynamic_threshold(2 * g, limit=2.0, most=1.5),
        2 * dynamic_threshold(g, most=1.5),
        rtol=1e-12,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("percentile", [100.0, 95.0])
def test_mimic_has_the_range_of_the_lower_omega(percentile):
    c, u = normal(4), normal(5)
    got = np.asarray(mimic(c, u, cfg(c, u, 14.0), mimic_omega=3.0, percentile=percentile))
    want = np.asarray(cfg(c, u, 3.0))
    full = np.asarray(cfg(c, u, 14.0))
    axes = (1, 2)
    widest = lambda x, about: np.max(np.abs(x - about.mean(axes, keepdims=True)), axes)
    np.testing.assert_allclose(widest(got, full), widest(want, want), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_mimic_by_hand_channel_by_channel():
    c, u = normal(6), normal(7)
    guided = cfg(c, u, 9.0)
    forms = {("mean", "range"): 0, ("mean", "std"): 0, ("zero", "range"): 0, ("zero", "std"): 0}
    for centre, measure in forms:
        got = mimic(
            c, u, guided, mimic_omega=2.0, percentile=90.0, centre=centre, measure=measure, phi=0.5
        )
        for i in range(3):
            for k in range(2):
                m = np.asarray(cfg(c, u, 2.0)[i, ..., k])
                g = np.asarray(guided[i, ..., k])
                m, mean = m - m.mean(), g.mean()
                rm, rg = np.abs(m).max(), np.percentile(np.abs(g - mean), 90)
                if measure == "std":
                    rm, rg = m.std(), g.std()
                if centre == "zero":
                    full = g * rm / rg
                elif measure == "std":
                    full = (g - mean) * rm / rg + mean
                else:
                    full = np.clip(g - mean, -max(rm, rg), max(rm, rg)) * rm / max(rm, rg) + mean
                np.testing.assert_allclose(got[i, ..., k], (g + full) / 2, rtol=1e-10, atol=1e-12)


def test_mimic_names_its_options():
    x = jnp.ones((1, 2))
    with pytest.raises(ValueError, match="centre 'mean' or 'zero'"):
        mimic(x, x, x, centre="median")
    with pytest.raises(ValueError, match="measure 'range' or 'std'"):
        mimic(x, x, x, measure="AD")


@pytest.mark.slow
def test_an_empty_batch_comes_back_empty():
    none = jnp.zeros((0, 4, 4, 3))
    for guided in (dynamic_threshold(none), ep_cfg(none, none), mimic(none, none, none)):
        assert guided.shape == none.shape


@pytest.mark.slow
def test_mimic_of_channels_that_are_constant_or_short():
    """A constant channel has no range but rounding; a short one grows to any."""
    c = jnp.stack([jnp.full((12, 2), 1e21), jnp.full((12, 2), 0.1)])

    def total(c, u, g, centre):
        guided = mimic(c, u, g, mimic_omega=0.1, measure="std", centre=centre)
        return guided.sum(), guided

    for centre in ("mean", "zero"):
        run = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True), static_argnums=3)
        slopes, guided = run(c, c, c, centre)
        np.testing.assert_allclose(guided, c, rtol=1e-6)
        assert all(np.all(np.isfinite(slope)) for slope in slopes)
    wide = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 2)), jnp.float32)
    for options in ({"measure": "std"}, {"centre": "zero"}):
        got = mimic(1e15 * wide, 0 * wide, 1e-30 * wide, mimic_omega=0.0, **options)
        np.testing.assert_allclose(got - got.mean(1), 1e15 * (wide - wide.mean(1)), rtol=1e-4)

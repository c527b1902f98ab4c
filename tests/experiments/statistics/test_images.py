import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.statistics import (
    channel_statistics,
    clipped_fraction,
    rms_contrast,
    sample_norm,
    sample_rms,
    saturation,
)


def draw(seed, *shape):
    return np.random.default_rng(seed).uniform(size=shape)


def test_saturation_is_colorsyss(x64):
    images = draw(0, 2, 3, 4, 5, 3)
    want = np.apply_along_axis(lambda p: colorsys.rgb_to_hsv(*p)[1], -1, images).mean((-2, -1))
    assert want.shape == (2, 3)
    np.testing.assert_allclose(saturation(images, (0.0, 1.0)), want, rtol=1e-12)
    np.testing.assert_allclose(saturation(2 * images - 1), want, rtol=1e-12)
    np.testing.assert_allclose(saturation(255 * images, (0.0, 255.0)), want, rtol=1e-12)


def test_saturation_of_grey_black_and_overshoot():
    assert float(saturation(jnp.full((2, 2, 3), 0.3))) == 0
    assert float(saturation(jnp.full((2, 2, 3), -1.0))) == 0
    pure = jnp.array([[[9.0, -5.0, -2.0]]])  # clips to (1, 0, 0)
    assert float(saturation(pure)) == 1
    washed = jnp.array([[[9.0, 5.0, 2.0]]])  # clips to white
    assert float(saturation(washed)) == 0


def test_gradients_finite_at_black_and_flat_images():
    @jax.jit
    @jax.vmap
    def slopes(level):
        image = jnp.full((1, 2, 2, 3), level)
        metrics = (saturation, rms_contrast, lambda i: channel_statistics(i)[1])
        return [jax.grad(lambda i, f=f: jnp.sum(f(i)))(image) for f in metrics]

    for g in slopes(jnp.array([-1.0, 0.0, 1.0])):
        assert np.all(np.isfinite(g))
    red = jax.grad(saturation)(jnp.array([[[0.5, 0.0, 0.0]]]))
    assert float(red[0, 0, 0]) > 0


def test_clipped_fraction_counts():
    images = 4 * draw(0, 6, 4, 4, 2) - 2
    want = [np.mean(np.abs(i) > 1) for i in images]
    assert 0 < min(want) < max(want) < 1
    np.testing.assert_allclose(clipped_fraction(images), want, rtol=1e-6)
    assert float(clipped_fraction(jnp.array([[[-1.0, 1.0]]]))) == 0


def test_rms_contrast(x64):
    images = draw(0, 3, 4, 5, 3)
    luma = images @ np.array([0.2126, 0.7152, 0.0722])
    got = rms_contrast(images, (0.0, 1.0))
    np.testing.assert_allclose(got, luma.std((1, 2)), rtol=1e-12)
    grey = images[..., :1]
    np.testing.assert_allclose(rms_contrast(grey, (0.0, 1.0)), grey.std((1, 2, 3)), rtol=1e-12)
    same = np.repeat(grey, 3, axis=-1)
    np.testing.assert_allclose(rms_contrast(same), rms_contrast(grey), rtol=1e-12)


def test_channel_statistics(x64):
    images = draw(0, 2, 3, 4, 5, 6) * 10
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, images.mean((2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, images.std((2, 3)), rtol=1e-12)


@pytest.mark.slow
def test_norms(x64):
    x = draw(0, 5, 3, 4)
    flat = x.reshape(5, -1)
    np.testing.assert_allclose(sample_norm(x), np.linalg.norm(flat, axis=1), rtol=1e-12)
    np.testing.assert_allclose(sample_rms(x), np.sqrt((flat**2).mean(1)), rtol=1e-12)
    for f in (sample_norm, sample_rms):
        assert f(x).dtype == jnp.float64
        g = jax.grad(lambda a, f=f: jnp.sum(f(a)))(jnp.zeros((2, 3)))
        np.testing.assert_array_equal(g, 0)


@pytest.mark.slow
def test_bfloat16_sums_in_float32():
    x = jnp.full((1, 64, 64, 3), 1.0, jnp.bfloat16)
    assert float(sample_norm(x)[0]) == pytest.approx(np.sqrt(64 * 64 * 3), rel=1e-6)
    for f in (saturation, rms_contrast, clipped_fraction, sample_norm, sample_rms):
        assert f(x).dtype == jnp.float32


@pytest.mark.slow
def test_per_sample():
    images = draw(0, 4, 3, 3, 3)
    for f in (saturation, rms_contrast, clipped_fraction, sample_norm, sample_rms):
        alone = np.concatenate([f(images[i : i + 1]) for i in range(4)])
        np.testing.assert_allclose(jax.jit(f)(images), alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "statistic",
    [
        saturation,
        clipped_fraction,
        rms_contrast,
        lambda x: channel_statistics(x)[0].mean(-1),
        lambda x: channel_statistics(x)[1].mean(-1),
        sample_rms,
        sample_norm,
    ],
)
def test_nan_in_nan_out_for_that_image_only(statistic):
    images = draw(0, 3, 2, 2, 3)
    images[1, 0, 0, 2] = np.nan
    np.testing.assert_array_equal(np.isnan(jax.jit(statistic)(images)), [False, True, False])
    with pytest.raises(ValueError, match="NaN"):
        statistic(images)
    with pytest.raises(ValueError, match="empty"):
        statistic(images[:0])


@pytest.mark.slow
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**66])
def test_norms_and_deviations_at_any_magnitude(scale):
    images = draw(0, 3, 2, 2, 3).astype(np.float32)
    for statistic in (sample_rms, sample_norm, lambda x: channel_statistics(x)[1]):
        got = statistic(images * np.float32(scale))
        np.testing.assert_allclose(got, statistic(images) * np.float32(scale), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: saturation(x[..., :2]), "channels last"),
        (lambda x: saturation(x, (1.0, 1.0)), "lo < hi"),
        (lambda x: rms_contrast(x[..., :2]), "channels last"),
        (lambda x: clipped_fraction(x[0, 0]), "height, width"),
        (lambda x: channel_statistics(x * np.nan), "NaN"),
        (lambda x: sample_norm(x[0, 0, 0]), "batch"),
        (lambda x: sample_rms(x[0, 0, 0]), "batch"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(draw(0, 2, 2, 2, 3))

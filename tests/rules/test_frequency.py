import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft, ndimage

from guidejax.rules import apg, cfg, fdg, fdg_projected, fresca
from guidejax.rules.frequency import dct_high_pass, from_pyramid, laplacian_pyramid

SIZES = [(8, 8), (7, 5), (1, 1), (2, 3), (1, 9)]


def normal(seed, size=(8, 8)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, *size, 3)))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [1, 4])
def test_the_pyramid_can_be_undone_at_any_size(size, levels):
    @jax.jit
    def there_and_back(x):
        bands = laplacian_pyramid(x, levels)
        assert len(bands) == levels
        return from_pyramid(bands)

    x = normal(0, size)
    np.testing.assert_allclose(there_and_back(x), x, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_a_band_is_what_blur_and_halving_lose():
    """By SciPy: mirrored binomial blur, pairs averaged; back by bilinear zoom and the blur."""
    x = np.asarray(normal(1))[0, :, :, 0]
    kernel = np.array([1, 4, 6, 4, 1]) / 16

    def blur(x):
        for axis in (0, 1):
            x = ndimage.correlate1d(x, kernel, axis=axis, mode="mirror")
        return x

    small = blur(x).reshape(4, 2, 4, 2).mean((1, 3))
    grown = blur(ndimage.zoom(small, 2, order=1, mode="nearest", grid_mode=True))
    bands = laplacian_pyramid(jnp.asarray(x)[None, :, :, None], 2)
    np.testing.assert_allclose(bands[1][0, :, :, 0], small, atol=1e-12)
    np.testing.assert_allclose(bands[0][0, :, :, 0], x - grown, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_constants_and_fine_noise_land_in_opposite_bands():
    high, low = laplacian_pyramid(jnp.ones((1, 8, 8, 1)), 2)
    np.testing.assert_allclose(high, 0, atol=1e-14)
    np.testing.assert_allclose(low, 1)
    board = jnp.asarray(np.indices((8, 8)).sum(0) % 2 * 2.0 - 1)[None, :, :, None]
    high, low = laplacian_pyramid(board, 2)
    assert jnp.max(jnp.abs(low)) < 0.01 < 0.9 < jnp.min(jnp.abs(high))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", SIZES)
def test_fdg_is_cfg_with_one_weight_for_all_bands(size):
    @jax.jit
    def every_way(c, u):
        levelled = fdg(c, u, 4.0, low=1.0, levels=3)
        projected = fdg_projected(c, u, 4.0, low=1.0, parallel=1.0, levels=3)
        return levelled, projected, fdg(c, u, 4.0, levels=1)

    c, u = normal(2, size), normal(3, size)
    for way in every_way(c, u):
        np.testing.assert_allclose(way, cfg(c, u, 4.0), atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_fdg_weighs_each_band():
    c, u = normal(4), normal(5)
    got = laplacian_pyramid(fdg(c, u, 6.0, low=0.5, levels=2), 2)
    (hc, lc), (hd, ld) = (laplacian_pyramid(x, 2) for x in (c, c - u))
    # A pyramid is overcomplete: what is put together by bands needn't come apart into the same.
    np.testing.assert_allclose(from_pyramid(got), from_pyramid([hc + 6 * hd, lc + 3 * ld]))
    three = fdg(c, u, 6.0, low=0.0, levels=3)
    bands = laplacian_pyramid(c - u, 3)
    expected = c + from_pyramid([6 * bands[0], 3 * bands[1], 0 * bands[2]])
    np.testing.assert_allclose(three, expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_fdg_projected_on_one_band_is_apg():
    c, u = normal(6), normal(7)
    expected = apg(c, u, 4.0, eta=0.25, max_norm=jnp.inf)
    np.testing.assert_allclose(
        fdg_projected(c, u, 4.0, parallel=0.25, levels=1), expected, atol=1e-12
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
@pytest.mark.parametrize("cutoff", [0, 1, 3, 20])
def test_fresca_is_a_box_in_fourier_space(size, cutoff):
    c, u = normal(8, size), normal(9, size)
    k = [np.abs(np.fft.fftfreq(n, 1 / n)) < cutoff for n in size]
    gain = np.where(k[0][:, None] & k[1], 0.3, 1.7)[None, :, :, None]
    filtered = np.fft.ifft2(gain * np.fft.fft2(c - u, axes=(1, 2)), axes=(1, 2))
    np.testing.assert_allclose(filtered.imag, 0, atol=1e-12)
    got = fresca(c, u, 4.0, low=0.3, high=1.7, cutoff=cutoff)
    np.testing.assert_allclose(got, u + 5 * filtered.real, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 4)])
def test_dct_high_pass_is_scipys_dct(size):
    x = normal(10, size)
    u, v = (np.arange(n) / n for n in size)
    mask = 1 / (1 + np.exp(-30 * (np.hypot(u[:, None], v) - 0.2)))
    spectrum = fft.dctn(np.asarray(x), axes=(1, 2), norm="ortho") * mask[None, :, :, None]
    expected = fft.idctn(spectrum, axes=(1, 2), norm="ortho")
    np.testing.assert_allclose(dct_high_pass(x, 0.2, 30.0), expected, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_a_plain_array_is_one_signal():
    x = jnp.asarray(np.random.default_rng(11).normal(size=(2, 9)))
    c, u = x, x[::-1]
    column = lambda rule: rule(c[:, :, None], u[:, :, None], 3.0)[:, :, 0]
    for rule in (fdg, lambda *a: fresca(*a, cutoff=2)):
        np.testing.assert_allclose(rule(c, u, 3.0), column(rule), atol=1e-12)


def test_options_out_of_range():
    x = jnp.ones((1, 4, 4, 1))
    with pytest.raises(ValueError, match="at least one level, got levels=0"):
        fdg(x, x, 1.0, levels=0)
    with pytest.raises(ValueError, match="cutoff ≥ 0, got -1"):
        fresca(x, x, 1.0, cutoff=-1)

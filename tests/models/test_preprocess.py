"""Preprocessing: equal to the originals', and differentiable."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.parity import clip as parity
from guidejax.models.preprocess import Kernel, Preprocess, center_crop, preprocess_from, resize

from .common import close, reference


def test_it_is_its_original():
    close(parity.CASES["clip-preprocess"](*reference("clip-preprocess")), 1e-5)


def test_a_constant_stays_one_and_the_middle_stays_where_it_is():
    grey = jnp.full((1, 31, 17, 3), 0.4)
    np.testing.assert_allclose(resize(grey, 7, 40), 0.4, rtol=1e-5)
    # A symmetric image stays symmetric.
    x = jax.random.uniform(jax.random.key(0), (1, 20, 20, 3))
    x = x + x[:, ::-1, ::-1]
    small = resize(x, 9, 9)
    np.testing.assert_allclose(small, small[:, ::-1, ::-1], atol=1e-5)


def test_normalised_pixels_have_the_means_and_deviations_of_their_channels():
    mean, std = np.array([0.1, 0.5, 0.9]), np.array([0.2, 0.3, 0.4])
    run = Preprocess(8, tuple(mean), tuple(std))
    for white in (-1.0, 0.0, 1.0):
        pixels = run(jnp.full((1, 8, 8, 3), white))
        np.testing.assert_allclose(pixels[0, 0, 0], ((white + 1) / 2 - mean) / std, rtol=1e-5)


def test_the_shorter_side_is_what_is_resized():
    x = jnp.zeros((1, 40, 20, 3)).at[:, :10].set(1.0).at[:, -10:].set(1.0)
    black = Preprocess(20, (0.0,) * 3, (0.5,) * 3)
    np.testing.assert_array_equal(black(x), 1)  # The middle: (0/2 + 1/2)/0.5.
    squeezed = Preprocess(20, (0.0,) * 3, (0.5,) * 3, crop=False)(x)
    assert float(squeezed[0, 0, 0, 0]) == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("shape", [(5, 9), (16, 16), (40, 33), (1, 1)])
def test_gradients_are_finite_and_outputs_of_the_input_s_dtype(shape, crop):
    x = jax.random.normal(jax.random.key(0), (2, *shape, 3), jnp.bfloat16)
    run = Preprocess(16, crop=crop)
    pixels, slope = jax.jit(jax.value_and_grad(lambda x: jnp.sum(run(x).astype("float32"))))(x)
    assert run(x).dtype == slope.dtype == jnp.bfloat16
    assert run(x).shape == (2, 16, 16, 3)
    assert np.isfinite(pixels)
    assert np.all(np.isfinite(slope.astype("float32")))


def test_what_a_file_says():
    usual = Preprocess(32)
    assert preprocess_from({}, 32, usual) == usual
    clip = {"size": {"shortest_edge": 32}, "do_center_crop": True, "image_std": [1, 1, 1]}
    assert preprocess_from(clip, 32, usual) == Preprocess(32, std=(1.0, 1.0, 1.0))
    siglip = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5]}
    assert preprocess_from(siglip, 32, usual) == Preprocess(32, (0.5,) * 3, crop=False)
    second = {**siglip, "resample": 2, "rescale_factor": 0.00392156862745098}
    assert preprocess_from(second, 32, usual).kernel == "linear"
    # Squeezed to what the crop would leave as it is.
    assert not preprocess_from({**siglip, "do_center_crop": True, "crop_size": 32}, 32, usual).crop
    assert preprocess_from({**clip, "crop_size": {"height": 32, "width": 32}}, 32, usual).crop
    plain = {"size": 32, "image_mean": [0.5, 0.5, 0.5], "do_normalize": False}
    assert preprocess_from(plain, 32, usual) == Preprocess(32, (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": {"shortest_edge": 36}}, "shorter side to 36; expected 32"),
        ({"size": 36}, "shorter side to 36; expected 32"),
        ({"resample": 5}, "resample=5; expected one of 0"),
        ({"rescale_factor": 1.0}, "by 1.0; expected 1/255"),
        ({"do_rescale": False}, "by 1; expected 1/255"),
        ({"size": {"height": 36, "width": 32}}, "'height': 36.*expected 32"),
        ({"size": {"longest_edge": 32}}, "longest_edge.*expected 32"),
        ({"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}, "crops.*28"),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": True, "crop_size": 28}, "to 28"),
        ({"size": {"shortest_edge": 32}, "do_center_crop": False}, "do_center_crop=false"),
        ({"do_resize": False}, "do_resize=false"),
    ],
)
def test_a_file_that_asks_for_what_is_not_done_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        preprocess_from(config, 32, Preprocess(32))


@pytest.mark.parametrize("kernel", get_args(Kernel))
@pytest.mark.parametrize(("height", "width"), [(7, 40), (13, 9), (50, 21)])
def test_each_kernel_is_pillow_s(kernel, height, width):
    x = np.random.default_rng(0).normal(size=(31, 17)).astype(np.float32)
    numbers = {"nearest": 0, "lanczos3": 1, "linear": 2, "cubic": 3}
    theirs = Image.fromarray(x).resize((width, height), numbers[kernel])
    got = resize(x[None, :, :, None], height, width, kernel)
    np.testing.assert_allclose(got[0, :, :, 0], np.asarray(theirs), atol=2e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: Preprocess(4)(x[0]), "expected floating-point images"),
        (lambda x: Preprocess(4)(x.astype(int)), "dtype int.*; expected floating-point images"),
        (lambda x: Preprocess(4)(x[..., :1]), r"expected images \(batch, height, width, 3\)"),
        (lambda x: Preprocess(0), "expected a positive size"),
        (lambda x: Preprocess(4, std=(1.0, 0.0, 1.0)), "positive std"),
        (lambda x: resize(x, 0, 3), "expected positive integers"),
        (lambda x: resize(x, 3, 3, "box"), "kernel='box'; expected one of nearest"),
        (lambda x: center_crop(x, 9, 3), "smaller than the crop 9 x 3"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((1, 8, 8, 3)))

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.rules import inpaint


def picture(seed, batch=2):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, 4, 4, 3)), jnp.float32)


def test_inpaint_is_a_projection():
    g, known = picture(0), picture(1)
    mask = jnp.zeros((1, 4, 4, 1)).at[:, :2].set(1)
    once = inpaint(g, known=known, mask=mask)
    np.testing.assert_array_equal(once[:, :2], known[:, :2])
    np.testing.assert_array_equal(once[:, 2:], g[:, 2:])
    np.testing.assert_array_equal(inpaint(once, known=known, mask=mask), once)


def test_sampling_keeps_the_known_part_and_the_rest_follows_it():
    """A network that predicts each picture's mean colour: the unknown half takes the known's."""
    known, mask = jnp.full((1, 4, 4, 3), 0.5), jnp.zeros((1, 4, 4, 1)).at[:, :2].set(1)
    mean = lambda x, t, cond: jnp.broadcast_to(jnp.mean(x, axis=(1, 2, 3), keepdims=True), x.shape)
    denoise = gj.denoiser(mean, gj.processes.rectified_flow())
    rule = gj.chain(gj.cfg, inpaint.bind(known=known, mask=mask))
    x = gj.sample(
        jax.random.key(0), denoise, picture(2), cond=jnp.zeros(2), uncond=jnp.zeros(2),
        guidance=gj.guidance(rule, 1.0), times=gj.uniform_times(8),
    )  # fmt: skip
    np.testing.assert_allclose(x[:, :2], 0.5, atol=1e-6)
    assert jnp.max(jnp.abs(x[:, 2:])) < 1


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        inpaint(picture(0), known=picture(1), mask=jnp.ones((4, 3)))


def test_a_mask_of_whole_numbers_is_one():
    g, known = jnp.full((1, 3), 0.5), jnp.ones((1, 3))
    mask = np.array([[1, 1, 0]], np.uint8)
    np.testing.assert_allclose(inpaint(g, known=known, mask=mask), [[1, 1, 0.5]])
    with pytest.raises(ValueError, match="3 numbers as mask for a batch of 1"):
        inpaint(g, known=known, mask=mask[0])

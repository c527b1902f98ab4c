import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import guidejax as gj
from experiments.parity.originals.common import value
from guidejax.models import clip, siglip
from guidejax.models._files import placement
from guidejax.models.preprocess import Preprocess
from guidejax.objectives.base import as_pytree, rewards_of

CONFIGS = {
    "clip": clip.Config(
        clip.TextConfig(16, 32, 1, 2, embedding=8, vocabulary=20, length=6, end=19),
        clip.VisionConfig(24, 32, 1, 2, embedding=8, image_size=16, patch=8),
    ),
    "siglip": siglip.Config(
        siglip.TextConfig(16, 32, 1, 2, embedding=24, vocabulary=20, length=6),
        siglip.VisionConfig(24, 32, 1, 2, image_size=16, patch=8),
    ),
}
# A reward of its arguments, compiled: each operation alone would be compiled for its own.
score = jax.jit(lambda reward, x0, cond: reward(x0, cond))
TOKENS = jnp.array([[18, 3, 4, 19, 19, 19], [18, 5, 19, 0, 7, 1]])


@functools.cache
def make(name="clip"):
    module, config = {"clip": clip, "siglip": siglip}[name], CONFIGS[name]
    params = {key: jnp.asarray(value(key, shape)) for key, shape in module.shapes(config).items()}
    kind = {"clip": clip.Clip, "siglip": siglip.Siglip}[name]
    return kind(params, config, Preprocess(16))


@pytest.fixture
def x0():
    return jax.random.uniform(jax.random.key(0), (2, 20, 24, 3), minval=-1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_cosine_of_the_embeddings(name, x0):
    model = make(name)
    reward = gj.rewards.clip_score(model)
    both = jax.jit(lambda model, x0: (model.image(x0).embedding, model.text(TOKENS).embedding))
    f, g = map(np.asarray, both(model, x0))
    want = np.sum(f * g, -1) / np.linalg.norm(f, axis=-1) / np.linalg.norm(g, axis=-1)
    np.testing.assert_allclose(score(reward, x0, {"tokens": TOKENS}), want, rtol=1e-4, atol=1e-6)
    # As objectives call it.
    assert as_pytree(reward) is reward
    found = jax.jit(lambda reward, x0: rewards_of(reward, x0, TOKENS))(reward, x0)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)
    named = gj.rewards.clip_score(model, key="caption")
    np.testing.assert_allclose(score(named, x0, {"caption": TOKENS}), want, rtol=1e-4, atol=1e-6)
    for tokens in (TOKENS[1], TOKENS[1:]):
        one = gj.rewards.clip_score(model, tokens)
        np.testing.assert_allclose(score(one, x0, None)[1], want[1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_parameters_are_leaves_and_those_of_texts_go_where_the_text_is_fixed(x0):
    model = make()
    count = len(model.params)
    assert len(jax.tree.leaves(gj.rewards.clip_score(model))) == count
    fixed = gj.rewards.clip_score(model, TOKENS[0])
    texts = [key for key in model.params if key.startswith("text_")]
    assert len(jax.tree.leaves(fixed)) == count - len(texts) + 1
    # Two of one kind are one program.
    run = jax.jit(lambda reward, x0: reward(x0, None))
    run(fixed, x0)
    run(gj.rewards.clip_score(model, TOKENS[1]), x0)
    assert run._cache_size() == 1


def test_a_string_is_split_by_the_model_s_tokenizer(x0):
    class Letters:
        def __call__(self, texts):
            texts = [texts] if isinstance(texts, str) else texts
            return np.array([[18, *(ord(c) % 18 for c in text[:4]), 19] for text in texts])

    model = dataclasses.replace(make(), tokenizer=Letters())
    tokens = Letters()("fish")
    want = score(gj.rewards.clip_score(model, tokens), x0, None)
    for text in ("fish", ["fish"]):
        found = score(gj.rewards.clip_score(model, text), x0, None)
        np.testing.assert_array_equal(found, want)
    with pytest.raises(ValueError, match="without a tokenizer's files"):
        gj.rewards.clip_score(make(), "fish")
    with pytest.raises(ValueError, match="one text for all samples"):
        gj.rewards.clip_score(model, ["fish", "bird"])


@pytest.mark.slow
def test_gradients_climb_and_are_finite(x0):
    cond = {"tokens": TOKENS}
    plain, kept = (gj.rewards.clip_score(make(), remat=remat) for remat in (True, False))
    slope = jax.jit(jax.grad(lambda x, reward: jnp.sum(reward(x, cond))))
    np.testing.assert_allclose(slope(x0, plain), slope(x0, kept), atol=1e-6)
    step = 0.1 * slope(x0, plain)
    assert np.all(score(plain, x0 + step, cond) > score(plain, x0, cond))
    for images in (jnp.zeros_like(x0), 100 * x0, x0.astype(jnp.bfloat16)):
        found = slope(images, plain)
        assert found.dtype == images.dtype
        assert np.all(np.isfinite(found.astype("float32")))
    empty = jax.tree.map(jnp.zeros_like, plain)
    np.testing.assert_array_equal(score(empty, x0, cond), 0)
    np.testing.assert_array_equal(slope(x0, empty), 0)


def test_half_precision_gives_float32(x0):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), gj.rewards.clip_score(make()))
    found = score(half, x0.astype(jnp.bfloat16), {"tokens": TOKENS})
    assert found.dtype == jnp.float32
    want = score(gj.rewards.clip_score(make()), x0, {"tokens": TOKENS})
    np.testing.assert_allclose(found, want, atol=0.03)


@pytest.mark.slow
def test_latents_are_decoded_first():
    latents = jax.random.normal(jax.random.key(1), (2, 4, 4, 5))
    matrix = jax.random.normal(jax.random.key(2), (5, 3))

    def decode(matrix, x):
        return jnp.tanh(jnp.repeat(jnp.repeat(x @ matrix, 4, 1), 4, 2))

    held = jax.tree_util.Partial(decode, matrix)
    reward = gj.rewards.clip_score(make(), TOKENS[0], decode=held)
    want = score(gj.rewards.clip_score(make(), TOKENS[0]), decode(matrix, latents), None)
    np.testing.assert_allclose(score(reward, latents, None), want, atol=1e-6)
    assert any(leaf is matrix for leaf in jax.tree.leaves(reward))
    plain = gj.rewards.clip_score(make(), TOKENS[0], decode=lambda x: decode(matrix, x))
    np.testing.assert_allclose(score(plain, latents, None), want, atol=1e-6)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(reward(x, None))))
    assert np.all(np.isfinite(slope(latents)))
    with pytest.raises(ValueError, match="Latents need `decode`"):
        gj.rewards.clip_score(make(), TOKENS[0])(latents, None)


@pytest.mark.slow
def test_within_an_objective(x0):
    """The reward's gradient reaches ω through the guided prediction of each particle."""
    batch = gj.objectives.Batch(
        x0[:, :16, :16], {"tokens": TOKENS}, {"uncond": {"tokens": jnp.zeros_like(TOKENS)}}
    )
    network = lambda x, t, cond: jnp.tanh(x + jnp.mean(cond["tokens"], 1)[:, None, None, None])
    denoise = gj.denoiser(network, gj.processes.rectified_flow())
    keys = jax.random.split(jax.random.key(0), 2)

    @jax.jit
    def loss(omega, objective):
        return objective(keys, gj.guidance(gj.cfg, omega=omega), denoise, batch)

    both = [
        gj.self_consistency(particles=2, reward=reward, reward_weight=weight)
        for reward, weight in ((None, 0.0), (gj.rewards.clip_score(make()), 2.0))
    ]
    plain, rewarded = (loss(0.5, objective) for objective in both)
    assert np.all(np.abs(plain - rewarded) > 1e-3)
    assert np.all(np.abs(plain - rewarded) <= 2)
    slopes = [jax.jit(jax.grad(lambda w, o=o: jnp.sum(loss(w, o))))(0.5) for o in both]
    assert np.all(np.isfinite(slopes))
    assert slopes[0] != slopes[1]


def test_embeddings_may_be_computed_beforehand(x0):
    model = make()
    reward = gj.rewards.clip_score(model, key="embedding")
    embeddings = 3 * model.text(TOKENS).embedding
    want = score(gj.rewards.clip_score(model), x0, {"tokens": TOKENS})
    np.testing.assert_allclose(score(reward, x0, {"embedding": embeddings}), want, atol=1e-6)
    with pytest.raises(ValueError, match="have 7 dimensions and images' 8"):
        reward(x0, {"embedding": embeddings[:, :7]})
    with pytest.raises(ValueError, match=r"expected \(batch, dimension\)"):
        reward(x0, {"embedding": embeddings[0]})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, x: r(x, None), "`cond` is None"),
        (lambda r, x: r(x, {"label": TOKENS}), "`cond` has label; expected .* under 'tokens'"),
        (lambda r, x: r(x, {"tokens": TOKENS[:1]}), "tokens of 1 texts for 2 samples"),
        (lambda r, x: r(x, {"tokens": TOKENS[0]}), r"expected integers of shape \(batch, length"),
        (lambda r, x: r(x[0], {"tokens": TOKENS}), "20 samples"),
        (lambda r, x: gj.rewards.clip_score(make(), TOKENS), "one text for all samples"),
        (lambda r, x: gj.rewards.clip_score(make), "no image tower"),
        (
            lambda r, x: gj.rewards.clip_score(
                clip.Clip(make().params, clip.Config(None, CONFIGS["clip"].vision))
            ),
            "no text tower",
        ),
    ],
)
def test_wrong_input(call, message, x0):
    with pytest.raises(ValueError, match=message):
        call(gj.rewards.clip_score(make()), x0)


@pytest.mark.slow
def test_over_devices(mesh, x0):
    """Whole parameters, the batch split."""
    reward, cond = gj.rewards.clip_score(make()), {"tokens": jnp.tile(TOKENS, (4, 1))}
    images = jnp.tile(x0, (4, 1, 1, 1))
    split = jax.device_put((images, cond), NamedSharding(mesh, PartitionSpec("data")))
    run = jax.jit(lambda x0, cond, reward: reward(x0, cond))
    np.testing.assert_allclose(run(*split, reward), run(images, cond, reward), atol=1e-5)
    slope = jax.jit(jax.grad(lambda x0, cond: jnp.sum(reward(x0, cond))))
    np.testing.assert_allclose(slope(*split), slope(images, cond), atol=1e-5)
    fixed = gj.rewards.clip_score(make(), TOKENS[0])
    np.testing.assert_allclose(run(*split, fixed), run(images, cond, fixed), atol=1e-5)


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_weights_over_devices(kind, x0):
    """Split parameters, a split batch, one text or one a sample; with and without jit."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    whole = make()
    places = {k: placement(k, v.shape, mesh, clip.RULES) for k, v in whole.params.items()}
    placed = dataclasses.replace(whole, params=jax.device_put(whole.params, places))
    images, cond = jnp.tile(x0, (4, 1, 1, 1)), {"tokens": jnp.tile(TOKENS, (4, 1))}
    split = jax.device_put((images, cond), NamedSharding(mesh, PartitionSpec("data")))
    slope = jax.jit(jax.value_and_grad(lambda x0, cond, reward: jnp.sum(reward(x0, cond))))
    for tokens in (TOKENS[0], None):
        ours, theirs = (gj.rewards.clip_score(model, tokens) for model in (placed, whole))
        pairs = zip(slope(*split, ours), slope(images, cond, theirs), strict=True)
        for found, want in pairs:
            np.testing.assert_allclose(found, want, atol=1e-5)
        np.testing.assert_allclose(ours(*split), score(theirs, images, cond), atol=1e-5)

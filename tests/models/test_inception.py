"""The Inception of FIDs: equal to torch-fidelity's, of the published file's keys, as a judge."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments import evaluate, learn
from experiments.parity import inception as parity
from experiments.parity.originals.common import layout
from guidejax.models import inception

from . import small
from .common import close, reference

make = functools.cache(parity.random_params)
ZEROS = {key: np.zeros(shape, np.float32) for key, shape in inception.shapes().items()}


@pytest.fixture
def x0():
    return jax.random.uniform(jax.random.key(0), (2, 20, 24, 3), minval=-1)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file with all that the published one holds."""
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    more = {"fc.weight": np.zeros((1008, 2048), "f"), "fc.bias": np.zeros(1008, "f")}
    write(path, make() | more | {"Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), int)})
    return path


def write(path, tensors):
    from safetensors.numpy import save_file

    path.parent.mkdir(exist_ok=True)
    save_file({key: np.asarray(value) for key, value in tensors.items()}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.CASES)
def test_it_is_its_original(name):
    close(parity.CASES[name](*reference(name)), 1e-5)


def test_it_has_the_keys_and_shapes_of_its_original():
    _, about = reference("inception-layouts")
    assert set(about["layouts"]) == set(parity.LAYOUTS)
    for name, found in about["layouts"].items():
        assert layout(parity.LAYOUTS[name]) == found, name


def test_resized_pixels_are_the_original_s():
    arrays, about = reference("inception")
    for name, shape in about["sizes"].items():
        found = inception.pixels(jnp.asarray(parity.images(*shape), jnp.float32))
        assert found.shape == (2, 299, 299, 3)
        theirs = (arrays[f"{name}_resized"] - 128) / 128
        np.testing.assert_allclose(found[:, ::13, ::13], theirs, atol=1e-6)


def test_resizing_takes_the_place_i_old_over_new_between_its_neighbours():
    x = jax.random.normal(jax.random.key(1), (1, 5, 7, 2))
    found = inception.resize(x, 8, 3)
    for i in range(8):
        for j in range(3):
            y, z = i * 5 / 8, j * 7 / 3
            want = 0
            for a, p in ((int(y), 1 - y % 1), (min(int(y) + 1, 4), y % 1)):
                for b, q in ((int(z), 1 - z % 1), (min(int(z) + 1, 6), z % 1)):
                    want += p * q * x[0, a, b]
            np.testing.assert_allclose(found[0, i, j], want, atol=1e-5)
    np.testing.assert_array_equal(inception.resize(x, 5, 7), x)
    assert inception.resize(x.astype(jnp.bfloat16), 2, 2).dtype == jnp.bfloat16


@pytest.mark.slow
def test_pictures_are_of_8_bits():
    levels = jnp.arange(256.0)
    images = jnp.tile((levels / 127.5 - 1)[:, None, None], (1, 1, 3))[None]
    near = images + jax.random.uniform(jax.random.key(0), images.shape, minval=-1, maxval=1) / 300
    for x in (images, near):
        found = 128 * inception.pixels(x, 256)[0, :, 0] + 128
        np.testing.assert_array_equal(found, jnp.tile(levels[:, None], (1, 3)))
    beyond = 128 * inception.pixels(jnp.array([-3.0, 3.0]).reshape(1, 2, 1, 1) * jnp.ones(3), 2)
    np.testing.assert_array_equal(beyond[0, :, 0, 0] + 128, [0, 255])
    # bfloat16 has no 256 levels between -1 and 1; what it has isn't rounded again.
    assert inception.pixels(images.astype(jnp.bfloat16), 8).dtype == jnp.float32


def test_the_gradient_goes_through_the_rounding_and_ends_beyond_the_range():
    x = jnp.array([-1.1, -1.0, -0.3, 0.999, 1.0, 1.2]).reshape(1, 6, 1, 1) * jnp.ones((6, 3))
    slope = jax.grad(lambda x: jnp.sum(inception.pixels(x, 6)))(x)
    want = jnp.array([0, 1, 1, 1, 1, 0]) * 127.5 / 128
    np.testing.assert_allclose(slope[0, :, 0, 0], want, rtol=1e-6)


def test_averages_leave_the_padding_out():
    np.testing.assert_allclose(inception._average(jnp.ones((1, 4, 5, 2))), 1, rtol=1e-6)
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(inception._average(x), jnp.full_like(x, 1.5))
    np.testing.assert_array_equal(inception._maximum(-x - 1, 1), jnp.full_like(x, -1))


@pytest.mark.slow
def test_the_published_file_loads_without_its_classifier(published):
    model = inception.load(published)
    assert {key: value.shape for key, value in model.params.items()} == inception.shapes()
    assert model.tokenizer is None
    for key in ("Mixed_6c.branch7x7dbl_4.conv.weight", "Conv2d_1a_3x3.bn.running_var"):
        np.testing.assert_array_equal(model.params[key], make()[key])
    assert len(jax.tree.leaves(model)) == len(inception.shapes())
    images = jax.ShapeDtypeStruct((3, 64, 48, 3), jnp.float32)
    found = jax.eval_shape(lambda model, x: model.image(x), model, images)
    assert found.pooled.shape == found.embedding.shape == (3, 2048)
    half = inception.load(published.parent, dtype=jnp.bfloat16)
    assert {value.dtype for value in half.params.values()} == {jnp.dtype(jnp.bfloat16)}


def test_files_of_other_models_are_told(tmp_path):
    rest = {key: value for key, value in ZEROS.items() if key != "Mixed_5b.branch1x1.bn.bias"}
    count = len(ZEROS)
    with pytest.raises(ValueError, match=f"1 of its {count} keys are missing .Mixed_5b.branch1x1"):
        inception.load(write(tmp_path / "less.safetensors", rest))
    torchvision = ZEROS | {"fc.weight": np.zeros((1000, 2048), "f"), "fc.bias": np.zeros(1000, "f")}
    with pytest.raises(ValueError, match=r"fc.weight is \(1000, 2048\), expected \(1008, 2048\)"):
        inception.load(write(tmp_path / "torchvision.safetensors", torchvision))
    other = {"encoder.block.0.layer.0.SelfAttention.q.weight": np.zeros((4, 4), "f")}
    with pytest.raises(ValueError, match=r"is not the Inception v3 of 2015-12-05.* like T5"):
        inception.load(write(tmp_path / "t5.safetensors", other))
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"isn't a safetensors file.*guidejax.models.convert"):
        inception.load(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: inception.features(ZEROS, x[0]), r"images have shape \(20, 24, 3\)"),
        (lambda x: inception.features(ZEROS, x[..., :2]), "Latents need `decode`"),
        (lambda x: inception.pixels((255 * x).astype(jnp.uint8)), "dtype uint8; expected floating"),
        (lambda x: inception.network(ZEROS, x), r"expected .*, 75 × 75 at least, as `pixels`"),
        (lambda x: inception.resize(x, 0, 3), "height and width are 0 and 3"),
        (lambda x: inception.resize(x[0], 3, 3), r"expected floating-point images"),
    ],
)
def test_wrong_input(call, message, x0):
    with pytest.raises(ValueError, match=message):
        call(x0)


def test_75_pixels_are_the_least():
    shape = lambda side: jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    for side in (75, 76):
        found = jax.eval_shape(inception.network, ZEROS, shape(side))
        assert found.shape == (1, 2048)


@pytest.mark.slow
def test_it_judges(published, tmp_path):
    for path in (published, published.parent):
        model = learn.judge(str(path), jnp.bfloat16, False)
        assert isinstance(model, inception.Inception)
        assert {value.dtype for value in model.params.values()} == {jnp.dtype(jnp.float32)}
    clip = small.judge(tmp_path / "clip")
    for path in (clip, clip / "model.safetensors"):
        assert learn.judge(str(path), jnp.float32, False).tokenizer is not None
    # In a folder with another model's config.json the file is what its keys say.
    (clip / "inception.safetensors").symlink_to(published)
    found = learn.judge(str(clip / "inception.safetensors"), jnp.float32, False)
    assert isinstance(found, inception.Inception)
    other = {"encoder.block.0.layer.0.SelfAttention.q.weight": np.zeros((4, 4), "f")}
    path = write(tmp_path / "t5" / "model.safetensors", other)
    with pytest.raises(SystemExit, match=r"isn't the Inception of FIDs: its keys look like T5"):
        learn.judge(str(path), jnp.float32, False)


@pytest.mark.slow
def test_the_distance_of_a_judge_is_the_fid(published, x0):
    model = inception.load(published)
    judge = evaluate.Judge(model, np.asarray(x0), ["a", "b"], 2)
    features, embeddings = judge.see(np.asarray(-x0))
    assert features.shape == (2, 2048)
    assert judge.cmmd(embeddings) is None
    assert judge.score(embeddings) is None
    assert judge.inception
    assert judge.distance(judge.real) == pytest.approx(0, abs=1e-3)
    assert judge.distance(features) > 1e-3


@pytest.mark.slow
def test_in_bfloat16(x0):
    half = jax.tree.map(lambda a: a.astype("bfloat16"), make())
    found, want = (jax.jit(inception.features)(params, x0) for params in (half, make()))
    assert found.dtype == jnp.bfloat16
    error = np.abs(np.asarray(found, np.float32) - want)
    assert error.max() < 0.1 * want.max()


@pytest.mark.slow
@pytest.mark.devices
def test_pictures_split_over_devices():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    images = jax.random.uniform(jax.random.key(0), (2, 20, 24, 3), minval=-1)
    model = inception.Inception(make())
    see = jax.jit(lambda model, x: model.image(x).pooled)
    want = see(model, images)
    found = see(model, jax.device_put(images, NamedSharding(mesh, PartitionSpec("data"))))
    assert found.sharding.spec[0] == "data"
    np.testing.assert_allclose(found, want, atol=1e-5 * float(want.max()))

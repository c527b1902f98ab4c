"""Training the emoji's denoiser, with every size cut down."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from experiments.emoji import captions, storage, towers, train

TINY = train.Config(steps=60, every=20, batch=4, width=24, depth=1)


@pytest.mark.slow
def test_tokens_are_the_words_that_train_has():
    said = captions.tokens(["woman golfing: dark skin tone", "xyzzy", ""])
    number = captions.vocabulary()
    assert said[0, :5].tolist() == [number[w] for w in ("woman", "golfing", "dark", "skin", "tone")]
    assert said.shape == (3, captions.LENGTH)
    assert not said[0, 5:].any()
    assert not said[1:].any()
    for split in ("train", "select", "report", "composed"):
        for caption in captions.pictures(split).captions:
            known = [w for w in captions.words(caption) if w in number]
            assert len(known) == len(captions.words(caption)) <= captions.LENGTH


def test_pictures_are_in_the_common_convention():
    x0 = captions.pictures("report").x0
    assert x0.shape == (461, 32, 32, 3)
    assert x0.dtype == np.float32
    assert (x0.min(), x0.max()) == (-1, 1)


@pytest.mark.slow
def test_the_network_sees_words_where_they_are_and_no_others():
    net = train.network(24, 1)
    x, t = jax.random.normal(jax.random.key(0), (2, 32, 32, 3)), jnp.array([0.3, 0.8])
    words = jax.random.normal(jax.random.key(2), (2, 5, 7)).at[0, 3:].set(0).at[1].set(0)
    params = net.init(jax.random.key(1), x, t, words)
    params = jax.tree.map(
        lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), params
    )  # Zeros where it begins: it would say nothing.
    f = jax.jit(net.apply)
    out = f(params, x, t, words)
    assert out.shape == x.shape
    assert np.abs(f(params, x, t, words[::-1]) - out).max() > 1e-3
    # Each sample by itself, and what stands for no word says nothing.
    np.testing.assert_allclose(f(params, x[:1], t[:1], words[:1]), out[:1], rtol=1e-3, atol=1e-4)
    order = params["params"]["order"].at[3:].set(9.0)
    other = {"params": {**params["params"], "order": order}}
    np.testing.assert_array_equal(f(other, x, t, words), out)


@pytest.mark.slow
def test_dropout_is_for_training_alone():
    net = train.network(24, 1, dropout=0.5)
    x, t, words = jnp.ones((1, 32, 32, 3)), jnp.ones(1), jnp.ones((1, 2, 3))
    params = jax.tree.map(lambda a: a + 0.1, net.init(jax.random.key(0), x, t, words))
    drop = lambda seed: net.apply(
        params, x, t, words, train=True, rngs={"dropout": jax.random.key(seed)}
    )
    assert np.abs(drop(0) - drop(1)).max() > 0
    still = train.network(24, 1).apply(params, x, t, words)
    np.testing.assert_array_equal(net.apply(params, x, t, words), still)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = dataclasses.replace(TINY, out=tmp_path_factory.mktemp("emoji"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw", lambda path, *_: path.write_bytes(b"drawn"))
        train.main(config)
    return config


@pytest.mark.slow
def test_the_averaged_weights_are_written(run):
    folder = run.out / "0"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 60]
    assert all(0 < line["held_out"] < 3 for line in lines)
    assert (folder / "samples-000060.png").exists()
    cond = towers.prompts(["red heart"])
    x0 = gj.sample(
        jax.random.key(0), train.load(folder / "denoiser-0.safetensors"), jnp.ones((1, 32, 32, 3)),
        cond=cond, uncond=towers.NULL, guidance=gj.guidance(gj.cfg, omega=1.0),
        times=gj.uniform_times(2),
    )  # fmt: skip
    assert np.isfinite(x0).all()


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(run, tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, out=tmp_path)
    monkeypatch.setattr(train, "draw", lambda *_: None)
    steps, left = train.train, [2]

    def stop(*args):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return steps(*args)

    monkeypatch.setattr(train, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        train.main(config)
    assert not (tmp_path / "0" / "denoiser-0.safetensors").exists()
    monkeypatch.setattr(train, "train", steps)
    train.main(config)
    name = "0/denoiser-0.safetensors"
    assert (tmp_path / name).read_bytes() == (run.out / name).read_bytes()
    with pytest.raises(SystemExit, match="other settings"):
        train.main(dataclasses.replace(config, batch=5))
    with pytest.raises(SystemExit, match="multiples of 20"):
        train.main(dataclasses.replace(config, every=30))


@pytest.mark.slow
def test_it_draws(tmp_path):
    net = train.network(24, 1)
    words = jnp.zeros((1, captions.LENGTH, 64))
    params = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.ones(1), words)
    train.draw(tmp_path / "samples.png", train.ready(net, params), storage.WEIGHTS, count=2)
    assert (tmp_path / "samples.png").stat().st_size > 1000

"""Training the emoji's denoiser, with every size cut down."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from experiments.emoji import captions, train

TINY = train.Config(steps=60, early=20, every=20, batch=4, width=24, depth=1)


def test_tokens_are_the_words_that_train_has():
    said = captions.tokens("woman golfing: dark skin tone")
    number = captions.vocabulary()
    assert said[:5].tolist() == [number[w] for w in ("woman", "golfing", "dark", "skin", "tone")]
    assert said.shape == (captions.LENGTH,)
    assert not said[5:].any()
    assert not captions.tokens("xyzzy").any()
    for split in ("train", "select", "report", "composed"):
        for caption in captions.pictures(split).captions:
            known = [w for w in captions.words(caption) if w in number]
            assert len(known) == len(captions.words(caption)) <= captions.LENGTH


def test_pictures_are_in_the_common_convention():
    x0 = captions.pictures("report").x0
    assert x0.shape == (461, 32, 32, 3)
    assert x0.dtype == np.float32
    assert (x0.min(), x0.max()) == (-1, 1)


def test_the_network_sees_words_where_they_are_and_no_others():
    net = train.network(24, 1)
    x, t = jax.random.normal(jax.random.key(0), (2, 32, 32, 3)), jnp.array([0.3, 0.8])
    said = jnp.asarray(np.stack([captions.tokens("red heart"), captions.tokens("")]))
    params = net.init(jax.random.key(1), x, t, said)
    params = jax.tree.map(
        lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), params
    )  # Zeros where it begins: it would say nothing.
    f = jax.jit(net.apply)
    out = f(params, x, t, said)
    assert out.shape == x.shape
    assert np.abs(f(params, x, t, said[::-1]) - out).max() > 1e-3
    # Each sample by itself, and what stands for no word says nothing.
    np.testing.assert_allclose(f(params, x[:1], t[:1], said[:1]), out[:1], rtol=1e-3, atol=1e-4)
    pad = params["params"]["Embed_0"]["embedding"].at[0].set(9.0)
    other = {"params": {**params["params"], "Embed_0": {"embedding": pad}}}
    np.testing.assert_array_equal(f(other, x, t, said), out)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = dataclasses.replace(TINY, out=tmp_path_factory.mktemp("emoji"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw", lambda path, denoise: path.write_bytes(b"drawn"))
        train.main(config)
    return config


@pytest.mark.slow
def test_weights_of_both_steps_are_written(run):
    folder = run.out / "0"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 60]
    assert all(0 < line["held_out"] < 3 for line in lines)
    assert (folder / "samples-000060.png").exists()
    early, late = (
        train.load(folder / f"denoiser-0{which}.safetensors") for which in ("-early", "")
    )
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), early.params, late.params)
    assert max(jax.tree.leaves(moved)) > 0
    cond = jnp.asarray(captions.tokens("red heart"))[None]
    x0 = gj.sample(
        jax.random.key(0), late, jnp.ones((1, 32, 32, 3)), cond=cond, uncond=0 * cond,
        guidance=gj.guidance(gj.cfg, omega=1.0), times=gj.uniform_times(2),
    )  # fmt: skip
    assert np.isfinite(x0).all()


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(run, tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, out=tmp_path)
    monkeypatch.setattr(train, "draw", lambda path, denoise: None)
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
        train.main(dataclasses.replace(config, early=30))
    with pytest.raises(SystemExit, match="from 1 to --steps, 60"):
        train.main(dataclasses.replace(config, early=80))


@pytest.mark.slow
def test_it_draws(tmp_path):
    net = train.network(24, 1)
    cond = jnp.zeros((1, captions.LENGTH), jnp.int32)
    params = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.ones(1), cond)
    denoise = gj.denoiser(net, train.PROCESS, prediction="velocity", params=params)
    train.draw(tmp_path / "samples.png", denoise, count=2)
    assert (tmp_path / "samples.png").stat().st_size > 1000

"""Evaluations made once: in memory, without the network, on several devices."""

import itertools

import jax
import numpy as np
import optax
import pytest

import guidejax as gj
from guidejax import learning, objectives
from tests.learning.common import ADAM, EXACT, KEY, MODEL, NET, PROCESS, Counting, examples, flat

OBJECTIVE = objectives.self_consistency(1.75, 2, ends=2, noise="expected")


def data(count=3, size=16):
    some = [examples(size, seed) for seed in range(count)]
    return [{"x0": np.asarray(b.x0), "cond": np.asarray(b.cond)} for b in some]


def kept(key=KEY, batches=None, **options):
    batches = data() if batches is None else batches
    options = {"objective": OBJECTIVE, "uncond": MODEL.null, **options}
    return list(learning.evaluate(key, EXACT, batches, **options))


def fit(denoise, batches, steps=6, **options):
    options = {"objective": OBJECTIVE, "optimizer": ADAM, **options}
    return gj.fit_omega(KEY, NET, denoise, batches, steps=steps, **options)


@pytest.mark.slow
def test_they_are_what_the_network_says():
    for batch, given in zip(kept(), data(), strict=True):
        np.testing.assert_array_equal(batch["x0"], given["x0"])
        found = batch["evaluations"]
        assert found["x"].shape == (16, 2, 1)
        for particle in range(2):
            x, t = found["x"][:, particle], found["t"]
            for name, cond in (("cond", given["cond"]), ("uncond", np.full(16, MODEL.null))):
                np.testing.assert_allclose(
                    found["predictions"][name][:, particle], EXACT(x, t, cond), rtol=1e-5, atol=1e-6
                )


@pytest.mark.slow
def test_x_is_noise_of_its_own_about_each_example():
    [batch] = kept(batches=data(1, 20_000))
    found, x0 = batch["evaluations"], batch["x0"][:, None]
    t = found["t"][:, None, None]
    noise = (found["x"] - (1 - t) * x0) / t
    np.testing.assert_allclose(noise.std(), 1, atol=0.02)
    assert abs(np.corrcoef(noise[:, 0, 0], noise[:, 1, 0])[0, 1]) < 0.03
    assert np.unique(found["t"]).size > 19_000


@pytest.mark.slow
def test_the_same_key_gives_the_same_and_another_others():
    once, again, other = kept(), kept(), kept(jax.random.key(9))
    np.testing.assert_array_equal(flat(once), flat(again))
    assert not np.array_equal(once[0]["evaluations"]["x"], other[0]["evaluations"]["x"])
    assert not np.array_equal(once[0]["evaluations"]["t"], once[1]["evaluations"]["t"])


@pytest.mark.slow
def test_learned_without_the_network():
    batches = kept()
    without = fit(PROCESS, itertools.cycle(batches))
    np.testing.assert_array_equal(flat(without), flat(fit(EXACT, itertools.cycle(batches))))
    assert not np.array_equal(flat(without), flat(fit(EXACT, itertools.cycle(data()))))


@pytest.mark.slow
def test_goes_on_from_a_checkpoint(tmp_path):
    whole = fit(PROCESS, Counting(kept()))
    fit(PROCESS, Counting(kept()), steps=4, checkpoint_dir=tmp_path / "run", save_every=2)
    rest = fit(PROCESS, Counting(kept()), checkpoint_dir=tmp_path / "run", save_every=2)
    np.testing.assert_allclose(flat(rest), flat(whole), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.devices
def test_on_a_mesh(mesh):
    batches = kept()
    here, there = (fit(PROCESS, itertools.cycle(batches), mesh=m) for m in (None, mesh))
    np.testing.assert_allclose(flat(there), flat(here), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_kept_examples_learn_as_fresh_ones_do():
    """A thousand examples kept, and the paper's estimator: the same ω to some noise."""
    options = {"optimizer": optax.adam(optax.cosine_decay_schedule(0.03, 150)), "steps": 150}
    one = fit(PROCESS, itertools.cycle(kept(batches=data(8, 128))), **options)
    paper = objectives.self_consistency(1.75, 4)
    other = fit(EXACT, itertools.cycle(data(150, 128)), objective=paper, **options)
    omega = lambda phi: np.asarray(NET.weight(phi)(0.4, 0.6, np.arange(2), process=PROCESS))
    np.testing.assert_allclose(omega(one), omega(other), atol=0.15)


def test_without_network_and_without_evaluations():
    with pytest.raises(ValueError, match="have no evaluations"):
        fit(PROCESS, data())


def test_a_rollout_can_t_be_kept():
    with pytest.raises(ValueError, match="don't depend on ω"):
        kept(objective=objectives.rollout(particles=4, steps=2))


def broken():
    [whole] = kept(batches=data(1))
    found = whole["evaluations"]
    nan = np.where(np.arange(16)[:, None, None] == 3, np.nan, found["x"])
    only = {"cond": found["predictions"]["cond"]}
    return {
        "t, x, predictions": {**whole, "evaluations": {"x": found["x"]}},
        "no prediction 'cond'": {**whole, "evaluations": {**found, "predictions": {}}},
        "NaN": {**whole, "evaluations": {**found, "x": nan}},
        "for 16 samples": {**whole, "evaluations": {**found, "t": found["t"][:8]}},
        "not the shape": {**whole, "evaluations": {**found, "x": found["x"][:, :1]}},
        "needs uncond": {**whole, "evaluations": {**found, "predictions": only}},
    }


def test_what_is_wrong_with_them_is_said():
    for what, batch in broken().items():
        with pytest.raises(ValueError, match=what):
            fit(PROCESS, [batch], steps=1)


def test_another_number_of_particles():
    with pytest.raises(ValueError, match="particles=4"):
        fit(PROCESS, kept(), objective=objectives.self_consistency(), steps=1)

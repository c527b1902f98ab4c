"""`fit`: any number of any guidance, batches held out, the best kept, weights of one's own."""

import contextlib
import dataclasses
import itertools
import json
import shutil
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import guidejax as gj
from guidejax import learning, objectives
from guidejax.weights import Range

from .common import KEY, NET, PROCESS, STILL, batches, chase, flat

STEADY = optax.sgd(0.1)


def up(keys, guidance, denoise, batch, networks=()):
    """An objective along which ω rises by 0.1 an update."""
    return -guidance.omega(0.3, 0.6) * jnp.ones(len(keys))


def constant(phi):
    return gj.guidance(gj.cfg, omega=phi)


def climb(steps=12, directory=None, **options):
    """ω = 1.1, 1.2, ... at updates 1, 2, ..."""
    options = {"uncond": 2, "score_every": 2, "save_every": 3, "steps_per_dispatch": 2, **options}
    return gj.fit(
        KEY, constant, jnp.array(1.0), STILL, batches(12), objective=up, optimizer=STEADY,
        steps=steps, checkpoint_dir=directory, **options,
    )  # fmt: skip


def near(omega):
    return lambda phi: (float(phi) - omega) ** 2


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


# The best is kept.


def test_the_best_by_a_score_is_returned_and_saved(tmp_path):
    phi = climb(directory=tmp_path, score=near(1.42))
    np.testing.assert_allclose(phi, 1.4, rtol=1e-6)  # of 1.2, 1.4, ..., 2.2
    logged = {line["step"]: line["score"] for line in lines(tmp_path) if "score" in line}
    assert sorted(logged) == [2, 4, 6, 8, 10, 12]
    np.testing.assert_allclose(logged[4], 0.02**2, rtol=1e-3)
    load = lambda best: learning.load(tmp_path, jnp.array(0.0), best=best)
    np.testing.assert_array_equal(load(True), phi)
    np.testing.assert_array_equal(load(None), phi)
    np.testing.assert_allclose(load(False), 2.2, rtol=1e-6)
    np.testing.assert_allclose(climb(), 2.2, rtol=1e-6)  # without a score, the last


@pytest.mark.slow
@pytest.mark.parametrize("stop", [3, 6, 9])
@pytest.mark.parametrize("omega", [1.42, 2.2])  # the best before the stop, and after it
def test_a_stopped_run_keeps_the_same_best_bit_for_bit(tmp_path, stop, omega):
    straight = climb(directory=tmp_path / "straight", score=near(omega))
    climb(stop, tmp_path / "stopped", score=near(omega))
    again = climb(directory=tmp_path / "stopped", score=near(omega))
    np.testing.assert_array_equal(again, straight)
    for best in (True, False):
        one, other = (
            learning.load(tmp_path / name, jnp.array(0.0), best=best)
            for name in ("straight", "stopped")
        )
        np.testing.assert_array_equal(one, other)
    # A run that has nothing left to do hands out its best as well.
    np.testing.assert_array_equal(climb(directory=tmp_path / "stopped", score=near(omega)), again)


@pytest.mark.slow
def test_batches_held_out_choose(tmp_path):
    """Their loss, the objective's at φ with keys of its own, says which φ is the best."""
    held = batches(2, seed=5)
    phi = gj.fit_omega(
        KEY, NET, STILL, batches(12), objective=chase, optimizer=optax.adam(0.3), steps=12,
        held_out=held, score_every=3, save_every=6, checkpoint_dir=tmp_path,
    )  # fmt: skip
    logged = {line["step"]: line["held_out"] for line in lines(tmp_path) if "held_out" in line}
    assert sorted(logged) == [3, 6, 9, 12]

    def loss(phi):
        each = []
        for i, batch in enumerate(held):
            keys = jax.random.split(jax.random.key(i), 8)
            made = objectives.Batch(batch["x0"], batch["cond"], {})
            each.append(chase(keys, gj.guidance(gj.cfg, omega=NET.weight(phi)), STILL, made).mean())
        return float(np.mean(each))

    np.testing.assert_allclose(loss(phi), min(logged.values()), rtol=1e-5)
    newest = gj.load_omega(tmp_path, best=False)[1]
    np.testing.assert_allclose(loss(newest), logged[12], rtol=1e-5)
    np.testing.assert_array_equal(flat(gj.load_omega(tmp_path)[1]), flat(phi))


def test_a_score_chooses_in_place_of_the_held_out_loss(tmp_path):
    phi = climb(directory=tmp_path, score=near(1.42), held_out=batches(1, seed=3))
    np.testing.assert_allclose(phi, 1.4, rtol=1e-6)  # the held-out loss falls to the end
    last = lines(tmp_path)[-1]
    assert {"held_out", "score"} <= set(last)
    np.testing.assert_allclose(last["held_out"], -2.2, rtol=1e-5)


def test_a_score_that_is_nan_is_never_the_best():
    scores = iter([float("nan"), 3.0, float("nan"), 2.0, float("nan"), 5.0])
    np.testing.assert_allclose(climb(score=lambda phi: next(scores)), 1.8, rtol=1e-6)


def test_where_no_score_is_a_number_the_last_is_returned(tmp_path):
    scores = iter([float("nan"), float("inf"), 2.0, 1.0, 3.0, float("nan")])
    best = climb(directory=tmp_path / "some", score=lambda phi: next(scores))
    np.testing.assert_allclose(best, 1.8, rtol=1e-6)
    np.testing.assert_array_equal(learning.load(tmp_path / "some", jnp.array(0.0)), best)
    with pytest.warns(UserWarning, match="no score was a number"):
        last = climb(directory=tmp_path / "none", score=lambda phi: float("nan"))
    np.testing.assert_allclose(last, 2.2, rtol=1e-6)
    np.testing.assert_array_equal(learning.load(tmp_path / "none", jnp.array(0.0)), last)


@pytest.mark.parametrize(
    ("before", "omega", "want"),
    [
        ({"held_out": batches(1, seed=3)}, 1.8, 1.8),
        ({"score": near(1.21)}, 1.8, 1.8),
        ({"score": near(1.41)}, 1.38, 1.4),  # what is the best today as well
    ],
)
def test_the_best_so_far_is_scored_by_what_scores_today(tmp_path, before, omega, want):
    """A loss of 0.03 isn't better than a Fréchet distance of 7."""
    climb(6, tmp_path, **before)
    best = climb(12, tmp_path, score=lambda phi: 7 + near(omega)(phi))
    np.testing.assert_allclose(best, want, rtol=1e-6)
    np.testing.assert_array_equal(learning.load(tmp_path, jnp.array(0.0)), best)


def test_a_finished_run_is_scored_by_what_scores_today(tmp_path):
    climb(4, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for omega, want in ((9.0, 1.4), (1.2, 1.4), (9.0, 1.4)):  # 1.2 wasn't kept.
            best = climb(4, tmp_path, score=near(omega))
            np.testing.assert_allclose(best, want, rtol=1e-6)
            np.testing.assert_array_equal(learning.load(tmp_path, jnp.array(0.0)), best)


def test_a_best_that_has_no_score_today_is_set_aside(tmp_path):
    climb(4, tmp_path, score=near(1.2))
    with pytest.warns(UserWarning, match="no number now"):
        last = climb(4, tmp_path, score=lambda phi: float("nan"))
    np.testing.assert_allclose(last, 1.4, rtol=1e-6)
    np.testing.assert_array_equal(learning.load(tmp_path, jnp.array(0.0)), last)


def test_the_best_of_a_run_that_scores_none_is_set_aside(tmp_path):
    climb(6, tmp_path, held_out=batches(1, seed=3))
    with pytest.warns(UserWarning, match="scores none"):
        last = climb(12, tmp_path)
    np.testing.assert_array_equal(learning.load(tmp_path, jnp.array(0.0)), last)


def stop(step, metrics):
    if step >= 6:
        raise KeyboardInterrupt


@pytest.mark.parametrize("save_every", [5, 100])
def test_a_best_beyond_the_checkpoint_is_this_run_s_no_more(tmp_path, save_every):
    """The run went on to 6, and goes on from 5 or from its beginning; scores differ each time."""
    options = {"save_every": save_every, "steps_per_dispatch": 1, "directory": tmp_path}
    scores = iter([5.0, 3.0, 1.0])
    with pytest.raises(KeyboardInterrupt):
        climb(score=lambda phi: next(scores), progress=stop, **options)
    scores = iter(
        [5.0, 2.0, 4.0, 4.0, 4.0, 4.0] if save_every == 100 else [2.0, 4.0, 4.0, 4.0, 4.0]
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        best = climb(score=lambda phi: next(scores), **options)
    assert any("no checkpoint to go on from" in str(w.message) for w in told) == (save_every == 100)
    np.testing.assert_allclose(best, 1.4, rtol=1e-6)
    np.testing.assert_array_equal(learning.load(tmp_path, jnp.array(0.0)), best)


def test_a_best_that_was_not_written_is_scored_again(tmp_path):
    """A kill between the two: the checkpoint of step 6 is there, its best φ isn't."""
    options = {"save_every": 2, "directory": tmp_path, "score": near(1.6)}
    with pytest.raises(KeyboardInterrupt):
        climb(progress=stop, **options)
    shutil.rmtree(tmp_path / "best" / "6")
    for later in (8, 10, 12):
        shutil.rmtree(tmp_path / str(later), ignore_errors=True)
    np.testing.assert_allclose(climb(**options), 1.6, rtol=1e-6)


def test_a_score_that_is_no_number():
    with pytest.raises(ValueError, match=r"score returned \{'fid': 1.0\}; expected a number"):
        climb(score=lambda phi: {"fid": 1.0})
    with pytest.raises(ValueError, match="expects score"):
        climb(score=7.0)


def test_held_out_without_an_end():
    with pytest.raises(ValueError, match="beyond 10000 batches"):
        climb(held_out=itertools.repeat(batches(1)[0]))


def test_the_best_stays_where_the_run_is_the_same(tmp_path):
    held = batches(1, seed=3)
    best = climb(6, tmp_path, held_out=held)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(climb(6, tmp_path, held_out=held), best)
        climb(6, tmp_path)  # Nothing is left to do.
    np.testing.assert_array_equal(learning.load(tmp_path, jnp.array(0.0)), best)


def test_a_process_by_itself_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="no mesh is given"):
        climb()
    with pytest.raises(ValueError, match="devices of 1"):
        climb(mesh=jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]))


# What it can't use.


REFUSED = {
    "not called": (lambda: {"optimizer": optax.sgd}, "expected an optimizer"),
    "a line search": (lambda: {"optimizer": optax.lbfgs()}, "can't update φ"),
    "lookahead": (lambda: {"optimizer": optax.lookahead(STEADY, 5, 0.5)}, "can't update φ"),
    "schedule-free": (lambda: {"optimizer": optax.contrib.schedule_free_sgd(0.1)}, "another point"),
    "schedule-free in a chain": (
        lambda: {"optimizer": optax.chain(optax.contrib.schedule_free_adamw(0.1))},
        "another point",
    ),
    "a number left out": (lambda: {"leave_out": 3}, "leave_out"),
    "several keys": (lambda: {"key": jax.random.split(KEY, 2)}, r"one key, got \(2,\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_before_anything_compiles(name):
    options, message = REFUSED[name]
    options = {"key": KEY, "optimizer": STEADY, **options()}
    with pytest.raises(ValueError, match=message):
        gj.fit(
            options.pop("key"), constant, jnp.array(1.0), STILL, batches(2), objective=up,
            uncond=2, steps=2, **options,
        )  # fmt: skip


@pytest.mark.parametrize("what", ["guide", "objective"])
def test_what_is_read_beside_phi_is_read_once(what):
    size = jnp.array(1.0)

    def reading(phi):
        return gj.guidance(gj.cfg, omega=phi * (size if what == "guide" else 1.0))

    def to_learn(keys, guidance, denoise, batch, networks=()):
        return up(keys, guidance, denoise, batch) * (size if what == "objective" else 1.0)

    def run():
        return gj.fit(
            KEY, reading, jnp.array(1.0), STILL, batches(1), objective=to_learn, uncond=2,
            optimizer=STEADY, steps=1,
        )  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once, again = run(), run()
        np.testing.assert_array_equal(once, again)
    size = jnp.array(3.0)
    with pytest.warns(UserWarning, match="reads size beside its arguments.*as φ of gj.fit"):
        run()


@pytest.mark.parametrize("fails", [False, True])
def test_monitors_are_closed_however_a_run_ends(fails):
    closed = []

    class Shown:
        def __call__(self, report):
            if fails:
                raise OSError("no screen")

        def close(self):
            closed.append(1)

    with pytest.raises(OSError, match="no screen") if fails else contextlib.nullcontext():
        climb(2, monitors=[lambda report: None, Shown()])
    assert closed == [1]


def test_a_monitor_that_cannot_be_closed_hides_nothing():
    closed = []

    class Shown:
        def __call__(self, report):
            pass

        def close(self):
            closed.append(1)
            raise OSError("the disk is full")

    with pytest.warns(UserWarning, match="disk is full"), pytest.raises(KeyboardInterrupt):
        climb(8, monitors=[Shown(), Shown()], progress=stop)
    assert closed == [1, 1]


def test_a_rule_with_numbers_compiles_once():
    """Such a rule has no hash, by which equal programs would be known."""
    counts = []
    for steps in (2, 6):
        traces = []

        def network(x, t, cond, traces=traces):
            traces.append(0)
            return 0.5 * x

        gj.fit_omega(
            KEY, NET, gj.denoiser(network, PROCESS), batches(steps),
            rule=gj.adg.bind(max_angle=1.0), uncond=2, objective=objectives.l2(),
            optimizer=STEADY, steps=steps, steps_per_dispatch=1, held_out=batches(2, seed=1),
            score_every=2,
        )  # fmt: skip
        counts.append(len(traces))
    assert counts[0] == counts[1]


# Any number.


def _target(rule, numbers):
    """An objective: the guided prediction should be that of known numbers."""

    def objective(keys, guidance, denoise, batch, networks=()):
        c, u = batch.x0, jnp.roll(batch.x0, 1, axis=0)  # any two predictions
        step = gj.weights.Step(0.3, 0.6, batch.cond, PROCESS, x=c)
        guided, _ = guidance.apply(guidance.init(c), {"cond": c, "uncond": u}, step)
        want = rule(c, u, **numbers)
        return jnp.mean((guided - want) ** 2, axis=tuple(range(1, c.ndim)))

    return objective


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "shape", "numbers"),
    [
        (gj.rules.fdg, (8, 8, 1), {"omega": 2.0, "low": 0.3}),
        (gj.adg, (5,), {"omega": 0.6, "max_angle": 1.2}),
        (gj.apg, (5,), {"omega": 2.0, "eta": 0.2}),
    ],
)
def test_every_number_of_a_rule_is_learned(rule, shape, numbers):
    """From the known ranges' starts to the numbers that made the target."""
    net = gj.OmegaNet(num_classes=2, hidden=8, depth=1, outputs=tuple(numbers))
    phi = gj.fit_omega(
        KEY, net, STILL, batches(200, shape=shape), rule=rule, objective=_target(rule, numbers),
        optimizer=optax.adam(3e-2), steps=200, steps_per_dispatch=50,
    )  # fmt: skip
    for name, weight in net.weights(phi).items():
        got = weight(0.3, 0.6, jnp.arange(2), process=PROCESS)
        np.testing.assert_allclose(got, numbers[name], rtol=0.05, err_msg=name)


@pytest.mark.slow
def test_outputs_keep_the_ranges_they_are_given():
    """Pulled beyond its end, a number stops there; the other goes on."""
    outputs = {"omega": Range(1.0, lo=0.0, hi=1.5), "eta": Range(0.5, lo=0.2)}
    net = gj.OmegaNet(hidden=8, depth=1, outputs=outputs)

    def pull(keys, guidance, denoise, batch, networks=()):
        at = {"s": 0.3, "t": 0.6, "process": PROCESS}
        eta = guidance.numbers[0]["eta"](**at)
        return (-guidance.omega(**at) + (eta - 3.0) ** 2) * jnp.ones(len(keys))

    phi = gj.fit_omega(
        KEY, net, STILL, batches(150), rule=gj.apg, uncond=2, objective=pull,
        optimizer=optax.adam(0.1), steps=150, steps_per_dispatch=50,
    )  # fmt: skip
    omega, eta = (weight(0.3, 0.6, process=PROCESS) for weight in net.weights(phi).values())
    assert 1.4 < float(omega) <= 1.5
    np.testing.assert_allclose(eta, 3.0, rtol=0.02)


def test_a_number_a_step_through_the_run():
    """A table's rows get their gradient through the run, each its own."""
    network = lambda x, t, cond: jnp.where(cond == 2, 0.0, 0.5)[:, None] * jnp.ones_like(x)
    times = gj.uniform_times(3)
    weight = lambda phi: gj.guidance(gj.cfg, omega=gj.schedules.table(phi))

    def run(keys, guidance, denoise, batch, networks=()):
        x = gj.sample(
            keys, denoise, batch.x0, cond=batch.cond, uncond=batch.conditions["uncond"],
            guidance=guidance, times=times,
        )  # fmt: skip
        return jnp.sum((x - 1.0) ** 2, axis=-1)

    phi = gj.fit(
        KEY, weight, jnp.zeros(3), gj.denoiser(network, PROCESS), batches(80), uncond=2,
        objective=run, optimizer=optax.adam(0.1), steps=80, steps_per_dispatch=20,
    )  # fmt: skip
    np.testing.assert_allclose(phi[-1], 1.0, rtol=0.05)  # 0.5 + ω 0.5 = 1 into data
    np.testing.assert_array_equal(phi[:-1], 0)  # the last step forgets the others


# Weights of one's own.


class _Line(nn.Module):
    width: int

    @nn.compact
    def __call__(self, t):
        return nn.softplus(nn.Dense(1)(nn.tanh(nn.Dense(self.width)(t[..., None]))))[..., 0]


@dataclasses.dataclass(frozen=True)
class Mine:
    """A linen module as the weight: `init` and `weights` are all that is asked."""

    width: int

    def init(self, key):
        return _Line(self.width).init(key, jnp.zeros(1))

    def weights(self, phi):
        return {"omega": gj.Weight(phi, _Ask(self.width))}

    def weight(self, phi):
        return self.weights(phi)["omega"]


@dataclasses.dataclass(frozen=True)
class _Ask:
    width: int

    def __call__(self, phi: Any, step: Any):
        return _Line(self.width).apply(phi, jnp.atleast_1d(jnp.asarray(step.t)))[0]


@pytest.mark.slow
def test_a_linen_module_of_one_s_own_fits_saves_and_loads(tmp_path):
    def towards(keys, guidance, denoise, batch, networks=()):
        times = jnp.array([0.2, 0.5, 0.9])
        omega = jax.vmap(lambda t: guidance.omega(t - 0.1, t))(times)
        return jnp.mean((omega - 2 * times) ** 2) * jnp.ones(len(keys))

    def run(steps, net=Mine(8), directory=tmp_path / "stopped"):
        return gj.fit_omega(
            KEY, net, STILL, batches(200), uncond=2, objective=towards, checkpoint_dir=directory,
            optimizer=optax.adam(3e-2), steps=steps, save_every=100, steps_per_dispatch=50,
        )  # fmt: skip

    straight = run(200, directory=tmp_path / "straight")
    run(100)
    phi = run(200)
    np.testing.assert_array_equal(flat(phi), flat(straight))
    omega = [float(Mine(8).weight(phi)(t - 0.1, t)) for t in (0.2, 0.5, 0.9)]
    np.testing.assert_allclose(omega, [0.4, 1.0, 1.8], atol=0.1)
    net, loaded = gj.load_omega(tmp_path / "stopped", Mine(8))
    assert net == Mine(8)
    assert jax.tree.structure(loaded) == jax.tree.structure(phi)
    np.testing.assert_array_equal(flat(loaded), flat(phi))
    for other in (None, Mine(9)):
        with pytest.raises(ValueError, match="checkpoint"):
            gj.load_omega(tmp_path / "stopped", other)
    with pytest.raises(ValueError, match="weight, width: saved 8, now 9"):
        run(200, Mine(9))


def level(keys, guidance, denoise, batch, networks=()):
    """An objective that is 1 everywhere, along which ω falls."""
    omega = guidance.omega(0.3, 0.6)
    return (1 + omega - jax.lax.stop_gradient(omega)) * jnp.ones(len(keys))


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 4])  # Until it looks, its best loss is infinite.
def test_an_optimizer_that_looks_at_the_loss(tmp_path, every):
    plateau = optax.chain(
        optax.sgd(0.1),
        optax.contrib.reduce_on_plateau(factor=0.5, patience=2, accumulation_size=every),
    )

    def run(steps, directory, **options):
        return gj.fit(
            KEY, constant, jnp.array(1.0), STILL, batches(12), objective=level, uncond=2,
            optimizer=plateau, steps=steps, checkpoint_dir=tmp_path / directory, save_every=5,
            steps_per_dispatch=2, **options,
        )  # fmt: skip

    want = jnp.array(1.0)
    state = plateau.init(want)
    for _ in range(12):
        change, state = plateau.update(jnp.array(1.0), state, want, value=jnp.array(1.0))
        want = want + change
    assert (float(want) > -0.15) == (every == 1)  # Without a plateau it would be at −0.2.
    straight = run(12, "straight")
    np.testing.assert_allclose(straight, want, atol=1e-6)
    mesh = jax.make_mesh((1,), ("data",))
    np.testing.assert_allclose(run(12, "mesh", mesh=mesh), want, atol=1e-6)
    run(5, "stopped")
    np.testing.assert_array_equal(run(12, "stopped"), straight)


# What the branches are made of.


def _mean_of(name):
    """ω should be the mean of a branch's condition."""

    def objective(keys, guidance, denoise, batch, networks=()):
        return (guidance.omega(0.3, 0.6) - batch.conditions[name]) ** 2

    return objective


@pytest.mark.parametrize(
    ("carried", "given", "want"),
    [
        ({"negative": np.full(8, 1.7, np.float32)}, {}, 1.7),
        ({}, {"negative": np.float32(-0.6)}, -0.6),
        ({"negative": np.full(8, 1.7, np.float32)}, {"negative": np.float32(-0.6)}, 1.7),
    ],
)
def test_conditions_of_a_branch_are_the_batch_s_own_or_one_for_all(carried, given, want):
    """The batch's, where it carries one, whatever is given for all."""
    data = {"x0": np.ones((8, 3), np.float32), "cond": np.zeros(8, np.float32), **carried}
    phi = gj.fit(
        KEY, lambda phi: gj.guidance(gj.negative_prompt, omega=phi), jnp.array(0.0), STILL,
        itertools.repeat(data), objective=_mean_of("negative"), optimizer=optax.sgd(0.3), steps=40,
        steps_per_dispatch=20, conditions=given,
    )  # fmt: skip
    np.testing.assert_allclose(phi, want, rtol=1e-4)


@pytest.mark.slow
def test_a_null_condition_of_fewer_parts_is_one_for_all():
    """What the network takes, beside a condition that a reward takes more of."""
    text = np.ones((8, 2, 4), np.float32)
    data = {"x0": np.ones((8, 3), np.float32), "cond": {"text": text, "tokens": text[..., 0]}}

    def objective(keys, guidance, denoise, batch, networks=()):
        null = batch.conditions["uncond"]["text"]
        assert null.shape == text.shape
        return (guidance.omega(0.3, 0.6) - null.mean(axis=(1, 2))) ** 2

    phi = gj.fit(
        KEY, constant, jnp.array(0.0), STILL, itertools.repeat(data), objective=objective,
        optimizer=optax.sgd(0.3), steps=40, steps_per_dispatch=20,
        uncond={"text": np.full((1, 2, 4), 0.7, np.float32)},
    )  # fmt: skip
    np.testing.assert_allclose(phi, 0.7, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("length", [2, 5])
def test_omega_of_a_negative_prompt_by_its_objective(length):
    """Tokens (batch, n, d): c predicts half of x0 and n nothing, so that ω = 1 makes x0."""
    network = lambda x, t, cond: 0 * x + 0.5 * cond.mean(axis=(1, 2))[:, None]
    data = {"x0": np.ones((8, 3), np.float32), "cond": np.ones((8, 2, 4), np.float32)}
    phi = gj.fit(
        KEY, lambda phi: gj.guidance(gj.negative_prompt, omega=phi), jnp.array(0.0),
        gj.denoiser(network, PROCESS), itertools.repeat(data),
        conditions={"negative": np.zeros((1, length, 4), np.float32)},
        objective=objectives.l2(particles=4), optimizer=optax.adam(3e-2), steps=150,
        steps_per_dispatch=50,
    )  # fmt: skip
    np.testing.assert_allclose(phi, 1.0, atol=0.15)


def test_a_branch_that_nobody_gives():
    run = lambda **options: gj.fit(
        KEY, lambda phi: gj.guidance(gj.negative_prompt, omega=phi), jnp.array(0.0), STILL,
        batches(2), objective=_mean_of("negative"), optimizer=STEADY, steps=1, **options,
    )  # fmt: skip
    with pytest.raises(ValueError, match="negative"):
        run()
    with pytest.raises(ValueError, match="weak"):
        run(conditions={"weak": STILL, "negative": 0.0})

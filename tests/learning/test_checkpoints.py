"""What a checkpoint belongs to, and what becomes of a damaged one."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import guidejax as gj
from guidejax import learning, objectives
from guidejax.learning import _identity, checkpoints
from tests.learning.common import (
    KEY,
    NET,
    PROCESS,
    Counting,
    batches,
    fit,
    flat,
)

SCALED = gj.denoiser(lambda p, x, t, cond: p * x, PROCESS, params=jnp.array([0.5, 0.5, 0.5]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's directory with the checkpoints of steps 3 and 6, and its φ after 12."""
    directory = tmp_path_factory.mktemp("finished")
    fit(batches(12), steps=6, checkpoint_dir=directory)
    return directory, flat(fit(batches(12)))


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it that may be changed."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def contents(directory):
    return {
        path.relative_to(directory): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


# What it belongs to.


def _schedule(steps):
    return optax.adam(optax.cosine_decay_schedule(1e-2, steps))


@dataclasses.dataclass(frozen=True)
class Pull:
    """An objective with a number."""

    towards: float = 1.0

    def __call__(self, keys, guidance, denoise, batch, networks=()):
        omega = guidance.omega(0.3, 0.6, batch.cond, process=PROCESS)
        return (omega - self.towards) ** 2


def other(name):
    """An objective that isn't `chase`, of the same name."""

    def chase(keys, guidance, denoise, batch, networks=()):
        return 2 * guidance.omega(0.3, 0.6, batch.cond, process=PROCESS)

    return chase


WIDER = gj.OmegaNet(num_classes=2, hidden=9, depth=1)
COSINE = gj.denoiser(lambda x, t, cond: x, gj.processes.cosine())
# Of each: what the run was begun with, what it is gone on with, and what is named.
CHANGES = {
    "hidden": ({}, {"net": WIDER}, "hidden: saved 8, now 9"),
    "no classes": ({}, {"net": gj.OmegaNet(hidden=8, depth=1), "uncond": 2}, "num_classes"),
    "rule": ({}, {"rule": gj.adg}, "guidance, rules"),
    "learning rate": ({}, {"optimizer": optax.adam(2e-2)}, "optimizer: its numbers"),
    "b1": ({}, {"optimizer": optax.adam(1e-2, b1=0.8)}, "optimizer: its numbers"),
    "NAdam": ({}, {"optimizer": optax.nadam(1e-2)}, "optimizer: it computes something else"),
    "SGD": ({}, {"optimizer": optax.sgd(1e-2)}, "optimizer: "),
    "schedule": ({"optimizer": _schedule(50)}, {"optimizer": _schedule(90)}, "50.0"),
    "objective": ({}, {"objective": other("chase")}, "loss: "),
    "its number": ({"objective": Pull()}, {"objective": Pull(2.0)}, "towards: saved 1.0, now 2.0"),
    "beta": (
        {"objective": objectives.self_consistency(1.5, 2)},
        {"objective": objectives.self_consistency(1.0, 2)},
        "objective, beta: saved 1.5, now 1.0",
    ),
    "l2": (
        {"objective": objectives.self_consistency(2.0, 2)},
        {"objective": objectives.l2(2)},
        "objective, arrays",
    ),
    "process": ({}, {"denoise": COSINE}, "process"),
    "prediction": (
        {},
        {"denoise": gj.denoiser(lambda x, t, c: x, PROCESS, "velocity")},
        'prediction: saved "x0", now "velocity"',
    ),
    "parameters": (
        {"denoise": SCALED},
        {"denoise": dataclasses.replace(SCALED, params=jnp.array([0.5, 0.5, 0.25]))},
        "denoiser, parameters, values",
    ),
    "null condition": ({"uncond": 2}, {"uncond": 1}, "conditions, uncond, values"),
    "data": ({}, {"data": batches(12, seed=1)}, "data, first batch"),
    "batch": ({}, {"data": batches(12, size=4)}, r"data, first batch, arrays"),
    "key": ({}, {"key": jax.random.key(1)}, "key: saved"),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * bool(CHANGES[n][0])) for n in CHANGES]
)
def test_another_run_is_refused_and_its_checkpoint_left_alone(run, tmp_path, name):
    begun, changed, named = CHANGES[name]
    if begun:  # Not the run that is there.
        run = tmp_path / "begun"
        fit(batches(12), steps=3, checkpoint_dir=run, **begun)
    before = contents(run)
    with pytest.raises(ValueError, match=f"is of another run:\n(.*\n)*.*{named}"):
        fit(**{"data": batches(12), "checkpoint_dir": run, **begun, **changed})
    assert contents(run) == before


def test_the_same_run_is_none_of_these(run, finished):
    np.testing.assert_array_equal(flat(fit(batches(12), checkpoint_dir=run)), finished[1])


def test_anyway(run):
    """What is given now holds: the key and the learning rate; φ and where the data stood stay."""
    faster = optax.adam(5e-2)
    seen = []
    phi = fit(
        batches(12), checkpoint_dir=run, optimizer=faster, key=jax.random.key(5),
        resume="anyway", progress=lambda step, metrics: seen.append(step),
    )  # fmt: skip
    assert seen[0] == 8
    saved, _ = checkpoints.newest(run)
    run_key = jax.random.split(jax.random.key(5))[1]
    np.testing.assert_array_equal(saved.arrays["key"], jax.random.key_data(run_key))
    # It is that run from here on.
    again = fit([], checkpoint_dir=run, optimizer=faster, key=jax.random.key(5))
    np.testing.assert_array_equal(flat(again), flat(phi))
    with pytest.raises(ValueError, match="is of another run"):
        fit(batches(12), checkpoint_dir=run)


@pytest.mark.slow
def test_anyway_with_other_data(run):
    """They are taken from their beginning: where the others stood says nothing of them."""
    other = batches(6, size=4, seed=1)
    with pytest.warns(UserWarning, match="from their beginning"):
        phi = fit(other, checkpoint_dir=run, resume="anyway")
    saved, _ = checkpoints.newest(run)
    assert saved.step == 12
    assert saved.about["positions"] == [{"drawn": 6}]
    np.testing.assert_array_equal(flat(fit(other, checkpoint_dir=run)), flat(phi))


def test_anyway_with_an_optimizer_of_another_state(run):
    with pytest.warns(UserWarning, match="starts anew"):
        fit(batches(12), checkpoint_dir=run, optimizer=optax.sgd(1e-2), resume="anyway")


def rise(keys, guidance, denoise, batch, networks=()):
    """An objective along which ω rises at a slope of 1."""
    return -guidance.omega(0.3, 0.6) * jnp.ones(len(keys))


def constant(phi):
    return gj.guidance(gj.cfg, omega=phi)


def learn(steps, optimizer, directory=None, **options):
    """ω from 1 on."""
    return learning.fit(
        KEY, constant, jnp.array(1.0), SCALED, batches(6), uncond=2, objective=rise,
        optimizer=optimizer, steps=steps, checkpoint_dir=directory, **options,
    )  # fmt: skip


@pytest.mark.parametrize("wrapped", [False, True])
def test_anyway_with_a_learning_rate_in_the_optimizer_s_state(tmp_path, wrapped):
    def sgd(rate):
        optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=rate)
        return optax.chain(optax.clip(1e3), optimizer) if wrapped else optimizer

    learn(4, sgd(0.1), tmp_path)
    with pytest.raises(ValueError, match="optimizer: its numbers"):
        learn(6, sgd(0.001), tmp_path)
    omega = learn(6, sgd(0.001), tmp_path, resume="anyway")
    np.testing.assert_allclose(omega, 1.402, rtol=1e-6)


def test_a_random_key_in_the_optimizer_s_state(tmp_path):
    noisy = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.sgd(0.1))
    learn(3, noisy, tmp_path)
    np.testing.assert_array_equal(learn(6, noisy, tmp_path), learn(6, noisy))


def test_anyway_with_a_net_of_other_shapes(run):
    with pytest.raises(ValueError, match="doesn't fit"):
        fit(batches(12), checkpoint_dir=run, net=WIDER, resume="anyway")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "bool", "uint32"])
def test_a_fingerprint_is_the_same_on_the_host_and_sharded(mesh, dtype, monkeypatch):
    values = (3 * np.random.default_rng(0).normal(size=(16, 5))).round().astype(jnp.dtype(dtype))
    split = jax.device_put(
        values, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    )
    host = _identity.fingerprint(values)
    monkeypatch.setattr(_identity, "SMALL", 0)
    assert _identity.fingerprint(split) == _identity.fingerprint(jnp.asarray(values)) == host
    changed = values.copy()
    changed[3, 2] = not values[3, 2]
    assert _identity.fingerprint(changed) != host
    assert _identity.fingerprint(values[::-1]) != host


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_sketch_is_nearly_the_same_on_the_host_and_sharded(mesh, dtype, monkeypatch):
    values = np.random.default_rng(0).normal(size=(16, 5)).astype(jnp.dtype(dtype))
    split = jax.device_put(
        values, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    )
    host = _identity.sketch(values)
    monkeypatch.setattr(_identity, "SMALL", 0)
    for there in (split, jnp.asarray(values)):
        assert _identity._close(_identity.sketch(there), host)
    assert not _identity._close(_identity.sketch(values[::-1]), host)


def _of(statistics):
    objective = gj.rollout([jax.tree_util.Partial(lambda a, x: x @ a, statistics)])
    arrays = objectives.base.as_pytree(objective)
    return {
        "objective": {
            **_identity.describe(objective, _identity.sketch),
            "arrays": _identity.values(arrays, _identity.sketches),
        }
    }


@pytest.mark.parametrize("shape", [(3,), (50, 40)])
def test_statistics_that_another_chip_rounds_otherwise_are_the_same(shape):
    """Unless more than that has changed: a row, their order, their scale."""
    rng = np.random.default_rng(0)
    given = rng.normal(size=shape).astype(np.float32)
    rounded = (given * (1 + 3e-7 * rng.normal(size=shape))).astype(np.float32)
    assert (rounded != given).any()
    saved = json.loads(json.dumps(_of(given)))
    assert not _identity.differences(saved, json.loads(json.dumps(_of(rounded))))
    row = given.copy()
    row[1] += 0.1
    for other in (row, given[::-1], given * np.float32(1.001)):
        assert _identity.differences(saved, json.loads(json.dumps(_of(other))))


def test_settings_beside_large_ones_are_told_apart():
    one = {"objective": {"weights": [100.0, 1e-3]}}
    assert _identity.differences(one, {"objective": {"weights": [100.0, 2e-3]}})
    # Elsewhere numbers are settings, and are compared as they are.
    assert _identity.differences({"data": {"flip": 0.5}}, {"data": {"flip": 0.5000001}})


# Damage.


def files(run, step):
    return sorted(p for p in (run / str(step)).rglob("*") if p.is_file())


def gone_on(run, finished):
    """φ of the run gone on with, and whether it began at step 3 with a warning that names 6."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        phi = fit(batches(12), checkpoint_dir=run)
    np.testing.assert_array_equal(flat(phi), finished[1])
    told = [str(w.message) for w in caught if "damaged" in str(w.message)]
    aside = sorted(p.name for p in run.iterdir() if "damaged" in p.name)
    assert bool(told) == bool(aside)
    if told:
        assert str(run / "6") in told[0]
        assert aside == ["6.damaged"]
    return bool(told)


@pytest.mark.parametrize("which", ["largest", "about", "seal"])
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "remove"])
def test_a_damaged_checkpoint_is_set_aside(run, finished, which, how):
    found = files(run, 6)
    file = {
        "largest": max(found, key=lambda p: p.stat().st_size),
        "about": next(p for p in found if p.parent.name == "about"),
        "seal": run / "6" / checkpoints.SEAL,
    }[which]
    damage(file, how)
    assert gone_on(run, finished)


def damage(file: pathlib.Path, how: str, at: float = 0.5) -> None:
    raw = bytearray(file.read_bytes())
    place = int(at * max(len(raw) - 1, 0))
    if how == "flip" and raw:
        raw[place] ^= 0xFF
        file.write_bytes(raw)
    elif how == "cut":
        file.write_bytes(raw[:place])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "remove":
        file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))  # experiments.faults damages 200.
def test_damage_anywhere_never_goes_unheard(run, finished, seed):
    """One file of the newest checkpoint is damaged; either no harm came of it, or 3 is used."""
    rng = np.random.default_rng(seed)
    found = files(run, 6)
    how = str(rng.choice(["flip", "cut", "empty", "remove"]))
    damage(found[rng.integers(len(found))], how, rng.random())
    gone_on(run, finished)
    learning.load_omega(run)


def test_a_state_that_was_altered_is_heard(run, finished):
    """Files that can be read, and hold other numbers: the checksums are of what was written."""
    saved, _ = checkpoints.newest(run)
    seal = (run / "6" / checkpoints.SEAL).read_text()
    shutil.rmtree(run / "6")
    writer = checkpoints.Checkpoints(run)
    writer._write_now(run, 6, {**saved.arrays, "step": saved.arrays["step"] + 1}, saved.about)
    writer.close()
    assert (run / "6" / checkpoints.SEAL).read_text() != seal
    (run / "6" / checkpoints.SEAL).write_text(seal)
    assert gone_on(run, finished)


def test_a_folder_that_is_gone_is_no_damage(run, finished):
    shutil.rmtree(run / "6")
    assert not gone_on(run, finished)


def test_none_is_intact(run):
    for step in (3, 6):
        for file in files(run, step):
            damage(file, "empty")
    before = contents(run)
    for go in (lambda: fit(batches(12), checkpoint_dir=run), lambda: gj.load_omega(run)):
        with pytest.raises(ValueError, match=r"no checkpoint in .* is intact: step 6"):
            go()
    assert contents(run) == before


def test_load_omega_passes_over_a_damaged_one(run):
    want = flat(gj.load_omega(run)[1])
    older = checkpoints._read(run, 3)
    for file in files(run, 6):
        damage(file, "cut")
    with pytest.warns(UserWarning, match="step 3 is used"):
        net, phi = gj.load_omega(run)
    assert net == NET
    got = {f"phi.{n}": a for n, a in checkpoints.named_leaves(phi).items()}
    for name, array in got.items():
        np.testing.assert_array_equal(array, older.arrays[name])
    assert not np.array_equal(flat(phi), want)
    assert (run / "6").is_dir()  # Who reads changes nothing.


LINES = {
    "a byte": b"\xff\n",
    "no step": b'{"loss": 1.0}\n',
    "a list": b"[1, 2]\n",
    "nested": b"[" * 100_000 + b"\n",
    "a step of words": b'{"step": "three"}\n',
}


@pytest.mark.parametrize("name", LINES)
def test_a_damaged_log_stops_nothing(run, finished, name):
    log = run / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:2], LINES[name], *lines[2:]]))
    with pytest.warns(UserWarning, match="set aside"):
        phi = fit(batches(12), checkpoint_dir=run)
    np.testing.assert_array_equal(flat(phi), finished[1])
    steps = [json.loads(line)["step"] for line in log.read_bytes().splitlines()]
    assert steps == list(range(1, 13))
    assert LINES[name] in (run / "metrics.damaged").read_bytes()


# The directory.


def test_two_runs_in_one_directory(tmp_path):
    def again(step, metrics):
        fit(batches(12), checkpoint_dir=tmp_path)

    with pytest.raises(RuntimeError, match="another run writes"):
        fit(batches(12), checkpoint_dir=tmp_path, progress=again)
    fit(batches(12), checkpoint_dir=tmp_path)  # It is free again.


def test_a_directory_that_vanishes(tmp_path):
    def vanish(step, metrics):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    with pytest.raises(RuntimeError, match="the folder is gone"):
        fit(batches(12), checkpoint_dir=tmp_path / "run", progress=vanish)


def test_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match="nothing can be written"):
        fit(batches(12), checkpoint_dir=tmp_path / "file")
    for address in ("gs://bucket/run", pathlib.Path("gs://bucket/run")):
        with pytest.raises(ValueError, match="mount the bucket"):
            fit(batches(12), checkpoint_dir=address)
    for folder in ("C:/run", "run:1/a", tmp_path):
        assert checkpoints.local(folder).is_absolute()


def test_a_source_that_says_where_it_stands_by_its_own_reckoning(tmp_path):
    source = Counting(batches(12))
    fit(source, steps=6, checkpoint_dir=tmp_path)
    assert checkpoints.newest(tmp_path)[0].about["positions"] == [{"drawn": 6, "bytes": "6"}]
    with pytest.raises(ValueError, match=r"data, first batch(.*\n)*.*isn't at its beginning"):
        fit(source, steps=9, checkpoint_dir=tmp_path)

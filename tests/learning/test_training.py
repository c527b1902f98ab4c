"""fit_omega: what it resumes, what it refuses, and what it leaves behind."""

import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import warnings

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import guidejax as gj
from guidejax import learning, objectives
from guidejax.learning import _identity, _log, checkpoints
from guidejax.learning._data import Conditions, Feed, Rows, check_shares
from guidejax.learning._hosts import Hosts
from tests.learning.common import (
    KEY,
    NET,
    PROCESS,
    SOURCES,
    STILL,
    Counting,
    batches,
    begin,
    chase,
    examples,
    fit,
    flat,
    guide,
)

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """(φ, log) of a run of 12 steps that nothing stopped."""
    directory = tmp_path_factory.mktemp("straight")
    phi = fit(batches(12), checkpoint_dir=directory)
    return flat(phi), (directory / "metrics.jsonl").read_text()


def steps_of(directory):
    """The steps in the log, and those of the checkpoints."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    saved = sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())
    return [json.loads(line)["step"] for line in lines], saved


def contents(directory):
    return {
        path.relative_to(directory): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


# Stopped and gone on.


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Directories of runs that were killed past step 7, by the kind of their source."""
    directories = {kind: tmp_path_factory.mktemp(kind) for kind in SOURCES}
    env = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}  # As this process compiles.
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.learning.common", str(path), kind], cwd=ROOT, env=env
        )
        for kind, path in directories.items()
    ]
    assert [run.wait(timeout=300) for run in runs] == [-signal.SIGKILL] * len(runs)
    return directories


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_a_killed_run_goes_on_bit_for_bit(killed, straight, kind):
    directory, source, seen = killed[kind], SOURCES[kind](12), []
    logged, saved = steps_of(directory)
    assert max(logged) >= 7
    assert saved
    phi = fit(source, checkpoint_dir=directory, progress=lambda step, metrics: seen.append(step))
    assert seen[0] == saved[-1] + 2  # It went on, and did not start again.
    assert seen[-1] == 12
    np.testing.assert_array_equal(flat(phi), straight[0])
    assert (directory / "metrics.jsonl").read_text() == straight[1]
    if kind == "stateful":
        assert source.told == [saved[-1]]


@pytest.mark.slow
def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path, straight):
    """And a finished one is not trained again."""
    fit(batches(12), steps=6, checkpoint_dir=tmp_path)
    phi = fit(batches(12), steps=12, checkpoint_dir=tmp_path)
    np.testing.assert_array_equal(flat(phi), straight[0])
    assert (tmp_path / "metrics.jsonl").read_text() == straight[1]
    again = fit([], steps=12, checkpoint_dir=tmp_path)
    np.testing.assert_array_equal(flat(again), straight[0])
    with pytest.raises(ValueError, match=r"of step 12; expected at most steps=6"):
        fit(batches(12), steps=6, checkpoint_dir=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == straight[1]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_where_the_run_stands(tmp_path, straight, name, capfd):
    """It ends with a status of its own, and goes on bit for bit; handlers are as they were."""
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]

    def ask(step, metrics):
        if step == 6:
            os.kill(os.getpid(), signal.Signals[name])

    ends = {"SIGTERM": learning.Preempted, "SIGINT": KeyboardInterrupt}[name]
    with pytest.raises(ends, match="stopped at step 8 of 12, saved") as info:
        fit(batches(12), checkpoint_dir=tmp_path, save_every=100, progress=ask)
    if name == "SIGTERM":
        assert info.value.code == learning.PREEMPTED == 75
        assert "stopped at step 8" in capfd.readouterr().err
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert steps_of(tmp_path) == ([*range(1, 9)], [8])
    phi = fit(batches(12), checkpoint_dir=tmp_path, save_every=100)
    np.testing.assert_array_equal(flat(phi), straight[0])


@pytest.mark.parametrize("three", [3.0, np.float32(3), np.int64(3)])
def test_counts_of_other_kinds_are_counts(tmp_path, three):
    with pytest.raises(Stop):
        fit(batches(12), checkpoint_dir=tmp_path, save_every=three, progress=stop_at(8))
    assert steps_of(tmp_path)[1] == [3, 6]


def test_a_second_interrupt_is_heard_at_once(tmp_path):
    def ask(step, metrics):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        raise AssertionError

    with pytest.raises(KeyboardInterrupt):
        fit(batches(12), checkpoint_dir=tmp_path, progress=ask)


def test_saved_by_the_clock(tmp_path, straight):
    often, never = datetime.timedelta(microseconds=1), datetime.timedelta(days=1)
    fit(batches(12), checkpoint_dir=tmp_path / "often", save_every=often, steps=8)
    assert steps_of(tmp_path / "often")[1] == [6, 8]
    phi = fit(batches(12), checkpoint_dir=tmp_path / "never", save_every=never)
    assert steps_of(tmp_path / "never")[1] == [12]
    np.testing.assert_allclose(flat(phi), straight[0], atol=1e-6)
    with pytest.raises(ValueError, match="positive"):
        fit(batches(12), save_every=datetime.timedelta(0))


def test_the_log_is_cut_where_it_is_torn(tmp_path, straight):
    lines = straight[1].splitlines(keepends=True)
    path = tmp_path / "metrics.jsonl"
    for text, done, kept in [
        ("".join(lines[:8]), 6, 6),
        ("".join(lines[:8]) + '{"step": 9, "lo', 8, 8),
        ("".join(lines[3:9]), 6, 3),  # Some of it lost: still no step twice.
        ("", 0, 0),
    ]:
        path.write_text(text)
        with _log.open_log(tmp_path, done) as log:
            log.write(b"next\n")
        assert path.read_text() == "".join(text.splitlines(keepends=True)[:kept]) + "next\n"


@pytest.mark.slow
def test_load_omega(tmp_path, straight):
    fit(batches(12), checkpoint_dir=tmp_path)
    net, phi = gj.load_omega(tmp_path)
    assert net == NET
    np.testing.assert_array_equal(flat(phi), straight[0])
    cond = jnp.array([0, 1])
    assert net.weight(phi)(0.3, 0.6, cond, process=PROCESS).shape == (2,)
    for nowhere in (tmp_path / "none", tmp_path / "default"):
        with pytest.raises(FileNotFoundError, match="no checkpoint"):
            gj.load_omega(nowhere)


# What it is fed.


class Stop(Exception):
    pass


def stop_at(n):
    def progress(step, metrics):
        if step >= n:
            raise Stop

    return progress


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    from guidejax import data

    path = tmp_path_factory.mktemp("digits")
    data.prepare("digits", data_dir=path)
    images = data.Images("digits", data_dir=path)
    return lambda: data.grouped(images, groups=2, per_group=3, seed=1)


@pytest.mark.slow
def test_a_pipeline_of_groups_trains_a_rollout_and_resumes(tmp_path, digits):
    options = {
        "net": gj.OmegaNet(num_classes=10, hidden=8, depth=1),
        "objective": objectives.rollout(particles=3, steps=2),
        "denoise": gj.denoiser(
            lambda x, t, cond: x * (0.5 + 0.04 * cond)[:, None, None, None], PROCESS
        ),
        "steps": 6,
    }
    whole = fit(digits(), **options)
    with pytest.raises(Stop):
        fit(digits(), checkpoint_dir=tmp_path, progress=stop_at(4), **options)
    saved, _ = checkpoints.newest(tmp_path)
    assert saved.step == saved.about["positions"][0]["json"]["step"] == 3

    source = digits()
    begun, of = [], source._from
    source._from = lambda step: begun.append(step) or of(step)
    phi = fit(source, checkpoint_dir=tmp_path, **options)
    assert begun == [0, 3]  # It was put there, and did not read up to it.
    np.testing.assert_array_equal(flat(phi), flat(whole))
    assert steps_of(tmp_path) == ([1, 2, 3, 4, 5, 6], [3, 6])


@pytest.mark.parametrize("kind", ["iter_dataset", "data_loader"])
def test_positions_of_grain(kind):
    """A state of JSON types, and one in bytes."""
    items = [{"x0": np.full((2, 1), i, np.float32), "cond": np.zeros(2, int)} for i in range(20)]

    def feed():
        if kind == "iter_dataset":
            data = grain.MapDataset.source(items).shuffle(3).to_iter_dataset()
        else:
            sampler = grain.samplers.IndexSampler(20, shuffle=True, seed=3, num_epochs=1)
            data = grain.DataLoader(data_source=items, sampler=sampler, worker_count=0)
        return Feed(data, Conditions((), {}, {}), [])

    def numbers(taken):
        return [int(batch.x0[0, 0]) for batch in taken[0]]

    first, second = feed(), feed()
    skipped = numbers(first.take(7))
    position = json.loads(json.dumps(first.position()))
    rest = numbers(first.take(13))
    second.resume(position)
    assert numbers(second.take(13)) == rest
    assert sorted(skipped + rest) == list(range(20))


ROWS = Rows(["x0 float32[4, 3]"], "a", [["x0 float32[4, 3]"]])
SHORT = ["x0 float32[2, 3]"]


@pytest.mark.parametrize(
    ("other", "copies", "message"),
    [
        (ROWS._replace(shapes=SHORT), False, "first batches of other shapes"),
        (ROWS._replace(held_out=[]), False, "1 and 0 held_out batches"),
        (ROWS._replace(held_out=[SHORT]), False, "held_out batches of other shapes"),
        (ROWS._replace(values="b"), True, r"give different ones.*shard=\(0, 1\)"),
        (ROWS, True, None),
        (ROWS._replace(values="b"), False, None),
    ],
)
def test_rows_of_processes_make_one_batch(other, copies, message):
    parts = [(0,), (0,)] if copies else [(0,), (1,)]
    if message is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_shares(parts, [ROWS, other], 1)
    else:
        with pytest.raises(ValueError, match=f"processes 0 and 1 .*{message}"):
            check_shares(parts, [ROWS, other], 1)


def test_processes_that_all_read_the_same_rows_are_told():
    with pytest.warns(UserWarning, match=r"0 and 1 hold different rows.*shard=\(1, 2\)"):
        check_shares([(0,), (1,)], [ROWS, ROWS], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # A finished run may be given no data.
        check_shares([(0,), (1,)], [Rows([], "", [])] * 2, 1)


def test_a_position_that_cannot_be_saved(tmp_path):
    source = Counting(batches(12))
    source.get_state = object
    with pytest.raises(ValueError, match="get_state"):
        fit(source, checkpoint_dir=tmp_path)


@pytest.mark.slow
def test_pairs_and_own_null_conditions():
    size, cond = 4, np.array([0, 1, 1, 0])
    x0, null = np.ones((size, 3), np.float32), np.full(4, 7)

    def checked(batch, uncond=None, net=NET):
        guide = gj.guidance(gj.cfg, omega=net.weight(net.init(KEY)))
        return Conditions.of(guide, STILL, uncond, {}).batch(batch, [], "batch 0")

    null_of = lambda *args, **kwargs: checked(*args, **kwargs).conditions["uncond"]
    for batch in ((x0, cond), {"x0": x0, "cond": cond}):
        np.testing.assert_array_equal(null_of(batch, 2), [2] * 4)
        assert isinstance(null_of(batch, 2), np.ndarray)  # Nothing that waits for the device.
    own = {"x0": x0, "cond": cond, "uncond": null}
    np.testing.assert_array_equal(null_of(own, 5), null)
    with pytest.raises(ValueError, match="tuple of 3"):  # A row's number, as likely as a label.
        checked((x0, cond, null))
    emb = np.ones((4, 3), np.float32)
    found = null_of((x0, emb), np.zeros(3), gj.OmegaNet(cond_dim=3))
    assert found.shape == (4, 3)
    assert found.dtype == np.float32


# What it refuses: one error, and what was saved stays.


def at(batch, name, index, value):
    array = batch[name].copy()
    array[index] = value
    return {**batch, name: array}


class Tensor:
    """An array with a dtype of its own, as torch's."""

    dtype, shape, ndim = type("dtype", (), {"__repr__": lambda _: "float16"})(), (8, 3), 2


BAD = {
    "nan": (lambda b: at(b, "x0", (2, 1), np.nan), "x0 of batch 4 holds NaN"),
    "label": (lambda b: at(b, "cond", 3, 2), "batch 4: label 2 is out of range"),
    "negative label": (lambda b: at(b, "cond", 3, -1), "batch 4: label -1 is out of range"),
    "real labels": (lambda b: {**b, "cond": b["cond"] / 2}, "batch 4 expects integer class ids"),
    "cond size": (lambda b: {**b, "cond": b["cond"][:5]}, r"cond has shape \(5,\) for 8 samples"),
    "uncond size": (lambda b: {**b, "uncond": np.zeros(5)}, "uncond has shape"),
    "image size": (lambda b: {**b, "x0": b["x0"][:, :2]}, r"batch 4 has shapes \(\(8, 2\)"),
    "batch size": (lambda b: {k: v[:6] for k, v in b.items()}, r"batch 4 has shapes \(\(6, 3\)"),
    "bytes": (lambda b: {**b, "x0": np.zeros((8, 3), np.uint8)}, "x0 is uint8; expected floats"),
    "texts": (
        lambda b: {**b, "cond": np.array(["a cat"] * 8)},
        r"cond holds a ndarray of <U5; expected numbers",
    ),
    "a list of texts": (lambda b: {**b, "cond": ["a cat"] * 8}, "cond holds a str of <U5"),
    "another library's": (lambda b: {**b, "x0": Tensor()}, "x0 holds a Tensor of float16"),
    "evaluations": (
        lambda b: {**b, "evaluations": np.ones((8, 3))},
        "evaluations are ndarray; expected t, x, predictions",
    ),
    "no cond": (lambda b: {"x0": b["x0"]}, r"batch 4 has no \['cond'\]"),
    "no batch": (lambda b: b["x0"], "batch 4 is a ndarray"),
}


@pytest.mark.parametrize("name", [*BAD, "end"])
def test_bad_data(tmp_path, straight, name):
    options = {"steps_per_dispatch": 1, "checkpoint_dir": tmp_path}
    good = batches(12)
    if name == "end":
        data, message = good[:4], "the data ended after 4 batches"
    else:
        change, message = BAD[name]
        data = [*good[:4], change(good[4]), *good[5:]]
    with pytest.raises(ValueError, match=message):
        fit(data, **options)
    # All that came before is there, the step whose dispatch was running included.
    assert steps_of(tmp_path) == ([1, 2, 3, 4], [3])
    phi = fit(good, **options)
    np.testing.assert_allclose(flat(phi), straight[0], atol=1e-6)
    assert steps_of(tmp_path) == ([*range(1, 13)], [9, 12])


@pytest.mark.slow
def test_bad_data_right_after_a_save(tmp_path):
    """The step before it is saved all the same, though the device was still at it."""
    with pytest.raises(ValueError, match="the data ended after 3 batches"):
        fit(batches(3), checkpoint_dir=tmp_path, steps_per_dispatch=3)
    assert steps_of(tmp_path) == ([1, 2, 3], [3])


def bad_at(*numbers):
    """Finite batches, of which some give a loss that isn't."""
    data = batches(12)
    for number in numbers:
        data[number] = {**data[number], "x0": np.full((8, 3), 1e30, np.float32)}
    return data


def logged(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_loss_that_is_not_finite_is_skipped(tmp_path, straight):
    """φ is that of a run without the batch's update; the log says which batch it was."""
    counted = []
    phi = fit(
        bad_at(4, 8), checkpoint_dir=tmp_path, progress=lambda n, m: counted.append(m["skipped"])
    )
    assert np.all(np.isfinite(flat(phi)))
    assert not np.allclose(flat(phi), straight[0], atol=1e-6)
    assert counted == [0, 0, 1, 1, 1, 2, 2, 2]  # after steps 2, 3, 5, 6, 8, 9, 11, 12
    lines = {line["step"]: line for line in logged(tmp_path)}
    assert [step for step, line in lines.items() if "skipped" in line] == [5, 9]
    assert lines[5]["batch"] == 4
    assert lines[5]["loss"] is None
    assert all("batch" not in line for step, line in lines.items() if step not in (5, 9))


def test_the_update_that_is_skipped_changes_nothing(straight):
    """Nor the optimizer: the run goes on as it would have from there."""
    data = bad_at(11)
    phi = fit(data, steps=12)
    np.testing.assert_array_equal(flat(phi), flat(fit(batches(12), steps=11)))


def test_many_that_are_not_finite_end_the_run(tmp_path, straight):
    """With the first one's step, batch and values, and the state before it saved."""
    said = r"step 6, of batch 5: \{'loss': inf.*The state before it is saved.*anyway"
    with pytest.raises(FloatingPointError, match=said) as info:
        fit(bad_at(5, 6, 7), checkpoint_dir=tmp_path, max_skipped=2)
    assert info.value.__context__ is None
    assert steps_of(tmp_path)[1] == [3, 5]  # 5, the last dispatch that ended well.
    assert [line["step"] for line in logged(tmp_path) if "skipped" in line][:2] == [6, 7]
    # Again with the batches left out, which makes it another run's data.
    with pytest.raises(ValueError, match="ended after 12 batches"):
        fit(bad_at(5, 6, 7), checkpoint_dir=tmp_path, leave_out=[5, 6, 7])
    phi = fit(bad_at(5, 6, 7), steps=9, checkpoint_dir=tmp_path, leave_out=[5, 6, 7])
    rest = [batch for n, batch in enumerate(batches(12)) if n not in (5, 6, 7)]
    np.testing.assert_allclose(flat(phi), flat(fit(rest, steps=9)), atol=1e-6)


@pytest.mark.parametrize(("bad", "folder"), [((0, 1), True), ((6, 7), False)])
def test_what_is_said_to_be_saved_is(tmp_path, bad, folder):
    """Nothing is before the first update, and without a folder."""
    with pytest.raises(FloatingPointError) as info:
        fit(bad_at(*bad), checkpoint_dir=tmp_path if folder else None, max_skipped=2)
    assert "saved" not in str(info.value)
    assert "anyway" not in str(info.value)
    assert "smaller learning rate, or with leave_out" in str(info.value)


@pytest.mark.parametrize(("bad", "said"), [(0, "of 12$"), (6, "of 12, saved as of step 6; ")])
def test_where_a_signal_finds_updates_skipped(tmp_path, bad, said):
    def ask(step, metrics):
        if step == bad + 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=said):
        fit(bad_at(*range(bad, 12)), checkpoint_dir=tmp_path, save_every=100, progress=ask)


def test_what_all_processes_do_comes_before_what_one_may_fail_at(tmp_path, monkeypatch):
    """Where the data stand in each is asked before the log and the checkpoint are written."""
    events = []

    def noted(owner, name):
        of = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: events.append(name) or of(*args))

    noted(Hosts, "all_texts")
    noted(_log, "write")
    noted(checkpoints.Checkpoints, "save")
    fit(batches(2), steps=2, checkpoint_dir=tmp_path)
    assert events == ["all_texts", "write", "save"]


@pytest.mark.slow
def test_an_update_that_would_break_phi_is_skipped(tmp_path):
    """The sixth update is NaN; the loss and gradient that it came from were finite."""
    breaks = optax.scale_by_schedule(lambda n: jnp.where(n == 5, jnp.nan, -0.01))
    with pytest.raises(FloatingPointError, match="step 6, of batch 5"):
        fit(batches(12), optimizer=breaks, checkpoint_dir=tmp_path, max_skipped=3)
    assert steps_of(tmp_path)[1] == [3, 5]
    assert [line["step"] for line in logged(tmp_path) if line.get("skipped")] == [6, 7, 8]


def test_refused_before_anything_is_done(tmp_path):
    for name in ("steps", "save_every", "steps_per_dispatch", "score_every", "max_skipped"):
        options = {name: 0}
        with pytest.raises(ValueError, match="≥ 1"):
            fit(batches(1), **options)
        with pytest.raises(ValueError, match=f"{name} ≥ 1, a whole number; got 10.5"):
            fit(batches(1), **{name: 10.5})
    with pytest.raises(ValueError, match="α is 0"):
        fit(
            [],
            objective=objectives.l2(t_max=1.0),
            denoise=gj.denoiser(lambda x, t, cond: x, PROCESS, "eps"),
        )
    with pytest.raises(ValueError, match="give fit"):
        fit(batches(2), net=gj.OmegaNet(hidden=8, depth=1))


# How it runs.


@pytest.mark.slow
def test_many_steps_a_dispatch_are_one_step_a_dispatch(straight):
    for count in (1, 12):
        phi = fit(batches(12), steps_per_dispatch=count, save_every=100)
        np.testing.assert_allclose(flat(phi), straight[0], atol=1e-6)


@pytest.mark.slow
def test_two_programs_at_most():
    """However steps, checkpoints and dispatches fall."""
    traces = []

    def counted(*args):
        traces.append(0)
        return chase(*args)

    fit(batches(3), steps=3, steps_per_dispatch=3, objective=counted)
    one = len(traces)
    traces.clear()
    steps = []
    fit(
        batches(23), steps=23, steps_per_dispatch=3, save_every=8, objective=counted,
        progress=lambda step, metrics: steps.append(step),
    )  # fmt: skip
    assert steps == [3, 6, 7, 8, 11, 14, 15, 16, 19, 22, 23]
    assert one <= len(traces) <= 2 * one


def test_the_next_batches_are_taken_while_the_device_runs():
    events = []

    def source():
        for batch in batches(4):
            events.append("data")
            yield batch

    fit(
        source(), steps=4, steps_per_dispatch=1,
        progress=lambda step, metrics: events.append(step),
    )  # fmt: skip
    assert events == ["data", "data", 1, "data", 2, "data", 3, 4]


@pytest.mark.slow
def test_the_step_by_hand_is_the_step_of_fit_omega():
    """And the metrics are what their names say."""
    optimizer = optax.sgd(0.1)
    data, logged = batches(2), []
    phi = fit(
        data, steps=2, optimizer=optimizer, steps_per_dispatch=1,
        progress=lambda step, metrics: logged.append(metrics),
    )  # fmt: skip
    state = begin(optimizer)
    run = jax.random.wrap_key_data(state.key)

    @jax.jit
    def step(state, batch, keys):
        return learning.train_step(
            state, STILL, batch, keys, guide=guide, objective=chase, optimizer=optimizer
        )

    for n, batch in enumerate(data):
        fold = lambda i, n=n: jax.random.fold_in(jax.random.fold_in(run, n), i)
        keys = jax.vmap(fold)(jnp.arange(8))
        x0, cond = (jnp.asarray(batch[name]) for name in ("x0", "cond"))
        batch = objectives.Batch(x0, cond, {"uncond": jnp.full_like(cond, 2)})
        before = state.phi
        loss = lambda phi, b=batch, k=keys: jnp.mean(chase(k, guide(phi), None, b))
        value, gradient = jax.jit(jax.value_and_grad(loss))(before)
        state, metrics = step(state, batch, keys)
        np.testing.assert_allclose(flat(state.phi), flat(before) - 0.1 * flat(gradient), 1e-5, 1e-8)
        assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(np.linalg.norm(flat(gradient)), rel=1e-4)
        assert logged[n] == pytest.approx({k: float(v) for k, v in metrics.items()}, rel=1e-5)
    np.testing.assert_allclose(flat(phi), flat(state.phi), rtol=1e-5, atol=1e-7)
    assert int(state.step) == 2


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_a_state_that_is_written_over_takes_nothing_of_the_user_s(make):
    key, phi = make(3), {"omega": jnp.ones(3)}
    state = learning.init_state(key, phi, optax.sgd(0.1))
    jax.jit(lambda s: s._replace(step=s.step + 1), donate_argnums=0)(state)
    assert jax.random.normal(key, (2,)).shape == (2,)
    np.testing.assert_array_equal(phi["omega"], 1)


@pytest.mark.slow
def test_keys_of_every_kind(straight):
    """A raw key is the key it is the data of; another generator works as well."""
    phi, *others = (
        flat(fit(batches(12), key=key))
        for key in (jax.random.PRNGKey(0), jax.random.key(0, impl="rbg"), jax.random.key(1))
    )
    np.testing.assert_array_equal(phi, straight[0])
    for other in others:
        assert not np.allclose(other, phi, atol=1e-3)


@pytest.mark.slow
def test_runs_that_are_alike_compile_once():
    """Over seeds and numbers of the objective, and anew for another optimizer."""
    traces = []

    def counted(*args):
        traces.append(0)
        return chase(*args)

    def run(seed, optimizer):
        traces.clear()
        key = jax.random.key(seed)
        fit(batches(2), steps=2, key=key, objective=counted, optimizer=optimizer)
        return len(traces)

    adam = optax.adam(1e-2)
    first = run(0, adam)
    assert first > 0
    assert run(1, adam) == 0
    assert run(1, optax.adam(2e-2)) == first


@pytest.mark.slow
def test_parameters_on_a_mesh_without_being_told(tmp_path):
    """The denoiser lies where its user put it, in a fresh run and in a resumed one."""
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    params = jax.device_put(jnp.eye(3), NamedSharding(mesh, PartitionSpec()))
    denoise = gj.denoiser(lambda p, x, t, cond: x @ p, PROCESS, params=params)
    for steps in (3, 6):
        fit(batches(6), steps=steps, denoise=denoise, checkpoint_dir=tmp_path)
    assert steps_of(tmp_path)[1] == [3, 6]


@pytest.mark.slow
def test_omega_step_over_seeds():
    """vmap over states and keys: every seed has the run that it has alone."""
    objective = objectives.self_consistency(particles=2)
    optimizer = optax.sgd(0.1)
    batch = examples(6)
    seeds = jax.random.split(KEY, 3)
    shrink = gj.denoiser(lambda x, t, cond: x / (1 + cond)[:, None], PROCESS)

    def step(seed):
        return learning.train_step(
            begin(optimizer, seed), shrink, batch,
            jax.random.split(seed, 6), guide=guide, objective=objective, optimizer=optimizer,
        )  # fmt: skip

    together, metrics = jax.jit(jax.vmap(step))(seeds)
    assert metrics["loss"].shape == (3,)
    alone, _ = jax.jit(step)(seeds[1])
    got = jax.tree.map(lambda a: a[1], together.phi)
    np.testing.assert_allclose(flat(got), flat(alone.phi), atol=1e-5)


def test_a_program_with_a_nan_is_known_again():
    def losing(x):
        return jnp.where(x > 2, x * 3, jnp.nan) + jnp.where(x > 5, jnp.nan, 1.0)

    found = [_identity.program(losing, jnp.ones(2)) for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert found[0]["numbers"] == [1, 2, 3, 5]

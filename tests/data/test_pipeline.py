from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import textwrap
import time

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow_datasets as tfds

from guidejax import data
from guidejax.data import sources

from .fakes import encode, pictures, write


def take(batches, count):
    return list(itertools.islice(iter(batches), count))


def joined(parts):
    """The global batches, from those of each process."""
    return [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a["x0"], b["x0"])
        np.testing.assert_array_equal(a["cond"], b["cond"])


def names(batches):
    """The images of some batches, as something that a set holds."""
    return [x.tobytes() for batch in batches for x in batch["x0"]]


@pytest.mark.parametrize(
    ("name", "key", "shape", "classes", "labels"),
    [
        ("mnist", "label", (28, 28, 1), 10, [i % 10 for i in range(53)]),
        ("cifar10", "label", (32, 32, 3), 10, [i % 10 for i in range(53)]),
        ("celeb_a", "attributes/Male", (218, 178, 3), 2, [1, 0, 1, 0]),
        ("celeb_a", ("attributes", "Young"), (218, 178, 3), 2, [1, 0, 0, 0]),
        ("celeb_a", None, (218, 178, 3), 1, [0, 0, 0, 0]),
        ("imagenet_resized/64x64", "label", (64, 64, 3), 1000, [0, 333, 666, 999]),
    ],
)
def test_catalogue_by_name(catalogue, name, key, shape, classes, labels):
    batches = data.load(
        name, batch_size=4, epochs=1, drop_remainder=False, label_key=key, data_dir=catalogue
    )
    assert (batches.info.image_shape, batches.info.num_classes) == (shape, classes)
    batches = list(batches)
    assert batches[0]["x0"].dtype == np.float32
    assert batches[0]["cond"].dtype == np.int32
    # Every image comes with its own label, and pixel p as p / 127.5 - 1.
    expected = {
        (np.float32(x) / np.float32(127.5) - 1).tobytes(): label
        for x, label in zip(pictures(shape, len(labels)), labels, strict=True)
    }
    conds = np.concatenate([batch["cond"] for batch in batches]).tolist()
    assert dict(zip(names(batches), conds, strict=True)) == expected
    assert len(conds) == len(labels)


def test_images_are_cropped_and_resized(tmp_path):
    image = np.zeros((40, 20, 3), np.uint8)
    image[10:30] = 255  # The central square is white.
    f = tfds.features
    write(tmp_path, "tall", {"image": f.Image(shape=(None, None, 3))}, {"train": [
        {"image": encode(image)}, {"image": encode(image[5:35])},
    ]})  # fmt: skip
    with pytest.raises(ValueError, match=r"differs from one to the next.*image_size="):
        data.arrays("tall", label_key=None, data_dir=tmp_path)
    got = data.arrays("tall", label_key=None, image_size=8, data_dir=tmp_path)
    np.testing.assert_array_equal(got["x0"], np.ones((2, 8, 8, 3)))


def test_epochs_permute_the_split_and_seeds_differ(catalogue):
    def order(seed):
        return names(data.load("mnist", batch_size=53, epochs=2, seed=seed, data_dir=catalogue))

    a, b = order(0), order(1)
    assert a == order(0)
    stored = names([data.arrays("mnist", data_dir=catalogue)])
    for epoch in (a[:53], a[53:], b[:53], b[53:]):
        assert sorted(epoch) == sorted(stored)
    orders = [stored, a[:53], a[53:], b[:53], b[53:]]
    assert all(x != y for x, y in itertools.combinations(orders, 2))
    plain = data.load("mnist", batch_size=53, epochs=1, shuffle=False, data_dir=catalogue)
    assert names(plain) == stored


def test_processes_partition_each_epoch(catalogue):
    parts = [
        names(data.load("mnist", batch_size=12, epochs=1, drop_remainder=False, shard=(i, 3),
                        data_dir=catalogue))
        for i in range(3)
    ]  # fmt: skip
    whole = list(itertools.chain(*parts))
    assert len(set(whole)) == len(whole) == 53
    assert sorted(whole) == sorted(names([data.arrays("mnist", data_dir=catalogue)]))


@pytest.mark.parametrize(
    "make",
    [
        lambda **kw: data.load("mnist", batch_size=12, flip=True, seed=3, epochs=3, **kw),
        lambda **kw: data.load("mnist", batch_size=12, epochs=2, drop_remainder=False, **kw),
        lambda **kw: data.grouped("mnist", groups=6, per_group=2, flip=True, steps=9, **kw),
    ],
)
def test_global_batches_do_not_depend_on_the_number_of_processes(catalogue, make):
    whole = list(make(data_dir=catalogue, shard=(0, 1)))
    assert len(whole) == make(data_dir=catalogue).steps
    for count in (2, 3):
        parts = [list(make(data_dir=catalogue, shard=(i, count))) for i in range(count)]
        assert_same(joined(parts), whole)


def test_flips_mirror_half_of_the_images(catalogue):
    def make(flip):
        return data.load("mnist", batch_size=53, epochs=4, flip=flip, data_dir=catalogue)

    flipped = 0
    for plain, mirrored in zip(make(False), make(True), strict=True):
        for x, y in zip(plain["x0"], mirrored["x0"], strict=True):
            flipped += not np.array_equal(x, y)
            assert np.array_equal(x, y) or np.array_equal(x[:, ::-1], y)
    assert (
        106 - 3 * 53**0.5 < flipped < 106 + 3 * 53**0.5
    )  # Three standard deviations of 212 coins.


@pytest.mark.parametrize(
    "make",
    [
        lambda **kw: data.load("mnist", batch_size=12, flip=True, **kw),
        lambda **kw: data.grouped("mnist", groups=6, per_group=2, flip=True, **kw),
    ],
)
@pytest.mark.parametrize("steps", [0, 3, 4, 7])  # An epoch has 4.
def test_resume_goes_on_exactly(catalogue, make, steps):
    whole = take(make(data_dir=catalogue), steps + 6)
    it = iter(make(data_dir=catalogue))
    for _ in range(steps):
        next(it)
    state = json.loads(json.dumps(it.get_state()))
    assert_same(take(it, 6), whole[steps:])
    it.set_state(state)  # Back, on the iterator that went on.
    assert_same(take(it, 6), whole[steps:])
    parts = [iter(make(data_dir=catalogue, shard=(i, 2), threads=0)) for i in range(2)]
    for part in parts:  # On other processes, more of them.
        part.set_state(state)
    assert_same(joined([take(part, 6) for part in parts]), whole[steps:])


def test_orbax_saves_the_position(catalogue, tmp_path):
    def make():
        return iter(data.load("mnist", batch_size=12, data_dir=catalogue))

    it = make()
    next(it)
    with ocp.Checkpointer(grain.checkpoint.CheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "it", args=grain.checkpoint.CheckpointSave(it))
        again = checkpointer.restore(
            tmp_path / "it", args=grain.checkpoint.CheckpointRestore(make())
        )
    assert_same(take(again, 3), take(it, 3))


def test_a_state_of_other_batches_is_refused(catalogue):
    it = iter(data.load("mnist", batch_size=12, seed=0, epochs=1, data_dir=catalogue))
    state = it.get_state()
    other = iter(data.load("mnist", batch_size=12, seed=1, data_dir=catalogue))
    with pytest.raises(ValueError, match=r"other batches, with seed 0 \(now 1\)"):
        other.set_state(state)
    with pytest.raises(ValueError, match="at most 4 steps"):
        it.set_state({**state, "step": 5})
    with pytest.raises(ValueError, match="expected what get_state"):
        it.set_state({"next_index": 3})


def test_splits_too_large_for_memory_give_the_same_batches(catalogue, monkeypatch):
    def make():
        return list(data.load("mnist", batch_size=12, epochs=1, flip=True, data_dir=catalogue))

    kept = make()
    monkeypatch.setattr(sources, "_CACHE_BYTES", 0)
    assert_same(make(), kept)


def test_worker_processes_make_the_same_batches(catalogue):
    def make(**kw):
        return data.load("mnist", batch_size=12, epochs=1, data_dir=catalogue, **kw)

    here = iter(make())
    next(here)
    it = iter(make(worker_count=1))
    it.set_state(here.get_state())
    assert_same(list(it), list(here))
    it.close()


def test_groups(digits_dir):
    labels = data.arrays("digits", data_dir=digits_dir)["cond"]
    seen = {label: [] for label in range(10)}
    batches = data.grouped("digits", groups=3, per_group=8, steps=33, data_dir=digits_dir)
    for batch in batches:
        conds = batch["cond"].reshape(3, 8)
        assert (conds == conds[:, :1]).all()
        assert (np.diff(conds[:, 0]) > 0).all()  # Sorted, and no condition twice.
        for cond, images in zip(conds[:, 0].tolist(), batch["x0"].reshape(3, 8, -1), strict=True):
            seen[cond].append([x.tobytes() for x in images])
    for label, visits in seen.items():
        # 11 rounds, 9 of the 10 conditions in each; 11 or 12 visits make an epoch of a condition.
        assert 5 <= len(visits) <= 11 <= np.sum(labels == label) // 8
        images = list(itertools.chain(*visits))
        assert len(set(images)) == len(images)
    pairs = dict(zip(names([data.arrays("digits", data_dir=digits_dir)]), labels, strict=True))
    assert all(pairs[x] == label for label in seen for visit in seen[label] for x in visit)


def test_more_groups_than_conditions(catalogue):
    # Two passes over the ten conditions and five of a third; each has five or six examples.
    batches = take(data.grouped("mnist", groups=25, per_group=2, data_dir=catalogue), 4)
    for batch in batches:
        counts = np.bincount(batch["cond"], minlength=10)
        assert sorted(counts) == [4] * 5 + [6] * 5
        assert (np.diff(batch["cond"]) >= 0).all()
        for group in batch["x0"].reshape(25, 2, -1):
            assert not np.array_equal(group[0], group[1])
    assert len(set(names(batches))) == 53


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "mnits"}, r"unknown dataset 'mnits'.*did you mean .*'mnist'"),
        ({"name": ""}, "dataset name ''; expected"),
        ({"name": "imagenet_resized/65x65"}, "65x65 not found"),
        ({"split": "trian"}, r"mnist/3.0.1.*no split 'trian'; expected one of train \(53\)"),
        ({"split": "train[:0]"}, r"split 'train\[:0\]' is empty; expected at least one"),
        ({"split": None}, "split None; expected a string"),
        ({"batch_size": 54}, "batch_size 54 exceeds the 53 examples of dataset 'mnist/3.0.1'"),
        ({"batch_size": 0}, "batch_size 0; expected a positive integer"),
        ({"batch_size": 7, "shard": (0, 2)}, "batch_size 7 is not a multiple of the 2 processes"),
        ({"shard": (2, 2)}, r"shard \(2, 2\); expected \(index, count\)"),
        ({"epochs": 0}, "epochs 0; expected a positive integer"),
        ({"seed": -1}, "seed -1; expected"),
        ({"threads": -1}, "threads -1"),
        ({"label_key": "attributes/Male"}, "no feature 'attributes/Male'; .*image, label"),
        ({"label_key": "image"}, "feature 'image' is .*; expected a scalar"),
        ({"image_key": "label"}, r"the image feature is ClassLabel.*expected shape"),
        ({"image_range": (1, 1)}, r"image_range \(1, 1\); expected"),
        ({"image_size": 0}, "image_size 0; expected"),
    ],
)
def test_bad_arguments(catalogue, call, message):
    with pytest.raises(ValueError, match=message):
        data.load(**{"name": "mnist", "batch_size": 4, "data_dir": catalogue} | call)


def test_bad_groups(catalogue):
    for call, message in [
        ({"groups": 2, "per_group": 6}, "label 3 has 5 examples; expected at least per_group = 6"),
        ({"groups": 3, "per_group": 2, "shard": (0, 2)}, "groups 3 is not a multiple of the 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            data.grouped("mnist", data_dir=catalogue, **call)


def test_bad_examples_are_named(tmp_path):
    f = tfds.features
    good, bad = np.zeros((2, 2, 1), np.float32), np.full((2, 2, 1), np.nan, np.float32)
    write(
        tmp_path,
        "floats",
        {"image": f.Tensor(shape=(2, 2, 1), dtype=np.float32),
         "label": f.ClassLabel(num_classes=3)},
        {
            "clean": [{"image": good, "label": 0}, {"image": good + 1, "label": 2}],
            "nan": [{"image": bad, "label": 0}],
            "inf": [{"image": good + np.inf, "label": 0}],
            "wide": [{"image": good + 2, "label": 0}],
            "unlabelled": [{"image": good, "label": -1}],  # TFDS lets -1 stand for no label.
        },
    )  # fmt: skip
    clean = data.arrays("floats", "clean", data_dir=tmp_path)
    np.testing.assert_array_equal(np.sort(clean["x0"][:, 0, 0, 0]), [-1, 1])
    wide = data.arrays("floats", "wide", image_range=(0, 4), data_dir=tmp_path)
    np.testing.assert_array_equal(wide["x0"], np.zeros((1, 2, 2, 1)))
    where = "dataset 'floats/1.0.0', split '{}', example 0: "
    for split, message in [
        ("nan", r"the image holds NaN or values outside \[0, 1\]"),
        ("inf", r"the image holds NaN or values outside \[0, 1\]"),
        ("wide", r"outside \[0, 1\] \(it spans 2.0 to 2.0\)"),
        ("unlabelled", "label -1; expected a label in 0..2"),
    ]:
        with pytest.raises(ValueError, match=where.format(split) + ".*" + message):
            next(iter(data.load("floats", split, batch_size=1, data_dir=tmp_path)))
    with pytest.raises(ValueError, match="label -1"):
        data.grouped("floats", "unlabelled", groups=1, per_group=1, data_dir=tmp_path)


def test_damaged_datasets(tmp_path):
    features = {"image": tfds.features.Image(shape=(4, 4, 3)), "label": np.int64}
    examples = {"train": [{"image": encode(pictures((4, 4, 3), 1)[0]), "label": 1}]}
    write(tmp_path, "half", features, examples)
    path = tmp_path / "half" / "1.0.0"
    (record,) = path.glob("*.array_record*")
    record.unlink()
    with pytest.raises(ValueError, match=f"lacks its file {record}"):
        data.arrays("half", data_dir=tmp_path)
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ValueError, match="prepared as tfrecord; expected array_record"):
        data.arrays("half", data_dir=tmp_path)


def refuse(*args, **kwargs):
    raise OSError("no route to host")


def hang(*args, **kwargs):
    time.sleep(30)
    raise TimeoutError("timed out")


@pytest.mark.parametrize("connect", [refuse, hang])
def test_without_a_network_the_message_says_how_to_bring_the_dataset(
    tmp_path, monkeypatch, connect
):
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(sources, "_CONNECT_SECONDS", 0.2)
    begin = time.monotonic()
    with pytest.raises(FileNotFoundError) as error:
        data.load("mnist", batch_size=4, data_dir=tmp_path)
    assert time.monotonic() - begin < 5
    for part in ("'mnist'", str(tmp_path), "storage.googleapis.com", "download_and_prepare()"):
        assert part in str(error.value)
    assert not os.listdir(tmp_path)


def test_tensorflow_is_never_imported_and_missing_extras_are_named(tmp_path):
    # A stand-in that tells on whoever tries to import it, whether or not there is a real one.
    fake = tmp_path / "path" / "tensorflow"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("print('TENSORFLOW'); raise ImportError('tensorflow')")
    code = """
    import sys
    from guidejax import data
    next(iter(data.load("digits", batch_size=8, data_dir=sys.argv[1])))
    next(iter(data.grouped("digits", groups=2, per_group=2, data_dir=sys.argv[1])))
    assert "tensorflow" not in sys.modules

    for name in [name for name in sys.modules if name.startswith("guidejax")]:
        del sys.modules[name]
    sys.modules["grain"] = None
    try:
        import guidejax.data
    except ImportError as error:
        assert 'pip install "guidejax[data]"' in str(error), error
        print("NAMED")
    """
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(fake.parent), *filter(None, sys.path)]),
        "PYTHONUNBUFFERED": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / "data"],
        check=False, capture_output=True, text=True, env=env,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "TENSORFLOW" not in run.stdout
    assert "NAMED" in run.stdout

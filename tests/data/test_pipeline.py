from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import os
import subprocess
import sys
import textwrap

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
import requests
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


@pytest.fixture(scope="session")
def mnist(catalogue):
    """53 images, five or six of each class."""
    return data.Images("mnist", data_dir=catalogue)


@pytest.mark.slow
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
    wanted = data.Images(name, label_key=key, data_dir=catalogue)
    batches = data.load(wanted, batch_size=4, epochs=1, drop_remainder=False)
    assert batches.info == wanted.info()
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
        data.Images("tall", label_key=None, data_dir=tmp_path).arrays()
    got = data.Images("tall", label_key=None, image_size=8, data_dir=tmp_path).arrays()
    np.testing.assert_array_equal(got["x0"], np.ones((2, 8, 8, 3)))


def test_epochs_permute_the_split_and_seeds_differ(mnist):
    def order(seed):
        return names(data.load(mnist, batch_size=53, epochs=2, seed=seed))

    a, b = order(0), order(1)
    assert a == order(0)
    stored = names([mnist.arrays()])
    for epoch in (a[:53], a[53:], b[:53], b[53:]):
        assert sorted(epoch) == sorted(stored)
    orders = [stored, a[:53], a[53:], b[:53], b[53:]]
    assert all(x != y for x, y in itertools.combinations(orders, 2))
    plain = data.load(mnist, batch_size=53, epochs=1, shuffle=False)
    assert names(plain) == stored


def test_processes_partition_each_epoch(mnist):
    parts = [
        names(data.load(mnist, batch_size=12, epochs=1, drop_remainder=False, shard=(i, 3)))
        for i in range(3)
    ]  # fmt: skip
    whole = list(itertools.chain(*parts))
    assert len(set(whole)) == len(whole) == 53
    assert sorted(whole) == sorted(names([mnist.arrays()]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda *a, **kw: data.load(*a, batch_size=12, flip=True, seed=3, epochs=3, **kw),
        lambda *a, **kw: data.load(*a, batch_size=12, epochs=2, drop_remainder=False, **kw),
        lambda *a, **kw: data.grouped(*a, groups=4, per_group=3, flip=True, steps=9, **kw),
    ],
)
def test_global_batches_do_not_depend_on_the_number_of_processes(mnist, make):
    whole = list(make(mnist, shard=(0, 1)))
    assert len(whole) == make(mnist).steps
    for count in (2, 4):
        parts = [list(make(mnist, shard=(i, count))) for i in range(count)]
        assert_same(joined(parts), whole)


def test_flips_mirror_half_of_the_images(mnist):
    def make(flip):
        return data.load(mnist, batch_size=53, epochs=4, flip=flip)

    flipped = 0
    for plain, mirrored in zip(make(False), make(True), strict=True):
        for x, y in zip(plain["x0"], mirrored["x0"], strict=True):
            flipped += not np.array_equal(x, y)
            assert np.array_equal(x, y) or np.array_equal(x[:, ::-1], y)
    assert (
        106 - 3 * 53**0.5 < flipped < 106 + 3 * 53**0.5
    )  # Three standard deviations of 212 coins.


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda *a, **kw: data.load(*a, batch_size=12, flip=True, **kw),
        lambda *a, **kw: data.grouped(*a, groups=6, per_group=2, flip=True, **kw),
    ],
)
@pytest.mark.parametrize("steps", [0, 3, 4, 7])  # An epoch has 4.
def test_resume_goes_on_exactly(mnist, make, steps):
    whole = take(make(mnist), steps + 6)
    it = iter(make(mnist))
    for _ in range(steps):
        next(it)
    state = json.loads(json.dumps(it.get_state()))
    assert_same(take(it, 6), whole[steps:])
    it.set_state(state)  # Back, on the iterator that went on.
    assert_same(take(it, 6), whole[steps:])
    parts = [iter(make(mnist, shard=(i, 2), threads=0)) for i in range(2)]
    for part in parts:  # On other processes, more of them.
        part.set_state(state)
    assert_same(joined([take(part, 6) for part in parts]), whole[steps:])


def test_orbax_saves_the_position(mnist, tmp_path):
    def make():
        return iter(data.load(mnist, batch_size=12))

    it = make()
    next(it)
    with ocp.Checkpointer(grain.checkpoint.CheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "it", args=grain.checkpoint.CheckpointSave(it))
        again = checkpointer.restore(
            tmp_path / "it", args=grain.checkpoint.CheckpointRestore(make())
        )
    assert_same(take(again, 3), take(it, 3))


def test_resume_reads_nothing_twice(catalogue, monkeypatch):
    read, indices = sources.Source._read, []

    def watched(self, index):
        indices.append((self.info.split, index))
        return read(self, index)

    monkeypatch.setattr(sources, "_CACHE_BYTES", 0)
    monkeypatch.setattr(sources.Source, "_read", watched)
    images = data.Images("mnist", "train[:24]", data_dir=catalogue)
    it = iter(data.load(images, batch_size=12, threads=0))
    it.set_state({**it.get_state(), "step": 10**9})
    next(it)
    # Other tests' iterators may still read ahead, of another split.
    assert sum(split == "train[:24]" for split, _ in indices) == 12
    assert it.get_state()["step"] == 10**9 + 1


@pytest.mark.parametrize(
    ("other", "options", "name"),
    [
        ({"name": "cifar10"}, {}, "dataset"),
        ({"split": "train[:40]"}, {}, "split"),
        ({"label_key": None}, {}, "label_key"),
        ({"image_size": 14}, {}, "image_size"),
        ({"image_range": (0, 256)}, {}, "image_range"),
        ({}, {"seed": 1}, "seed"),
        ({}, {"shuffle": False}, "shuffle"),
        ({}, {"flip": True}, "flip"),
        ({}, {"batch_size": 6}, "batch_size"),
        ({}, {"drop_remainder": False}, "drop_remainder"),
    ],
)
def test_a_state_of_other_batches_is_refused(mnist, other, options, name):
    state = iter(data.load(mnist, batch_size=12)).get_state()
    images = dataclasses.replace(mnist, **other)
    it = iter(data.load(images, **{"batch_size": 12} | options))
    with pytest.raises(ValueError, match=rf"\b{name} \S+.* \(now "):
        it.set_state(json.loads(json.dumps(state)))


def test_a_bad_state_is_refused(mnist):
    it = iter(data.load(mnist, batch_size=12, epochs=1))
    state = it.get_state()
    it.set_state({**state, "step": 4})
    assert list(it) == []
    for bad in (
        {**state, "step": 5},
        {**state, "step": -1},
        {"next_index": 3},
        None,
        {"step": 0, "of": None},
    ):
        with pytest.raises(ValueError, match=r"state|step"):
            it.set_state(bad)
    groups = iter(data.grouped(mnist, groups=2, per_group=3))
    with pytest.raises(ValueError, match="groups"):
        groups.set_state(state)


def test_splits_too_large_for_memory_give_the_same_batches(mnist, monkeypatch):
    def make():
        return list(data.load(mnist, batch_size=12, epochs=1, flip=True))

    kept = make()
    monkeypatch.setattr(sources, "_CACHE_BYTES", 0)
    assert_same(make(), kept)


@pytest.mark.slow
def test_worker_processes_make_the_same_batches(mnist):
    def make(**kw):
        return data.load(mnist, batch_size=12, epochs=1, **kw)

    here = iter(make())
    next(here)
    it = iter(make(worker_count=1))
    it.set_state(here.get_state())
    assert_same(list(it), list(here))
    it.close()


@pytest.mark.slow
def test_groups(digits_dir):
    images = data.Images("digits", data_dir=digits_dir)
    digits = images.arrays()
    labels = digits["cond"]
    seen = {label: [] for label in range(10)}
    batches = data.grouped(images, groups=3, per_group=8, steps=33)
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
    pairs = dict(zip(names([digits]), labels, strict=True))
    assert all(pairs[x] == label for label in seen for visit in seen[label] for x in visit)


def test_more_groups_than_conditions(mnist):
    # Two passes over the ten conditions and five of a third; each has five or six examples.
    batches = take(data.grouped(mnist, groups=25, per_group=2), 4)
    for batch in batches:
        counts = np.bincount(batch["cond"], minlength=10)
        assert sorted(counts) == [4] * 5 + [6] * 5
        assert (np.diff(batch["cond"]) >= 0).all()
        for group in batch["x0"].reshape(25, 2, -1):
            assert not np.array_equal(group[0], group[1])
    assert len(set(names(batches))) == 53


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"name": "mnits"}, "unknown .*'mnist'"),
        ({"name": ""}, "name ''"),
        ({"name": "imagenet_resized/65x65"}, "65x65 not found"),
        ({"split": "trian"}, r"mnist/3.0.1.*'trian'.*train \(53\)"),
        ({"split": "train[:0]"}, r"'train\[:0\]' is empty"),
        ({"split": None}, "split None"),
        ({"label_key": "attributes/Male"}, "'attributes/Male'.*image, label"),
        ({"label_key": "image"}, "'image'.*scalar"),
        ({"image_key": "label"}, "ClassLabel.*shape"),
        ({"image_range": (1, 1)}, r"image_range \(1, 1\)"),
        ({"image_size": 0}, "image_size 0"),
    ],
)
def test_bad_images(catalogue, wanted, message):
    images = data.Images(**{"name": "mnist", "data_dir": catalogue} | wanted)
    for ask in (images.info, images.arrays, lambda: data.load(images, batch_size=4)):
        with pytest.raises(ValueError, match=message):
            ask()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"batch_size": 54}, "batch_size 54.*53 examples of dataset 'mnist/3.0.1'"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 4.0}, "batch_size 4.0"),
        ({"batch_size": 7, "shard": (0, 2)}, "batch_size 7.*2 processes"),
        ({"shard": (2, 2)}, r"shard \(2, 2\)"),
        ({"epochs": 0}, "epochs 0"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**32}, "seed 4294967296"),
        ({"threads": -1}, "threads -1"),
        ({"worker_count": -1}, "worker_count -1"),
    ],
)
def test_bad_arguments(mnist, call, message):
    with pytest.raises(ValueError, match=message):
        data.load(mnist, **{"batch_size": 4} | call)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"groups": 2, "per_group": 6}, "label 3 has 5 examples"),
        ({"groups": 3, "per_group": 2, "shard": (0, 2)}, "groups 3.*2 processes"),
        ({"groups": 3, "per_group": 0}, "per_group 0"),
        ({"groups": 3, "per_group": 2, "steps": 0}, "steps 0"),
    ],
)
def test_bad_groups(mnist, call, message):
    with pytest.raises(ValueError, match=message):
        data.grouped(mnist, **call)


def test_zeros_and_ones_as_bytes_are_told(tmp_path):
    """Some datasets store a black and a white pixel as 0 and 1: all would be black."""
    features = {"image": tfds.features.Image(shape=(4, 4, 1)), "label": np.int64}
    bits = [{"image": encode(x % 2), "label": i % 2} for i, x in enumerate(pictures((4, 4, 1), 10))]
    write(tmp_path, "bits", features, {"train": bits})
    asked = data.Images("bits", data_dir=tmp_path)
    with pytest.raises(
        ValueError, match=r"largest value of 10 images is 1, .*image_range=\(0, 1\)"
    ):
        asked.arrays()
    with pytest.raises(ValueError, match="image_range"):
        next(iter(data.load(asked, batch_size=8)))
    found = dataclasses.replace(asked, image_range=(0, 1)).arrays()["x0"]
    assert set(np.unique(found)) == {-1.0, 1.0}


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

    def floats(split, **options):
        return data.Images("floats", split, data_dir=tmp_path, **options)

    clean = floats("clean").arrays()
    np.testing.assert_array_equal(np.sort(clean["x0"][:, 0, 0, 0]), [-1, 1])
    wide = floats("wide", image_range=(0, 4)).arrays()
    np.testing.assert_array_equal(wide["x0"], np.zeros((1, 2, 2, 1)))
    where = "dataset 'floats/1.0.0', split '{}', example 0: "
    for split, message in [
        ("nan", "NaN"),
        ("inf", "outside"),
        ("wide", r"outside \[0, 1\] .*2.0 to 2.0"),
        ("unlabelled", "label -1"),
    ]:
        with pytest.raises(ValueError, match=where.format(split) + ".*" + message):
            next(iter(data.load(floats(split), batch_size=1)))
    with pytest.raises(ValueError, match="label -1"):
        data.grouped(floats("unlabelled"), groups=1, per_group=1)


def test_damaged_datasets(tmp_path):
    features = {"image": tfds.features.Image(shape=(4, 4, 3)), "label": np.int64}
    examples = {"train": [{"image": encode(pictures((4, 4, 3), 1)[0]), "label": 1}]}
    write(tmp_path, "half", features, examples)
    path = tmp_path / "half" / "1.0.0"
    (record,) = path.glob("*.array_record*")
    record.unlink()
    with pytest.raises(ValueError, match=f"lacks its file {record}"):
        data.Images("half", data_dir=tmp_path).info()
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ValueError, match="prepared as tfrecord; expected array_record"):
        data.Images("half", data_dir=tmp_path).info()


def test_what_cannot_be_prepared_is_reported_with_its_reason(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(requests.Session, "get", refuse)
    with pytest.raises(FileNotFoundError) as error:
        data.load(data.Images("mnist", data_dir=tmp_path), batch_size=4)
    for part in ("'mnist'", str(tmp_path), "no route to host", "download_and_prepare()"):
        assert part in str(error.value)
    assert not list(tmp_path.rglob("*.json"))  # Nothing that would be taken for the dataset.


def test_missing_extras_are_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("guidejax.data")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"guidejax\[data\]"):
        importlib.import_module("guidejax.data")


@pytest.mark.slow
def test_tensorflow_is_never_imported(tmp_path):
    # A stand-in that tells on whoever tries to import it, whether or not there is a real one.
    fake = tmp_path / "path" / "tensorflow"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("print('TENSORFLOW'); raise ImportError('tensorflow')")
    code = """
    import sys
    from guidejax import data
    images = data.Images("digits", data_dir=sys.argv[1])
    next(iter(data.load(images, batch_size=8)))
    next(iter(data.grouped(images, groups=2, per_group=2)))
    assert "tensorflow" not in sys.modules
    print("READ")
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
    assert "READ" in run.stdout
    assert "TENSORFLOW" not in run.stdout

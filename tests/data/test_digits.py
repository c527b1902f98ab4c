from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn import datasets

from guidejax import data
from guidejax.data.digits import read_digits, split_digits

SPLITS = "96146f700702555439673cb75f6a877a22f6b83b55b032858de819a585a97ba8"


def test_splits_hold_every_image_once_and_never_change(digits_dir):
    raw = datasets.load_digits()
    builder = tfds.builder("digits", data_dir=digits_dir)
    indices = {}
    for split in ("train", "validation", "test"):
        examples = list(builder.as_data_source(split))
        indices[split] = [int(example["index"]) for example in examples]
        for example in examples:
            assert example["label"] == raw.target[example["index"]]
            levels = np.rint(example["image"][..., 0] * (16 / 255))
            np.testing.assert_array_equal(levels, raw.images[example["index"]])
    assert sorted(itertools.chain(*indices.values())) == list(range(1797))
    for split in ("validation", "test"):
        assert np.bincount(raw.target[indices[split]]).tolist() == [40] * 10
    # Every reported number rests on which image is in which split, and where: train[:50%].
    text = repr(indices).encode()
    assert hashlib.sha256(text).hexdigest() == SPLITS


def test_arrays_are_in_the_common_convention(digits_dir):
    images = data.Images("digits", "test", data_dir=digits_dir)
    test = images.arrays()
    assert test["x0"].shape == (400, 8, 8, 1)
    assert test["x0"].dtype == np.float32
    assert test["cond"].dtype == np.int32
    assert (test["x0"].min(), test["x0"].max()) == (-1, 1)
    info = images.info()
    assert (info.num_examples, info.num_classes, info.image_shape) == (400, 10, (8, 8, 1))


def test_sub_splits_partition_a_split(digits_dir):
    def rows(split):
        x0 = data.Images("digits", split, data_dir=digits_dir).arrays()["x0"]
        return {x.tobytes() for x in x0}

    whole, first, second = rows("train"), rows("train[:50%]"), rows("train[50%:]")
    assert len(whole) == 997  # No two digits are the same image.
    assert first | second == whole
    assert not first & second


def test_prepare_again_keeps_the_files(digits_dir):
    path = data.prepare("digits", data_dir=digits_dir)
    before = {file: os.stat(os.path.join(path, file)).st_mtime_ns for file in os.listdir(path)}
    assert data.prepare("digits", data_dir=digits_dir) == path
    assert before == {f: os.stat(os.path.join(path, f)).st_mtime_ns for f in os.listdir(path)}


@pytest.mark.slow
def test_a_killed_preparation_leaves_nothing_that_is_taken_for_the_dataset(tmp_path):
    code = """
    import os, sys
    from guidejax import data
    from guidejax.data.digits import Digits
    examples = Digits._generate_examples
    def die(self, images, labels, rows):
        for count, example in enumerate(examples(self, images, labels, rows)):
            if len(rows) == 400 and count == 10:  # The train split is written by now.
                os._exit(9)
            yield example
    Digits._generate_examples = die
    data.prepare("digits", data_dir=sys.argv[1])
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path], check=False, capture_output=True
    )
    assert run.returncode == 9, run.stderr.decode()
    assert any("train" in file.name for file in tmp_path.rglob("*")), "killed too early to tell"
    assert data.Images("digits", "test", data_dir=tmp_path).arrays()["x0"].shape[0] == 400


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: raw.images.__setitem__((7, 0, 0), np.nan), "image 7 holds NaN"),
        (lambda raw: raw.images.__setitem__((8, 0, 0), 17), "image 8 holds .* outside 0..16"),
        (lambda raw: raw.target.__setitem__(9, 10), "image 9 has label 10; expected .* 0..9"),
        (lambda raw: raw.target.__setitem__(slice(None), 3), "class 0 has 0 images"),
    ],
)
def test_bad_digits_are_refused(tmp_path, monkeypatch, spoil, message):
    raw = datasets.load_digits()
    spoil(raw)
    monkeypatch.setattr(datasets, "load_digits", lambda: raw)
    with pytest.raises(ValueError, match=message):
        data.prepare("digits", data_dir=tmp_path)
    assert not list(tmp_path.rglob("*.array_record*"))


def test_split_sizes():
    _, labels = read_digits()
    assert {k: len(v) for k, v in split_digits(labels).items()} == {
        "train": 997,
        "validation": 400,
        "test": 400,
    }

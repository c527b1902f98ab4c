"""Evaluations on disk: what is read is what was written."""

import json

import numpy as np
import pytest

from guidejax import data


def batch(size=6, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=(size, *shape)).astype(np.float32)
    return {
        "x0": draw(4, 4, 1),
        "cond": np.arange(size) + 100 * seed,
        "evaluations": {
            "t": draw() ** 2,
            "x": draw(2, 4, 4, 1),
            "predictions": {"cond": draw(2, 4, 4, 1), "uncond": draw(2, 4, 4, 1)},
        },
    }


@pytest.fixture
def written(tmp_path):
    where = tmp_path / "some" / "evaluations"
    assert data.write_examples(where, [batch(6, 0), batch(3, 1)]) == 9
    return where


def by_label(found):
    """{label: its row, all arrays end on end}."""
    e = found["evaluations"]
    arrays = [found["x0"], e["t"], e["x"], e["predictions"]["cond"], e["predictions"]["uncond"]]
    rows = np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)
    return dict(zip(found["cond"].tolist(), rows, strict=True))


def test_there_and_back(written):
    expected = by_label(batch(6, 0)) | by_label(batch(3, 1))
    found = {}
    for part in data.load_examples(written, batch_size=3, epochs=1):
        assert part["x0"].dtype == np.float32
        assert part["evaluations"]["predictions"]["uncond"].shape == (3, 2, 4, 4, 1)
        found |= by_label(part)
    assert sorted(found) == sorted(expected)
    for label, row in expected.items():
        np.testing.assert_array_equal(found[label], row)


def test_order(written):
    labels = lambda **options: [
        b["cond"].tolist() for b in data.load_examples(written, batch_size=3, **options)
    ]
    assert np.concatenate(labels(shuffle=False, epochs=1)).tolist() == [*range(6), 100, 101, 102]
    one = labels(seed=1, epochs=2)
    assert one == labels(seed=1, epochs=2)
    assert one[:3] != one[3:]
    assert one != labels(seed=2, epochs=2)


def test_processes_share_a_batch(written):
    whole = next(iter(data.load_examples(written, batch_size=4)))["cond"]
    parts = [
        next(iter(data.load_examples(written, batch_size=4, shard=(i, 2))))["cond"]
        for i in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_goes_on_from_where_it_stood(written):
    run = iter(data.load_examples(written, batch_size=2))
    next(run)
    state = json.loads(json.dumps(run.get_state()))
    following = [next(run)["cond"].tolist() for _ in range(6)]
    again = iter(data.load_examples(written, batch_size=2))
    again.set_state(state)
    assert [next(again)["cond"].tolist() for _ in range(6)] == following
    with pytest.raises(ValueError, match=r"saved from other batches, with batch_size 2 \(now 3\)"):
        iter(data.load_examples(written, batch_size=3)).set_state(state)


def test_batches_may_be_written_to(written):
    found = next(iter(data.load_examples(written, batch_size=2)))
    found["x0"] *= 2
    found["evaluations"]["t"] += 1


def test_refused(tmp_path, written):
    with pytest.raises(FileExistsError):
        data.write_examples(written, [batch()])
    with pytest.raises(ValueError, match="exceeds the 9"):
        data.load_examples(written, batch_size=10)
    with pytest.raises(FileNotFoundError):
        data.load_examples(tmp_path, batch_size=1)
    nan = batch()
    nan["evaluations"]["x"][0, 0] = np.nan
    short = batch() | {"cond": np.arange(3)}
    other = batch() | {"x0": np.zeros((6, 2), np.float32)}
    for batches, what in (
        ([], "no example"), ([batch(), nan], "NaN"), ([short], "leading sizes"),
        ([batch(), other], "expected the same"),
        ([batch() | {"cond": np.array(["a"] * 6)}], "cond"),
        ([(np.ones((6, 3)), np.ones((6, 3)))], "batch 0 is a tuple; expected a mapping"),
        ([np.ones((6, 3))], "batch 0 is a ndarray; expected a mapping"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            data.write_examples(tmp_path / "other", batches)
        # Nothing half done is left.
        assert sorted(p.name for p in tmp_path.iterdir()) == ["some"]

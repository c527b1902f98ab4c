"""Several processes that learn together: real ones, as on as many hosts."""

import subprocess
import time

import numpy as np
import pytest

from experiments.distributed import local
from guidejax import learning
from guidejax.learning import checkpoints
from tests.learning.test_training import logged, steps_of

pytestmark = pytest.mark.slow


def run(directory, count, what="", devices=1):
    """(exit statuses, what each said, seconds) of a run of that many processes."""
    begun = time.monotonic()
    processes = local.start(
        count, ["tests.learning.cluster", str(directory), what], devices,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in processes]
    return [process.returncode for process in processes], said, time.monotonic() - begun


def phi(directory):
    return np.load(directory / "phi.npy")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes that nothing stopped."""
    directory = tmp_path_factory.mktemp("two")
    codes, said, _ = run(directory, 2)
    assert codes == [0, 0], said
    return directory


@pytest.mark.parametrize(("count", "devices"), [(1, 1), (4, 1), (2, 2)])
def test_as_many_as_there_are_come_to_the_same(tmp_path, two, count, devices):
    codes, said, _ = run(tmp_path, count, devices=devices)
    assert codes == [0] * count, said
    np.testing.assert_allclose(phi(tmp_path), phi(two), atol=2e-6)
    assert [line["step"] for line in logged(tmp_path)] == list(range(1, 9))
    held_out = [[line["held_out"] for line in logged(where)] for where in (tmp_path, two)]
    np.testing.assert_allclose(*held_out, rtol=1e-5)


def test_a_host_that_is_lost(tmp_path, two):
    """The others end, and the run goes on from its checkpoint, bit for bit; or on fewer hosts."""
    processes = local.start(2, ["tests.learning.cluster", str(tmp_path), "killed"])
    assert local.wait(processes, grace=10) != 0
    assert steps_of(tmp_path)[1][-1] in (2, 4)
    codes, said, _ = run(tmp_path, 2)
    assert codes == [0, 0], said
    np.testing.assert_array_equal(phi(tmp_path), phi(two))


def test_copies_of_a_batch_that_differ_are_refused(tmp_path):
    codes, said, _ = run(tmp_path, 2, "copies")
    assert codes == [1, 1], said
    assert all("processes 0 and 1 hold the same rows" in text for text in said)
    assert all("shard=(0, 1)" in text for text in said)


def test_one_that_is_told_to_end_saves_for_all(tmp_path, two):
    codes, said, _ = run(tmp_path, 2, "SIGTERM")
    assert codes == [learning.PREEMPTED] * 2, said
    assert "saved" in said[0]
    assert steps_of(tmp_path)[1][-1] in (5, 6)
    codes, said, _ = run(tmp_path, 2)
    assert codes == [0, 0], said
    np.testing.assert_array_equal(phi(tmp_path), phi(two))


def test_an_error_on_one_ends_all(tmp_path, two):
    """A log that can't be written, a bad row, a full disk; then without any of them."""
    for what, message, index in (
        ("log", "metrics.jsonl can't be written", 0),
        ("bad row", "x0 of batch 4 holds NaN", 1),
        ("callback", "the disk of this host is full", 1),
    ):
        codes, said, seconds = run(tmp_path, 2, what)
        assert all(code == 1 for code in codes), said
        assert all(message in text for text in said)
        assert f"process {index} of 2 ended this run" in said[1 - index]
        assert seconds < 200
    codes, said, _ = run(tmp_path, 2)
    assert codes == [0, 0], said
    np.testing.assert_array_equal(phi(tmp_path), phi(two))
    assert checkpoints.newest(tmp_path)[0].step == 8

"""Cells: each is made once, by whoever is first, and isn't taken for another experiment's."""

import json
import os
import pathlib
import sys

import pytest

from experiments import sharing
from experiments.cells import Cells
from experiments.stages import __main__ as stages


class Counted(Cells):
    """Cells that note what they make, and take those of one version alone."""

    def __init__(self, folders=(), version=1, **options):
        self.made, self.version = [], version
        functions = ((name, lambda name=name: self._one(name)) for name in ("a", "b/1", "b/2"))
        super().__init__(functions, folders, **options)

    def _one(self, name):
        self.made.append(name)
        return {"of": name, "version": self.version}

    def valid(self, found):
        return found["version"] == self.version


def test_a_cell_is_made_once_and_found_by_the_next_run(tmp_path):
    said = []
    cells = Counted([tmp_path], say=said.append)
    assert cells["b/1"]["of"] == "b/1"
    cells.run()
    assert cells.made == ["b/1", "a", "b/2"]
    assert said == ["b/1", "1 of 3: a", "3 of 3: b/2"]
    again = Counted([tmp_path])
    assert again.finished
    again.run()
    assert not again.made


def test_what_is_published_is_found_and_new_cells_go_to_the_first_folder(tmp_path):
    ours, published = tmp_path / "ours", tmp_path / "published"
    Counted([published])["a"]
    cells = Counted([ours, published])
    cells.run()
    assert cells.made == ["b/1", "b/2"]
    assert not (ours / "a.json").exists()
    assert json.loads((ours / "b" / "2.json").read_text())["of"] == "b/2"


def test_a_cell_of_another_version_is_made_again(tmp_path):
    Counted([tmp_path]).run()
    cells = Counted([tmp_path], version=2)
    assert cells.find("a") is None
    cells.run(("b/*",))
    assert cells.made == ["b/1", "b/2"]
    assert not cells.finished
    with pytest.raises(SystemExit, match="no cell matches c; they are a, b/1, b/2"):
        cells.run(("c",))


def test_without_a_folder_cells_stay_in_memory():
    cells = Counted(known={"a": {"of": "a", "version": 1}})
    cells.run()
    assert cells.made == ["b/1", "b/2"]
    assert cells["b/2"] is cells["b/2"]


def test_a_cell_that_says_what_it_is_of_is_made_again_where_that_changes(tmp_path):
    made = []

    def cells(**about):
        function = lambda: made.append(about) or {"number": len(made)}
        return Cells([("a", function)], [tmp_path], about={"a": about})

    assert cells(sizes=(1, 2))["a"] == {"number": 1}
    kept = {"about": {"sizes": [1, 2]}, "found": {"number": 1}}
    assert json.loads((tmp_path / "a.json").read_text()) == kept
    assert cells(sizes=(1, 2)).done("a")
    other = cells(sizes=(1, 3))
    assert not other.done("a")
    other.run()
    assert made == [{"sizes": (1, 2)}, {"sizes": (1, 3)}]
    # What says nothing is of no known experiment; cells that aren't told apart read it as it is.
    (tmp_path / "a.json").write_text('{"of": "another"}')
    assert not cells(sizes=(1, 3)).done("a")
    assert Cells([("a", None)], [tmp_path])["a"] == {"of": "another"}


def test_it_is_known_from_which_folder_a_result_came(tmp_path):
    ours, published = tmp_path / "ours", tmp_path / "published"
    Counted([published])["a"]
    cells = Counted([ours, published])
    cells.run()
    assert cells.places == {"a": published, "b/1": ours, "b/2": ours}


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "0.5.json"
    sharing.write(path, lambda part: part.write_text("old"))

    def stopped(part):
        part.write_text("torn")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sharing.write(path, stopped)
    assert [each.name for each in path.parent.iterdir()] == ["0.5.json"]
    assert path.read_text() == "old"


def test_the_plan_of_the_stages_is_written_whole(tmp_path, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "compute", None)  # It doesn't come to that.
    monkeypatch.setattr(pathlib.Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        stages.main(stages.Config(out=tmp_path))
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("system", ["which keeps processes on cores", "which doesn't"])
def test_processes_that_share_work_have_cores_of_their_own_and_leave_a_gpu_to_each_other(
    tmp_path, monkeypatch, system
):
    if system == "which doesn't":  # macOS
        for name in ("sched_getaffinity", "sched_setaffinity"):
            monkeypatch.delattr(os, name, raising=False)
        monkeypatch.setenv(sharing.CORES, "0")
        assert sharing.settle()
        monkeypatch.delenv(sharing.CORES)
        assert sharing.default_jobs() == 1
    told = f"""
import os, pathlib
cores, preallocate = os.environ[{sharing.CORES!r}], os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"]
pathlib.Path({str(tmp_path)!r}, cores.replace(" ", "-")).write_text(preallocate)
"""
    jobs = min(2, len(sharing.cores()))
    sharing.share([sys.executable, "-c", told], jobs)
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(found.values()) == {"false"}
    assert len(found) == jobs
    assert sorted(core for name in found for core in map(int, name.split("-"))) == sharing.cores()
    with pytest.raises(SystemExit, match=f"{jobs} of {jobs} processes failed"):
        sharing.share([sys.executable, "-c", "raise SystemExit(3)"], jobs)

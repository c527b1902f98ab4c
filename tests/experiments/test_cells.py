"""Cells: each is made once, by whoever is first, and isn't taken for another experiment's."""

import json

import pytest

from experiments.cells import Cells


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

"""Experiments in cells: each is a small file, and is made once, by whichever process is first."""

from __future__ import annotations

import fnmatch
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from experiments import sharing


class Cells:
    """Results by name; `self[name]` is made where it isn't known.

    Attributes:
        functions: What makes each result, as JSON has it.
        folders: Where results are looked for; new ones go to the first. Without any they stay here.
        known: What was read, made or given.
        about: What cells are of, as JSON has it, by name. The file of a cell that is named here
            tells it beside the result, and one that tells of something else, or of nothing, isn't
            taken for it.
        places: The folder that each result was read from.
    """

    def __init__(
        self,
        functions: Iterable[tuple[str, Callable[[], Any]]],
        folders: Iterable[pathlib.Path] = (),
        say: Callable[[str], None] = lambda text: None,
        known: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ):
        """`say` is told of each cell as it begins."""
        self.functions, self.folders = dict(functions), list(folders)
        self.say, self.known, self.about = say, dict(known or {}), dict(about or {})
        self.places: dict[str, pathlib.Path] = {}

    def valid(self, found: Any) -> bool:
        """Whether a result is finished, and of this very experiment."""
        return True

    def find(self, name: str) -> Any:
        """The result of a finished cell, or None."""
        for folder in self.folders if name not in self.known else ():
            path = folder / f"{name}.json"
            if path.exists():
                found = self._result(name, json.loads(path.read_text()))
                if found is not None and self.valid(found):
                    self.known[name], self.places[name] = found, folder
                    break
        return self.known.get(name)

    def _result(self, name: str, kept: Any) -> Any:
        """The result in what a file holds, None where it is of something else."""
        if name not in self.about:
            return kept
        told = kept.keys() == {"about", "found"} if isinstance(kept, dict) else False
        return kept["found"] if told and kept["about"] == self._about(name) else None

    def _about(self, name: str) -> Any:
        return json.loads(json.dumps(self.about[name]))

    def done(self, name: str) -> bool:
        """Whether a cell is finished."""
        return self.find(name) is not None

    @property
    def finished(self) -> bool:
        """Whether all are."""
        return all(map(self.done, self.functions))

    def __getitem__(self, name: str) -> Any:
        if not self.done(name):
            self._make(name, True, name)
        return self.find(name)

    def run(self, patterns: tuple[str, ...] = ()) -> None:
        """Do every cell whose name matches, all by default, that no other process is at."""
        names = [
            name
            for name in self.functions
            if not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        ]
        if not names:
            raise SystemExit(
                f"no cell matches {' '.join(patterns)}; they are {', '.join(self.functions)}."
            )
        for wait in (False, True):  # Those of others are looked at once more: one may have ended.
            for index, name in enumerate(names):
                if not self.done(name):
                    self._make(name, wait, f"{index + 1} of {len(names)}: {name}")

    def _make(self, name: str, wait: bool, text: str) -> None:
        """Make a cell; with `wait` after whoever is at it already, else leave it to them."""

        def make() -> Any:
            self.say(text)
            return self.functions[name]()

        def kept() -> Any:
            return {"about": self._about(name), "found": make()} if name in self.about else make()

        if self.folders:
            path = self.folders[0] / f"{name}.json"
            sharing.once(path, kept, lambda: self.done(name), wait)
        else:
            self.known[name] = make()

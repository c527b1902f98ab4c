"""One contender in a process of its own: asked in lines of JSON, and answering in them.

Both ends of the pipe are here. The asking end starts the process with the contender's own Python;
the answering end imports neither JAX nor PyTorch, so that any environment can run it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from experiments.benchmarks import problem as problems
from experiments.benchmarks.problem import Problem, Row, Size

ROOT = pathlib.Path(__file__).parents[2]


class Contender(Protocol):
    """What a process answers with; made once for one row."""

    def first(self) -> np.ndarray:
        """The first samples, compiled and run."""

    def cost(self) -> dict[str, float | None]:
        """FLOPs and bytes of temporary memory, of the sampler and of the floor, where known.

        JAX contenders say how many instructions their programs have, too.
        """

    def compilations(self) -> int | None:
        """Programs compiled over 20 values of ω, each with a new seed and new conditions."""

    def time(self, floor_first: bool) -> tuple[float, float]:
        """Seconds of the bare network evaluations, and of the sampler."""


class Missing(Exception):
    """A contender has no such solver; says so in a few words."""


def serve(make: Callable[[Row, Problem], Contender], clock: Callable[[], float]) -> None:
    """Answer what comes on stdin until it ends. `make` and `clock` are the contender's."""
    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender: Any = None
    for line in sys.stdin:
        ask = json.loads(line)
        try:
            given = ask["given"]
            if ask["do"] == "make":
                size, row = Size(**given["size"]), Row(**given["row"])
                contender = make(row, problems.load(size, pathlib.Path(given["problem"])))
                reply: dict[str, Any] = {"answer": None}
            elif ask["do"] == "first":
                start = clock()
                samples = contender.first()
                reply = {"answer": clock() - start}
                np.save(given["samples"], samples)
            else:
                reply = {"answer": getattr(contender, ask["do"])(**given)}
        except Missing as missing:
            reply = {"missing": str(missing)}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(reply), file=answers, flush=True)


class Failed(Exception):
    """A contender's process failed or ran out of time."""


class Worker:
    """The asking end."""

    def __init__(
        self, python: str, module: str, log: pathlib.Path, extra: dict[str, str] | None = None
    ):
        """Start `python -m module`, its stderr appended to `log`.

        Modules come from PYTHONPATH and not from the working folder, so that `extra` may put
        another guidejax first; and no program from an earlier process.
        """
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1",
            "JAX_ENABLE_COMPILATION_CACHE": "false", **(extra or {}),
        }  # fmt: skip
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("a")
        self._process = subprocess.Popen(
            [python, "-u", "-m", module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            cwd=ROOT, env=environment, text=True,
        )  # fmt: skip

    def ask(self, do: str, limit_s: float, **given: Any) -> Any:
        """What its contender's method `do` returns for what is given.

        Raises:
            Missing: If the contender can't do the row.
            Failed: If it failed, ended, or took longer than `limit_s`.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(limit_s, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps({"do": do, "given": given}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if not line:
            raise Failed(f"no answer in {limit_s:.0f} s" if late else "its process ended")
        reply = json.loads(line)
        if "missing" in reply:
            raise Missing(reply["missing"])
        if "error" in reply:
            raise Failed(reply["error"])
        return reply["answer"]

    def make(self, row: Row, size: Size, problem: pathlib.Path, limit_s: float) -> None:
        """Have it import what it needs, and make its contender for that row."""
        sizes, settings = dataclasses.asdict(size), dataclasses.asdict(row)
        self.ask("make", limit_s, size=sizes, row=settings, problem=str(problem.resolve()))

    def first(self, samples: pathlib.Path, limit_s: float) -> float:
        """Seconds to the first samples, which go to `samples`."""
        return self.ask("first", limit_s, samples=str(samples.resolve()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._log.close()

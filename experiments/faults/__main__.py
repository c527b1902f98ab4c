"""What a run survives: kills, signals, damage, other devices, a lost host, a full disk.

    python -m experiments.faults                # all of it, a quarter of an hour on two cores
    python -m experiments.faults --publish      # and write docs/reliability.md
    python -m experiments.faults --kills 3 --terms 2 --damages 10

Real processes are started, killed at random moments and started again, until the run is done; φ and
the log are compared with those of a run that nothing happened to. A cell that is done is kept.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.distributed import local
from experiments.faults import report, victim

STEPS = 200
SAVES = STEPS // victim.SAVE_EVERY
Tick = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Config:
    """Faults injected into runs."""

    kills: int = 50
    """SIGKILLs, of one process and again of two."""
    terms: int = 20
    """SIGTERMs, likewise."""
    damages: int = 200
    """Alterations of files of the newest checkpoint."""
    seed: int = 0
    """Of the moments and the alterations."""
    out: pathlib.Path = pathlib.Path("runs/faults")
    """Where results, runs and logs go."""
    publish: bool = False
    """Write docs/reliability.md and docs/reliability.json too."""
    docs: pathlib.Path = pathlib.Path("docs")
    """Where that is."""


def start(directory: pathlib.Path, count: int, devices: int = 1, *options: str) -> list[Any]:
    """The victim's processes; what they print goes to files beside the directory."""
    command = ["experiments.faults.victim", str(directory), *options]
    log = directory.with_suffix(".txt").open("a")
    return local.start(count, command, devices, stdout=log, stderr=subprocess.STDOUT)


def run(directory: pathlib.Path, count: int, devices: int = 1, *options: str) -> int:
    """The exit status of a run to its end."""
    return local.wait(start(directory, count, devices, *options), grace=60)


def steps_logged(directory: pathlib.Path) -> list[int]:
    """The steps of metrics.jsonl."""
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def phi(directory: pathlib.Path) -> np.ndarray:
    """What the run came to."""
    return np.load(directory / "phi.npy")


def same(directory: pathlib.Path, straight: pathlib.Path) -> bool:
    """Whether φ is the same bit for bit, and the log line for line."""
    return (
        bool(np.array_equal(phi(directory), phi(straight)))
        and (directory / "metrics.jsonl").read_text() == (straight / "metrics.jsonl").read_text()
    )


def signals(
    out: pathlib.Path, count: int, which: signal.Signals, times: int, seed: int, tick: Tick
) -> dict[str, Any]:
    """One run of `count` processes, ended `times` times at random moments, each time begun again.

    A moment is drawn in what the process does: at start (before its first step), in training, or in
    saving (while a checkpoint's unfinished folder is there).
    """
    rng = np.random.default_rng(seed)
    name = f"{which.name}-{count}"
    straight, directory = out / f"straight-{count}", out / name
    shutil.rmtree(directory, ignore_errors=True)
    moments: collections.Counter[str] = collections.Counter()
    codes: collections.Counter[int] = collections.Counter()
    lost = []
    for number in range(times):
        where = str(rng.choice(["start", "training", "saving"], p=[0.2, 0.5, 0.3]))
        # So slow that no run ends before its moment, and each has some steps left.
        before = max(steps_logged(directory), default=0)
        processes = start(directory, count, 1, "--slow", "0.3")
        hit = _strike(processes, directory, before, where, which, rng)
        moments[where if hit else "after its end"] += 1
        for process in processes:
            try:
                codes[process.wait(timeout=90)] += 1
            except subprocess.TimeoutExpired:
                process.kill()
                codes[process.wait()] += 1
                lost.append(number)
        if which == signal.SIGTERM and hit and where != "start":
            saved = max((int(p.name) for p in directory.iterdir() if p.name.isdecimal()), default=0)
            lost += [number] if saved != max(steps_logged(directory), default=0) else []
        if (directory / "phi.npy").exists():  # It came to its end: begin another.
            assert same(directory, straight), directory
            shutil.rmtree(directory)
        tick(f"{which.name}, {count} process{'es' * (count > 1)}")
    code = run(directory, count)
    return {
        "moments": dict(moments), "codes": {str(k): v for k, v in codes.items()},
        "identical": code == 0 and same(directory, straight), "lost": len(lost),
    }  # fmt: skip


def _strike(
    processes: list[Any], directory: pathlib.Path, before: int, where: str, which: int, rng: Any
) -> bool:
    """Send the signal to all at the moment asked for; False where the run ended before."""
    begun, moment = time.monotonic(), rng.uniform(0, 1.5)
    wait = 0.2 + rng.uniform(0, 2.0)
    ready = None
    while all(process.poll() is None for process in processes):
        now = time.monotonic()
        unfinished = any("tmp" in p.name for p in directory.iterdir()) if directory.exists() else 0
        if ready is None and max(steps_logged_safely(directory), default=0) > before:
            ready = now
        if (
            (where == "start" and now - begun > wait)
            or (where == "training" and ready is not None and now - ready > moment)
            or (where == "saving" and ready is not None and unfinished)
        ):
            for process in processes:
                process.send_signal(which)
            return True
        time.sleep(0.001)
    return False


def steps_logged_safely(directory: pathlib.Path) -> list[int]:
    """As `steps_logged`, of a log that is being written."""
    try:
        return steps_logged(directory)
    except (ValueError, OSError):
        return []


def damages(out: pathlib.Path, times: int, seed: int, tick: Tick) -> dict[str, int]:
    """How many alterations of a finished run's newest checkpoint came to what."""
    rng = np.random.default_rng(seed)
    whole = out / "damaged-from"
    shutil.rmtree(whole, ignore_errors=True)
    config = victim.Config(whole, steps=3 * victim.SAVE_EVERY)
    want = victim.fit(config)
    found: collections.Counter[str] = collections.Counter()
    for _ in range(times):
        directory = out / "damaged"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(whole, directory)
        steps = sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())[::-1]
        for step in steps if rng.random() < 0.1 else steps[:1]:  # now and then, all of them
            _damage(directory / str(step), rng)
        found[_outcome(dataclasses.replace(config, directory=directory), want)] += 1
        tick("damage")
    return dict(found)


def _damage(folder: pathlib.Path, rng: Any) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    file = files[rng.integers(len(files))]
    raw, how = bytearray(file.read_bytes()), rng.integers(6)
    place = int(rng.integers(max(len(raw), 1)))
    if how == 0:
        file.unlink()
    elif how == 1:
        file.write_bytes(raw[:place])
    elif how == 2:
        file.write_bytes(bytes(len(raw)))
    elif how == 3:
        shutil.rmtree(file.parent)
    elif how == 4 and raw:
        raw[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(raw)
    else:
        raw[place : place + 16] = rng.bytes(16)
        file.write_bytes(raw)


def _outcome(config: victim.Config, want: np.ndarray) -> str:
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            got = victim.fit(config)
    except ValueError as error:
        return "refused: none is intact" if "is intact" in str(error) else f"refused: {error}"
    except Exception as error:
        return f"crashed: {type(error).__name__}"
    if not np.array_equal(got, want):
        return "another φ"
    older = any("damaged" in str(warning.message) for warning in told)
    return "the older one was used" if older else "no harm"


def devices(out: pathlib.Path, tick: Tick) -> dict[str, float]:
    """8 → 1 → 4 → 2 × 4 devices: the largest difference from a run on one."""
    directory = out / "devices"
    shutil.rmtree(directory, ignore_errors=True)
    for quarter, (processes, each) in enumerate(((1, 8), (1, 1), (1, 4), (2, 4))):
        steps = STEPS * (quarter + 1) // 4
        code = run(directory, processes, each, "--steps", str(steps))
        assert code == 0, f"{processes} × {each} devices: status {code}"
        tick("other devices")
    difference = np.abs(phi(directory) - phi(out / "straight-1")).max()
    return {"difference": float(difference), "size": float(np.abs(phi(directory)).max())}


def lost_host(out: pathlib.Path, tick: Tick) -> dict[str, Any]:
    """One of two processes is killed: how long the other waits, and whether the run goes on."""
    directory = out / "lost-host"
    shutil.rmtree(directory, ignore_errors=True)
    processes = start(directory, 2, 1, "--slow", "0.3")
    while max(steps_logged_safely(directory), default=0) < 30:
        time.sleep(0.05)
    processes[1].kill()
    begun = time.monotonic()
    other = processes[0].wait(timeout=300)
    waited = time.monotonic() - begun
    tick("a host lost")
    code = run(directory, 2)
    return {"seconds": waited, "status": other,
            "identical": code == 0 and same(directory, out / "straight-2")}  # fmt: skip


def full_disk(out: pathlib.Path, tick: Tick) -> dict[str, Any]:
    """Files that can't grow: what the run says, and whether it goes on when there is room."""
    directory = out / "full-disk"
    for path in (directory, directory.with_suffix(".txt")):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
    assert run(directory, 1, 1, "--steps", "40") == 0
    (directory / "phi.npy").unlink()
    # Through a pipe, which the limit doesn't hold for.
    command = ["experiments.faults.victim", str(directory), "--full", "200"]
    (process,) = local.start(1, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = process.communicate()[0].strip().splitlines()[-1]
    code = process.returncode
    tick("a full disk")
    again = run(directory, 1)
    return {"status": code, "said": said.replace(str(directory.absolute()), "DIRECTORY"),
            "identical": again == 0 and same(directory, out / "straight-1")}  # fmt: skip


def _command(config: Config) -> str:
    asked = f"--kills {config.kills} --terms {config.terms} --damages {config.damages}"
    return f"python -m experiments.faults {asked} --seed {config.seed} --publish"


def main(config: Config) -> None:
    """Inject what is left, and write the page."""
    config.out.mkdir(parents=True, exist_ok=True)
    done = config.out / "results.json"
    results: dict[str, Any] = json.loads(done.read_text()) if done.exists() else {}
    console = Console(file=sys.stderr, soft_wrap=not sys.stderr.isatty())
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    total = 2 * (config.kills + config.terms) + config.damages + 6
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("runs that nothing happens to", total=total)
        lock = threading.Lock()

        def tick(text: str) -> None:
            with lock:
                progress.update(task, advance=1, description=text)

        for count in (1, 2):
            if not (config.out / f"straight-{count}" / "phi.npy").exists():
                assert run(config.out / f"straight-{count}", count) == 0
        cells: dict[str, Callable[[], Any]] = {
            f"{which.name}-{count}": functools.partial(
                signals, config.out, count, which, times, config.seed, tick
            )
            for which, times in (
                (signal.SIGKILL, config.kills), (signal.SIGTERM, config.terms),
            )
            for count in (1, 2)
        }  # fmt: skip
        cells |= {
            "damages": lambda: damages(config.out, config.damages, config.seed, tick),
            "devices": lambda: devices(config.out, tick),
            "lost host": lambda: lost_host(config.out, tick),
            "full disk": lambda: full_disk(config.out, tick),
        }
        for name, cell in cells.items():
            if name not in results:
                results[name] = cell()
                done.write_text(json.dumps(results, indent=1))
    text = report.page({name: results[name] for name in cells}, STEPS, _command(config))
    (config.out / "reliability.md").write_text(text)
    print(text)
    if config.publish:
        shutil.copy(done, config.docs / "reliability.json")
        shutil.copy(config.out / "reliability.md", config.docs / "reliability.md")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

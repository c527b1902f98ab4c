"""Environments of the peers: one virtual environment each, made once and used again."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

OURS = "experiments.benchmarks.peers.ours"
MINUTES = 20


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library to compare with.

    Attributes:
        name: As the tables print it.
        module: What its process runs.
        packages: What is installed; the first is what it is called after.
        python: The oldest minor version of Python 3 that its newest release takes.
        extra: Environment variables of its process.
    """

    name: str
    module: str
    packages: tuple[str, ...]
    python: int
    extra: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Of its environment."""
        return self.packages[0]


_MODULES = "experiments.benchmarks.peers"
PEERS = (
    Peer("hackable_diffusion", f"{_MODULES}.hackable", ("hackable_diffusion", "jax"), 12),
    Peer("DiffusionLab", f"{_MODULES}.diffusionlab", ("diffusionlab", "jax"), 13),
    Peer("diffusers", f"{_MODULES}.diffusers", ("diffusers", "torch"), 10),
    Peer(
        "diffusers, torch.compile", f"{_MODULES}.diffusers", ("diffusers", "torch"), 10,
        {"BENCHMARK_TORCH_COMPILE": "1"},
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Environment:
    """A Python that can run a contender, and the versions it has."""

    python: str
    versions: dict[str, str]


def ours() -> Environment:
    """The running Python."""
    versions = {name: importlib.metadata.version(name) for name in ("guidejax", "jax")}
    return Environment(sys.executable, {"python": _version(sys.executable) or "", **versions})


def checkout(revision: str, folder: pathlib.Path) -> str:
    """Put the package of that git revision into `folder`; the short name of the commit.

    Raises:
        SystemExit: If git doesn't know the revision, or it has no guidejax.
    """
    git = ["git", "-C", str(pathlib.Path(__file__).parents[2])]
    try:
        commit = _output([*git, "rev-parse", "--short", "--verify", f"{revision}^{{commit}}"])
        archive = _output([*git, "archive", commit.decode().strip(), "guidejax"])
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"no guidejax at {revision}: {error.stderr.decode().strip()}") from error
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return commit.decode().strip()


def _output(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=True).stdout


def environment(peer: Peer, folder: pathlib.Path) -> Environment | str:
    """Its environment in `folder`, installed where it isn't yet; or why there is none."""
    home = folder.resolve() / peer.folder
    python, done = home / "bin" / "python", home / "installed.json"
    if not done.exists():
        found = find_python(peer.python)
        if found is None:
            return f"needs Python 3.{peer.python} or newer, and none was found"
        shutil.rmtree(home, ignore_errors=True)
        if reason := install(peer, found, home):
            return reason
        done.write_text(json.dumps({"python": _version(str(python)), **versions(peer, python)}))
    return Environment(str(python), json.loads(done.read_text()))


def find_python(minor: int) -> str | None:
    """A Python 3.`minor` or newer: this one, one on the PATH, or one of pyenv's."""
    on_path = [shutil.which(f"python3.{n}") for n in range(minor, minor + 4)]
    root = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    of_pyenv = [str(python) for python in sorted(root.glob("versions/3.*/bin/python"))]
    for python in [sys.executable, *on_path, *of_pyenv]:
        version = python and _version(python)
        if version and int(version.split(".")[1]) >= minor:
            return python
    return None


def install(peer: Peer, python: str, home: pathlib.Path) -> str | None:
    """Make its environment; None, or why that failed.

    uv resolves where it can be had: pip takes long over hackable_diffusion's dependencies. JAX is
    asked for in the version, and for the accelerator, that guidejax runs on here.
    """
    wanted = [_as_here(name) for name in peer.packages]
    inside = home / "bin" / "python"
    pip = [str(inside), "-m", "pip", "install", "-q"]
    uv = [str(inside), "-m", "uv", "pip", "install", "-q", "--python", str(inside)]
    if reason := _run([python, "-m", "venv", str(home)]):
        return reason
    installer = pip if _run([*pip, "uv"]) else uv
    reason = _run([*installer, *wanted])
    if reason and wanted != list(peer.packages):  # perhaps not with this very JAX
        reason = _run([*installer, *peer.packages])
    return reason


def versions(peer: Peer, python: pathlib.Path) -> dict[str, str]:
    """Of the packages of its environment."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps("
    code += "{name: m.version(name) for name in sys.argv[1:]}))"
    plain = [re.split("[<>=]", name)[0] for name in peer.packages]
    answer = subprocess.run(
        [str(python), "-c", code, *plain], capture_output=True, text=True, check=True
    )
    return json.loads(answer.stdout)


def _as_here(package: str) -> str:
    if package != "jax":
        return package
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    for extra in ("cuda13", "cuda12"):
        if f"jax-{extra}-plugin" in installed:
            package = f"jax[{extra}]"
    return f"{package}=={importlib.metadata.version('jax')}"


def _version(python: str) -> str | None:
    """None where it doesn't run, as a shim of pyenv without a version."""
    code = "import platform; print(platform.python_version())"
    try:
        answer = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _run(command: list[str]) -> str | None:
    """None, or what went wrong, in one line."""
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=60 * MINUTES, check=False
        )
    except subprocess.TimeoutExpired:
        return f"its installation took more than {MINUTES} minutes"
    if answer.returncode == 0:
        return None
    said = [line for line in answer.stderr.splitlines() if line.strip()] or ["no reason given"]
    return f"could not be installed: {said[-1].strip()[:160]}"

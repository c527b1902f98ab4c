"""Each adapter of `guidejax.interop` against the real library, and docs/interop.md.

python -m experiments.interop                               # all that package indexes have
python -m experiments.interop --checkout maxdiffusion=PATH  # and what is there as source
python -m experiments.interop --only keras --python keras=~/venvs/keras/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys

from experiments.benchmarks.envs import Peer, environment
from experiments.interop import page
from experiments.interop.libraries import LIBRARIES, Library

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = DOCS / "interop.json"
MINUTES = 20


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for, keep the results of the others, write the page."""
    names = [library.name for library in LIBRARIES]
    parser = argparse.ArgumentParser(prog="python -m experiments.interop")
    parser.add_argument("--only", nargs="*", default=names, choices=names, metavar="NAME")
    parser.add_argument("--checkout", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--envs", type=pathlib.Path, default=ROOT / "runs" / "interop" / "envs")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    given = parser.parse_args(arguments)
    checkouts, pythons = (_pairs(parser, each, names) for each in (given.checkout, given.python))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for library in () if given.page else LIBRARIES:
        if library.name in given.only:
            checkout, python = checkouts.get(library.name), pythons.get(library.name)
            if library.checkout and not checkout and library.name in results:
                print(f"{library.name}: no checkout given; its earlier results stay", flush=True)
                continue
            results[library.name] = run(library, checkout, python, given.envs)
            for result in results[library.name]:
                print(json.dumps(result, ensure_ascii=False), flush=True)
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (DOCS / "interop.md").write_text(page.text(results))


def _pairs(parser: argparse.ArgumentParser, given: list[str], names: list[str]) -> dict[str, str]:
    pairs = {}
    for each in given:
        name, sign, path = each.partition("=")
        if not sign or name not in names:
            parser.error(f"expected NAME=PATH, NAME of {', '.join(names)}; got {each!r}")
        pairs[name] = str(pathlib.Path(path).expanduser().absolute())
    return pairs


def run(
    library: Library, checkout: str | None, python: str | None, envs: pathlib.Path
) -> list[page.Result]:
    """The lines of its check, or one that says why there are none."""
    if library.checkout and checkout is None:
        return _not_run("it is on no package index, and no checkout was given")
    if python is None:
        envs.mkdir(parents=True, exist_ok=True)
        # Named after the library: what comes first among its packages may be another's first too.
        peer = Peer(library.name, library.check, library.packages, library.python)
        found = environment(peer, envs / library.name)
        if isinstance(found, str):
            return _not_run(found)
        python = found.python
    command = [python, "-W", "ignore", "-m", f"experiments.interop.checks.{library.check}"]
    try:
        answer = subprocess.run(
            command + ([checkout] if checkout else []),
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60 * MINUTES,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _not_run(f"it took more than {MINUTES} minutes")
    lines = [line for line in answer.stdout.splitlines() if line.startswith("{")]
    results = [json.loads(line) for line in lines]
    if answer.returncode:
        print(answer.stderr[-2000:], file=sys.stderr)
        said = [line for line in answer.stderr.splitlines() if line.strip()] or ["no reason given"]
        results += _not_run(f"its check failed: {said[-1].strip()[:160]}")
    return results


def _not_run(reason: str) -> list[page.Result]:
    return [{"what": "everything", "not_run": reason}]


if __name__ == "__main__":
    main()

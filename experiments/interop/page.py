"""docs/interop.md from the results."""

from __future__ import annotations

from typing import Any

from experiments.interop.libraries import COMFYUI, LIBRARIES, SNIPPETS

Result = dict[str, Any]


def text(results: dict[str, list[Result]]) -> str:
    """The page.

    Args:
        results: The JSON lines of each library by its name.
    """
    parts = [
        "# Other codebases\n\n"
        "`gj.interop` holds guidance in other codebases' protocols, and their models as networks "
        "here. Importing it\nimports none of them. This page and every number on it are written by "
        "`python -m experiments.interop`, which\nruns each adapter against the real library in an "
        "environment of its own; libraries that are on no package\nindex are run from a checkout, "
        "`--checkout maxdiffusion=PATH`.\n\n"
        "ω is the excess over the conditional model; their scale w is ω + 1. A difference is the "
        "largest over all values\nof two runs in float32, theirs and `gj.sample`'s; beside it "
        "stands the largest value, which tells what rounding makes of it.\n"
    ]
    for library in LIBRARIES:
        # Not ```python: the tests run those, and these need the library.
        parts.append(f"## {library.title}\n\n{library.about}\n\n```py\n{library.example}```\n")
        if library.name == "diffusers":
            parts.append(_file("diffusers_callback.py"))
        parts.append(_table(results.get(library.name, [])))
    parts.append(
        "## ComfyUI\n\nThe same list by sigma, which is what its `sampler_cfg_function` is told. "
        "The function is tested against a\nstand-in of that protocol; in ComfyUI itself it was not "
        f"run.\n\n```py\n{COMFYUI}```\n"
    )
    parts.append(_file("comfyui_function.py"))
    return "\n".join(parts)


def _file(name: str) -> str:
    return f"```py\n{(SNIPPETS / name).read_text()}```\n"


def _table(results: list[Result]) -> str:
    rows = ["| version | what | largest difference | largest value |", "| --- | --- | --- | --- |"]
    for result in results:
        if "not_run" in result:
            rows.append(f"| | {result['what']} | not run: {_cell(result['not_run'])} | |")
        else:
            numbers = (result["largest_difference"], result["largest_value"])
            said = " | ".join(f"{number:.2g}" for number in numbers)
            rows.append(f"| {result['version']} | {result['what']} | {said} |")
    if not results:
        rows.append("| | everything | not run | |")
    return "\n".join(rows) + "\n"


def _cell(reason: str) -> str:
    return reason.replace("|", "/")

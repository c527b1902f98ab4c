"""The documentation site: `python -m sphinx -W docs build/site`, offline.

Pages that are not written by hand are made here as the build begins: the API from docstrings, a
page a family, and the notebooks of `colabs/`.
"""

from __future__ import annotations

import importlib
import inspect
import pathlib
import re
import tomllib
from typing import Any

import guidejax as gj

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
URL = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Homepage"]

project = "guidejax"
author = copyright = "The guidejax authors"
version = release = gj.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
# Notebooks are shown as they are; `-D nb_execution_mode=cache` runs them, five minutes each.
nb_execution_mode = "off"
nb_execution_timeout = 900
myst_enable_extensions = ["colon_fence", "attrs_block"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = "guidejax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_exclude = ".linenos, .gp, .go"

default_role = "py:obj"  # `name` in a docstring: a link where it is one of ours, code elsewhere.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Other Args", "params_style"), ("Attributes", "params_style")]

# A page each, in this order; the first is the top of the package.
FAMILIES = (
    "", "rules", "schedules", "weights", "processes", "solvers", "objectives", "learning",
    "metrics", "analytic", "particles", "rewards", "data", "models", "interop",
)  # fmt: skip


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", lambda app: (_write_api(), _copy_pages()))
    app.connect("source-read", _link)
    # Ahead of napoleon, which is at 500.
    app.connect("autodoc-process-docstring", _plain, priority=400)


def _write_api() -> None:
    folder = DOCS / "api"
    folder.mkdir(exist_ok=True)
    for family in FAMILIES:
        name = f"guidejax.{family}".rstrip(".")
        module = importlib.import_module(name)
        submodules = [m for _, m in _public(module) if inspect.ismodule(m)]
        lines = [_title(name), f".. automodule:: {name}", "   :no-members:", ""]
        lines += _entries(module)
        for each in submodules if family in ("models", "interop", "data", "learning") else ():
            entries = _entries(each)
            if entries:
                lines += [_title(each.__name__, "-"), f".. automodule:: {each.__name__}"]
                lines += ["   :no-members:", "", *entries]
        _write(folder / f"{family or 'guidejax'}.rst", "\n".join(lines))
    pages = "\n".join(family or "guidejax" for family in FAMILIES)
    _write(
        folder / "index.md",
        "# API\n\nEvery public name, from its docstring. What nearly everybody uses stands at "
        "the top of `guidejax`; each family is a submodule.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{pages}\n```\n",
    )


def _title(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n"


def _public(module: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(module).items() if not name.startswith("_")]


def _entries(module: Any) -> list[str]:
    """A directive for each class and function of a module, or a link where it is a family's."""
    found, elsewhere = [], []
    # What a family is made with comes after its members.
    in_base = lambda item: str(getattr(item[1], "__module__", "")).endswith(".base")  # noqa: E731
    for name, value in sorted(_public(module), key=in_base):
        function = getattr(value, "fn", value)
        home = getattr(function, "__module__", None) or ""
        if not callable(function) or not home.startswith("guidejax."):
            continue
        room = home.split(".")[1]
        if room.startswith("_") if module is gj else f"{home}.".startswith(f"{module.__name__}."):
            kind = "autoclass" if isinstance(value, type) else "autofunction"
            found.append(f".. {kind}:: {module.__name__}.{name}")
            found += ["   :members:", ""] if kind == "autoclass" else [""]
        elif hasattr(module, "__path__"):  # What a file imports for itself it doesn't offer.
            elsewhere.append(f"* :py:obj:`{name} <guidejax.{room}.{name}>`, of `{room}`")
    if elsewhere:
        found = ["What a family has, here too:", "", *elsewhere, "", *found]
    return found


def _copy_pages() -> None:
    """What lies beside docs/ in the repository."""
    for folder in ("notebooks", "project"):
        (DOCS / folder).mkdir(exist_ok=True)
    for path in (ROOT / "colabs").glob("*.ipynb"):
        _write(DOCS / "notebooks" / path.name, path.read_text())
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        text = re.sub(r"\]\((?!http)([^)#]+)", r"](../../\1", (ROOT / name).read_text())
        _write(DOCS / "project" / name.lower(), text)


def _write(path: pathlib.Path, text: str) -> None:
    """Write what is new alone, so that a second build reads no page again for nothing."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _link(app: Any, page: str, source: list[str]) -> None:
    """Links out of docs/ lead to the notebooks' pages, or to the file in the repository."""
    depth = page.count("/")

    def target(found: re.Match[str]) -> str:
        up, path = found[1].count("../"), found[2]
        if up <= depth:
            return found[0]
        if path.startswith("docs/"):
            return f"]({'../' * depth}{path.removeprefix('docs/')})"
        if path.startswith("colabs/") and path.endswith(".ipynb"):
            return f"]({'../' * depth}notebooks/{path.removeprefix('colabs/')})"
        return f"]({URL}/blob/main/{path})"

    source[0] = re.sub(r"\]\(((?:\.\./)+)([^)]+)\)", target, source[0])


def _plain(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written to be read in a terminal: |x| and `Weight`s aren't markup there.

    Nor is what is returned a type with a description, though it may hold a colon.
    """
    returned = False
    for number, line in enumerate(lines):
        if line.lstrip().startswith((">>>", "...")):
            continue
        bullet = re.match(r"\s*\* ", line)
        start = bullet.end() if bullet else 0
        parts = re.split(r"(`[^`]*`)", line[start:])
        parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
        line = line[:start] + re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", "".join(parts))
        if returned and line.strip():
            line, returned = f":returns: {line.strip()}", False
        elif line == "Returns:":
            line, returned = "", True
        lines[number] = line

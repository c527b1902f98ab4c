"""Reports as one HTML file: tables, pictures and claims."""

from __future__ import annotations

import base64
import html
import pathlib
from typing import Any

from experiments.claims import estimate

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; } table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }
.no { color: #b00020; } .yes { color: #1a7f37; } figcaption { color: #555; }
"""


def document(title: str, body: str) -> str:
    """A page of its own."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style>{body}</html>"
    )


def table(markdown: str) -> str:
    r"""A Markdown table as HTML.

    Example:
        >>> table("| a |\n|---|\n| **1** |")
        '<table><tr><th>a</th></tr><tr><td>1</td></tr></table>'
    """
    head, _, *rows = markdown.splitlines()
    cells = lambda line: [html.escape(c.strip()) for c in line.strip("|").split("|")]  # noqa: E731
    body = "".join(
        "<tr>" + "".join(f"<td>{c.replace('**', '')}</td>" for c in cells(row)) + "</tr>"
        for row in rows
    )
    return "<table><tr>" + "".join(f"<th>{c}</th>" for c in cells(head)) + f"</tr>{body}</table>"


def pictures(figures: dict[str, pathlib.Path]) -> str:
    """Pictures by their captions, held in the page itself."""
    return "".join(
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"><figcaption>{html.escape(caption)}'
        "</figcaption></figure>"
        for caption, path in figures.items()
    )


def claims(found: list[dict[str, Any]]) -> str:
    """What was asked, what was measured, whether it holds: {"claim", "value", "holds"} each.

    A value is as `experiments.claims.estimate` has it.
    """
    lines = []
    for claim in found:
        measured = html.escape(estimate(claim["value"]))
        mark = '<b class="yes">reached</b>' if claim["holds"] else '<b class="no">not reached</b>'
        lines.append(f"<li>{html.escape(claim['claim'])}: {measured}, {mark}</li>")
    return f"<p>Intervals are at 95% but where it is said.</p><ul>{''.join(lines)}</ul>"

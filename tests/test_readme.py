"""What a user copies from the README works."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs(snippet):
    exec(compile(snippet, "README.md", "exec"), {})


def test_there_is_a_snippet():
    assert SNIPPETS


def test_the_table_is_the_experiments():
    from experiments.digits import report

    results = json.loads((ROOT / "docs" / "digits" / "metrics.json").read_text())
    under = next(iter(results["summary"]))
    assert report.summarise(results["seeds"], under) == results["summary"][under]
    assert report.markdown(results["summary"][under]) in README


def test_the_ratios_are_the_experiments():
    results = json.loads((ROOT / "docs" / "digits" / "metrics.json").read_text())
    for claim in results["claims"]:
        assert f"{claim['value']['mean']:.3f}" in README, claim["claim"]


def test_links_point_at_something():
    for target in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target

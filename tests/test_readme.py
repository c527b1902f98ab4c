"""What a user copies from the README works."""

import json
import pathlib
import re

import numpy as np
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


def test_the_costs_are_the_benchmarks():
    from experiments.benchmarks import report

    rows = json.loads((ROOT / "docs" / "benchmarks" / "results.json").read_text())["rows"]
    section = README.split("## What a sampler costs")[1].split("## ")[0]
    median = lambda row: np.median(rows[row]["guidejax"]["run_s"])
    said = [median(row) / median("cfg") for row in ("interval of 20%", "omega = 0")]
    peers = ("hackable_diffusion", "DiffusionLab", "diffusers")
    said += [report.over_ours(rows["interval of 20%"], peer)["median"] for peer in peers]
    ours = [row["guidejax"] for row in rows.values()]
    said.append(max(report.over_floor(found)["median"] for found in ours))
    for value in said:
        assert f"{value:.2f}" in section
    assert f"{max(found['flops'] / found['floor_flops'] for found in ours):.3f}" in section


def test_links_point_at_something():
    for target in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target

"""The documentation site builds, without a network, and no link or name in it leads nowhere."""

import pathlib
import re
import subprocess
import sys

import pytest

import guidejax as gj

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx", reason='pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    # -W: a warning, as of a link that leads nowhere, is an error.
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", folder / "read"]
    run = subprocess.run([*command, ROOT / "docs", folder], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.slow
def test_every_rule_and_schedule_is_documented(site):
    for family, members in (("rules", gj.rules.RULES), ("schedules", gj.schedules.SCHEDULES)):
        page = (site / "api" / f"{family}.html").read_text()
        found = set(re.findall(r'(?:id="|#)guidejax\.\w+\.(\w+)"', page))
        assert set(members) <= found


@pytest.mark.slow
def test_what_nearly_everybody_uses_is_documented(site):
    page = (site / "api" / "guidejax.html").read_text()
    ours = [
        name
        for name, value in vars(gj).items()
        if callable(value) and getattr(value, "__module__", "").startswith("guidejax")
    ]
    assert len(ours) > 30
    found = set(re.findall(r'(?:id="|#)guidejax(?:\.\w+)?\.(\w+)"', page))
    assert [name for name in ours if not name.startswith("_") and name not in found] == []


@pytest.mark.slow
def test_pages_fetch_nothing(site):
    """Styles, scripts and pictures are the site's own."""
    for page in ("index.html", "results.html", "api/rules.html"):
        text = (site / page).read_text()
        for part in text.split("<")[1:]:
            if part.startswith(("script", "img", 'link rel="stylesheet')):
                assert "http" not in part.split(">")[0], part
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()[\s\"']*http", style.read_text()), style


@pytest.mark.slow
def test_one_can_search(site):
    index = (site / "searchindex.js").read_text()
    assert all(word in index for word in ("distil", "preempt", "interv"))

"""The gallery's page is what its generator makes of the declarations; no drawing here."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from experiments.rules import mixture, page
from experiments.rules.config import SETTINGS, guide, setting, spatial
from guidejax.metrics import energy_distance
from guidejax.rules import RULES
from guidejax.schedules import SCHEDULES

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_the_page_is_what_the_declarations_make():
    assert (DOCS / "rules.md").read_text() == page.text(), "python -m experiments.rules --text"


def test_the_page_names_every_rule_and_schedule_and_nothing_else():
    text = page.text()
    for name in [*RULES, *SCHEDULES]:
        assert f"`{name}`" in text
    assert re.findall(r"^### (\w+)$", text, re.MULTILINE) == [r.name for r in page.ordered()]
    assert set(page.READING) <= {page.family(rule) for rule in RULES.values()}
    for rule in RULES.values():
        assert f"## {page.heading(rule)}\n" in text
    for row in page.CHOICE:
        for name in re.findall(r"`(?:gj\.)?(\w+)", row[1]):
            assert any(hasattr(room, name) for room in (gj, gj.rules, gj.schedules)), name


def test_every_picture_of_the_page_is_there():
    pictures = set(re.findall(r"\]\((rules/\w+\.png)\)", page.text()))
    assert pictures == {f"rules/{p.name}" for p in (DOCS / "rules").glob("*.png")}
    assert sum((DOCS / name).stat().st_size for name in pictures) < 3e6


def test_every_branch_is_described():
    branches = {b for rule in RULES.values() for b in rule.branches} - {"cond", "uncond"}
    for known in page.BRANCHES.values():
        assert set(known) == branches
    assert set(mixture.LABELS) | {"gradient"} == branches | {"cond", "uncond"}


def test_every_setting_is_one_of_a_rule():
    assert set(SETTINGS) <= set(RULES)
    for name in spatial():
        for numbers in (setting(name).mixture_numbers, setting(name).digits_numbers):
            assert RULES[name] in [link.rule for link in guide(name, 1.0, numbers).links]


@pytest.mark.slow
@pytest.mark.parametrize(("omega", "label"), [(0.0, "cond"), (-1.0, "uncond")])
def test_the_exact_denoisers_sample_their_mixture(omega, label):
    found = mixture.run("cfg", (omega,))[0].path[-1]
    for name in ("cond", "uncond"):
        labels = jnp.full(len(found), mixture.LABELS[name])
        true = mixture.model().sample(jax.random.key(5), labels)
        away = energy_distance(jnp.asarray(found), true)
        assert (away < 0.01) == (name == label)
    assert np.all(np.isfinite(found))

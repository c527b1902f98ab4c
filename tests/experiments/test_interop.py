import json
import pathlib

import pytest

from experiments.interop import page
from experiments.interop.__main__ import main
from experiments.interop.libraries import LIBRARIES

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_the_page_is_what_the_results_make():
    results = json.loads((DOCS / "interop.json").read_text())
    assert (DOCS / "interop.md").read_text() == page.text(results)
    assert set(results) <= {library.name for library in LIBRARIES}


def test_a_difference_that_is_more_than_rounding_is_not_published():
    for lines in json.loads((DOCS / "interop.json").read_text()).values():
        for line in lines:
            if "not_run" not in line:
                assert line["largest_difference"] <= 1e-5 * max(1, line["largest_value"]), line


@pytest.mark.parametrize(
    "arguments", [["--only", "torch"], ["--checkout", "maxdiffusion"], ["--python", "x=y"]]
)
def test_wrong_names_are_said(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "keras" in capsys.readouterr().err

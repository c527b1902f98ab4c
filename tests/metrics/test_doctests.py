"""Examples of the metrics; `test_public_api.py` runs them."""

import doctest
import importlib
import pkgutil

import pytest

import guidejax.metrics as metrics
from guidejax.metrics import energy_distance

MODULES = [m.name for m in pkgutil.iter_modules(metrics.__path__) if not m.name.startswith("_")]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_examples(name):
    found = doctest.DocTestFinder().find(importlib.import_module(f"guidejax.metrics.{name}"))
    assert sum(len(test.examples) for test in found) > 0


def test_every_public_function_has_an_example():
    functions = [f for n, f in vars(metrics).items() if not n.startswith("_") and callable(f)]
    functions = [f for f in functions if not isinstance(f, type)]
    assert energy_distance in functions
    assert [f.__name__ for f in functions if ">>>" not in f.__doc__] == []

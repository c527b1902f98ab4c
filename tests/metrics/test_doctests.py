import doctest
import importlib
import pkgutil

import pytest

import guidejax.metrics as metrics

MODULES = [m.name for m in pkgutil.iter_modules(metrics.__path__) if not m.name.startswith("_")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(f"guidejax.metrics.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_public_function_has_an_example():
    functions = [f for n, f in vars(metrics).items() if not n.startswith("_") and callable(f)]
    functions = [f for f in functions if not isinstance(f, type)]
    assert len(functions) > 25
    assert [f.__name__ for f in functions if ">>>" not in f.__doc__] == []

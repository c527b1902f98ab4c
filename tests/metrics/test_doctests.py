"""Examples of the metrics; `test_public_api.py` runs them."""

import guidejax.metrics as metrics


def test_every_public_function_has_an_example():
    functions = [f for n, f in vars(metrics).items() if not n.startswith("_") and callable(f)]
    functions = [f for f in functions if not isinstance(f, type)]
    assert len(functions) > 25
    assert [f.__name__ for f in functions if ">>>" not in f.__doc__] == []

"""What the originals made of random weights, kept in `reference`."""

import json
import pathlib

import numpy as np

REFERENCE = pathlib.Path(__file__).parent / "reference"


def reference(name):
    """A case's arrays, and what is said about it."""
    with np.load(REFERENCE / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(str(arrays.pop("about")))


def close(pairs, atol):
    """Every pair of ours and theirs within `atol`."""
    for what, (ours, theirs) in pairs.items():
        np.testing.assert_allclose(np.asarray(ours), theirs, atol=atol, rtol=0, err_msg=what)

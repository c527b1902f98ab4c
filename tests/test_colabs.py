"""Every notebook runs as it is."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

COLABS = pathlib.Path(__file__).parent.parent / "colabs"
# What stands in place of a notebook's settings, so that it is done in a minute.
SHRUNK = {
    "learn_to_guide": (
        "train_steps, classifier_steps, steps = 40, 20, 4\n"
        "consistency_updates, rollout_updates = 4, 4"
    ),
    "angle": "omegas, samples, steps, prompts = (0.0, 3.0, 14.0), 64, 3, prompts[:2]",
    "text_to_image": "prompts, steps, updates, batch = prompts[:2], 3, 2, 4",
    "your_model": "train_steps, updates, steps, samples, published = 60, 4, 4, 16, None",
    "stages": "samples, steps, taus = 256, 16, [1.0, 0.6, 0.2]",
}


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(COLABS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    after = tags.index(["parameters"]) + 1
    notebook.cells.insert(after, nbformat.v4.new_code_cell(SHRUNK[path.stem]))
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": COLABS}}
    ).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert pictures

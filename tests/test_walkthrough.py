"""walkthrough.ipynb runs from top to bottom with an empty cache, on smaller settings."""

import pytest
from conftest import ROOT

nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
pytest.importorskip("transformers")

NOTEBOOK = nbformat.read(ROOT / "walkthrough.ipynb", as_version=4)
SMALLER = """
from sample import generate
pretrain.STEPS, pretrain.DOCUMENTS = 20, 1_000
generate.SIZES["MNLI"].update(train=1_000, dev_matched=100, dev_mismatched=100)
MODEL, STEPS = "small:2x64", 60
"""


def printed(notebook):
    return "".join(output.get("text", "") for cell in notebook.cells
                   for output in cell.get("outputs", []))


def test_every_cell_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MOVEMENT_CACHE", str(tmp_path))
    notebook = nbformat.from_dict(NOTEBOOK)
    [settings] = [cell for cell in notebook.cells if cell.source.startswith("MODEL, STEPS = ")]
    settings.source = SMALLER
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3",
                            resources={"metadata": {"path": ROOT}}).execute()
    text = printed(notebook)
    assert "autograd agrees" in text and "masking.Pruner agrees" in text
    assert "Grown      5.0 % left" in text


def test_outputs_are_stored():
    code = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert "slope" in printed(NOTEBOOK) and any(
        "image/png" in output.get("data", {}) for cell in code for output in cell.outputs)

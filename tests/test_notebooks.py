"""The notebooks run from top to bottom, through public names, and keep their pictures."""

import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = ("01_reconstruct", "02_distill_tiny", "03_sla_kernel")
LARGEST = 400_000  # bytes


def read(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_linked_and_run():
    readme = (FOLDER.parent / "README.md").read_text()
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)
    assert all(f"(notebooks/{name}.ipynb)" in readme for name in NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_keeps_small_pictures_of_one_run_from_top_to_bottom(name):
    cells = code(read(name))
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) >= 2
    assert not [output for output in outputs if output.output_type == "error"]
    assert not re.search(r"/(tmp|home|root)/|File \"", str(outputs))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_uses_public_names_only(name):
    source = "\n".join(cell.source for cell in code(read(name)))
    assert "lite3r_jax" in source
    assert not re.search(r"\b(tests|tools)\b|[ .]_[a-z]", source)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    notebook = read(name)
    kept = [len(cell.outputs) > 0 for cell in code(notebook)]
    for cell in code(notebook):
        cell.outputs = []
    where = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=900, startup_timeout=300, resources=where).execute()
    shown = [
        any(output.output_type != "stream" or output.name == "stdout" for output in cell.outputs)
        for cell in code(notebook)
    ]
    assert shown == kept

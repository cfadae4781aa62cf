"""The notebooks run from the first cell to the last, in a kernel."""

import os

import guide
import pytest

_HOW = "make test-notebooks"
nbformat = pytest.importorskip("nbformat", reason=_HOW)
nbclient = pytest.importorskip("nbclient", reason=_HOW)
pytest.importorskip("ipykernel", reason=_HOW)

NOTEBOOKS = sorted((guide.ROOT / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(guide.ROOT))
    monkeypatch.setitem(os.environ, "MPLBACKEND", "inline")
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    client = nbclient.NotebookClient(
        notebook,
        timeout=280,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    shown = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "display_data" or "text" in output
    ]
    assert shown
    # Progress that is drawn over itself is unreadable in a page.
    text = "".join(output.get("text", "") for output in shown)
    assert "\x08" not in text and "\x1b[" not in text

"""The notebooks of examples/ run, and hold the outputs of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.optional import skip_without
from helpers.pages import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

nbformat: Any = pytest.importorskip("nbformat", reason="needs nbformat: pip install 'fec_fast[test]'")
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
NEEDS = {"deploy_to_onnx": ("onnxscript", "onnxruntime")}


def cells_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel, which is a process of its own, in an empty folder."""
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install 'fec_fast[test]'")
    skip_without("ipykernel", "accelerate", "torchmetrics", "sklearn", "matplotlib", *NEEDS.get(path.stem, ()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, 4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(cell.execution_count for cell in cells_of(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_the_outputs_of_one_run(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    cells = cells_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not [
        output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert path.stat().st_size < 200_000


def test_the_page_of_the_examples_names_them() -> None:
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 3 and all(f"]({path.name})" in page for path in NOTEBOOKS)

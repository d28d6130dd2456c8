"""Rules for benchmarks/: every command explains itself, results have one writer, and the package is not patched."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest

from benchmarks.common.pages import DOCS
from benchmarks.common.results import RESULTS, measured_on, older_scores, read_result, run_number, write_result
from benchmarks.common.tables import markdown_table, significant
from benchmarks.gpu.page import table_of_throughput
from benchmarks.yolo.page import table_of_networks
from helpers.optional import skip_without

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FILES = sorted(BENCHMARKS.rglob("*.py"))
COMMANDS = {  # and the optional packages that its modules import
    "coverage": ("torchvision",),
    "coverage.packages_run": ("torchvision",),
    "defaults": ("torchvision", "PIL"),
    "defaults.train": ("torchvision", "PIL"),
    "detection": ("torchvision", "PIL"),
    "detection.pictures": ("torchvision", "PIL"),
    "gpu": (),
    "gpu.cost": (),
    "gpu.resources": (),
    "gpu.triton_resources": (),
    "imports": (),
    "int8": ("PIL",),
    "large": (),
    "latency": ("torchvision",),
    "pictures": ("PIL",),
    "proof": (),
    "recipes": (),
    "recovery": ("PIL",),
    "recovery.accuracy": ("PIL",),
    "recovery.cost": ("PIL",),
    "recovery.detector": ("torchvision", "PIL"),
    "recovery.train_dense": ("PIL",),
    "recovery.training": ("PIL",),
    "scoring": ("torchvision",),
    "scoring.host": ("torchvision",),
    "sparse_training": ("PIL",),
    "study": ("PIL",),
    "study.entropy_parts": (),
    "study.formula_choice": ("PIL",),
    "study.trials": ("PIL",),
    "surgery": ("torchvision", "torch_pruning"),
    "trained": ("PIL",),
    "yolo": ("torchvision",),
    "yolo.bccd": ("torchvision", "PIL"),
    "yolo.pictures": ("torchvision", "PIL"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_without(*COMMANDS[command])
    for module in [name for name in sys.modules if name.startswith("benchmarks.")]:
        monkeypatch.delitem(sys.modules, module)  # else runpy warns that the module is imported already
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{command}", run_name="__main__")
    printed = capsys.readouterr().out
    assert not ended.value.code and f"python -m benchmarks.{command}" in printed


def test_every_command_is_listed() -> None:
    subjects = {file.parent.name for file in BENCHMARKS.glob("*/__main__.py")}
    modules = {
        ".".join(file.relative_to(BENCHMARKS).with_suffix("").parts)
        for file in BENCHMARKS.glob("*/*.py")
        if 'if __name__ == "__main__":' in file.read_text() and file.stem not in ("run", "page")
    }
    assert subjects | modules == set(COMMANDS)


def test_files_are_short_and_have_docstrings() -> None:
    for file in FILES:
        text = file.read_text()
        assert len(text.splitlines()) < 400, file
        assert file.name == "__main__.py" or ast.get_docstring(ast.parse(text)), file


def assigned_names(tree: ast.AST) -> set[str]:
    """The first names of all attributes that are assigned, such as ``a`` of ``a.b.c = 1``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            owner = node.value
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Name):
                names.add(owner.id)
    return names


def imported_from_package(tree: ast.AST) -> set[str]:
    """The names that a file binds by importing from fec_fast."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "fec_fast":
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names if "fec_fast" in alias.name}
    return names


def test_the_rule_on_patches_finds_them() -> None:
    tree = ast.parse("import fec_fast\nfrom fec_fast.pruning import policies as p\np.X = 1\nfec_fast.a.b = 2\nq.X = 3")
    assert assigned_names(tree) & imported_from_package(tree) == {"p", "fec_fast"}


def test_no_benchmark_assigns_to_the_package() -> None:
    for file in FILES:
        tree = ast.parse(file.read_text())
        assert not assigned_names(tree) & imported_from_package(tree), file
        assert "setattr(" not in file.read_text(), file


def test_results_and_pages_have_one_writer() -> None:
    for file in FILES:
        text = file.read_text()
        assert "json.dump(" not in text, file
        assert file.parent.name == "common" or "write_text(" not in text, file
        assert file == BENCHMARKS / "common" / "tables.py" or "| --- " not in text, file


def test_a_result_file_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "result.json"
    assert read_result(path) == {}
    document: dict[str, object] = {"settings": {"a": 1}, "rows": [{"key": [1, 2]}, {"key": [3]}]}
    write_result(path, document)
    assert read_result(path) == document
    assert [line for line in path.read_text().splitlines() if "key" in line] == ['{"key": [1, 2]},', '{"key": [3]}']
    write_result(path, {"rows": []})
    assert read_result(path) == {"rows": []}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_the_parts_of_a_result_name_their_run() -> None:
    older = {"processor": "Some CPU", "cores": 2, "threads": 1, "device": "cpu", "python": "3.11", "torch": "2.6"}
    document: dict[str, object] = {"machine": older}
    first, again = run_number(document), run_number(document)
    assert (first, again) == (0, 0)
    (run,) = document["runs"]  # type: ignore[misc]
    assert set(run) == {"machine", "versions", "commit", "date"}
    assert set(run["versions"]) == {"python", "torch", "fec-fast", "numpy"}
    text = measured_on(document, [{}, {}, {"run": 0}])
    assert "- 2 of 3 results: Some CPU (family, model and stepping not recorded)" in text
    assert "commit not recorded, date not recorded" in text.replace("\n  ", " ")
    assert "- 1 of 3 results: " in text and run["date"] in text.replace("\n  ", " ")
    assert measured_on(document, [{}]).startswith("Measured on: Some CPU")


def test_a_page_says_which_results_are_older_than_scores_in_float64() -> None:
    document = {"machine": {}, "runs": [{"date": "2026-11-28T10:30:59+00:00"}, {"date": "2026-11-28T10:32:00+00:00"}]}
    assert older_scores(document, [{"run": 1}]) == ""
    assert older_scores(document, [{}, {"run": 0}]).startswith("These results are older")
    assert older_scores(document, [{"run": 1}, {"run": 0}, {}]).startswith("2 of these results are older")


def test_tables_and_numbers() -> None:
    assert markdown_table(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |\n\n"
    assert markdown_table(("a", "b"), []) == ""
    with pytest.raises(ValueError, match="needs 2 cells"):
        markdown_table(("a", "b"), [(1,)])
    numbers = (0.0, 0.01234, 1.234, 12.34, 1234.5, float("inf"))
    assert [significant(number) for number in numbers] == ["0", "0.0123", "1.23", "12.3", "1,234", "inf"]


def test_the_yolo_page_has_the_table_of_the_results() -> None:
    assert table_of_networks(read_result(RESULTS / "yolo.json")).strip() in (DOCS / "yolo.md").read_text()


def test_the_gpu_page_has_the_tables_of_the_results() -> None:
    files = [file for file in RESULTS.glob("gpu-*.json") if "throughput" in read_result(file)]
    assert files
    for file in files:
        table = table_of_throughput(read_result(file)).strip().splitlines()[2:]
        assert "\n".join(table) in (DOCS / "gpu.md").read_text(), file

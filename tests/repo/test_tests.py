"""The tests: their folders mirror the package, they share code through helpers, and markers are complete."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "python" / "fec_fast"
MODULES = sorted(TESTS.rglob("test_*.py"))


def imported(path: Path) -> set[str]:
    """Returns the dotted names that a file imports, ``a.b`` for ``from a import b`` too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.relative_to(TESTS).as_posix())
def test_no_file_imports_a_test_module(path: Path) -> None:
    parts = {part for name in imported(path) for part in name.split(".")}
    assert not parts & {module.stem for module in MODULES}


@pytest.mark.parametrize(
    "path", sorted((TESTS / "unit").rglob("test_*.py")), ids=lambda path: path.relative_to(TESTS).as_posix()
)
def test_a_unit_test_lies_where_its_module_does(path: Path) -> None:
    """unit/ROOM/test_MODULE.py, or test_MODULE_SUBJECT.py where a module has several."""
    folder = PACKAGE / path.parent.relative_to(TESTS / "unit")
    subject = path.stem.removeprefix("test_")
    names = {module.stem for module in folder.iterdir()} - {"__init__", "__pycache__"}
    assert any(subject == name or subject.startswith(f"{name}_") for name in names), f"no module of {folder} is tested"


def test_every_test_module_lies_in_a_known_folder() -> None:
    assert len(MODULES) > 50
    assert {path.relative_to(TESTS).parts[0] for path in MODULES} == {
        "unit",
        "kernels",
        "integration",
        "reliability",
        "repo",
    }


def test_files_that_start_processes_are_marked() -> None:
    """Tests that import the launchers carry the mark ``distributed``, so that it can be left out."""
    launchers = {"helpers.processes.accelerate_launch", "helpers.processes.torchrun"}
    starting = [path for path in MODULES if imported(path) & launchers]
    assert len(starting) >= 2
    assert all("pytest.mark.distributed" in path.read_text(encoding="utf-8") for path in starting)

"""The pages: their Python blocks run and print what the page shows, links lead somewhere, the README is short."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])


@pytest.mark.parametrize(
    ("name", "packages", "blocks"),
    [
        pytest.param(
            "couplings",
            ("torchvision", "torch_pruning", "onnxscript", "onnxruntime"),
            15,
            marks=pytest.mark.slow,
        ),
        pytest.param("budgets", ("torchvision",), 7, marks=pytest.mark.slow),
        pytest.param(
            "choosing",
            ("accelerate", "torchmetrics", "sklearn", "matplotlib"),
            6,
            marks=pytest.mark.slow,
        ),
        ("finetuning", ("accelerate", "torchmetrics", "torchvision", "sklearn"), 4),
        ("scale", ("torchvision",), 1),
        ("report", ("matplotlib",), 1),
        pytest.param(
            "training_loops",
            ("accelerate", "torchmetrics", "torchvision", "sklearn", "lightning", "transformers"),
            4,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_blocks_of_a_page_run(name, packages, blocks, tmp_path, monkeypatch, capsys) -> None:
    for package in packages:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    page = DOCS / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "page"}
    ran, printed = 0, ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            language, source = block.groups()
            if language == "python":
                # Empty lines before the block make the line numbers of a failure those of the page.
                before = "\n" * text[: block.start(2)].count("\n")
                exec(compile(before + source, str(page), "exec"), namespace)
                ran, printed = ran + 1, capsys.readouterr().out
            elif not language:  # what the block before printed, shortened
                missing = [row for row in source.splitlines() if row != "..." and row not in printed.splitlines()]
                assert not missing
    assert ran == text.count("```python") == blocks
    assert (tmp_path / "pruned.onnx").is_file() == (name == "couplings")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Relative links name a file of the repository and, behind ``#``, a heading of the page that they name."""
    for target, _, anchor in re.findall(
        r"\]\((?!https?://)([^)#\s]*)(#([^)\s]+))?\)", page.read_text(encoding="utf-8")
    ):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_rows_of_a_table_have_the_cells_of_its_header(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for table in re.findall(r"^\|.*\n\|[-| :]+\|\n(?:\|.*\n?)+", text, re.MULTILINE):
        header, *rows = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
        assert set(rows) == {header}, table[:200]

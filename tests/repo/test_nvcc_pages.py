"""The pages that nvcc determines: compiled anew only where their sources have changed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.common import pages, tables
from benchmarks.gpu import nvcc

ROOT = Path(__file__).parents[2]


def test_pages_of_nvcc_are_compiled_anew_where_their_sources_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, compiled = "# Cost\n\nBy nvcc 13.0.\n", []

    def write(folder: Path, version: str) -> str:
        compiled.append(version)
        return text

    monkeypatch.setattr(nvcc, "compiler_version", lambda: "13.0")
    monkeypatch.setattr(nvcc, "DOCS", tmp_path)
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["cost"])
    nvcc.main("Cost.", "cost.md", write)
    page = (tmp_path / "cost.md").read_text()
    assert page.startswith(text) and nvcc.digest(Path(__file__), text) in page

    monkeypatch.setattr(sys, "argv", ["cost", "--check"])
    nvcc.main("Cost.", "cost.md", write)
    assert "nothing to compile" in capsys.readouterr().out and len(compiled) == 1
    # As with a changed kernel that compiles to the same.
    monkeypatch.setattr(nvcc, "digest", lambda script, text: "0" * 64)
    nvcc.main("Cost.", "cost.md", write)
    assert "of other sources" in capsys.readouterr().out and len(compiled) == 2
    text = text.replace("By", "Counted by")
    with pytest.raises(SystemExit, match="differs"):
        nvcc.main("Cost.", "cost.md", write)
    monkeypatch.setattr(nvcc, "compiler_version", lambda: "13.1")
    nvcc.main("Cost.", "cost.md", write)
    assert "not run" in capsys.readouterr().out and (tmp_path / "cost.md").read_text() == page


def test_the_digest_is_of_every_kernel_and_of_the_code_that_reads_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(nvcc.ROOT / "csrc", tmp_path / "csrc")
    shutil.copytree(nvcc.ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("results"))
    monkeypatch.setattr(nvcc, "ROOT", tmp_path)
    for module in (nvcc, pages, tables):
        monkeypatch.setattr(module, "__file__", str(tmp_path / Path(module.__file__).relative_to(ROOT)))
    script = tmp_path / "benchmarks" / "gpu" / "cost.py"
    digests = {nvcc.digest(script, "a page"), nvcc.digest(script, "another page")}
    changed = [*(tmp_path / "csrc" / "cuda").rglob("*.cu*"), *script.parent.glob("*.cu"), script, Path(nvcc.__file__)]
    for path in changed:
        path.write_text(path.read_text() + "\n")
        digests.add(nvcc.digest(script, "a page"))
    assert len(digests) == 2 + len(changed)

"""The demo, shortened: every step runs on real digits, with training too brief to be good."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from fec_fast.cli import app, demo
from fec_fast.utils.errors import InputError, MissingExtraError

_SHORT = demo.DemoSettings(budgets=(0.8,), epochs=1, finetune_epochs=1, repeats=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, str]:
    """The figures, the folder of the files, and what was printed in a terminal of 80 columns."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("demo")
    console = Console(record=True, width=80)
    threads = torch.get_num_threads()
    figures = demo.run_demo(folder / "demo.json", folder / "demo.html", settings=_SHORT, console=console)
    assert torch.get_num_threads() == threads
    return figures, folder, console.export_text()


@pytest.mark.slow
def test_every_method_gets_the_same_budgets(run: tuple[dict[str, Any], Path, str]) -> None:
    figures, folder, _ = run
    assert json.loads((folder / "demo.json").read_text()) == figures
    assert sorted(path.name for path in folder.iterdir()) == ["demo.html", "demo.json"]
    whole = figures["dense"]["parameters"]
    assert [budget["removed"] for budget in figures["budgets"]] == [0.8]
    for budget in figures["budgets"]:
        assert list(budget["methods"]) == ["fec_fast", "l1", "random"]
        for row in (*budget["methods"].values(), figures["dense"]):
            assert len(row["at_once"]) == len(row["tuned"]) == 1
            assert all(0 <= accuracy <= 1 for accuracy in row["at_once"] + row["tuned"])
        for row in budget["methods"].values():
            left = 1 - row["parameters"] / whole
            assert budget["removed"] <= left <= budget["removed"] + 0.01 * budget["removed"] + 0.005
    assert figures["machine"]["torch"] and figures["machine"]["processor"]


@pytest.mark.slow
def test_the_terminal_and_the_report_show_the_figures(run: tuple[dict[str, Any], Path, str]) -> None:
    figures, folder, printed = run
    assert "…" not in printed, "a cell is cut off"
    assert f"report:  {folder / 'demo.html'}" in printed and "held-out digits" in printed
    page = (folder / "demo.html").read_text(encoding="utf-8")
    assert "Right after the cut" in page and "80 % of the parameters removed" in page
    for budget in figures["budgets"]:
        for row in budget["methods"].values():
            assert f"{100 * fmean(row['tuned']):.1f} %" in printed
            assert f">{round(100 * fmean(row['at_once']), 2):g}</td>" in page


def figures_of(at_once: list[list[float]], tuned: list[list[float]]) -> dict[str, Any]:
    """Figures as the demo writes them; for each budget the accuracies of the methods."""
    size = {"parameters": 1000, "macs": 2000}
    budgets = [
        {
            "removed": removed,
            "methods": {
                name: {**size, "at_once": [first], "tuned": [second]}
                for name, first, second in zip(demo.METHODS, one, two, strict=True)
            },
        }
        for removed, one, two in zip((0.5, 0.8, 0.95), at_once, tuned, strict=True)
    ]
    machine = {"processor": "P", "threads": 1, "torch": "T"}
    return {
        "network": "resnet-digits",
        "dense": {**size, "at_once": [0.99], "tuned": [0.99]},
        "budgets": budgets,
        "machine": machine,
        "settings": {"finetune_epochs": 3, "repeats": 2},
        "data": {"held_out_images": 450},
        "seconds": 1.0,
    }


def shown(figures: dict[str, Any], width: int = 80, **options: Any) -> str:
    console = Console(record=True, width=width, **options)
    demo._print(figures, console)
    return console.export_text()


GOOD = [[0.9, 0.5, 0.4], [0.9, 0.3, 0.2], [0.9, 0.1, 0.1]]


def test_where_the_defaults_are_not_the_best_is_said() -> None:
    assert "fec_fast is below" not in shown(figures_of(GOOD, GOOD))
    bad = copy.deepcopy(GOOD)
    bad[0], bad[2] = [0.9, 0.95, 0.4], [0.1, 0.2, 0.3]
    words = "fec_fast is below l1 with 50 % removed; below l1 and random with 95 % removed."
    assert f"Tuned, {words}" in shown(figures_of(GOOD, bad), 200)
    assert f"Right after the cut, {words}" in shown(figures_of(bad, GOOD), 200)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_bars_are_as_long_as_the_accuracy(width: int) -> None:
    text = shown(figures_of(GOOD, GOOD), width)
    rows = [row for row in text.splitlines() if row.count(" %") >= 2 and ("━" in row or "╸" in row)]
    assert len(rows) == 9 and all(len(row) <= width for row in rows) and "…" not in text
    lengths = [row.count("━") for row in (rows[0], rows[1], rows[8])]
    assert lengths[0] > lengths[1] > lengths[2]


def test_wrong_names_are_found_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nearest: 'vgg-digits'"):
        demo.run_demo(network="vgg-digit")
    for file, message in ((tmp_path / "nowhere" / "demo.html", "there is no folder"), (tmp_path, "is a folder")):
        with pytest.raises(InputError, match=f"^output=.*{message}"):
            demo.run_demo(file)
        with pytest.raises(InputError, match=f"^report=.*{message}"):
            demo.run_demo(None, file)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fec_fast\[report\]'"):
        demo.run_demo(None, tmp_path / "demo.html")


@pytest.mark.parametrize("name", ["fec-fast-demo.json", "fec-fast-demo.html"])
def test_files_of_an_earlier_demo_are_kept_without_force(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Path, Path]] = []
    monkeypatch.setattr(app, "run_demo", lambda figures, report: calls.append((figures, report)))
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("the earlier one")
    refused = CliRunner().invoke(app.app, ["demo"])
    assert refused.exit_code == 2 and f"{name} exists: add --force to replace it" in refused.stderr and not calls
    assert CliRunner().invoke(app.app, ["demo", "--force"]).exit_code == 0
    assert CliRunner().invoke(app.app, ["demo", "--json", "other.json", "--report", "other.html"]).exit_code == 0
    assert calls == [(Path("fec-fast-demo.json"), Path("fec-fast-demo.html")), (Path("other.json"), Path("other.html"))]

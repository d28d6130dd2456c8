"""The demo, shortened: every step runs on real digits, with training too brief to be good."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from fec_fast.cli import demo
from fec_fast.utils.errors import InputError

_SHORT = demo.DemoSettings(epochs=1, finetune_epochs=1, repeats=1, latency_seconds=0.01)


@pytest.mark.slow
def test_demo_end_to_end(tmp_path: Path) -> None:
    console = Console(record=True, width=80)
    file = tmp_path / "demo.json"
    report = demo.run_demo(file, settings=_SHORT, console=console)
    assert json.loads(file.read_text()) == report
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]
    assert set(report["networks"]) == {"vgg-digits", "resnet-digits"}
    for network in report["networks"].values():
        rows = network["criteria"]
        assert list(rows) == ["none", "recovered", "l1", "random"]
        whole = rows.pop("none")
        assert len({(row["parameters"], row["macs"]) for row in rows.values()}) == 1, "not the same budget"
        assert rows["recovered"]["parameters"] <= 0.3 * whole["parameters"]
        assert whole["accuracy_before_finetuning"] == [network["trained_accuracy"]]
        for row in (whole, *rows.values()):
            assert len(row["accuracy"]) == 1 and 0 <= row["accuracy"][0] <= 1
            assert row["latency_ms"] > 0
    assert report["machine"]["torch"] and report["machine"]["processor"]
    printed = console.export_text()
    assert "held-out images" in printed and "resnet-digits" in printed and "random" in printed
    assert "…" not in printed, "a cell is cut off in a terminal of 80 columns"


def test_wrong_names_are_found_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nearest: 'vgg-digits'"):
        demo.run_demo(networks=["vgg-digit"])
    with pytest.raises(InputError, match="existing folder"):
        demo.run_demo(tmp_path / "nowhere" / "demo.json")
    with pytest.raises(InputError, match="existing folder"):
        demo.run_demo(tmp_path)

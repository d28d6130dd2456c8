"""Ctrl-C at random moments of what writes files: the old file or the new one, whole, and nothing is swallowed.

As in test_interrupts.py: a few times per call in the fast part, 400 times with `pytest -m sweep tests/reliability`.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.cli import deploying
from fec_fast.vision import networks, zoo
from helpers import sweeping
from helpers.comparison import same_weights
from helpers.everything import of_model, of_process
from helpers.interruptions import press_at_random, report

ROUNDS = [4, pytest.param(400, marks=(pytest.mark.slow, pytest.mark.sweep))]
IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def process() -> dict[str, Any]:
    """The state of the process that no call may leave changed; the handler of Ctrl-C is set by the test itself."""
    state = of_process()
    del state["Ctrl-C"]
    return {**state, "logging": logging.root.manager.disable}


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    return networks.resnet_digits().train()


@pytest.fixture(scope="module")
def results(original: nn.Module) -> list[fec_fast.PruneResult]:
    return [fec_fast.prune(original, IMAGES, ratio=share, recover=None) for share in (0.25, 0.5)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_saving(results: list[fec_fast.PruneResult], tmp_path: Path, rounds: int) -> None:
    folder = fec_fast.save(results[0], tmp_path / "saved")
    turn = 0

    def make() -> tuple[Callable[[], Any], Callable[[], None]]:
        nonlocal turn
        turn += 1
        before = [of_model(result.model) for result in results], process()

        def check() -> None:
            assert ([of_model(result.model) for result in results], process()) == before
            assert [path.name for path in tmp_path.iterdir()] == ["saved"]
            loaded = fec_fast.load(networks.resnet_digits(), folder)
            assert any(same_weights(loaded, result.model) for result in results)

        return lambda: fec_fast.save(results[turn % 2], folder), check

    report("save", press_at_random(make, rounds))


@pytest.mark.parametrize("rounds", ROUNDS)
def test_measuring_sensitivity(original: nn.Module, tmp_path: Path, rounds: int) -> None:
    cache = tmp_path / "cache"

    def measured(pruned: nn.Module) -> float:
        with torch.no_grad():
            return float(pruned(IMAGES).sum())

    def measure(folder: Path | None) -> fec_fast.Sensitivity:
        return fec_fast.measure_sensitivity(
            original, IMAGES, calibration=measured, at=(0.5,), cache=folder, progress=False
        )

    whole = measure(None)

    def make() -> tuple[Callable[[], Any], Callable[[], None]]:
        shutil.rmtree(cache, ignore_errors=True)
        before = of_model(original), process()

        def check() -> None:
            assert (of_model(original), process()) == before
            assert measure(cache) == whole
            lines = [line for file in cache.iterdir() for line in file.read_text().splitlines()]
            assert len(lines) == len({re.sub('"value".*', "", line) for line in lines}), "a value was lost"

        return lambda: measure(cache), check

    report("measure_sensitivity", press_at_random(make, rounds))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_sweep(tmp_path: Path, rounds: int) -> None:
    model, folder = sweeping.network().train(), tmp_path / "results"
    images = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(3))

    def sweep(results: Path | None) -> fec_fast.Sweep:
        return sweeping.quick_sweep(model, loader=images, criteria=("l1",), results=results, latency=False)

    whole = sweep(None)
    figures = [point.figures() for point in whole.points]

    def make() -> tuple[Callable[[], Any], Callable[[], None]]:
        shutil.rmtree(folder, ignore_errors=True)
        before = of_model(model), process()

        def check() -> None:
            assert (of_model(model), process()) == before
            written = list(folder.glob("*"))
            assert all(path.suffix == ".json" for path in written), written
            resumed = sweep(folder)
            assert [point.figures() for point in resumed.points] == figures and resumed.dense == whole.dense
            assert {path.name for path in written} <= {path.name for path in folder.iterdir()}
            assert len(list(folder.iterdir())) == len(figures)

        return lambda: sweep(folder), check

    report("sweep", press_at_random(make, rounds))


@pytest.mark.parametrize("rounds", ROUNDS)
def test_the_report(original: nn.Module, results: list[fec_fast.PruneResult], tmp_path: Path, rounds: int) -> None:
    import matplotlib

    file = tmp_path / "report.html"
    pages = [results[turn].report(tmp_path / f"{turn}", original, IMAGES).read_text() for turn in (0, 1)]
    turn = 0

    def make() -> tuple[Callable[[], Any], Callable[[], None]]:
        nonlocal turn
        turn += 1
        before = of_model(original), process(), dict(matplotlib.rcParams)

        def check() -> None:
            assert (of_model(original), process(), dict(matplotlib.rcParams)) == before
            assert file.read_text() in pages
            assert {path.name for path in tmp_path.iterdir()} == {"report.html", "0", "1"}

        return lambda: results[turn % 2].report(file, original, IMAGES), check

    report("report", press_at_random(make, rounds))


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [2, pytest.param(400, marks=pytest.mark.sweep)])
def test_the_export_of_onnx(tmp_path: Path, rounds: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The command itself, so that a Ctrl-C shows as an exception and not as an exit code."""
    import onnx

    model = zoo.build("zoo:resnet-digits").eval()
    folder = fec_fast.save(fec_fast.prune(model, IMAGES, ratio=0.5, recover=None), tmp_path / "saved")
    file = tmp_path / "pruned.onnx"
    file.write_bytes(b"the old file")

    def make() -> tuple[Callable[[], Any], Callable[[], None]]:
        before = process()
        before["torch"] = None  # the command builds a network with random weights

        def check() -> None:
            capsys.readouterr()
            assert {**process(), "torch": None} == before
            assert {path.name for path in tmp_path.iterdir()} == {"saved", "pruned.onnx"}
            if file.read_bytes() != b"the old file":
                onnx.checker.check_model(onnx.load(file), full_check=True)
                file.write_bytes(b"the old file")

        return lambda: deploying.export_onnx_command("zoo:resnet-digits", folder, file, force=True), check

    outcomes = press_at_random(make, rounds)
    with capsys.disabled():
        report("export onnx", outcomes)

"""Processes killed at random moments while they write: the old or the new is there, whole, and no rubbish stays.

The fast part kills a few; `pytest -m sweep tests/reliability` kills 200 of each.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.plan.checkpoint_check import check_checkpoint
from fec_fast.pruning.allocation import sensitivity_cache
from fec_fast.utils.files import is_scratch
from fec_fast.utils.onnx_files import OnnxRun
from fec_fast.vision import networks
from helpers import sweeping
from helpers.comparison import same_weights
from helpers.kills import in_child, kill_at_random
from helpers.optional import skip_without
from helpers.training import dot_loader, dropout_classifier

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
KILLS = [5, pytest.param(200, marks=(pytest.mark.slow, pytest.mark.sweep))]
BUDGETS = tuple(f"macs={share}" for share in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7))
IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return networks.resnet_digits().eval()


def scratch_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if is_scratch(path)]


@pytest.mark.parametrize("kills", KILLS)
def test_saving(tmp_path: Path, kills: int) -> None:
    """Two checkpoints replace each other in turns; after a kill, one of them is there."""
    results = [
        fec_fast.prune(network(seed), IMAGES, ratio=share, recover=None) for seed, share in ((0, 0.5), (1, 0.25))
    ]
    folder = fec_fast.save(results[0], tmp_path / "saved")
    found: list[int] = []
    left: list[int] = []

    def save_in_turns() -> None:
        for result in itertools.cycle(results):
            fec_fast.save(result, folder)

    def check() -> None:
        model = fec_fast.load(network(7), folder)
        (match,) = [i for i, result in enumerate(results) if same_weights(model, result.model)]
        found.append(match)
        left.append(len(scratch_in(tmp_path)))

    ended = kill_at_random(save_in_turns, check, kills, within=0.2)
    assert ended == 0 and max(left) <= 1
    fec_fast.save(results[1], folder)
    assert os.listdir(tmp_path) == ["saved"]
    print(
        f"save: {kills} kills, 0 lost, 0 mixed; {found.count(1)} times the second; {sum(left)} scratch folders removed"
    )


@pytest.mark.parametrize("kills", KILLS)
def test_saving_with_a_card(tmp_path: Path, kills: int) -> None:
    """Checkpoints with and without a card replace each other: the card is that of the plan and the weights beside."""
    results = [
        fec_fast.prune(network(seed), IMAGES, ratio=share, recover=None) for seed, share in ((0, 0.5), (1, 0.25))
    ]
    folder = fec_fast.save(results[0], tmp_path / "saved", model_card=True)
    found: list[bool] = []

    def save_in_turns() -> None:
        for result, has_card in itertools.cycle(zip(results, (True, False), strict=True)):
            fec_fast.save(result, folder, model_card=has_card)

    def check() -> None:
        checked, model = check_checkpoint(folder), fec_fast.load(network(7), folder)
        (match,) = [i for i, result in enumerate(results) if same_weights(model, result.model)]
        assert checked.card == (None if match else "as written") and not checked.others
        if not match:
            assert f"| {results[0].after.parameters:,} |" in (folder / "README.md").read_text()
        found.append(bool(match))

    assert kill_at_random(save_in_turns, check, kills, within=0.2) == 0
    print(f"save with a card: {kills} kills, 0 lost, 0 mixed; {sum(found)} times the second")


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=pytest.mark.sweep)])
def test_files_of_other_runtimes(tmp_path: Path, kills: int) -> None:
    """An int8 file, and a checkpoint with an ONNX file: the old one or the new one, whole."""
    skip_without("onnx", "onnxscript", "onnxruntime")
    result = fec_fast.prune(network(0), IMAGES, ratio=0.5, recover=None)
    file, folder = tmp_path / "int8.onnx", fec_fast.save(result, tmp_path / "saved")
    file.write_bytes(b"the old file")
    fec_fast.export_int8(result.model, tmp_path / "first.onnx", IMAGES)  # imports what the children then have
    (tmp_path / "first.onnx").unlink()

    def write() -> None:
        fec_fast.save(result, folder, onnx=IMAGES)
        fec_fast.export_int8(result.model, file, IMAGES)

    def check() -> None:
        assert check_checkpoint(folder).onnx in (None, "runs in onnxruntime")
        if file.read_bytes() != b"the old file":
            OnnxRun(file)(IMAGES)
            file.write_bytes(b"the old file")
        assert {path.name for path in tmp_path.iterdir() if not is_scratch(path)} == {"saved", "int8.onnx"}

    kill_at_random(write, check, kills, within=4.0)
    write()
    check()
    assert sorted(os.listdir(tmp_path)) == ["int8.onnx", "saved"]
    print(f"export_int8 and save with ONNX: {kills} kills, 0 lost, 0 mixed")


@pytest.mark.parametrize("kills", KILLS)
def test_the_first_save(tmp_path: Path, kills: int) -> None:
    """There is nothing, or a whole checkpoint; and what a kill leaves does not stand in the way of the next."""
    result = fec_fast.prune(network(0), IMAGES, ratio=0.5, recover=None)
    folder = tmp_path / "deep" / "saved"

    def check() -> None:
        if folder.exists():
            assert same_weights(fec_fast.load(network(7), folder), result.model)
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()

    kill_at_random(lambda: fec_fast.save(result, folder), check, kills, within=0.03)
    fec_fast.save(result, folder)
    assert os.listdir(folder.parent) == ["saved"]


@pytest.mark.parametrize("kills", KILLS)
def test_training(tmp_path: Path, kills: int) -> None:
    """A training that is killed again and again, and resumed each time, ends with the same bits as one that was not."""
    folder = tmp_path / "state"
    epochs = 2 * kills

    def train(checkpoint: Path | None) -> nn.Module:
        model = dropout_classifier()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "nothing to resume")
            fec_fast.finetune(
                model, dot_loader(), epochs=epochs, checkpoint=checkpoint, resume=bool(checkpoint), progress=False
            )
        return model

    whole = train(None)
    finished: list[int] = []

    def check() -> None:
        index = folder / "training.json"
        finished.append(json.loads(index.read_text())["epoch"] if index.exists() else 0)
        assert finished == sorted(finished), "finished epochs were lost"

    kill_at_random(lambda: train(folder), check, kills, within=0.25)
    assert same_weights(train(folder), whole)
    assert len(list(folder.iterdir())) == 2
    print(f"finetune: {kills} kills in {epochs} epochs, 0 finished epochs lost, resumed to the same bits")


@pytest.mark.parametrize("kills", KILLS)
def test_the_cache_of_sensitivities(tmp_path: Path, kills: int) -> None:
    """A measurement that is killed again and again loses no value, and ends with those of one that was not killed."""
    model, cache = network(0), tmp_path / "cache"

    def measured(pruned: nn.Module) -> float:
        with torch.no_grad():
            return float(pruned(IMAGES).sum())

    def measure(folder: Path | None) -> fec_fast.Sensitivity:
        return fec_fast.measure_sensitivity(model, IMAGES, calibration=measured, cache=folder, progress=False)

    whole = measure(None)
    known: list[int] = []

    def check() -> None:
        lines = [line for file in cache.glob("*.jsonl") for line in file.read_text().splitlines() if line.endswith("}")]
        known.append(len({(json.loads(line)["set"], json.loads(line)["removed"]) for line in lines}))
        assert known == sorted(known), "measured values were lost"
        if known[-1] > 20:  # nearly done: begin anew, so that every kill finds something to do
            for file in cache.iterdir():
                file.unlink()
            known.clear()

    kill_at_random(lambda: measure(cache), check, kills, within=0.4)
    assert measure(cache) == whole
    print(f"sensitivity cache: {kills} kills, 0 values lost")


@pytest.mark.parametrize("kills", KILLS)
def test_the_results_of_a_sweep(tmp_path: Path, kills: int) -> None:
    """A sweep that is killed again and again loses no network, and ends with those of one that was not killed."""
    model, results = sweeping.network(), tmp_path / "results"
    images = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(3))

    def sweep(folder: Path | None) -> fec_fast.Sweep:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sweeping.quick_sweep(model, loader=images, budgets=BUDGETS, results=folder)

    whole = sweep(None)
    known: list[int] = []

    def check() -> None:
        files = [path for path in results.glob("*") if not is_scratch(path)]
        points = [json.loads(path.read_text())["point"] for path in files]
        assert all(point in figures for point in points), "a network is mixed of several"
        known.append(len(points))
        assert known == sorted(known), "measured networks were lost"
        if known[-1] > len(figures) - 2:  # nearly done: begin anew, so that every kill finds something to do
            shutil.rmtree(results)
            known.clear()

    figures = [point.figures() for point in whole.points]
    assert len(figures) == 2 * len(BUDGETS)
    kill_at_random(lambda: sweep(results), check, kills, within=1.0)
    found = sweep(results)
    assert found.dense == whole.dense and [point.figures() for point in found.points] == figures
    assert [point.plan for point in found.points] == [point.plan for point in whole.points]
    assert len(list(results.iterdir())) == len(figures)
    print(f"sweep: {kills} kills, 0 networks lost, 0 mixed")


def test_a_line_that_a_kill_has_torn_is_measured_again(tmp_path: Path) -> None:
    key = "0" * 64
    cache = sensitivity_cache.SensitivityCache(tmp_path, key)
    cache.append("layer", 1, 0.5, rank=0)
    file = tmp_path / "sensitivity-0.jsonl"
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"key": "' + key + '", "set": "lay')
    assert sensitivity_cache.SensitivityCache(tmp_path, key).values == {("layer", 1): 0.5}
    cache.append("layer", 2, 0.25, rank=0)
    assert sensitivity_cache.SensitivityCache(tmp_path, key).values == {("layer", 1): 0.5, ("layer", 2): 0.25}


def test_a_child_that_fails_is_noticed() -> None:
    """The instrument itself: a failure in a child is not taken for a kill."""
    with pytest.raises(AssertionError, match="failed with 1"):
        kill_at_random(lambda: 1 / 0, lambda: None, 1, within=2.0)
    assert in_child(lambda: None) == 0

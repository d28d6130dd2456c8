"""Sensitivity: measured, cached, resumed, shared among processes, and used by the knapsack."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fec_fast
from fec_fast import Budget
from fec_fast.pruning.allocation.sensitivity import lower_hull
from helpers.distributed_sensitivity import IMAGE, first_matters, network, widths
from helpers.processes import torchrun


def batches(labels: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(labels, (8,), generator=generator))
        for _ in range(2)
    ]


def test_values_are_those_of_the_function() -> None:
    found = fec_fast.measure_sensitivity(network(), IMAGE, first_matters, at=(0.2, 0.5), progress=False)
    assert found.whole == 1.0 and found.units == {"0": 20, "3": 20, "5": 20}
    assert found.values["0"] == {4: pytest.approx(0.96), 10: pytest.approx(0.9)}
    assert found.values["5"] == {4: 1.0, 10: 1.0}
    assert "0.20: 0.96" in str(found)


def test_json_is_read_again() -> None:
    found = fec_fast.measure_sensitivity(network(), IMAGE, first_matters, at=(0.2, 0.5), progress=False)
    again = fec_fast.Sensitivity.from_json(found.to_json())
    assert again == found
    fec_fast.prune(network(), IMAGE, budget=Budget(params=0.5), ratios=again, verify=False, recover=None)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "fec_fast.sweep"},
        {"units": {"0": 20}},
        {"values": {}, "units": {}},
        {"values": {"0": {"21": 0.5}}, "units": {"0": 20}},
        {"values": {"0": {"0": 0.5}}, "units": {"0": 20}},
        {"values": {"0": {}}, "units": {"0": 20}},
        {"more": 1},
    ],
)
def test_other_json_is_refused(change: dict[str, Any]) -> None:
    found = fec_fast.Sensitivity("sha256:" + 64 * "a", 1.0, {"0": 20, "3": 20}, {"0": {4: 0.9}, "3": {4: 0.8}})
    with pytest.raises(fec_fast.InputError, match="the JSON of a sensitivity"):
        fec_fast.Sensitivity.from_json(json.dumps(json.loads(found.to_json()) | change))


def test_the_knapsack_removes_where_little_accuracy_is_lost() -> None:
    model = network()
    result = fec_fast.prune(
        model,
        IMAGE,
        budget=Budget(params=0.5),
        ratios="sensitivity",
        calibration=first_matters,
        verify=False,
        recover=None,
    )
    first, second, third = widths(result.model)
    assert first > 16 and first > second and second >= third
    measured = fec_fast.measure_sensitivity(model, IMAGE, first_matters, progress=False)
    again = fec_fast.prune(model, IMAGE, budget=Budget(params=0.5), ratios=measured, verify=False, recover=None)
    assert again.plan.keep == result.plan.keep


def test_accuracy_on_a_loader_leaves_the_model_alone(capsys: pytest.CaptureFixture[str]) -> None:
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    found = fec_fast.measure_sensitivity(model, IMAGE, batches(), at=(0.5,))
    measured = [value for values in found.values.values() for value in values.values()]
    assert len(measured) == 3 and all(0 <= value <= 1 for value in measured)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()) and model.training
    assert "sensitivity" in capsys.readouterr().err


def test_the_cache_resumes_after_an_interruption(tmp_path: Path) -> None:
    calls: list[int] = []

    def breaks(model: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of patience")
        return first_matters(model)

    options: dict[str, Any] = {"at": (0.2, 0.5), "cache": tmp_path, "progress": False}
    with pytest.raises(fec_fast.InputError, match="RuntimeError with 4 units less in 3: out of patience"):
        fec_fast.measure_sensitivity(network(), IMAGE, breaks, **options)
    file = tmp_path / "sensitivity-0.jsonl"
    file.write_text(file.read_text() + '{"key": "torn')  # as if the process was killed while it wrote
    found = fec_fast.measure_sensitivity(network(), IMAGE, breaks, **options)
    assert len(calls) == 4 + 4
    assert found == fec_fast.measure_sensitivity(network(), IMAGE, first_matters, at=(0.2, 0.5), progress=False)
    fec_fast.measure_sensitivity(network(), IMAGE, breaks, **options)
    assert len(calls) == 8
    other = network()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-3
    fec_fast.measure_sensitivity(other, IMAGE, breaks, **options)  # other weights, other values
    assert len(calls) == 8 + 7


@pytest.mark.distributed
def test_two_processes_share_the_measurements(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    done = torchrun("-m", "helpers.distributed_sensitivity", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    written = [json.loads((tmp_path / "cache" / f"found-{rank}").read_text()) for rank in (0, 1)]
    expected = fec_fast.measure_sensitivity(network(), IMAGE, first_matters, at=(0.2, 0.5), progress=False)
    values = {name: {str(n): value for n, value in of.items()} for name, of in expected.values.items()}
    assert written == [[expected.whole, values]] * 2
    lines = [len((tmp_path / "cache" / f"sensitivity-{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert sorted(lines) == [3, 4]
    # A process group that still exists at exit aborts the process now and then.
    assert [(tmp_path / "cache" / f"left-{rank}").read_text() for rank in (0, 1)] == ["True", "True"]


class Halves(nn.Module):
    """Two coupled sets that start at the same layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 24, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(3, 16, 1)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x) + torch.cat([self.left(x), self.right(x)], 1))


def test_two_sets_that_start_at_the_same_layer_have_different_names() -> None:
    torch.manual_seed(0)
    model = Halves().eval()
    found = fec_fast.measure_sensitivity(
        model, IMAGE, lambda network: float(network.left.out_channels), at=(0.5, 0.9), progress=False
    )
    assert found.units == {"stem": 8, "stem (2)": 16}
    assert found.values == {"stem": {4: 4.0, 7: 1.0}, "stem (2)": {8: 8.0, 14: 8.0}} and found.whole == 8.0
    result = fec_fast.prune(model, IMAGE, budget=Budget(params=0.4), ratios=found, recover=None)
    assert result.model.left.out_channels == 8 and result.model.right.out_channels < 10


def test_hull_is_convex_and_below() -> None:
    x, y = np.array([0.0, 1, 2, 3, 4]), np.array([0.0, 3, 1, 5, 6])
    assert lower_hull(x, y) == [0, 2, 4]


@pytest.mark.parametrize(
    ("calibration", "kind", "words"),
    [
        (lambda model: math.nan, fec_fast.InputError, "returned nan with nothing removed"),
        (lambda model: "good", fec_fast.ArgumentError, "returned a str"),
        (lambda model: 1 / 0, fec_fast.InputError, "ZeroDivisionError"),
        ([], fec_fast.InputError, "empty"),
        (iter([]), fec_fast.ArgumentError, "only once"),
        (batches(labels=9), fec_fast.InputError, "not one of the model's 4 classes"),
        ([torch.zeros(2, 3, 8, 8)], fec_fast.InputError, "a pair of images"),
        (3, fec_fast.ArgumentError, "int"),
    ],
)
def test_bad_calibration_is_refused(calibration: Any, kind: type, words: str) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=words):
        fec_fast.prune(
            model, IMAGE, budget=Budget(params=0.5), ratios="sensitivity", calibration=calibration, recover=None
        )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_arguments_that_need_each_other() -> None:
    budget = Budget(params=0.5)
    with pytest.raises(fec_fast.RatioError, match="needs calibration"):
        fec_fast.prune(network(), IMAGE, budget=budget, ratios="sensitivity", recover=None)
    with pytest.raises(fec_fast.RatioError, match="nothing else does"):
        fec_fast.prune(network(), IMAGE, budget=budget, calibration=first_matters, recover=None)
    with pytest.raises(fec_fast.RatioError, match="at=0"):
        fec_fast.measure_sensitivity(network(), IMAGE, first_matters, at=(0,))
    measured = fec_fast.measure_sensitivity(network(), IMAGE, first_matters, at=(0.5,), ignore=("0",), progress=False)
    with pytest.raises(fec_fast.RatioError, match="add a budget"):
        fec_fast.prune(network(), IMAGE, ratios=measured, recover=None)
    with pytest.raises(fec_fast.LayerError, match="'0' was not measured"):
        fec_fast.prune(network(), IMAGE, budget=budget, ratios=measured, recover=None)
    with pytest.raises(fec_fast.PlanError, match="measured on a model of other names"):
        fec_fast.prune(network()[:5], IMAGE, budget=budget, ratios=measured, recover=None)


def test_a_model_whose_train_returns_nothing_is_measured() -> None:
    class Silent(nn.Sequential):
        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            super().train(mode)

    silent = Silent(*network())
    found, expected = (
        fec_fast.measure_sensitivity(model, IMAGE, first_matters, at=(0.5,), progress=False)
        for model in (silent, network())
    )
    assert found.values == expected.values

"""One call of ``prune`` looks at the model once: one walk, one backend, one trace; planning again measures nothing."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast import Budget
from fec_fast.graph.trace import trace_model
from fec_fast.pruning import unit_scores
from fec_fast.pruning.allocation import latency_budget, layer_times
from fec_fast.pruning.context import build_context
from fec_fast.scoring.backends.registry import resolve
from fec_fast.utils.model_index import ModelIndex
from fec_fast.utils.modules import modules_of, unwrap
from fec_fast.utils.timing import Timing

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class HardCodedWidth(nn.Module):
    """Reshapes to 16 channels whatever the second convolution makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.third, self.fc = nn.BatchNorm2d(16), nn.Conv2d(16, 32, 3, padding=1), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(self.first(x).relu())).relu()
        x = x.reshape(x.shape[0], 16, -1).reshape(x.shape[0], 16, *x.shape[2:])
        return self.fc(self.third(x).relu().mean((2, 3)))


def hard_coded() -> nn.Module:
    torch.manual_seed(0)
    return HardCodedWidth().eval()


def widths(model: nn.Module) -> tuple[int, ...]:
    return tuple(layer.weight.shape[0] for layer in (model.first, model.second, model.third))


def count_calls(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]) -> list[Any]:
    """Replaces a function wherever the package has imported it; the first argument of every call is appended."""
    arguments: list[Any] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        arguments.append(args[0])
        return function(*args, **kwargs)

    for name, module in list(sys.modules.items()):
        if name.startswith("fec_fast") and getattr(module, function.__name__, None) is function:
            monkeypatch.setattr(module, function.__name__, counted)
    return arguments


def made_up_times(monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[int, ...]], list[Any]]:
    """A machine that is faster the fewer parameters a network has: the networks and the layers that it measured."""
    networks: list[tuple[int, ...]] = []
    layers: list[Any] = []

    def time_model(index: ModelIndex, *_: Any) -> Timing:
        networks.append(widths(index.model))
        return Timing(1e-6 * sum(tensor.numel() for tensor in index.tensors.values()), 0.0)

    def time_layer(*layer: Any) -> Timing:
        layers.append(layer)
        return Timing(1e-6 * layer[1] * layer[2], 0.0)

    monkeypatch.setattr(latency_budget, "time_model", time_model)
    monkeypatch.setattr(layer_times, "time_layer", time_layer)
    return networks, layers


OPTIONS: dict[str, dict[str, Any]] = {
    "ratio": {"ratio": 0.5},
    "norms": {"ratio": 0.5, "criterion": "l1"},
    "entropy": {"budget": Budget(params=0.5)},
    "global": {"budget": Budget(macs=0.5), "ratios": "global", "criterion": "fec"},
    "memory": {"budget": Budget(memory=0.2), "ratios": "uniform"},
    "latency": {"budget": Budget(latency_ms=5.0)},
    "sensitivity": {"budget": Budget(params=0.5), "ratios": "sensitivity", "calibration": lambda _: 1.0},
    "reconstruction": {
        "budget": Budget(params=0.5),
        "ratios": "reconstruction",
        "criterion": "reconstruction",
        "calibration": IMAGE,
    },
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("training", [False, True])
def test_one_walk_one_unwrap_one_backend_one_trace(name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hard_coded().train(training)
    made_up_times(monkeypatch)
    walked, unwrapped = count_calls(monkeypatch, modules_of), count_calls(monkeypatch, unwrap)
    resolved, traced = count_calls(monkeypatch, resolve), count_calls(monkeypatch, trace_model)
    by_torch: list[nn.Module] = []
    named_modules = nn.Module.named_modules

    def counted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        by_torch.append(module)
        return named_modules(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "named_modules", counted)
    result = fec_fast.prune(model, IMAGE, **OPTIONS[name], recover=None)
    assert "model's code" in result.plan.pinned["second"]  # planned twice
    # By identity: the list holds every model, so that no identity is used twice. Copies are walked once at most too.
    walks = Counter(map(id, walked))
    assert walks[id(model)] == 1 and set(walks.values()) == {1}
    assert walks[id(result.model)] == 1
    assert sum(module is model for module in by_torch) == 0
    assert sum(module is model for module in unwrapped) == 1
    # A backend that is resolved already passes through `resolve` unchanged.
    assert sum(isinstance(backend, str) for backend in resolved) == len(traced) == 1


def test_a_sensitivity_is_measured_once_for_every_copy(capsys: pytest.CaptureFixture[str]) -> None:
    measured: list[tuple[int, ...]] = []

    def calibration(model: nn.Module) -> float:
        measured.append(widths(model))
        return 1 - 0.01 * (32 - widths(model)[2])

    model = hard_coded()
    result = fec_fast.prune(
        model, IMAGE, budget=Budget(params=0.4), ratios="sensitivity", calibration=calibration, round_to=2, recover=None
    )
    assert result.model.second.out_channels == 16 and "second" in result.plan.pinned
    # The model, and two sets at five shares: a trial run has found the third before anything is measured.
    assert len(set(measured)) == len(measured) == 1 + 2 * 5
    # The plan is the one that is made where the width is known beforehand.
    known = fec_fast.prune(
        model,
        IMAGE,
        budget=Budget(params=0.4),
        ratios="sensitivity",
        calibration=calibration,
        round_to=2,
        ignore=("second",),
        recover=None,
    )
    assert known.plan.keep == result.plan.keep


def test_a_calibration_set_is_checked_once() -> None:
    class Batches(list[Any]):
        iterations = 0

        def __iter__(self) -> Any:
            self.iterations += 1
            return super().__iter__()

    batches = Batches([(torch.randn(8, 3, 8, 8), torch.randint(4, (8,)))])
    meter = fec_fast.pruning.allocation.sensitivity.SensitivityMeter(batches)
    context = build_context(hard_coded(), IMAGE, "l1", None, "both", ["second"])
    first = meter.measure(context, at=(0.5,), progress=False)
    once = batches.iterations
    assert meter.measure(context, at=(0.5,), progress=False) == first
    assert batches.iterations == once


def test_a_latency_is_measured_once_for_every_network_and_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    networks, layers = made_up_times(monkeypatch)
    model = hard_coded()
    result = fec_fast.prune(model, IMAGE, budget=Budget(latency_ms=5.0), ratios="uniform", recover=None)
    assert result.model.second.out_channels == 16 and "second" in result.plan.pinned
    # A trial run has found the width before anything is measured.
    assert networks[0] == (16, 16, 32) and all(second == 16 for _, second, _ in networks)
    # Only the model and the network that was found are measured again, in turns, at the end.
    at_end = networks[-4:]
    assert at_end[0] == networks[0] and at_end[:2] == at_end[2:] and at_end[1] in networks[:-4]
    assert len(set(networks[:-4])) == len(networks) - 4
    assert len(set(layers)) == len(layers)


def test_scores_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = count_calls(monkeypatch, unit_scores.score_units)
    result = fec_fast.prune(hard_coded(), IMAGE, ratio=0.5, criterion="random", recover=None)
    assert "second" in result.plan.pinned and len(scored) == 1
    known = fec_fast.prune(hard_coded(), IMAGE, ratio=0.5, ignore=("second",), recover=None)
    again = fec_fast.prune(hard_coded(), IMAGE, ratio=0.5, recover=None)
    assert [record["scores"] for record in again.plan.sets] == [record["scores"] for record in known.plan.sets]
    assert again.plan.keep == known.plan.keep

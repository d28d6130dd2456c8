"""Latency budgets on a machine with invented times: forecast, measured, corrected, reported."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fec_fast
from fec_fast import Budget
from fec_fast.graph.counts import count
from fec_fast.graph.groups import couple_channels
from fec_fast.graph.size_model import SizeModel
from fec_fast.pruning.allocation import allocate, layer_times
from fec_fast.pruning.allocation import latency_budget as latency
from fec_fast.pruning.context import build_context
from fec_fast.utils.model_index import ModelIndex
from fec_fast.utils.timing import Timing, time_call
from fec_fast.vision import networks

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 48, 3), nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 48, 3, groups=4), nn.ReLU()]
    layers += [nn.Conv2d(48, 48, 3, groups=48), nn.ConvTranspose2d(48, 40, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(40, 10)).eval()


def made_up(monkeypatch: pytest.MonkeyPatch, half_width: float = 0.0) -> Callable[[nn.Module], float]:
    """A machine that takes 1 ns per multiply-accumulate, 1 us per module, and 2 ns for layers that are timed alone."""

    def seconds(model: nn.Module) -> float:
        return 1e-9 * count(model, IMAGE).macs + 1e-6 * len(list(model.modules()))

    def time_model(index: ModelIndex, inputs: Any, precision: float = 0.0, max_seconds: float = 0.0) -> Timing:
        return Timing(seconds(index.model), half_width * seconds(index.model))

    def layer(shape: Any, inputs: int, outputs: int, runtime: str) -> Timing:
        groups = shape.groups * outputs // shape.outputs if shape.whole_groups else shape.groups
        options = dict(shape.options)
        kernel = options.get("kernel_size", ())
        lost = 0 if options.get("transposed", True) else kernel[0] - 1  # rows and columns that are lost without padding
        pixels = float(np.prod([size - lost for size in shape.image[1:]]))
        return Timing(2e-9 * shape.image[0] * pixels * inputs * outputs * float(np.prod(kernel)) / groups, 0.0)

    monkeypatch.setattr(latency, "time_model", time_model)
    monkeypatch.setattr(latency, "fastest_call", lambda index, inputs, enough, limit: time_model(index, inputs).seconds)
    monkeypatch.setattr(layer_times, "time_layer", layer)
    return seconds


@pytest.mark.parametrize("policy", ["uniform", "entropy", "global"])
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_a_latency_is_met(
    policy: str, share: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = made_up(monkeypatch)
    model = network()
    target = 1e3 * share * seconds(model)
    result = fec_fast.prune(model, IMAGE, budget=Budget(latency_ms=target), ratios=policy, recover=None)
    assert 0.96 * target <= 1e3 * seconds(result.model) <= target  # one unit is up to 3 % of the time here
    assert any(f"budget latency_ms={target:g}" in note and "measured" in note for note in result.plan.notes)
    assert re.search(r"^latency: layers: (\d+) of \1$", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize("step", [8, 16])
def test_a_device_whose_times_rise_in_steps(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A width costs as much as the next multiple, as on GPUs: corrections of a smooth forecast overshoot both ways."""
    made_up(monkeypatch)
    torch.manual_seed(0)
    widths = [3, 128, 128, 128]
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)).eval()

    def seconds(net: Any) -> float:
        shapes = [module.weight.shape for module in net if isinstance(module, nn.Conv2d)]
        return 1e-9 * sum(math.prod(math.ceil(n / step) for n in shape[:2]) for shape in shapes)

    def time_model(index: ModelIndex, inputs: Any, precision: float = 0.0, max_seconds: float = 0.0) -> Timing:
        measured.append(seconds(index.model))
        return Timing(measured[-1], 0.0)

    measured: list[float] = []
    monkeypatch.setattr(latency, "time_model", time_model)
    monkeypatch.setattr(latency, "fastest_call", lambda index, inputs, enough, limit: seconds(index.model))
    for share in (0.75, 0.6, 0.45, 0.3):
        measured.clear()
        target = share * seconds(model)
        result = fec_fast.prune(model, IMAGE, budget=Budget(latency_ms=1e3 * target), ratios="uniform", recover=None)
        assert len(measured) <= 17  # the model, ten of the search, two of other widths, and four in turns at the end
        best = max(one for one in measured if one <= target)
        assert seconds(result.model) == best
        # Uniform: all three widths fall together, so every time that is possible is known.
        grid = [model[0].weight.shape[0] - gone for gone in range(128)]
        steps = {seconds([nn.Conv2d(a, b, 1) for a, b in ((3, n), (n, n), (n, n))]) for n in grid}
        assert best >= 0.97 * max(one for one in steps if one <= target), (share, best, target)
        if best < 0.98 * target:
            assert "no nearer network was found: the next one measured takes" in result.plan.notes[0]


@settings(max_examples=12)
@given(
    step=st.sampled_from([1, 4, 8]),
    overhead=st.floats(0.0, 0.3),
    prices=st.lists(st.floats(0.2, 2.0), min_size=5, max_size=5),
    share=st.floats(0.5, 0.9),
    policy=st.sampled_from(["uniform", "global"]),
)
def test_any_runtime_is_met_within_5_percent_and_never_slower_than_dense(
    step: int, overhead: float, prices: list[float], share: float, policy: str
) -> None:
    """A runtime whose cost is a function of the shapes alone: tiles of channels, a price per layer, a fixed part."""
    torch.manual_seed(0)
    widths = [3, 64, 64, 96, 96, 128]
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)).eval()

    def of_layers(net: Any) -> float:
        shapes = [module.weight.shape for module in net if isinstance(module, nn.Conv2d)]
        tiles = [math.prod(step * math.ceil(width / step) for width in shape[:2]) for shape in shapes]
        return 1e-9 * sum(price * number for price, number in zip(prices, tiles, strict=True))

    fixed = overhead * of_layers(model)

    def cost(net: Any) -> float:
        return fixed + of_layers(net)

    dense, target = cost(model), share * cost(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "deployed", lambda index, inputs, runtime: index)
        patch.setattr(allocate, "require_runtime", lambda runtime: None)
        patch.setattr(latency, "time_model", lambda index, *_: Timing(cost(index.model), 0.0))
        patch.setattr(latency, "fastest_call", lambda index, *_: cost(index.model))
        patch.setattr(latency, "LayerTables", OfSmoothLayers)
        budget = Budget.keep(latency=f"{1e3 * target!r} ms", runtime="onnxruntime")
        result = fec_fast.prune(
            model, IMAGE[:1], budget=budget, ratios=policy, criterion="l1", verify=False, recover=None
        )
    assert 0.95 * target <= cost(result.model) <= target * (1 + 1e-9) < dense
    assert result.plan.notes[0].startswith(f"budget latency_ms={1e3 * target:g}@onnxruntime: ")


class OfSmoothLayers:
    """Tables that know neither the price of a layer nor its tiles."""

    def __init__(self, runtime: str) -> None:
        pass

    def times_of(self, shape: Any) -> layer_times.LayerTimes:
        rows, columns = (np.unique([max(1, width // 8), width]) for width in (shape.inputs, shape.outputs))
        return layer_times.LayerTimes(rows, columns, 1e-9 * rows[:, None] * columns)


def test_the_widths_that_a_runtime_likes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A width that is no multiple of what the runtime likes costs 30 % more."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise([3, 128, 128, 128, 256])]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)).eval()

    def cost(net: Any, liked: int) -> float:
        shapes = [module.weight.shape[:2] for module in net if isinstance(module, nn.Conv2d)]
        return 1e-9 * sum(math.prod(s) * math.prod(1.3 if width % liked else 1.0 for width in s) for s in shapes)

    monkeypatch.setattr(latency, "LayerTables", OfSmoothLayers)
    for liked in (1, 8, 16):
        monkeypatch.setattr(latency, "time_model", lambda index, *_, n=liked: Timing(cost(index.model, n), 0.0))
        monkeypatch.setattr(latency, "fastest_call", lambda index, *_, n=liked: cost(index.model, n))
        target = 0.6 * cost(model, liked)
        result = fec_fast.prune(
            model, IMAGE[:1], budget=Budget(latency_ms=1e3 * target), ratios="uniform", recover=None
        )
        widths = [module.out_channels for module in result.model if isinstance(module, nn.Conv2d)]
        assert all(width % liked == 0 for width in widths), (liked, widths)
        assert 0.95 * target <= cost(result.model, liked) <= target
        assert ("were the fastest" in result.plan.notes[0]) == (liked > 1)


def test_a_dense_network_that_was_measured_while_the_machine_was_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = made_up(monkeypatch)
    model = network()
    busy = iter([3.0])

    def time_model(index: ModelIndex, *_: Any) -> Timing:
        return Timing(seconds(index.model) * next(busy, 1.0), 0.0)

    monkeypatch.setattr(latency, "time_model", time_model)
    with pytest.warns(fec_fast.FecWarning, match="busy .* medians of the dense network"):
        result = fec_fast.prune(model, IMAGE, budget=Budget(latency_ms=1e3 * 0.9 * seconds(model)), recover=None)
    assert seconds(result.model) < seconds(model)
    assert "in turns with the dense network" in result.plan.notes[0]
    # In turns, nothing that was found is faster than the dense network.
    at_end = Timing(1.0, 0.01), Timing(1.2, 0.01)
    monkeypatch.setattr(latency.LatencyMeasurements, "time_at_end", lambda *_: at_end)
    with pytest.raises(fec_fast.BudgetError, match="takes 1200 ms and the dense one 1000 ms, measured in turns"):
        fec_fast.prune(model, IMAGE, budget=Budget(latency_ms=1e3 * 0.9 * seconds(model)), recover=None)


def test_targets_that_are_out_of_reach_and_times_that_are_unsteady(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = made_up(monkeypatch)
    model = network()
    with pytest.raises(fec_fast.BudgetError, match="everything removed .* nearest that can be met"):
        fec_fast.prune(model, IMAGE, budget=Budget(latency_ms=1e3 * 0.001 * seconds(model)), recover=None)
    with monkeypatch.context() as patch:  # one call was as fast as that, but no network is on average
        patch.setattr(latency, "fastest_call", lambda *arguments: 0.0)
        words = "was not reached: the fastest network that was measured takes .* idle machine, or ask for Budget"
        with pytest.raises(fec_fast.BudgetError, match=words):
            fec_fast.prune(model, IMAGE, budget=Budget(latency_ms=1e3 * 0.001 * seconds(model)), recover=None)
    with pytest.warns(fec_fast.FecWarning, match=r"takes .* ms as it is, so nothing was removed"):
        result = fec_fast.prune(model, IMAGE, budget=Budget(latency_ms=2e3 * seconds(model)), recover=None)
    assert "that fast already" in result.plan.notes[0] and result.after == result.before
    made_up(monkeypatch, half_width=0.1)
    result = fec_fast.prune(model, IMAGE, budget=Budget(latency_ms=500 * seconds(model)), recover=None)
    assert "too unsteady to tell 2 %" in result.plan.notes[0]


def test_where_times_are_too_unsteady_to_aim_smaller_networks_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = made_up(monkeypatch)
    model = network()
    target, measured = 0.7 * seconds(model), []

    def time_model(index: ModelIndex, inputs: Any, precision: float = 0.0, max_seconds: float = 0.0) -> Timing:
        measured.append(seconds(index.model))
        slow = 1 < len(measured) <= 14  # the ten of the search and before them three of other widths miss
        return Timing(max(measured[-1], 1.01 * target) if slow else measured[-1], 0.0)

    monkeypatch.setattr(latency, "time_model", time_model)
    monkeypatch.setattr(latency.LatencyMeasurements, "time_at_end", lambda *_: (Timing(1.0, 0.0), Timing(0.5, 0.0)))
    with pytest.warns(fec_fast.FecWarning, match="ms, and 500 ms afterwards: the machine is unsteady; search again"):
        result = fec_fast.prune(
            model, IMAGE, budget=Budget(latency_ms=1e3 * target), ratios="uniform", verify=False, recover=None
        )
    assert seconds(result.model) <= target


def test_a_target_out_of_reach_is_reported_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a measurement that takes long")

    monkeypatch.setattr(latency, "time_model", measured)
    monkeypatch.setattr(layer_times, "time_layer", measured)
    with pytest.raises(fec_fast.BudgetError, match=r"Budget\(latency_ms=1e-06\) cannot be met"):
        fec_fast.prune(
            network(),
            IMAGE,
            budget=Budget(latency_ms=1e-6),
            ratios="sensitivity",
            calibration=lambda model: measured(),
            recover=None,
        )


def test_the_forecast_is_exact_where_widths_are_on_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch)
    model = network()
    context = build_context(model, IMAGE, "l1", None, "both", ())
    sizes = SizeModel(context.index, context.trace, context.coupling)
    forecast = latency.LatencyForecast(context, sizes, 1.0, latency.LatencyMeasurements())
    half = np.array([len(one.units) // 2 for one in context.coupling.sets])
    bare = forecast(half) - forecast._remainder * sizes.results(half).sum() / sizes.results(half * 0).sum()
    assert bare == pytest.approx(2e-9 * sizes.macs(half), rel=1e-9)
    both = forecast(np.stack([half, half * 0]))
    assert both == pytest.approx([float(forecast(half)), 1.0])


def test_a_real_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two of the widths, each timed briefly: nothing below depends on precision.
    monkeypatch.setattr(layer_times, "GRID", (0.5, 1.0))
    monkeypatch.setattr(layer_times, "time_call", lambda call, precision, max_seconds: time_call(call, 0.5, 0.01))
    model = networks.vgg_digits().eval()
    image = torch.randn(2, 1, 8, 8)
    found = latency.time_model(model, image, precision=0.5, max_seconds=0.5)
    assert found.seconds > 0 and found.half_width >= 0
    for network_, example in ((network(), IMAGE), (model, image)):  # the latter reads a single channel
        context = build_context(network_, example, "l1", None, "both", ())
        sizes = SizeModel(context.index, context.trace, couple_channels(context.trace))
        counts = np.zeros(len(context.coupling.sets))
        assert latency.LatencyForecast(context, sizes, 1.0, latency.LatencyMeasurements())(counts) == pytest.approx(1.0)


def test_a_slow_call_is_timed_often_enough_for_an_interval() -> None:
    """A block of torch's timer holds a single slow call, and one number has no spread."""
    calls = []

    def slow() -> None:
        calls.append(time.sleep((0.01, 0.02, 0.03)[len(calls) % 3]))

    found = time_call(slow, precision=0.5, max_seconds=0.05)
    assert len(calls) >= 6
    assert found.half_width > 0.001

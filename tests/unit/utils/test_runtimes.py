"""Networks in the runtimes of deployment: the same outputs, torch's threads, and errors that name a remedy."""

from __future__ import annotations

import shutil
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast import Budget
from fec_fast.graph.counts import count
from fec_fast.pruning.allocation import latency_budget, layer_times
from fec_fast.utils import runtimes, timing
from fec_fast.utils.onnx_model import layer_model, relative_difference
from fec_fast.utils.runtimes import COMPILED, ONNXRUNTIME, OPENVINO, RUNTIMES, TORCH, deployed
from helpers.optional import skip_without

IMAGE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
NEEDED = {TORCH: (), COMPILED: (), ONNXRUNTIME: ("onnxscript", "onnxruntime"), OPENVINO: ("onnxscript", "openvino")}


def need(runtime: str) -> None:
    skip_without(*NEEDED[runtime])
    if runtime == COMPILED and shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on CPUs")


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 4, 3)

    def forward(self, image: Tensor, shift: Tensor) -> dict[str, Tensor]:
        value = self.last(self.norm(self.first(image)).relu())
        return {"value": value + shift, "shift": shift * 2}


def in_training() -> nn.Module:
    torch.manual_seed(0)
    return TwoInputs().train()


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_computes_what_torch_does(runtime: str) -> None:
    need(runtime)
    model, shift = in_training(), torch.ones(1, 4, 1, 1)
    statistics = model.norm.running_mean.clone()
    inputs = (IMAGE, shift) if runtime == ONNXRUNTIME else {"shift": shift, "image": IMAGE}
    ready = deployed(model, inputs, runtime)
    assert model.training and model.norm.training and torch.equal(model.norm.running_mean, statistics)
    if runtime == TORCH:
        assert ready is model
        return
    with torch.no_grad():
        expected = list(model.eval()(IMAGE, shift).values())
    assert relative_difference(expected, ready()) < 1e-5
    assert timing.time_model(ready, inputs, 0.5, 0.01).seconds > 0


@pytest.mark.slow
def test_latency_in_a_runtime(brief_latency: None) -> None:
    runtime = ONNXRUNTIME
    need(runtime)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    result = fec_fast.prune(model, IMAGE, remove=0.5, recover=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so where this machine is busy
        latency = result.latency(model, IMAGE, min_run_time=0.01, runtime=runtime)
    assert latency.before > 0 and latency.after > 0 and latency.runtime == runtime
    assert f"on cpu in {runtime}, {torch.get_num_threads()} thread(s)" in str(latency)


@pytest.mark.slow
def test_a_budget_is_searched_in_a_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The real runtime for the whole path; only the clock is made up: 1 ns per multiply-accumulate."""
    runtime = ONNXRUNTIME
    need(runtime)
    monkeypatch.setenv(layer_times.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(layer_times, "GRID", (0.5, 1.0))
    monkeypatch.setattr(layer_times, "time_call", lambda call, *_: timing.Timing(float(call() is None) + 1.0, 0.0))
    monkeypatch.setattr(latency_budget, "_STEPS", ())
    made, time_layer = deployed, layer_times.time_layer

    def with_time(shape: Any, inputs: int, outputs: int, name: str) -> timing.Timing:
        assert name == runtime and time_layer(shape, inputs, outputs, name).seconds == 1.0  # it ran
        return timing.Timing(1e-9 * 9 * shape.image[0] * shape.image[1] ** 2 * inputs * outputs, 0.0)

    def with_cost(index: Any, inputs: Any, name: str) -> Any:
        ready = made(index, inputs, name)
        assert name == runtime and isinstance(ready, nn.Module)
        ready.cost = 1e-9 * count(index.model, IMAGE).macs
        return ready

    def time_model(ready: Any, *_: Any) -> timing.Timing:
        ready()
        return timing.Timing(ready.cost, 0.0)

    monkeypatch.setattr(layer_times, "time_layer", with_time)
    monkeypatch.setattr(latency_budget, "deployed", with_cost)
    monkeypatch.setattr(latency_budget, "time_model", time_model)
    monkeypatch.setattr(latency_budget, "fastest_call", lambda ready, *_: time_model(ready).seconds)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 3))
    target = 0.6e-6 * count(model, IMAGE).macs
    budget = Budget.keep(latency=f"{target!r} ms", runtime=runtime)
    result = fec_fast.prune(model, IMAGE, budget=budget, ratios="uniform", criterion="l1", recover=None)
    assert 0.95 * target <= 1e-6 * result.after.macs <= target
    assert len(list(tmp_path.iterdir())) == 3  # one table per layer


def test_absent_runtimes_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    result = fec_fast.prune(model, IMAGE, remove=0.5, recover=None)
    monkeypatch.setattr(torch, "__version__", "2.7.0")  # an older one is named first
    for runtime, package, extra in ((ONNXRUNTIME, "onnxruntime", "onnx"), (OPENVINO, "openvino", "openvino")):
        monkeypatch.setitem(sys.modules, package, None)
        command = rf"runtime='{runtime}' needs .*pip install 'fec_fast\[{extra}\]'"
        with pytest.raises(fec_fast.MissingExtraError, match=command):
            fec_fast.prune(model, IMAGE, budget=Budget.keep(latency="3 ms", runtime=runtime), recover=None)
        with pytest.raises(fec_fast.MissingExtraError, match=command):
            result.latency(model, IMAGE, runtime=runtime)


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(fec_fast.ArgumentError, match=r"runtime='onnx': give one of torch, .* nearest: 'onnxruntime'"):
        runtimes.check_runtime("onnx")


def test_a_runtime_of_cpus_refuses_a_model_elsewhere() -> None:
    with pytest.raises(fec_fast.ArgumentError, match=r"runtime='onnxruntime': the model is on meta.*model\.cpu\(\)"):
        deployed(nn.Conv2d(3, 4, 3, device="meta"), IMAGE, ONNXRUNTIME)


def test_what_a_runtime_computes_is_compared_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Conv2d(3, 4, 3)
    monkeypatch.setattr(runtimes, "exported", lambda *_: type("Proto", (), {"SerializeToString": lambda _: b""})())
    for wrong, error, words in (
        (lambda: [torch.zeros(2, 4, 10, 10)], fec_fast.FecError, "onnxruntime computes other outputs than torch"),
        (lambda: [torch.full((2, 4, 10, 10), float("nan"))], fec_fast.FecError, "computes other outputs"),
        (lambda: [], fec_fast.FecError, "computes other outputs"),
        (lambda: 1 / 0, fec_fast.InputError, "onnxruntime cannot run this network: ZeroDivisionError"),
    ):
        monkeypatch.setattr(runtimes, "onnx_call", lambda *_, wrong=wrong: wrong)
        with pytest.raises(error, match=words):
            deployed(model, IMAGE, ONNXRUNTIME)


@pytest.mark.parametrize("runtime", [ONNXRUNTIME, OPENVINO])
def test_single_layers_are_torchs(runtime: str) -> None:
    need(runtime)
    functions = torch.nn.functional
    common: dict[str, Any] = {"stride": (2, 1), "dilation": (1, 1), "groups": 2}
    source = torch.randn(2, 8, 7, 7)
    for padding in ((1, 0), "valid"):
        weight = torch.randn(6, 4, 3, 2)
        call = runtimes.layer_call(source, weight, {**common, "padding": padding, "transposed": False}, runtime)
        assert relative_difference([functions.conv2d(source, weight, padding=padding, **common)], call()) < 1e-5
    weight = torch.randn(8, 3, 3, 2)
    options = {**common, "padding": (1, 0), "output_padding": (1, 0)}
    call = runtimes.layer_call(source, weight, {**options, "transposed": True}, runtime)
    assert relative_difference([functions.conv_transpose2d(source, weight, **options)], call()) < 1e-5
    source, weight = torch.randn(2, 5, 8), torch.randn(3, 8)
    assert relative_difference([source @ weight.t()], runtimes.layer_call(source, weight, None, runtime)()) < 1e-5
    with pytest.raises(fec_fast.InputError, match=f"{runtime} cannot run a layer"):
        runtimes.layer_call(source.bfloat16(), weight.bfloat16(), None, runtime)


def test_padding_to_the_same_size_is_torchs() -> None:
    need(ONNXRUNTIME)
    source, weight = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 4, 4)
    options = {"stride": (1, 1), "padding": "same", "dilation": (1, 1), "groups": 1, "transposed": False}
    (found,) = runtimes.layer_call(source, weight, options, ONNXRUNTIME)()
    assert found.shape == (1, 3, 6, 6) and len(layer_model(source, weight, options)) > 100
    expected = torch.nn.functional.conv2d(source, weight, padding="same")
    assert relative_difference([expected], [found]) < 1e-5

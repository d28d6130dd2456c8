"""Counts by layer, their table, and the latency."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fec_fast
from fec_fast.report import Counts, LayerCount, comparison_table, count, measure_latency


class Net(nn.Module):
    """Has a weight of its own besides its layers', a layer that is called twice, and a shared parameter."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, width, 1, bias=False)
        self.weight = nn.Parameter(torch.randn(5, width))
        self.tied = nn.Linear(width, 5)
        self.tied.weight = self.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.mix(self.norm(self.conv(x))))
        return F.linear(x.mean((2, 3)), self.weight)


def test_counts_by_hand() -> None:
    counts = count(Net(), torch.randn(2, 3, 6, 6))
    pixels = 2 * 6 * 6
    expected = {
        "": LayerCount(5 * 4, 2 * 5 * 4),
        "conv": LayerCount(4 * 3 * 9 + 4, pixels * 4 * 27),
        "norm": LayerCount(8, 0),
        "mix": LayerCount(16, 2 * pixels * 16),
        "tied": LayerCount(5, 0),
    }
    assert counts.by_layer == expected
    assert counts.parameters == sum(layer.parameters for layer in expected.values())
    assert counts.macs == sum(layer.macs for layer in expected.values())


def test_known_network() -> None:
    models = pytest.importorskip("torchvision.models")
    counts = count(models.resnet18(weights=None), torch.randn(1, 3, 224, 224))
    assert counts.parameters == 11_689_512
    assert counts.macs == 1_814_073_344
    assert sum(layer.parameters for layer in counts.by_layer.values()) == counts.parameters
    assert sum(layer.macs for layer in counts.by_layer.values()) == counts.macs


def test_fused_attention_is_counted() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True).eval()
    assert torch.backends.mha.get_fastpath_enabled()
    counts = count(layer, torch.randn(1, 3, 8))
    projections = 3 * 8 * (3 * 8 + 8 + 16 + 16)
    attention = 2 * (2 * 3 * 3 * 4)
    assert counts.macs == projections + attention
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("measure", [count, lambda *args: measure_latency(*args, min_run_time=0.01)])
def test_model_is_left_as_it_was(measure: Any) -> None:
    net = Net().train()
    net.mix.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    measure(net, torch.randn(2, 3, 6, 6))
    assert net.training and net.norm.training and not net.mix.training
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert net.weight.grad is None


@pytest.mark.parametrize("measure", [count, measure_latency])
def test_wrong_example_inputs(measure: Any) -> None:
    with pytest.raises(fec_fast.InputError, match=r"float32 \[1, 7, 6, 6\]"):
        measure(Net(), torch.randn(1, 7, 6, 6))


def test_latency() -> None:
    net, example = Net(), torch.randn(1, 3, 6, 6)
    assert 0 < measure_latency(net, example, min_run_time=0.01) < 60
    with pytest.raises(fec_fast.ArgumentError, match="min_run_time=0"):
        measure_latency(net, example, min_run_time=0)


def test_comparison_table() -> None:
    before = Counts(300, 3000, {"a": LayerCount(100, 1000), "b": LayerCount(200, 2000)})
    after = Counts(150, 3000, {"a": LayerCount(50, 500), "b": LayerCount(100, 2000), "": LayerCount(0, 500)})
    rows = {line.split()[0]: line.split()[1:] for line in comparison_table(before, after).splitlines()}
    assert rows["a"] == ["100", "50", "-50.0", "%", "1,000", "500", "-50.0", "%"]
    assert rows["b"] == ["200", "100", "-50.0", "%", "2,000", "2,000", "="]
    assert rows["(model)"] == ["0", "0", "=", "0", "500", "new"]
    assert rows["total"] == ["300", "150", "-50.0", "%", "3,000", "3,000", "="]

"""Counts by layer, their table, and the latency."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fec_fast
from fec_fast.graph.counts import Counts, LayerCount, comparison_table, count
from fec_fast.utils.timing import Latency, compare_latency, measure_latency


class Net(nn.Module):
    """A parameter outside all layers, a layer that is called twice, and a shared parameter."""

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


@pytest.fixture(scope="module")
def narrowed() -> tuple[nn.Module, Tensor, fec_fast.PruneResult]:
    torch.manual_seed(0)
    # 32 channels in two groups of 16, and 12 outputs: 20 in two groups of 10, and 8, are kept.
    layers = [nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1, groups=2), nn.Conv2d(32, 12, 1), nn.Conv2d(12, 4, 1)]
    model, image = nn.Sequential(*layers).eval(), torch.randn(1, 3, 4, 4)
    return model, image, fec_fast.prune(model, image, ratio=0.4, recover=None)


def test_summary_notes_widths_that_hardware_is_slow_at(narrowed: Any) -> None:
    model, image, result = narrowed
    notes = [line for line in result.summary().splitlines() if "hardware" in line]
    assert len(notes) == 1
    _, _, listed = notes[0].partition("slow at: ")
    changes = ["32 to 20 outputs: 0, 1", "16 to 10 inputs per group: 1", "16 to 10 outputs per group: 1"]
    assert listed.split("; ") == changes
    rounded = fec_fast.prune(model, image, ratio=0.4, round_to=8, recover=None)
    assert rounded.model[0].out_channels == 32 and "hardware" not in rounded.summary()


def test_summary_notes_fewer_than_eight() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.ConvTranspose2d(12, 16, 2, groups=2), nn.Conv2d(16, 2, 1)).eval()
    lines = fec_fast.prune(model, torch.randn(1, 3, 4, 4), ratio=0.5, recover=None).summary().splitlines()
    assert lines[-2].endswith("slow at: 12 to 6 outputs: 0; 8 to 4 outputs per group: 1")
    assert lines[-1].startswith("proof: 1 output and 2 layers differ by at most")


def test_summary_shows_the_measured_latency(narrowed: Any) -> None:
    model, image, result = narrowed
    measured = result.latency(nn.DataParallel(model), image, min_run_time=0.01)
    assert measured.before > 0 and measured.after > 0
    assert measured.device == "cpu" and measured.threads == torch.get_num_threads()
    assert str(measured) in result.summary(measured).splitlines()
    assert "latency" not in result.summary()


def test_latency_as_text() -> None:
    words = str(Latency(before=0.25, after=0.1, device="cpu", threads=2))
    assert words == "latency: 250 ms before, 100 ms after (2.50 times as fast) on cpu, 2 thread(s)"


def test_latency_refuses_another_original_or_device(narrowed: Any) -> None:
    model, image, result = narrowed
    with pytest.raises(fec_fast.PlanError, match="already pruned"):
        result.latency(result.model, image)
    with pytest.raises(fec_fast.ArgumentError, match="min_run_time=-1"):
        result.latency(model, image, min_run_time=-1)
    with pytest.raises(fec_fast.ArgumentError, match="original is on meta, the pruned model on cpu"):
        compare_latency(nn.Conv2d(3, 3, 1, device="meta"), nn.Conv2d(3, 2, 1), image)

"""Input covariances against patches that torch unfolds, and their shrinkage against Ledoit and Wolf's formula."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fec_fast.recovery import input_covariance
from fec_fast.recovery.input_covariance import gather_input_covariances
from fec_fast.recovery.layer_calls import WeightWay
from fec_fast.utils.model_index import ModelIndex


def gathered(model: nn.Module, batches: list[Tensor], **slots: Tensor | None) -> dict:
    wanted = {}
    for name, value in slots.items():
        layer = model.get_submodule(name.lstrip("_"))
        way = WeightWay(f"{name.lstrip('_')}.weight", 1, getattr(layer, "groups", 1), tuple(layer.weight.shape))
        wanted[way] = value
    found = gather_input_covariances(ModelIndex.of(model), batches, wanted)
    return {way.weight: inputs for way, inputs in found.items()}


def patches(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """``[images, positions, taps * channels]``, taps first."""
    unfolded = nn.functional.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    return unfolded.unflatten(1, (-1, taps)).permute(0, 3, 2, 1).flatten(2).double()


def covariance_of(rows: Tensor) -> Tensor:
    return torch.cov(rows.flatten(0, -2).T, correction=0)


@pytest.mark.parametrize("stride", [1, 2])
def test_covariance_of_all_patches(stride: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, (3, 2), stride, (1, 0)))
    x = torch.randn(20, 3, 9, 8) + 3
    found = gathered(model, [x[:7], x[7:]], _2=None)["2.weight"]
    with torch.no_grad():
        hidden = model[:2](x)
    expected = covariance_of(patches(hidden, model[2]))
    assert torch.allclose(found.covariance[0], expected, rtol=1e-4, atol=1e-5 * float(expected.diagonal().mean()))
    # The weight that the columns are multiplied by gives the outputs' covariance.
    with torch.no_grad():
        outputs = model(x).permute(0, 2, 3, 1).double()
    through = found.weight[0].T @ found.covariance[0] @ found.weight[0]
    assert torch.allclose(through, covariance_of(outputs), rtol=1e-3, atol=1e-5)


def test_a_large_mean_costs_no_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2))
    x = torch.randn(500, 3) * 0.01 + 100
    found = gathered(model, [x], _0=None)["0.weight"].covariance[0]
    assert torch.allclose(found, covariance_of(x.double()), rtol=1e-3, atol=1e-8)


def test_groups_have_a_covariance_each() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 4, 2, groups=2))
    x = torch.randn(12, 6, 5, 5)
    found = gathered(model, [x], _0=None)["0.weight"]
    for group in range(2):
        half = nn.Conv2d(3, 2, 2)
        expected = covariance_of(patches(x[:, 3 * group : 3 * group + 3], half))
        assert torch.allclose(found.covariance[group], expected, rtol=1e-3, atol=1e-4)


def test_joined_columns_are_the_mean_over_their_slots() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 2))
    x = torch.randn(12, 3, 6, 6)
    slots = torch.arange(4 * 3).view(4, 3).T[None]  # the taps of each channel
    found = gathered(model, [x], _0=slots)["0.weight"]
    by_tap = patches(x, model[0]).unflatten(2, (4, 3)).flatten(0, 2)  # every tap is a row
    assert torch.allclose(found.covariance[0], covariance_of(by_tap), rtol=1e-3, atol=1e-4)
    assert found.weight.shape == (1, 3, 4 * 4)
    energy = float(model[0].weight.detach().double().square().sum())
    assert float(found.weight.square().sum()) == pytest.approx(energy)


def test_a_missing_slot_counts_as_zero() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    x = torch.randn(50, 3)
    found = gathered(model, [x], _0=torch.tensor([[[0, 1], [2, -1]]]))["0.weight"]
    rows = torch.cat([x[:, [0, 2]], torch.stack([x[:, 1], torch.zeros(50)], 1)]).double()
    assert torch.allclose(found.covariance[0], covariance_of(rows), rtol=1e-4, atol=1e-6)
    assert torch.equal(found.weight[0, 1], torch.cat([model[0].weight[:, 2], torch.zeros(2)]).double())


@pytest.mark.parametrize("images", [4, 40])
def test_shrinkage_is_ledoit_and_wolfs_with_images_as_the_sample(images: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 2))
    x = torch.randn(images, 3, 5, 5) * torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1)
    found = gathered(model, [x], _0=None)["0.weight"]
    rows = patches(x, model[0])
    rows = rows - rows.flatten(0, 1).mean(0)
    of_image = rows.mT @ rows / rows.shape[1]
    sample = of_image.mean(0)
    target = sample.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    noise = (of_image - sample).square().sum((1, 2)).mean() / images
    expected = min(1.0, float(noise / (sample - target).square().sum()))
    assert float(found.shrinkage) == pytest.approx(expected, rel=1e-3)


def test_one_image_is_shrunk_to_nothing_else_and_more_images_less() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 2))
    x = torch.randn(512, 8) * torch.arange(1.0, 9.0)
    shrinkages = [float(gathered(model, [x[:n]], _0=None)["0.weight"].shrinkage) for n in (1, 8, 64, 512)]
    assert shrinkages[0] == 1
    assert shrinkages == sorted(shrinkages, reverse=True) and shrinkages[-1] < 0.04


def test_sampled_rows_estimate_the_covariance_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    x = torch.randn(40, 3, 16, 16)
    whole = covariance_of(patches(x, model[0]))[None]
    monkeypatch.setattr(input_covariance, "_ROWS_PER_COLUMN", 0)
    found = [gathered(model, list(x.split(size)), _0=None)["0.weight"].covariance for size in (40, 8)]
    assert 1e-6 < float((found[0] - whole).square().sum() / whole.square().sum()) < 0.03
    assert torch.allclose(found[0], found[1], rtol=1e-3, atol=1e-4)  # the batch an image is in does not matter


def test_several_calls_of_one_weight_are_one_sample_and_an_unused_layer_none() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(30, 3)
    before = copy.deepcopy(model.state_dict())
    found = gathered(model, [x], layer=None, idle=None)
    assert set(found) == {"layer.weight"}
    with torch.no_grad():
        rows = torch.cat([x, model.layer(x)]).double()
    assert torch.allclose(found["layer.weight"].covariance[0], covariance_of(rows), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_autocast_of_the_model_costs_no_precision() -> None:
    class Mixed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    torch.manual_seed(0)
    x = torch.randn(500, 3) * 0.01 + 100
    found = gathered(Mixed(nn.Linear(3, 2)), [x], _0=None)["0.weight"].covariance[0]
    assert torch.allclose(found, covariance_of(x.double()), rtol=1e-3, atol=1e-8)


def test_the_ways_in_which_a_weight_is_used_have_rows_of_their_own() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 5, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv_transpose2d(self.layer(x), self.layer.weight, stride=2)

    torch.manual_seed(0)
    model, x = Tied(), torch.randn(12, 3, 6, 6)
    ways = [WeightWay("layer.weight", axis, 1, (5, 3, 2, 2)) for axis in (1, 0)]
    found = gather_input_covariances(ModelIndex.of(model), [x], dict.fromkeys(ways))
    assert torch.allclose(found[ways[0]].covariance[0], covariance_of(patches(x, model.layer)), rtol=1e-3, atol=1e-4)
    assert found[ways[1]].covariance.shape == (1, 4 * 5, 4 * 5) and found[ways[1]].weight.shape == (1, 4 * 5, 3)

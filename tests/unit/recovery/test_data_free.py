"""Data-free recovery: exact where the removed channels were not needed, all or nothing, and it says what it left."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast import Budget
from fec_fast.recovery.layer_calls import LayerCallMode
from fec_fast.recovery.layer_fits import LayerFits
from fec_fast.recovery.noise import noise_batches
from fec_fast.utils.errors import ArgumentError, InputError, WeightError
from helpers.duplicates import duplicate_channels, later_is_worse
from helpers.networks import chain
from helpers.states import assert_same_state, relative_error, state

NO_NORM = "no batch norm comes before it, so nothing is known of its inputs without images"


class Residual(nn.Module):
    """Two blocks on one stream, a concatenation, and a linear layer behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.branch, self.norm3 = nn.Conv2d(8, 6, 1, stride=2), nn.BatchNorm2d(6)
        self.down = nn.Conv2d(8, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(10 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (self.norm2(self.conv2(self.norm1(self.conv1(x)).relu_())) + x).relu()
        return self.head(torch.cat([self.norm3(self.branch(x)).relu(), self.down(x).sigmoid()], 1).flatten(1))


class Arguments(nn.Module):
    """Two positional arguments, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.shared = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.shared(self.norm(self.conv(x)).relu()) + self.shared(self.norm(self.conv(y)).relu())


STEM = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (chain(*STEM, nn.ReLU(inplace=True), nn.Conv2d(8, 6, 3)), (3, 6, 6)),
    "relu6, norm": (
        chain(*STEM, nn.ReLU6(), nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12), nn.SiLU(), nn.Conv2d(12, 5, 1)),
        (3, 6, 6),
    ),
    "depthwise": (
        chain(
            *STEM, nn.Hardswish(), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)
        ),
        (3, 6, 6),
    ),
    "linear": (
        chain(
            *STEM, nn.MaxPool2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6),
            nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3),
        ),
        (3, 8, 8),
    ),
    "1d": (chain(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 6, 3)), (3, 12)),
    "residual": (Residual, (3, 6, 6)),
}  # fmt: skip


def network(name: str, *, duplicates: bool = False) -> tuple[nn.Module, Tensor]:
    """A network with statistics of its own, and images."""
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    model, images = build().eval(), torch.randn(4, *shape)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    if duplicates:
        duplicate_channels(model, images)
    return model, images


def cut(model: nn.Module, images: Any) -> fec_fast.PruneResult:
    return fec_fast.prune(model, images, ratio=0.5, criterion=later_is_worse, sides="producer", recover=None)


def recover(model: nn.Module, result: fec_fast.PruneResult, images: Any, **options: Any) -> fec_fast.Compensation:
    return fec_fast.compensate(model, result.model, result.plan, example_inputs=images, progress=False, **options)


def error(model: nn.Module, pruned: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return relative_error(model(images), pruned(images))


@pytest.mark.parametrize("name", NETWORKS)
def test_without_its_duplicates_a_network_is_recovered_to_rounding(name: str) -> None:
    model, images = network(name, duplicates=True)
    result, before = cut(model, images), state(model)
    keys, as_pruned = list(result.model.state_dict()), error(model, result.model, images)
    done = recover(model, result, images, ridge=1e-9)
    assert as_pruned > 1e-3
    assert error(model, result.model, images) < 1e-6
    assert not done.left and all(layer.error < 1e-6 < layer.error_before for layer in done.layers)
    assert list(result.model.state_dict()) == keys
    assert_same_state(model, before)


def test_it_is_least_squares_where_the_statistics_are_those_of_the_noise() -> None:
    model, images = network("residual")
    noise = noise_batches(images)
    fec_fast.recalibrate(model, noise)
    result = cut(model, images)
    other = copy.deepcopy(result.model)
    done = recover(model, result, images)
    fec_fast.compensate(model, other, result.plan, noise, ridge=0.1, progress=False)
    for name, tensor in result.model.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], rtol=1e-3, atol=1e-3, msg=name)
    assert done.method == "data-free" and done.images == 0
    assert done.note == "recovered data-free, on noise: 5 layers changed" in str(done)


@pytest.mark.parametrize("name", NETWORKS)
def test_images_that_were_not_used_profit(name: str) -> None:
    """Smooth images that the batch norms' statistics are of; of the example only the shape is looked at."""
    model, images = network(name)
    coarse = torch.rand(256, 3, *[3] * (images.dim() - 2)).square()
    images = nn.functional.interpolate(coarse, images.shape[2:], mode="linear" if images.dim() == 3 else "bilinear")
    fec_fast.recalibrate(model, images.split(64))
    result = cut(model, images[:2])
    as_pruned = error(model, result.model, images)
    recover(model, result, torch.full_like(images[:2], 7.0))
    assert error(model, result.model, images) < 0.95 * as_pruned


@pytest.mark.parametrize("name", ["relu6, norm", "residual"])
def test_nothing_removed_changes_nothing(name: str) -> None:
    model, images = network(name)
    with pytest.warns(UserWarning, match="nothing was pruned"):
        result = fec_fast.prune(model, images, ratio=0.001, recover=None)
    before = state(result.model)
    done = recover(model, result, images)
    assert not done.layers and not done.left
    assert_same_state(result.model, before)


def test_layers_in_front_of_the_first_batch_norm_are_left() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)
    ).eval()
    images = torch.randn(2, 3, 6, 6)
    result = cut(model, images)
    before = state(result.model)
    done = recover(model, result, images)
    assert dict(done.left) == {"2": NO_NORM}
    assert [layer.layer for layer in done.layers] == ["5"]
    assert torch.equal(result.model[2].weight, before["2.weight"])
    assert done.note.endswith("1 layer changed; 1 left as it was")


class BranchWithoutNorm(nn.Module):
    """Two branches; the one that is called last has no batch norm, but a part of the sum has."""

    def __init__(self) -> None:
        super().__init__()
        self.normal, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)
        self.bare, self.last, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.new_empty(len(x), 6, 4, 4)
        parts[:] = self.second(self.norm(self.normal(x)).relu())
        return self.head((self.last(self.bare(x).relu_()) + parts).relu())


def test_a_branch_without_a_batch_norm_is_left_wherever_it_is_called() -> None:
    torch.manual_seed(0)
    model = BranchWithoutNorm().eval()
    result = cut(model, torch.randn(2, 3, 6, 6))
    done = recover(model, result, torch.randn(2, 3, 6, 6))
    assert dict(done.left) == {"bare": NO_NORM, "last": NO_NORM}
    assert [layer.layer for layer in done.layers] == ["second", "head"]


@pytest.mark.filterwarnings("ignore:input's size at dim=1")
@pytest.mark.parametrize("norm", [nn.Identity(), nn.InstanceNorm2d(8)])
def test_without_batch_norms_nothing_is_guessed(norm: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), copy.deepcopy(norm), nn.ReLU(), nn.Conv2d(8, 6, 3)).eval()
    images = torch.randn(2, 3, 6, 6)
    result = fec_fast.prune(model, images, ratio=0.5, recover=None)
    before = state(result.model)
    with pytest.warns(UserWarning, match="nothing was recovered: 1 layer could not be fitted, such as '3': no"):
        done = recover(model, result, images)
    assert dict(done.left) == {"3": NO_NORM} and not done.layers
    assert done.note == "not recovered data-free, on noise: 0 layers changed; 1 left as it was"
    assert_same_state(result.model, before)


def test_several_arguments_and_calls() -> None:
    torch.manual_seed(0)
    model, images = Arguments().eval(), (torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6))
    result = cut(model, images)
    done = recover(model, result, images)
    assert [layer.layer for layer in done.layers] == ["shared"] and dict(done.left) == {"conv": NO_NORM}


def test_prune_recovers_without_images_and_says_so() -> None:
    model, images = network("residual")
    result = fec_fast.prune(model, images, ratio=0.5, recover="data-free")
    assert result.recovery is not None and result.recovery.method == "data-free"
    assert result.recovery.note in result.plan.notes
    assert result.recovery.note in result.summary()
    plain = fec_fast.prune(model, images, ratio=0.5, criterion="reconstruction", calibration="data-free", recover=None)
    recover(model, plain, images)
    assert_same_state(result.model, plain.model.state_dict())


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("step", [0, 3])
def test_an_exception_at_any_step_leaves_the_models_as_they_were(
    step: int, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = network("residual")
    result = cut(model, images)
    original, before, steps = state(model), state(result.model), iter(range(100))
    write = LayerFits._write

    def failing(self: LayerFits, tensor: Tensor, value: Tensor) -> None:
        if next(steps) == step:
            raise kind("stop")
        write(self, tensor, value)

    monkeypatch.setattr(LayerFits, "_write", failing)
    with pytest.raises(kind, match="stop"):
        recover(model, result, images)
    assert_same_state(result.model, before)
    assert_same_state(model, original)


def test_modes_and_the_random_state_are_left_alone() -> None:
    model, images = network("residual")
    result = cut(model, images)
    model.train()
    result.model.train()
    state, modes = torch.get_rng_state(), [module.training for module in result.model.modules()]
    recover(model, result, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in result.model.modules()] == modes


@pytest.mark.parametrize("name", ["3.weight", "1.running_var"])
def test_values_that_are_not_finite_are_refused(name: str) -> None:
    model, images = network("relu")
    result = cut(model, images)
    with torch.no_grad():
        model.state_dict()[name][0] = float("nan")
    before = state(result.model)
    with pytest.raises(WeightError, match=f"{name} has NaN or infinite values"):
        recover(model, result, images)
    assert_same_state(result.model, before)


def test_without_images_the_example_is_needed_and_must_fit() -> None:
    model, images = network("relu")
    result = cut(model, images)
    with pytest.raises(ArgumentError, match="give images, or example_inputs="):
        fec_fast.compensate(model, result.model, result.plan)
    with pytest.raises(InputError, match="cannot be run"):
        recover(model, result, torch.randn(2, 4, 6, 6))


def test_the_copy_of_a_model_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor's copy is called with a memo that grows: to look through it takes longer than all else."""
    watched: list[str] = []
    plain = LayerCallMode.__torch_function__

    def noted(self: Any, function: Any, *arguments: Any) -> Any:
        watched.append(getattr(function, "__name__", ""))
        return plain(self, function, *arguments)

    monkeypatch.setattr(LayerCallMode, "__torch_function__", noted)
    torch.manual_seed(0)
    fec_fast.prune(Residual().eval(), torch.randn(1, 3, 6, 6), budget=Budget.remove(macs=0.3), recover=None)
    assert "conv2d" in watched and "__deepcopy__" not in watched

"""Batch norm re-estimated: plain averages over the images, and nothing else changed."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import fec_fast


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=0.3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 4, 1)]
    return nn.Sequential(*layers, nn.BatchNorm2d(4))


IMAGES = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("labelled", [False, True])
def test_statistics_are_averages_over_the_images(labelled: bool) -> None:
    model = network()
    parts = IMAGES.split(16)  # the last batch, of 8, has half the weight
    fec_fast.recalibrate(model, [(part, None) for part in parts] if labelled else list(parts))
    with torch.no_grad():
        outputs = [model[0](part) for part in parts]
    share = torch.tensor([len(part) / len(IMAGES) for part in parts])
    means = torch.stack([output.mean((0, 2, 3)) for output in outputs])
    variances = torch.stack([output.var((0, 2, 3)) for output in outputs])
    assert torch.allclose(model[1].running_mean, share @ means, atol=1e-6)
    assert torch.allclose(model[1].running_var, share @ variances, atol=1e-6)
    assert not torch.equal(model[5].running_mean, torch.zeros(4))


def test_nothing_else_changes() -> None:
    model = network().train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    fec_fast.recalibrate(nn.DataParallel(model), [IMAGES])
    assert [module.training for module in model.modules()] == modes
    assert (model[1].momentum, model[5].momentum) == (0.3, 0.1)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
    assert torch.equal(torch.random.get_rng_state(), state)  # dropout was off


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        ([], "empty"),
        ([IMAGES, "no images"], "must be images"),
        ([IMAGES, IMAGES[:, :2]], r"float32 \[40, 2, 6, 6\]"),
        ([IMAGES, IMAGES * float("nan")], "'1' NaN or infinite"),
    ],
)
def test_bad_data_leaves_the_model_as_it_was(loader: Any, words: str) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(fec_fast.InputError, match=words):
        fec_fast.recalibrate(model, loader)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training and model[1].momentum == 0.3


def test_a_warning_reports_a_model_without_batch_norm() -> None:
    with pytest.warns(UserWarning, match="Conv2d has no batch norm"):
        fec_fast.recalibrate(nn.Conv2d(3, 2, 1), [IMAGES])
    with pytest.raises(fec_fast.ArgumentError, match="str"):
        fec_fast.recalibrate("model", [IMAGES])  # type: ignore[arg-type]


def test_a_pruned_network_recovers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 4, 1, bias=False), nn.BatchNorm2d(4)).eval()
    fec_fast.recalibrate(model, [IMAGES])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned = fec_fast.prune(model, IMAGES, ratio=0.7, criterion="l1", recover=None).model
    off = pruned(IMAGES).var((0, 2, 3))
    fec_fast.recalibrate(pruned, [IMAGES])
    assert torch.allclose(pruned(IMAGES).var((0, 2, 3)), torch.ones(4), atol=0.02)
    assert (off - 1).abs().max() > 0.1


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_parts_are_not_compiled_anew(in_place: bool) -> None:
    compilations, runs = [], []

    def backend(graph: Any, inputs: Any) -> Any:
        compilations.append(len(inputs))

        def run(*arguments: Any) -> Any:
            runs.append(None)
            return graph(*arguments)

        return run

    part = network()
    if in_place:
        part.compile(backend=backend)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), part if in_place else torch.compile(part, backend=backend)).eval()
    with torch.no_grad():
        model(IMAGES)
        assert len(compilations) == 1
        fec_fast.recalibrate(model, IMAGES.split(4))  # the momentum is another one for every batch
        assert len(compilations) == 1
        runs.clear()
        model(IMAGES)
    assert runs


@pytest.mark.parametrize("loader", [IMAGES, list(IMAGES.split(1)), list(IMAGES[:33].split(32))])
def test_a_tensor_of_images_and_single_images_are_read_in_batches(loader: Any) -> None:
    # Behind the pooling a single image has one value, whose variance batch norm refuses.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4))
    fec_fast.recalibrate(model, loader)
    read = torch.cat([IMAGES[:33], IMAGES[:1]]) if len(loader) == 2 else IMAGES
    with torch.no_grad():
        assert torch.allclose(model[3].running_mean, model[:3](read).mean(0), atol=1e-6)


def test_a_loader_may_use_its_memory_again() -> None:
    def reused() -> Any:
        buffer = torch.empty(8, *IMAGES.shape[1:])
        for number in range(4):
            yield buffer.copy_(IMAGES[:8] + number)
        yield buffer[:1].copy_(IMAGES[:1] + 4)

    model, expected = network(), network()
    fec_fast.recalibrate(model, reused())
    fec_fast.recalibrate(
        expected, [*(IMAGES[:8] + number for number in range(4)), torch.cat([IMAGES[:1] + 3, IMAGES[:1] + 4])]
    )
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)

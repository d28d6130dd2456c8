"""Calibration images: every form that loaders yield, joined to batches of a useful size, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fec_fast
from fec_fast.recovery.calibration import calibration_batches, count_images, image_seeds, inputs_from
from fec_fast.utils.errors import ArgumentError, InputError
from helpers.networks import chain

IMAGES = torch.randn(100, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.zeros(100, dtype=torch.int64)
MODEL = nn.Identity()

FORMS: dict[str, Any] = {
    "a tensor": IMAGES,
    "batches": list(IMAGES.split(7)),
    "a loader of images and labels": DataLoader(TensorDataset(IMAGES, LABELS), batch_size=9),
    "dictionaries": [{"x": part, "y": part[:, :1]} for part in IMAGES.split(7)],
    "positional arguments": [((part, part[:, 0]), None) for part in IMAGES.split(7)],
    "lists of images": [(list(part), [{}] * len(part)) for part in IMAGES.split(7)],
}


def first_tensors(inputs: Any) -> Tensor:
    if isinstance(inputs, list):
        return torch.stack(inputs)
    if isinstance(inputs, dict):
        return inputs["x"]
    return inputs[0] if isinstance(inputs, tuple) else inputs


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images_in_batches_of_32(form: str) -> None:
    batches = calibration_batches(FORMS[form], 1000, MODEL)
    assert [count_images(inputs) for inputs in batches] == [32, 32, 32, 4]
    assert torch.equal(torch.cat([first_tensors(inputs) for inputs in batches]), IMAGES)


@pytest.mark.parametrize("form", FORMS)
def test_no_more_images_are_read_than_wanted(form: str) -> None:
    batches = calibration_batches(FORMS[form], 40, MODEL)
    assert [count_images(inputs) for inputs in batches] == [32, 8]


def test_images_of_different_sizes_stay_apart() -> None:
    sizes = [(8, 4), (8, 4), (2, 6), (8, 4)]
    batches = calibration_batches([torch.zeros(number, 3, size, size) for number, size in sizes], 1000, MODEL)
    assert [tuple(inputs.shape) for inputs in batches] == [(16, 3, 4, 4), (2, 3, 6, 6), (8, 3, 4, 4)]


def test_there_are_at_most_64_batches_of_images_that_can_be_joined() -> None:
    assert len(calibration_batches(torch.zeros(4096, 1, 2, 2), 4096, MODEL)) == 64


def test_seeds_follow_the_images() -> None:
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    assert torch.equal(image_seeds(IMAGES)[order], image_seeds(IMAGES[order]))
    assert len(set(image_seeds(IMAGES).tolist())) == 100
    assert torch.equal(image_seeds(list(IMAGES)), image_seeds(IMAGES))
    assert torch.equal(image_seeds({"x": IMAGES}), image_seeds(IMAGES))


def not_finite() -> list[Tensor]:
    images = IMAGES.clone()
    images[50, 0, 0, 0] = float("nan")
    return list(images.split(7))


@pytest.mark.parametrize(
    ("calibration", "error", "message"),
    [
        ([], InputError, "no images"),
        ([torch.zeros(0, 3, 4, 4)], InputError, "a batch has no images"),
        ([torch.zeros(3)], InputError, r"float32 \[3\]"),
        ([("a", "b")], InputError, "a batch must be images"),
        ([({}, 1)], InputError, "a batch must be images"),
        (not_finite(), InputError, "number 49 contains NaN"),
        ("imagefolder:x", ArgumentError, "expected a loader"),
        ({"x": IMAGES}, ArgumentError, "expected a loader"),
        (3, ArgumentError, "expected a loader"),
    ],
)
def test_what_holds_no_images_is_refused(calibration: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        calibration_batches(calibration, 1000, MODEL)


def test_an_exception_of_the_loader_is_not_caught() -> None:
    def loader() -> Iterator[Tensor]:
        yield IMAGES
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        calibration_batches(loader(), 1000, MODEL)


class Detector(nn.Module):
    """Takes a list of images, as torchvision's detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, images: list[Tensor]) -> Tensor:
        if not isinstance(images, list):
            raise TypeError("expected a list of images")
        return self.conv2(self.norm(self.conv1(torch.stack(images))).relu())


SIGNALS = torch.randn(64, 2, 16, generator=torch.Generator().manual_seed(1))
OF_SEQUENCES = chain(nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 3, 1))
OF_THREE_AXES: dict[str, tuple[Any, Any]] = {
    "sequences alone": (OF_SEQUENCES, list(DataLoader(TensorDataset(SIGNALS), batch_size=16))),
    "sequences and targets that are sequences": (
        OF_SEQUENCES,
        list(DataLoader(TensorDataset(SIGNALS, SIGNALS), batch_size=16)),
    ),
    "lists of images": (Detector, [list(part) for part in torch.randn(8, 4, 3, 8, 8)]),
}


@pytest.mark.parametrize("case", OF_THREE_AXES)
def test_lists_of_tensors_of_three_axes_are_what_the_model_takes(case: str) -> None:
    network, loader = OF_THREE_AXES[case]
    model = network().eval()
    example = loader[0] if network is Detector else SIGNALS[:1]
    fec_fast.recalibrate(model, loader)
    result = fec_fast.prune(model, example, ratio=0.5, recover=loader)
    assert result.recovery is not None and result.recovery.layers
    pruned = fec_fast.prune(model, example, ratio=0.5, criterion="reconstruction", calibration=loader, recover=None)
    assert fec_fast.compensate(model, pruned.model, pruned.plan, loader, progress=False).layers


@pytest.mark.parametrize("key", ["image", "img", "pixel_values"])
def test_a_dictionary_needs_no_labels(key: str) -> None:
    images = torch.randn(4, 3, 8, 8)
    for batch in ({key: images}, {key: images, "y": torch.zeros(4)}):
        (inputs,) = inputs_from([batch], nn.Conv2d(3, 4, 3))
        assert inputs is images


def test_a_dictionary_of_keyword_arguments_stays_one() -> None:
    class OfTransformers(nn.Module):
        def forward(self, pixel_values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            return pixel_values

    class OfAnything(nn.Module):
        def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
            return inputs["pixel_values"]

    batch = {"pixel_values": torch.randn(4, 3, 8, 8), "mask": torch.ones(4)}
    for model in (OfTransformers(), OfAnything()):
        (inputs,) = inputs_from([batch], model)
        assert inputs is batch

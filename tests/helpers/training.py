"""What tests of training share: small classifiers and their images, and held-out data that interrupts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fec_fast
from fec_fast.training.history import Epoch


def dot_images(count: int = 48, classes: int = 3) -> TensorDataset:
    """Noisy images of one channel and 6x6 pixels, in which a bright pixel stands where the label says."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(count) % classes
    images = torch.randn(count, 1, 6, 6, generator=generator) * 0.3
    images[torch.arange(count), 0, labels % 6, labels // 6 + labels % 6] += 3.0
    return TensorDataset(images, labels)


def dot_loader(batch_size: int = 16, shuffle: bool = True, count: int = 48, **options: Any) -> DataLoader[Any]:
    return DataLoader(dot_images(count), batch_size=batch_size, shuffle=shuffle, **options)


def classifier(classes: int = 3, width: int = 8) -> nn.Sequential:
    """A convolution, batch norm and a linear layer."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width * 36, classes))


def dropout_classifier(classes: int = 3, dropout: float = 0.2) -> nn.Sequential:
    """The same with dropout, so that a training depends on its random numbers."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(8 * 36, classes))


def normless_classifier() -> nn.Sequential:
    """The same without batch norm: an image's gradient does not depend on the others of its batch."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def train(model: nn.Module, **options: Any) -> fec_fast.FinetuneResult:
    """Fine-tunes for two epochs on :func:`dot_loader`, unless the options say otherwise."""
    loader = options.pop("loader", None) or dot_loader()
    return fec_fast.finetune(model, loader, **{"epochs": 2, "progress": False, **options})


def without_times(history: list[Epoch]) -> list[dict[str, Any]]:
    """Returns a history without its wall-clock times."""
    return [{key: value for key, value in asdict(row).items() if key != "seconds"} for row in history]


class InterruptedLoader:
    """Held-out data that raises KeyboardInterrupt once it was read to the end ``after`` times."""

    def __init__(self, loader: DataLoader[Any], after: int) -> None:
        self.loader, self.left = loader, after

    def __iter__(self) -> Iterator[Any]:
        if self.left == 0:
            raise KeyboardInterrupt
        yield from self.loader
        self.left -= 1

"""What the reader of a page has and a test has not: trained weights, data, hours. Small things take their places."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fec_fast

Namespace = dict[str, Any]
StandIn = Callable[[Namespace, Path, pytest.MonkeyPatch], None]


def trained_resnet(namespace: Namespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small residual network in place of torchvision's with its weights, and loaders of a few images."""
    import torchvision
    from torchvision.models.resnet import BasicBlock, ResNet

    monkeypatch.setattr(torchvision.models, "resnet34", lambda weights=None: ResNet(BasicBlock, [1, 1, 1, 1]))
    images, labels = torch.randn(8, 3, 64, 64), torch.randint(1000, (8,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=4)
    namespace.update(train_loader=loader, val_loader=loader)
    short_training(namespace, folder, monkeypatch)


def blood_cells(namespace: Namespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rectangles of two colours in place of cells, in the archive that the page names."""
    import shutil

    from helpers.detection import rectangles

    root = rectangles(folder / "rectangles")
    shutil.make_archive(str(folder / "bccd-voc"), "zip", root)
    short_training(namespace, folder, monkeypatch)


def own_boxes(namespace: Namespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rectangles of two colours in place of the reader's images with boxes."""
    from helpers.detection import rectangles

    rectangles(folder / "my-images")
    short_training(namespace, folder, monkeypatch)


def own_yolo(namespace: Namespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights in place of trained ones, drawn images in place of cells, small ones, and one epoch."""
    from helpers.yolo_data import without_network, write_boxes

    without_network()
    from ultralytics import YOLO
    from ultralytics.engine.model import Model

    from fec_fast.integrations import ultralytics as integration

    write_boxes(folder / "cells", classes=80)
    YOLO("yolo11n.yaml").save(str(folder / "yolo11n.pt"))
    train, prune = Model.train, integration.prune
    monkeypatch.setattr(integration, "prune", lambda yolo, **options: prune(yolo, **{**options, "imgsz": 64}))
    short = {"epochs": 1, "imgsz": 64, "batch": 5, "workers": 0, "device": "cpu", "plots": False}
    monkeypatch.setattr(Model, "train", lambda self, *args, **kwargs: train(self, *args, **{**kwargs, **short}))


def few_digits(namespace: Namespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 of each digit in place of all: what the pages print of accuracies is not compared."""
    monkeypatch.setattr(fec_fast.data, "load", functools.partial(fec_fast.data.load, limit=40))


def short_training(namespace: Namespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch in place of many."""
    finetune = fec_fast.finetune

    @functools.wraps(finetune)
    def one_epoch(*args: Any, **kwargs: Any) -> Any:
        return finetune(*args, **{**kwargs, "epochs": 1, "progress": False})

    monkeypatch.setattr(fec_fast, "finetune", one_epoch, raising=False)

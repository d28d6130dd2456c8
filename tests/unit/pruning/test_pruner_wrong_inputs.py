"""Wrong inputs of people who are new: the error says what was given and what to give in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import fec_fast
from fec_fast import Budget

HALF = Budget.remove(macs=0.5)
IMAGES = [torch.randn(64, 3, 12, 12) for _ in range(2)]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 10)).eval()


EXAMPLE = torch.randn(1, 3, 12, 12)


def prune(**options: Any) -> object:
    return fec_fast.prune(network(), options.pop("example", EXAMPLE), **{"budget": HALF, "recover": None, **options})


def of_dtype(dtype: torch.dtype) -> list[torch.Tensor]:
    return [images.to(dtype) for images in IMAGES]


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (lambda: prune(example=EXAMPLE.half()), r"the weights are float32: give tensors.to\(torch.float32\)"),
        (lambda: prune(example=EXAMPLE.double()), r"the weights are float32: give tensors.to\(torch.float32\)"),
        (lambda: prune(recover=of_dtype(torch.float64)), r"on the images .*: give tensors.to\(torch.float32\)"),
        (lambda: prune(recover=of_dtype(torch.uint8)), "bytes are scaled and normalised as in training"),
        (lambda: prune(example=None), "the example inputs: None was given: give a tensor"),
        (lambda: prune(example="image"), r"\(str without a tensor\): TypeError: [^\n]*$"),
        (lambda: prune(recover=torch.zeros(0, 3, 12, 12)), r"a batch has no images: float32 \[0, 3, 12, 12\]"),
        (lambda: prune(recover=[images.numpy() for images in IMAGES]), r"not ndarray without a tensor \(NumPy"),
        (
            lambda: prune(recover=[{"photo": images} for images in IMAGES]),
            "a dictionary holds the model's keyword arguments, or the images under 'image'",
        ),
        (lambda: prune(recover=TensorDataset(IMAGES[0])), r"DataLoader\(dataset, batch_size=64\)"),
        (lambda: prune(recover="images.zip"), r"fec_fast.data.load\('imagefolder:PATH'\)\[0\]"),
        (lambda: prune(budget=0.5), r"such as Budget.remove\(params=0.7\)"),
        (lambda: prune(budget=None, remove={"conv9": 0.5}), r"remove= or ratios=: no layer 'conv9'"),
        (lambda: prune(budget=None, remove={"6": 0.5}), r"remove= or ratios=: '6' cannot be pruned"),
        (lambda: prune(ignore=[nn.Conv2d(3, 8, 3)]), r"as model.named_modules\(\) has them"),
        (lambda: prune(round_to=1 << 60), r"at least 1, and at most 2\*\*53"),
        (lambda: prune(round_to=0), "at least 1$"),
        (lambda: Budget.remove(macs="50%"), r"Budget.remove\(macs='50%'\): give a share as a number, such as 0.5$"),
        (lambda: Budget.remove(macs="0.3"), "such as 0.3$"),
        (lambda: Budget.remove(macs="1.2G"), r"such as 0.5. Budget.keep\(macs='1.2G'\) is what may be left"),
        (lambda: Budget.remove(macs="half"), "such as 0.5$"),
        (lambda: Budget.keep(macs="30%"), "write a share as a number, not as a text, such as 0.3"),
        (lambda: Budget.keep(macs="0.3"), "write a share as a number, not as a text, such as 0.3"),
        (lambda: fec_fast.evaluate(network(), [(IMAGES[0], ["cat"] * 64)]), r"12, 12\], list without a tensor"),
        (lambda: fec_fast.evaluate(prune(), [(IMAGES[0], IMAGES[0])]), "got a PruneResult; give its .model"),
        (lambda: fec_fast.export_onnx(prune(), EXAMPLE, "x.onnx"), "got a PruneResult; give its .model"),
        (lambda: fec_fast.couplings(nn.Conv2d, EXAMPLE), "got a type, the class Conv2d: give an instance"),
    ],
)
def test_the_error_says_what_to_give(call: Callable[[], object], shown: str) -> None:
    with pytest.raises(fec_fast.FecError, match=shown):
        call()


def test_integers_may_be_meant() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.layer = nn.Embedding(10, 4), nn.Conv2d(4, 8, 3)

        def forward(self, numbers: torch.Tensor) -> torch.Tensor:
            raise ValueError("wrong sentence")

    with pytest.raises(fec_fast.InputError, match=r"wrong sentence \(\S+:\d+\)$"):
        fec_fast.couplings(Words(), torch.zeros(1, 3, dtype=torch.int64))


def test_a_file_is_no_checkpoint_folder(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"weights")
    with pytest.raises(fec_fast.CheckpointError, match=r"model.pth is a file; a checkpoint is a folder"):
        fec_fast.load(network(), tmp_path / "model.pth")


def test_an_unknown_name_of_the_package_names_the_nearest() -> None:
    with pytest.raises(AttributeError, match="no attribute 'scoremodel'; nearest: 'score_model'"):
        fec_fast.scoremodel  # noqa: B018
    assert not hasattr(fec_fast, "_ipython_display_")

"""Transforms of images for classification."""

import pytest
import torch

from fec_fast.vision.transforms import make_transforms


def test_cifar_style_mirrors_and_shifts_by_an_eighth() -> None:
    pytest.importorskip("torchvision")
    image = pytest.importorskip("PIL.Image")
    dot = image.new("RGB", (16, 16))
    dot.putpixel((5, 8), (255, 255, 255))
    training, held_out = make_transforms("cifar", (16, 16), (0, 0, 0), (1, 1, 1))
    torch.manual_seed(0)
    places = {tuple(training(dot)[0].nonzero()[0].tolist()) for _ in range(400)}
    assert places == {(row, column) for row in range(6, 11) for column in (*range(3, 8), *range(8, 13))}
    assert held_out(dot)[0].nonzero().tolist() == [[8, 5]]

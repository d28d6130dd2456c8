"""Pictures of detections: boxes where the detector puts them, and only those it is sure of."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fec_fast.report.detections import drawn_detections
from fec_fast.utils.errors import InputError

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


class Fixed(nn.Module):
    """Finds the same boxes in every image."""

    def __init__(self, boxes: list[list[float]], scores: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.found = {"boxes": torch.tensor(boxes).view(-1, 4), "scores": torch.tensor(scores)}

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.found for _ in images]


def pixels(element: str) -> np.ndarray:
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", element)[1]))).convert("RGB")
    )


def test_sure_boxes_are_framed() -> None:
    before = Fixed([[10, 20, 50, 60], [0, 0, 5, 5]], [0.9, 0.1])
    after = Fixed([], [])
    image = torch.full((3, 80, 100), 0.5)
    (first, one), (second, two) = drawn_detections(before, after, [image])
    assert first == "image 1, before: 1 object, scores 0.90" and second == "image 1, after: 0 objects"
    assert (pixels(two) == 128).all()
    framed = pixels(one) != 128
    rows, columns = np.nonzero(framed.any(-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 60, 10, 50)
    assert not framed[25:55, 15:45].any(), "the object itself is not covered"


def test_large_images_are_made_smaller_and_boxes_with_them() -> None:
    ((_, before), _) = drawn_detections(Fixed([[0, 0, 639, 479]], [1.0]), Fixed([], []), [torch.rand(3, 480, 640)])
    assert pixels(before).shape == (240, 320, 3)


def test_boxes_outside_and_of_no_size_do_no_harm() -> None:
    boxes = [[-50.0, -50.0, 500.0, 500.0], [10, 10, 10, 10], [60, 60, 20, 20]]
    (caption, _), _ = drawn_detections(Fixed(boxes, [1.0] * 3), Fixed([], []), [torch.rand(3, 40, 40)])
    assert caption.startswith("image 1, before: 3 objects")


def test_the_surest_of_many_boxes() -> None:
    scores = [0.3 + number / 100 for number in range(60)]
    (caption, _), _ = drawn_detections(Fixed([[1, 1, 9, 9]] * 60, scores), Fixed([], []), [torch.rand(3, 40, 40)])
    assert caption.startswith("image 1, before: 20 objects, scores 0.89, 0.88,")


@pytest.mark.parametrize("image", [torch.rand(1, 8, 8), torch.rand(2, 3, 8, 8), torch.zeros(3, 8, 8).int(), "photo"])
def test_what_is_no_image(image: object) -> None:
    with pytest.raises(InputError, match="images: image 0 is"):
        drawn_detections(Fixed([], []), Fixed([], []), [image])


def test_what_is_no_detector() -> None:
    class Classifier(nn.Module):
        def forward(self, images: list[Tensor]) -> Tensor:
            return torch.zeros(len(images), 3)

    with pytest.raises(InputError, match="Classifier returns no boxes and scores"):
        drawn_detections(Classifier(), Fixed([], []), [torch.rand(3, 8, 8)])

"""Average precision against cases worked out by hand, a plain reference, and torchmetrics."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("pycocotools")

from fec_fast.training.tasks.average_precision import average_precisions  # noqa: E402
from fec_fast.utils.errors import InputError  # noqa: E402


def _boxes(places: list[int]) -> Tensor:
    """Boxes far apart, one for each number."""
    corner = 20.0 * torch.tensor(places, dtype=torch.float32).reshape(-1, 1)
    return torch.cat([corner, corner, corner + 10, corner + 10], 1)


def _target(places: list[int], **more: Tensor) -> dict[str, Tensor]:
    return {"boxes": _boxes(places), "labels": torch.ones(len(places), dtype=torch.int64), **more}


def _found(places: list[int]) -> dict[str, Tensor]:
    """Detections from the highest score to the lowest."""
    return {**_target(places), "scores": torch.linspace(0.9, 0.1, len(places))}


def test_two_of_three_with_one_wrong_between() -> None:
    # Precision 1 up to a recall of 1/3, 2/3 up to 2/3, then 0.
    got = average_precisions([_found([0, 7, 1])], [_target([0, 1, 2])], ["cell"])
    assert got.voc == pytest.approx(1 / 3 + 2 / 9)
    assert got.voc_2007 == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)  # at 0, .1, .2, .3 and .4, .5, .6
    assert got.coco_50 == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)  # at 0 to .33 and .34 to .66
    assert got.coco == pytest.approx(got.coco_50)  # the boxes match exactly, so the threshold has no effect
    assert got.by_class == {
        "cell": {"coco": got.coco, "coco_50": got.coco_50, "voc_2007": got.voc_2007, "voc": got.voc}
    }


def test_a_recall_of_exactly_three_tenths_counts_at_three_tenths() -> None:
    # Ten divisions of one in floating point would put the mark above 3/10.
    got = average_precisions([_found([0, 1, 2])], [_target(list(range(10)))], ["cell"])
    assert got.voc_2007 == pytest.approx(4 / 11)
    assert got.voc == pytest.approx(3 / 10)


def test_overlaps_are_averaged() -> None:
    # 10 x 8.2 of 10 x 10: an overlap of 0.82, enough for seven of the ten thresholds 0.5, 0.55, ..., 0.95.
    found = {"boxes": torch.tensor([[0.0, 0, 10, 8.2]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    got = average_precisions([found], [_target([0])], ["cell"])
    assert got.coco == pytest.approx(0.7)
    assert [got.coco_50, got.voc, got.voc_2007] == pytest.approx([1.0, 1.0, 1.0])


def test_second_detection_of_a_box_is_wrong() -> None:
    got = average_precisions([_found([0, 0, 1])], [_target([0, 1])], ["cell"])
    assert got.voc == pytest.approx(1 / 2 + 1 / 3)


def test_difficult_box_neither_counts_when_missed_nor_when_found() -> None:
    marks = torch.tensor([False, True, True])
    target = _target([0, 1, 2], difficult=marks)
    assert average_precisions([_found([1, 0])], [target], ["cell"]).voc == pytest.approx(1.0)
    assert average_precisions([_found([7, 0])], [target], ["cell"]).voc == pytest.approx(1 / 2)


def test_means_are_over_classes_that_have_boxes() -> None:
    found = {**_found([0, 1]), "labels": torch.tensor([1, 3])}
    target = {**_target([0, 5]), "labels": torch.tensor([1, 2])}
    got = average_precisions([found], [target], ["found", "missed", "absent"])
    assert set(got.by_class) == {"found", "missed"}
    assert got.voc == pytest.approx(0.5)


def test_more_than_a_hundred_detections_count_for_voc_only() -> None:
    places = list(range(150))
    got = average_precisions([_found(places)], [_target(places)], ["cell"])
    assert got.voc == pytest.approx(1.0)
    assert got.coco_50 == pytest.approx(67 / 101)  # recalls 0 to 0.66


@pytest.mark.parametrize(
    ("found", "targets", "words"),
    [
        ([], [_target([0])], "detections of 0 images, but targets of 1"),
        ([_found([0])], [{**_target([0]), "labels": torch.tensor([2])}], "label 2 of image 0 is none of the 1"),
        ([_found([0])], [_target([])], "no box to find"),
    ],
)
def test_inconsistent_detections_and_targets_are_refused(found: list, targets: list, words: str) -> None:
    with pytest.raises(InputError, match=words):
        average_precisions(found, targets, ["cell"])


@settings(max_examples=40)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 5))
def test_area_is_that_of_the_steps(right: list[bool], missed: int) -> None:
    """The sum over the boxes that were found of the best precision there or later, divided by all boxes."""
    boxes = sum(right) + missed
    if boxes == 0:
        return
    places = [number if hit else 1000 + number for number, hit in enumerate(right)]
    wanted = [number for number, hit in enumerate(right) if hit] + list(range(500, 500 + missed))
    precision = [sum(right[: n + 1]) / (n + 1) for n in range(len(right))]
    area = sum(max(precision[n:]) for n, hit in enumerate(right) if hit) / boxes
    got = average_precisions([_found(places)], [_target(wanted)], ["cell"])
    assert got.voc == pytest.approx(area)
    eleven = [
        max((p for n, p in enumerate(precision) if sum(right[: n + 1]) * 10 >= k * boxes), default=0.0)
        for k in range(11)
    ]
    assert got.voc_2007 == pytest.approx(sum(eleven) / 11)


@pytest.mark.parametrize("seed", range(3))
def test_coco_is_what_torchmetrics_finds(seed: int) -> None:
    detection = pytest.importorskip("torchmetrics.detection")
    generator = torch.Generator().manual_seed(seed)

    def some(count: int, **more: Tensor) -> dict[str, Tensor]:
        corners = torch.rand(count, 2, generator=generator) * 40
        sizes = torch.rand(count, 2, generator=generator) * 30 + 5
        labels = torch.randint(1, 4, (count,), generator=generator)
        return {"boxes": torch.cat([corners, corners + sizes], 1), "labels": labels, **more}

    targets = [some(6) for _ in range(5)]
    found = []
    for target in targets:
        near = target["boxes"] + torch.randn(6, 4, generator=generator) * 2
        extra = some(8)
        scores = torch.rand(14, generator=generator)
        boxes, labels = torch.cat([near, extra["boxes"]]), torch.cat([target["labels"], extra["labels"]])
        found.append({"boxes": boxes, "labels": labels, "scores": scores})
    # Its own thresholds are rounded to float32: some then exceed a recall that equals them.
    overlaps, recalls = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0, 1, 101).tolist()
    peer = detection.MeanAveragePrecision(iou_thresholds=overlaps, rec_thresholds=recalls, class_metrics=True)
    peer.update(found, targets)
    expected = peer.compute()
    got = average_precisions(found, targets, ["a", "b", "c"])
    assert got.coco == pytest.approx(float(expected["map"]), abs=1e-6)
    assert got.coco_50 == pytest.approx(float(expected["map_50"]), abs=1e-6)
    assert [row["coco"] for row in got.by_class.values()] == pytest.approx(expected["map_per_class"].tolist(), abs=1e-6)

"""Average precision of detections by three definitions (COCO, VOC 2007, all points), matched by pycocotools.

Detections are matched to boxes once, by COCO's rule. The definitions differ in where the precision-recall curve is
read:

- COCO: at recalls 0, 0.01, ..., 1, with at most 100 detections per image, averaged over the overlap thresholds
  (intersection over union) 0.5, 0.55, ..., 0.95 (Lin et al., 2014).
- VOC 2007: at recalls 0, 0.1, ..., 1, overlap threshold 0.5, all detections (Everingham et al., 2010, section 4.2).
- All points (VOC from 2010 on): the area under the curve of interpolated precision, which is the largest precision at
  that recall or beyond. With n boxes the curve has steps only at recalls 1/n, 2/n, ..., so the mean of its values at
  (k - 1/2)/n, k = 1 ... n, is exactly that area.

VOC's own program matches by a slightly different rule. It assigns a detection to the box with the largest overlap and
counts it as wrong if that box is already taken, where COCO's rule uses the best free box. It also counts a box as one
pixel wider and higher.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ...utils.critical_section import surely_left
from ...utils.errors import InputError, missing_extra

_COCO_DETECTIONS = 100
# Not np.linspace(0, 1, 11): 3 * 0.1 is slightly larger than 3 / 10, so a recall of three boxes in ten would miss it.
_ELEVEN_RECALLS = [k / 10 for k in range(11)]


@dataclass(frozen=True)
class AveragePrecisions:
    """Mean average precisions over the classes, each in [0, 1], and the values of every class.

    Attributes:
        coco: COCO's definition, mean over the overlap thresholds 0.5 to 0.95.
        coco_50: COCO's definition at the overlap threshold 0.5.
        voc_2007: VOC 2007's definition (eleven points), overlap threshold 0.5.
        voc: The area under the curve (all points), overlap threshold 0.5.
        by_class: The same four values under the same names, for every class that has at least one box.
    """

    coco: float
    coco_50: float
    voc_2007: float
    voc: float
    by_class: dict[str, dict[str, float]]


def average_precisions(
    detections: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]], classes: Sequence[str]
) -> AveragePrecisions:
    """Computes average precisions from detections and true boxes.

    Args:
        detections: One dictionary per image: ``boxes`` float ``[N, 4]`` (left, top, right, bottom), ``scores`` float
            ``[N]`` and ``labels`` integer ``[N]``, as torchvision's detectors return them.
        targets: One dictionary per image: ``boxes`` ``[M, 4]``, ``labels`` ``[M]`` and, optionally, ``difficult`` and
            ``iscrowd``, bool ``[M]``. A difficult box does not count when it is missed, and a detection matched to it
            does not count either. A crowd does not count either, and any number of detections may match it: their
            overlap with it is the share of their own area that lies in it, as in COCO.
        classes: Names of the labels 1, 2, ...

    Returns:
        The average precisions. A class without a box is left out of the means.

    Raises:
        InputError: The arguments have different lengths, a label does not belong to a class, or there is no box that
            counts.
        MissingExtraError: pycocotools is not installed.
    """
    try:
        from pycocotools.cocoeval import COCOeval
    except (ImportError, AttributeError) as error:
        raise missing_extra("pycocotools", "detection", "average precision", error) from error
    if len(detections) != len(targets):
        raise InputError(f"detections of {len(detections)} images, but targets of {len(targets)}")
    target_rows = [row for image, target in enumerate(targets) for row in _annotations(image, target, classes)]
    detection_rows = [row for image, output in enumerate(detections) for row in _annotations(image, output, classes)]
    if not any(map(_counts, target_rows)):
        raise InputError("there is no box to find: average precision is not defined")
    with surely_left(contextlib.redirect_stdout(io.StringIO())):  # pycocotools prints its progress
        truth, detected = (_coco_dataset(rows, len(targets), classes) for rows in (target_rows, detection_rows))
        evaluation = COCOeval(truth, detected, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        most = max([_COCO_DETECTIONS, *(len(output["boxes"]) for output in detections)])
        evaluation.params.maxDets = [_COCO_DETECTIONS, most]  # COCO's limit, and none
        evaluation.evaluate()
        by_class = {}
        for label, name in enumerate(classes, start=1):
            count = sum(row["category_id"] == label and _counts(row) for row in target_rows)
            if count:
                by_class[name] = _class_precisions(evaluation, label, count)
    means = {key: float(np.mean([row[key] for row in by_class.values()])) for key in next(iter(by_class.values()))}
    return AveragePrecisions(**means, by_class=by_class)


def _class_precisions(evaluation: Any, label: int, count: int) -> dict[str, float]:
    """The average precisions of one class, which has ``count`` boxes."""
    midpoints = [(k - 0.5) / count for k in range(1, count + 1)]
    coco = _interpolated_precision(evaluation, label, None)
    return {
        "coco": float(coco[:, :, 0].mean()),
        "coco_50": float(coco[0, :, 0].mean()),
        "voc_2007": float(_interpolated_precision(evaluation, label, _ELEVEN_RECALLS)[0, :, -1].mean()),
        "voc": float(_interpolated_precision(evaluation, label, midpoints)[0, :, -1].mean()),
    }


def _interpolated_precision(evaluation: Any, label: int, recalls: Sequence[float] | None) -> np.ndarray:
    """The largest precision at each of some recalls or beyond; ``None`` takes COCO's 101 recalls.

    Returns an array ``[overlap thresholds, recalls, limits on the detections per image]``.
    """
    params = copy.copy(evaluation.params)
    if recalls is not None:
        params.recThrs = np.array(recalls)
    evaluation.accumulate(params)
    return np.asarray(evaluation.eval["precision"][:, :, params.catIds.index(label), 0, :])


def _annotations(image: int, boxes: Mapping[str, Tensor], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The boxes of an image as COCO annotations, one per box."""
    labels = boxes["labels"].tolist()
    wrong = [label for label in labels if not 1 <= label <= len(classes)]
    if wrong:
        raise InputError(
            f"label {wrong[0]} of image {image} is none of the {len(classes)} classes (1 to {len(classes)})"
        )
    corners = boxes["boxes"].double().cpu()
    sizes = corners[:, 2:] - corners[:, :2]
    areas = sizes.prod(1).tolist()
    if "difficult" in boxes:
        # A negative area is outside every area range, and pycocotools leaves such boxes out of the count while it
        # matches them as usual. Marking them as a crowd would also leave them out, but compute overlaps differently.
        areas = [
            -1.0 if difficult else area for difficult, area in zip(boxes["difficult"].tolist(), areas, strict=True)
        ]
    crowds = boxes["iscrowd"].tolist() if "iscrowd" in boxes else [False] * len(labels)
    scores = boxes["scores"].tolist() if "scores" in boxes else [None] * len(labels)
    return [
        {
            "image_id": image,
            "category_id": label,
            "bbox": [*corner, *size],
            "area": area,
            "iscrowd": int(crowd),
            "score": score,
        }
        for label, corner, size, area, crowd, score in zip(
            labels, corners[:, :2].tolist(), sizes.tolist(), areas, crowds, scores, strict=True
        )
    ]


def _counts(row: dict[str, Any]) -> bool:
    """Whether a box counts when it is missed."""
    return bool(row["area"] >= 0 and not row["iscrowd"])


def _coco_dataset(rows: list[dict[str, Any]], images: int, classes: Sequence[str]) -> Any:
    """A pycocotools data set of annotations on images 0 to ``images - 1``."""
    from pycocotools.coco import COCO

    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, start=1)],
        # From 1, because pycocotools stores the number of the matched annotation and 0 means no match.
        "annotations": [{**row, "id": number} for number, row in enumerate(rows, start=1)],
    }
    dataset.createIndex()
    return dataset

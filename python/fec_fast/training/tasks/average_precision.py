"""Average precision of detections: COCO's, VOC 2007's of eleven points, and that of all points, by pycocotools.

Detections are matched to boxes once, by COCO's rule; the three measures differ in where the curve of precision over
recall is read:

- COCO: at recalls 0, 0.01, ..., 1 with at most 100 detections an image, averaged over overlaps (intersection over
  union) of 0.5, 0.55, ..., 0.95 (Lin et al., 2014).
- VOC 2007: at recalls 0, 0.1, ..., 1, overlap 0.5, every detection (Everingham et al., 2010, section 4.2).
- All points (VOC from 2010 on): the area under the curve of the largest precision at that recall or beyond. With n
  boxes the curve steps at recalls 1/n, 2/n, ... only, so its mean at (k - 1/2)/n, k = 1 ... n, is that area exactly.

VOC's own program matches by a slightly different rule: a detection goes to the box that it overlaps most and is wrong
if that box is taken, where COCO's takes the best one that is free; and it counts a box as one pixel wider and higher.
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

from ...utils.errors import InputError, missing_extra

_COCO_DETECTIONS = 100
# Ten divisions, not a linspace: 3 * 0.1 is above 3 / 10, and a recall of three boxes in ten would not reach it.
_ELEVEN = [k / 10 for k in range(11)]


@dataclass(frozen=True)
class AveragePrecisions:
    """Average precisions, each in [0, 1], and what they are the means of.

    Attributes:
        coco: Mean over the classes and over overlaps of 0.5 to 0.95.
        coco_50: COCO's at an overlap of 0.5.
        voc_2007: Of eleven points, overlap 0.5.
        voc: Of all points, overlap 0.5.
        by_class: The same four under the same names, for every class that has a box.
    """

    coco: float
    coco_50: float
    voc_2007: float
    voc: float
    by_class: dict[str, dict[str, float]]


def average_precisions(
    detections: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]], classes: Sequence[str]
) -> AveragePrecisions:
    """Measures detections against the boxes that are there.

    Args:
        detections: One dictionary an image: ``boxes`` float ``[N, 4]`` (left, top, right, bottom), ``scores`` float
            ``[N]`` and ``labels`` integer ``[N]``, as torchvision's detectors return them.
        targets: One dictionary an image: ``boxes`` ``[M, 4]`` and ``labels`` ``[M]``; with ``difficult`` bool ``[M]``,
            such a box neither counts when it is missed, nor does a detection that finds it.
        classes: Names of the labels 1, 2, ...

    Returns:
        The measures. A class without a box takes no part in the means.

    Raises:
        InputError: The two differ in length, a label is no class's, or there is no box at all.
        MissingExtraError: pycocotools is not installed.
    """
    try:
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise missing_extra("pycocotools", "detection", "average precision") from error
    if len(detections) != len(targets):
        raise InputError(f"detections of {len(detections)} images, but targets of {len(targets)}")
    wanted = [row for image, target in enumerate(targets) for row in _rows(image, target, classes)]
    found = [row for image, found in enumerate(detections) for row in _rows(image, found, classes)]
    if all(row["area"] < 0 for row in wanted):
        raise InputError("there is no box to find: average precision is not defined")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        matches = COCOeval(_dataset(wanted, targets, classes), _dataset(found, targets, classes), "bbox")
        matches.params.areaRng, matches.params.areaRngLbl = [[0, 1e10]], ["all"]
        matches.params.maxDets = [_COCO_DETECTIONS, max([_COCO_DETECTIONS, *(len(d["boxes"]) for d in detections)])]
        matches.evaluate()
        by_class = {}
        for label, name in enumerate(classes, start=1):
            count = sum(row["category_id"] == label and row["area"] >= 0 for row in wanted)
            if count:
                by_class[name] = _of_class(matches, label, count)
    means = {key: float(np.mean([row[key] for row in by_class.values()])) for key in next(iter(by_class.values()))}
    return AveragePrecisions(**means, by_class=by_class)


def _of_class(matches: Any, label: int, count: int) -> dict[str, float]:
    """The measures of one class."""
    coco = _precision(matches, label, None)
    return {
        "coco": float(coco[:, :, 0].mean()),
        "coco_50": float(coco[0, :, 0].mean()),
        "voc_2007": float(_precision(matches, label, _ELEVEN)[0, :, -1].mean()),
        "voc": float(_precision(matches, label, [(k - 0.5) / count for k in range(1, count + 1)])[0, :, -1].mean()),
    }


def _precision(matches: Any, label: int, recalls: Sequence[float] | None) -> np.ndarray:
    """The largest precision at some recalls or beyond, ``[overlaps, recalls, limits of detections]``."""
    params = copy.copy(matches.params)
    if recalls is not None:
        params.recThrs = np.array(recalls)
    matches.accumulate(params)
    return np.asarray(matches.eval["precision"][:, :, params.catIds.index(label), 0, :])


def _rows(image: int, boxes: Mapping[str, Tensor], classes: Sequence[str]) -> list[dict[str, Any]]:
    """One annotation a box, in COCO's terms but for the difficult ones: see below."""
    labels = boxes["labels"].tolist()
    odd = [label for label in labels if not 1 <= label <= len(classes)]
    if odd:
        raise InputError(f"label {odd[0]} of image {image} is none of the {len(classes)} classes (1 to {len(classes)})")
    corners = boxes["boxes"].double().cpu()
    sizes = corners[:, 2:] - corners[:, :2]
    areas = sizes.prod(1).tolist()
    if "difficult" in boxes:
        # Outside every range of areas: what pycocotools leaves out of the count, overlaps taken as usual (they would
        # be others for a box marked as a crowd).
        areas = [-1.0 if left_out else area for left_out, area in zip(boxes["difficult"].tolist(), areas, strict=True)]
    scores = boxes["scores"].tolist() if "scores" in boxes else [None] * len(labels)
    return [
        {"image_id": image, "category_id": label, "bbox": [*corner, *size], "area": area, "iscrowd": 0, "score": score}
        for label, corner, size, area, score in zip(
            labels, corners[:, :2].tolist(), sizes.tolist(), areas, scores, strict=True
        )
    ]


def _dataset(rows: list[dict[str, Any]], images: Sequence[Any], classes: Sequence[str]) -> Any:
    from pycocotools.coco import COCO

    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": image} for image in range(len(images))],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, start=1)],
        "annotations": [{**row, "id": number} for number, row in enumerate(rows, start=1)],  # 0 would mean no match
    }
    dataset.createIndex()
    return dataset

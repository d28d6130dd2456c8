"""Accuracy right after the cut, from benchmarks/results/recovery.json: the picture of README.md."""

from __future__ import annotations

from typing import Any

from benchmarks.pictures.svg import FAINT, INK, KEPT, OTHER, sheet, text
from benchmarks.recovery.methods import AS_PRUNED, DEFAULT, RE_ESTIMATED
from benchmarks.recovery.networks import NAMES
from benchmarks.recovery.tables import Accuracies, Budget, written
from benchmarks.study.estimates import estimate

SHOWN: tuple[tuple[str, Budget], ...] = (
    ("resnet56", ("params", 0.5)),
    ("resnet56", ("params", 0.7)),
    ("vgg16", ("params", 0.94)),
    ("mobilenetv2", ("macs", 0.5)),
)
METHODS = (
    (AS_PRUNED, "as cut", FAINT),
    (RE_ESTIMATED, "batch norm re-estimated", OTHER),
    (DEFAULT, "recovered by fec_fast, 1,000 images without labels", KEPT),
)
_LEFT, _RIGHT, _ROW, _TOP = 236, 812, 46, 112


def _across(accuracy: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * accuracy / 100


def result(document: dict[str, Any]) -> str:
    """The picture.

    Args:
        document: The content of the result file of the recovery benchmark.
    """
    rows = Accuracies(document)
    shapes = [text(24, 34, "Accuracy right after the cut, without training, in %", bold=True, size=17)]
    place = 24.0
    for _, words, colour in METHODS:
        shapes.append(f'<circle cx="{place + 7:g}" cy="60" r="7" fill="{colour}"/>')
        shapes.append(text(place + 20, 65, words))
        place += 44 + 7.2 * len(words)
    shapes.append(f'<path d="M{place + 4:g} 51v18" stroke="{INK}" stroke-width="3"/>')
    shapes.append(text(place + 14, 65, "before the cut"))
    bottom = _TOP + _ROW * len(SHOWN)
    for share in range(0, 101, 20):
        shapes.append(f'<path d="M{_across(share):g} {_TOP - 20}V{bottom - 14}" stroke="#e4e9ee"/>')
        shapes.append(text(_across(share), bottom + 6, str(share), anchor="middle", fill="#616e7c", size=13))
    for number, (network, budget) in enumerate(SHOWN):
        y = _TOP + _ROW * number
        values = []
        for method, _, colour in METHODS:
            correct = rows.get(network, method, budget)
            assert correct is not None, f"{network}, {method}: not measured"
            values.append((estimate(correct).mean, colour))
        dense = rows.dense[network]["accuracy"]
        shapes.append(text(24, y - 2, NAMES[network], bold=True))
        shapes.append(text(24, y + 15, written(budget).replace("-", "\u2212", 1), fill="#616e7c", size=13))
        shapes.append(
            f'<path d="M{_across(values[0][0]):g} {y}H{_across(values[-1][0]):g}" stroke="#cbd2d9" stroke-width="3"/>'
        )
        shapes.append(f'<path d="M{_across(dense):g} {y - 12}v24" stroke="{INK}" stroke-width="3"/>')
        for value, colour in values:
            shapes.append(f'<circle cx="{_across(value):g}" cy="{y}" r="7" fill="{colour}"/>')
        for value, _ in values[:2]:
            shapes.append(text(_across(value), y + 22, f"{value:.1f}", anchor="middle", fill="#616e7c", size=12))
        last = values[-1][0]
        shapes.append(text(_across(max(last, dense)) + 14, y + 5, f"{last:.1f}", fill=KEPT, bold=True))
    note = "CIFAR-10 as JPEG, 4,000 test images, means of three draws of the 1,000 images, NVIDIA H200."
    shapes.append(text(24, bottom + 34, note, fill="#616e7c", size=12))
    return sheet(860, bottom + 50, "Accuracy right after the cut: as cut, re-estimated, recovered", shapes)

"""docs/int8.md from benchmarks/results/int8.json."""

from __future__ import annotations

from typing import Any

from fec_fast import Budget

NETWORKS = {"resnet20": "ResNet-20", "resnet56": "ResNet-56", "vgg16": "VGG-16-BN", "mobilenetv2": "MobileNetV2"}
# The options of `prune`; none: the dense network.
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "pruned": {"budget": Budget.remove(macs=0.5)},
    "pruned, round_to=8": {"budget": Budget.remove(macs=0.5), "round_to": 8},
}
PT2E = "PT2E"
FORMS = ("float32", "int8", "int8, percentile", "int8, first and last layer float32", PT2E)


def write(document: dict[str, Any]) -> None:
    pass

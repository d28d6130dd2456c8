"""The README of a checkpoint: what was pruned, by how much, what it is worth, and how it is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..utils.arguments import check_number
from ..utils.errors import ArgumentError
from ..utils.machine import package_version
from ..utils.modules import named_tensors
from ..utils.onnx_files import OnnxExport
from ..utils.text import change, counted
from .plan import Plan

LIBRARY = "library_name: fec_fast"
_TAGS = ("fec_fast", "pruning", "structured-pruning")
_MOST_SETS = 40  # rows of the table; plan.json has all
_MOST_TEXT = 1000


@dataclass(frozen=True)
class ModelCard:
    """What a model card says that a checkpoint does not know. Everything may be left out.

    Attributes:
        base_model: The network before pruning: a name of the Hub, such as ``"timm/resnet50.a1_in1k"``, or one that
            :func:`fec_fast.zoo.build` takes, such as ``"torchvision:resnet50"``; the card then says how to build it.
        budget: What was asked for, such as ``"remove macs=0.5"``, or ``str(budget)``.
        license: The licence by its name on the Hub, such as ``"apache-2.0"``: that of the weights before pruning, as a
            rule.
        metrics: What the pruned network is worth, such as ``{"accuracy": 0.91}``.
        data: What the metrics were measured on, such as ``"CIFAR-10, test images"``.
    """

    base_model: str | None = None
    budget: str | None = None
    license: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    data: str | None = None

    def __post_init__(self) -> None:
        """Checks that every text is one line, and every metric a number."""
        for name in ("base_model", "budget", "license", "data"):
            _check_line(name, getattr(self, name), optional=True)
        if not isinstance(self.metrics, Mapping):
            raise ArgumentError(f"metrics={self.metrics!r:.80}: give a dictionary, such as {{'accuracy': 0.91}}")
        for name, value in self.metrics.items():
            _check_line("metrics", name, optional=False)
            check_number(f"metrics[{name!r}]", value, "a finite number", least=-math.inf)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network before and after pruning.

    Attributes:
        parameters: The number of parameters before and after.
        macs: Multiply-accumulates before and after, if they are known.
        file: Bytes of the file of weights.
    """

    parameters: tuple[int, int]
    macs: tuple[int, int] | None
    file: int


def sizes_of(result: Any, model: nn.Module, plan: Plan, file: int) -> Sizes:
    """Finds out sizes before and after: from the result of pruning, or else from the plan and the pruned model.

    Args:
        result: The result of pruning, if there is one.
        model: The pruned model.
        plan: Its plan.
        file: Bytes of the file of weights.

    Returns:
        The sizes; without a result those of the parameters alone.
    """
    before, after = getattr(result, "before", None), getattr(result, "after", None)
    if before is not None and after is not None:
        return Sizes((before.parameters, after.parameters), (before.macs, after.macs), file)
    parameters = {name: tensor for name, tensor in named_tensors(model).items() if isinstance(tensor, nn.Parameter)}
    unique = {id(tensor): name for name, tensor in reversed(parameters.items())}
    remaining = {name: parameters[name].numel() for name in unique.values()}
    dense = {name: math.prod(plan.shapes[name]) if name in plan.shapes else size for name, size in remaining.items()}
    return Sizes((sum(dense.values()), sum(remaining.values())), None, file)


def card_text(card: ModelCard, kind: str, plan: Plan, sizes: Sizes, onnx: OnnxExport | None) -> str:
    """Writes a card in Markdown, with the YAML head that the Hub reads.

    Args:
        card: What the caller says.
        kind: The class of the model.
        plan: What was removed.
        sizes: Before and after.
        onnx: The ONNX file beside, if there is one.

    Returns:
        The content of ``README.md``.
    """
    name = card.base_model or kind
    parts = [
        *_head(card),
        f"# {_plain(name)}, pruned\n",
        f"A `{kind}` with fewer channels, pruned by fec_fast {package_version()}: "
        f"{repr(plan).strip('<>').removeprefix('Plan: ')}.\n",
        *([f"Budget: {_plain(card.budget)}\n"] if card.budget else []),
        _table(("", "before", "after", "change"), _size_rows(sizes)),
        f"The weights take {sizes.file:,} bytes (`model.safetensors`).\n",
        *_metrics(card),
        *_channels(plan),
        "## How to load it\n",
        *_loading(card),
        *_onnx(onnx),
    ]
    return "\n".join(parts)


def _head(card: ModelCard) -> list[str]:
    # Text in double quotes as JSON writes it is text in YAML too, but for pairs of surrogates.
    lines = ["---", LIBRARY, "tags:", *(f"- {tag}" for tag in _TAGS)]
    if card.base_model is not None and not _is_built(card.base_model):
        lines.append(f"base_model: {json.dumps(card.base_model, ensure_ascii=False)}")
    if card.license is not None:
        lines.append(f"license: {json.dumps(card.license, ensure_ascii=False)}")
    return [*lines, "---\n"]


def _size_rows(sizes: Sizes) -> list[tuple[str, ...]]:
    rows = [("parameters", sizes.parameters), ("multiply-accumulates", sizes.macs)]
    return [(name, f"{pair[0]:,}", f"{pair[1]:,}", change(*pair)) for name, pair in rows if pair is not None]


def _metrics(card: ModelCard) -> list[str]:
    if not card.metrics:
        return []
    rows = [(_plain(name), f"{value:.6g}") for name, value in card.metrics.items()]
    measured = [f"Measured on: {_plain(card.data)}\n"] if card.data else []
    return ["## What it is worth\n", *measured, _table(("metric", "value"), rows)]


def _channels(plan: Plan) -> list[str]:
    rows = [
        (f"`{record['name']}`", str(len(record["layers"])), str(units - len(record["removed"])), str(units))
        for record in plan.sets
        if (units := len(record["scores"]))
    ]
    more = [f"And {counted(len(rows) - _MOST_SETS, 'more set')}, see `plan.json`.\n"] if len(rows) > _MOST_SETS else []
    text = f"Channels that belong together, chosen by the criterion `{plan.criterion}`:\n"
    return ["## What was removed\n", text, _table(("set", "layers", "kept", "of"), rows[:_MOST_SETS]), *more]


def _loading(card: ModelCard) -> list[str]:
    if card.base_model is not None and _is_built(card.base_model):
        build = f"model = fec_fast.zoo.build({json.dumps(card.base_model)})"
    else:
        build = "model = ...  # the network before pruning, of full width, from its own code"
    return [
        "```python",
        "import fec_fast\n",
        build,
        'fec_fast.load(model, "FOLDER")  # this folder; huggingface_hub.snapshot_download("OWNER/NAME") returns one',
        "model.eval()",
        "```\n",
        "`fec-fast load-check FOLDER` compares the files with their checksums. Code for the network before pruning "
        "cannot load `model.safetensors` by itself: its tensors are smaller.\n",
    ]


def _onnx(onnx: OnnxExport | None) -> list[str]:
    if onnx is None:
        return []
    return [
        "## ONNX\n",
        f"`{onnx.file.name}` ({onnx.bytes:,} bytes) takes batches of any size. What ONNX Runtime computes was compared "
        f"with torch when it was written: the largest difference is {onnx.difference:.1g} of the largest output.\n",
    ]


def _is_built(base_model: str) -> bool:
    return base_model.startswith(("zoo:", "torchvision:"))


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|!~" else letter for letter in text)


def _check_line(name: str, value: Any, *, optional: bool) -> None:
    if value is None and optional:
        return
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > _MOST_TEXT:
        raise ArgumentError(f"{name}={value!r:.80}: give one line of text, at most {_MOST_TEXT} characters")

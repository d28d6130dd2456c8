"""Report of a saved result: reads the folder, and what else is given, and writes the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..choosing.result import Sweep
from ..graph.counts import count
from ..plan import checkpoint
from ..plan.plan import Plan
from ..pruning.allocation.measured import Sensitivity
from ..pruning.allocation.sensitivity import measure_sensitivity
from ..pruning.criteria import CRITERIA, DEFAULT_CRITERION
from ..pruning.reporting import report_content
from ..report.writer import write_report
from ..utils.arguments import check_file_to_write
from ..utils.errors import InputError
from ..utils.modules import in_evaluation
from ..utils.reading import MOST_JSON_BYTES, read_bytes
from ..vision import data, zoo
from ..vision.weights import load_weights
from .options import load_data, plan_for

_IMAGES = 4


@dataclass(frozen=True)
class ReportRequest:
    """What the command line asks for.

    Attributes:
        folder: The folder of a pruned model.
        out: The HTML file.
        model: The name of the model before pruning, or ``None``.
        weights: Its weights, or ``None``.
        sensitivity: The name of data to measure the sensitivity on, or a JSON file of it, or ``None``.
        sweep: The JSON file of a sweep, or ``None``.
        images: The name of data with images for detectors, or ``None``.
        filters: Filters as ``LAYER:NUMBER``.
    """

    folder: Path
    out: Path
    model: str | None
    weights: Path | None
    sensitivity: str | None
    sweep: Path | None
    images: str | None
    filters: tuple[str, ...]


def write_report_of_folder(request: ReportRequest, input_shape: tuple[int, ...] | None) -> Path:
    """Writes the report of a pruned model that :func:`fec_fast.save` stored.

    Args:
        request: What is asked for.
        input_shape: The shape of the example input; ``None`` without a model.

    Returns:
        The absolute path of the file.

    Raises:
        InputError: Options that need the model or its weights without them, or data that cannot be used.
        FecError: The folder, the model or the data cannot be read.
    """
    stored = _stored_sensitivity(request.sensitivity)
    measured_on = None if stored is not None else request.sensitivity
    for option, value in (("--sensitivity", measured_on), ("--images", request.images)):
        if value is not None and request.weights is None:
            raise InputError(f"{option} {value}: give the model before pruning with --model and --weights")
    if request.filters and request.weights is None:
        raise InputError(f"--filter {request.filters[0]}: give the model before pruning with --model and --weights")
    if request.weights is not None and request.model is None:
        raise InputError(f"--weights {request.weights}: give the model they belong to with --model")
    filters = [_filter(text) for text in request.filters]
    check_file_to_write("--out", request.out)
    sweep = None
    if request.sweep is not None:
        sweep = Sweep.from_json(read_bytes(request.sweep, MOST_JSON_BYTES, InputError))
    plan = checkpoint.read_plan(request.folder)
    if stored is not None and stored.fingerprint != plan.fingerprint:
        raise InputError(f"--sensitivity {request.sensitivity}: it is of another network than {request.folder}")
    known: dict[str, Any] = {"sensitivity": stored}
    facts = [f"stored in {request.folder}"]
    if request.model is not None and input_shape is not None:
        known |= _of_model(request, request.model, input_shape, plan, measured_on)
        if request.weights is None:
            facts.append("without the weights before pruning (--weights): no pictures of filters")
    else:
        facts.append("without the model before pruning (--model): no parameters and multiply-accumulates")
    title = f"{request.model or request.folder.resolve().name}, pruned"
    facts += known.pop("facts", [])
    return write_report(request.out, report_content(plan, title, facts=facts, filters=filters, sweep=sweep, **known))


def _stored_sensitivity(name: str | None) -> Sensitivity | None:
    """The sensitivity of a JSON file; ``None`` for data that it is to be measured on."""
    if name is None or not name.endswith(".json") or not Path(name).is_file():
        return None
    return Sensitivity.from_json(read_bytes(Path(name), MOST_JSON_BYTES, InputError))


def _of_model(
    request: ReportRequest, name: str, input_shape: tuple[int, ...], plan: Plan, measured_on: str | None
) -> dict[str, Any]:
    """What the model before pruning adds."""
    original = zoo.build(name)
    if request.weights is not None:
        load_weights(original, request.weights)
    example = torch.randn(input_shape, generator=torch.Generator().manual_seed(0))
    pruned = zoo.build(name)
    with plan_for(name, request.folder):
        checkpoint.load(pruned, request.folder)
    known: dict[str, Any] = {
        "original": in_evaluation(original),
        "pruned": in_evaluation(pruned),
        "trained": request.weights is not None,
        "example_inputs": example,
        "before": count(original, example),
        "after": count(pruned, example),
    }
    if measured_on is not None:
        criterion = plan.criterion if plan.criterion in CRITERIA else DEFAULT_CRITERION
        asked = None if input_shape == zoo.input_shape(name) else ",".join(map(str, input_shape))
        held_out = load_data(measured_on, name, asked)[1]
        known["sensitivity"] = measure_sensitivity(original, example, held_out, criterion=criterion)
        known["facts"] = [f"sensitivity: accuracy on the held-out part of {measured_on}, by {criterion}"]
    if request.images is not None:
        known["images"] = _images(request.images)
    return known


def _images(name: str) -> list[Tensor]:
    """The first held-out images of some data."""
    images = next(iter(data.load(name, batch_size=_IMAGES)[1]))[0]
    return list(images)[:_IMAGES]


def _filter(text: str) -> tuple[str, int]:
    layer, _, number = text.rpartition(":")
    if not layer or not number.isdecimal():
        raise InputError(f"--filter {text!r}: write LAYER:NUMBER, such as conv1:3")
    return layer, int(number)

"""Reporting: collects what is known about a pruning, for the page that :mod:`fec_fast.report` makes of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..graph.counts import Counts
from ..plan.plan import Plan, check_plan
from ..report.charts import Link
from ..report.content import CurveChart, MeasuredSweep, ReportContent
from ..scoring.formula import Formula
from ..scoring.model_scores import score_model
from ..utils.arguments import batches_of
from ..utils.errors import ArgumentError, LayerError
from ..utils.model_index import ModelIndex
from .allocation.allocate import SPREAD
from .allocation.measured import Sensitivity
from .allocation.policies import EntropyPolicy
from .channel_sets import couplings


def report_content(
    plan: Plan,
    title: str,
    *,
    pruned: nn.Module | None = None,
    original: nn.Module | None = None,
    example_inputs: Any = None,
    before: Counts | None = None,
    after: Counts | None = None,
    facts: Sequence[str] = (),
    sensitivity: Sensitivity | None = None,
    sweep: MeasuredSweep | None = None,
    images: Sequence[Tensor] = (),
    filters: Sequence[tuple[str, int]] = (),
    charts: Sequence[CurveChart] = (),
    trained: bool = True,
) -> ReportContent:
    """Collects what a report shows.

    Args:
        plan: The plan.
        title: The heading.
        pruned: The pruned network.
        original: The network before pruning, with its weights.
        example_inputs: What the original can be run on, as for :func:`fec_fast.prune`: with them the graph shows which
            layers read the channels. ``None``: those that make them alone.
        before: Sizes of the original.
        after: Sizes of the pruned network.
        facts: Lines on how the result was made.
        sensitivity: What each set costs alone.
        sweep: Networks of other sizes.
        images: For detectors, pictures ``[3, H, W]`` in [0, 1].
        filters: Layers and positions of filters.
        charts: Further charts.
        trained: Whether the original has its weights. Without them it shows how layers are coupled, and nothing else.

    Returns:
        The content, for :func:`fec_fast.report.writer.write_report`.

    Raises:
        PlanError: The plan is for another model than ``original``.
        ArgumentError: ``title``, ``sensitivity``, ``sweep``, ``images`` or ``filters`` are of another kind, or
            ``example_inputs`` come without the original.
        InputError: The original cannot be run on the example inputs, or ``images`` raised an error.
    """
    if sensitivity is not None and not isinstance(sensitivity, Sensitivity):
        raise ArgumentError(f"sensitivity: expected a fec_fast.Sensitivity, got a {type(sensitivity).__name__}")
    if sweep is not None and not isinstance(sweep, MeasuredSweep):
        raise ArgumentError(f"sweep: expected a fec_fast.Sweep, got a {type(sweep).__name__}")
    if not isinstance(title, str):
        raise ArgumentError(f"title={title!r:.80}: give text")
    if isinstance(filters, str | bytes | Tensor) or not isinstance(filters, Sequence | Mapping):
        raise ArgumentError(f"filters={filters!r:.80}: give a list of pairs, such as [('conv1', 3)]")
    if not isinstance(images, Tensor | Iterable) or (isinstance(images, Tensor) and images.ndim != 4):
        raise ArgumentError(f"images={images!r:.80}: give a list of tensors [3, H, W]")
    images = list(batches_of(images, "images"))
    for pair in filters:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is int):
            raise ArgumentError(f"filters: {pair!r}: give pairs of a layer and a number, such as ('conv1', 3)")
    if original is not None:
        index = ModelIndex.of(original)
        check_plan(plan, index)
        original = index.model
    elif example_inputs is not None:
        raise ArgumentError("example_inputs: the network before pruning is run on them: give original= too")
    with_weights = original if trained else None
    how = [f"criterion {plan.criterion}, sides {plan.sides}"]
    if plan.formula is not None:
        how[0] += f"; {Formula.from_dict(plan.formula)}"
    return ReportContent(
        title,
        plan,
        pruned=pruned,
        original=with_weights,
        before=before,
        after=after,
        links=_links(plan, original, example_inputs),
        distinct={} if with_weights is None else _distinct_filters(with_weights),
        spread=next((note for note in reversed(plan.notes) if note.startswith(SPREAD)), ""),
        facts=[*how, *facts],
        sensitivity=sensitivity,
        sweep=sweep,
        images=images,
        filters=filters,
        charts=charts,
    )


def _links(plan: Plan, original: nn.Module | None, example_inputs: Any) -> list[Link]:
    """The coupled sets of a plan, with the layers that read their channels if the original can be run."""
    readers: dict[tuple[str, ...], tuple[str, ...]] = {}
    if original is not None and example_inputs is not None:
        norms = "renormalise" if plan.norms else "exact"
        for coupled in couplings(original, example_inputs, norms=norms).sets:
            holders = dict.fromkeys(tensor.rpartition(".")[0] for tensor, _ in coupled.members)
            readers[coupled.layers] = tuple(name for name in holders if name not in coupled.channels)
    rounds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in sorted(plan.sets, key=lambda record: int(record["round"])):
        rounds.setdefault(tuple(record["layers"]), []).append(record)
    return [
        Link(
            records[0]["name"],
            layers,
            readers.get(layers, ()),
            (len(records[-1]["scores"]) - len(records[-1]["removed"])) / len(records[0]["scores"]),
        )
        for layers, records in rounds.items()
    ]


def _distinct_filters(original: nn.Module) -> dict[str, float]:
    """How many filters of each layer are effectively distinct, as the policy "entropy" counts them."""
    try:
        scores = score_model(original, formula=Formula(tau_scale=EntropyPolicy().tau_scale))
    except LayerError:  # nothing but linear layers
        return {}
    return {name: math.exp(float(entropies.mean())) for name, entropies in scores.items()}

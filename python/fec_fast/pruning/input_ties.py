"""Ties to inputs: views whose sizes a module takes from the width of what it was called with.

Attention often ends with ``reshape(B, N, C)``, where ``B, N, C = x.shape`` of the module's input: the values have as
many channels as the stream that the module adds them to. Operators do not show where a number comes from. So a copy
that has lost other numbers of channels in every coupled set is run once: a view that asks for the new width of the
input takes its number, and its channels are removed together with those of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..graph.cuts import ShapeCut
from ..graph.groups import count_kept, couple_channels, removed_labels
from ..graph.planned_run import PlannedRun
from ..graph.trace import Trace, trace_model
from ..plan.surgery import pruned_copy
from ..utils.errors import LayerError
from ..utils.model_index import ModelIndex
from .plan_builder import make_plan, unit_labels

_ROUNDS = 4  # a view that follows another one is seen in the next round


def trace_with_ties(
    index: ModelIndex, example_inputs: Any, ignore: Sequence[str], norms: str, *, training: bool = False
) -> Trace:
    """Traces a model, and finds the ties to inputs where it multiplies activations with activations.

    Args:
        index: The index of the model, which is left as it was.
        example_inputs: What to run it on.
        ignore: Names of layers, or of modules that hold layers, that keep their channels.
        norms: See :func:`fec_fast.graph.trace.trace_model`.
        training: See :func:`fec_fast.graph.trace.trace_model`.

    Returns:
        The trace; channels that are tied are united.
    """
    trace = trace_model(index, example_inputs, training=training, norms=norms)
    if not any(cost.channels for cost in trace.costs):
        return trace
    for _ in range(_ROUNDS):
        try:
            coupling = couple_channels(trace, ignore)
        except LayerError:  # an unknown name, which the caller reports
            return trace
        removed = [range(_removed(len(of_set.units), number)) for number, of_set in enumerate(coupling.sets)]
        scores = [[0.0] * len(of_set.units) for of_set in coupling.sets]
        plan = make_plan(
            index, trace, coupling, removed, scores, criterion="l1", formula=None, sides="both", sizes=trace.sizes
        )
        count = count_kept(removed_labels(coupling.partition, unit_labels(coupling.sets, removed)))
        pruned = ModelIndex.of(pruned_copy(index, plan))
        run = PlannedRun(pruned, example_inputs, trace, count, training=False)
        report = run.run()
        ties = []
        for position in sorted(report.deviating & report.requested.keys()):
            cut = run.cuts[position]
            tie = cut.tie(report.requested[position], count) if isinstance(cut, ShapeCut) else None
            if tie is not None:
                ties.append(tie)
        if not ties:
            break
        reason = "the model's code shapes it to the width of a module's input, which is fixed"
        trace = replace(trace, partition=trace.partition.with_unions(ties, reason))
    return trace


def _removed(units: int, number: int) -> int:
    """How many units a set loses, if it has two: neighbouring sets lose different shares.

    They are quarters, because code may want widths that its number of heads divides.
    """
    return max(min(1, units - 1), units * (1 + number % 3) // 4)

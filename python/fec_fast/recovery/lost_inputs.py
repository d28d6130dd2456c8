"""Lost inputs: which weights of the original read channels that a plan removes, found by a trace."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from torch import nn

from ..graph.trace import trace_model
from ..plan.plan import Plan
from ..utils.computed_weights import owner_of, weight_parts
from ..utils.errors import FecError
from ..utils.model_index import ModelIndex


def weights_with_lost_inputs(index: ModelIndex, plan: Plan, inputs: Any, names: Collection[str]) -> set[str]:
    """Finds the parameters by which a network reads channels that are removed.

    Others lose outputs alone, or are added to channels or multiplied by them, as a table of positions is: there is
    nothing to be made up for in them.

    Args:
        index: The index of the original, which is left as it was.
        plan: What is removed.
        inputs: What the original can be run on.
        names: The names of the parameters in question.

    Returns:
        Some of the names; all where the original cannot be traced on the inputs.
    """
    try:
        trace = trace_model(index, inputs)
    except FecError:
        return set(names)
    roots = trace.partition.roots
    removed = [
        np.delete(roots[labels], plan.keep[name][str(axis)])
        for (name, axis), labels in trace.axes.items()
        if str(axis) in plan.keep.get(name, {})
    ]
    lost = np.concatenate(removed or [np.zeros(0, dtype=np.int64)])
    losing = [
        use for use in (*trace.weight_uses.values(), *trace.further_uses) if np.isin(roots[use.inputs], lost).any()
    ]
    weights = {use.weight for use in losing}
    for layer in {use.layer for use in losing if use.values is not None}:
        weights.update(f"{layer}.{part}".removeprefix(".") for part in weight_parts(index.modules[layer]))
    # What an LSTM reads may shrink, and is none of the operations that a trace lists.
    return {name for name in names if name in weights or isinstance(index.modules[owner_of(name)], nn.RNNBase)}

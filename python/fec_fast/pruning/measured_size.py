"""The size of a network as it is, in the quantity of a budget."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ..graph.groups import couple_channels
from ..graph.size_model import SizeModel
from ..graph.trace import trace_model
from ..utils.model_index import ModelIndex
from ..utils.public_call import interruptible
from ..utils.timing import time_model
from ..utils.weights import check_weights


@interruptible
def network_size(model: nn.Module, example_inputs: Any, quantity: str) -> float:
    """Measures a network in the quantity of a budget.

    Args:
        model: The network, which is not changed.
        example_inputs: What it is called on.
        quantity: A name of :data:`fec_fast.pruning.allocation.budget.QUANTITIES`.

    Returns:
        Parameters, multiply-accumulates, bytes or milliseconds.
    """
    index = ModelIndex.of(model)
    check_weights(index)
    if quantity == "latency_ms":
        return 1e3 * time_model(index, example_inputs).seconds
    trace = trace_model(index, example_inputs)
    coupling = couple_channels(trace)
    return float(getattr(SizeModel(index, trace, coupling), quantity)(np.zeros(len(coupling.sets))))

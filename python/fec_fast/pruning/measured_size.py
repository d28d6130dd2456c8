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
from ..utils.runtimes import deployed
from ..utils.timing import time_model
from ..utils.weights import check_weights
from .allocation.budget import Budget


@interruptible
def network_size(model: nn.Module, example_inputs: Any, budget: Budget) -> float:
    """Measures a network in the quantity of a budget.

    Args:
        model: The network, which is not changed.
        example_inputs: What it is called on.
        budget: Says the quantity, and of latency the runtime.

    Returns:
        Parameters, multiply-accumulates, bytes or milliseconds.
    """
    index = ModelIndex.of(model)
    check_weights(index)
    if budget.quantity == "latency_ms":
        return 1e3 * time_model(deployed(index, example_inputs, budget.runtime), example_inputs).seconds
    trace = trace_model(index, example_inputs)
    coupling = couple_channels(trace)
    return float(getattr(SizeModel(index, trace, coupling), budget.quantity)(np.zeros(len(coupling.sets))))

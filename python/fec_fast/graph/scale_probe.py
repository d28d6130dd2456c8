"""The scale probe: is the scale of attention computed from the width in every run, or held by an attribute?"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ..utils.compat import TorchDispatchMode, operator_name
from ..utils.critical_section import put_back_by
from ..utils.errors import InputError
from ..utils.forward import call_model, copied_inputs, plain_operators, restored_parameters, undisturbed
from ..utils.model_index import ModelIndex
from ..utils.running_module import RunningModule
from .head_choice import factor_of
from .parameter_guard import ParameterGuard
from .shape_only import ShapeOnlyRun, block_value_access

_CHANGE = 1.37  # no power of a width is this times another number that a model is likely to hold


class _Factors(TorchDispatchMode):
    """Notes the numbers that activations are multiplied with, by module."""

    def __init__(self, index: ModelIndex, inputs: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._evaluate = ShapeOnlyRun(inputs)
        self.guard, self.running = ParameterGuard(index), RunningModule(index.modules)
        self.found: dict[str, list[float]] = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.guard.before(func, args, kwargs or {})
        factor = factor_of(operator_name(func).removeprefix("aten::"), args)
        if factor is not None:
            self.found[self.running.name].append(factor)
        return self._evaluate(func, args, kwargs or {})


def computed_scales(index: ModelIndex, example_inputs: Any, scales: Mapping[str, Sequence[float]]) -> set[str]:
    """Finds the modules that multiply by a number that no attribute of theirs holds.

    The model is run once more, for its shapes alone, with other numbers in the attributes that are not whole: a factor
    that is the same as before does not come from there.

    Args:
        index: The index of the model, which is left as it was.
        example_inputs: What the trace was made with.
        scales: For each module the factors to look at.

    Returns:
        The names of the modules. One that cannot be run for its shapes alone is not found; the trial run of the pruned
        network, or the proof, sees what it computes.
    """
    held = {
        layer: {name: value for name, value in vars(index.modules[layer]).items() if type(value) is float}
        for layer in scales
    }
    if not any(held.values()):
        return set(scales)
    given = copied_inputs(example_inputs)
    mode = _Factors(index, given)
    with plain_operators(index), undisturbed(index), restored_parameters(index):
        for layer, values in held.items():
            for name, value in values.items():
                setattr(index.modules[layer], name, value * _CHANGE)
        with (
            put_back_by(mode.guard.restore),
            contextlib.suppress(InputError),
            mode.running.watching(),
            mode,
            block_value_access(),
        ):
            call_model(index.model, given)
    return {
        layer
        for layer, factors in scales.items()
        if any(math.isclose(factor, other, rel_tol=1e-9) for factor in factors for other in mode.found[layer])
    }

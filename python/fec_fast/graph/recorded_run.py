"""Runs of a network that leave it as it was, operator by operator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..utils.compat import TorchDispatchMode
from ..utils.critical_section import put_back_by, surely_closed
from ..utils.errors import InputError
from ..utils.forward import call_model, copied_inputs, plain_operators, restored_parameters, undisturbed
from ..utils.model_index import ModelIndex
from .dispatch_mode import Evaluate
from .parameter_guard import ParameterGuard
from .shape_only import ShapeOnlyRun, block_value_access, call_with_values


class RecordingMode(TorchDispatchMode):
    """Calls every operator, and records those that were passed.

    Attributes:
        guard: Keeps the parameters that the model's code writes to.
        passed: The operators.
    """

    def __init__(self, network: ModelIndex, evaluate: Evaluate) -> None:
        """Starts with nothing recorded.

        Args:
            network: The index of the network that will be run.
            evaluate: Calls an operator with positional and keyword arguments.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.guard, self.passed = ParameterGuard(network), list[Any]()
        self._evaluate = evaluate

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls an operator, then records it."""
        kwargs = kwargs or {}
        self.guard.before(func, args, kwargs)
        result = self._evaluate(func, args, kwargs)
        self.passed.append(func)
        return result


def can_run(network: ModelIndex, example_inputs: Any, *, training: bool = False) -> bool:
    """Whether a network can be run, for its shapes alone or, where that is not possible, as it is.

    Args:
        network: The index of the network, which is left as it was.
        example_inputs: What the trace was made with.
        training: Whether to run it in training mode.
    """
    for for_shapes, values in ((True, block_value_access()), (False, contextlib.nullcontext())):
        given = copied_inputs(example_inputs)
        mode = RecordingMode(network, ShapeOnlyRun(given) if for_shapes else call_with_values)
        with contextlib.suppress(InputError), unchanged(network, mode, mode.guard, training), values:
            call_model(network.model, given)
            return True
    return False


@surely_closed
def unchanged(network: ModelIndex, mode: TorchDispatchMode, guard: ParameterGuard, training: bool) -> Iterator[None]:
    """Runs a network in a dispatch mode, and leaves it as it was.

    Args:
        network: The index of the network.
        mode: The mode.
        guard: What the mode asks before every operator.
        training: Whether the network is in training mode inside the context.

    Yields:
        Nothing.

    Raises:
        InputError: At the end, if the model's code gave a parameter another shape.
    """
    with plain_operators(network), undisturbed(network, training=training), restored_parameters(network) as replaced:
        shapes = {name: tensor.shape for name, tensor in network.tensors.items()}
        with put_back_by(guard.restore), mode:
            yield
        for name in replaced():
            if network.tensors[name].shape != shapes[name]:
                raise InputError(
                    f"the model's code makes {name} anew in a run, {list(network.tensors[name].shape)} where the plan "
                    f"wants {list(shapes[name])}: name the layers that it is made from in ignore="
                )

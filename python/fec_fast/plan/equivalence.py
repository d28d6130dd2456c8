"""Equivalence check: the pruned network computes what the original computes with the removed channels set to zero."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.compat import TorchDispatchMode
from ..utils.errors import EquivalenceError, InputError
from ..utils.forward import call_model, describe_tensors, map_tensors, tensors_in, undisturbed
from ..utils.model_index import ModelIndex
from ..utils.modules import unwrap
from .plan import Plan, check_plan


def masked_copy(index: ModelIndex, plan: Plan) -> nn.Module:
    """Copies a model and sets the channels that a plan removes to zero, in the layers that write and that read them.

    Args:
        index: The index of the model before pruning; the model is not changed.
        plan: A plan for this model.

    Returns:
        The masked copy, with the shapes of the original.
    """
    masked = copy.deepcopy(index.model)
    tensors = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
    with torch.no_grad():
        for name, axes in plan.keep.items():
            # Batch norm divides by the variance, and one of zero would leave almost nothing to divide by. Its weight,
            # bias and mean are zero for the channel, so the output is zero whatever the variance is.
            if name not in tensors or name.endswith("running_var"):
                continue
            for axis, kept in axes.items():
                removed = sorted(set(range(plan.shapes[name][int(axis)])) - set(kept))
                tensors[name].index_fill_(int(axis), torch.tensor(removed, device=tensors[name].device), 0)
    return masked


def verify_equivalence(
    original: nn.Module, pruned: nn.Module, plan: Plan, example_inputs: Any, *, tolerance: float = 1e-5
) -> float:
    """Compares a pruned network with the original whose removed channels are masked.

    Both run in evaluation mode, as float64 copies, so that a difference is an error and not rounding (tensors that the
    model's own code makes in float32 become float64 too). A model that does not run in float64 is run in its own dtype.
    A detector may return no boxes on the example inputs. Where the outputs hold no number, the outputs of the layers
    that keep all their filters (its heads) are compared.

    Args:
        original: The model before pruning; not changed.
        pruned: The model after pruning; not changed.
        plan: The plan that was applied.
        example_inputs: Inputs for both models: a tensor or list is the single argument, a tuple the positional
            arguments, a dictionary the keyword arguments.
        tolerance: The largest relative difference allowed. Default: 1e-5.

    Returns:
        The largest absolute difference of any output tensor, divided by that tensor's largest absolute value.

    Raises:
        EquivalenceError: The difference is larger than the tolerance, the outputs differ in shape or are not finite, or
            there is nothing to compare.
        PlanError: The plan is for another model than ``original``.
        InputError: A model cannot be run on these inputs.
    """
    return compare_with_masked(ModelIndex.of(original), unwrap(pruned), plan, example_inputs, tolerance)


def compare_with_masked(
    index: ModelIndex, pruned: nn.Module, plan: Plan, example_inputs: Any, tolerance: float = 1e-5
) -> float:
    """Does what :func:`verify_equivalence` does, for a model whose index is known.

    Args:
        index: The index of the model before pruning; the model is not changed.
        pruned: The model after pruning, out of its wrappers; not changed.
        plan: The plan that was applied.
        example_inputs: Inputs for both models: a tensor or list is the single argument, a tuple the positional
            arguments, a dictionary the keyword arguments.
        tolerance: The largest relative difference allowed. Default: 1e-5.

    Returns:
        The largest relative difference.

    Raises:
        FecError: As :func:`verify_equivalence` says.
    """
    check_plan(plan, index)
    networks = masked_copy(index, plan), copy.deepcopy(pruned)
    try:
        inputs = map_tensors(lambda t: t.double() if t.is_floating_point() else t, example_inputs)
        with _Float64():  # type: ignore[no-untyped-call]
            expected, actual = (_outputs(network.double(), inputs, plan) for network in networks)
    except InputError as error:
        # These two are what torch raises where an operator has no float64 kernel or a dtype is written into the model.
        if not isinstance(error.__cause__, RuntimeError | TypeError):
            raise
        # double() has changed the copies in place, so new ones are made.
        networks = masked_copy(index, plan), copy.deepcopy(pruned)
        expected, actual = (_outputs(network, example_inputs, plan) for network in networks)
    difference = _relative_difference(expected, actual)
    if difference > tolerance:
        raise EquivalenceError(
            f"the pruned network differs from the masked original by {difference:.3g} (relative), more than "
            f"{tolerance:g}; please report the model, and pass the layers concerned in ignore="
        )
    return difference


def _relative_difference(expected: list[Tensor], actual: list[Tensor]) -> float:
    """The largest difference of any output, relative to the largest value of that output.

    Raises:
        EquivalenceError: The shapes differ, a value is not finite, or there is nothing to compare.
    """
    if [t.shape for t in expected] != [t.shape for t in actual]:
        raise EquivalenceError(
            f"the pruned network returns {describe_tensors(actual)}, the masked original {describe_tensors(expected)}; "
            "please report the model, and pass the layers concerned in ignore="
        )
    if not any(tensor.numel() for tensor in expected):
        raise EquivalenceError(
            "the model returns no number on these inputs and no layer keeps its filters, so nothing can be compared; "
            "try other example inputs"
        )
    largest = 0.0
    for left, right in zip(expected, actual, strict=True):
        left, right = left.double(), right.double()
        if not bool(torch.isfinite(left).all() and torch.isfinite(right).all()):
            raise EquivalenceError("an output is NaN or infinite, so nothing can be compared; try other example inputs")
        if left.numel():
            difference = float((left - right).abs().max())
            largest = max(largest, difference / (float(left.abs().max()) or 1.0))
    return largest


class _Float64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes a model compute in float64 where its own code asks for float32 or creates tensors of the default dtype.

    ``model.double()`` converts parameters and buffers only. A ``torch.zeros(...)`` or ``x.to(torch.float32)`` in the
    forward method would still meet them with float32.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        result = func(*args, **kwargs)
        # A float32 result of float32 operands is left alone: it is computed from something that was float32 before.
        is_new_float32 = (
            isinstance(result, Tensor)
            and result.dtype == torch.float32
            and not any(t.dtype == torch.float32 for t in tensors_in((args, kwargs)))
        )
        return result.double() if is_new_float32 else result


def _outputs(model: nn.Module, inputs: Any, plan: Plan) -> list[Tensor]:
    """The output tensors of a model, followed by those of the layers that keep all filters if the outputs are empty."""
    with undisturbed(model):
        outputs = [tensor.detach() for tensor in tensors_in(call_model(model, inputs))]
        if any(tensor.numel() for tensor in outputs):
            return outputs
        layer_outputs: list[Tensor] = []
        hooks = [
            module.register_forward_hook(lambda _module, _inputs, output: layer_outputs.extend(tensors_in(output)))
            for name, module in model.named_modules()
            if name in plan.pinned
        ]
        try:
            call_model(model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
    return [*outputs, *(tensor.detach() for tensor in layer_outputs)]

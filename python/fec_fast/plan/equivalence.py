"""The proof of a pruning: the pruned network computes what the original computes with those channels masked."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.compat import TorchDispatchMode
from ..utils.errors import EquivalenceError, InputError
from ..utils.forward import call_model, describe, map_tensors, tensors_in, undisturbed
from ..utils.modules import unwrap
from .plan import Plan


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """Copies a model and sets the channels a plan removes to zero, where they are made and where they are read.

    Args:
        model: The model before pruning.
        plan: A plan for it.

    Returns:
        The masked copy, of the original's shape.

    Raises:
        PlanError: The plan is for another model.
    """
    model = unwrap(model)
    plan.check(model)
    masked = copy.deepcopy(model)
    tensors = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
    with torch.no_grad():
        for name, axes in plan.keep.items():
            # A variance of zero would divide by almost nothing; the other numbers of the channel are zero already.
            if name not in tensors or name.endswith("running_var"):
                continue
            for axis, kept in axes.items():
                gone = sorted(set(range(plan.shapes[name][int(axis)])) - set(kept))
                tensors[name].index_fill_(int(axis), torch.tensor(gone, device=tensors[name].device), 0)
    return masked


def verify_equivalence(
    original: nn.Module, pruned: nn.Module, plan: Plan, example_inputs: Any, *, tolerance: float = 1e-5
) -> float:
    """Compares a pruned network with the original whose removed channels are masked.

    Both run in evaluation mode, as float64 copies, so that a difference is a mistake and not rounding (what the model's
    own code makes in float32 becomes float64 too); where the model does not run in float64, in its own dtype. A
    detector may find nothing on the example inputs: where the outputs hold no number, the outputs of the layers that
    keep all their filters (its heads) are compared.

    Args:
        original: The model before pruning; not changed.
        pruned: The model after pruning; not changed.
        plan: The plan that was applied.
        example_inputs: See :func:`fec_fast.utils.forward.call_model`.
        tolerance: The largest relative difference allowed.

    Returns:
        The largest absolute difference of any output tensor, divided by that tensor's largest absolute value.

    Raises:
        EquivalenceError: A larger difference, another shape of the outputs, outputs that are not finite, or nothing
            that could be compared.
        PlanError: The plan is for another model than ``original``.
        InputError: A model cannot be run on these inputs.
    """
    masked, pruned = mask(original, plan), copy.deepcopy(unwrap(pruned))
    try:
        inputs = map_tensors(lambda t: t.double() if t.is_floating_point() else t, example_inputs)
        with _Float64():  # type: ignore[no-untyped-call]
            expected = _outputs(masked.double(), inputs, plan)
            found = _outputs(pruned.double(), inputs, plan)
    except InputError as error:
        if not isinstance(error.__cause__, RuntimeError | TypeError):
            raise
        masked, pruned = mask(original, plan), copy.deepcopy(unwrap(pruned))
        expected, found = (_outputs(network, example_inputs, plan) for network in (masked, pruned))
    if [t.shape for t in expected] != [t.shape for t in found]:
        raise EquivalenceError(
            f"the pruned network returns {describe(found)}, the masked original {describe(expected)}; "
            "please report the model, and pass the layers concerned in ignore="
        )
    if not any(tensor.numel() for tensor in expected):
        raise EquivalenceError(
            "the model returns no number on these inputs and no layer keeps its filters, so nothing can be compared; "
            "try other example inputs"
        )
    worst = 0.0
    for left, right in zip(expected, found, strict=True):
        left, right = left.double(), right.double()
        if not bool(torch.isfinite(left).all() and torch.isfinite(right).all()):
            raise EquivalenceError("an output is NaN or infinite, so nothing can be compared; try other example inputs")
        if left.numel():
            difference = float((left - right).abs().max())
            worst = max(worst, difference / (float(left.abs().max()) or 1.0))
    if worst > tolerance:
        raise EquivalenceError(
            f"the pruned network differs from the masked original by {worst:.3g} (relative), more than {tolerance:g}; "
            "please report the model, and pass the layers concerned in ignore="
        )
    return worst


class _Float64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Has a model compute in float64 where its own code asks for float32, or makes tensors of the default dtype."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        result = func(*args, **kwargs)
        made = isinstance(result, Tensor) and result.dtype == torch.float32
        return (
            result.double()
            if made and not any(t.dtype == torch.float32 for t in tensors_in((args, kwargs)))
            else result
        )


def _outputs(model: nn.Module, inputs: Any, plan: Plan) -> list[Tensor]:
    with undisturbed(model):
        outputs = [tensor.detach() for tensor in tensors_in(call_model(model, inputs))]
        if any(tensor.numel() for tensor in outputs):
            return outputs
        kept: list[Tensor] = []
        hooks = [
            module.register_forward_hook(lambda _module, _inputs, output: kept.extend(tensors_in(output)))
            for name, module in model.named_modules()
            if name in plan.pinned
        ]
        try:
            call_model(model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
    return [*outputs, *(tensor.detach() for tensor in kept)]

"""What is looked at before a model is traced: the arguments, and whether there are weights that can be scored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..scoring.formula import Formula
from ..utils.errors import ArgumentError, LayerError, WeightError
from ..utils.modules import modules_of, named_tensors
from .criteria import ENTROPIC, Criterion, check_criterion


def check_arguments(
    model: nn.Module, criterion: str | Criterion, formula: Formula | None, sides: str, ignore: Sequence[str]
) -> tuple[str, Formula]:
    """Validates what says how channels are scored.

    Args:
        model: See :func:`fec_fast.prune`, as the others.
        criterion: See there.
        formula: See there.
        sides: See there.
        ignore: See there.

    Returns:
        The criterion's name, and the formula.

    Raises:
        ArgumentError: An argument of the wrong kind.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(ignore, str):
        raise ArgumentError(f"ignore={ignore!r}: give a sequence of names, such as ({ignore!r},)")
    if sides not in ("both", "producer"):
        raise ArgumentError(f"sides={sides!r}: one of 'both', 'producer'")
    if formula is not None and not isinstance(formula, Formula):
        raise ArgumentError(f"formula: expected a fec_fast.Formula, got {type(formula).__name__}")
    if formula is not None and criterion not in ENTROPIC:
        raise ArgumentError(f"formula= belongs to criterion='fec_l1' or 'fec', not to criterion={criterion!r}")
    return check_criterion(criterion), formula or Formula()


def check_weights(model: nn.Module) -> None:
    """Makes sure that a model has weights, all of them dense, finite and there.

    Args:
        model: Not wrapped.

    Raises:
        LayerError: It has no parameters.
        WeightError: A parameter or buffer that cannot be pruned, by name.
    """
    tensors = named_tensors(model)
    if not tensors:
        raise LayerError(f"{type(model).__name__} has no parameters: there is nothing to prune")
    for name, tensor in tensors.items():
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise WeightError(f"{name} is not initialised: run the model once before pruning it")
        if tensor.is_meta:
            raise WeightError(f"{name} is on the meta device and has no values: load the weights first")
        if tensor.layout != torch.strided:
            raise WeightError(f"{name} is sparse ({tensor.layout}): convert it with .to_dense()")
        if tensor.is_quantized:
            raise WeightError(f"{name} is quantised ({tensor.dtype}): prune the float model and quantise it afterwards")
        if is_traceable_wrapper_subclass(tensor):
            raise WeightError(f"{name} is a {type(tensor).__name__}: prune the plain model and convert it afterwards")
    for name, module in modules_of(model).items():
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise WeightError(f"{name} is quantised: prune the float model and quantise it afterwards")
    for name, tensor in tensors.items():
        # A sum is not finite where a term is not; where it merely overflows, every element is looked at.
        if isinstance(tensor, nn.Parameter) and tensor.numel() and not bool(torch.isfinite(tensor.detach().sum())):
            finite = torch.isfinite(tensor.detach())
            if bool(finite.all()):
                continue
            index = torch.nonzero(~finite)[0].tolist()
            value = float(tensor.detach()[tuple(index)])
            raise WeightError(f"{name} holds {value} at index {index}: repair or reload it")

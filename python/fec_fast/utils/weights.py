"""Checks that a model has weights that can be scored and pruned."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .compat import is_traceable_wrapper_subclass
from .errors import LayerError, WeightError
from .modules import modules_of, named_tensors


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

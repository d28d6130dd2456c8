"""Checks of weights: whether a tensor can be scored and pruned, and whether a whole model can."""

from __future__ import annotations

import functools
import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .compat import ConvolutionBase, is_fake, is_traceable_wrapper_subclass, own_buffers, own_parameters
from .errors import LayerError, WeightError
from .model_index import ModelIndex
from .modules import is_sharded

# The dtypes that every backend reads.
SCORABLE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Those that scoring reads through float16 copies, which have exactly their values.
FLOAT8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
_ORDINARY = (nn.Parameter, Tensor)


class Trouble(NamedTuple):
    """Why a weight is unfit to be scored and pruned.

    Attributes:
        what: A clause whose subject is the weight, such as ``"is sparse (torch.sparse_coo)"``.
        remedy: What to do about it, an imperative clause.
    """

    what: str
    remedy: str


QUANTISED_LAYER = Trouble("is quantised", "score and prune the float model and quantise it afterwards")


def weight_trouble(
    weight: Tensor, *, holds_filters: bool = True, may_be_empty: bool = False, by_copy: bool = False
) -> Trouble | None:
    """Decides whether a tensor is fit to be scored and pruned: the one place that does.

    The values are not looked at here; see :func:`first_not_finite`.

    Args:
        weight: Any tensor, on any device.
        holds_filters: Whether it is the weight of a convolution or linear layer, which needs channels and a
            floating-point dtype. Other parameters and buffers may have any shape and dtype.
        may_be_empty: Whether a weight without elements is accepted.
        by_copy: Whether float8 and sharded weights are accepted, which can be scored by :func:`plain_copy` alone.

    Returns:
        The trouble and its remedy; ``None`` if the tensor is fit.
    """
    # Nearly every weight; the questions below take five times as long.
    if (
        type(weight) in _ORDINARY
        and weight.dtype in SCORABLE_DTYPES
        and weight.layout is torch.strided
        and not weight.is_meta
        and weight.dim() > 1
        and (may_be_empty or weight.numel())
    ):
        return None
    if is_lazy(weight):  # first of all: a lazy tensor has no other property that could be asked for
        return Trouble("is not initialised", "run the model once on an input")
    if weight.is_quantized:
        return Trouble(f"is quantised ({weight.dtype})", QUANTISED_LAYER.remedy)
    if weight.layout != torch.strided:
        return Trouble(f"is sparse ({weight.layout})", "make it dense with .to_dense()")
    if weight.is_meta:
        return Trouble(
            "is on the meta device and has no values", "model.to_empty(device='cpu') and load the weights first"
        )
    if is_fake(weight):
        return Trouble("is a fake tensor and has no values", "build the model outside of FakeTensorMode")
    sharded = is_sharded(weight)
    if is_traceable_wrapper_subclass(weight) and not (sharded and by_copy):
        return Trouble(f"is a {type(weight).__name__}", "score and prune the plain model and convert it afterwards")
    if not holds_filters:
        return None
    if weight.dtype not in SCORABLE_DTYPES and not (by_copy and not sharded and weight.dtype in FLOAT8_DTYPES):
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in SCORABLE_DTYPES)
        return Trouble(f"is {str(weight.dtype).removeprefix('torch.')}", f"convert the model to one of {known}")
    if weight.dim() < 2:
        return Trouble(f"has shape {list(weight.shape)}", "a filter needs channels, so give two dimensions or more")
    if weight.numel() == 0 and not may_be_empty:
        return Trouble(f"is empty, {list(weight.shape)}", "give the layer at least one channel and one filter")
    return None


def plain_copy(weight: Any) -> Tensor:
    """Copies a float8 or sharded weight to a tensor that every backend reads, with the same values.

    Args:
        weight: Any weight. A sharded one is gathered, which is collective: all processes that have a part of it have to
            call this, for the same weights in the same order.

    Returns:
        float16 of a float8 weight; the whole weight of a sharded one; another one itself, detached.
    """
    with torch.no_grad():
        whole: Tensor = weight.detach().full_tensor() if is_sharded(weight) else weight.detach()
    return whole.half() if whole.dtype in FLOAT8_DTYPES else whole


def is_quantised_layer(module: nn.Module) -> bool:
    """Tells whether a module is one of torch's quantised layers.

    Args:
        module: Any module.

    Returns:
        True for the modules of ``torch.ao.nn.quantized``, ``torch.ao.nn.intrinsic.quantized`` and their like, most of
        which keep a packed weight behind a method. False for ``FloatFunctional``, which stands there too but belongs to
        float models, and for the layers of quantisation-aware training, which have float weights.
    """
    kind: Any = type(module)
    return is_quantised_class(kind)


@functools.lru_cache(maxsize=1024)
def is_quantised_class(kind: Any) -> bool:
    """Tells whether modules of a class are quantised layers; see :func:`is_quantised_layer`."""
    path = kind.__module__.split(".")
    return path[0] == "torch" and "quantized" in path and kind.__name__ not in ("FloatFunctional", "FXFloatFunctional")


def first_not_finite(weight: Tensor) -> tuple[int, ...] | None:
    """Finds a NaN or an infinity.

    Args:
        weight: A dense floating-point tensor, on any device.

    Returns:
        The index of the first such element; ``None`` if all are finite.
    """
    values = weight.detach()
    # A sum is not finite where a term is not. Where it merely overflows, every element is looked at.
    if not values.numel() or bool(torch.isfinite(values.sum())):
        return None
    wrong = (~torch.isfinite(values)).nonzero()
    return tuple(int(position) for position in wrong[0]) if len(wrong) else None


def check_finite(name: str, model: nn.Module) -> None:
    """Checks that the parameters of a network are numbers.

    Args:
        name: The name of the argument that holds it, for the message.
        model: The network.

    Raises:
        WeightError: A parameter is NaN or infinite; the first is named.
    """
    for own, parameter in model.named_parameters():
        position = None if is_sharded(parameter) else first_not_finite(parameter)
        if position is not None:
            value = parameter[position].item()
            message = f"{name}: {own} holds {value} at index {list(position)}: repair or reload it"
            raise WeightError(message, layer=own.rpartition(".")[0], index=position)


def check_weights(index: ModelIndex) -> None:
    """Checks that a model has weights, and that all of them can be scored and pruned.

    Args:
        index: The index of the model.

    Raises:
        LayerError: The model has no parameters.
        WeightError: A parameter or buffer is unfit, or a parameter is NaN or infinite; it is named.
    """
    modules = index.modules
    for name, module in modules.items():
        if is_quantised_layer(module):
            raise WeightError(f"{name} {QUANTISED_LAYER.what}: {QUANTISED_LAYER.remedy}", layer=name)
    if not index.tensors:
        raise LayerError(f"{type(index.model).__name__} has no parameters: there is nothing to prune")
    for name, module in modules.items():
        for own, tensor in [*own_parameters(module).items(), *own_buffers(module).items()]:
            if tensor is None:
                continue
            trouble = weight_trouble(
                tensor,
                holds_filters=own == "weight" and isinstance(module, ConvolutionBase | nn.Linear),
                may_be_empty=isinstance(module, nn.Linear),  # such as a head that was taken off; it is not scored
            )
            if trouble is not None:
                raise WeightError(f"{_join(name, own)} {trouble.what}: {trouble.remedy}", layer=name)
    for name, module in modules.items():
        for own, parameter in own_parameters(module).items():
            position = None if parameter is None else first_not_finite(parameter)
            if parameter is not None and position is not None:
                message = f"{_join(name, own)} holds {parameter[position].item()} at index {list(position)}"
                raise WeightError(f"{message}: repair or reload it", layer=name, index=position)


def state_digest(model: nn.Module) -> str:
    """A digest of all values of a model's state, for results that depend on them.

    Args:
        model: The model.

    Returns:
        The SHA-256 of the names, dtypes, shapes and values of its parameters and buffers, in hexadecimal.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):  # what a module adds by get_extra_state
            continue
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _join(layer: str, own: str) -> str:
    return f"{layer}.{own}" if layer else own

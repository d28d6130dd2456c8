"""What surgery cannot reach through: models whose parameters, or their shapes, are held by torch.distributed."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..scoring.model_scores import unwrap
from .errors import ArgumentError, WeightError
from .modules import modules_of


def unwrap_for_surgery(model: nn.Module) -> nn.Module:
    """Takes a model that is to be changed in place out of its wrappers.

    ``DataParallel`` and ``torch.compile`` notice new shapes at their next call. ``DistributedDataParallel`` does not:
    its buckets have the shapes of the day it was built, and could not be trained afterwards.

    Args:
        model: A module, possibly inside ``DataParallel`` or ``torch.compile``.

    Returns:
        The module inside, or the module itself.

    Raises:
        ArgumentError: It is not a module, or has a ``DistributedDataParallel`` in it.
        WeightError: Its parameters are sharded.
    """
    inner = unwrap(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            where = f"{name!r} is" if name else "the model is"
            raise ArgumentError(
                f"{where} wrapped by DistributedDataParallel, whose buckets keep the shapes from before and could not "
                "be trained afterwards: change the module inside (ddp.module) and wrap it again"
            )
    refuse_sharded(inner)
    return inner


def is_part(tensor: Any) -> bool:
    """Tells whether a tensor lies in parts on several processes.

    Args:
        tensor: Any, or ``None``.

    Returns:
        True for a DTensor and its like, known by the name: torch without ``torch.distributed`` has none to ask for.
    """
    return is_traceable_wrapper_subclass(tensor) and type(tensor).__module__.startswith("torch.distributed")


def refuse_sharded(model: nn.Module) -> None:
    """Makes sure that every parameter and buffer is here as a whole.

    Args:
        model: The model, not wrapped.

    Raises:
        WeightError: It is wrapped by FSDP, or holds a DTensor; the layer is named.
    """
    remedy = "prune the plain model before sharding it, on every rank alike"
    for name, module in modules_of(model).items():
        # By the name, because importing FSDP takes a second; fully_shard mixes its class in.
        if any(kind.__module__.startswith("torch.distributed.fsdp") for kind in type(module).__mro__):
            where = f"layer {name!r}" if name else "the model"
            raise WeightError(f"{where} is sharded by FSDP, so its weights are not here as a whole: {remedy}")
        for own, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if is_part(tensor):
                kind = type(tensor).__name__
                raise WeightError(f"layer {name!r}: its {own} is a {kind}, sharded over devices: {remedy}")

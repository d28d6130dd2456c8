"""Weights that lie in parts on all processes (FSDP2): how they come apart, and how they come together again.

What is trained is then a copy of the model, which torch's ``fully_shard`` takes apart, by way of accelerate. The
caller's model stays whole: it gets the weights after every epoch, is evaluated, and is what results.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..utils.errors import BackendError
from ..utils.modules import is_part

if TYPE_CHECKING:
    from accelerate import Accelerator


def splits_weights(accelerator: Accelerator) -> bool:
    """Tells whether accelerate was told to split the weights over the processes.

    Args:
        accelerator: The training's.

    Returns:
        True for FSDP2, False where every process has all weights.

    Raises:
        BackendError: They are to be split in a way that is not supported.
    """
    from accelerate import DistributedType

    kind = accelerator.distributed_type
    if kind == DistributedType.FSDP:
        if not getattr(accelerator, "is_fsdp2", False):
            raise BackendError(
                "FSDP's first version is not supported; take the second (accelerate launch --fsdp_version 2, with "
                "accelerate 1.6 or later), or DDP"
            )
        return True
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise BackendError(f"{kind.value} is not supported; to split the weights take FSDP2, or else DDP")
    return False


def copied(model: nn.Module) -> nn.Module:
    """Makes the copy that is to be taken apart.

    Args:
        model: On the accelerator's device; gets the first process's weights in all of them, as DDP would see to: each
            process keeps a part of its own, and parts of different networks would make none.

    Returns:
        The copy.
    """
    from accelerate.utils import broadcast

    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(broadcast(tensor.clone()))
    return copy.deepcopy(model)


def taken_apart(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None
) -> tuple[nn.Module, Any]:
    """Takes a network apart, its optimizer's parameters with it, and its average in the same way.

    Args:
        accelerator: Says where a part ends (``fsdp_auto_wrap_policy``).
        model: Changed in place, its parameters are DTensors from now on.
        optimizer: Of its parameters, without a state yet; gets the new ones.
        average: A copy of the model, changed in place.

    Returns:
        The network to be called, and the optimizer as accelerate wraps it.

    Raises:
        BackendError: The parts are to be such as torch does not make.
    """
    from accelerate.utils import convert_to_fp32, fsdp2_prepare_model

    plugin = accelerator.state.fsdp_plugin  # it may be the caller's, who gets it back as it was
    before = plugin.cpu_ram_efficient_loading, plugin.mixed_precision_policy
    # Every process has the weights already; and accelerate's way of sending them (1.15) knows no buffers.
    plugin.cpu_ram_efficient_loading = False
    # It would make batch norm's weights bfloat16 next to float32 statistics, which torch refuses. The forward pass runs
    # under autocast below, as it does without FSDP.
    plugin.mixed_precision_policy = None
    try:
        prepared, wrapped = accelerator.prepare(model, optimizer)
        if average is not None:
            fsdp2_prepare_model(accelerator, average)
    except ValueError as error:  # such as for a ModuleList, which accelerate's policies take for a layer
        reason = str(error).partition("\n")[0]
        raise BackendError(
            f"{type(model).__name__} cannot be split as accelerate was told to, take --fsdp_auto_wrap_policy NO_WRAP: "
            f"{reason}"
        ) from error
    finally:
        plugin.cpu_ram_efficient_loading, plugin.mixed_precision_policy = before
    if accelerator.mixed_precision != "no":
        plain = prepared.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            with accelerator.autocast():
                return convert_to_fp32(plain(*args, **kwargs))

        prepared.forward = forward
    return prepared, wrapped


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Puts tensors together; all processes have to ask for it, for the same ones in the same order.

    Args:
        tensors: Parts of tensors, or whole ones.

    Returns:
        Whole ones in every process.
    """
    return {name: _put_together(value) for name, value in tensors.items()}


def like(own: Any, value: Tensor) -> Tensor:
    """Takes a whole tensor apart as another one is, if that one is.

    Args:
        own: A part, or whole.
        value: Whole, of the same shape, on any device.

    Returns:
        The value, apart as ``own`` is.
    """
    if not is_part(own):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


def _put_together(tensor: Any) -> Tensor:
    found: Tensor = tensor.full_tensor() if is_part(tensor) else tensor
    return found

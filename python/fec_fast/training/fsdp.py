"""FSDP2: sharding a model's weights over the processes, and gathering them again.

With FSDP2 a copy of the model is trained, and torch's ``fully_shard`` replaces its parameters by DTensors. The caller's
model is never sharded: it receives the gathered weights after every epoch, is what gets evaluated, and is what the
caller has at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..utils.copying import copied_model
from ..utils.errors import BackendError
from ..utils.model_index import ModelIndex
from ..utils.modules import is_sharded

if TYPE_CHECKING:
    from accelerate import Accelerator


def uses_fsdp2(accelerator: Accelerator) -> bool:
    """Tells whether accelerate is configured to shard the weights over the processes.

    Args:
        accelerator: The accelerator of the training.

    Returns:
        True for FSDP2; False where every process holds all weights (one process, DDP).

    Raises:
        BackendError: Another kind of sharding is configured: FSDP version 1, DeepSpeed or Megatron-LM.
    """
    from accelerate import DistributedType

    kind = accelerator.distributed_type
    if kind == DistributedType.FSDP:
        if not getattr(accelerator, "is_fsdp2", False):
            raise BackendError(
                "FSDP version 1 is not supported; use version 2 (accelerate launch --fsdp_version 2, with accelerate "
                "1.6 or later), or DDP"
            )
        return True
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise BackendError(f"{kind.value} is not supported; to shard the weights use FSDP2, otherwise DDP")
    return False


def copy_for_sharding(model: nn.Module) -> nn.Module:
    """Broadcasts rank 0's weights to all processes and copies the model.

    DDP broadcasts when it wraps a model; ``fully_shard`` does not. Each process keeps its own shard of its own weights,
    so models that differ between processes would be mixed into one.

    Args:
        model: A model on the accelerator's device; rank 0's weights are written into it.

    Returns:
        The copy, which is to be sharded.
    """
    from accelerate.utils import broadcast

    with torch.no_grad():
        for tensor in model.state_dict().values():
            if isinstance(tensor, Tensor):  # no extra state of a module
                tensor.copy_(broadcast(tensor.clone()))
    return copied_model(ModelIndex.of(model))


def shard(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None
) -> tuple[nn.Module, Any]:
    """Shards a model, the parameters in its optimizer, and its moving average.

    Args:
        accelerator: Decides which modules become units of their own (``fsdp_auto_wrap_policy``).
        model: The model; changed in place: its parameters become DTensors.
        optimizer: The optimizer of its parameters, without state yet; it receives the new parameters.
        average: The model of the moving average, if there is one; changed in place, sharded the same way.

    Returns:
        The model to be called in training, and accelerate's wrapper of the optimizer.

    Raises:
        BackendError: torch cannot shard the model in the configured way.
    """
    from accelerate.utils import convert_to_fp32, fsdp2_prepare_model

    plugin = accelerator.state.fsdp_plugin  # shared with an accelerator of the caller's, so it is restored below
    settings_before = plugin.cpu_ram_efficient_loading, plugin.mixed_precision_policy
    # RAM-efficient loading sends rank 0's weights to the others. All have them already (copy_for_sharding), and
    # accelerate 1.15 forgets the buffers in doing so.
    plugin.cpu_ram_efficient_loading = False
    # FSDP's own mixed precision casts the weights of batch norm to bfloat16 while its statistics stay float32, which
    # torch refuses. The forward pass runs under autocast instead (below), as it does without FSDP.
    plugin.mixed_precision_policy = None
    try:
        sharded, prepared_optimizer = accelerator.prepare(model, optimizer)
        if average is not None:
            # Sharded by this function because accelerate.prepare accepts only one model.
            fsdp2_prepare_model(accelerator, average)
    except ValueError as error:  # for example for a ModuleList, which accelerate's policies take for a layer
        reason = str(error).partition("\n")[0]
        raise BackendError(
            f"{type(model).__name__} cannot be sharded in the configured way, use --fsdp_auto_wrap_policy NO_WRAP: "
            f"{reason}"
        ) from error
    finally:
        plugin.cpu_ram_efficient_loading, plugin.mixed_precision_policy = settings_before
    if accelerator.mixed_precision != "no":
        forward_in_float32 = sharded.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            with accelerator.autocast():
                return convert_to_fp32(forward_in_float32(*args, **kwargs))

        sharded.forward = forward
    return sharded, prepared_optimizer


def gather_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Gathers sharded tensors into full ones.

    Args:
        tensors: DTensors, plain tensors or extra states of modules, by name. The gathering is collective: all processes
            have to call this with the same names in the same order.

    Returns:
        Full tensors, in every process; everything else as it is.
    """
    return {name: _full_tensor(tensor) for name, tensor in tensors.items()}


def shard_like(reference: Any, tensor: Any) -> Any:
    """Shards a full tensor in the way another tensor is sharded.

    Args:
        reference: A DTensor or a plain tensor.
        tensor: A full tensor of the same shape, on any device.

    Returns:
        A DTensor with the device mesh and placements of ``reference``; the tensor itself if ``reference`` is plain.
    """
    if not is_sharded(reference):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(reference.device), reference.device_mesh, reference.placements)


def _full_tensor(tensor: Any) -> Any:
    return tensor.full_tensor() if is_sharded(tensor) else tensor

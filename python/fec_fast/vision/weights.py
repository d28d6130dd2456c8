"""Weights: the state dict of a file, loaded into a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..utils.arguments import check_path
from ..utils.errors import ArgumentError, CheckpointError, LayerError, list_some, nearest
from ..utils.modules import check_not_made_for_inference, modules_of, named_tensors
from ..utils.public_call import interruptible
from ..utils.tensor_files import StoredTensor, open_tensors
from ..utils.undo import all_or_nothing
from .weight_files import read_weights, without_wrapper


# Torch reads a file through a function of ours, and makes another error of the Ctrl-C that is raised in there.
@interruptible
def load_weights(model: nn.Module, file: str | Path) -> nn.Module:
    """Loads the weights of a file into a network, all of them or none.

    Args:
        model: The network, changed in place; it keeps its dtype and device.
        file: A safetensors file, or a .pth or .pt file with a state dict (read with ``weights_only=True``), plain or
            under the key ``"state_dict"``. Names may begin with ``"module."``, as DataParallel writes them.
            ``num_batches_tracked`` may be missing, as in files of old versions of torch.

    Returns:
        The same network.

    Raises:
        CheckpointError: The file is missing, cannot be read, or does not fit the model.
        LayerError: The model has parameters on the meta device, which have no values, or its state cannot be read.
        ArgumentError: Not a module, or not a path.
        WeightError: The model was made in inference mode. After any error, and after Ctrl-C, the model is unchanged.

    Warns:
        FecWarning: Once, for a .pth file read by a torch before 2.10, whose reader has a fault (CVE-2026-24747).
    """
    path = check_path("file", file)
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: expected a torch.nn.Module, got a {type(model).__name__}")
    state = read_weights(path)
    own = _state_of(model)
    meta = next((key for key, value in own.items() if isinstance(value, Tensor) and value.is_meta), None)
    if meta is not None:
        raise LayerError(f"{meta!r} is on the meta device and cannot hold weights: call model.to_empty(device='cpu')")
    _check_names_and_shapes(type(model).__name__, own, state, path)
    for key, tensor in state.items():
        if trouble := _trouble(tensor):
            raise CheckpointError(f"{path}: {key!r} is {trouble}; save a state dict of dense tensors with values")
    if not torch.is_inference_mode_enabled():
        check_not_made_for_inference(modules_of(model))
    # A plain dictionary has no version metadata, as files of old versions of torch. Batch norm then accepts that
    # num_batches_tracked is missing.
    with all_or_nothing() as undo:
        for name, tensor in named_tensors(model).items():
            if name in own and not is_lazy(tensor):
                undo.values(tensor)
        try:
            model.load_state_dict(state, strict=True)
        except RuntimeError as error:  # a module's own way of loading may refuse what has the right shape
            raise CheckpointError(f"{path} cannot be loaded into this {type(model).__name__}: {error}") from error
        return model


def check_stored_weights(model: nn.Module, file: Path) -> None:
    """Checks that :func:`load_weights` would accept the names and shapes of a file, by its header alone.

    Args:
        model: The network, which may be on the meta device.
        file: A safetensors file.

    Raises:
        CheckpointError: The file is missing, is not in the safetensors format, or does not fit the model.
        LayerError: The state of the model cannot be read.
        OSError: The file cannot be read.
    """
    if not file.is_file():
        raise CheckpointError(f"there is no weights file {file}")
    with open_tensors(file) as tensors:
        _check_names_and_shapes(type(model).__name__, _state_of(model), without_wrapper(tensors), file)


def _state_of(model: nn.Module) -> dict[str, Any]:
    try:
        return model.state_dict()
    except Exception as error:  # of a module of the user's, or of a parameter that only a lazy module can store
        raise LayerError(
            f"model: its state cannot be read ({type(error).__name__}: {error}): give a whole model"
        ) from error


def _check_names_and_shapes(
    kind: str, own: Mapping[str, Any], state: Mapping[str, Tensor] | Mapping[str, StoredTensor], path: Path
) -> None:
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    if missing or unexpected:
        parts = [f"lacks {list_some(list(map(repr, missing)))}"] if missing else []
        if unexpected:
            names = list_some(list(map(repr, unexpected)))
            parts.append(f"has {names}, which the model does not have ({nearest(unexpected[0], own)})")
        raise CheckpointError(
            f"{path} is not for this {kind}: it {' and '.join(parts)}; give the weights of this network"
        )
    for key, value in own.items():
        if key in state and isinstance(value, Tensor) and not is_lazy(value) and state[key].shape != value.shape:
            raise CheckpointError(
                f"{path} is not for this {kind}: {key!r} is {list(state[key].shape)} in the file and "
                f"{list(value.shape)} in the model; give the weights of this network"
            )


def _trouble(tensor: Tensor) -> str:
    """Why the values of a tensor cannot be copied, in words; empty where they can."""
    if tensor.is_meta:
        return "on the meta device"
    if tensor.layout != torch.strided:
        return f"{str(tensor.layout).removeprefix('torch.')}"
    return "quantised" if tensor.is_quantized else ""

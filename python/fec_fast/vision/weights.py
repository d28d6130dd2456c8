"""Weights of checkpoint files, loaded into a network."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..utils.errors import CheckpointError, LayerError, nearest


def load_weights(model: nn.Module, file: str | Path) -> nn.Module:
    """Fills a network with the weights of a file, all of them or none.

    Args:
        model: The network, changed in place; keeps its dtype and device.
        file: A safetensors file, or a .pth or .pt file with a state dict (read with ``weights_only=True``), plain or
            under the key ``"state_dict"``; names may begin with ``"module."``, as DataParallel writes them.
            ``num_batches_tracked`` may be missing, as in files of old.

    Returns:
        The same network.

    Raises:
        CheckpointError: The file is missing, cannot be read, or does not fit; the model is unchanged.
        LayerError: The model has parameters on the meta device, which hold no values.
    """
    path = Path(file)
    state = _read_state(path)
    own = model.state_dict()
    meta = next((key for key, value in own.items() if isinstance(value, Tensor) and value.is_meta), None)
    if meta is not None:
        raise LayerError(f"{meta!r} is on the meta device and cannot hold weights: call model.to_empty(device='cpu')")
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    if missing or unexpected:
        parts = [f"lacks {_some(missing)}"] if missing else []
        if unexpected:
            parts.append(f"has {_some(unexpected)} that the model has not ({nearest(unexpected[0], own)})")
        raise CheckpointError(f"{path} is not for this {type(model).__name__}: it {' and '.join(parts)}")
    for key, value in own.items():
        if key in state and isinstance(value, Tensor) and not is_lazy(value) and state[key].shape != value.shape:
            raise CheckpointError(
                f"{path} is not for this {type(model).__name__}: {key!r} is {list(state[key].shape)} in the file and "
                f"{list(value.shape)} in the model"
            )
    # A plain dictionary without version metadata: batch norm then accepts a missing num_batches_tracked.
    model.load_state_dict(state, strict=True)
    return model


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"there is no weights file {path}")
    loaded: Any
    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors (or is damaged) and is not read, since that could run code; save "
            "model.state_dict(), best as safetensors"
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read, it may be truncated: {error}") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise CheckpointError(f"{path} holds no state dict, that is no mapping of names to tensors")
    return dict(_plain_names(loaded))


def _plain_names(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    wrapped = all(key.startswith("module.") for key in state)
    for key, value in state.items():
        yield (key.removeprefix("module.") if wrapped else key), value


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(repr(key) for key in keys[:3]) + more

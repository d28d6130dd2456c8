"""The state of an unfinished training on disk: tensors as safetensors, the rest as JSON. No pickle.

The folder holds ``training.json`` and the one tensor file that it names, with its checksum. A new state is written
beside the old one and takes effect when ``training.json`` is renamed into place, so that a crash at any moment leaves
either the old state or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..utils.errors import CheckpointError
from ..utils.files import atomic_file, sha256, write_text

_FORMAT = "fec_fast training state"
_VERSION = 2
_INDEX = "training.json"


@dataclass(frozen=True)
class TrainingState:
    """What a training needs to go on to the same numbers.

    Attributes:
        epoch: Number of finished epochs.
        settings: Everything the coming numbers depend on; must be the same when training goes on.
        history: One dictionary for each finished epoch.
        progress: Share of the training that is done, in [0, 1].
        stopped: What ended the training; ``None`` while it is not over.
        scaler: State of the gradient scaler of float16 training, else ``None``.
        model: The model's state dict.
        optimizer: Tensors of the optimizer, by ``"what/parameter"``; a parameter that never had a gradient has none.
        average: The averaged weights and their count, if an average is kept; otherwise empty.
        best: The state dict of the best epoch, if one is chosen; otherwise empty.
    """

    epoch: int
    settings: dict[str, Any]
    history: list[dict[str, Any]]
    progress: float
    stopped: str | None
    scaler: dict[str, Any] | None
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor]
    best: dict[str, Tensor]


_TENSORS = ("model", "optimizer", "average", "best")
_PLAIN = ("epoch", "settings", "history", "progress", "stopped", "scaler")


def check_folder(folder: Path) -> None:
    """Makes sure that a training state may be written to a folder.

    Args:
        folder: May be absent, empty, or hold a training state.

    Raises:
        CheckpointError: It is a file, or holds something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; name a folder for the training state")
    if not (folder / _INDEX).is_file() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} holds something else than a training state and is left alone; name another")


def exists(folder: Path) -> bool:
    """Tells whether a folder holds a training state.

    Args:
        folder: Any path.

    Returns:
        True if there is one, whole or not.
    """
    return (folder / _INDEX).is_file()


def write(folder: Path, state: TrainingState) -> None:
    """Writes a training state, replacing the one that is there only when the new one is whole.

    Args:
        folder: See :func:`check_folder`; made if absent.
        state: What to write. Tensors may be on any device.

    Raises:
        CheckpointError: The folder holds something else.
        OSError: The disk is full or not writable; the old state is still there.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"state-{state.epoch:04d}.safetensors"
    # A tensor that lies in the file twice (tied weights) must not share memory, hence the clones.
    tensors = {
        f"{kind}/{key}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for kind in _TENSORS
        for key, value in getattr(state, kind).items()
    }
    with atomic_file(folder / name) as temporary:
        save_file(tensors, temporary)
    index = {
        "format": _FORMAT,
        "version": _VERSION,
        **{name: getattr(state, name) for name in _PLAIN},
        "file": name,
        "sha256": sha256(folder / name),
    }
    write_text(folder / _INDEX, json.dumps(index, indent=1) + "\n")
    for old in [*folder.glob("state-*.safetensors"), *folder.glob("*.part")]:
        if old.name != name:
            old.unlink()


def read(folder: Path, settings: Mapping[str, Any], model: nn.Module) -> TrainingState:
    """Reads a training state and makes sure that it belongs to this training of this model.

    Args:
        folder: Holds a training state.
        settings: The settings of the training that is to go on.
        model: The model that is to be filled; not changed.

    Returns:
        The state, tensors on the CPU.

    Raises:
        CheckpointError: It is missing, truncated or edited, or belongs to another training or model.
    """
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        if index["format"] != _FORMAT or index["version"] != _VERSION:
            raise CheckpointError(
                f"{folder / _INDEX} is {index['format']!r} version {index['version']!r}; this version of fec_fast "
                f"reads {_FORMAT!r} version {_VERSION}"
            )
        file = folder / Path(index["file"]).name
        if sha256(file) != index["sha256"]:
            raise CheckpointError(f"{file} was truncated or edited: its checksum is not the one in {_INDEX}")
        tensors = load_file(file)
        groups: dict[str, dict[str, Tensor]] = {kind: {} for kind in _TENSORS}
        for key, value in tensors.items():
            kind, _, rest = key.partition("/")
            groups[kind][rest] = value
        state = TrainingState(**{**{name: index[name] for name in _PLAIN}, **groups})
    except (OSError, KeyError, TypeError, AttributeError, ValueError, safetensors.SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"the training state in {folder} cannot be read: {reason}") from error
    _check_settings(folder, state.settings, json.loads(json.dumps(settings)))
    _check_tensors(folder, state, model)
    return state


def _check_settings(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    changed = [
        f"{key} was {stored.get(key)!r} and is {wanted.get(key)!r}"
        for key in sorted({*stored, *wanted})
        if stored.get(key) != wanted.get(key)
    ]
    if changed:
        raise CheckpointError(
            f"the training in {folder} cannot go on with other settings ({'; '.join(changed)}): take the old ones, or "
            "start anew with resume=False"
        )


def _check_tensors(folder: Path, state: TrainingState, model: nn.Module) -> None:
    own = model.state_dict()
    parameters = {key: value for key, value in model.named_parameters() if value.requires_grad}
    odd = sorted(set(state.model) ^ set(own))
    odd += [key for key in state.model if key in own and state.model[key].shape != own[key].shape]
    for key, value in state.optimizer.items():
        name = key.partition("/")[2]
        # What is not as large as the parameter is a count of steps.
        if name not in parameters or (value.ndim and value.shape != parameters[name].shape):
            odd.append(name)
    if odd:
        raise CheckpointError(
            f"the training state in {folder} is for another model: it differs in {odd[0]!r} and {len(odd) - 1} more; a "
            "pruned model must be loaded as pruned before it is trained on"
        )

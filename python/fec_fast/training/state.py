"""Training state on disk: tensors as safetensors, everything else as JSON, no pickle.

The folder holds ``training.json`` and one tensor file, which ``training.json`` names together with its checksum. A new
tensor file is written beside the old one, under a name of its own, so that it replaces no other; the new state takes
effect when ``training.json`` is replaced by a rename. A kill at any moment therefore leaves the old state or the new.
"""

from __future__ import annotations

import copy
import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
import torch
from torch import Tensor, nn

from ..utils.errors import CheckpointError
from ..utils.files import atomic_file, is_scratch, make_folders, sha256, write_text
from ..utils.reading import read_json
from ..utils.tensor_files import read_tensors, write_tensors

_FORMAT = "fec_fast training state"
_VERSION = 2
_INDEX = "training.json"
_TENSORS = re.compile(r"state-\d{4,}-[0-9a-f]{16}\.safetensors")


@dataclass(frozen=True)
class TrainingState:
    """Everything that a training needs to resume with the same numbers.

    Attributes:
        epoch: Number of finished epochs.
        settings: Settings and other conditions that the numbers depend on; must be equal when the training is resumed.
        history: One dictionary per finished epoch.
        progress: Share of the training that is done, in [0, 1].
        stopped: What ended the training; ``None`` while it is unfinished.
        scaler: State of the gradient scaler of float16 training, otherwise ``None``.
        model: State dict of the model: tensors, and what else modules add by ``get_extra_state``.
        optimizer: Tensors of the optimizer by ``"ENTRY/PARAMETER"``, for example ``"momentum_buffer/conv1.weight"``. A
            parameter that never had a gradient has none.
        average: State dict of the moving average; empty if none is kept.
        best: State dict of the best epoch; empty unless ``patience`` selects one.
    """

    epoch: int
    settings: dict[str, Any]
    history: list[dict[str, Any]]
    progress: float
    stopped: str | None
    scaler: dict[str, Any] | None
    model: dict[str, Any]
    optimizer: dict[str, Tensor]
    average: dict[str, Any]
    best: dict[str, Any]


_TENSOR_FIELDS = ("model", "optimizer", "average", "best")
_JSON_FIELDS = ("epoch", "settings", "history", "progress", "stopped", "scaler")


class _Head(TypedDict):
    format: str
    version: int


class _EpochRow(TypedDict):
    """The fields of an :class:`fec_fast.Epoch`; ``null`` stands for a metric that is NaN, which JSON cannot write."""

    epoch: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
    loss: float
    metrics: dict[str, float | None]
    held_out: dict[str, float | None] | None
    lr: float
    images: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
    seconds: Annotated[float, msgspec.Meta(ge=0)]


class _Index(_Head):
    """The schema of ``training.json``."""

    epoch: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
    settings: dict[str, Any]
    history: list[_EpochRow]
    progress: Annotated[float, msgspec.Meta(ge=0, le=1)]
    stopped: str | None
    scaler: dict[str, float] | None
    extra_states: NotRequired[dict[str, Any]]  # by the names that tensors have in the other file
    file: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]+\\.safetensors$")]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


def check_state_folder(folder: Path) -> None:
    """Checks that a training state may be written to a folder.

    Args:
        folder: The folder: absent, empty, or with a training state in it.

    Raises:
        CheckpointError: The path is a file, or the folder holds something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; name a folder for the training state")
    # A kill during the first write leaves a file of tensors without an index, or a scratch folder.
    foreign = [path for path in folder.iterdir() if not (_TENSORS.fullmatch(path.name) or is_scratch(path))]
    if not (folder / _INDEX).is_file() and foreign:
        raise CheckpointError(f"{folder} holds something other than a training state and is left alone; name another")


def has_state(folder: Path) -> bool:
    """Tells whether a folder holds a training state.

    Args:
        folder: Any path, also one that does not exist.

    Returns:
        True if there is a training state. It may still be damaged.
    """
    return (folder / _INDEX).is_file()


def check_extra_states(state: Mapping[str, Any]) -> None:
    """Checks that a training state can hold what modules add to a state dict by ``get_extra_state``.

    Args:
        state: The state dict of a model, or of a moving average.

    Raises:
        CheckpointError: A module returns something that is neither a tensor nor the same after JSON has held it.
    """
    for name, value in state.items():
        if isinstance(value, Tensor):
            continue
        try:
            is_kept = bool(json.loads(json.dumps(value, allow_nan=False)) == value)
        except (TypeError, ValueError, RecursionError):
            is_kept = False
        if not is_kept:
            layer = name.removesuffix("._extra_state") if "." in name else ""
            raise CheckpointError(
                f"layer {layer!r}: get_extra_state returns a {type(value).__name__} ({value!r:.80}) that a training "
                "state cannot hold: return a tensor, or what JSON can hold (text, finite numbers, lists, dictionaries "
                "whose keys are text); or train without checkpoint="
            )


def copied_state(model: nn.Module) -> dict[str, Any]:
    """Copies the state dict of a model.

    Args:
        model: The model, on any device.

    Returns:
        The tensors on the CPU; extra states are copied as objects.
    """
    return {
        name: value.detach().cpu().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in model.state_dict().items()
    }


def write_state(folder: Path, state: TrainingState) -> None:
    """Writes a training state. An older state in the folder is deleted once the new one is complete.

    Args:
        folder: The folder; it is created if absent.
        state: The state. Its tensors may be on any device.

    Raises:
        CheckpointError: The path is a file, the folder holds something other than a training state, the history is not
            that of as many epochs, or a state has other objects than :func:`check_extra_states` accepts. Nothing was
            written.
        OSError: The disk is full or not writable; the old state is still there.
    """
    check_state_folder(folder)
    _check_history(state.history, state.epoch, f"the training state for {folder}")
    entries = {f"{kind}/{key}": value for kind in _TENSOR_FIELDS for key, value in getattr(state, kind).items()}
    for kind in _TENSOR_FIELDS:
        check_extra_states(getattr(state, kind))
    make_folders(folder)
    # Cloned because safetensors refuses tensors that share memory, which tied weights do.
    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }
    file = folder / f"state-{state.epoch:04d}-{secrets.token_hex(8)}.safetensors"
    try:
        with atomic_file(file) as temporary:
            write_tensors(temporary, tensors)
        index = {
            "format": _FORMAT,
            "version": _VERSION,
            **{name: getattr(state, name) for name in _JSON_FIELDS},
            "history": [_with_metrics(row, math.nan, None) for row in state.history],
            "extra_states": {key: value for key, value in entries.items() if key not in tensors},
            "file": file.name,
            "sha256": sha256(file),
        }
        write_text(folder / _INDEX, json.dumps(index, indent=1, allow_nan=False) + "\n")
    finally:  # of the old state and the new one, the one that the index does not name is removed
        _remove_unnamed(folder)


def _remove_unnamed(folder: Path) -> None:
    """Removes files of tensors that the index does not name: older ones, and those of writes that were not finished."""
    try:
        named = read_json(folder / _INDEX, _Index, CheckpointError)["file"]
    except FileNotFoundError:
        named = None
    except (OSError, CheckpointError):  # nothing is removed where it cannot be said what is old
        return
    for path in folder.iterdir():
        if _TENSORS.fullmatch(path.name) and path.name != named:
            path.unlink(missing_ok=True)


def read_state(folder: Path, settings: Mapping[str, Any], model: nn.Module) -> TrainingState:
    """Reads a training state and checks that it belongs to this training and this model.

    Args:
        folder: The folder of the training state.
        settings: Settings and other conditions of the training that is to be resumed.
        model: The model that the state is meant for; not changed.

    Returns:
        The state, with all tensors on the CPU.

    Raises:
        CheckpointError: The state is missing, truncated or edited, or belongs to another training or model.
    """
    try:
        head = read_json(folder / _INDEX, _Head, CheckpointError)
        if (head["format"], head["version"]) != (_FORMAT, _VERSION):
            raise CheckpointError(
                f"{folder / _INDEX} is {head['format']!r} version {head['version']!r}; this version of fec_fast "
                f"reads {_FORMAT!r} version {_VERSION}"
            )
        index = read_json(folder / _INDEX, _Index, CheckpointError)
        file = folder / index["file"]

        def check(digest: str) -> None:
            if digest != index["sha256"]:
                raise CheckpointError(f"{file} was truncated or edited: its checksum is not the one in {_INDEX}")

        entries = {**read_tensors(file, check).tensors, **index.get("extra_states", {})}
        groups: dict[str, dict[str, Any]] = {kind: {} for kind in _TENSOR_FIELDS}
        for key, value in entries.items():
            kind, _, name = key.partition("/")
            if kind not in groups:
                raise CheckpointError(f"{folder} has {key!r}, which is no part of a training state")
            groups[kind][name] = value
        _check_history(index["history"], index["epoch"], f"{folder / _INDEX} is damaged: it")
        history = [_with_metrics(row, None, math.nan) for row in index["history"]]
        fields: dict[str, Any] = {name: value for name, value in index.items() if name in _JSON_FIELDS}
        state = TrainingState(**{**fields, "history": history, **groups})
    except CheckpointError:
        raise
    except Exception as error:  # safetensors raises several kinds on damaged bytes
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"the training state in {folder} cannot be read: {reason}") from error
    _check_settings(folder, state.settings, json.loads(json.dumps(settings)))
    _check_tensors(folder, state, model)
    return state


def _check_history(history: Sequence[Mapping[str, Any]], epoch: int, subject: str) -> None:
    """Raises unless there is one row per epoch: a training resumes at the epoch after the last row."""
    # The lengths first: a stored epoch may be any number, and a list of as many would fill the memory.
    if len(history) != epoch or [row["epoch"] for row in history] != list(range(1, epoch + 1)):
        raise CheckpointError(f"{subject} has {len(history)} rows of history that are not those of {epoch} epochs")


def _with_metrics(row: Mapping[str, Any], old: float | None, new: float | None) -> dict[str, Any]:
    """A record of an epoch with NaN among its metrics written as ``None``, or read back from it."""

    def replaced(metrics: Mapping[str, Any]) -> dict[str, Any]:
        are_old = {name: value is None if old is None else value != value for name, value in metrics.items()}
        return {name: new if are_old[name] else value for name, value in metrics.items()}

    held_out = row["held_out"]
    return {**row, "metrics": replaced(row["metrics"]), "held_out": None if held_out is None else replaced(held_out)}


def _check_settings(folder: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    changed = [
        f"{key} was {stored.get(key)!r} and is {current.get(key)!r}"
        for key in sorted({*stored, *current})
        if stored.get(key) != current.get(key)
    ]
    if changed:
        raise CheckpointError(
            f"the training in {folder} cannot be resumed with other settings ({'; '.join(changed)}): use the old ones, "
            "or start again with resume=False"
        )


def _check_tensors(folder: Path, state: TrainingState, model: nn.Module) -> None:
    expected = model.state_dict()
    parameters = {key: value for key, value in model.named_parameters() if value.requires_grad}
    differing: list[str] = []
    average = {key.removeprefix("module."): value for key, value in state.average.items() if key != "n_averaged"}
    for kept in (state.model, *filter(None, (average, state.best))):
        differing += sorted(set(kept) ^ set(expected))
        differing += [key for key in kept if key in expected and _shape(kept[key]) != _shape(expected[key])]
    for key, value in state.optimizer.items():
        name = key.partition("/")[2]
        # A 0-dim entry is a count of steps; all others have the shape of their parameter.
        if name not in parameters or (_shape(value) and _shape(value) != parameters[name].shape):
            differing.append(name)
    if differing:
        raise CheckpointError(
            f"the training state in {folder} is for another model: it differs in {differing[0]!r} and "
            f"{len(differing) - 1} more; load the pruned model from its checkpoint before resuming its training"
        )


def _shape(value: Any) -> torch.Size | None:
    """The shape of a tensor; ``None`` for an extra state."""
    return value.shape if isinstance(value, Tensor) else None

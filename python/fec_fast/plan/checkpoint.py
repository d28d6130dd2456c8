"""Checkpoints of pruned models: a plan in JSON and weights in safetensors, checked before anything is changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol, TypeVar

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..utils.errors import CheckpointError, nearest
from ..utils.files import atomic_folder, sha256
from ..utils.modules import unwrap, unwrap_for_surgery
from .plan import Plan
from .surgery import apply_plan

_FORMAT = "fec_fast.checkpoint"
_VERSION = 1
_MANIFEST, _PLAN, _WEIGHTS = "checkpoint.json", "plan.json", "model.safetensors"
_FILES = (_MANIFEST, _PLAN, _WEIGHTS)

Model = TypeVar("Model", bound=nn.Module)


class Pruned(Protocol):
    """What can be saved: a ``PruneResult``, or anything else with a pruned model and the plan it was pruned by."""

    @property
    def model(self) -> nn.Module:
        """The pruned model."""

    @property
    def plan(self) -> Plan:
        """The plan that made it from the original."""


def save(result: Pruned, folder: str | os.PathLike[str]) -> Path:
    """Writes a pruned model: ``plan.json``, ``model.safetensors`` and ``checkpoint.json`` with their checksums.

    The files are written into a folder beside, which then takes the name. An older checkpoint of that name is
    replaced by one exchange on Linux; elsewhere it is moved aside first, and a crash at that moment leaves it beside
    under a name that ends in ``.old``.

    Args:
        result: The result of pruning; its ``model`` may have been fine-tuned since, and may be wrapped by
            ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile``.
        folder: Where to write. It may exist if it is empty or holds a checkpoint and nothing else.

    Returns:
        The folder.

    Raises:
        CheckpointError: The folder holds something else, or the model has a state that is not a tensor.
    """
    target = check_destination(folder)
    model = unwrap(result.model)
    tensors, aliases = _unique(_state(model))
    with atomic_folder(target) as scratch:
        (scratch / _PLAN).write_text(result.plan.to_json(), encoding="utf-8")
        save_file(tensors, scratch / _WEIGHTS, metadata={"format": "pt", "aliases": json.dumps(aliases)})
        files = {
            name: {"bytes": (scratch / name).stat().st_size, "sha256": sha256(scratch / name)}
            for name in (_PLAN, _WEIGHTS)
        }
        manifest = {"format": _FORMAT, "version": _VERSION, "files": files}
        (scratch / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return target


def load(model: Model, folder: str | os.PathLike[str]) -> Model:
    """Makes a model fresh from its class into the pruned one, in place. Upon any error the model is as it was.

    Args:
        model: A model of the original's architecture, at full width, on any device; it may be wrapped by
            ``DataParallel`` or ``torch.compile``. Wrap it by ``DistributedDataParallel`` afterwards.
        folder: A checkpoint written by :func:`save`.

    Returns:
        The same model: pruned, with the weights and dtypes of the checkpoint, on the devices and in the mode it had.

    Raises:
        CheckpointError: The checkpoint is missing, truncated, edited, or does not fit the model.
        PlanError: The plan is for another model.
        ArgumentError: It is not a module, or is wrapped by ``DistributedDataParallel``.
        WeightError: Its parameters are sharded (FSDP, DTensor).
    """
    inner = unwrap_for_surgery(model)
    path = _validated(folder)
    plan = _parse_plan(path)
    plan.check(inner)
    weights = _staged(inner, plan, path)

    apply_plan(inner, plan)
    # Nothing below can fail: names, shapes and kinds were compared and every tensor is on its device already.
    with torch.no_grad():
        for name, tensor in _state(inner).items():
            new = weights[name]
            if tensor.dtype == new.dtype:
                tensor.copy_(new)
            else:
                tensor.grad = None  # a gradient of another dtype would be refused beside the new data
                tensor.data = new
    return model


def read_plan(folder: str | os.PathLike[str]) -> Plan:
    """Reads the plan of a checkpoint, checksums first.

    Args:
        folder: A checkpoint written by :func:`save`.

    Returns:
        The plan.

    Raises:
        CheckpointError: The checkpoint is missing, truncated or edited.
    """
    return _parse_plan(_validated(folder))


def check_destination(folder: str | os.PathLike[str]) -> Path:
    """Finds out whether :func:`save` may write to a folder, so that long work can be refused before it starts.

    Args:
        folder: Where a checkpoint is to be written.

    Returns:
        The absolute path.

    Raises:
        CheckpointError: It is a file, or a folder that holds something other than a checkpoint.
    """
    target = Path(os.path.abspath(folder))
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise CheckpointError(f"{folder} is not a folder; give the name of a new folder or of an older checkpoint")
    if target.is_dir():
        foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in _FILES)
        if foreign:
            raise CheckpointError(
                f"{folder} holds {foreign[0]!r}, which is no part of a checkpoint, and is not overwritten; "
                f"give the name of a new folder"
            )
        if any(target.iterdir()):
            _manifest(target)
    return target


def _manifest(folder: Path) -> dict[str, Any]:
    """The content of ``checkpoint.json``, once it is known to be one."""
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}")
    file = folder / _MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = (content["format"], content["version"])
        complete = all(
            isinstance(content["files"][name][key], kind)
            for name in (_PLAN, _WEIGHTS)
            for key, kind in (("bytes", int), ("sha256", str))
        )
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {_MANIFEST}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} is damaged ({type(error).__name__}: {error}); save the checkpoint anew"
        ) from error
    if found != (_FORMAT, _VERSION):
        raise CheckpointError(
            f"{file}: format {found[0]!r} version {found[1]!r}; expected {_FORMAT!r} version {_VERSION}"
        )
    if not complete:
        raise CheckpointError(f"{file} is damaged: sizes and checksums are missing; save the checkpoint anew")
    return dict(content)


def _validated(folder: str | os.PathLike[str]) -> Path:
    """The path of a checkpoint whose files are whole and are those that were written together."""
    path = Path(folder)
    manifest = _manifest(path)
    for name, expected in ((name, manifest["files"][name]) for name in (_PLAN, _WEIGHTS)):
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path} is incomplete: it has no {name}")
        size = file.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(f"{file} has {size} bytes, {_MANIFEST} says {expected['bytes']}: truncated?")
        if sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file} has another SHA-256 than {_MANIFEST} says: edited or damaged")
    return path


def _parse_plan(path: Path) -> Plan:
    return Plan.from_json((path / _PLAN).read_text(encoding="utf-8"))


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and persistent buffers by name, every alias of a shared one included."""
    owned: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    owned.update(model.named_buffers(remove_duplicate=False))
    names = list(model.state_dict())
    for name in names:
        if name not in owned:
            raise CheckpointError(
                f"the state of the {type(model).__name__} has {name!r}, which is neither a parameter nor a buffer; "
                f"a checkpoint holds tensors only"
            )
    return {name: owned[name] for name in names}


def _unique(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, on the CPU and in memory of its own, and the other names of shared ones."""
    first: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        if tensor.device.type == "meta" or tensor.layout != torch.strided or tensor.is_quantized:
            raise CheckpointError(f"{name!r} is not a dense tensor with values and cannot be saved")
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().nbytes() != plain.numel() * plain.element_size():
            plain = plain.clone()  # a view of something larger
        tensors[name] = plain
    return tensors, aliases


def _staged(model: nn.Module, plan: Plan, path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by name, on the model's devices, once they are known to fit the pruned model."""
    try:
        with safetensors.safe_open(path / _WEIGHTS, framework="pt") as file:
            aliases: dict[str, str] = json.loads((file.metadata() or {}).get("aliases", "{}"))
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path / _WEIGHTS} cannot be read: {error}") from error
    stored.update({name: stored[source] for name, source in aliases.items()})

    state = _state(model)
    for name in stored:
        if name not in state:
            raise CheckpointError(f"{path} has {name!r}, which the model lacks; {nearest(name, state)}")
    staged: dict[str, Tensor] = {}
    filled: dict[int, str] = {}
    for name, tensor in state.items():
        if name not in stored:
            raise CheckpointError(f"{path} lacks {name!r} of the model; {nearest(name, stored)}")
        new = stored[name]
        shape = tuple(plan.new_shapes.get(name, tensor.shape))
        if tuple(new.shape) != shape:
            raise CheckpointError(f"{path}: {name!r} has shape {list(new.shape)}, the pruned model's is {list(shape)}")
        if (new.is_floating_point(), new.is_complex()) != (tensor.is_floating_point(), tensor.is_complex()):
            raise CheckpointError(f"{path}: {name!r} is {new.dtype}, the model's is {tensor.dtype}")
        if tensor.device.type == "meta":
            raise CheckpointError(f"{name!r} of the model is on the meta device: model.to_empty(device='cpu') first")
        other = filled.setdefault(id(tensor), name)
        if other != name and not torch.equal(stored[other], new):
            raise CheckpointError(f"the model shares {other!r} and {name!r}, which differ in {path}")
        staged[name] = staged[other] if other != name else new.to(tensor.device)
    return staged

"""Checkpoints of pruned models: a plan in JSON and weights in safetensors. Everything is checked before any change."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import torch
from torch import Tensor, nn

from ..utils.arguments import check_path
from ..utils.errors import ArgumentError, CheckpointError, PlanError, nearest
from ..utils.files import atomic_folder, check_writable, sha256
from ..utils.model_index import ModelIndex
from ..utils.modules import unwrap, unwrap_for_surgery
from ..utils.onnx_files import OnnxExport, write_onnx
from ..utils.onnx_model import require_onnx
from ..utils.public_call import interruptible
from ..utils.reading import parse_json
from ..utils.tensor_files import TensorFile, write_tensors
from ..utils.undo import all_or_nothing
from ..utils.user_warnings import warn_user
from .checkpoint_files import (
    CARD,
    FORMAT,
    MANIFEST,
    ONNX,
    PLAN,
    VERSION,
    WEIGHTS,
    check_can_be_replaced,
    check_replaceable,
    verified_contents,
    verified_plan,
)
from .model_card import ModelCard, card_text, sizes_of
from .plan import Plan, check_plan
from .shapes import persistent_shapes, shapes_fingerprint
from .surgery import prune_in_place

Model = TypeVar("Model", bound=nn.Module)


class Pruned(Protocol):
    """A pruned model with its plan, such as a :class:`fec_fast.PruneResult`."""

    @property
    def model(self) -> nn.Module:
        """The pruned model."""

    @property
    def plan(self) -> Plan:
        """The plan that made it from the original."""


@overload
def save(
    result: Pruned, folder: str | os.PathLike[str], *, onnx: Any = None, model_card: bool | ModelCard = False
) -> Path: ...


@overload
def save(
    model: nn.Module,
    plan: Plan,
    folder: str | os.PathLike[str],
    *,
    onnx: Any = None,
    model_card: bool | ModelCard = False,
) -> Path: ...


@interruptible
def save(  # noqa: D417 (describes the parameters of both forms)
    *args: Any, onnx: Any = None, model_card: bool | ModelCard = False, **kwargs: Any
) -> Path:
    """Writes a pruned model: ``plan.json``, ``model.safetensors`` and ``checkpoint.json`` with their checksums.

    Call it as ``save(result, folder)`` or as ``save(model, plan, folder)``. Both write the same files. On request there
    is an ONNX file beside them, and a ``README.md`` for people and for the Hugging Face Hub, to which
    ``huggingface_hub.upload_folder`` brings the folder as it is.

    The files are written into a scratch folder beside, which is then renamed. On Linux, an older checkpoint of that
    name is replaced by one exchange. Elsewhere it is moved aside first, and a kill at that moment leaves it beside
    under a name that ends in ``.fec-old``.

    Args:
        result: The result of pruning. Its ``model`` may have been fine-tuned since.
        model: Instead of a result, the pruned model. It may be wrapped by ``DataParallel``, ``DistributedDataParallel``
            or ``torch.compile``; so may that of a result.
        plan: With a model, the plan that made it from the original, for instance one from :func:`fec_fast.compose`.
        folder: The folder to write. It may exist if it is empty or holds a checkpoint and nothing else.
        onnx: Example inputs, as for :func:`fec_fast.export_onnx`: adds ``model.onnx``, which takes batches of any size
            and is compared with torch before. ``None``: no such file.
        model_card: ``True`` adds ``README.md`` with the plan, the sizes and how to load the model. A
            :class:`fec_fast.ModelCard` adds to it what it was made from, its licence and its accuracy.

    Returns:
        The absolute path of the folder.

    Raises:
        ArgumentError: The arguments match neither form, or one of them has the wrong type.
        CheckpointError: The folder holds something else, a card that was edited, or the model has a state that is not
            a tensor.
        MissingExtraError: ``onnx`` is given, and the packages for it are not installed.
        InputError: The network cannot be run on ``onnx``, or torch cannot export it.
        FecError: The ONNX network computes other outputs than torch.
        PlanError: The plan leaves other names or shapes than the model has.
        OSError: The disk is full, or the folder cannot be written to. After any error an older checkpoint is whole.
    """
    model, plan, folder = _save_arguments(args, kwargs)
    if not isinstance(model_card, bool | ModelCard):
        raise ArgumentError(f"save: model_card={model_card!r:.80}: give True, False or a fec_fast.ModelCard")
    if onnx is not None:
        require_onnx("save(..., onnx=...)")
    target = check_destination(folder)
    tensors, aliases = _unique(_state(unwrap(model)))
    _check_pruned_by(plan, model)
    with atomic_folder(target) as temporary:
        (temporary / PLAN).write_text(plan.to_json(), encoding="utf-8")
        write_tensors(temporary / WEIGHTS, tensors, {"format": "pt", "aliases": json.dumps(aliases)})
        names, exported = [PLAN, WEIGHTS], None
        if onnx is not None:
            difference = write_onnx(model, onnx, temporary / ONNX, "save", any_batch=True, argument="onnx")
            exported = OnnxExport(target / ONNX, (temporary / ONNX).stat().st_size, difference)
            names.append(ONNX)
        if model_card:
            result = kwargs.get("result", args[0] if args else None)
            sizes = sizes_of(result, unwrap(model), plan, (temporary / WEIGHTS).stat().st_size)
            card = model_card if isinstance(model_card, ModelCard) else ModelCard()
            text = card_text(card, type(unwrap(model)).__name__, plan, sizes, exported)
            (temporary / CARD).write_text(text, encoding="utf-8")
            names.append(CARD)
        files = {
            name: {"bytes": (temporary / name).stat().st_size, "sha256": sha256(temporary / name)} for name in names
        }
        manifest = {"format": FORMAT, "version": VERSION, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return target


def _check_pruned_by(plan: Plan, model: nn.Module) -> None:
    """Raises unless a model has the shapes that a plan leaves: together they could not be loaded."""
    shapes = persistent_shapes(ModelIndex.of(model))
    if shapes_fingerprint(shapes) == plan.pruned_fingerprint:
        return
    if shapes_fingerprint(shapes) == plan.fingerprint:
        raise PlanError("save: the model is not pruned yet: call apply_plan(model, plan) before, or give result.model")
    remedy = "give the model that this plan has made, with the parameters and buffers it had"
    for name, shape in plan.new_shapes.items():
        if shapes.get(name) != shape:
            has = f"has {name} of shape {list(shapes[name])}" if name in shapes else f"lacks {name}"
            raise PlanError(f"save: the plan is for another model: this one {has}, it leaves {list(shape)}; {remedy}")
    raise PlanError(f"save: the plan is for another model: the names or shapes of its tensors differ; {remedy}")


def _save_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[nn.Module, Plan, str | os.PathLike[str]]:
    """Returns the model, the plan and the folder from the arguments of either form of :func:`save`."""
    remedy = "call save(result, folder) or save(model, plan, folder)"
    names: tuple[str, ...] = ("result", "folder")
    if (args and isinstance(args[0], nn.Module)) or len(args) + len(kwargs) > 2 or kwargs.keys() & {"model", "plan"}:
        names = ("model", "plan", "folder")
    extra = [_argument("", value) for value in args[len(names) :]]
    extra += [_argument(name, value) for name, value in kwargs.items() if name not in names[len(args) :]]
    if extra:
        raise ArgumentError(f"save: {extra[0]} is one argument too many: {remedy}")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    arguments = {name: given[name] for name in names if name in given}
    missing = [name for name in names if name not in arguments]
    if "result" in arguments:
        result = arguments.pop("result")
        if not hasattr(result, "model") or not hasattr(result, "plan"):
            raise ArgumentError(
                f"save: {_argument('result', result)}: expected a fec_fast.PruneResult, or an object with the model "
                f"and the plan of one: {remedy}"
            )
        warn_of_missing_rounds(result)
        arguments = {"result.model": result.model, "result.plan": result.plan, **arguments}
    expected: dict[str, tuple[str, tuple[type, ...]]] = {
        "model": ("a torch.nn.Module", (nn.Module,)),
        "plan": ("a fec_fast.Plan", (Plan,)),
        "folder": ("a path", (str, os.PathLike)),
    }
    for name, value in arguments.items():
        description, types = expected[name.removeprefix("result.")]
        if not isinstance(value, types):
            raise ArgumentError(f"save: {_argument(name, value)}: expected {description}: {remedy}")
    if missing:
        raise ArgumentError(f"save: {missing[0]} is missing: {remedy}")
    model, plan, folder = arguments.values()
    return model, plan, folder


def warn_of_missing_rounds(result: Any) -> None:
    """Warns if a result is a ``TrainingPruner`` that has rounds left: the end of a plain training loop is not seen.

    Args:
        result: What is saved.
    """
    missing = getattr(result, "missing_rounds", None)
    if isinstance(missing, str):
        warn_user(
            f"this is saved before the last round of pruning: {missing}; train longer, or let the schedule end earlier"
        )


def _argument(name: str, value: Any) -> str:
    """An argument as an error message shows it: short values as they are, others by their type."""
    shown = repr(value) if isinstance(value, str | os.PathLike | int | float | None) else f"<{type(value).__name__}>"
    return f"{name}={shown}" if name else shown


@interruptible
def load(model: Model, folder: str | os.PathLike[str]) -> Model:
    """Prunes a model in place by a checkpoint's plan and fills it with the checkpoint's weights.

    Args:
        model: A model of the original's architecture, at full width, on any device. It may be wrapped by
            ``DataParallel`` or ``torch.compile``. Wrap it by ``DistributedDataParallel`` afterwards.
        folder: A checkpoint written by :func:`save`.

    Returns:
        The same model: pruned, with the weights and dtypes of the checkpoint, on the devices and in the mode it had.

    Raises:
        CheckpointError: The checkpoint is missing, truncated, edited, does not fit the model, or was replaced while it
            was read.
        PlanError: The plan is for another model.
        ArgumentError: Not a module, or wrapped by ``DistributedDataParallel``.
        WeightError: The parameters are sharded (FSDP, DTensor). After any error, and after Ctrl-C, the model is
            unchanged.
    """
    index = ModelIndex.of(unwrap_for_surgery(model))
    with torch.inference_mode(False):  # or the new tensors could not be trained
        path, plan, stored = verified_contents(folder)
        check_plan(plan, index)
        weights = _matching_weights(_state(index.model), plan, path, stored)
        # Everything was checked: names, shapes and dtypes were compared, and every tensor is on its device already.
        with all_or_nothing() as undo:
            prune_in_place(index, plan, undo, weights)
            return model


def read_plan(folder: str | os.PathLike[str]) -> Plan:
    """Reads the plan of a checkpoint after verifying the checksums.

    Args:
        folder: A checkpoint written by :func:`save`.

    Returns:
        The plan.

    Raises:
        CheckpointError: The checkpoint is missing, truncated or edited.
    """
    return verified_plan(folder)


def check_destination(folder: str | os.PathLike[str]) -> Path:
    """Checks that :func:`save` may write to a folder, so that an error comes before a long computation.

    Args:
        folder: The folder of a checkpoint to be written.

    Returns:
        The absolute path.

    Raises:
        CheckpointError: It is a file, or a folder that holds something other than a checkpoint, or that cannot be
            replaced: a symbolic link, the place where a file system is mounted, or the working folder.
        PermissionError: Files cannot be made in the folder that it is in.
    """
    target = Path(os.path.abspath(check_path("folder", folder)))
    check_can_be_replaced(target)
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the name of a new folder or of an older checkpoint")
    if target.is_dir() and any(target.iterdir()):
        check_replaceable(target)
    check_writable(target.parent)
    return target


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and persistent buffers by name; a tied one is listed under each of its names."""
    # state_dict() gives the names, but detached tensors. The owned ones are needed, to be changed in place.
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
    """Returns each tensor once, on the CPU and in memory of its own, and for each other name of it the first name.

    safetensors stores no aliases and no strides: of tied tensors only the first is written, and a view of a larger
    tensor is cloned, because its whole storage would be written otherwise.
    """
    first_names: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        if tensor.device.type == "meta" or tensor.layout != torch.strided or tensor.is_quantized:
            raise CheckpointError(f"{name!r} is not a dense tensor with values and cannot be saved")
        # Tensors are tied if they are the same view of the same memory, even as different Python objects.
        view = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and view in first_names:
            aliases[name] = first_names[view]
            continue
        first_names[view] = name
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().nbytes() != plain.numel() * plain.element_size():
            plain = plain.clone()
        tensors[name] = plain
    return tensors, aliases


def _matching_weights(state: dict[str, Tensor], plan: Plan, path: Path, file: TensorFile) -> dict[str, Tensor]:
    """Checks that the weights of a checkpoint fit a model after pruning.

    Args:
        state: The parameters and persistent buffers of the model before pruning.
        plan: The plan that will be applied to it.
        path: The checkpoint.
        file: Its weights; they are taken out.

    Returns:
        For each name in ``state`` the new value, on the device of the old one. Tied tensors get one value.
    """
    stored, text = file.tensors, file.metadata.get("aliases", "{}")
    aliases = parse_json(text, dict[str, str], f"{path / WEIGHTS}: the list of its tied tensors", CheckpointError)
    for name, first_name in aliases.items():
        if first_name not in stored:
            raise CheckpointError(f"{path / WEIGHTS}: {name!r} shall be tied to {first_name!r}, which it lacks")
    stored.update({name: stored[first_name] for name, first_name in aliases.items()})
    for name in stored:
        if name not in state:
            raise CheckpointError(f"{path} has {name!r}, which the model lacks; {nearest(name, state)}")
    new_shapes = plan.new_shapes
    weights: dict[str, Tensor] = {}
    first_names: dict[int, str] = {}
    for name, tensor in state.items():
        if name not in stored:
            raise CheckpointError(f"{path} lacks {name!r} of the model; {nearest(name, stored)}")
        new = stored[name]
        shape = tuple(new_shapes.get(name, tensor.shape))
        if tuple(new.shape) != shape:
            raise CheckpointError(f"{path}: {name!r} has shape {list(new.shape)}, the pruned model's is {list(shape)}")
        if (new.is_floating_point(), new.is_complex()) != (tensor.is_floating_point(), tensor.is_complex()):
            raise CheckpointError(f"{path}: {name!r} is {new.dtype}, the model's is {tensor.dtype}")
        if tensor.device.type == "meta":
            raise CheckpointError(f"{name!r} of the model is on the meta device: model.to_empty(device='cpu') first")
        # The file may be of a model whose tensors were untied: the tied one of this model cannot hold both values.
        first_name = first_names.setdefault(id(tensor), name)
        if first_name != name and not torch.equal(stored[first_name], new):
            raise CheckpointError(f"the model shares {first_name!r} and {name!r}, which differ in {path}")
        weights[name] = weights[first_name] if first_name != name else new.to(tensor.device)
    stored.clear()
    return weights

"""Checks of the training data and of a first batch, before a training starts."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import DataLoader, Subset, TensorDataset

from ..utils.arguments import first_batch
from ..utils.batches import check_labels, images_and_labels
from ..utils.distributed import launched_processes
from ..utils.errors import FecError, InputError
from ..utils.forward import call_model, describe_tensors, undisturbed
from ..utils.modules import device_of

_STATEFUL = "torchdata.stateful_dataloader.stateful_dataloader"


def length_of(loader: Iterable[Any]) -> int | None:
    """Returns the number of batches of a loader, ``None`` if it does not know.

    Args:
        loader: Any iterable.
    """
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader over an iterable data set has __len__, which raises
        return None


def is_plain(loader: object) -> bool:
    """Whether a loader is a DataLoader without an ``__iter__`` of its own, or one of accelerate or torchdata.

    A subclass may change the batches there. accelerate makes a loader of the same attributes, which does not. The
    ``__iter__`` of torchdata's ``StatefulDataLoader`` counts batches and does not change them.

    Args:
        loader: Any object.
    """
    if not isinstance(loader, DataLoader):
        return False
    if type(loader).__module__ == "accelerate.data_loader":
        return True
    own = type(loader).__iter__
    return own is DataLoader.__iter__ or getattr(own, "__module__", None) == _STATEFUL


def check_can_be_repeated(loader: Iterable[Any], name: str) -> None:
    """Checks that a loader is not an iterator, which has nothing left after the first epoch.

    An object that returns itself is let through: it may begin anew at each call of ``iter``.

    Args:
        loader: The loader.
        name: Name of the argument that holds it, for error messages.

    Raises:
        InputError: It can be gone through only once, or not at all.
    """
    if isinstance(loader, DataLoader):  # with persistent workers it has one iterator, which begins anew
        return
    iterator, again = _iterator(loader, name), _iterator(loader, name)
    # Python's own iterators and generators return themselves, and never begin anew.
    is_iterator = isinstance(loader, types.GeneratorType) or type(loader).__module__ in ("builtins", "itertools")
    if is_iterator if iterator is loader else again is iterator:
        raise InputError(
            f"{name} can be gone through only once, as its iterator is the same one each time; give a torch "
            "DataLoader, or a list of batches"
        )


def _iterator(loader: Iterable[Any], name: str) -> Iterator[Any]:
    """An iterator over a loader of the user's; what goes wrong in it becomes an error that names the argument."""
    try:
        return iter(loader)
    except (FecError, OSError):
        raise
    except Exception as error:
        kind = type(error).__name__
        raise InputError(f"{name}: {type(loader).__name__}.__iter__ raised {kind}: {error}; repair it") from error


def batch_count(loader: Iterable[Any], name: str) -> int:
    """Returns the number of batches of a loader.

    Args:
        loader: The loader.
        name: Name of the argument that holds it, for error messages.

    Returns:
        The number of batches, at least 1.

    Raises:
        InputError: The loader is empty or has no length.
    """
    count = length_of(loader)
    if count is None:
        raise InputError(f"{name} has no length; the schedule needs to know how many batches an epoch has")
    if count == 0:
        raise InputError(f"{name} is empty (with drop_last=True, a batch larger than the data set leaves nothing)")
    return count


def check_classification_data(
    model: nn.Module, teacher: nn.Module | None, loader: Iterable[Any], held_out: Iterable[Any] | None
) -> None:
    """Runs the networks on one batch and checks the labels: all of them, if the data set lists them.

    The model is run in evaluation mode and in training mode, in which some return something else.

    Args:
        model: The network to be trained; not changed.
        teacher: The network to be imitated, if any; not changed.
        loader: The training data.
        held_out: The held-out data, if any.

    Raises:
        InputError: There is no batch, a batch is not a pair of images and labels, a network cannot be run or does not
            return logits ``[B, classes]`` (in training mode also with others beside: :func:`split_logits`), teacher and
            model differ in the number of classes, or a label is outside the classes.
    """
    images, labels = images_and_labels(first_batch(loader, "train_loader"), "train_loader")
    if not len(images):
        raise InputError("train_loader: a batch has no images: leave empty batches out")
    classes = _class_count(model, images, "the model", "train_loader")
    _check_training_mode(model, images, classes, "the images of train_loader in training mode")
    if len(images) > 1 and _last_batch_size(loader) == 1:  # too few for batch norm behind a global pooling
        _check_training_mode(
            model, images[:1], classes, "the last batch of train_loader, one image (drop_last=True leaves it out),"
        )
    if teacher is not None and (of_teacher := _class_count(teacher, images, "the teacher", "train_loader")) != classes:
        raise InputError(f"the teacher has {of_teacher} classes and the model {classes}")
    check_labels(labels, classes, "the first batch")
    listed = _listed_labels(getattr(loader, "dataset", None))
    if listed is not None:
        check_labels(listed, classes, "the training data")
    if held_out is not None:
        images, labels = images_and_labels(first_batch(held_out, "val_loader"), "val_loader")
        check_labels(labels, _class_count(model, images, "the model", "val_loader"), "the first batch of val_loader")


def _class_count(model: nn.Module, images: Tensor, role: str, loader: str) -> int:
    """Number of logits that a classifier returns for images ``[B, ...]`` of a loader."""
    with undisturbed(model):
        images = images.to(device_of(model), copy=True)
        logits = call_model(model, images, f"the images of {loader}, as {role}")
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        raise InputError(
            f"{role}, {type(model).__name__}, returns {describe_tensors(logits)} for images {list(images.shape)}: "
            "without task=, classifiers are trained, which return logits [B, classes]; for other networks give "
            "task=fec_fast.detection.Detection() or a task of your own"
        )
    return int(logits.shape[1])


def _last_batch_size(loader: Iterable[Any]) -> int | None:
    """The number of images in the last batch of a loader; ``None`` if it cannot be told, or processes share it."""
    if not is_plain(loader) or not isinstance(loader, DataLoader) or launched_processes().world_size > 1:
        return None
    samples = length_of(loader.sampler)
    if loader.batch_size is None or loader.drop_last or samples is None:
        return None
    return samples % loader.batch_size or loader.batch_size


def _check_training_mode(model: nn.Module, images: Tensor, classes: int, what: str) -> None:
    """Raises unless a classifier returns logits ``[B, classes]`` in training mode too."""
    # As in training, because the model may put hooks on tensors with gradients; but without the memory of a training,
    # which may run in half precision: nothing is kept for a backward pass.
    kept = saved_tensors_hooks(lambda tensor: (tensor.shape, tensor.dtype, tensor.device), _zeros_of)
    with undisturbed(model, training=True), torch.enable_grad(), kept:
        images = images.to(device_of(model), copy=True)
        outputs = call_model(model, images, what)
    every = [logits for part in split_logits(outputs) for logits in (part if isinstance(part, list) else [part])]
    if not all(isinstance(logits, Tensor) and logits.shape == (len(images), classes) for logits in every):
        raise InputError(
            f"the model, {type(model).__name__}, returns a {type(outputs).__name__} ({describe_tensors(outputs)}) in "
            f"training mode and logits [{len(images)}, {classes}] in evaluation mode: make it return the logits in "
            "training mode too (beside them, a named tuple may have logits of auxiliary classifiers, as torchvision's "
            "GoogLeNet does), or give a task of your own that knows its outputs"
        )


def _zeros_of(kept: tuple[torch.Size, torch.dtype, torch.device]) -> Tensor:
    shape, dtype, device = kept
    return torch.zeros(shape, dtype=dtype, device=device)


def split_logits(outputs: Any) -> tuple[Any, list[Any]]:
    """Splits what a classifier returns into its logits and those of its auxiliary classifiers.

    Args:
        outputs: Logits, or a named tuple that has them as ``logits``, and other fields whose names begin with ``aux``,
            such as torchvision's ``GoogLeNetOutputs`` and ``InceptionOutputs``.

    Returns:
        The logits, and those of the auxiliary classifiers; anything else as it is, without others.
    """
    fields = getattr(outputs, "_fields", ()) if isinstance(outputs, tuple) else ()
    if "logits" not in fields or not all(name == "logits" or name.startswith("aux") for name in fields):
        return outputs, []
    auxiliary = [getattr(outputs, name) for name in fields if name != "logits"]
    return outputs.logits, [logits for logits in auxiliary if logits is not None]


def _listed_labels(dataset: Any) -> Tensor | None:
    """The labels that a data set lists without opening its images; ``None`` if it lists none."""
    if isinstance(dataset, Subset):
        labels = _listed_labels(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1] if len(dataset.tensors) == 2 else None
    # torchvision's data sets have this attribute. A target_transform makes the loader's labels differ from it.
    targets = getattr(dataset, "targets", None)
    if targets is None or getattr(dataset, "target_transform", None) is not None:
        return None
    try:
        return torch.as_tensor(targets).long()
    except (TypeError, ValueError, RuntimeError):
        return None

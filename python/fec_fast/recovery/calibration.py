"""Calibration images: what a loader yields, as a list of batches that a model can be called on."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.arguments import batches_of
from ..utils.batches import image_key, pair_of
from ..utils.compat import tree_leaves
from ..utils.errors import ArgumentError, InputError
from ..utils.forward import call_model, describe_tensors, map_tensors, undisturbed
from ..utils.model_index import ModelIndex
from ..utils.modules import device_of
from ..utils.user_warnings import warn_user

# Runs in lock step cost a thread each, and small batches are slow: batches are joined until there are at most this
# many, of at least this many images.
MOST_BATCHES = 64
FEWEST_IMAGES = 32
_FEW_IMAGES = 128  # below it a warning is given
_MOST_AT_A_TIME = 64  # of a tensor that holds all images
# Given in place of images: noise stands in for them.
DATA_FREE = "data-free"


def inputs_from(loader: Iterable[Any], model: nn.Module | ModelIndex, name: str = "loader") -> Iterator[Any]:
    """Reads batches, see :func:`inputs_of`.

    A tensor in the place of a loader holds all images; it is read in batches of about equal size.

    A batch that is a list of tensors of three axes is what the model takes; a run of it on the first one tells. A
    detector takes images ``[C, H, W]`` in a list. For a network of sequences a loader yields a list that begins with
    its inputs ``[B, C, L]``; labels of three axes may follow. Of a dictionary, ``image`` (``img``, ``pixel_values``) is
    taken where the model has no such keyword argument.

    Args:
        loader: The batches, or a tensor of images ``[N, ...]``.
        model: The model that takes them, or its index; it is left as it was.
        name: The name of the argument that holds the loader, for the messages.

    Yields:
        The model's inputs.

    Raises:
        InputError: There are no images in a batch, or the loader raises.
        ArgumentError: It is no loader.
    """
    if isinstance(loader, Tensor):
        loader = loader.tensor_split(max(1, -(-len(loader) // _MOST_AT_A_TIME))) if loader.ndim else [loader]
    image_lists: bool | None = None
    for batch in batches_of(loader, name):
        if image_lists is None:
            image_lists = _takes_image_lists(model, batch)
        yield inputs_of(_images_alone(batch, model), image_lists=image_lists)


def without_single_images(batches: Iterable[Any]) -> Iterator[Any]:
    """Joins batches of one image with their neighbours: a batch norm behind a pooling has no variance of one value.

    Args:
        batches: Of :func:`inputs_from`.

    Yields:
        The batches, with a single image only where nothing can be joined. A single image at the end is joined with the
        first one of the batch before it, which is read twice then. Lists of images stay as they are.
    """
    single: Any = None
    partner: Any = None  # of a single image at the end: the first image of the batch before it
    for inputs in batches:
        if single is not None and _can_join(single, inputs):
            inputs = _concatenate([single, inputs])
        elif single is not None:
            yield single
        single = None
        if count_images(inputs) == 1 and not _is_image_list(inputs):
            single = map_tensors(Tensor.clone, inputs)  # loaders may use their memory again
            continue
        if not _is_image_list(inputs):
            partner = map_tensors(Tensor.clone, _first_images(inputs, count_images(inputs), 1))
        yield inputs
    if single is not None:
        yield _concatenate([partner, single]) if partner is not None and _can_join(partner, single) else single


def _images_alone(batch: Any, model: nn.Module | ModelIndex) -> Any:
    """The images of a dictionary without labels, or with other names for them; other batches as they are."""
    if not isinstance(batch, Mapping) or (key := image_key(batch)) is None:
        return batch
    network = model.model if isinstance(model, ModelIndex) else model
    parameters = inspect.signature(network.forward).parameters
    # Models of transformers take pixel_values=: for them the dictionary holds keyword arguments.
    takes_key = key in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return batch if takes_key else batch[key]


def _takes_image_lists(model: nn.Module | ModelIndex, batch: Any) -> bool:
    """``False`` if a batch is a list of tensors of three axes, and the model can be run on the first one alone."""
    if not _is_image_list(batch):
        return True
    network = model.model if isinstance(model, ModelIndex) else model
    images = [image.to(device_of(network), copy=True) for image in batch]
    with undisturbed(model):
        try:
            call_model(network, images)
        except InputError:
            try:
                call_model(network, images[0])
            except InputError:
                return True
            return False
    return True


def inputs_of(batch: Any, *, image_lists: bool = True) -> Any:
    """The model's inputs in a batch of a loader; labels are left out.

    Args:
        batch: A tensor ``[B, ...]``, a list of images ``[C, H, W]`` (detectors), a dictionary (keyword arguments; of
            ``image`` and ``label``, the image alone is the argument), or a tuple or list that begins with one of these.
            A tuple as first element holds the positional arguments.
        image_lists: Whether a list of tensors of three axes is a list of images, see :func:`inputs_from`.

    Returns:
        The inputs as :func:`fec_fast.utils.forward.call_model` takes them.

    Raises:
        InputError: There are no images in the batch.
    """
    inputs = batch = pair_of(batch)
    if isinstance(batch, list | tuple) and batch and not (image_lists and _is_image_list(batch)):
        inputs = batch[0]
    if isinstance(inputs, Tensor):
        valid = inputs.ndim >= 2 and len(inputs) > 0
    elif isinstance(inputs, list | tuple) and not _is_image_list(inputs):
        valid = isinstance(inputs, tuple) and any(isinstance(leaf, Tensor) for leaf in inputs)
    else:
        valid = any(isinstance(leaf, Tensor) for leaf in tree_leaves(inputs))
    if isinstance(inputs, Tensor) and inputs.ndim and not len(inputs):
        raise InputError(f"a batch has no images: {describe_tensors(inputs)}")
    if not valid:
        raise InputError(
            f"a batch must be images [B, ...], a dictionary, or begin with one of these, not {describe_tensors(batch)} "
            "(NumPy arrays: torch.from_numpy; one batch alone: [(images, labels)])"
        )
    return inputs


def count_images(inputs: Any) -> int:
    """How many images a batch has.

    Args:
        inputs: What :func:`inputs_of` returned.

    Returns:
        The length of a list of images; else of the first tensor's first dimension.
    """
    if _is_image_list(inputs):
        return len(inputs)
    return next((len(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim), 1)


def calibration_batches(calibration: Any, images: int, model: nn.Module | ModelIndex) -> list[Any]:
    """Reads calibration images and joins them to batches of a useful size.

    Args:
        calibration: A tensor of images, or an iterable of batches, see :func:`inputs_of`.
        images: How many images are read at most.
        model: The model that takes them, or its index; it is left as it was.

    Returns:
        Inputs of the model. Tensors that can be joined are joined; others stay as the loader yielded them.

    Raises:
        InputError: No image, a batch without images, or images that contain NaN or infinity.
        ArgumentError: Not a tensor nor iterable.
    """
    if isinstance(calibration, Tensor):
        calibration = [calibration]
    elif isinstance(calibration, str | Mapping) or not isinstance(calibration, Iterable):
        is_dataset = hasattr(calibration, "__getitem__") and hasattr(calibration, "__len__")
        hint = "; of a data set, give torch.utils.data.DataLoader(dataset, batch_size=64)" if is_dataset else ""
        raise ArgumentError(
            f"images: expected a loader, an iterable of batches, a tensor of images or {DATA_FREE!r} (see prune), "
            f"got {calibration!r:.80}{hint}"
        )
    batches: list[Any] = []
    number = 0
    for inputs in inputs_from(calibration, model, "calibration"):
        size = count_images(inputs)
        if number + size > images:
            inputs, size = _first_images(inputs, size, images - number), images - number
        _check_finite(inputs, number)
        batches.append(inputs)
        number += size
        if number >= images:
            break
    if not number:
        raise InputError("the calibration has no images: give a loader that yields some, or a tensor of images")
    return _joined(batches, max(FEWEST_IMAGES, -(-number // MOST_BATCHES)))


def warn_if_few(batches: list[Any]) -> None:
    """Warns if calibration images are few.

    Args:
        batches: Of :func:`calibration_batches`.
    """
    number = sum(map(count_images, batches))
    if number < _FEW_IMAGES:
        warn_user(
            f"{number} calibration images are few: layers are fitted to what these have in common; give 500 to 1,000 "
            "(without labels)"
        )


def image_seeds(inputs: Any) -> Tensor:
    """A number for every image of a batch, by its content: it neither depends on the batch nor on the order.

    Args:
        inputs: A batch of :func:`calibration_batches`.

    Returns:
        Int64 ``[images]``.
    """
    count = count_images(inputs)
    if _is_image_list(inputs):
        images = list(inputs)
    else:
        leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == count]
        images = list(leaves[0]) if leaves else []
    seeds = [
        zlib.crc32(image.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data) for image in images
    ]
    return torch.tensor(seeds, dtype=torch.int64) if seeds else torch.arange(count)


def _is_image_list(inputs: Any) -> bool:
    return (
        isinstance(inputs, list) and bool(inputs) and all(isinstance(one, Tensor) and one.ndim == 3 for one in inputs)
    )


def _first_images(inputs: Any, size: int, wanted: int) -> Any:
    if _is_image_list(inputs):
        return inputs[:wanted]
    return map_tensors(lambda leaf: leaf[:wanted] if leaf.ndim and len(leaf) == size else leaf, inputs)


def _check_finite(inputs: Any, number: int) -> None:
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            raise InputError(
                f"a calibration image at or after number {number} contains NaN or infinity: check how they are read"
            )


def _joined(batches: list[Any], size: int) -> list[Any]:
    """Joins neighbours of the same structure until they have ``size`` images, and splits larger ones."""
    joined: list[Any] = []
    group: list[Any] = []
    for inputs in batches:
        if group and not (_can_join(group[0], inputs)):
            joined += _split(group, size)
            group = []
        group.append(inputs)
    return joined + _split(group, size)


def _split(group: list[Any], size: int) -> list[Any]:
    if len(group) == 1 and not _can_join(group[0], group[0]):
        return group
    whole = group[0] if len(group) == 1 else _concatenate(group)
    count = count_images(whole)
    return [_slice(whole, start, min(start + size, count)) for start in range(0, count, size)]


def _can_join(first: Any, second: Any) -> bool:
    if _is_image_list(first) and _is_image_list(second):
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        return bool(
            first.shape[1:] == second.shape[1:] and first.dtype == second.dtype and first.device == second.device
        )
    if isinstance(first, dict):
        pairs = [(first[key], second.get(key)) for key in first] if first.keys() == second.keys() else [(None, None)]
    else:
        pairs = list(zip(first, second, strict=True)) if len(first) == len(second) else [(None, None)]
    counts = count_images(first), count_images(second)
    return all(
        isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and a.ndim > 0
        and (len(a), len(b)) == counts
        and _can_join(a, b)
        for a, b in pairs
    )


def _concatenate(group: list[Any]) -> Any:
    first = group[0]
    if _is_image_list(first):
        return [image for images in group for image in images]
    if isinstance(first, Tensor):
        return torch.cat(group)
    if isinstance(first, dict):
        return {key: torch.cat([one[key] for one in group]) for key in first}
    return tuple(torch.cat(parts) for parts in zip(*group, strict=True))


def _slice(whole: Any, start: int, end: int) -> Any:
    if _is_image_list(whole):
        return whole[start:end]
    return map_tensors(lambda leaf: leaf[start:end], whole)

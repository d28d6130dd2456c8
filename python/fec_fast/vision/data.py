"""Images to train and to evaluate on, by name. Nothing is downloaded without being asked for."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from ..utils.distributed import launched_processes
from ..utils.errors import ArgumentError, FecError, InputError, missing_extra, nearest
from .image_folder import AUGMENTATIONS, Images, open_parts, transforms
from .user_file import from_file
from .voc import voc

Loader = DataLoader[Any]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_CHECKED = 100_000  # files that are looked at without being asked to: some seconds


def digits(batch_size: int = 64, seed: int = 0, limit: int | None = None) -> tuple[Loader, Loader]:
    """The 1,797 handwritten digits of 8x8 pixels that come inside scikit-learn.

    A quarter of them, the same share of every class, is held out. The split does not depend on ``seed``, so that
    a network trained with one seed is never evaluated on its own training images with another. Writers are not
    known, so the same hand may be in both parts.

    Args:
        batch_size: Images a batch.
        seed: Of the order of the training images and of their shifts.
        limit: Takes the first so many images of each class of both parts; ``None`` takes all.

    Returns:
        The training loader (1,347 images, shuffled, each shifted by up to one pixel) and the held-out loader
        (450 images). Batches are images float32 ``[B, 1, 8, 8]`` in [0, 1] and labels int64 ``[B]`` in 0..9.

    Raises:
        ArgumentError: ``batch_size`` is not an integer.
        InputError: ``batch_size`` is not positive.
        MissingExtraError: scikit-learn is not installed.
    """
    _check_batch_size(batch_size)
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise missing_extra("scikit-learn", "demo", "data 'sklearn:digits'") from error
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels, labels, test_size=450, stratify=labels, random_state=0)
    train_x, held_out_x = (torch.tensor(part / 16.0, dtype=torch.float32).view(-1, 1, 8, 8) for part in split[:2])
    train_y, held_out_y = (torch.tensor(part, dtype=torch.int64) for part in split[2:])
    parts = (TensorDataset(train_x, train_y), TensorDataset(held_out_x, held_out_y))
    train, held_out = (_first_of_each_class(part, limit) for part in parts)
    return (
        _loader(train, batch_size, seed, train=True, collate_fn=_shifted),
        _loader(held_out, batch_size, seed, train=False),
    )


@dataclass(frozen=True)
class DataOptions:
    """How images are made ready, where they come from files.

    Attributes:
        image_size: Height and width; ``None`` takes those of the first training image, or 224 with
            ``augment="imagenet"``.
        augment: ``"cifar"``, ``"imagenet"`` or ``"none"``, see :func:`fec_fast.vision.image_folder.transforms`.
        limit: Takes the first so many images of each class, training and held-out; ``None`` takes all.
        workers: Processes that decode images; 0 decodes in this one.
        mean: Subtracted from each of the three colours, after scaling to [0, 1]; ImageNet's unless given.
        std: Each colour is divided by it.
        check: Whether every file is looked at first, without decoding it; ``None`` does so up to 100,000 images and
            warns where there are more.
        download: Whether ``torchvision:`` may fetch what is not there.
    """

    image_size: int | None = None
    augment: str = "cifar"
    limit: int | None = None
    workers: int = 0
    mean: Sequence[float] = _IMAGENET_MEAN
    std: Sequence[float] = _IMAGENET_STD
    check: bool | None = None
    download: bool = False

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            InputError: A value out of its range.
            ArgumentError: A value of the wrong kind.
        """
        for name, least in (("image_size", 1), ("limit", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is None and name != "workers":
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise ArgumentError(f"{name}={value!r}: give an integer")
            if value < least:
                raise InputError(f"{name}={value}: give at least {least}")
        if self.augment not in AUGMENTATIONS:
            raise InputError(f"augment={self.augment!r}: {nearest(str(self.augment), AUGMENTATIONS)}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            numbers = isinstance(value, list | tuple) and all(isinstance(x, int | float) for x in value)
            if not numbers or len(value) != 3:
                raise ArgumentError(f"{name}={value!r}: give three numbers, one a colour")


def image_folder(path: str | Path, batch_size: int = 64, seed: int = 0, **given: Any) -> tuple[Loader, Loader]:
    """Images in folders, one folder a class, below ``train`` and ``val`` (or ``test``); the whole may be a zip archive.

    Args:
        path: The folder, or the ``.zip``, that holds ``train/CLASS/*`` and ``val/CLASS/*`` or ``test/CLASS/*``.
        batch_size: Images a batch.
        seed: Of the order of the training images and of their augmentation.
        **given: See :class:`DataOptions`.

    Returns:
        The training loader (shuffled and augmented) and the held-out loader. Batches are images float32
        ``[B, 3, H, W]`` and labels int64 ``[B]``, in the alphabetical order of classes.

    Raises:
        InputError: A folder is missing or has no images, the two parts have different classes, a file is no image, or
            a number is out of its range.
        ArgumentError: An unknown option, or a value of the wrong kind.
        MissingExtraError: torchvision or Pillow is not installed.
    """
    _check_batch_size(batch_size)
    options = _options(given)
    what = f"data 'imagefolder:{path}'"
    _check_vision(what)
    train, held_out = open_parts(Path(path), options.limit, what)
    _look_at_files((train, held_out), options.check, what)
    train.transform, held_out.transform = _transforms(options, train.image(0))
    return _loaders(train, held_out, batch_size, seed, options.workers)


def cifar(name: str, path: str | Path, batch_size: int = 64, seed: int = 0, **given: Any) -> tuple[Loader, Loader]:
    """CIFAR-10 or CIFAR-100 in the files of its authors, by torchvision. They are fetched with ``download=True`` only.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        path: The folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``.
        batch_size: Images a batch.
        seed: Of the order of the training images and of their augmentation.
        **given: See :class:`DataOptions`.

    Returns:
        The training and the held-out loader; see :func:`image_folder`.

    Raises:
        InputError: An unknown name, files that are not there or damaged, or a number out of its range.
        ArgumentError: An unknown option, or a value of the wrong kind.
        MissingExtraError: torchvision or Pillow is not installed.
    """
    _check_batch_size(batch_size)
    options = _options(given)
    what = f"data 'torchvision:{name}:{path}'"
    _check_vision(what)
    from torchvision import datasets

    known = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
    if name not in known:
        raise InputError(f"{what}: {nearest(name, known)}")
    share = launched_processes()

    def fetch() -> dict[Any, Any]:
        if options.download and share.rank == 0:
            known[name](path, download=True)
        return {}

    try:
        share.merge_results(fetch)  # the others wait
        train, held_out = (known[name](path, train=part) for part in (True, False))
    except RuntimeError as error:
        raise InputError(f"{what}: {error}. To let torchvision fetch it, say download=True (download: true)") from error
    train.transform, held_out.transform = _transforms(options, train[0][0])
    train, held_out = (_first_of_each_class(part, options.limit) for part in (train, held_out))
    return _loaders(train, held_out, batch_size, seed, options.workers)


def load(spec: str, batch_size: int = 64, seed: int = 0, **given: Any) -> tuple[Loader, Loader]:
    """Opens a data set by name. Nothing is downloaded unless ``download=True`` says so.

    Args:
        spec: ``"sklearn:digits"`` (:func:`digits`), ``"imagefolder:PATH"`` (:func:`image_folder`; a folder or a zip),
            ``"torchvision:cifar10:PATH"`` (:func:`cifar`), ``"voc:PATH"`` (:func:`fec_fast.vision.voc.voc`;
            a folder or a zip), or ``"path/to/file.py:factory"``, a function that returns a training and a held-out
            loader, and is given those of ``batch_size``, ``seed`` and the options that it has parameters for. The file
            is executed, so name only files you trust.
        batch_size: Images a batch.
        seed: Of shuffling and augmentation.
        **given: See :class:`DataOptions`; digits have ``limit`` only, ``voc:`` those of its function.

    Returns:
        The training and the held-out loader.

    Raises:
        InputError: An unknown name, a folder that does not hold what it should, or a number out of its range.
        ArgumentError: An unknown option, or a value of the wrong kind.
        MissingExtraError: The library behind it is not installed.
    """
    kind, _, rest = spec.partition(":")
    if spec == "sklearn:digits":
        _refuse({name: value for name, value in given.items() if name != "limit"}, spec)
        return digits(batch_size, seed, limit=_options(given).limit)
    if kind == "imagefolder" and rest:
        return image_folder(rest, batch_size, seed, **given)
    if kind == "torchvision" and ":" in rest:
        name, _, path = rest.partition(":")
        return cifar(name, path, batch_size, seed, **given)
    if kind == "voc" and rest:
        _refuse({name: value for name, value in given.items() if name not in inspect.signature(voc).parameters}, spec)
        return voc(rest, batch_size, seed, **given)
    file, _, function = spec.rpartition(":")
    if file.endswith(".py") and function:
        return _own(spec, Path(file), function, {"batch_size": batch_size, "seed": seed}, given)
    known = ("sklearn:digits", "imagefolder:PATH", "torchvision:cifar10:PATH", "voc:PATH", "path/to/file.py:factory")
    raise InputError(f"data {spec!r}: write {', '.join(known[:-1])} or {known[-1]}; {nearest(spec, known)}")


def _own(spec: str, file: Path, function: str, always: dict[str, Any], given: dict[str, Any]) -> tuple[Loader, Loader]:
    """The loaders of a user's function."""
    _check_batch_size(always["batch_size"])
    factory = from_file(f"data {spec!r}", file, function)
    parameters = inspect.signature(factory).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    _refuse({name: value for name, value in given.items() if not takes_all and name not in parameters}, spec)
    values = {name: value for name, value in {**always, **given}.items() if takes_all or name in parameters}
    try:
        loaders = factory(**values)
    except FecError:
        raise
    except Exception as error:
        raise InputError(f"data {spec!r}: its factory raised {type(error).__name__}: {error}") from error
    if not isinstance(loaders, tuple) or len(loaders) != 2:
        raise InputError(f"data {spec!r}: its factory must return a training and a held-out loader, not {loaders!r}")
    return loaders


def _options(given: dict[str, Any]) -> DataOptions:
    known = [entry.name for entry in fields(DataOptions)]
    for name in given:
        if name not in known:
            raise ArgumentError(f"data has no option {name!r}; {nearest(name, known)}")
    return DataOptions(**given)


def _refuse(given: dict[str, Any], spec: str) -> None:
    if given:
        raise ArgumentError(f"data {spec!r} has no option {next(iter(given))!r}")


def _check_vision(what: str) -> None:
    try:
        import PIL
        import torchvision  # noqa: F401 (only to see that they are there)
    except ImportError as error:
        raise missing_extra("torchvision and pillow", "vision", what) from error
    del PIL


def _look_at_files(parts: tuple[Images, Images], check: bool | None, what: str) -> None:
    count = sum(map(len, parts))
    if check is None and count > _CHECKED:
        warnings.warn(
            f"{what}: {count:,} files are not looked at before training; check=True does so, and one that cannot be "
            "read ends the training with its name",
            stacklevel=4,
        )
    elif check is not False:
        for part in parts:
            part.check_headers()


def _transforms(options: DataOptions, first: Any) -> tuple[Any, Any]:
    size = (first.height, first.width)
    if options.image_size is not None:
        size = (options.image_size, options.image_size)
    elif options.augment == "imagenet":
        size = (224, 224)
    return transforms(options.augment, size, options.mean, options.std)


def _first_of_each_class(dataset: Any, limit: int | None) -> Any:
    """The first images of each class, in their order."""
    if limit is None:
        return dataset
    labels = dataset.tensors[1] if isinstance(dataset, TensorDataset) else torch.as_tensor(dataset.targets)
    taken = torch.cat([(labels == label).nonzero()[:limit, 0] for label in torch.unique(labels)])
    return Subset(dataset, taken.sort().values.tolist())


def _loaders(train: Any, held_out: Any, batch_size: int, seed: int, workers: int) -> tuple[Loader, Loader]:
    return (
        _loader(train, batch_size, seed, train=True, num_workers=workers),
        _loader(held_out, batch_size, seed, train=False, num_workers=workers),
    )


def _check_batch_size(batch_size: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int):
        raise ArgumentError(f"batch_size={batch_size!r}: give a positive integer")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: give a positive integer")


def _loader(dataset: Dataset[Any], batch_size: int, seed: int, *, train: bool, **options: Any) -> Loader:
    count = len(dataset)  # type: ignore[arg-type]  # every data set of this module has a length
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=train,
        # Batch norm cannot train on a batch of one image whose map has shrunk to 1x1.
        drop_last=train and count % batch_size == 1 and count > 1,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def _shifted(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stacks samples, each image moved by -1, 0 or 1 pixels both ways, zeros moving in."""
    images, labels = default_collate(samples)
    count, channels, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1))
    rows = torch.randint(0, 3, (count, 1)) + torch.arange(height)
    columns = torch.randint(0, 3, (count, 1)) + torch.arange(width)
    picked = padded[
        torch.arange(count).view(-1, 1, 1, 1),
        torch.arange(channels).view(1, -1, 1, 1),
        rows.view(count, 1, height, 1),
        columns.view(count, 1, 1, width),
    ]
    return picked, labels

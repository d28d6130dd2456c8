"""CIFAR-10 and CIFAR-100, read by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..utils.arguments import check_path
from ..utils.distributed import launched_processes
from ..utils.errors import InputError, nearest
from .loaders import (
    DataOptions,
    Loader,
    check_positive,
    check_seed,
    check_torchvision,
    first_of_each_class,
    make_loaders,
    transforms_for,
)


def load_cifar(
    name: str, path: str | Path, batch_size: int = 64, seed: int = 0, **options: Any
) -> tuple[Loader, Loader]:
    """Loads CIFAR-10 or CIFAR-100 from their original files. They are downloaded only with ``download=True``.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        path: The folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``.
        batch_size: Images per batch.
        seed: Seed for the order of the training images and of their augmentation.
        **options: The attributes of :class:`fec_fast.vision.loaders.DataOptions`.

    Returns:
        The training loader (shuffled and augmented) and the held-out loader. Batches are images float32
        ``[B, 3, H, W]`` and labels int64 ``[B]``.

    Raises:
        InputError: There is no data set of this name, its files are missing or damaged, or a number is out of its
            range.
        ArgumentError: There is no such option, or a value has the wrong type.
        MissingExtraError: torchvision or Pillow is not installed.
    """
    check_path("path", path)
    check_positive("batch_size", batch_size)
    check_seed(seed)
    parsed = DataOptions.of(options)
    purpose = f"data 'torchvision:{name}:{path}'"
    check_torchvision(purpose)
    from torchvision import datasets

    classes = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
    if name not in classes:
        raise InputError(f"{purpose}: {nearest(name, classes)}")
    processes = launched_processes()

    def download() -> dict[Any, Any]:
        if parsed.download and processes.rank == 0:
            classes[name](path, download=True)
        return {}

    try:
        processes.merge_results(download)  # the other processes wait for rank 0
        train, held_out = (classes[name](path, train=part) for part in (True, False))
    except RuntimeError as error:
        raise InputError(
            f"{purpose}: {error}. Set download=True (in a recipe: download: true) to let torchvision download it"
        ) from error
    train.transform, held_out.transform = transforms_for(parsed, train[0][0])
    train, held_out = (first_of_each_class(part, parsed.limit) for part in (train, held_out))
    return make_loaders(train, held_out, batch_size, seed, parsed.workers)

"""Digits: the handwritten digits of scikit-learn, which need no download."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from ..utils.errors import missing_extra
from .loaders import Loader, check_positive, check_seed, first_of_each_class, make_loader


def load_digits(batch_size: int = 64, seed: int = 0, limit: int | None = None) -> tuple[Loader, Loader]:
    """Loads the 1,797 handwritten digits of 8x8 pixels that are part of scikit-learn.

    A quarter of them, the same share of every class, is held out. The split does not depend on ``seed``, so that a
    network trained with one seed is never evaluated on its own training images with another. The writers are not known,
    so digits by one hand may be in both parts.

    Args:
        batch_size: Images per batch.
        seed: Seed for the order of the training images. The shifts are drawn from torch's random state.
        limit: Uses only the first ``limit`` images of each class of both parts. ``None`` uses all.

    Returns:
        The training loader (1,347 images, shuffled, each shifted by up to one pixel) and the held-out loader
        (450 images). Batches are images float32 ``[B, 1, 8, 8]`` in [0, 1] and labels int64 ``[B]`` in 0..9.

    Raises:
        ArgumentError: ``batch_size`` or ``seed`` is not an integer.
        InputError: ``batch_size`` is not positive.
        MissingExtraError: scikit-learn is not installed.
    """
    check_positive("batch_size", batch_size)
    check_seed(seed)
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except (ImportError, AttributeError) as error:
        raise missing_extra("scikit-learn", "demo", "data 'sklearn:digits'", error) from error
    pixels, labels = datasets.load_digits(return_X_y=True)
    split = train_test_split(pixels, labels, test_size=450, stratify=labels, random_state=0)
    train_x, held_out_x = (torch.tensor(part / 16.0, dtype=torch.float32).view(-1, 1, 8, 8) for part in split[:2])
    train_y, held_out_y = (torch.tensor(part, dtype=torch.int64) for part in split[2:])
    parts = (TensorDataset(train_x, train_y), TensorDataset(held_out_x, held_out_y))
    train, held_out = (first_of_each_class(part, limit) for part in parts)
    return (
        make_loader(train, batch_size, seed, train=True, collate_fn=_collate_with_shifts),
        make_loader(held_out, batch_size, seed, train=False),
    )


def _collate_with_shifts(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Makes a batch whose images are each shifted by -1, 0 or 1 pixels on both axes, with zeros moving in."""
    images, labels = default_collate(samples)
    count, channels, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1))
    rows = torch.randint(0, 3, (count, 1)) + torch.arange(height)
    columns = torch.randint(0, 3, (count, 1)) + torch.arange(width)
    # One indexing operation with four index tensors, broadcast to [count, channels, height, width]: each image has its
    # own rows and columns.
    shifted = padded[
        torch.arange(count).view(-1, 1, 1, 1),
        torch.arange(channels).view(1, -1, 1, 1),
        rows.view(count, 1, height, 1),
        columns.view(count, 1, 1, width),
    ]
    return shifted, labels

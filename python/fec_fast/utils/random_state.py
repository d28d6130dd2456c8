"""Random states: seeding, saving and restoring."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    pass


@contextlib.contextmanager
def restored_randomness() -> Iterator[None]:
    """Restores the random states of Python, NumPy and torch (CPU and GPUs) at the end.

    Yields:
        Nothing.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def seed_all(seed: int) -> None:
    """Seeds Python, NumPy and torch (CPU and GPUs).

    Args:
        seed: In [0, 2**32).
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def generators_of(loader: Any) -> list[torch.Generator]:
    """Finds the generators of its own that a loader draws its order from.

    Args:
        loader: A DataLoader, or anything else.

    Returns:
        None, one or several.
    """
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    found = [getattr(holder, "generator", None) for holder in (loader, *samplers)]
    # What accelerate gives to a shuffling loader without one, for all processes to draw the same order.
    found.append(getattr(loader, "synchronized_generator", None))
    return [generator for generator in found if isinstance(generator, torch.Generator)]

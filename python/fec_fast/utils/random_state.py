"""Random states of Python, NumPy and torch: seeding and restoring; the random generators of a loader."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


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
    """Finds the random generators that a loader owns, which :func:`seed_all` does not seed.

    Args:
        loader: A DataLoader, also one that accelerate has prepared, or any other object.

    Returns:
        The generators of the loader and its samplers; may be empty.
    """
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    candidates = [getattr(owner, "generator", None) for owner in (loader, *samplers)]
    # accelerate adds this one to a shuffling loader, so that all processes draw the same order.
    candidates.append(getattr(loader, "synchronized_generator", None))
    return [generator for generator in candidates if isinstance(generator, torch.Generator)]

"""Random states of Python, NumPy and torch: seeding and restoring; the random generators of a loader."""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from .critical_section import put_back_by, surely_closed

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
# Attributes in which data sets and transforms hold others.
_INNER = ("dataset", "datasets", "transform", "target_transform", "transforms")


@surely_closed
def restored_randomness() -> Iterator[None]:
    """Restores the random states of Python, NumPy and torch (CPU and GPUs) at the end.

    Yields:
        Nothing.
    """
    python, numpy = random.getstate(), np.random.get_state()

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)

    with put_back_by(restore), restored_torch_randomness():
        yield


@surely_closed
def restored_torch_randomness() -> Iterator[None]:
    """Restores the random state of torch, of the CPU and of all GPUs, at the end.

    Yields:
        Nothing.
    """
    # Not torch's fork_rng, which Ctrl-C can keep from restoring, and which warns where there are several GPUs.
    cpu = torch.get_rng_state()
    # Also where no GPU was used so far: a seed that is set now would be the first one's.
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore() -> None:
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)

    with put_back_by(restore):
        yield


def restorer_of(generator: Any) -> Callable[[], None] | None:
    """Remembers the state of a random generator that somebody owns.

    Args:
        generator: One of torch, NumPy or Python, or any other value.

    Returns:
        Sets the state back; ``None`` for another value.
    """
    if isinstance(generator, torch.Generator):
        return functools.partial(_set_state, generator, generator.get_state())
    if isinstance(generator, np.random.Generator):
        return functools.partial(setattr, generator.bit_generator, "state", generator.bit_generator.state)
    if isinstance(generator, random.Random):
        return functools.partial(generator.setstate, generator.getstate())
    return None


def _samplers(loader: Any) -> list[Any]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = [getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    return [sampler for sampler in samplers if sampler is not None]


def unseeded_generators(loader: Any) -> list[str]:
    """Finds random generators that belong to a loader, its samplers, its data set or its transforms.

    Args:
        loader: A DataLoader, or any other object. Worker processes that are started in every epoch get the data set as
            it is, so the generators in it do not go on from epoch to epoch, and are not listed.

    Returns:
        Descriptions of those that :func:`generators_of` does not find.
    """
    seeded, seen = set(map(id, generators_of(loader))), set()
    owners = [loader, *_samplers(loader), getattr(loader, "collate_fn", None)]
    if not getattr(loader, "num_workers", 0) or getattr(loader, "persistent_workers", False):
        owners.append(getattr(loader, "dataset", None))
    descriptions = []
    while owners:
        owner = owners.pop(0)
        if id(owner) in seen or isinstance(owner, type | types.ModuleType | types.FunctionType):
            continue
        seen.add(id(owner))
        for name, value in getattr(owner, "__dict__", {}).items():
            if isinstance(value, _GENERATORS) and id(value) not in seeded:
                kind = f"{type(value).__module__.partition('.')[0]}'s {type(value).__name__}"
                descriptions.append(f"{name} of {type(owner).__name__} ({kind})")
            elif name in _INNER:
                owners += value if isinstance(value, list | tuple) else [value]
    return descriptions


def _set_state(generator: torch.Generator, state: torch.Tensor) -> None:
    generator.set_state(state)


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
    candidates = [getattr(owner, "generator", None) for owner in (loader, *_samplers(loader))]
    # accelerate adds this one to a shuffling loader, so that all processes draw the same order.
    candidates.append(getattr(loader, "synchronized_generator", None))
    return [generator for generator in candidates if isinstance(generator, torch.Generator)]

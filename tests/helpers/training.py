"""What the tests of training share: comparing weights and histories, and held-out data that is interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from fec_fast.training.history import Epoch


def numbers(history: list[Epoch]) -> list[dict[str, Any]]:
    """A history without its wall-clock times."""
    return [{key: value for key, value in asdict(row).items() if key != "seconds"} for row in history]


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks hold the same bits."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


class Stops:
    """Held-out data that is interrupted instead of being read once more."""

    def __init__(self, loader: DataLoader[Any], after: int) -> None:
        self.loader, self.left = loader, after

    def __iter__(self) -> Iterator[Any]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return iter(self.loader)

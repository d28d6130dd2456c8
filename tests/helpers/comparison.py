"""Comparisons of networks: the same names, dtypes and bits."""

from __future__ import annotations

import torch
from torch import nn


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Returns whether two networks hold the same bits under the same names, in the same order."""
    left, right = one.state_dict(), other.state_dict()
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    """Checks the same, and names the first tensor that differs."""
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]), name

"""A .pth file read by a torch whose reader has a known fault: one warning that names it and both remedies."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.torch_version import TorchVersion

from fec_fast.utils.errors import FecWarning
from fec_fast.vision import weight_files
from fec_fast.vision.weights import load_weights


@pytest.fixture(autouse=True)
def as_at_the_start() -> Iterator[None]:
    weight_files._warn_of_old_torch.cache_clear()
    yield
    weight_files._warn_of_old_torch.cache_clear()


def warned(file: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_weights(nn.Linear(2, 2), file)
    return [str(each.message) for each in caught if each.category is FecWarning]


@pytest.mark.parametrize(
    ("version", "is_old"),
    [
        ("2.6.0", True),
        ("2.9.1+cu128", True),
        ("2.10.0", False),
        ("2.10.0+cpu", False),
        ("2.14.1", False),
        ("3.0.0", False),
    ],
)
def test_an_old_torch_warns_once_of_pth_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, is_old: bool
) -> None:
    state = nn.Linear(2, 2).state_dict()
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    assert warned(tmp_path / "a.safetensors") == []
    found = warned(tmp_path / "a.pth")
    assert len(found) == is_old and warned(tmp_path / "a.pth") == [], "once in a process"
    if is_old:
        (message,) = found
        for part in (f"torch {version}", "CVE-2026-24747", "torch 2.10 or newer", "safetensors"):
            assert part in message

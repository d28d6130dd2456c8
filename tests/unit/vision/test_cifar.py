"""CIFAR in the files of its authors."""

from pathlib import Path

import pytest
import torch

from fec_fast.utils.errors import InputError
from fec_fast.vision import data
from helpers.image_folders import all_batches


def _cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of CIFAR-10, with twenty random images instead of 60,000; their checksums are not those of the real."""
    import pickle

    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: (root / self.base_folder).is_dir())
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", ""]])
    (root / "cifar-10-batches-py").mkdir()
    for file in ("data_batch_1", "test_batch"):
        pixels = torch.randint(0, 256, (20, 3072), dtype=torch.uint8).numpy()
        content = {"data": pixels, "labels": [index % 10 for index in range(20)]}
        (root / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(content))


def test_cifar_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    _cifar(tmp_path, monkeypatch)
    train, held_out = data.load(f"torchvision:cifar10:{tmp_path}", 7)
    assert next(iter(train))[0].shape == (7, 3, 32, 32) and len(all_batches(held_out)[1]) == 20
    assert len(all_batches(data.load(f"torchvision:cifar10:{tmp_path}", 7, limit=1)[0])[1]) == 10


def test_cifar_is_not_fetched_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    asked = []
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: asked.append(self.root))
    with pytest.raises(InputError, match="Set download=True"):
        data.load(f"torchvision:cifar10:{tmp_path}")
    assert asked == []
    with pytest.raises(InputError):  # the replaced download fetches nothing
        data.load(f"torchvision:cifar10:{tmp_path}", download=True)
    assert asked == [str(tmp_path)]
    with pytest.raises(InputError, match="'cifar10'"):
        data.load(f"torchvision:cifar11:{tmp_path}")

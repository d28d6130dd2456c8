"""Data sets by name."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fec_fast.utils.errors import ArgumentError, InputError
from fec_fast.vision import data
from fec_fast.vision.cifar import load_cifar
from fec_fast.vision.coco import load_coco
from fec_fast.vision.digits import load_digits
from fec_fast.vision.hugging_face import load_saved
from fec_fast.vision.image_folder import load_image_folder
from fec_fast.vision.records import load_records
from fec_fast.vision.voc import load_voc
from fec_fast.vision.yolo import load_yolo


@pytest.mark.parametrize(
    ("batch_size", "error"), [(0, InputError), (-3, InputError), (2.5, ArgumentError), (True, ArgumentError)]
)
def test_batch_size_is_checked(batch_size: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="batch_size"):
        data.load("sklearn:digits", batch_size)


def load_cifar10(path: Any, **options: Any) -> Any:
    return load_cifar("cifar10", path, **options)


LOADERS = (load_voc, load_coco, load_yolo, load_saved, load_image_folder, load_cifar10)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("path", [5, None, "a\0b", "\ud800"])
def test_paths_are_checked(load: Any, path: Any) -> None:
    with pytest.raises(ArgumentError, match="path="):
        load(path)


@pytest.mark.parametrize("seed", ["x", 1.5, True, 1 << 70])
def test_seeds_are_checked(seed: Any, tmp_path: Path) -> None:
    records = [{"image": np.zeros((2, 2), np.uint8), "label": number} for number in range(2)]
    loads = [partial(load, tmp_path) for load in LOADERS if load is not load_saved]  # it needs the extra first
    for load in (*loads, load_digits, partial(load_records, (records, records)), partial(data.load, "sklearn:digits")):
        with pytest.raises(ArgumentError, match="seed="):
            load(seed=seed)


@pytest.mark.parametrize("spec", ["sklearn:digit", "digits", "imagefolder:", "", "mnist"])
def test_unknown_data(spec: str) -> None:
    with pytest.raises(InputError, match="write sklearn:digits, imagefolder:PATH, .* or path/to/file.py:factory"):
        data.load(spec)


def test_loaders_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def both(batch_size, limit=3):\n    return ['train', batch_size, limit], ['held out']\n"
        "def one():\n    return [1]\n"
        "def broken(seed):\n    raise KeyError(seed)\n"
    )
    assert data.load(f"{file}:both", 5) == (["train", 5, 3], ["held out"])
    assert data.load(f"{file}:both", 5, limit=7)[0] == ["train", 5, 7]
    with pytest.raises(ArgumentError, match="no option 'workers'"):
        data.load(f"{file}:both", 5, workers=2)
    with pytest.raises(InputError, match="must return a training and a held-out loader"):
        data.load(f"{file}:one")
    with pytest.raises(InputError, match="KeyError: 4"):
        data.load(f"{file}:broken", seed=4)
    with pytest.raises(InputError, match="no function 'bot'; nearest: 'both'"):
        data.load(f"{file}:bot")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"limit": 0}, InputError),
        ({"workers": -1}, InputError),
        ({"image_size": 2.5}, ArgumentError),
        ({"augment": "cifra"}, InputError),
        ({"check": "no"}, ArgumentError),
        ({"download": 1}, ArgumentError),
        ({"mean": (0.5, 0.5)}, ArgumentError),
        ({"imagesize": 32}, ArgumentError),
    ],
)
def test_options_are_checked(given: dict[str, object], error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error, match=next(iter(given))):
        data.load(f"imagefolder:{tmp_path}", **given)
    with pytest.raises(ArgumentError, match="no option"):
        data.load("sklearn:digits", augment="none")

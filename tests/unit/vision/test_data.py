"""Data sets by name."""

from pathlib import Path

import pytest

from fec_fast.utils.errors import ArgumentError, InputError
from fec_fast.vision import data


@pytest.mark.parametrize(
    ("batch_size", "error"), [(0, InputError), (-3, InputError), (2.5, ArgumentError), (True, ArgumentError)]
)
def test_batch_size_is_checked(batch_size: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="batch_size"):
        data.load("sklearn:digits", batch_size)


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
        ({"mean": (0.5, 0.5)}, ArgumentError),
        ({"imagesize": 32}, ArgumentError),
    ],
)
def test_options_are_checked(given: dict[str, object], error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error, match=next(iter(given))):
        data.load(f"imagefolder:{tmp_path}", **given)
    with pytest.raises(ArgumentError, match="no option"):
        data.load("sklearn:digits", augment="none")

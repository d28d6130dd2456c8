"""Data sets by name."""

from pathlib import Path

import pytest
import torch

from fec_fast import data
from fec_fast.errors import ArgumentError, InputError


def _all(loader: data.Loader) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_digits_shapes_ranges_and_stratified_split() -> None:
    train, held_out = data.load("sklearn:digits", batch_size=50)
    train_x, train_y = _all(train)
    held_x, held_y = _all(held_out)
    assert train_x.shape == (1347, 1, 8, 8) and held_x.shape == (450, 1, 8, 8)
    assert train_x.dtype == torch.float32 and train_y.dtype == torch.int64
    assert float(held_x.min()) == 0.0 and float(held_x.max()) == 1.0
    share = torch.bincount(held_y, minlength=10) / (torch.bincount(train_y) + torch.bincount(held_y))
    assert torch.allclose(share, torch.tensor(0.25), atol=0.01)


def test_digits_split_is_the_same_for_every_seed_and_disjoint() -> None:
    _, one = data.digits(64, seed=0)
    train, other = data.digits(64, seed=1)
    assert torch.equal(_all(one)[0], _all(other)[0])
    originals = {tuple(image.flatten().tolist()) for image in train.dataset.tensors[0]}  # type: ignore[attr-defined]
    held = {tuple(image.flatten().tolist()) for image in _all(other)[0]}
    assert not originals & held


def test_digits_order_depends_on_the_seed_only() -> None:
    labels = []
    for seed in (0, 0, 1):
        train, _ = data.digits(64, seed=seed)
        labels.append(_all(train)[1])
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0], labels[2])


def test_digits_are_shifted_by_at_most_one_pixel() -> None:
    torch.manual_seed(0)
    image = torch.zeros(1, 8, 8)
    image[0, 4, 3] = 1.0
    samples = [(image, torch.tensor(5))] * 200
    shifted, labels = data._shifted(samples)
    assert shifted.shape == (200, 1, 8, 8) and set(labels.tolist()) == {5}
    places = {tuple(index[2:].tolist()) for index in shifted.nonzero()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (2, 3, 4)}
    assert torch.equal(shifted.sum((1, 2, 3)), torch.ones(200))


def test_training_drops_only_a_last_batch_of_one() -> None:
    sizes = [len(y) for _, y in data.digits(1346)[0]]
    assert sizes == [1346]
    assert sum(len(y) for _, y in data.digits(1345)[0]) == 1347


@pytest.mark.parametrize(
    ("batch_size", "error"), [(0, InputError), (-3, InputError), (2.5, ArgumentError), (True, ArgumentError)]
)
def test_batch_size_is_checked(batch_size: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="batch_size"):
        data.load("sklearn:digits", batch_size)


@pytest.mark.parametrize("spec", ["sklearn:digit", "digits", "imagefolder:", "", "mnist"])
def test_unknown_data(spec: str) -> None:
    with pytest.raises(InputError, match="write sklearn:digits or imagefolder:PATH"):
        data.load(spec)


def _images(root: Path, part: str, classes: tuple[str, ...], size: tuple[int, int] = (12, 16), count: int = 3) -> None:
    image = pytest.importorskip("PIL.Image")
    for number, name in enumerate(classes):
        folder = root / part / name
        folder.mkdir(parents=True)
        for index in range(count):
            image.new("RGB", (size[1], size[0]), (40 * number, 90, 10 * index)).save(folder / f"{index}.png")


@pytest.mark.parametrize("part", ["val", "test"])
def test_image_folder(tmp_path: Path, part: str) -> None:
    pytest.importorskip("torchvision")
    _images(tmp_path, "train", ("cat", "dog"))
    _images(tmp_path, part, ("cat", "dog"), size=(30, 20))  # another size: made alike
    train, held_out = data.load(f"imagefolder:{tmp_path}", batch_size=4)
    train_x, train_y = _all(train)
    held_x, held_y = _all(held_out)
    assert train_x.shape == (6, 3, 12, 16) and held_x.shape == (6, 3, 12, 16)
    assert sorted(train_y.tolist()) == [0, 0, 0, 1, 1, 1] and held_y.tolist() == [0, 0, 0, 1, 1, 1]
    # Green is 90 everywhere: (90/255 - 0.456) / 0.224 with ImageNet's mean and deviation.
    assert torch.allclose(held_x[:, 1], torch.tensor((90 / 255 - 0.456) / 0.224), atol=1e-5)


def test_image_folder_with_a_given_size(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    _images(tmp_path, "train", ("cat", "dog"))
    _images(tmp_path, "val", ("cat", "dog"))
    train, _ = data.image_folder(tmp_path, 6, image_size=8, mean=(0, 0, 0), std=(1, 1, 1))
    assert next(iter(train))[0].shape == (6, 3, 8, 8)


def test_image_folder_errors_come_before_training(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(InputError, match="must hold a folder train"):
        data.load(f"imagefolder:{tmp_path}")
    _images(tmp_path, "train", ("cat", "dog"))
    with pytest.raises(InputError, match="must hold a folder train"):
        data.load(f"imagefolder:{tmp_path}")
    (tmp_path / "val" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match="(?i)found no valid file"):
        data.load(f"imagefolder:{tmp_path}")
    (tmp_path / "val" / "cat").rmdir()
    _images(tmp_path, "val", ("cat", "cow"))
    with pytest.raises(InputError, match=r"\['cow', 'dog'\] are in only one"):
        data.load(f"imagefolder:{tmp_path}")

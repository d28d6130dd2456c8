"""Data sets by name."""

import io
import zipfile
from pathlib import Path

import pytest
import torch

from fec_fast.utils.errors import ArgumentError, InputError
from fec_fast.vision import data


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
    with pytest.raises(InputError, match="write sklearn:digits, imagefolder:PATH, .* or path/to/file.py:factory"):
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
    with pytest.raises(InputError, match=r"\['dog'\] are in only one of train and val"):
        data.load(f"imagefolder:{tmp_path}")
    (tmp_path / "val" / "dog").mkdir()
    with pytest.raises(InputError, match="val/cat has no images"):
        data.load(f"imagefolder:{tmp_path}")
    for name in ("cat", "dog"):
        (tmp_path / "val" / name).rmdir()
    _images(tmp_path, "val", ("cat", "cow"))
    with pytest.raises(InputError, match=r"\['cow', 'dog'\] are in only one"):
        data.load(f"imagefolder:{tmp_path}")


def _zipped(root: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, path.relative_to(root))
    return file


@pytest.mark.parametrize("workers", [0, 2])
def test_zip_gives_what_the_folder_gives(tmp_path: Path, workers: int) -> None:
    pytest.importorskip("torchvision")
    _images(tmp_path / "tree", "train", ("cat", "dog"), count=9)
    _images(tmp_path / "tree", "test", ("cat", "dog"), count=4)
    archive = _zipped(tmp_path / "tree", tmp_path / "all.zip")
    folder = data.load(f"imagefolder:{tmp_path / 'tree'}", 3, augment="none")
    packed = data.load(f"imagefolder:{archive}", 3, augment="none", workers=workers)
    for one, other in zip(folder, packed, strict=True):
        left, right = _all(one), _all(other)
        assert torch.equal(left[0], right[0]) and torch.equal(left[1], right[1])
    assert len({float(image[2, 0, 0]) for image in left[0]}) == 4  # images of a class do differ


def test_archive_survives_being_sent_to_a_process(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    import pickle

    _images(tmp_path / "tree", "train", ("cat", "dog"))
    _images(tmp_path / "tree", "val", ("cat", "dog"))
    train, _ = data.load(f"imagefolder:{_zipped(tmp_path / 'tree', tmp_path / 'all.zip')}", augment="none")
    dataset = train.dataset
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[4][0], dataset[4][0])


def test_imagenet_style(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    _images(tmp_path, "train", ("cat", "dog"), size=(40, 60))
    _images(tmp_path, "val", ("cat", "dog"), size=(80, 50))
    train, held_out = data.load(
        f"imagefolder:{tmp_path}", 6, augment="imagenet", image_size=28, mean=(0, 0, 0), std=[1, 1, 1]
    )
    assert next(iter(train))[0].shape == next(iter(held_out))[0].shape == (6, 3, 28, 28)
    # Held out: the shorter side becomes 32, and 28 of the middle are left: a gradient tells which.
    image = pytest.importorskip("PIL.Image")
    ramp = image.linear_gradient("L").resize((50, 80)).convert("RGB")  # 0 at the top, 255 at the bottom
    ramp.save(tmp_path / "val" / "cat" / "0.png")
    first = next(
        iter(
            data.load(f"imagefolder:{tmp_path}", 1, augment="imagenet", image_size=28, mean=(0, 0, 0), std=(1, 1, 1))[1]
        )
    )[0]
    rows = first[0, 0, :, 14]
    height = 80 * 32 / 50
    top = (height - 28) / 2
    assert float(rows[0]) == pytest.approx((top + 0.5) / height, abs=0.02)
    assert float(rows[-1]) == pytest.approx((top + 27.5) / height, abs=0.02)


def test_cifar_style_mirrors_and_shifts_by_an_eighth() -> None:
    pytest.importorskip("torchvision")
    image = pytest.importorskip("PIL.Image")
    from fec_fast.vision.image_folder import transforms

    dot = image.new("RGB", (16, 16))
    dot.putpixel((5, 8), (255, 255, 255))
    training, held_out = transforms("cifar", (16, 16), (0, 0, 0), (1, 1, 1))
    torch.manual_seed(0)
    places = {tuple(training(dot)[0].nonzero()[0].tolist()) for _ in range(400)}
    assert places == {(row, column) for row in range(6, 11) for column in (*range(3, 8), *range(8, 13))}
    assert held_out(dot)[0].nonzero().tolist() == [[8, 5]]


@pytest.mark.parametrize("part", ["train", "val"])
def test_damaged_images_are_named_before_training_or_in_it(tmp_path: Path, part: str) -> None:
    pytest.importorskip("torchvision")
    image = pytest.importorskip("PIL.Image")
    for name in ("train", "val"):
        _images(tmp_path, name, ("cat", "dog"))
    damaged = tmp_path / part / "dog" / "1.png"
    damaged.write_bytes(b"no image")
    for archive in (tmp_path, _zipped(tmp_path, tmp_path / "all.zip")):
        with pytest.raises(InputError, match=r"dog/1.png.* cannot be read \(UnidentifiedImageError.*remove or replace"):
            data.load(f"imagefolder:{archive}")
    loader = data.load(f"imagefolder:{tmp_path}", check=False, workers=1)[part == "val"]
    with pytest.raises(InputError, match=r"dog/1.png cannot be read"):
        _all(loader)
    # Cut off behind its header: only decoding can tell.
    whole = io.BytesIO()
    image.effect_noise((64, 64), 90).convert("RGB").save(whole, "JPEG")
    damaged.unlink()
    damaged.with_suffix(".jpg").write_bytes(whole.getvalue()[:-400])
    loader = data.load(f"imagefolder:{tmp_path}")[part == "val"]
    with pytest.raises(InputError, match=r"dog/1.jpg cannot be read \(OSError: image file is truncated"):
        _all(loader)


def test_many_files_are_not_looked_at_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    for name in ("train", "val"):
        _images(tmp_path, name, ("cat", "dog"))
    (tmp_path / "val" / "dog" / "1.png").write_bytes(b"no image")
    monkeypatch.setattr(data, "_CHECKED", 5)
    with pytest.warns(UserWarning, match="12 files are not looked at before training"):
        data.load(f"imagefolder:{tmp_path}")
    with pytest.raises(InputError, match=r"1.png"):
        data.load(f"imagefolder:{tmp_path}", check=True)


def test_limit_takes_the_first_of_each_class(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    for name in ("train", "val"):
        _images(tmp_path, name, ("cat", "dog"), count=5)
    train, held_out = data.load(f"imagefolder:{tmp_path}", 4, limit=2, augment="none")
    names = [str(file) for file in train.dataset.files]  # type: ignore[attr-defined]
    assert names == ["train/cat/0.png", "train/cat/1.png", "train/dog/0.png", "train/dog/1.png"]
    assert _all(held_out)[1].tolist() == [0, 0, 1, 1]
    train, held_out = data.load("sklearn:digits", 64, limit=3)
    assert torch.bincount(_all(train)[1]).tolist() == torch.bincount(_all(held_out)[1]).tolist() == [3] * 10


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
    assert next(iter(train))[0].shape == (7, 3, 32, 32) and len(_all(held_out)[1]) == 20
    assert len(_all(data.load(f"torchvision:cifar10:{tmp_path}", 7, limit=1)[0])[1]) == 10


def test_cifar_is_not_fetched_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    asked = []
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: asked.append(self.root))
    with pytest.raises(InputError, match="say download=True"):
        data.load(f"torchvision:cifar10:{tmp_path}")
    assert asked == []
    with pytest.raises(InputError):  # what stands in for fetching brings nothing
        data.load(f"torchvision:cifar10:{tmp_path}", download=True)
    assert asked == [str(tmp_path)]
    with pytest.raises(InputError, match="'cifar10'"):
        data.load(f"torchvision:cifar11:{tmp_path}")


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

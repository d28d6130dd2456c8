"""Image folders: what is read, in which form, and which errors come before training."""

import io
import zipfile
from pathlib import Path

import pytest
import torch

from fec_fast.utils.errors import InputError
from fec_fast.vision import data, loaders
from fec_fast.vision.image_folder import load_image_folder
from helpers.image_folders import all_batches, write_images


@pytest.mark.parametrize("part", ["val", "test"])
def test_image_folder(tmp_path: Path, part: str) -> None:
    pytest.importorskip("torchvision")
    write_images(tmp_path, "train", ("cat", "dog"))
    write_images(tmp_path, part, ("cat", "dog"), size=(30, 20))  # another size, which is resized
    train, held_out = data.load(f"imagefolder:{tmp_path}", batch_size=4)
    train_x, train_y = all_batches(train)
    held_x, held_y = all_batches(held_out)
    assert train_x.shape == (6, 3, 12, 16) and held_x.shape == (6, 3, 12, 16)
    assert sorted(train_y.tolist()) == [0, 0, 0, 1, 1, 1] and held_y.tolist() == [0, 0, 0, 1, 1, 1]
    # Green is 90 everywhere: (90/255 - 0.456) / 0.224 with ImageNet's mean and deviation.
    assert torch.allclose(held_x[:, 1], torch.tensor((90 / 255 - 0.456) / 0.224), atol=1e-5)


def test_image_folder_with_a_given_size(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    write_images(tmp_path, "train", ("cat", "dog"))
    write_images(tmp_path, "val", ("cat", "dog"))
    train, _ = load_image_folder(tmp_path, 6, image_size=8, mean=(0, 0, 0), std=(1, 1, 1))
    assert next(iter(train))[0].shape == (6, 3, 8, 8)


def test_image_folder_errors_come_before_training(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(InputError, match="must hold a folder train"):
        data.load(f"imagefolder:{tmp_path}")
    write_images(tmp_path, "train", ("cat", "dog"))
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
    write_images(tmp_path, "val", ("cat", "cow"))
    with pytest.raises(InputError, match=r"\['cow', 'dog'\] are in only one"):
        data.load(f"imagefolder:{tmp_path}")


def _zipped(root: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, path.relative_to(root))
    return file


@pytest.mark.parametrize("workers", [0, 2])
def test_a_zip_holds_what_the_folder_holds(tmp_path: Path, workers: int) -> None:
    pytest.importorskip("torchvision")
    write_images(tmp_path / "tree", "train", ("cat", "dog"), count=9)
    write_images(tmp_path / "tree", "test", ("cat", "dog"), count=4)
    archive = _zipped(tmp_path / "tree", tmp_path / "all.zip")
    folder = data.load(f"imagefolder:{tmp_path / 'tree'}", 3, augment="none")
    packed = data.load(f"imagefolder:{archive}", 3, augment="none", workers=workers)
    for one, other in zip(folder, packed, strict=True):
        left, right = all_batches(one), all_batches(other)
        assert torch.equal(left[0], right[0]) and torch.equal(left[1], right[1])
    assert len({float(image[2, 0, 0]) for image in left[0]}) == 4  # the images of a class differ


def test_archive_survives_being_sent_to_a_process(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    import pickle

    write_images(tmp_path / "tree", "train", ("cat", "dog"))
    write_images(tmp_path / "tree", "val", ("cat", "dog"))
    train, _ = data.load(f"imagefolder:{_zipped(tmp_path / 'tree', tmp_path / 'all.zip')}", augment="none")
    dataset = train.dataset
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[4][0], dataset[4][0])


def test_imagenet_style(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    write_images(tmp_path, "train", ("cat", "dog"), size=(40, 60))
    write_images(tmp_path, "val", ("cat", "dog"), size=(80, 50))
    train, held_out = data.load(
        f"imagefolder:{tmp_path}", 6, augment="imagenet", image_size=28, mean=(0, 0, 0), std=[1, 1, 1]
    )
    assert next(iter(train))[0].shape == next(iter(held_out))[0].shape == (6, 3, 28, 28)
    # Held out: the shorter side becomes 32, and the middle 28 are kept: a gradient shows which.
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


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("part", ["train", "val"])
def test_damaged_images_are_named_before_training_or_in_it(
    tmp_path: Path, part: str, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a package has replaced Pillow's function that opens pictures, as ultralytics does."""
    pytest.importorskip("torchvision")
    image = pytest.importorskip("PIL.Image")
    if replaced:
        monkeypatch.setattr(image, "open", lambda *args, **options: pytest.fail("that of another package is called"))
    for name in ("train", "val"):
        write_images(tmp_path, name, ("cat", "dog"))
    damaged = tmp_path / part / "dog" / "1.png"
    damaged.write_bytes(b"no image")
    for archive in (tmp_path, _zipped(tmp_path, tmp_path / "all.zip")):
        with pytest.raises(InputError, match=r"dog/1.png.* cannot be read \(UnidentifiedImageError.*remove or replace"):
            data.load(f"imagefolder:{archive}")
    loader = data.load(f"imagefolder:{tmp_path}", check=False, workers=1)[part == "val"]
    with pytest.raises(InputError, match=r"dog/1.png cannot be read"):
        all_batches(loader)
    # Truncated after its header: only decoding reveals it.
    whole = io.BytesIO()
    image.effect_noise((64, 64), 90).convert("RGB").save(whole, "JPEG")
    damaged.unlink()
    damaged.with_suffix(".jpg").write_bytes(whole.getvalue()[:-400])
    loader = data.load(f"imagefolder:{tmp_path}")[part == "val"]
    with pytest.raises(InputError, match=r"dog/1.jpg cannot be read \(OSError: image file is truncated"):
        all_batches(loader)


def test_a_warning_reports_that_many_files_are_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    for name in ("train", "val"):
        write_images(tmp_path, name, ("cat", "dog"))
    (tmp_path / "val" / "dog" / "1.png").write_bytes(b"no image")
    monkeypatch.setattr(loaders, "_MOST_CHECKED_BY_DEFAULT", 5)
    with pytest.warns(UserWarning, match="12 files are not checked before training"):
        data.load(f"imagefolder:{tmp_path}")
    with pytest.raises(InputError, match=r"1.png"):
        data.load(f"imagefolder:{tmp_path}", check=True)


def test_limit_takes_the_first_of_each_class(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    for name in ("train", "val"):
        write_images(tmp_path, name, ("cat", "dog"), count=5)
    train, held_out = data.load(f"imagefolder:{tmp_path}", 4, limit=2, augment="none")
    names = [str(file) for file in train.dataset.files]  # type: ignore[attr-defined]
    assert names == ["train/cat/0.png", "train/cat/1.png", "train/dog/0.png", "train/dog/1.png"]
    assert all_batches(held_out)[1].tolist() == [0, 0, 1, 1]
    train, held_out = data.load("sklearn:digits", 64, limit=3)
    assert (
        torch.bincount(all_batches(train)[1]).tolist() == torch.bincount(all_batches(held_out)[1]).tolist() == [3] * 10
    )

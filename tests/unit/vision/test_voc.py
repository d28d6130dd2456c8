"""Images with boxes in the layout of VOC: what is read, and what is refused before training starts."""

import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("defusedxml")

from fec_fast.utils.errors import ArgumentError, FecWarning, InputError  # noqa: E402
from fec_fast.vision import data, loaders  # noqa: E402
from fec_fast.vision.voc import load_voc  # noqa: E402
from helpers import voc_folders  # noqa: E402

SPLITS: dict[str, dict[str, list[voc_folders.Box]]] = {
    "train": {
        "a": [("red", 11, 6, 30, 25), ("blue", 33, 21, 62, 40)],
        "b": [("blue", 1, 1, 20, 20)],
        "c": [],
        "d": [("red", 41, 11, 64, 48)],
    },
    "val": {"e": [("red", 11, 11, 30, 40)], "f": [("blue", 5, 5, 24, 24)]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return voc_folders.write(tmp_path / "voc", SPLITS)


def test_boxes_lie_where_the_pixels_are(folder: Path) -> None:
    _, held_out = load_voc(folder, batch_size=2)
    ((images, targets),) = list(held_out)
    assert [image.shape for image in images] == [(3, 48, 64)] * 2
    assert all(image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1 for image in images)
    assert targets[0]["boxes"].tolist() == [[10, 10, 30, 40]]  # VOC counts from 1 and includes the last pixel
    assert [target["labels"].tolist() for target in targets] == [[2], [1]]  # blue, red
    assert [target["difficult"].tolist() for target in targets] == [[False], [False]]
    left, top, right, bottom = targets[0]["boxes"][0].int().tolist()
    assert images[0][0, top + 2 : bottom - 2, left + 2 : right - 2].min() > 0.8  # red, up to the loss of JPEG
    assert images[0][0, :, : left - 2].max() < 0.6


def test_resized_images_take_their_boxes_along(folder: Path) -> None:
    _, held_out = load_voc(folder, image_size=(24, 96))
    images, targets = next(iter(held_out))
    assert images[0].shape == (3, 24, 96)
    assert targets[0]["boxes"].tolist() == [[15, 5, 45, 20]]
    images, _ = next(iter(load_voc(folder, image_size=32)[1]))
    assert images[0].shape == (3, 32, 32)


def test_large_pictures_need_a_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "_MOST_UNSCALED", 64 * 48 - 1)
    with pytest.raises(InputError, match="a.jpg has 64 x 48 pixels; .* give image_size="):
        load_voc(folder)
    assert load_voc(folder, image_size=10)[1].dataset[0][0].shape == (3, 10, 10)


@pytest.mark.parametrize("augment", ["ssd", "microscope", "none"])
def test_training_images_keep_their_size_and_boxes_stay_inside(folder: Path, augment: str) -> None:
    train, _ = load_voc(folder, batch_size=4, image_size=64, augment=augment)
    assert len(train) == 1
    torch.manual_seed(0)
    for _ in range(10):
        images, targets = next(iter(train))
        for image, target in zip(images, targets, strict=True):
            assert image.shape == (3, 64, 64)
            boxes = target["boxes"]
            assert type(boxes) is torch.Tensor and boxes.shape == (len(target["labels"]), 4)
            assert (boxes >= 0).all() and (boxes <= 64).all() and (boxes[:, 2:] > boxes[:, :2]).all()
            assert len(target["difficult"]) == len(boxes)


def test_augmented_boxes_still_cover_what_they_name(folder: Path) -> None:
    train, _ = load_voc(folder, batch_size=4, image_size=96, augment="microscope")
    torch.manual_seed(1)
    seen = 0
    for _ in range(10):
        for image, target in zip(*next(iter(train)), strict=True):
            for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
                left, top, right, bottom = (int(x) for x in box.round().tolist())
                inside = image[:, top:bottom, left:right].flatten(1).median(1).values
                assert inside[0 if label == 2 else 2] > inside[2 if label == 2 else 0] + 0.2
                seen += 1
    assert seen > 20


def test_a_zip_holds_what_the_folder_holds_in_worker_processes_too(folder: Path, tmp_path: Path) -> None:
    nested = tmp_path / "nested" / "VOCdevkit" / "VOC2007"
    shutil.copytree(folder, nested)
    archive = shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path / "nested")
    for expected, got in zip(load_voc(folder)[1], load_voc(archive, workers=2, batch_size=16)[1], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected[0], got[0], strict=True))
        assert all(torch.equal(a[key], b[key]) for a, b in zip(expected[1], got[1], strict=True) for key in a)
    images = load_voc(archive)[1].dataset
    images[0]  # opens the archive
    assert torch.equal(pickle.loads(pickle.dumps(images))[0][0], images[0][0])


def test_degenerate_boxes_are_dropped_and_named_and_outer_ones_cut(folder: Path) -> None:
    boxes: list[voc_folders.Box] = [("red", 9, 9, 9, 9), ("red", 70, 9, 80, 20), ("blue", 50, 30, 70, 50)]
    (folder / "Annotations" / "b.xml").write_text(voc_folders.annotation(boxes))
    with pytest.warns(UserWarning) as caught:
        train, _ = load_voc(folder, augment="none")
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2
    assert "2 of train's boxes have no area" in texts[0] and "red [9, 9, 9, 9] in b" in texts[0]
    assert "1 of train's boxes reach beyond their image" in texts[1] and "blue [50, 30, 70, 50] in b" in texts[1]
    assert train.dataset[1][1]["boxes"].tolist() == [[49, 29, 64, 48]]


def test_difficult_marks_are_read(folder: Path) -> None:
    (folder / "Annotations" / "e.xml").write_text(voc_folders.annotation(SPLITS["val"]["e"], difficult=True))
    assert load_voc(folder)[1].dataset[0][1]["difficult"].tolist() == [True]


def test_sound_data_warn_of_nothing(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_voc(folder)


def _lines(folder: Path, split: str, text: str) -> None:
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(text)


def _xml(folder: Path, text: str) -> None:
    (folder / "Annotations" / "a.xml").write_text(text)


def _entity(folder: Path) -> None:
    _xml(folder, '<!DOCTYPE a [<!ENTITY b "red">]><annotation><object><name>&b;</name></object></annotation>')


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "ImageSets/Main/val.txt").unlink(), "there is no ImageSets/Main/val.txt"),
        (lambda f: _lines(f, "val", "\n"), "val.txt names no image"),
        (lambda f: _lines(f, "val", "e\nf\ne\n"), "names e more than once"),
        (lambda f: _lines(f, "val", "a\nf\n"), "a in train and in val"),
        (lambda f: _lines(f, "val", "e\nx\n"), "Annotations lacks x.xml, named in ImageSets/Main/val.txt"),
        (lambda f: (f / "JPEGImages/b.jpg").unlink(), "JPEGImages lacks b.jpg"),
        (lambda f: (f / "JPEGImages/b.jpg").write_bytes(b"no image"), "JPEGImages/b.jpg cannot be read"),
        (lambda f: _xml(f, "<annotation><object>"), "Annotations/a.xml cannot be read: ParseError"),
        (_entity, "Annotations/a.xml cannot be read: EntitiesForbidden"),
        (lambda f: _xml(f, "<annotation><object></object></annotation>"), "a.xml: object 1 has no name"),
        (lambda f: _xml(f, "<a><object><name>red</name></object></a>"), "object 1, 'red', has no box"),
        (lambda f: _xml(f, voc_folders.annotation([("red", 1, 1, 9, 9)]).replace("9", "nan")), "has no box"),
    ],
)
def test_what_is_wrong_is_named_at_once(folder: Path, spoil: Any, words: str) -> None:
    spoil(folder)
    with pytest.raises(InputError, match=words):
        load_voc(folder)


def test_classes_are_the_training_images_or_given(folder: Path) -> None:
    assert load_voc(folder)[0].dataset.classes == ("blue", "red")
    assert load_voc(folder, classes=["red", "green", "blue"])[1].dataset[0][1]["labels"].tolist() == [1]
    with pytest.raises(InputError, match="'blue' in a is none of the classes that were given, red"):
        load_voc(folder, classes=["red"])
    (folder / "Annotations" / "e.xml").write_text(voc_folders.annotation([("green", 1, 1, 9, 9)]))
    with pytest.raises(InputError, match="'green' in e is none of the classes of train, blue, red"):
        load_voc(folder)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"path": "nowhere"}, InputError, "there is no such folder or zip"),
        ({"batch_size": 0}, InputError, "batch_size=0"),
        ({"batch_size": 2.0}, ArgumentError, "batch_size=2.0"),
        ({"image_size": (3, 4, 5)}, ArgumentError, "image_size=\\(3, 4, 5\\)"),
        ({"image_size": 0}, InputError, "image_size=0"),
        ({"augment": "sdd"}, InputError, "nearest: 'ssd'"),
        ({"classes": ["red", "red"]}, InputError, "a name is given twice"),
    ],
)
def test_wrong_arguments_are_named(folder: Path, arguments: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        load_voc(**{"path": folder, **arguments})


def test_image_that_breaks_off_in_the_middle_is_named(folder: Path) -> None:
    file = folder / "JPEGImages" / "e.jpg"
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(InputError, match="JPEGImages/e.jpg cannot be read"):
        next(iter(load_voc(folder)[1]))


def without_lists(folder: Path) -> Path:
    shutil.rmtree(folder / "ImageSets")
    return folder


def test_without_lists_a_share_is_held_out_by_name(folder: Path, tmp_path: Path) -> None:
    without_lists(folder)
    with pytest.warns(FecWarning, match=r"has no ImageSets/Main/train.txt: 1 of its 6 images, chosen by their names"):
        train, held_out = load_voc(folder)
    (chosen,) = (example.name for example in held_out.dataset.examples)
    assert {example.name for example in train.dataset.examples} == set("abcdef") - {chosen}
    archive = shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path, "voc")
    for again in ({"path": folder, "seed": 7}, {"path": archive}, {"path": folder, "held_out": 0.01}):
        with pytest.warns(FecWarning, match="1 of its 6 images"):
            assert [example.name for example in load_voc(**again)[1].dataset.examples] == [chosen]
    with pytest.warns(FecWarning, match="3 of its 6 images"):
        assert chosen in [example.name for example in load_voc(folder, held_out=0.5)[1].dataset.examples]


@pytest.mark.filterwarnings("ignore:.*are held out")
def test_what_cannot_be_divided_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match="held_out=0.3: ImageSets/Main/train.txt says what is held out"):
        load_voc(folder, held_out=0.3)
    (folder / "ImageSets/Main/val.txt").rename(folder / "ImageSets/Main/test.txt")
    with pytest.raises(InputError, match=r"no ImageSets/Main/val.txt; there are test, train: name two .* splits="):
        load_voc(folder)
    with pytest.raises(ArgumentError, match="splits='train'"):
        load_voc(folder, splits="train")
    without_lists(folder)
    with pytest.raises(InputError, match="no ImageSets/Main/train.txt"):
        load_voc(folder, splits=("train", "val"))
    for name in "bcdef":
        (folder / f"Annotations/{name}.xml").unlink()
    with pytest.raises(InputError, match="two are needed"):
        load_voc(folder)
    (folder / "Annotations/a.xml").unlink()
    with pytest.raises(InputError, match=r"neither ImageSets/Main/train.txt nor a file Annotations/\*.xml"):
        load_voc(folder)


def test_data_load_knows_voc(folder: Path) -> None:
    train, held_out = data.load(f"voc:{folder}", batch_size=2, limit=1, image_size=32, augment="none")
    assert len(train.dataset) == len(held_out.dataset) == 1
    assert next(iter(held_out))[0][0].shape == (3, 32, 32)
    with pytest.raises(ArgumentError, match="has no option 'download'"):
        data.load(f"voc:{folder}", download=True)
    with pytest.raises(InputError, match="limit=0"):
        data.load(f"voc:{folder}", limit=0)

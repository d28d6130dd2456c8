"""COCO's instances: read as pycocotools reads them, evaluated as it does, and refused where they are damaged."""

import contextlib
import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402

from fec_fast.training.tasks.average_precision import average_precisions  # noqa: E402
from fec_fast.utils.errors import ArgumentError, FecWarning, InputError  # noqa: E402
from fec_fast.vision import data, loaders  # noqa: E402
from fec_fast.vision.coco import load_coco  # noqa: E402
from helpers import box_folders  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return box_folders.write_coco(tmp_path / "coco")


def items(loader: Any) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    return [loader.dataset[number] for number in range(len(loader.dataset))]


def test_boxes_labels_and_crowds(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, held_out = data.load(f"coco:{folder}", augment="none", batch_size=2)
    assert train.dataset.classes == held_out.dataset.classes == ("car", "dog", "brush")
    found = [target for _, target in items(train)]
    assert [target["boxes"].tolist() for target in found] == [[[0, 0, 20, 20]], [[20.5, 0, 30.75, 20]], []]
    assert [target["labels"].tolist() for target in found] == [[2], [1], []]  # the crowd is not trained on
    (image, target), (_, empty) = items(held_out)
    assert target["iscrowd"].tolist() == [False, True] and target["labels"].tolist() == [2, 1]
    assert empty["boxes"].shape == (0, 4) and empty["iscrowd"].shape == (0,)
    assert image.shape == (3, 20, 40) and image[0, :, :19].min() > 0.9 and image[2, :, 21:].min() > 0.9
    images, targets = next(iter(held_out))
    assert len(images) == len(targets) == 2


def test_a_zip_with_a_folder_around_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path, "coco")
    for expected, got in zip(load_coco(folder), load_coco(tmp_path / "data.zip"), strict=True):
        assert [example.boxes for example in expected.dataset.examples] == [e.boxes for e in got.dataset.examples]
    assert torch.equal(load_coco(tmp_path / "data.zip")[1].dataset[0][0], load_coco(folder)[1].dataset[0][0])


def test_one_folder_per_part(folder: Path) -> None:
    for part, new in (("train", "train"), ("val", "valid")):
        (folder / f"{part}2017").rename(folder / new)
        (folder / f"annotations/instances_{part}2017.json").rename(folder / new / "_annotations.coco.json")
    train, held_out = load_coco(folder)
    assert [len(loader.dataset) for loader in (train, held_out)] == [3, 2]


def test_one_file_is_divided_by_names(folder: Path) -> None:
    (folder / "annotations/instances_val2017.json").unlink()
    with pytest.warns(FecWarning, match=r"one file of annotations, .*: 1 of its 3 images, chosen by their names"):
        train, held_out = load_coco(folder, held_out=0.4)
    names = [[example.name for example in loader.dataset.examples] for loader in (train, held_out)]
    assert sorted(names[0] + names[1]) == ["a.jpg", "b.jpg", "c.jpg"] and len(names[1]) == 1
    with pytest.warns(FecWarning):
        assert [e.name for e in load_coco(folder, seed=5)[1].dataset.examples] == names[1]


def test_files_and_folders_by_name(folder: Path) -> None:
    (folder / "annotations/instances_val2017.json").rename(folder / "other.json")
    (folder / "val2017").rename(folder / "elsewhere")
    files = {"annotations": ("annotations/instances_train2017.json", "other.json")}
    with pytest.raises(InputError, match="d.jpg, named in other.json, cannot be found; images=FOLDER"):
        load_coco(folder, **files)
    train, held_out = load_coco(folder, **files, images=("train2017", "elsewhere"))
    assert len(train.dataset) == 3 and held_out.dataset.examples[0].file == "elsewhere/d.jpg"


def test_pictures_that_are_turned_by_exif(folder: Path) -> None:
    box_folders.picture(folder / "val2017/d.jpg", (20, 40), orientation=6)  # upright: 40 x 20
    for check in (None, False):
        image, target = load_coco(folder, check=check)[1].dataset[0]
        assert image.shape == (3, 20, 40) and target["boxes"][0].tolist() == [0, 0, 20, 20]
    box_folders.picture(folder / "val2017/d.jpg", (20, 40))
    with pytest.raises(InputError, match="d.jpg has 20 x 40 pixels, but 40 x 20 in annotations/instances_val2017.json"):
        load_coco(folder)
    held_out = load_coco(folder, check=False)[1]
    with pytest.raises(InputError, match="d.jpg has 20 x 40 pixels, but 40 x 20 in its annotation"):
        held_out.dataset[0]


def test_a_warning_reports_that_many_pictures_are_not_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "val2017/d.jpg").write_bytes(b"no image")
    monkeypatch.setattr(loaders, "_MOST_CHECKED_BY_DEFAULT", 4)
    with pytest.warns(FecWarning, match="5 files are not checked before training"):
        load_coco(folder)
    with pytest.raises(InputError, match="d.jpg cannot be read"):
        load_coco(folder, check=True)


def test_large_pictures_need_a_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "_MOST_UNSCALED", 40 * 20 - 1)
    for check in (None, False):
        with pytest.raises(InputError, match="a.jpg has 40 x 20 pixels; .* give image_size="):
            load_coco(folder, check=check)
        assert load_coco(folder, image_size=10, check=check)[1].dataset[0][0].shape == (3, 10, 10)


NUMBERS = st.integers(0, 15)
BOX = st.tuples(st.integers(0, 30), st.integers(0, 12), st.integers(1, 10), st.integers(1, 8)).map(list)
ENTRIES = st.lists(
    st.fixed_dictionaries(
        {
            "image_id": st.sampled_from([3, 77, 12]),
            "category_id": st.sampled_from(list(box_folders.CATEGORIES)),
            "bbox": BOX,
            "iscrowd": st.sampled_from([0, 0, 0, 1]),
        }
    ),
    min_size=1,
    max_size=12,
)
IMAGES = {77: "x.jpg", 3: "y.jpg", 12: "z.jpg"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = box_folders.write_coco(tmp_path_factory.mktemp("coco"))
    for name in IMAGES.values():
        box_folders.picture(root / "val2017" / name)
    return root


@settings(max_examples=30)
@given(entries=ENTRIES, shifts=st.lists(st.tuples(NUMBERS, st.integers(0, 3)), min_size=12, max_size=12))
def test_reads_and_evaluates_as_pycocotools_does(
    shared: Path, entries: list[dict[str, Any]], shifts: list[tuple[int, int]]
) -> None:
    file = shared / "annotations/instances_val2017.json"
    file.write_text(box_folders.instances(IMAGES, entries, box_folders.CATEGORIES))
    examples = load_coco(shared)[1].dataset
    targets = [target for _, target in (examples[number] for number in range(len(examples)))]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
    ids = {name: number for number, name in box_folders.CATEGORIES.items()}
    label_of = {ids[name]: label for label, name in enumerate(examples.classes, start=1)}
    for number, target in zip(IMAGES, targets, strict=True):
        expected = truth.loadAnns(truth.getAnnIds(imgIds=[number]))
        corners = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in expected)]
        assert target["boxes"].tolist() == corners
        assert target["labels"].tolist() == [label_of[entry["category_id"]] for entry in expected]
        assert target["iscrowd"].tolist() == [bool(entry["iscrowd"]) for entry in expected]
    if all(entry["iscrowd"] for entry in entries):
        return
    # Detections: the true boxes, some of them moved, with scores in another order.
    found = [
        {**entry, "bbox": [entry["bbox"][0] + shift, *entry["bbox"][1:]], "score": 0.9 - ((7 * at) % 12) / 20}
        for at, (entry, (_, shift)) in enumerate(zip(entries, shifts, strict=False))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes([dict(entry) for entry in found]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    outputs = []
    for number in IMAGES:
        own = [entry for entry in found if entry["image_id"] == number]
        boxes = torch.tensor([entry["bbox"] for entry in own], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([label_of[entry["category_id"]] for entry in own], dtype=torch.int64)
        outputs.append({"boxes": boxes, "labels": labels, "scores": torch.tensor([entry["score"] for entry in own])})
    got = average_precisions(outputs, targets, examples.classes)
    assert [got.coco, got.coco_50] == pytest.approx(evaluation.stats[:2], abs=1e-9)


def _edit(key: str, number: int, **values: Any) -> Any:
    def spoil(content: dict[str, Any]) -> None:
        content[key][number].update(values)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda c: c.pop("annotations"), "missing required field `annotations`"),
        (lambda c: c["images"].clear(), "names no image"),
        (_edit("images", 0, id=1000000), "has images more than once: 1000000"),
        (_edit("images", 0, file_name="b.jpg"), "has files more than once: b.jpg"),
        (_edit("images", 0, file_name="../val2017/d.jpg"), "../val2017/d.jpg, named in .* cannot be found"),
        (_edit("images", 0, width=-1), "Expected `int` >= 1"),
        (_edit("categories", 0, id=3), "has categories more than once: 3"),
        (_edit("categories", 0, name="car"), "has category names more than once: car"),
        (_edit("annotations", 1, image_id=8), r"annotations\[1\]: there is no image of id 8"),
        (_edit("annotations", 1, category_id=8), r"annotations\[1\]: there is no category of id 8"),
        (_edit("annotations", 1, bbox=[1, 2, 3]), r"length 4.*annotations\[1\]|annotations"),
        (_edit("annotations", 1, bbox=[1, 2, 3, 1e300]), r"annotations\[1\]: bbox is"),
        (_edit("annotations", 1, iscrowd=2), r"annotations\[1\]: iscrowd is 2"),
    ],
)
def test_what_is_wrong_is_named_at_once(folder: Path, spoil: Any, words: str) -> None:
    file = folder / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    spoil(content)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=words):
        load_coco(folder)


def test_boxes_beyond_the_picture_are_cut_and_those_without_an_area_dropped(folder: Path) -> None:
    file = folder / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [-5, 0, 20, 20]
    content["annotations"][2]["bbox"] = [3, 3, 0, 5]
    file.write_text(json.dumps(content))
    with pytest.warns(FecWarning) as caught:
        train, _ = load_coco(folder)
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2 and "car [3, 3, 3, 8] in b.jpg" in texts[0] and "dog [-5, 0, 15, 20] in a.jpg" in texts[1]
    assert train.dataset.examples[0].boxes == ((0, 0, 15, 20),) and not train.dataset.examples[1].boxes


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"path": "nowhere"}, InputError, "there is no such folder or zip"),
        ({"annotations": 3}, ArgumentError, "annotations=3"),
        ({"annotations": "x.json"}, InputError, "there is no x.json"),
        ({"check": 1}, ArgumentError, "check=1"),
        ({"held_out": 0.5}, InputError, "instances_val2017.json says what is held out"),
        ({"held_out": 1.5}, InputError, "held_out=1.5"),
        ({"held_out": "x"}, ArgumentError, "held_out='x'"),
        ({"classes": ["car", "brush"]}, InputError, "'dog' in a.jpg is none of the classes that were given"),
    ],
)
def test_wrong_arguments_are_named(folder: Path, arguments: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        load_coco(**{"path": folder, **arguments})


def test_the_files_must_be_clear(folder: Path) -> None:
    (folder / "annotations/instances_train2014.json").write_text("{}")
    with pytest.raises(InputError, match="which JSON files .* there are .*instances_train2014.json"):
        load_coco(folder)

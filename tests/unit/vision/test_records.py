"""Dictionaries as data: lists, iterables and Hugging Face data sets, for classifiers and detectors."""

import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

pytest.importorskip("torchvision")

from PIL import Image  # noqa: E402

import fec_fast  # noqa: E402
from fec_fast.utils.errors import ArgumentError, FecWarning, InputError, MissingExtraError  # noqa: E402
from fec_fast.vision import data, loaders  # noqa: E402
from fec_fast.vision.record_pictures import picture_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*are held out:UserWarning")
PLAIN: dict[str, Any] = {"augment": "none", "mean": [0, 0, 0], "std": [1, 1, 1]}


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (16, 12), (10 * number, 90, 30))


def records(count: int = 10) -> list[dict[str, Any]]:
    return [{"image": picture(number), "label": number % 2} for number in range(count)]


def boxed(count: int = 5) -> list[dict[str, Any]]:
    boxes = [{"bbox": [[0, 0, 8, 12], [8, 0, 8.0, 6]], "category": [1, 0]}, {"bbox": [], "category": []}]
    return [{"image": picture(number), "objects": boxes[number % 2]} for number in range(count)]


def gone_through(loader: Any) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


class OnlyIterable:
    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from records()


@pytest.mark.parametrize("source", [records, OnlyIterable, lambda: iter(records()), lambda: {"train": records()}])
def test_a_share_is_held_out_of_one_data_set(source: Any) -> None:
    with pytest.warns(
        FecWarning, match="data of dictionaries have one part, no second to hold out: 3 of its 10 images"
    ):
        train, held_out = data.load(source(), batch_size=4, held_out=0.3, **PLAIN)
    (images, labels), (others, _) = gone_through(train), gone_through(held_out)
    assert images.shape == (7, 3, 12, 16) and len(others) == 3
    assert labels.tolist() == [(number // 10) % 2 for number in (255 * images[:, 0, 0, 0]).round().int().tolist()]
    seen = {*(255 * torch.cat([images, others])[:, 0, 0, 0]).round().int().tolist()}
    assert seen == {10 * number for number in range(10)}


@pytest.mark.parametrize("source", [(records(6), records(4)), {"train": records(6), "test": records(4)}])
def test_two_data_sets_are_taken_as_they_are(source: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, held_out = data.load(source, **PLAIN)
    assert [len(loader.dataset) for loader in (train, held_out)] == [6, 4]
    with pytest.raises(InputError, match="says what is held out"):
        data.load(source, held_out=0.5)
    assert len(data.load(source, limit=2)[0].dataset) == 2


def test_a_classifier_is_recovered_trained_and_evaluated_on_them() -> None:
    train, held_out = data.load(records(40), batch_size=8, **PLAIN)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)]
    model = nn.Sequential(*layers).eval()
    example = torch.zeros(1, 3, 12, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FecWarning)  # of few images
        result = fec_fast.prune(model, example, ratio=0.5, recover=train)
    fec_fast.finetune(result.model, train, epochs=1, val_loader=held_out, progress=False)
    assert 0 <= fec_fast.evaluate(result.model, held_out) <= 1


def test_loaders_whose_batches_are_dictionaries() -> None:
    """As a DataLoader over a Hugging Face data set in torch's format gives them."""
    images, labels = torch.randn(40, 3, 6, 6), torch.arange(40) % 2
    rows = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2)).eval()
    loader, pairs = DataLoader(rows, 8), [(images, labels)]
    assert fec_fast.evaluate(model, loader) == fec_fast.evaluate(model, pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FecWarning)
        made = [fec_fast.prune(model, images[:1], ratio=0.5, recover=source).model for source in (loader, pairs)]
    for one, other in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    fec_fast.finetune(model, loader, epochs=1, progress=False)
    with pytest.raises(InputError, match=r"fec_fast.data.load\(DATASET\) makes loaders of dictionaries"):
        fec_fast.evaluate(model, records())


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("box_format", ["xywh", "xyxy"])
def test_boxes(as_list: bool, box_format: str) -> None:
    rows = boxed()
    for row in rows:
        objects = row["objects"]
        if box_format == "xyxy":
            objects = {**objects, "bbox": [[x, y, x + w, y + h] for x, y, w, h in objects["bbox"]]}
        pairs = zip(objects["bbox"], objects["category"], strict=True)
        row["objects"] = [{"bbox": box, "category": label} for box, label in pairs] if as_list else objects
    train, held_out = data.load((rows, rows), augment="none", classes=["cat", "dog"], box_format=box_format)
    image, target = train.dataset[0]
    assert train.dataset.classes == ("cat", "dog") and image.shape == (3, 12, 16)
    assert target["boxes"].tolist() == [[0, 0, 8, 12], [8, 0, 16, 6]] and target["labels"].tolist() == [2, 1]
    assert train.dataset[1][1]["boxes"].shape == (0, 4)
    resized = data.load((rows, rows), augment="none", classes=["cat", "dog"], box_format=box_format, image_size=24)[0]
    assert resized.dataset[0][1]["boxes"].tolist() == [[0, 0, 12, 24], [12, 0, 24, 12]]
    images, targets = next(iter(held_out))
    assert len(images) == len(targets) == 5


def test_names_of_classes() -> None:
    rows = [{"img": picture(1), "target": name} for name in ("dog", "cat", "dog")]
    train, _ = data.load((rows, rows), classes=["cat", "dog"])
    assert [train.dataset[number][1] for number in range(3)] == [1, 0, 1]
    with pytest.raises(InputError, match=r"target of record 0 is 'dog': give classes=\[...\]"):
        data.load((rows, rows))[0].dataset[0]
    own = [{"x": picture(1), "y": 0}]
    assert data.load((own, own), image="x", label="y")[0].dataset[0][1] == 0


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1 << 30))
def test_every_form_of_an_image_is_the_same_picture(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    file = tmp_path_factory.mktemp("picture") / "a.png"
    image.save(file)
    forms = [image, pixels, torch.from_numpy(pixels), pixels / 255.0, encoded(image), {"bytes": encoded(image)}, file]
    if width not in (1, 3, 4):
        forms += [np.moveaxis(pixels, 2, 0), torch.from_numpy(pixels).permute(2, 0, 1) / 255]
    for form in forms:
        assert np.array_equal(np.asarray(picture_of(form, "it")), pixels)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "it is a int: give a PIL image"),
        (b"no picture", "it cannot be read"),
        ({"bytes": None, "path": "/etc/passwd"}, "it is only the path '/etc/passwd'"),
        (np.zeros((4, 4), np.int64), "dtype int64"),
        (np.full((4, 4), 2.0), r"values outside of \[0, 1\]"),
        (np.full((4, 4), np.nan), r"values outside of \[0, 1\]"),
        (np.zeros((5, 5, 7), np.uint8), r"shape \[5, 5, 7\]"),
        (np.zeros((0, 4), np.uint8), r"shape \[0, 4\]"),
        (np.broadcast_to(np.uint8(0), (6000, 6000)), "6000 x 6000 pixels"),
    ],
)
def test_what_is_no_image_is_named(value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        picture_of(value, "it")


class Broken(list):
    def __getitem__(self, index: Any) -> Any:
        raise KeyError("gone")


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        ([], {}, InputError, "a part is empty"),
        ([1, 2], {}, InputError, "record 0 is a int"),
        (Broken([1, 2]), {}, InputError, "reading record 0 raised KeyError"),
        ([{"label": 0}] * 2, {}, InputError, "record 0 has no image or img .*give image=KEY"),
        ([{"image": picture(0)}] * 2, {}, InputError, "give label=KEY"),
        (records(), {"image": "photo"}, InputError, "record 0 has no photo, only image, label"),
        (records(), {"download": True}, ArgumentError, "no option 'download'"),
        (records(), {"batch_size": 0}, InputError, "batch_size=0"),
        (records(), {"classes": 5}, ArgumentError, "classes=5"),
        (records(), {"classes": "ab"}, ArgumentError, "classes='ab'"),
        (records(), {"classes": ["a", "a"]}, InputError, "a name is given twice"),
        ({"test": records()}, {}, InputError, "no part 'train', only test"),
        (boxed(), {}, InputError, r"names of their categories: give classes=\[...\]"),
        (boxed(), {"classes": ["a"], "mean": [1, 2, 3]}, ArgumentError, "no option 'mean'"),
        (boxed(), {"classes": ["a"], "box_format": "cxcywh"}, InputError, "box_format='cxcywh'"),
        ((boxed(), [{"a": 1}]), {"classes": ["a", "b"], "image_size": 0}, InputError, "image_size=0"),
    ],
)
def test_wrong_data_are_named_at_once(source: Any, options: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        data.load(source, **options)


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        (None, "has no objects"),
        (3, "are a int"),
        ({"bbox": [[1, 2, 3, 4]]}, "expected bbox and category"),
        ({"bbox": [[1, 2, 3, 4]], "category": []}, "two lists of one length"),
        ({"bbox": 3, "category": 4}, "two lists of one length"),
        ({"bbox": [[1, 2, 3]], "category": [0]}, "give four numbers"),
        ({"bbox": [[1, 2, 3, float("nan")]], "category": [0]}, "give four numbers"),
        ({"bbox": [[1, 2, 3, 4]], "category": [2]}, "is 2: expected 0 to 1"),
        ({"bbox": [[1, 2, 3, 4]], "category": ["cow"]}, "is 'cow': it is none of a, b"),
    ],
)
def test_wrong_objects_are_named(objects: Any, words: str) -> None:
    rows = [*boxed(1), {"image": picture(0), "objects": objects}]
    train, _ = data.load((rows, rows), classes=["a", "b"], augment="none")
    with pytest.raises(InputError, match=words):
        train.dataset[1]


@pytest.mark.parametrize(("rows", "options"), [(boxed(2), {"classes": ["a", "b"]}), (records(2), {})])
def test_large_pictures_need_a_size(rows: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "_MOST_UNSCALED", 16 * 12 - 1)
    with pytest.raises(InputError, match="has 16 x 12 pixels; .* give image_size="):
        data.load((rows, rows), augment="none", **options)[0].dataset[0]
    assert data.load((rows, rows), augment="none", image_size=8, **options)[0].dataset[0][0].shape == (3, 8, 8)


@pytest.mark.parametrize("label", [-1, 0.5, None, "x", [1], float("inf")])
def test_wrong_labels_are_named(label: Any) -> None:
    rows = [{"image": picture(0), "label": 0}, {"image": picture(0), "label": label}]
    with pytest.raises(InputError, match="label"):
        data.load((rows, rows))[0].dataset[1]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"fec_fast\[hf\]"):
        data.load("hf:somewhere")


@pytest.fixture(scope="module")
def datasets() -> Any:
    return pytest.importorskip("datasets")


def hugging_face(datasets: Any, rows: list[dict[str, Any]]) -> Any:
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def test_hugging_face_classes(datasets: Any, tmp_path: Path) -> None:
    parts = datasets.DatasetDict({"train": hugging_face(datasets, records(6))})
    parts["validation"] = hugging_face(datasets, records(4))
    parts.save_to_disk(tmp_path / "saved")
    for source in (parts, f"hf:{tmp_path / 'saved'}"):
        train, held_out = data.load(source, batch_size=3, **PLAIN)
        assert train.dataset.classes == ("cat", "dog") and len(held_out.dataset) == 4
        images, labels = gone_through(held_out)
        assert (255 * images[:, 0, 0, 0]).round().tolist() == [0, 10, 20, 30] and labels.tolist() == [0, 1, 0, 1]
    parts["train"].save_to_disk(tmp_path / "one")
    with pytest.warns(FecWarning, match="have one part, no second to hold out: 1 of its 6 images"):
        assert len(data.load(f"hf:{tmp_path / 'one'}")[0].dataset) == 5


def test_hugging_face_boxes(datasets: Any, tmp_path: Path) -> None:
    list_of = getattr(datasets, "List", datasets.Sequence)  # its name from 4.0 on
    objects = {
        "bbox": list_of(list_of(datasets.Value("float32"), length=4)),
        "category": list_of(datasets.ClassLabel(names=["cat", "dog"])),
    }
    features = datasets.Features({"image": datasets.Image(), "objects": objects})
    found = datasets.Dataset.from_list(boxed(), features=features)
    found.save_to_disk(tmp_path / "saved")
    for source in (found, f"hf:{tmp_path / 'saved'}"):
        train, held_out = data.load(source, augment="none", held_out=0.4)
        assert train.dataset.classes == ("cat", "dog")
        targets = [loader.dataset[n][1] for loader in (train, held_out) for n in range(len(loader.dataset))]
        assert sorted(target["labels"].tolist() for target in targets) == [[], [], [2, 1], [2, 1], [2, 1]]


def test_what_is_wrong_in_a_saved_folder_is_named(datasets: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hf:.*nowhere': there is no such folder"):
        data.load(f"hf:{tmp_path / 'nowhere'}")
    with pytest.raises(InputError, match="cannot be read"):
        data.load(f"hf:{tmp_path}")
    paths = datasets.Dataset.from_list([{"image": "/etc/passwd", "label": 0}] * 2)
    paths.save_to_disk(tmp_path / "paths")
    with pytest.raises(InputError, match="image is text: store pictures"):
        data.load(f"hf:{tmp_path / 'paths'}")
    image = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    rows = [{"image": {"bytes": None, "path": "/etc/passwd"}, "label": 0}] * 2
    features = datasets.Features({"image": image, "label": datasets.Value("int64")})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "named")
    with pytest.raises(InputError, match="is only the path '/etc/passwd'"):
        data.load(f"hf:{tmp_path / 'named'}")
    state = tmp_path / "named" / "state.json"
    listed = json.loads(state.read_text())
    (file,) = listed["_data_files"]
    for files, match in (
        ([file, file], "lists a file twice: save the data again"),
        ([{"filename": f"../paths/{file['filename']}"}], "lists '../paths/.*', which is not in its folder"),
        ([{"name": 3}], "missing required field `filename`"),
    ):
        state.write_text(json.dumps({**listed, "_data_files": files}))
        with pytest.raises(InputError, match=match):
            data.load(f"hf:{tmp_path / 'named'}")

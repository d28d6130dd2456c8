"""YOLO's text files: boxes and outlines, and what is refused before training starts."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torchvision")

from fec_fast.utils.errors import FecWarning, InputError  # noqa: E402
from fec_fast.vision import data, loaders  # noqa: E402
from fec_fast.vision.yolo import load_yolo  # noqa: E402
from fec_fast.vision.yolo_annotations import label_file  # noqa: E402
from helpers import box_folders  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return box_folders.write_yolo(tmp_path / "yolo")


def test_boxes_outlines_and_pictures_without_a_text_file(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, held_out = data.load(f"yolo:{folder}", augment="none", batch_size=2)
    assert train.dataset.classes == ("red", "blue")
    found = [train.dataset[number][1] for number in range(3)]
    assert [target["boxes"].tolist() for target in found] == [
        [[0, 0, 20, 20], [20, 0, 40, 20]],
        [[20, pytest.approx(2), 30, pytest.approx(18)]],
        [],
    ]
    assert [target["labels"].tolist() for target in found] == [[1, 2], [2], []]
    image, target = held_out.dataset[0]
    assert target["boxes"].tolist() == [[0, 0, 20, 20]] and image[0, :, :19].min() > 0.9
    assert set(target) == {"boxes", "labels"}


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 38), st.integers(0, 18), st.integers(1, 40), st.integers(1, 20)),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_a_box_written_is_the_box_read(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[int, int, int, int, int]], outlines: bool
) -> None:
    root = box_folders.write_yolo(tmp_path_factory.mktemp("yolo") / "data")
    width, height = box_folders.SIZE
    lines, expected = [], []
    for label, left, top, wide, high in entries:
        right, bottom = min(left + wide, width), min(top + high, height)
        expected.append((left, top, right, bottom))
        edges = (left / width, top / height, right / width, bottom / height)
        corners = [(edges[at], edges[to]) for at, to in ((0, 1), (2, 1), (2, 3), (0, 3))]
        if outlines:
            numbers = [value for corner in corners for value in corner]
        else:
            numbers = [*((edges[i] + edges[i + 2]) / 2 for i in (0, 1)), *(edges[i + 2] - edges[i] for i in (0, 1))]
        lines.append(f"{label} " + " ".join(f"{number:.8f}" for number in numbers))
    (root / "labels/train/c.txt").write_text("\n".join(lines))
    example = next(e for e in load_yolo(root)[0].dataset.examples if e.name == "images/train/c.jpg")
    assert [pytest.approx(box, abs=1e-4) for box in expected] == list(example.boxes)
    assert [name == "blue" for name in example.classes] == [bool(label) for label, *_ in entries]


def test_without_val_a_share_is_held_out(tmp_path: Path) -> None:
    root = box_folders.write_yolo(tmp_path / "yolo", held_out=False)
    with pytest.warns(FecWarning, match=r"names no val in data.yaml: 1 of its 3 images"):
        train, held_out = load_yolo(root)
    assert len(train.dataset) == 2 and len(held_out.dataset) == 1


@pytest.mark.parametrize(
    "text",
    [
        "train: ../images/train\nval: ../images/val\nnames: [red, blue]\nnc: 2",  # as if data.yaml lay deeper
        "path: yolo\ntrain: images/train\nval: images/val\nnames:\n  0: red\n  1: blue",
        "path: images\ntrain: [train]\nval: val\nnames: [red, blue]",
        "train: train.txt\nval: images/val\nnames: [red, blue]",
        "train: ./images/train/\nval:\ntest: images/val\nnames: [red, blue]",
    ],
)
def test_paths_are_below_the_folder(folder: Path, text: str) -> None:
    (folder / "train.txt").write_text("./images/train/a.jpg\nimages/train/b.jpg\n\n../images/train/c.jpg\n")
    (folder / "data.yaml").write_text(text)
    train, held_out = load_yolo(folder / "data.yaml")
    assert [len(loader.dataset) for loader in (train, held_out)] == [3, 2]
    assert train.dataset.examples[0].classes == ("red", "blue")


def test_a_zip_with_a_folder_around_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path, "yolo")
    for expected, got in zip(load_yolo(folder), load_yolo(tmp_path / "data.zip"), strict=True):
        assert [example.boxes for example in expected.dataset.examples] == [e.boxes for e in got.dataset.examples]


def test_pictures_are_turned_as_their_exif_data_say(folder: Path) -> None:
    box_folders.picture(folder / "images/val/d.jpg", (20, 40), orientation=6)  # upright: 40 x 20
    for size in (None, (20, 40)):
        image, target = load_yolo(folder, image_size=size)[1].dataset[0]
        assert image.shape == (3, 20, 40) and target["boxes"].tolist() == [[0, 0, 20, 20]]
        assert image[0, :8].min() > 0.9 and image[2, 12:].min() > 0.9  # turned, red is above


def test_large_pictures_need_a_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "_MOST_UNSCALED", 40 * 20 - 1)
    with pytest.raises(InputError, match=" has 40 x 20 pixels; .* give image_size="):
        load_yolo(folder)
    assert load_yolo(folder, image_size=10)[1].dataset[0][0].shape == (3, 10, 10)


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("train/images/a.b.png", "train/labels/a.b.txt"),
        ("images/images/a.png", "images/labels/a.txt"),
        ("a.png", "a.txt"),
    ],
)
def test_where_text_files_are(picture: str, text: str) -> None:
    assert label_file(picture) == text


def _write(name: str, text: str | bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


HEAD = "train: images/train\nval: images/val\n"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "data.yaml").unlink(), "there is no data.yaml; write one with names"),
        (_write("data.yaml", "- a"), "must hold keys and values"),
        (_write("data.yaml", "a: *b"), "data.yaml is not YAML: it has a reference"),
        (_write("data.yaml", "#" * 36_001), r"^\S+data.yaml has 36,001 bytes; such a file may have at most 36,000"),
        (_write("data.yaml", HEAD), "names is missing"),
        (_write("data.yaml", HEAD + "names: {1: a}"), "names must have the keys 0, 1, 2"),
        (_write("data.yaml", HEAD + "names: [a, a]"), "names has a name twice"),
        (_write("data.yaml", HEAD + "names: [a, b]\nnc: 3"), "nc is 3, but there are 2 names"),
        (_write("data.yaml", HEAD + "names: [a]\nkpt_shape: [17, 3]"), "describes poses"),
        (_write("data.yaml", "val: images/val\nnames: [a]"), "train is missing"),
        (_write("data.yaml", "train: images/x\nnames: [a]"), "train: there is no picture in 'images/x' below"),
        (_write("data.yaml", "train: /data/x\nnames: [a]"), "'/data/x' is outside of the data set: move it below"),
        (_write("data.yaml", "train: [images/train, images]\nnames: [a]"), "train names 3 picture.s. more than once"),
        (_write("data.yaml", "train: images/val\nval: images/val\nnames: [red]"), "in the training images and in the"),
        (_write("labels/train/a.txt", "0 0.5 0.5 0.5"), "labels/train/a.txt, line 1 has 4 numbers"),
        (_write("labels/train/a.txt", "0 0.5 0.5 0.5 0.5 0.9"), "line 1 has 6 numbers"),
        (_write("labels/train/a.txt", "\n2 0.5 0.5 0.5 0.5"), "line 2: class 2 is none of 0 to 1"),
        (_write("labels/train/a.txt", "red 0.5 0.5 0.5 0.5"), "class red is none of 0 to 1"),
        (_write("labels/train/a.txt", "0 20 10 5 5"), "20 10 5 5 are not shares of the image's width and height"),
        (_write("labels/train/a.txt", "0 nan 0.5 0.5 0.5"), "are not shares"),
        (_write("labels/train/a.txt", b"\xff\xfe"), "labels/train/a.txt is not text in UTF-8"),
        (_write("images/train/c.jpg", b"no picture"), "images/train/c.jpg cannot be read"),
    ],
)
def test_what_is_wrong_is_named_at_once(folder: Path, spoil: Any, words: str) -> None:
    spoil(folder)
    with pytest.raises(InputError, match=words):
        load_yolo(folder)


def test_nothing_outside_of_the_folder_is_read(folder: Path, tmp_path: Path) -> None:
    box_folders.picture(tmp_path / "secret/a.jpg")
    for place in ("../secret", "images/../../secret", str(tmp_path / "secret"), "C:/secret"):
        (folder / "data.yaml").write_text(f"train: {place}\nval: images/val\nnames: [red, blue]")
        with pytest.raises(InputError, match="train: "):
            load_yolo(folder)
    (folder / "data.yaml").write_text("train: list.txt\nval: images/val\nnames: [red, blue]")
    (folder / "list.txt").write_text("../secret/a.jpg")
    with pytest.raises(InputError, match="list.txt: there is no picture '../secret/a.jpg'"):
        load_yolo(folder)


def test_boxes_beyond_the_picture_are_cut_and_those_without_an_area_dropped(folder: Path) -> None:
    (folder / "labels/train/a.txt").write_text("0 0 0.5 0.5 1\n1 0.5 0.5 0 0.5\n")
    with pytest.warns(FecWarning) as caught:
        train, _ = load_yolo(folder)
    texts = [str(warning.message) for warning in caught]
    assert "blue in line 2 of labels/train/a.txt" in texts[0] and "red in line 1 of labels/train/a.txt" in texts[1]
    assert train.dataset.examples[0].boxes == ((0, 0, 10, 20),)

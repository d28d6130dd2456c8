"""Files that the package reads, as sound bytes, and mutations of them."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

import fec_fast
from fec_fast.cli.recipe import read_recipe
from fec_fast.plan.plan import Plan
from fec_fast.pruning.allocation.sensitivity_cache import SensitivityCache
from fec_fast.training.history import Epoch
from fec_fast.training.state import TrainingState, read_state, write_state
from fec_fast.vision import data
from fec_fast.vision.voc_annotations import VocRoot, read_split
from fec_fast.vision.weights import load_weights

KEY = "0123456789abcdef" * 4
XML = (
    b"<annotation><object><name>cat</name><difficult>0</difficult><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>12</xmax>"
    b"<ymax>13</ymax></bndbox></object></annotation>"
)
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|[\[\]{}:,<>&]|[A-Za-z_]+')
TOKENS = [
    *(b"NaN", b"1e999", b"-1", b"1" + b"0" * 400, b"0.5", b"true", b"null", b"{}", b"[]", b"[[[[", b'""', b'"\\ud800"'),
    *(b"&a", b"*a", b"!!python/object", b"9007199254740993", b"-0.0", b"1_0", b"<object/>", b"\xff\xfe", b"\0", b"0"),
]
KINDS = ("flip", "set", "insert", "remove", "cut", "double", "token", "swap")


class Tiny(nn.Module):
    """A network of a few kilobytes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.norm(self.one(x)).relu())


def tiny() -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny().eval()


def mutated(content: bytes, steps: list[tuple[str, int, bytes]]) -> bytes:
    """The content after some steps: a kind of change, a number that tells where, and bytes that it takes."""
    changed = bytearray(content)
    for kind, number, extra in steps:
        at = number % (len(changed) + 1)
        if kind == "flip" and changed:
            changed[at % len(changed)] ^= 1 << (number % 8)
        elif kind == "set":
            changed[at : at + len(extra)] = extra
        elif kind == "insert":
            changed[at:at] = extra * (1 + number % 3)
        elif kind == "remove":
            del changed[at : at + 1 + number % 16]
        elif kind == "cut":
            del changed[at:]
        elif kind == "double":
            changed[at:at] = changed[at : at + 64]
        elif kind in ("token", "swap"):
            places = [found.span() for found in TOKEN.finditer(bytes(changed))][:2000]
            if places:
                start, end = places[number % len(places)]
                other = places[(number // 7) % len(places)]
                new = TOKENS[number % len(TOKENS)] if kind == "token" else bytes(changed[other[0] : other[1]])
                changed[start:end] = new
    return bytes(changed)


@dataclass(frozen=True)
class Target:
    """A reader: the sound bytes that are mutated, and a function that reads bytes and checks what it believes."""

    sound: bytes
    read: Callable[[bytes], None]


def unchanged(model: nn.Module, act: Callable[[], Any]) -> None:
    """Acts on a model; where that raises, the model must be as before."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        act()
    except BaseException:
        after = model.state_dict()
        assert all(torch.equal(after[name].nan_to_num(), value.nan_to_num()) for name, value in before.items())
        raise


def _manifest(folder: Path) -> str:
    names = ("plan.json", "model.safetensors")
    content = {name: (folder / name).read_bytes() for name in names}
    files = {n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in content.items()}
    return json.dumps({"format": "fec_fast.checkpoint", "version": 1, "files": files})


def _checkpoint(folder: Path, result: Any, name: str) -> Target:
    """A checkpoint of which one file is mutated; its checksum is made right."""
    path = fec_fast.save(result, folder / name.replace(".", "-"))

    def read(content: bytes) -> None:
        (path / name).write_bytes(content)
        if name != "checkpoint.json":
            (path / "checkpoint.json").write_text(_manifest(path))
        model = tiny()
        unchanged(model, lambda: fec_fast.load(model, path))
        # What was believed is a network that runs.
        assert model(torch.zeros(1, 1, 2, 2)).shape == (1, 2, 2, 2)
        assert model.one.out_channels == len(model.one.weight) == model.two.in_channels

    return Target((path / name).read_bytes(), read)


def _plan(text: str) -> Target:
    def read(content: bytes) -> None:
        plan = Plan.from_json(content)
        assert Plan.from_json(plan.to_json()) == plan
        for name, axes in plan.keep.items():
            assert all(0 <= index < plan.shapes[name][int(axis)] for axis, kept in axes.items() for index in kept)

    return Target(text.encode(), read)


def _scores(text: str) -> Target:
    def read(content: bytes) -> None:
        scores = fec_fast.ModelScores.from_json(content)
        assert all(bool(torch.isfinite(values).all()) and len(values) < 1000 for values in scores.values())
        assert fec_fast.ModelScores.from_json(scores.to_json()) == scores

    return Target(text.encode(), read)


def _training(folder: Path, name: str) -> Target:
    model = tiny()
    path, file = folder / f"training-{name[:3]}", "state-0001.safetensors"  # as the test calls it
    row = asdict(Epoch(1, 0.5, {"accuracy": 0.5}, {"accuracy": 0.25}, 0.1, 8, 1.0))
    state = dict(model.state_dict())
    optimizer = {f"momentum_buffer/{own}": value.detach() for own, value in model.named_parameters()}
    write_state(path, TrainingState(1, {"lr": 0.1}, [row], 0.5, None, None, state, optimizer, {}, state))
    written = next(path.glob("state-*.safetensors")) if name == file else path / name

    def read(content: bytes) -> None:
        written.write_bytes(content)
        if name == file:
            index = json.loads((path / "training.json").read_text())
            index["sha256"] = hashlib.sha256(content).hexdigest()
            (path / "training.json").write_text(json.dumps(index))
        found = read_state(path, {"lr": 0.1}, model)
        assert found.epoch == len(found.history) and 0 <= found.progress <= 1
        assert {own: value.shape for own, value in found.model.items()} == {own: v.shape for own, v in state.items()}
        [Epoch(**row) for row in found.history]

    return Target(written.read_bytes(), read)


def _cache(folder: Path) -> Target:
    path = folder / "cache"
    SensitivityCache(path, KEY).append("one", 2, 0.5, 0)
    SensitivityCache(path, KEY).append("", 0, 0.75, 0)

    def read(content: bytes) -> None:
        (path / "sensitivity-0.jsonl").write_bytes(content)
        values = SensitivityCache(path, KEY).values
        assert all(
            isinstance(name, str) and removed >= 0 and abs(value) < 1e309 for (name, removed), value in values.items()
        )

    return Target((path / "sensitivity-0.jsonl").read_bytes(), read)


RECIPE = b"""model: zoo:vgg-digits
weights: a.pth
input_shape: [1, 1, 8, 8]
data: {name: "sklearn:digits", batch_size: 64}
prune: {budget: {params: 0.5}, criterion: fec_l1, round_to: 8}
finetune: {epochs: 3, lr: 0.02, schedule: cosine, feature_layers: [a, b]}
"""


def _recipe(folder: Path) -> Target:
    def read(content: bytes) -> None:
        (folder / "recipe.yaml").write_bytes(content)
        recipe = read_recipe(folder / "recipe.yaml")
        assert json.loads(json.dumps(recipe.content, allow_nan=False)) == recipe.content
        assert recipe.training.epochs >= 1

    return Target(RECIPE, read)


def picture(kind: str, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    pixels = bytes(range(256)) * 4
    Image.frombytes("RGB", (16, 16), pixels[: 16 * 16 * 3]).convert(mode).save(stream, kind)
    return stream.getvalue()


def _picture(folder: Path, kind: str, mode: str = "RGB") -> Target:
    """An image folder with one mutated picture."""
    root = folder / f"pictures-{kind}-{mode}"
    for name in ("train/a/1.png", "val/a/1.png"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(picture(kind, mode))

    def read(content: bytes) -> None:
        (root / "train/a/1.png").write_bytes(content)
        images, _ = next(iter(data.load(f"imagefolder:{root}", 1, augment="none")[0]))
        assert images.shape[:2] == (1, 3) and images.numel() <= 3 * 24_000_000

    return Target(picture(kind, mode), read)


VOC = {
    **{f"ImageSets/Main/{split}.txt": name for split, name in (("train", b"a\n"), ("val", b"b\n"))},
    **{f"Annotations/{name}.xml": XML for name in "ab"},
}


def _voc(folder: Path, name: str) -> Target:
    root = folder / f"voc-{name.replace('/', '-')}"
    files = {**VOC, **{f"JPEGImages/{own}.jpg": picture("JPEG") for own in "ab"}}
    for file, content in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)

    def read(content: bytes) -> None:
        (root / name).write_bytes(content)
        for image in read_split(VocRoot(root), "train", None):
            assert all(0 <= b[0] < b[2] <= image.size[0] and 0 <= b[1] < b[3] <= image.size[1] for b in image.boxes)
            assert all(0 < len(label) <= 200 for label in image.classes)

    return Target(files[name], read)


def _zip(folder: Path, spec: str, files: dict[str, bytes]) -> Target:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    path = folder / f"{spec}.zip"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        images, _ = next(iter(data.load(f"{spec}:{path}", 1, augment="none")[0]))
        assert images[0].shape[0] == 3

    return Target(stream.getvalue(), read)


def _weights(folder: Path, kind: str) -> Target:
    state = tiny().state_dict()
    stream = io.BytesIO()
    if kind == "safetensors":
        stream.write(save(state))
    else:
        torch.save(state, stream, _use_new_zipfile_serialization=kind == "new")
    path = folder / f"{kind}{'.safetensors' if kind == 'safetensors' else '.pth'}"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        model = tiny()
        unchanged(model, lambda: load_weights(model, path))
        assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in state.items()}

    return Target(stream.getvalue(), read)


def targets(folder: Path) -> dict[str, Target]:
    """All readers, with files in a folder."""
    result = fec_fast.prune(tiny(), torch.randn(1, 1, 4, 4), ratio=0.5)
    pictures = {name: picture("PNG") for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png")}
    voc = {**VOC, **{f"JPEGImages/{own}.jpg": picture("JPEG") for own in "ab"}}
    kinds = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP", "GIF")
    return {
        "plan": _plan(result.plan.to_json()),
        "scores": _scores(fec_fast.score_model(tiny()).to_json()),
        **{
            f"checkpoint {n}": _checkpoint(folder, result, n)
            for n in ("checkpoint.json", "plan.json", "model.safetensors")
        },
        **{f"training {n}": _training(folder, n) for n in ("training.json", "state-0001.safetensors")},
        "sensitivity cache": _cache(folder),
        "recipe": _recipe(folder),
        **{f"picture {kind}": _picture(folder, kind) for kind in kinds},
        "picture PNG with a palette": _picture(folder, "PNG", "P"),
        **{
            f"VOC {name}": _voc(folder, name)
            for name in ("Annotations/a.xml", "ImageSets/Main/train.txt", "JPEGImages/a.jpg")
        },
        "VOC zip": _zip(folder, "voc", voc),
        "image folder zip": _zip(folder, "imagefolder", pictures),
        **{f"weights {kind}": _weights(folder, kind) for kind in ("new", "old", "safetensors")},
    }

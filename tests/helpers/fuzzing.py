"""The readers of the package with sound files of each, and checks of what a reader believes."""

from __future__ import annotations

import hashlib
import io
import json
import math
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
from fec_fast.choosing.points import PointFolder, SweepPoint
from fec_fast.cli.recipe import read_recipe
from fec_fast.plan.plan import Plan
from fec_fast.pruning.allocation.sensitivity_cache import SensitivityCache
from fec_fast.training.history import Epoch
from fec_fast.training.state import TrainingState, read_state, write_state
from fec_fast.training.trackers import check_log_folder, make_tracker
from fec_fast.vision import data
from fec_fast.vision.voc_annotations import VocRoot, read_split
from fec_fast.vision.weights import load_weights

KEY = "0123456789abcdef" * 4
XML = (
    b"<annotation><object><name>cat</name><difficult>0</difficult><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>12</xmax>"
    b"<ymax>13</ymax></bndbox></object></annotation>"
)


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


@dataclass(frozen=True)
class Target:
    """A reader: sound files, what format's mutations they get, and a function that reads one and checks the result."""

    sounds: tuple[bytes, ...]
    form: str
    read: Callable[[bytes], None]


class Models:
    """A model to read into: the same one until a file was believed, for it must be as before after an error."""

    def __init__(self) -> None:
        self.model, self.before = tiny(), tiny().state_dict()

    def filled(self, read: Callable[[nn.Module], Any]) -> Any:
        try:
            read(self.model)
        except BaseException:
            after = self.model.state_dict()
            assert list(after) == list(self.before), "the model has other tensors after an error"
            same = [torch.equal(after[name], value) for name, value in self.before.items()]
            assert all(same), "the model has other values after an error"
            raise
        filled, self.model = self.model, tiny()
        return filled


def _manifest(folder: Path) -> str:
    names = ("plan.json", "model.safetensors")
    content = {name: (folder / name).read_bytes() for name in names}
    files = {n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in content.items()}
    return json.dumps({"format": "fec_fast.checkpoint", "version": 1, "files": files})


def _checkpoint(folder: Path, result: Any, name: str) -> Target:
    """A checkpoint of which one file is mutated; its checksum is made right."""
    path, models = fec_fast.save(result, folder / "checkpoint"), Models()

    def read(content: bytes) -> None:
        (path / name).write_bytes(content)
        if name != "checkpoint.json":
            (path / "checkpoint.json").write_text(_manifest(path))
        model = models.filled(lambda model: fec_fast.load(model, path))
        # What was believed is a network that runs.
        assert model(torch.zeros(1, 1, 2, 2)).shape == (1, 2, 2, 2)
        assert model.one.out_channels == len(model.one.weight) == model.two.in_channels

    form = "safetensors" if name == "model.safetensors" else "json"
    return Target(((path / name).read_bytes(),), form, read)


def _plan(text: str) -> Target:
    def read(content: bytes) -> None:
        plan = Plan.from_json(content)
        assert Plan.from_json(plan.to_json()) == plan
        for name, axes in plan.keep.items():
            assert all(0 <= index < plan.shapes[name][int(axis)] for axis, kept in axes.items() for index in kept)

    return Target((text.encode(),), "json", read)


def _scores(text: str) -> Target:
    def read(content: bytes) -> None:
        scores = fec_fast.ModelScores.from_json(content)
        assert all(bool(torch.isfinite(values).all()) and len(values) < 1000 for values in scores.values())
        assert fec_fast.ModelScores.from_json(scores.to_json()) == scores

    return Target((text.encode(),), "json", read)


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

    return Target((written.read_bytes(),), "safetensors" if name == file else "json", read)


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

    return Target(((path / "sensitivity-0.jsonl").read_bytes(),), "json lines", read)


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

    return Target((RECIPE,), "yaml", read)


def picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    pixels = bytes(range(256)) * 4
    Image.frombytes("RGB", (16, 16), pixels[: 16 * 16 * 3]).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def _moving(kind: str) -> bytes:
    """A picture of two frames."""
    stream = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:], loop=0)
    return stream.getvalue()


PICTURES: dict[str, Callable[[], tuple[bytes, ...]]] = {
    "PNG": lambda: (*(picture("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "1", "P")), _moving("PNG")),
    "JPEG": lambda: (picture("JPEG"), picture("JPEG", "CMYK"), picture("JPEG", "L", progressive=True)),
    "BMP": lambda: tuple(picture("BMP", mode) for mode in ("RGB", "L", "P", "1")),
    "PPM": lambda: (picture("PPM"), picture("PPM", "L"), b"P3\n2 2 255\n" + b"9 " * 12, b"P1\n2 2\n0 1 1 0\n"),
    "TIFF": lambda: (
        *(picture("TIFF", mode) for mode in ("RGB", "CMYK", "F")),
        *(picture("TIFF", compression=packing) for packing in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")),
    ),
    "WEBP": lambda: (picture("WEBP"), picture("WEBP", "RGBA", lossless=True), _moving("WEBP")),
    "GIF": lambda: (picture("GIF", "P"), picture("GIF", "L"), _moving("GIF")),
}


def _picture(folder: Path, kind: str) -> Target:
    """An image folder with one mutated picture."""
    for name in ("train/a/1.png", "val/a/1.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(picture("PNG"))

    def read(content: bytes) -> None:
        (folder / "train/a/1.png").write_bytes(content)
        images, _ = next(iter(data.load(f"imagefolder:{folder}", 1, augment="none")[0]))
        assert images.shape[:2] == (1, 3) and images.numel() <= 3 * 24_000_000

    return Target(PICTURES[kind](), "png" if kind == "PNG" else "bytes", read)


VOC = {
    **{f"ImageSets/Main/{split}.txt": name for split, name in (("train", b"a\n"), ("val", b"b\n"))},
    **{f"Annotations/{name}.xml": XML for name in "ab"},
}


def _voc(folder: Path, name: str) -> Target:
    files = {**VOC, **{f"JPEGImages/{own}.jpg": picture("JPEG") for own in "ab"}}
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)

    def read(content: bytes) -> None:
        (folder / name).write_bytes(content)
        for image in read_split(VocRoot(folder), "train", None):
            assert all(0 <= b[0] < b[2] <= image.size[0] and 0 <= b[1] < b[3] <= image.size[1] for b in image.boxes)
            assert all(0 < len(label) <= 200 for label in image.classes)

    return Target((files[name],), "xml" if name.endswith(".xml") else "bytes", read)


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

    return Target((stream.getvalue(),), "zip", read)


def _weights(folder: Path, kind: str) -> Target:
    state = tiny().state_dict()
    stream = io.BytesIO()
    if kind == "safetensors":
        stream.write(save(state))
    else:
        torch.save(state, stream, _use_new_zipfile_serialization=kind == "new")
    path, models = folder / f"{kind}{'.safetensors' if kind == 'safetensors' else '.pth'}", Models()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        model = models.filled(lambda model: load_weights(model, path))
        assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in state.items()}

    return Target((stream.getvalue(),), {"new": "zip", "old": "pickle"}.get(kind, kind), read)


def _stored_weights(folder: Path) -> Target:
    """Weights that are read a tensor at a time, for a model without memory."""
    path = folder / "stored.safetensors"
    with torch.device("meta"):
        model = tiny()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        scores = fec_fast.score_model(model, weights=path)
        assert scores.layers == fec_fast.score_model(tiny()).layers
        assert all(0 <= float(value) <= 10 for values in scores.values() for value in values)

    return Target((save(tiny().state_dict()),), "safetensors", read)


def _sweep_point(folder: Path, plan: Plan) -> Target:
    points = PointFolder(folder)
    point = SweepPoint("macs=0.5", "entropy", "fec_l1", 0.5, None, 100, 1000, 0.25, plan)
    points.write(KEY, point, {"dense": 0.75})

    def read(content: bytes) -> None:
        (folder / f"{KEY}.json").write_bytes(content)
        point, beside = points.read(KEY) or (None, None)
        assert isinstance(point, SweepPoint) and beside is not None and math.isfinite(beside["dense"])
        assert point.parameters >= 0 and point.macs >= 0 and math.isfinite(point.value) and point.name

    return Target(((folder / f"{KEY}.json").read_bytes(),), "json", read)


def _training_log(folder: Path) -> Target:
    """The log that a training continues: what is there is read, and written again with the next epoch."""
    sound = b"epoch,loss,lr\n1,0.5,0.1\n2,0.25,0.1\n"

    def read(content: bytes) -> None:
        (folder / "metrics.csv").write_bytes(content)
        check_log_folder(folder, "csv")
        make_tracker(folder, "csv").log({"loss": 0.125}, step=3)
        lines = (folder / "metrics.csv").read_text("utf-8").splitlines()
        assert lines[0].startswith("epoch,") and lines[-1].startswith("3,")

    return Target((sound,), "bytes", read)


def _pruned() -> Any:
    return fec_fast.prune(tiny(), torch.randn(1, 1, 4, 4), ratio=0.5, recover=None)


# Every reader, and how its files are made in an empty folder.
READERS: dict[str, Callable[[Path], Target]] = {
    "plan": lambda folder: _plan(_pruned().plan.to_json()),
    "scores": lambda folder: _scores(fec_fast.score_model(tiny()).to_json()),
    **{
        f"checkpoint {name}": lambda folder, name=name: _checkpoint(folder, _pruned(), name)
        for name in ("checkpoint.json", "plan.json", "model.safetensors")
    },
    **{
        f"training {name}": lambda folder, name=name: _training(folder, name)
        for name in ("training.json", "state-0001.safetensors")
    },
    "training log": _training_log,
    "sensitivity cache": _cache,
    "sweep point": lambda folder: _sweep_point(folder, _pruned().plan),
    "recipe": _recipe,
    **{f"picture {kind}": lambda folder, kind=kind: _picture(folder, kind) for kind in PICTURES},
    **{
        f"VOC {name}": lambda folder, name=name: _voc(folder, name)
        for name in ("Annotations/a.xml", "ImageSets/Main/train.txt", "JPEGImages/a.jpg")
    },
    "VOC zip": lambda folder: _zip(
        folder, "voc", {**VOC, **{f"JPEGImages/{own}.jpg": picture("JPEG") for own in "ab"}}
    ),
    "image folder zip": lambda folder: _zip(
        folder, "imagefolder", {f"{split}/{name}/1.png": picture("PNG") for split in ("train", "val") for name in "ab"}
    ),
    **{f"weights {kind}": lambda folder, kind=kind: _weights(folder, kind) for kind in ("new", "old", "safetensors")},
    "weights a tensor at a time": _stored_weights,
}

"""Files that would unfold to more than a machine has: refused by size, with a clear error, in little memory."""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.fuzz_process import HANG_SECONDS, MOST_MEGABYTES, MOST_SECONDS
from helpers.fuzzing import XML, picture

MEGABYTE = 1 << 20

# All in one process of their own. The peak of its memory is set back before each file (Linux).
SCRIPT = """
import json, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import fec_fast
from fec_fast.cli.recipe import read_recipe
from fec_fast.plan.plan import Plan
from fec_fast.utils.errors import FecError
from fec_fast.vision import data, zoo
from fec_fast.vision.voc_annotations import VocRoot, read_split
from fec_fast.vision.weights import load_weights
model = zoo.build("zoo:vgg-digits")
readers = {
    "images": lambda file: data.load(f"imagefolder:{file}", 1),
    "picture": lambda file: next(iter(data.load(f"imagefolder:{file}", 1, image_size=32, augment="none")[0])),
    "unscaled": lambda file: next(iter(data.load(f"imagefolder:{file}", 1, augment="none")[0])),
    "voc": lambda file: read_split(VocRoot(file), "train", None),
    "coco": lambda file: data.load(f"coco:{file}", 1),
    "yolo": lambda file: data.load(f"yolo:{file}", 1),
    "weights": lambda file: load_weights(model, file),
    "plan": lambda file: Plan.from_json(file.read_bytes()),
    "scores": lambda file: fec_fast.ModelScores.from_json(file.read_bytes()),
    "recipe": lambda file: read_recipe(file),
}
def memory(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) >> 10
def answer(kind, file):
    try:
        readers[kind](file)
        return "accepted"
    except FecError as error:
        return f"{type(error).__name__}: {error}"
for sound in json.loads(sys.argv[1]):
    answer(*sound[:1], Path(sound[1]))  # imports what the reader needs
for line in sys.stdin:
    name, kind, file = json.loads(line)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = memory("VmRSS"), time.process_time()
    words = answer(kind, Path(file))
    seconds, growth = time.process_time() - start, memory("VmHWM") - before
    for _ in range(2 if seconds > 0.5 else 0):  # a busy machine only ever adds to the time
        start = time.process_time()
        answer(kind, Path(file))
        seconds = min(seconds, time.process_time() - start)
    print(json.dumps([name, growth, seconds, words[:500]]), flush=True)
"""


def zipped(path: Path, entry: str, megabytes: int) -> Path:
    """An image folder with one entry of zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in ("train/a/1.png", "val/a/0.png"):
            archive.writestr(name, picture("PNG"))
        with archive.open(entry, "w", force_zip64=True) as stream:
            for _ in range(megabytes // 4):
                stream.write(bytes(4 * MEGABYTE))
    return path


def png(width: int, height: int) -> bytes:
    """A PNG of zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pack = zlib.compressobj(9)
    rows = b"".join(pack.compress(bytes(1 + 3 * width)) for _ in range(height)) + pack.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def image_folder(path: Path, content: bytes) -> Path:
    for name in ("train/a/0.png", "val/a/0.png"):
        (path / name).parent.mkdir(parents=True)
        (path / name).write_bytes(content)
    return path


def voc(path: Path, xml: bytes) -> Path:
    for name, content in {
        "ImageSets/Main/train.txt": b"a\n",
        "JPEGImages/a.jpg": picture("JPEG"),
        "Annotations/a.xml": xml,
    }.items():
        (path / name).parent.mkdir(parents=True)
        (path / name).write_bytes(content)
    return path


def instances(path: Path, content: bytes) -> Path:
    written(path / "instances.json", content)
    return path


def yolo(path: Path, boxes: bytes) -> Path:
    for name in ("train", "val"):
        (path / name).mkdir()
        (path / name / f"{name}.png").write_bytes(picture("PNG"))
    written(path / "train/train.txt", boxes)
    written(path / "data.yaml", b"train: train\nval: val\nnames: [a]\n")
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def many_tensors(path: Path) -> Path:
    entries = ",".join(f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(400_000))
    header = f"{{{entries}}}".encode()
    return written(path, len(header).to_bytes(8, "little") + header)


def packed_weights(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
        archive.writestr("a/version", "3")
        with archive.open("a/data/0", "w", force_zip64=True) as stream:
            for _ in range(256):
                stream.write(bytes(4 * MEGABYTE))
    return path


def described_weights(path: Path) -> Path:
    """A description of 60 MB of empty dictionaries."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02](" + b"}" * (60 * MEGABYTE) + b"e.")
        archive.writestr("a/version", "3")
    return path


def entities(levels: int) -> bytes:
    lines = ['<!ENTITY e0 "xxxxxxxxxx">', *(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, levels))]
    return f"<!DOCTYPE a [{''.join(lines)}]><annotation>&e{levels - 1};</annotation>".encode()


def annotation(content: bytes) -> bytes:
    return b"<annotation>" + content + b"</annotation>"


def many_scans(count: int) -> bytes:
    """A progressive JPEG of 12 million pixels whose last scan comes again and again."""
    stream = io.BytesIO()
    Image.new("RGB", (4000, 3000)).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()[:-2]
    last = content[content.rindex(b"\xff\xda") :]
    return content + last * count + b"\xff\xd9"


def webp(side: int) -> bytes:
    """The canvas of a moving WebP, without a frame."""
    canvas = b"VP8X" + struct.pack("<II", 10, 2) + 2 * (side - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas


def old_format(path: Path, description: bytes) -> Path:
    """A file in the format of torch before 1.6: three short pickles, and a description of the tensors."""
    start = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    return written(path, start + description)


def large_storage(path: Path) -> Path:
    """A file in the format of torch before 1.6 whose one tensor is said to have 2^31 - 1 numbers."""
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(10)}, stream, _use_new_zipfile_serialization=False)
    return written(path, stream.getvalue().replace(b"K\x0aN", b"J\xff\xff\xff\x7fN"))


OBJECT = XML[len(b"<annotation>") : -len(b"</annotation>")]
BOMBS: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "zip of 1.5 GB": ("images", lambda p: zipped(p / "a.zip", "train/a/0.png", 1536), "bytes once unpacked"),
    "PNG of 13,000 x 13,000": ("images", lambda p: image_folder(p / "a", png(13_000, 13_000)), "13000 x 13000 pixels"),
    "PNG of 300,000 x 300,000": ("images", lambda p: image_folder(p / "a", png(300_000, 8)[:200]), "20,000 in a row"),
    "PNG of 1 x 1,000,000": ("images", lambda p: image_folder(p / "a", png(1, 1_000_000)), "20,000 in a row"),
    "JPEG of 2,000 scans": ("images", lambda p: image_folder(p / "a", many_scans(2000)), "pixels; at most"),
    "PPM of digits": ("images", lambda p: image_folder(p / "a", b"P3 2000 2000 255 " + b"1 " * 6_000_000), "at most"),
    "WebP of 16,000 x 16,000": ("images", lambda p: image_folder(p / "a", webp(16_000)), "16000 x 16000 pixels"),
    "picture of 60 MB": ("images", lambda p: image_folder(p / "a", bytes(60 * MEGABYTE)), "at most"),
    "COCO of 10^7 objects": ("coco", lambda p: instances(p, b'{"images":[' + b"{}," * 10**7 + b"{}]}"), "objects; at"),
    "COCO nested deep": ("coco", lambda p: instances(p, b'{"x":' + b"[" * 10**6), "nested too deeply"),
    "COCO in a zip of 256 MB": ("coco", lambda p: zipped(p / "a.zip", "instances.json", 256), "bytes once unpacked"),
    "YOLO of 200,000 boxes": ("yolo", lambda p: yolo(p, b"0 0.5 0.5 1 1\n" * 200_000), "bytes; such a file"),
    "XML of 300,000 objects": (
        "voc",
        lambda p: voc(p / "a", b"<annotation>" + OBJECT * 300_000 + b"</annotation>"),
        "at most",
    ),
    "XML of empty objects": (
        "voc",
        lambda p: voc(p / "a", b"<annotation>" + b"<object/>" * 110_000 + b"</annotation>"),
        "objects",
    ),
    "XML of entities": ("voc", lambda p: voc(p / "a", entities(10)), "cannot be read"),
    "XML nested 200,000 deep": ("voc", lambda p: voc(p / "a", b"<a>" * 200_000), "cannot be read"),
    "400,000 tensors": ("weights", lambda p: many_tensors(p / "a.safetensors"), "header of"),
    "header of 2^60 bytes": (
        "weights",
        lambda p: written(p / "a.safetensors", (1 << 60).to_bytes(8, "little")),
        "truncated",
    ),
    "packed weights": ("weights", lambda p: packed_weights(p / "a.pth"), "unfolds"),
    "described weights": ("weights", lambda p: described_weights(p / "a.pth"), "describes"),
    "old weights": (
        "weights",
        lambda p: old_format(p / "a.pth", b"\x80\x02](" + b"}" * (60 * MEGABYTE) + b"e."),
        "describes",
    ),
    "storage of 2^31 numbers": ("weights", lambda p: large_storage(p / "a.pth"), "among the sizes of its tensors"),
    "text of 4 GB": ("weights", lambda p: old_format(p / "a.pth", b"\x80\x02X\xff\xff\xff\xffabc"), "cannot be read"),
    "10^7 indices": ("plan", lambda p: written(p / "a.json", b"[" + b"1," * 10**7 + b"1]"), "values; it may have"),
    "10^7 lists": ("plan", lambda p: written(p / "a.json", b"[" + b"[]," * 10**7 + b"1]"), "it may have at most"),
    "10^7 scores": ("scores", lambda p: written(p / "a.json", b"[" + b"1," * 10**7 + b"1]"), "values; it may have"),
    "JSON nested deep": ("plan", lambda p: written(p / "a.json", b"[" * 300_000), "nested too deeply"),
    "digits": ("plan", lambda p: written(p / "a.json", b"9" * (40 * MEGABYTE)), "not"),
    "YAML of 6 MB": ("recipe", lambda p: written(p / "a.yaml", b"a: 1\n" * 1_200_000), "at most"),
    "YAML of references": (
        "recipe",
        lambda p: written(
            p / "a.yaml",
            b"a: &a [1]\n"
            + b"".join(b"%c: &%c [%s]\n" % (i + 1, i + 1, b",".join([b"*%c" % i] * 9)) for i in range(97, 120)),
        ),
        "reference",
    ),
    "YAML nested deep": ("recipe", lambda p: written(p / "a.yaml", b"[" * 20_000), "nested too deeply"),
}


def largest(kind: str, mode: str, width: int, height: int, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (width, height)).save(stream, kind, **options)
    return stream.getvalue()


# The largest files that are read: they take most of the memory that a file may take.
BOMBS |= {
    f"largest {kind}": (
        "picture",
        lambda p, kind=kind, given=given: image_folder(p / "a", largest(kind, *given)),
        "accepted",
    )
    for kind, given in {
        "PNG": ("RGBA", 4000, 6000),
        "WEBP": ("RGB", 4000, 4000),
        "TIFF": ("CMYK", 4000, 2750),
        "GIF": ("P", 4000, 6000),
    }.items()
}
BOMBS["largest without a size"] = ("unscaled", lambda p: image_folder(p / "a", png(2000, 2000)), "accepted")
BOMBS["too large without a size"] = ("unscaled", lambda p: image_folder(p / "a", png(2001, 2000)), "give image_size=")
BOMBS["largest JPEG"] = (
    "picture",
    lambda p: image_folder(p / "a", largest("JPEG", "RGB", 4000, 6000, progressive=True, subsampling=0)),
    "accepted",
)


def read_bombs(folder: Path) -> list[tuple[str, int, float, str]]:
    """Reads every bomb in one process: its name, the growth of the process in MB, seconds of a core, the error."""
    sound = [("picture", image_folder(folder / "sound", picture("PNG"))), ("voc", voc(folder / "voc", XML))]
    sound.append(("recipe", written(folder / "sound.yaml", b"model: a")))
    (folder / "yolo").mkdir()
    sound.append(("yolo", yolo(folder / "yolo", b"0 0.5 0.5 1 1")))
    lines = ""
    for number, (name, (kind, make, _)) in enumerate(BOMBS.items()):
        (folder / str(number)).mkdir()
        lines += json.dumps([name, kind, str(make(folder / str(number)))]) + "\n"
    command = [sys.executable, "-c", SCRIPT, json.dumps([(kind, str(file)) for kind, file in sound])]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=600)
    answers = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    print(*(f"{name}: {grown} MB, {seconds:.2f} s: {words[:100]}" for name, grown, seconds, words in answers), sep="\n")
    assert done.returncode == 0, done.stderr[-2000:]
    assert [name for name, *_ in answers] == list(BOMBS)
    return answers


needs_linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux's /proc"
)


@pytest.mark.slow
@needs_linux
def test_bombs_are_refused_in_little_memory(tmp_path: Path) -> None:
    answers = read_bombs(tmp_path)
    assert not [answer for answer in answers if BOMBS[answer[0]][2] not in answer[3] or answer[1] >= MOST_MEGABYTES]
    assert not [answer for answer in answers if answer[2] >= HANG_SECONDS]


@pytest.mark.slow
@pytest.mark.sweep
@needs_linux
def test_bombs_are_refused_in_a_second_each(tmp_path: Path) -> None:
    assert not [answer for answer in read_bombs(tmp_path) if answer[2] >= MOST_SECONDS]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    import os

    import fec_fast
    from fec_fast.cli.recipe import read_recipe

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(fec_fast.InputError, match="not a regular file"):
        read_recipe(tmp_path / "pipe")


def test_pictures_of_the_largest_size_are_read() -> None:
    from fec_fast.vision.picture_files import MOST_PIXELS, opened_picture

    stream = io.BytesIO()
    Image.new("L", (6000, MOST_PIXELS // 6000)).save(stream, "PNG")
    with opened_picture(stream.getvalue, "it") as image:
        assert image.size[0] * image.size[1] == MOST_PIXELS


def test_a_plan_of_the_largest_size_is_read() -> None:
    from fec_fast.utils.errors import PlanError
    from fec_fast.utils.reading import parse_json

    assert len(parse_json(json.dumps(list(range(3_000_000))), list[int], "it", PlanError)) == 3_000_000

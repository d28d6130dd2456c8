"""Images with boxes in the layout of PASCAL VOC, from a folder or straight from a zip."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..utils.errors import ArgumentError, InputError, missing_extra, nearest
from .sources import Archive, Folder, Source

AUGMENTATIONS = ("ssd", "microscope", "none")


@dataclass(frozen=True)
class Example:
    """What is annotated of one image.

    Attributes:
        name: Of the image, without an ending.
        file: Its place below the root.
        size: Width and height in pixels.
        boxes: ``(left, top, right, bottom)`` in pixels, the first pixel's left edge being 0.
        classes: One name a box.
        difficult: One mark a box.
    """

    name: str
    file: str
    size: tuple[int, int]
    boxes: tuple[tuple[float, float, float, float], ...]
    classes: tuple[str, ...]
    difficult: tuple[bool, ...]


class _Root:
    """A folder, or a zip of one, and what is in it."""

    def __init__(self, path: Path) -> None:
        self.path, self._top = path, ""
        if path.is_dir():
            self._source: Source = Folder(path)
        elif path.is_file():
            self._source = Archive(path)
        else:
            raise InputError(f"data 'voc:{path}': there is no such folder or zip")
        names = self._source.names()
        if path.is_file():
            # VOC's own archives hold VOCdevkit/VOC2007/...
            tops = sorted({name[: name.index("ImageSets/")] for name in names if "ImageSets/" in name})
            if len(tops) > 1:
                raise InputError(f"data 'voc:{path}' holds several data sets ({', '.join(tops)}): unpack it, name one")
            self._top = tops[0] if tops else ""
        self._names = frozenset(name.removeprefix(self._top) for name in names)

    def exists(self, file: str) -> bool:
        return file in self._names

    def read(self, file: str) -> bytes:
        return self._source.read(self._top + file)


class VocImages(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """The images of one split.

    An item is an image float32 ``[3, H, W]`` in [0, 1] and a dictionary of ``boxes`` float32 ``[N, 4]`` (left, top,
    right, bottom, in pixels of this image), ``labels`` int64 ``[N]`` (1 is the first class; 0 is the background) and
    ``difficult`` bool ``[N]``.

    Attributes:
        classes: Their names.
        examples: What is annotated.
    """

    def __init__(
        self,
        root: _Root,
        examples: Sequence[Example],
        classes: Sequence[str],
        image_size: tuple[int, int] | None,
        transform: Callable[..., Any],
    ) -> None:
        """Keeps what it is given; nothing is read."""
        self.classes, self.examples = tuple(classes), tuple(examples)
        self._root, self._size, self._transform = root, image_size, transform

    def __len__(self) -> int:
        """The number of images."""
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Reads, resizes and transforms an image."""
        from torchvision import tv_tensors
        from torchvision.transforms.v2 import functional

        example = self.examples[index]
        pixels = functional.pil_to_tensor(self._image(example))
        height, width = pixels.shape[1:]
        scale = torch.tensor([width / example.size[0], height / example.size[1]]).repeat(2)
        boxes = torch.tensor(example.boxes).reshape(-1, 4) * scale
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.tensor([self.classes.index(name) + 1 for name in example.classes], dtype=torch.int64),
            "difficult": torch.tensor(example.difficult, dtype=torch.bool),
        }
        image, target = self._transform(tv_tensors.Image(pixels), target)
        return image, target

    def _image(self, example: Example) -> Any:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(self._root.read(example.file))) as opened:
                if self._size is None:
                    return opened.convert("RGB")
                # Lets JPEG decode at a half, a quarter ... as long as that is not smaller than what is wanted.
                opened.draft("RGB", self._size)
                return opened.convert("RGB").resize(self._size, Image.Resampling.BILINEAR)
        except (OSError, UnidentifiedImageError, zipfile.BadZipFile) as error:
            raise InputError(f"data 'voc:{self._root.path}': {example.file} cannot be decoded: {error}") from error


def voc(
    path: str | Path,
    batch_size: int = 16,
    seed: int = 0,
    *,
    image_size: int | tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    splits: tuple[str, str] = ("train", "val"),
    augment: str = "ssd",
    limit: int | None = None,
    workers: int = 0,
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Images with boxes, annotated as PASCAL VOC is.

    All annotations and the headers of all images are read at once, and what is wrong is named here, not in the middle
    of a training.

    Args:
        path: A folder or a zip with ``JPEGImages``, ``Annotations`` and ``ImageSets/Main/{train,val,test}.txt``.
        batch_size: Images a batch.
        seed: Of the order of the training images and of their augmentation.
        image_size: What images are resized to before augmentation, as one number or as (height, width); ``None``
            leaves them as they are (a detector of torchvision resizes them anyway, but that takes longer).
        classes: Names of the classes, in the order of their labels 1, 2, ...; ``None`` takes those of the training
            images, sorted.
        splits: Of the training images and of the held-out ones.
        augment: Of the training images. ``"ssd"``: colours, zooming out, cropping by overlap and mirroring, as in the
            paper of SSD (Liu et al., 2016). ``"microscope"``, for pictures that have no up and down, and cheaper:
            brightness and contrast, crops of 40 to 100 % of the area, mirroring both ways. ``"none"``.
        limit: Takes the first so many images of both splits; ``None`` takes all.
        workers: Processes that decode images; 0 decodes in this one.

    Returns:
        The training and the held-out loader. A batch is a pair of lists, see :class:`VocImages` for what is in them.

    Raises:
        InputError: Something is missing, empty, cannot be read, or contradicts itself.
        ArgumentError: An argument of the wrong kind.
        MissingExtraError: torchvision, Pillow or defusedxml is not installed.

    Warns:
        UserWarning: Boxes without an area were dropped, or boxes that reach beyond their image were cut; they are
            named.
    """
    for option, value in (("batch_size", batch_size), ("limit", 1 if limit is None else limit)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ArgumentError(f"{option}={value!r}: give a positive integer")
        if value < 1:
            raise InputError(f"{option}={value}: give a positive integer")
    size = _size(image_size)
    if augment not in AUGMENTATIONS:
        raise InputError(f"augment={augment!r}: {nearest(augment, AUGMENTATIONS)}")
    try:
        import defusedxml  # noqa: F401 (only to see that they are there)
        import PIL  # noqa: F401
        from torchvision.transforms import v2  # noqa: F401
    except ImportError as error:
        raise missing_extra("torchvision, pillow and defusedxml", "detection", f"data 'voc:{path}'") from error
    root = _Root(Path(path))
    examples = []
    for split in splits:
        examples.append(_split(root, split, limit))
    both = {example.name for example in examples[0]} & {example.name for example in examples[1]}
    if both:
        raise InputError(f"data 'voc:{path}': {_some(sorted(both))} in {splits[0]} and in {splits[1]}")
    seen = sorted({name for example in examples[0] for name in example.classes})
    known = seen if classes is None else list(classes)
    if not known:
        raise InputError(f"data 'voc:{path}': no image of {splits[0]} has a box")
    if len(set(known)) != len(known):
        raise InputError(f"classes={known}: a name stands there twice")
    for example in [*examples[0], *examples[1]]:
        odd = sorted(set(example.classes) - set(known))
        if odd:
            whence = f"the classes of {splits[0]}" if classes is None else "the classes that were given"
            raise InputError(f"data 'voc:{path}': {odd[0]!r} in {example.name} is none of {whence}, {_some(known)}")
    generator = torch.Generator().manual_seed(seed)
    sets = [
        VocImages(root, part, known, size, _transform(words, size))
        for part, words in zip(examples, (augment, "none"), strict=True)
    ]
    return (
        DataLoader(
            sets[0],
            batch_size,
            shuffle=True,
            # Batch norm cannot train on a batch of one image whose map has shrunk to 1x1.
            drop_last=len(sets[0]) % batch_size == 1 and len(sets[0]) > 1,
            generator=generator,
            collate_fn=lists,
            num_workers=workers,
        ),
        DataLoader(sets[1], batch_size, collate_fn=lists, num_workers=workers),
    )


def lists(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Puts samples into a batch as detectors take it.

    Args:
        samples: Images with their targets.

    Returns:
        The list of images, of any sizes, and the list of targets.
    """
    return [image for image, _ in samples], [target for _, target in samples]


def _size(image_size: Any) -> tuple[int, int] | None:
    """Width and height, as Pillow has them."""
    if image_size is None:
        return None
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise ArgumentError(f"image_size={image_size!r}: give one integer, or height and width")
    if min(sides) < 1:
        raise InputError(f"image_size={image_size!r}: give positive numbers")
    return sides[1], sides[0]


def _transform(words: str, size: tuple[int, int] | None) -> Callable[..., Any]:
    from torchvision.transforms import v2

    steps: list[Any] = []
    if words == "ssd":
        grey = [124, 116, 104]  # ImageNet's mean, as in the paper
        steps += [v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=grey), v2.RandomIoUCrop()]
        steps += [v2.RandomHorizontalFlip()]
        if size is not None:
            steps.append(v2.Resize(size[::-1]))
    if words == "microscope":
        steps += [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.ColorJitter(brightness=0.2, contrast=0.2)]
        steps.append(_ScaledCrop(size))
    if steps:
        steps.append(v2.SanitizeBoundingBoxes(min_size=4, labels_getter=_by_box))
    transform: Callable[..., Any] = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])
    return transform


class _ScaledCrop:
    """A crop of 40 to 100 % of the area, scaled to the size of the whole."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        self.size = size

    def __call__(self, image: Any, target: Any) -> Any:
        from torchvision.transforms import v2

        size = list(image.shape[-2:]) if self.size is None else self.size[::-1]
        shape = size[1] / size[0]
        return v2.RandomResizedCrop(size, scale=(0.4, 1.0), ratio=(0.8 * shape, 1.25 * shape))(image, target)


def _by_box(sample: tuple[Any, dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """What goes with a box that goes."""
    return sample[1]["labels"], sample[1]["difficult"]


def _split(root: _Root, split: str, limit: int | None) -> list[Example]:
    """Reads the annotations of a split, and the headers of its images."""
    from PIL import Image, UnidentifiedImageError

    where = f"data 'voc:{root.path}'"
    listing = f"ImageSets/Main/{split}.txt"
    if not root.exists(listing):
        raise InputError(f"{where}: there is no {listing}")
    # VOC's lists of one class have a second column.
    names = [line.split()[0] for line in root.read(listing).decode("utf-8").splitlines() if line.strip()]
    if not names:
        raise InputError(f"{where}: {listing} names no image")
    names = names[:limit]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{where}: {listing} names {_some(twice)} more than once")
    for folder, ending in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        missing = [name for name in names if not root.exists(f"{folder}/{name}{ending}")]
        if missing:
            raise InputError(f"{where}: {folder} lacks {_some(missing, ending)}, named in {listing}")
    examples, dropped, cut = [], [], []
    for name in names:
        file = f"JPEGImages/{name}.jpg"
        try:
            with Image.open(io.BytesIO(root.read(file))) as image:
                size = image.size
        except (OSError, UnidentifiedImageError, zipfile.BadZipFile) as error:
            raise InputError(f"{where}: {file} is no image that can be read: {error}") from error
        example, gone, shortened = _example(root, name, file, size)
        examples.append(example)
        dropped += gone
        cut += shortened
    for odd, words in ((dropped, "have no area in their image and are dropped"), (cut, "reach out of it and are cut")):
        if odd:
            warnings.warn(f"{where}: {len(odd)} of {split}'s boxes {words}: {_some(odd)}", stacklevel=3)
    return examples


def _example(root: _Root, name: str, file: str, size: tuple[int, int]) -> tuple[Example, list[str], list[str]]:
    """Reads an annotation: what is in it, which boxes were dropped, and which were cut."""
    from defusedxml import DefusedXmlException, ElementTree

    where = f"data 'voc:{root.path}': Annotations/{name}.xml"
    try:
        tree = ElementTree.fromstring(root.read(f"Annotations/{name}.xml"))
    except (ElementTree.ParseError, DefusedXmlException, zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
    found: list[tuple[tuple[float, float, float, float], str, bool]] = []
    dropped, cut = [], []
    for number, item in enumerate(tree.iter("object"), start=1):
        label = (item.findtext("name") or "").strip()
        if not label:
            raise InputError(f"{where}: object {number} has no name")
        try:
            corners = [float(item.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            corners = [math.nan]
        if not all(map(math.isfinite, corners)):
            raise InputError(f"{where}: object {number}, {label!r}, has no box of four numbers")
        words = f"{label} {[round(corner) for corner in corners]} in {name}"
        left, top, right, bottom = corners
        # The format counts pixels from 1 and includes the last: the edges of the box are one less at left and top.
        box = max(left - 1, 0.0), max(top - 1, 0.0), min(right, size[0]), min(bottom, size[1])
        if right <= left or bottom <= top or box[2] <= box[0] or box[3] <= box[1]:
            dropped.append(words)
            continue
        if left < 0 or top < 0 or right > size[0] or bottom > size[1]:  # 0 is what a writer that counts from 0 means
            cut.append(words)
        found.append((box, label, (item.findtext("difficult") or "0").strip() == "1"))
    boxes, classes, difficult = zip(*found, strict=True) if found else ((), (), ())
    return Example(name, file, size, tuple(boxes), tuple(classes), tuple(difficult)), dropped, cut


def _some(words: Sequence[str], ending: str = "") -> str:
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    return ", ".join(f"{word}{ending}" for word in words[:3]) + more

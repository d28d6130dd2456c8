"""Boxes of images in files: what is known of an image, and which boxes are dropped or clipped, which is reported."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..utils.errors import list_some
from ..utils.user_warnings import warn_user

Box = tuple[float, float, float, float]

MOST_OBJECTS, LONGEST_NAME = 10_000, 200  # of an image, of a class
LARGEST_CORNER = 1e6  # pixels; no picture that is decoded is as wide
# Pixels. Boxes become float32, whose numbers are 0.002 apart at the far edge of the widest picture: a thinner box could
# lose its area.
_SMALLEST_SIDE = 0.01


@dataclass(frozen=True)
class AnnotatedImage:
    """The annotation of one image.

    Attributes:
        name: The image's name without an ending.
        file: The image's file, relative to the root of the data set.
        size: Width and height in pixels.
        boxes: One ``(left, top, right, bottom)`` in pixels per object; the left edge of the first pixel is 0.
        classes: One class name per object.
        difficult: One flag per object: whether VOC marks it as difficult to recognise. ``None`` where there
            are no such flags.
        crowd: One flag per object: whether COCO's box covers a crowd of objects. ``None`` likewise.
        upright: Whether size and boxes are those of the picture once it is turned as its EXIF data say. ``None``: its
            header was not read; the size tells when the picture is.
    """

    name: str
    file: str
    size: tuple[int, int]
    boxes: tuple[Box, ...]
    classes: tuple[str, ...]
    difficult: tuple[bool, ...] | None = None
    crowd: tuple[bool, ...] | None = None
    upright: bool | None = False


@dataclass
class BoxCheck:
    """Clips boxes to their images, and remembers which were clipped or dropped.

    Attributes:
        dropped: Descriptions of boxes without an area in their image.
        clipped: Descriptions of boxes that reach beyond their image.
    """

    dropped: list[str] = field(default_factory=list)
    clipped: list[str] = field(default_factory=list)

    def clip(self, box: Box, size: tuple[int, int], description: str, slack: float = 0.0) -> Box | None:
        """The part of a box that lies in its image.

        Args:
            box: Left, top, right and bottom in pixels.
            size: Width and height of the image.
            description: Of the box, for the warning.
            slack: By how many pixels a box may reach beyond the image without being reported: rounding of the format.

        Returns:
            The part; ``None`` if it has no area: it is less than 0.01 pixels wide or high.
        """
        left, top, right, bottom = box
        inside = max(left, 0.0), max(top, 0.0), min(right, float(size[0])), min(bottom, float(size[1]))
        if min(inside[2] - inside[0], inside[3] - inside[1]) < _SMALLEST_SIDE:
            self.dropped.append(description)
            return None
        if max(inside[0] - left, inside[1] - top, right - inside[2], bottom - inside[3]) > slack:
            self.clipped.append(description)
        return inside

    def report(self, where: str, part: str) -> None:
        """Warns of the boxes that were dropped, and of those that were clipped.

        Args:
            where: The data set, for the message.
            part: The part of it, such as ``"train"``.
        """
        for boxes, fate in (
            (self.dropped, "have no area inside their image and are dropped"),
            (self.clipped, "reach beyond their image and are clipped"),
        ):
            if boxes:
                message = f"{where}: {len(boxes)} of {part}'s boxes {fate}: {list_some(boxes)}"
                warn_user(message)

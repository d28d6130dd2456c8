"""Pictures from files: opened by Pillow with bounds on their size, whatever the bytes are."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable, Iterator
from typing import Any

from ..utils.errors import InputError
from ..utils.reading import MEGABYTE

MOST_PIXELS = 24_000_000
# A picture and its file take at most 256 MB until the picture is in RGB.
_MOST_MEMORY = 250 * MEGABYTE
# Bytes per pixel. A picture has 4, and 4 more where its colours are converted. JPEG: 6 for coefficients, in files of
# several scans; of CMYK 8. TIFF: a strip may be the whole picture, of 16 bits per colour. WebP: the decoder's canvas
# and a copy of it. Moving pictures: what is behind a frame.
_BYTES_PER_PIXEL = {"JPEG": 10, "PNG": 10, "PPM": 10, "BMP": 10, "TIFF": 16, "WEBP": 16, "GIF": 10}
_CMYK_BYTES_PER_PIXEL = 16
_MOVING_BYTES_PER_PIXEL = 4
# What scales a picture down takes memory for the whole length of its longer side.
LONGEST_SIDE = 20_000
# A scan of a JPEG may be a few bytes that cost a look at every pixel. A progressive file has about 10.
_MOST_SCANNED = 16 * MOST_PIXELS
# Text and run lengths are decoded by Python.
_MOST_BYTES_FOR_PYTHON, _MOST_PIXELS_FOR_PYTHON = 1 << 18, 1 << 20
# By content, not by ending: data sets have files of one kind under the ending of another. Pillow's other readers are
# left out, for one of them (PostScript) starts a program.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")


@contextlib.contextmanager
def opened_picture(read: Callable[[], bytes], subject: str) -> Iterator[Any]:
    """Opens a picture; nothing is decoded yet.

    Args:
        read: Returns the content of the file.
        subject: The subject of the error messages: which file it is.

    Yields:
        The opened PIL image. What decoding it raises inside the context becomes an ``InputError``.

    Raises:
        InputError: The file is not a picture, is damaged, or has more than 24 million pixels (fewer in some formats).
    """
    try:
        content = read()
        _check_webp(content, subject)
        with _opened(io.BytesIO(content)) as image:
            width, height = image.size
            most = _most_pixels(image, content)
            _check_size(width, height, most, subject)
            yield image
    except InputError:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        kind = type(error).__name__
        raise InputError(f"{subject} cannot be read ({kind}: {error}): remove or replace it") from error


def _opened(stream: io.BytesIO) -> Any:
    from PIL import Image, UnidentifiedImageError

    if Image.open.__module__ == Image.__name__:
        return Image.open(stream, formats=_FORMATS)
    # Another package has replaced it: that of ultralytics installs a package when a file is damaged. So this does what
    # Pillow's own does.
    Image.init()
    start = stream.read(16)
    for name in _FORMATS:
        factory, accepts = Image.OPEN[name]
        if accepts is None or accepts(start) is True:
            stream.seek(0)
            # What Pillow's readers raise where the file is of another format.
            with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
                return factory(stream, "")
    raise UnidentifiedImageError(f"cannot identify image file {stream!r}")


def _check_size(width: int, height: int, most: int, subject: str) -> None:
    if width * height > most or max(width, height) > LONGEST_SIDE:
        raise InputError(
            f"{subject} has {width} x {height} pixels; at most {most:,} are decoded of such a file, and "
            f"{LONGEST_SIDE:,} in a row: make it smaller, or save it as JPEG or PNG"
        )


def _check_webp(content: bytes, subject: str) -> None:
    """Compares the size of a WebP picture before it is opened, for its decoder takes the memory at once."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return
    width = height = 0
    if content[12:16] == b"VP8X":
        width, height = (1 + int.from_bytes(content[at : at + 3], "little") for at in (24, 27))
    elif content[12:16] == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif content[12:16] == b"VP8 ":
        width, height = (int.from_bytes(content[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    _check_size(width, height, (_MOST_MEMORY - len(content)) // _BYTES_PER_PIXEL["WEBP"], subject)


def _most_pixels(image: Any, content: bytes) -> int:
    """How many pixels of an opened picture are decoded, by what they take in memory and time."""
    from PIL import Image

    if any(tile[0] in Image.DECODERS for tile in image.tile):  # those in Python
        return _MOST_PIXELS_FOR_PYTHON if len(content) <= _MOST_BYTES_FOR_PYTHON else 0
    kind = "JPEG" if image.format == "MPO" else image.format  # several JPEGs in one file
    each = _CMYK_BYTES_PER_PIXEL if kind == "JPEG" and image.mode == "CMYK" else _BYTES_PER_PIXEL[kind]
    each += _MOVING_BYTES_PER_PIXEL if getattr(image, "is_animated", False) else 0
    most = min(MOST_PIXELS, (_MOST_MEMORY - len(content)) // each)
    return min(most, _MOST_SCANNED // max(1, content.count(b"\xff\xda"))) if kind == "JPEG" else most


def in_rgb(image: Any) -> Any:
    """Decodes a picture.

    Args:
        image: What :func:`opened_picture` yields, or another PIL image.

    Returns:
        The image in RGB; the same object where it is, for a copy would double its memory.
    """
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")

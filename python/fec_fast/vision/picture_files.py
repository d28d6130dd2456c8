"""Pictures from files: opened by Pillow with bounds on their size, whatever the bytes are."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

from ..utils.errors import InputError

# Pillow takes 4 bytes for a pixel, twice where the colours are converted: at most 192 MB.
MOST_PIXELS = 24_000_000
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
        InputError: The file is not a picture, is damaged, or has more than 24 million pixels.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read()), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise InputError(
                    f"{subject} has {width} x {height} pixels; at most {MOST_PIXELS:,} are decoded: make it smaller"
                )
            yield image
    except InputError:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        kind = type(error).__name__
        raise InputError(f"{subject} cannot be read ({kind}: {error}): remove or replace it") from error

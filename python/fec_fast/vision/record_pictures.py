"""Pictures of records: whatever a dictionary holds as its image, as a picture of Pillow within bounds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..utils.errors import InputError
from ..utils.reading import read_bytes
from .picture_files import MOST_PIXELS, in_rgb, opened_picture
from .sources import MOST_BYTES


def picture_of(value: Any, where: str) -> Any:
    """Makes a picture in RGB.

    Args:
        value: A PIL image; an array or a tensor, uint8 or floating point in [0, 1], ``[H, W]``, ``[H, W, 3]`` or
            ``[3, H, W]`` (1 and 4 colours too); the bytes of a file, also as ``{"bytes": ...}``; or a path.
        where: What it is, for the messages.

    Returns:
        A PIL image in RGB; the given one if it is.

    Raises:
        InputError: It is something else, damaged, or has more than 24 million pixels.
    """
    from PIL import Image

    if isinstance(value, Image.Image):
        if value.width * value.height > MOST_PIXELS:
            raise InputError(f"{where} has {value.width} x {value.height} pixels; at most {MOST_PIXELS:,} are used")
        try:
            return in_rgb(value)
        except Exception as error:  # a picture of a file is decoded here
            raise InputError(f"{where} cannot be decoded ({type(error).__name__}: {error})") from error
    if isinstance(value, Mapping):  # as Hugging Face datasets store an image
        content, path = value.get("bytes"), value.get("path")
        if content is None and path is not None:
            raise InputError(f"{where} is only the path {str(path)[:200]!r}: store the pictures themselves in the data")
        value = content
    if isinstance(value, bytes):
        if len(value) > MOST_BYTES:
            raise InputError(f"{where} has {len(value):,} bytes; at most {MOST_BYTES:,} are read")
        content_bytes = value
        with opened_picture(lambda: content_bytes, where) as opened:
            return in_rgb(opened)
    if isinstance(value, str | os.PathLike):
        path_of_file = Path(value)
        with opened_picture(lambda: read_bytes(path_of_file, MOST_BYTES, InputError), where) as opened:
            return in_rgb(opened)
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return in_rgb(Image.fromarray(_pixels(value, where)))
    raise InputError(f"{where} is a {type(value).__name__}: give a PIL image, an array, the bytes of a file or a path")


def _pixels(array: np.ndarray, where: str) -> np.ndarray:
    """An array of pixels as uint8 ``[H, W]`` or ``[H, W, 3 or 4]``."""
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or not array.size:
        raise InputError(f"{where} has the shape {list(array.shape)}: give [H, W], [H, W, 3] or [3, H, W]")
    if array.shape[0] * array.shape[1] > MOST_PIXELS:
        raise InputError(f"{where} has {array.shape[1]} x {array.shape[0]} pixels; at most {MOST_PIXELS:,} are used")
    if np.issubdtype(array.dtype, np.floating):
        if not bool(np.isfinite(array).all()) or array.min() < 0 or array.max() > 1:
            raise InputError(f"{where} has values outside of [0, 1]: scale it, or give uint8")
        return np.ascontiguousarray((array * 255).round().astype(np.uint8))
    if array.dtype != np.uint8:
        raise InputError(f"{where} has the dtype {array.dtype}: give uint8, or floating point in [0, 1]")
    return np.ascontiguousarray(array)

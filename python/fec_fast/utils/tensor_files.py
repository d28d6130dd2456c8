"""Files of tensors in the safetensors format, with the errors of this package and of Python."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors.torch import load, save_file
from torch import Tensor

from .errors import CheckpointError
from .reading import check_tensor_header

_SYSTEM_ERROR = re.compile(r"os error (\d+)")


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors to a file.

    Args:
        file: The file, which is not written atomically: see :mod:`fec_fast.utils.files`.
        tensors: Contiguous tensors that share no memory, by name.
        metadata: Text to be stored with them, by name.

    Raises:
        OSError: The disk is full, or the file cannot be written.
    """
    try:
        save_file(dict(tensors), file, metadata=None if metadata is None else dict(metadata))
    except safetensors.SafetensorError as error:  # it has the system's message, in its own class
        number = _SYSTEM_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def tensors_of_bytes(content: bytes, file: Path) -> dict[str, Tensor]:
    """Reads tensors from the content of a file.

    Args:
        content: The whole content.
        file: The file, for messages.

    Returns:
        Tensors on the CPU, in memory of their own, by name.

    Raises:
        CheckpointError: It is not in the safetensors format.
    """
    check_tensor_header(content[:8], len(content), str(file), CheckpointError)
    try:
        return dict(sorted(load(content).items()))  # in one order in all processes, which share them out in turn
    except Exception as error:  # safetensors raises several kinds on damaged bytes
        raise CheckpointError(f"{file} cannot be read: {type(error).__name__}: {error}") from error


def metadata_of(content: bytes) -> dict[str, str]:
    """The text that is stored with tensors.

    Args:
        content: The whole content of a file that :func:`tensors_of_bytes` can read.

    Returns:
        Text by name, as :func:`write_tensors` was given it.
    """
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + length]).get("__metadata__") or {})  # null is none too

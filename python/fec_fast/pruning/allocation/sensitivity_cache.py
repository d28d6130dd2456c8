"""Sensitivity cache: measured values on disk, so that an interrupted measurement continues where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, TypedDict

import msgspec

from ...utils.errors import InputError
from ...utils.files import flush_folder, make_folders
from ...utils.reading import MEGABYTE, parse_json, read_bytes
from ...utils.weights import state_digest
from ..context import PruningContext
from ..criteria import ENTROPY_CRITERIA

_MOST_BYTES = 16 * MEGABYTE  # some 100,000 values


def cache_key(context: PruningContext) -> str:
    """A digest of everything that a value depends on, except the calibration.

    Args:
        context: The traced and scored model.

    Returns:
        The SHA-256 of the weights, criterion, formula, sides, norms and coupled sets, in hexadecimal.
    """
    digest = hashlib.sha256(state_digest(context.model).encode())
    formula = context.formula if context.criterion_name in ENTROPY_CRITERIA else None
    digest.update(f"{context.criterion_name} {formula} {context.sides} {context.trace.norms}".encode())
    digest.update(repr([(coupled.name, coupled.units) for coupled in context.coupling.sets]).encode())
    return digest.hexdigest()


class _Row(TypedDict):
    key: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    set: str
    removed: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
    value: float


class SensitivityCache:
    """A folder of values, one JSON line per value, in one file per process so that processes do not share a file.

    Attributes:
        values: The values under this key, by the name of the set and the number of units that were removed from it;
            ``("", 0)`` is the model with nothing removed.
    """

    def __init__(self, folder: Path, key: str) -> None:
        """Reads the values under a key from all files of the folder.

        Args:
            folder: Created if it does not exist.
            key: What :func:`cache_key` returned; values under other keys are ignored.

        Raises:
            InputError: ``folder`` is a file, or a file in it holds something other than measured values.
        """
        if folder.exists() and not folder.is_dir():
            raise InputError(f"cache={str(folder)!r} is a file; name a folder")
        make_folders(folder)
        self._folder, self._key = folder, key
        self.values: dict[tuple[str, int], float] = {}
        for file in sorted(folder.glob("sensitivity-*.jsonl")):
            for number, line in enumerate(read_bytes(file, _MOST_BYTES, InputError).split(b"\n"), start=1):
                row = _row(line, f"{file}, line {number}")
                if row is not None and row["key"] == key:
                    self.values[row["set"], row["removed"]] = row["value"]

    def append(self, set_name: str, removed: int, value: float, rank: int) -> None:
        """Writes a value, and waits until it is on the disk: a measurement may be killed at any time.

        Args:
            set_name: The name of the coupled set; ``""`` for the whole model.
            removed: The number of units that were removed from it.
            value: The measured value.
            rank: The rank of this process, from 0.
        """
        row = {"key": self._key, "set": set_name, "removed": removed, "value": value}
        with (self._folder / f"sensitivity-{rank}.jsonl").open("a", encoding="utf-8") as file:
            is_new = file.tell() == 0
            is_torn = not is_new and not _ends_with_newline(file.name)
            file.write("\n" * is_torn + json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            flush_folder(self._folder)


def _row(line: bytes, where: str) -> _Row | None:
    """The value of a line; ``None`` for one that a process was writing when it was killed: not a whole object."""
    if not (line.startswith(b"{") and line.rstrip().endswith(b"}")):
        return None
    return parse_json(line, _Row, f"{where}: delete this line and measure its value again: it", InputError)


def _ends_with_newline(name: str) -> bool:
    """Whether the last line of a file is complete."""
    with open(name, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"

"""Files that appear whole or not at all: written beside, brought to the disk, then renamed into place."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a text file; upon any error what was there before is still there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def replace(temporary: Path, final: Path) -> None:
    """Renames a written file into place."""
    settle(temporary)
    os.replace(temporary, final)


def settle(file: Path) -> None:
    """Brings a written file to the disk, readable as any other (safetensors makes one for its owner alone)."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
    file.chmod(0o666 & ~umask())


def umask() -> int:
    """The permissions that new files go without; they can only be read by setting them."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(file: Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

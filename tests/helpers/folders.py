"""Folders: their contents, the permissions of new files, and limits that make writing fail."""

from __future__ import annotations

import os
from pathlib import Path


def umask() -> int:
    """The permission bits that new files of this process do not get; the system lets them be read by setting them."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def contents(folder: Path) -> dict[str, bytes]:
    """The files below a folder, by their path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

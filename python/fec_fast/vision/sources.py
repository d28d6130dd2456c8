"""Files by name, in a folder or in a zip archive."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any, Protocol

from ..utils.errors import InputError


class Source(Protocol):
    """Files by name."""

    def names(self) -> list[str]:
        """All files and folders, as paths with slashes, the folders' with one at the end, in alphabetical order."""

    def read(self, name: str) -> bytes:
        """The content of one."""

    def where(self, name: str) -> str:
        """Words for a file, for messages."""


class Folder:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        """Remembers the folder."""
        self.root = root

    def names(self) -> list[str]:
        """See :meth:`Source.names`."""
        found = []
        for place, folders, files in os.walk(self.root, followlinks=True):
            here = Path(place).relative_to(self.root)
            found += [(here / file).as_posix() for file in files]
            found += [f"{(here / folder).as_posix()}/" for folder in folders]
        return sorted(found)

    def read(self, name: str) -> bytes:
        """See :meth:`Source.read`."""
        return (self.root / name).read_bytes()

    def where(self, name: str) -> str:
        """See :meth:`Source.where`."""
        return str(self.root / name)


class Archive:
    """Files in a zip archive. Every process opens it for itself: two that share an open one read each other's bytes."""

    def __init__(self, file: Path) -> None:
        """Opens the archive, to see that it is one.

        Raises:
            InputError: It is none.
        """
        self.file = file
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        try:
            self._archive()
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{file} cannot be read as a zip archive: {error}") from error

    def _archive(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), zipfile.ZipFile(self.file))
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without the open archive, for processes that are started afresh."""
        return {"file": self.file, "_opened": None}

    def names(self) -> list[str]:
        """See :meth:`Source.names`."""
        return sorted(self._archive().namelist())

    def read(self, name: str) -> bytes:
        """See :meth:`Source.read`."""
        return self._archive().read(name)

    def where(self, name: str) -> str:
        """See :meth:`Source.where`."""
        return f"{name} in {self.file}"

"""Sources of files: a folder or a zip archive, read by the same methods."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any, Protocol

from ..utils.errors import InputError


class Source(Protocol):
    """Files by name."""

    def names(self) -> list[str]:
        """Lists all files and folders.

        Returns:
            Paths with slashes, in alphabetical order; those of folders end in a slash.
        """

    def read(self, name: str) -> bytes:
        """The content of a file."""

    def describe(self, name: str) -> str:
        """Describes where a file is, for messages."""


class Folder:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        """Stores the path.

        Args:
            root: The folder.
        """
        self.root = root

    def names(self) -> list[str]:
        """Lists all files and folders below, also those behind symbolic links, as :meth:`Source.names` does."""
        paths = []
        for parent, folders, files in os.walk(self.root, followlinks=True):
            relative = Path(parent).relative_to(self.root)
            paths += [(relative / file).as_posix() for file in files]
            paths += [f"{(relative / folder).as_posix()}/" for folder in folders]
        return sorted(paths)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return (self.root / name).read_bytes()

    def describe(self, name: str) -> str:
        """The path of a file."""
        return str(self.root / name)


class Archive:
    """Files in a zip archive.

    Every process opens the archive for itself. Worker processes that share one open file would move each other's
    position in it, and read each other's bytes.
    """

    def __init__(self, file: Path) -> None:
        """Opens the archive, to check that it is one.

        Args:
            file: The zip archive.

        Raises:
            InputError: It cannot be read as a zip archive.
        """
        self.file = file
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        try:
            self._archive()
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{file} cannot be read as a zip archive: {error}") from error

    def _archive(self) -> zipfile.ZipFile:
        # A forked worker inherits the open file of its parent: the process id tells whether it is this process's own.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), zipfile.ZipFile(self.file))
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        """The state without the open archive, for processes that are spawned."""
        return {"file": self.file, "_opened": None}

    def names(self) -> list[str]:
        """Lists all files and folders in the archive, as :meth:`Source.names` does."""
        return sorted(self._archive().namelist())

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return self._archive().read(name)

    def describe(self, name: str) -> str:
        """The name of a file and its archive."""
        return f"{name} in {self.file}"

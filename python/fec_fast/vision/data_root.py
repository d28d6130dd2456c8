"""Root of a data set with boxes: a folder, or a zip archive, in which its files have their usual names."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from .picture_files import opened_picture
from .sources import Archive, Folder, Source


class DataRoot:
    """The folder of a data set, on the disk or inside a zip archive. No file outside it is read.

    Attributes:
        path: The folder or the archive.
        where: The data set, for messages, such as ``"data 'voc:PATH'"``.
        files: The names of all files below, with slashes.
    """

    def __init__(self, path: Path, kind: str, marker: str | None = None) -> None:
        """Lists the files.

        Args:
            path: The folder or the archive.
            kind: The word for the format in ``--data``.
            marker: A folder that lies in the root of the data set, with a slash: it tells where the root is in an
                archive. ``None``: below the folders that hold everything in it.

        Raises:
            InputError: There is no such folder or archive, or it holds several data sets.
        """
        self.path, self.where, self._prefix = path, f"data '{kind}:{path}'", ""
        if path.is_dir():
            self._source: Source = Folder(path)
        elif path.is_file():
            self._source = Archive(path)
        else:
            raise InputError(f"{self.where}: there is no such folder or zip")
        names = self._source.names()
        if path.is_file() and marker is None:
            self._prefix = _wrapping_folder(names)
        elif path.is_file() and marker is not None:
            # VOC's own archives have everything below VOCdevkit/VOC2007/.
            prefixes = sorted({name[: name.index(marker)] for name in names if marker in name})
            if len(prefixes) > 1:
                raise InputError(
                    f"{self.where} holds several data sets ({', '.join(prefixes)}): unpack it and name one"
                )
            self._prefix = prefixes[0] if prefixes else ""
        self.files = frozenset(
            name.removeprefix(self._prefix)
            for name in names
            if name.startswith(self._prefix) and not name.endswith("/")
        )

    def exists(self, file: str) -> bool:
        """Whether there is a file of this name."""
        return file in self.files

    def below(self, folder: str) -> list[str]:
        """The files below a folder, in alphabetical order; all files for ``""``."""
        start = f"{folder}/" if folder else ""
        return sorted(name for name in self.files if name.startswith(start))

    def read(self, file: str, most: int) -> bytes:
        """The content of a file of at most this number of bytes; ``InputError`` if it is larger or damaged."""
        return self._source.read(self._prefix + file, most)

    def read_text(self, file: str, most: int) -> str:
        """The text of a file, likewise; ``InputError`` if it is not in UTF-8."""
        try:
            return self.read(file, most).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.where}: {file} is not text in UTF-8: {error}") from error

    def picture(self, file: str) -> AbstractContextManager[Any]:
        """Opens a picture; see :func:`fec_fast.vision.picture_files.opened_picture`."""
        name = self._prefix + file
        return opened_picture(lambda: self._source.read(name), f"{self.where}: {file}")


def _wrapping_folder(names: list[str]) -> str:
    """The folders that hold everything in an archive, such as ``"coco128/"``; ``""`` if there are none."""
    files = [name for name in names if not name.endswith("/") and not name.startswith("__MACOSX/")]
    prefix = ""
    while files:
        first, slash, _ = files[0][len(prefix) :].partition("/")
        if not slash or not all(name.startswith(f"{prefix}{first}/") for name in files):
            break
        prefix += f"{first}/"
    return prefix

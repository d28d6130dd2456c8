"""Reading of files that strangers may have written: sizes are bounded before memory is taken, and types are checked.

The bounds are far above what the package writes and far below what exhausts a machine. Every reader of the package
starts here; what a file may hold is the reader's own schema.
"""

from __future__ import annotations

import os
import stat
import zipfile
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from .errors import ArgumentError, FecError

MEGABYTE = 1 << 20
# JSON: a plan of the largest networks has some 3 million numbers. A number takes about 40 bytes of memory once it is
# read, an empty list or object about 70, so these bounds keep a document below 256 MB.
MOST_JSON_BYTES = 48 * MEGABYTE
_MOST_JSON_VALUES = 4_000_000
_MOST_JSON_CONTAINERS = 400_000
# A tensor has about 100 bytes in the header of a safetensors file: enough for 80,000.
_MOST_HEADER_BYTES = 8 * MEGABYTE

T = TypeVar("T")


def open_regular(path: Path, error: type[FecError]) -> BufferedReader:
    """Opens a file to read it; a pipe or a device, which might never end, is refused.

    Args:
        path: The file.
        error: The class of the error for what is refused.

    Returns:
        The open file.

    Raises:
        FecError: Of the given class. Not a regular file.
        OSError: The file is missing or cannot be read.
    """
    # Not blocking: otherwise the call would never return for a pipe that nobody writes to. It has no effect on files.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path} is not a regular file; give one")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, most: int, error: type[FecError]) -> bytes:
    """Reads a whole file that may not be larger than a bound.

    Args:
        path: The file; a pipe or a device, which might never end, is refused.
        most: The largest size in bytes.
        error: The class of the error for a file that is refused.

    Returns:
        The content.

    Raises:
        FecError: Of the given class. The file is larger, or not a regular file.
        OSError: The file is missing or cannot be read.
    """
    with open_regular(path, error) as stream:
        status = os.fstat(stream.fileno())
        content = b"" if status.st_size > most else stream.read(most + 1)
        if status.st_size > most or len(content) > most:
            size = max(status.st_size, len(content))
            raise error(f"{path} has {size:,} bytes; such a file may have at most {most:,}: check where it comes from")
    return content


def check_json_text(text: Any) -> None:
    """Checks the argument ``text`` of a public ``from_json``.

    Args:
        text: What was given.

    Raises:
        ArgumentError: It is neither text nor bytes.
    """
    if not isinstance(text, str | bytes):
        raise ArgumentError(f"from_json: text is a {type(text).__name__}: give the text that to_json returned")


def parse_json(content: str | bytes, schema: type[T], what: str, error: type[FecError]) -> T:
    """Parses JSON of bounded size into the types of a schema.

    Args:
        content: The JSON text; bytes are UTF-8.
        schema: The type that the document must have, such as a ``TypedDict``, or ``Any``. Numbers are finite.
        what: The subject of the error messages, such as a file's name.
        error: The class of the errors.

    Returns:
        The document.

    Raises:
        FecError: Of the given class. The text is too large, is not JSON, is nested too deeply, or has another type
            somewhere; the message says where.
    """
    try:
        text = content.encode() if isinstance(content, str) else content
    except UnicodeEncodeError as cause:
        raise error(f"{what} is not JSON: {cause}") from cause
    for count, most, unit in (
        (len(text), MOST_JSON_BYTES, "bytes"),
        (text.count(b",") + text.count(b":"), _MOST_JSON_VALUES, "values"),
        (text.count(b"[") + text.count(b"{"), _MOST_JSON_CONTAINERS, "lists and objects"),
    ):
        if count > most:
            raise error(f"{what} has {count:,} {unit}; it may have at most {most:,}: check where it comes from")
    return decode_json(text, schema, what, error)


def decode_json(text: bytes, schema: type[T], what: str, error: type[FecError]) -> T:
    """Parses JSON into the types of a schema. The caller has bounded what the schema takes memory for.

    Args:
        text: The JSON text in UTF-8.
        schema: The type that the document must have.
        what: The subject of the error messages, such as a file's name.
        error: The class of the errors.

    Returns:
        The document.

    Raises:
        FecError: Of the given class. The text is not JSON, is nested too deeply, or has another type somewhere.
    """
    try:
        return msgspec.json.decode(text, type=schema)
    except msgspec.ValidationError as cause:
        raise error(f"{what} does not have the expected content: {cause}") from cause
    except RecursionError:
        raise error(f"{what} is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise error(f"{what} is not JSON: {cause}") from cause


def read_json(path: Path, schema: type[T], error: type[FecError]) -> T:
    """Reads a JSON file by :func:`read_bytes` and :func:`parse_json`.

    Args:
        path: The file, in UTF-8.
        schema: The type that the document must have.
        error: The class of the errors.

    Returns:
        The document.

    Raises:
        FecError: Of the given class, as for the two functions.
        OSError: The file is missing or cannot be read.
    """
    return parse_json(read_bytes(path, MOST_JSON_BYTES, error), schema, str(path), error)


def check_tensor_file(path: Path, error: type[FecError]) -> None:
    """Checks the size of the header of a safetensors file, which safetensors reads as a whole.

    Args:
        path: The file.
        error: The class of the error.

    Raises:
        FecError: Of the given class. The file is not regular, or too small or too large a header is announced.
        OSError: The file is missing or cannot be read.
    """
    if not path.is_file() and path.exists():
        raise error(f"{path} is not a regular file; give one")
    with path.open("rb") as stream:
        check_tensor_header(stream.read(8), os.fstat(stream.fileno()).st_size, str(path), error)


def check_tensor_header(start: bytes, size: int, what: str, error: type[FecError]) -> None:
    """Does what :func:`check_tensor_file` does, for a file that is read already.

    Args:
        start: Its first bytes, at least 8 if it has them.
        size: Its size in bytes.
        what: The subject of the error messages, such as the file's name.
        error: The class of the error.

    Raises:
        FecError: Of the given class. Too small or too large a header is announced.
    """
    header = int.from_bytes(start[:8], "little")
    if len(start) < 8 or header > size - 8:
        raise error(f"{what} cannot be read as safetensors: it is truncated, or another kind of file")
    if header > _MOST_HEADER_BYTES:
        raise error(
            f"{what} has a header of {header:,} bytes; at most {_MOST_HEADER_BYTES:,} are read, enough for 80,000 "
            "tensors: check where it comes from"
        )


def open_archive(path: Path, most_directory_bytes: int) -> zipfile.ZipFile:
    """Opens a zip archive whose list of files may not be larger than a bound; it is read as a whole.

    Args:
        path: The archive.
        most_directory_bytes: The largest size of the list of files. A file takes 46 bytes and its name; about twelve
            times as much in memory.

    Returns:
        The archive.

    Raises:
        zipfile.BadZipFile: It is not a zip archive, its list is too large, names a file twice, or has one that is
            larger than the archive.
        Exception: What ``zipfile`` raises on damaged bytes, which may be any exception.
    """
    with path.open("rb") as stream:
        size = _directory_bytes(stream)
    if size > most_directory_bytes:
        raise zipfile.BadZipFile(f"its list of files has {size:,} bytes; at most {most_directory_bytes:,} are read")
    archive = zipfile.ZipFile(path)
    if len(set(archive.namelist())) != len(archive.namelist()):
        raise zipfile.BadZipFile("it has two files of one name")
    if any(entry.compress_size > path.stat().st_size for entry in archive.infolist()):
        raise zipfile.BadZipFile("it lists a file that is larger than the archive")  # Python would take its memory
    return archive


def _directory_bytes(stream: BinaryIO) -> int:
    """The size of the list of files that the end of a zip archive announces; 0 where there is no such end."""
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, end - (1 << 16) - 22 - 20))  # a comment of at most 64 kB, the record, and zip64's locator
    tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        return 0
    size = int.from_bytes(tail[at + 12 : at + 16], "little")
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\x06\x07":  # zip64: the sizes are in a record of their own
        stream.seek(min(int.from_bytes(tail[at - 12 : at - 4], "little"), end))
        record = stream.read(56)
        if record[:4] == b"PK\x06\x06" and len(record) == 56:
            size = max(size if size != 0xFFFFFFFF else 0, int.from_bytes(record[40:48], "little"))
    return min(size, end)

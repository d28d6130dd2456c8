"""Files of tensors in the safetensors format, with the errors of this package and of Python."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict, TypeVar

import msgspec
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError
from .reading import check_tensor_header, open_regular, parse_json

_SYSTEM_ERROR = re.compile(r"(?:os error |Os { code: )(\d+)")  # as newer and as older releases write it
_CHUNK = 1 << 20
_T = TypeVar("_T")
_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
# What the format calls the types that torch has in every supported version.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


class _Entry(TypedDict):
    """How the header describes a tensor."""

    dtype: str
    shape: Annotated[list[_Size], msgspec.Meta(max_length=64)]
    data_offsets: tuple[_Size, _Size]


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


class TensorFile(NamedTuple):
    """The content of a file of tensors.

    Attributes:
        tensors: Tensors on the CPU, in memory of their own, by name.
        metadata: The text that is stored with them, by name.
        sha256: The checksum of the file, 64 hexadecimal digits.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    sha256: str


def read_tensors(file: Path, check: Callable[[str], None]) -> TensorFile:
    """Reads tensors from a file, each byte once and into its place: no second copy is in memory.

    Args:
        file: The file.
        check: Is called with the checksum of the whole file before anything else is said about its content; it raises
            for a checksum that is not the expected one.

    Returns:
        The content.

    Raises:
        CheckpointError: The file is not regular, or not in the safetensors format.
        OSError: The file is missing or cannot be read.
    """
    with open_regular(file, CheckpointError) as stream:
        source = _Hashed(stream)
        try:
            tensors, metadata = _tensors_from(source, os.fstat(stream.fileno()).st_size, file)
        except CheckpointError:
            source.read_rest()
            check(source.sha256)
            raise
        source.read_rest()
    check(source.sha256)
    return TensorFile(tensors, metadata, source.sha256)


class _Hashed:
    """A stream that computes the checksum of what is read from it."""

    def __init__(self, stream: BufferedReader) -> None:
        self._stream, self._digest = stream, hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def read(self, count: int) -> bytes:
        """Reads so many bytes, or as many as there are."""
        content = self._stream.read(count)
        self._digest.update(content)
        return content

    def read_into(self, memory: memoryview) -> bool:
        """Fills memory; false where the file ends before."""
        return all(self._read_chunk(memory[at : at + _CHUNK]) for at in range(0, len(memory), _CHUNK))

    def _read_chunk(self, memory: memoryview) -> bool:
        count = self._stream.readinto(memory)
        self._digest.update(memory[:count])
        return count == len(memory)

    def read_rest(self) -> None:
        """Reads what is left, for the checksum."""
        while self.read(_CHUNK):
            pass


@contextlib.contextmanager
def open_tensors(file: Path) -> Iterator[dict[str, StoredTensor]]:
    """Opens a file of tensors, to read them one at a time. The file stays open, so another in its place is not read.

    Args:
        file: The file.

    Yields:
        Its tensors by name; none is read yet.

    Raises:
        CheckpointError: The file is not regular, or not in the safetensors format.
        OSError: The file is missing or cannot be read.
    """
    with open_regular(file, CheckpointError) as stream:
        entries, _ = _described(stream.read, os.fstat(stream.fileno()).st_size, file)
        start = stream.tell()
        yield {
            name: StoredTensor(stream, start + begin, name, dtype, shape, file) for name, dtype, shape, begin in entries
        }


class StoredTensor(NamedTuple):
    """A tensor of an open file.

    Attributes:
        stream: The file.
        begin: Where its bytes begin.
        name: Its name.
        dtype: Its dtype.
        shape: Its shape.
        file: The path of the file.
    """

    stream: BufferedReader
    begin: int
    name: str
    dtype: torch.dtype
    shape: torch.Size
    file: Path

    def read(self) -> Tensor:
        """Reads the tensor, into memory of its own.

        Raises:
            CheckpointError: The file is shorter than when it was opened.
            OSError: The file cannot be read.
        """
        self.stream.seek(self.begin)
        described = _Described(self.name, self.dtype, self.shape, self.begin)
        return _filled(described, lambda memory: self.stream.readinto(memory) == len(memory), self.file)


class _Described(NamedTuple):
    """What the header says of a tensor; ``begin`` counts from the end of the header."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    begin: int


def _described(read: Callable[[int], bytes], size: int, file: Path) -> tuple[list[_Described], dict[str, str]]:
    """Reads and checks the header: the tensors in the order of their bytes, and the text that is stored with them."""
    start = read(8)
    check_tensor_header(start, size, str(file), CheckpointError)
    length = int.from_bytes(start, "little")
    damaged = f"{file} cannot be read: its header"
    header = parse_json(read(length), dict[str, dict[str, Any] | None], damaged, CheckpointError)
    metadata = _converted(header.pop("__metadata__", None) or {}, dict[str, str], damaged)  # null is none too
    entries = {name: _converted(entry, _Entry, damaged) for name, entry in header.items()}
    described, offset = [], 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (begin, end) = DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
        if dtype is None:
            raise CheckpointError(f"{damaged} gives {name!r} the type {entry['dtype']!r}, which torch has not")
        if begin != offset or end - begin != math.prod(shape) * dtype.itemsize or end > size - 8 - length:
            raise CheckpointError(f"{damaged} gives {name!r} the bytes {begin} to {end}, which do not fit its shape")
        described.append(_Described(name, dtype, torch.Size(shape), begin))
        offset = end
    if offset != size - 8 - length:
        raise CheckpointError(f"{damaged} leaves {size - 8 - length - offset} bytes without a tensor")
    return described, metadata


def _tensors_from(source: _Hashed, size: int, file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    entries, metadata = _described(source.read, size, file)
    tensors = {entry.name: _filled(entry, source.read_into, file) for entry in entries}
    return dict(sorted(tensors.items())), metadata  # in one order in all processes, which share them out in turn


def _filled(entry: _Described, fill: Callable[[memoryview], bool], file: Path) -> Tensor:
    """A tensor with its bytes from a file; ``fill`` fills memory with the next ones, or says that there are too few."""
    try:
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
    except RuntimeError as cause:  # no element, but sizes whose product overflows
        raise CheckpointError(
            f"{file} cannot be read: its header gives {entry.name!r} the shape {list(entry.shape)}: {cause}"
        ) from cause
    if tensor.numel() and not fill(tensor.view(-1).view(torch.uint8).numpy().data):
        raise CheckpointError(f"{file} cannot be read: it is truncated")
    return tensor


def _converted(value: Any, schema: type[_T], damaged: str) -> _T:
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as cause:
        raise CheckpointError(f"{damaged} does not have the expected content: {cause}") from cause

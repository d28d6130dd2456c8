"""Folders that ``save_to_disk`` of Hugging Face ``datasets`` wrote. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ..utils.arguments import check_path
from ..utils.errors import FecError, InputError, missing_extra
from ..utils.reading import read_json
from .loaders import Loader
from .record_fields import image_key
from .records import load_records


class _DataFile(msgspec.Struct):
    filename: str


class _State(msgspec.Struct):
    """``state.json`` of a saved data set, as far as it is checked here."""

    data_files: list[_DataFile] = msgspec.field(name="_data_files")


def load_saved(path: str | Path, batch_size: int = 64, seed: int = 0, **options: Any) -> tuple[Loader, Loader]:
    """Loads a ``Dataset`` or ``DatasetDict`` of Hugging Face that lies on the disk.

    Pictures must be in the data themselves, as ``save_to_disk`` writes them after ``load_dataset``; paths in the data
    are not followed. The files are read by pyarrow, which checks them.

    Args:
        path: The folder that ``save_to_disk`` wrote.
        batch_size: Images per batch.
        seed: As for :func:`fec_fast.vision.records.load_records`.
        **options: As for :func:`fec_fast.vision.records.load_records`.

    Returns:
        The training and the held-out loader.

    Raises:
        InputError: The folder is missing or damaged, or the data cannot be used.
        ArgumentError: An argument has the wrong type.
        MissingExtraError: ``datasets`` is not installed.
    """
    where, folder = f"data 'hf:{path}'", check_path("path", path)
    try:
        import datasets
    except (ImportError, AttributeError) as error:
        raise missing_extra("datasets", "hf", where, error) from error
    if not folder.is_dir():
        raise InputError(f"{where}: there is no such folder; save one by dataset.save_to_disk({str(path)!r})")
    for state in (folder / "state.json", *sorted(folder.glob("*/state.json"))):
        if state.is_file():
            _check_listed_files(state)
    try:
        found = datasets.load_from_disk(str(folder.absolute()))
        parts = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
        for part in parts.values():
            part.data.table.validate(full=True)
        parts = {name: _undecoded(part, datasets) for name, part in parts.items()}
    except Exception as error:  # pyarrow and datasets raise many kinds on damaged files
        kind = type(error).__name__
        raise InputError(f"{where} cannot be read ({kind}: {error}): save it again by dataset.save_to_disk") from error
    try:
        for part in parts.values():
            _refuse_paths(part, options.get("image"))
        return load_records(parts.get("", parts), batch_size, seed, **options)
    except FecError as error:
        raise type(error)(f"{where}: {error}") from error


def _check_listed_files(state: Path) -> None:
    """Raises if a data set lists a file outside its folder, or one twice, whose rows would be read again each time."""
    listed = [file.filename for file in read_json(state, _State, InputError).data_files]
    outside = [name for name in listed if Path(name).name != name]
    if outside or len(set(listed)) < len(listed):
        fault = f"{outside[0]!r:.80}, which is not in its folder" if outside else "a file twice"
        raise InputError(f"{state} lists {fault}: save the data again by dataset.save_to_disk")


def _undecoded(part: Any, datasets: Any) -> Any:
    """The data with their pictures as bytes: they are decoded within bounds, and paths are not opened."""
    for name, feature in part.features.items():
        if isinstance(feature, datasets.Image):
            part = part.cast_column(name, datasets.Image(decode=False))
    return part


def _refuse_paths(part: Any, image: str | None) -> None:
    """Raises if the pictures are paths, which may lead anywhere."""
    key = image_key(part.features, image)
    if getattr(part.features[key], "dtype", None) in ("string", "large_string"):
        raise InputError(f"{key} is text: store pictures, not paths (cast_column({key!r}, datasets.Image()))")

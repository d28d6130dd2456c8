"""Training logs through accelerate's trackers: its own for TensorBoard, and a CSV tracker that is defined here."""

from __future__ import annotations

import csv
import importlib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import ArgumentError, InputError, missing_extra, nearest
from ..utils.files import write_text
from ..utils.reading import MEGABYTE, read_bytes
from .history import Epoch

if TYPE_CHECKING:
    from accelerate import Accelerator

LOG_FORMATS = ("csv", "tensorboard")
_FILE = "metrics.csv"
_MOST_BYTES = 16 * MEGABYTE  # some 100,000 epochs
_EPOCH = re.compile("[0-9]{1,10}")


def check_log_folder(log_dir: str | Path | None, log_with: str) -> Path | None:
    """Checks that logs can be written.

    Args:
        log_dir: The folder for the logs; ``None`` writes none.
        log_with: ``"csv"`` or ``"tensorboard"``.

    Returns:
        The folder as a path, or ``None``.

    Raises:
        InputError: ``log_with`` is unknown, the folder is a file, or its ``metrics.csv`` is not a log of a training.
        ArgumentError: ``log_dir`` is not a path.
        MissingExtraError: TensorBoard is not installed.
    """
    if log_with not in LOG_FORMATS:
        raise InputError(f"log_with={log_with!r}: {nearest(str(log_with), LOG_FORMATS)}")
    if log_dir is None:
        return None
    if not isinstance(log_dir, str | Path):
        raise ArgumentError(f"log_dir={log_dir!r}: give a folder")
    folder = Path(log_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"log_dir: {folder} is a file; name a folder")
    file = folder / _FILE
    if log_with == "csv" and file.is_file():
        _rows(file)
    if log_with == "tensorboard":
        try:
            importlib.import_module("tensorboard")
        except (ImportError, AttributeError) as error:
            raise missing_extra("tensorboard", "tensorboard", "log_with='tensorboard'", error) from error
    return folder


def _rows(file: Path) -> list[dict[str, str]]:
    """The rows of a log, one per epoch; ``InputError`` for a file that is no log."""
    foreign = f"log_dir: {file} is not a log of a training and is left alone; name another folder"
    content = read_bytes(file, _MOST_BYTES, InputError)
    try:
        header, *lines = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
        rows = [dict(zip(header, line, strict=True)) for line in lines]
        is_log = header[0] == "epoch" and len(set(header)) == len(header)
        if is_log and all(_EPOCH.fullmatch(row["epoch"]) for row in rows):
            return rows
    except (ValueError, csv.Error, IndexError) as error:
        raise InputError(f"{foreign} ({error})") from error
    raise InputError(foreign)


def make_tracker(folder: Path | None, log_with: str) -> Any:
    """Makes the value of accelerate's argument ``log_with``.

    Args:
        folder: The folder for the logs, as returned by :func:`check_log_folder`; ``None`` writes none.
        log_with: ``"csv"`` or ``"tensorboard"``.

    Returns:
        A tracker, the name of one that accelerate knows, or ``None``.
    """
    if folder is None:
        return None
    return log_with if log_with == "tensorboard" else _csv_tracker(folder)


def start_trackers(accelerator: Accelerator, settings: dict[str, Any]) -> None:
    """Starts the trackers of an accelerator; does nothing if it has none.

    Args:
        accelerator: The accelerator of the training.
        settings: Settings to be logged. Only numbers, booleans and strings are logged, which TensorBoard requires.
    """
    if accelerator.log_with:
        loggable = {key: value for key, value in settings.items() if isinstance(value, bool | int | float | str)}
        accelerator.init_trackers("fec_fast", config=loggable)


def log_values(row: Epoch) -> dict[str, float]:
    """Turns an epoch's record into named numbers.

    Args:
        row: The record.

    Returns:
        ``loss``, ``lr``, ``seconds``, ``images_per_second``, and the metrics as ``train/NAME`` and ``held_out/NAME``.
    """
    values = {"loss": row.loss, "lr": row.lr, "seconds": row.seconds, "images_per_second": row.images / row.seconds}
    for data, metrics in (("train", row.metrics), ("held_out", row.held_out or {})):
        values |= {f"{data}/{name}": value for name, value in metrics.items()}
    return values


def _csv_tracker(folder: Path) -> Any:
    from accelerate.tracking import GeneralTracker, on_main_process

    class CsvTracker(GeneralTracker):  # type: ignore[misc]  # accelerate has no types
        """Writes ``metrics.csv``, one row per epoch. The whole file is replaced each time, so it is always complete."""

        name = "csv"
        requires_logging_directory = False
        main_process_only = True

        def __init__(self) -> None:
            super().__init__()
            self.file = folder / _FILE

        @property
        def tracker(self) -> Path:
            """The file that is written; accelerate requires this property."""
            return self.file

        @on_main_process  # type: ignore[untyped-decorator]
        def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
            """Adds the row of an epoch; rows of this and later epochs, left by an earlier training, are removed."""
            rows: list[dict[str, Any]] = []
            if self.file.is_file():
                rows = [row for row in _rows(self.file) if int(row["epoch"]) < (step or 0)]
            rows.append({"epoch": step, **values})
            text = io.StringIO()
            writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            folder.mkdir(parents=True, exist_ok=True)
            write_text(self.file, text.getvalue())

    return CsvTracker()

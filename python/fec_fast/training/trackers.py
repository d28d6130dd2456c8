"""Logs of a training through accelerate's trackers: TensorBoard's is accelerate's own, the one for CSV is here."""

from __future__ import annotations

import csv
import importlib
import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import ArgumentError, InputError, missing_extra, nearest
from ..utils.files import write_text
from .history import Epoch

if TYPE_CHECKING:
    from accelerate import Accelerator

KINDS = ("csv", "tensorboard")
_FILE = "metrics.csv"


def check_logs(log_dir: str | Path | None, log_with: str) -> Path | None:
    """Makes sure that logs can be written.

    Args:
        log_dir: The folder; ``None`` logs nothing.
        log_with: ``"csv"`` or ``"tensorboard"``.

    Returns:
        The folder.

    Raises:
        InputError: An unknown kind, a folder that is a file, or one with a ``metrics.csv`` that is something else.
        ArgumentError: Not a path.
        MissingExtraError: TensorBoard is not installed.
    """
    if log_with not in KINDS:
        raise InputError(f"log_with={log_with!r}: {nearest(str(log_with), KINDS)}")
    if log_dir is None:
        return None
    if not isinstance(log_dir, str | Path):
        raise ArgumentError(f"log_dir={log_dir!r}: give a folder")
    folder = Path(log_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"log_dir: {folder} is a file; name a folder")
    file = folder / _FILE
    if log_with == "csv" and file.is_file() and not file.read_text("utf-8", "replace").startswith("epoch,"):
        raise InputError(f"log_dir: {file} is no log of a training and is left alone; name another folder")
    if log_with == "tensorboard":
        try:
            importlib.import_module("tensorboard")
        except ImportError as error:
            raise missing_extra("tensorboard", "tensorboard", "log_with='tensorboard'") from error
    return folder


def tracker(folder: Path | None, log_with: str) -> Any:
    """What accelerate takes as ``log_with``.

    Args:
        folder: Checked; ``None`` logs nothing.
        log_with: Checked.

    Returns:
        A tracker, a name of one, or ``None``.
    """
    if folder is None:
        return None
    return log_with if log_with == "tensorboard" else _csv_tracker(folder)


def start(accelerator: Accelerator, settings: dict[str, Any]) -> None:
    """Opens the logs of an accelerator that was made with a tracker.

    Args:
        accelerator: Any.
        settings: To be written down, those of them that are numbers or words.
    """
    if accelerator.log_with:
        plain = {key: value for key, value in settings.items() if isinstance(value, bool | int | float | str)}
        accelerator.init_trackers("fec_fast", config=plain)


def logged(row: Epoch) -> dict[str, float]:
    """An epoch as flat names and numbers.

    Args:
        row: The epoch.

    Returns:
        ``loss``, ``lr``, ``seconds``, ``images_per_second``, and the metrics as ``train/NAME`` and ``held_out/NAME``.
    """
    plain = {key: value for key, value in asdict(row).items() if key in ("loss", "lr", "seconds")}
    plain["images_per_second"] = row.images / row.seconds
    for kind, metrics in (("train", row.metrics), ("held_out", row.held_out or {})):
        plain |= {f"{kind}/{name}": value for name, value in metrics.items()}
    return plain


def _csv_tracker(folder: Path) -> Any:
    from accelerate.tracking import GeneralTracker, on_main_process

    class CsvTracker(GeneralTracker):  # type: ignore[misc]  # accelerate is not typed; imported when it is needed only
        """One row an epoch in a file that is written anew each time, so that it is always whole."""

        name = "csv"
        requires_logging_directory = False
        main_process_only = True

        def __init__(self) -> None:
            super().__init__()
            self.file = folder / _FILE

        @property
        def tracker(self) -> Path:
            """The file."""
            return self.file

        @on_main_process  # type: ignore[untyped-decorator]
        def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
            """Adds a row; rows from this epoch on, of a training that was there before, go."""
            rows: list[dict[str, Any]] = []
            if self.file.is_file():
                with self.file.open(newline="", encoding="utf-8") as stream:
                    rows = [row for row in csv.DictReader(stream) if int(row["epoch"]) < (step or 0)]
            rows.append({"epoch": step, **values})
            text = io.StringIO()
            writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            folder.mkdir(parents=True, exist_ok=True)
            write_text(self.file, text.getvalue())

    return CsvTracker()

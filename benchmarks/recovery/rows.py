"""Rows of the result file of the recovery benchmark, and what its commands share."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.environment import ROOT
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.recovery.page import write
from benchmarks.study.run import packed

RESULT = RESULTS / "recovery.json"


class Rows:
    """The rows of the result file, under the name of their table.

    Attributes:
        path: The file.
        table: The name of the table, such as ``"accuracy"``.
    """

    def __init__(self, path: Path, table: str) -> None:
        self.path, self.table = path, table

    def has(self, key: list[Any]) -> bool:
        """Whether a row was measured already; the commit does not matter."""
        written = json.dumps([self.table, *key])
        return any(json.dumps(row["key"]) == written for row in read_result(self.path).get("rows", []))

    def add(self, key: list[Any], values: dict[str, Any]) -> None:
        """Writes a finished row; the file is read again, because another table may have grown."""
        document = read_result(self.path) or {"dense": {}, "rows": []}
        row = {"key": [self.table, *key], **values, "run": run_number(document, "torchvision")}
        document["rows"].append(row)
        write_result(self.path, document)
        print({name: value for name, value in row.items() if name not in ("right", "run")}, flush=True)

    def add_dense(self, name: str, correct: list[bool]) -> None:
        """Writes the accuracy of a network before pruning, unless it is there."""
        document = read_result(self.path) or {"dense": {}, "rows": []}
        if name not in document["dense"]:
            document["dense"][name] = {**accuracy(correct), "run": run_number(document, "torchvision")}
            write_result(self.path, document)


def accuracy(correct: list[bool]) -> dict[str, Any]:
    """The accuracy in %, the number of images, and which of them are classified correctly."""
    return {"accuracy": round(100 * sum(correct) / len(correct), 2), "images": len(correct), "right": packed(correct)}


def parser_of(description: str | None, *, devices: bool = False) -> argparse.ArgumentParser:
    """The arguments that the commands of this folder share; those that run on a GPU too have ``--device``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of images and weights")
    parser.add_argument("--output", default=RESULT, type=Path)
    parser.add_argument("--work", default=ROOT / "runs" / "study", type=Path, help="a folder for decoded images")
    if devices:
        parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where networks run")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page from the results")
    return parser


def started(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the command line and prepares the process; writes the page and ends with ``--page-only``."""
    arguments = parser.parse_args()
    if arguments.page_only:
        write(read_result(arguments.output))
        sys.exit()
    if arguments.data is None:
        parser.error("--data is needed, except with --page-only")
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # accuracies are those in float32
    return arguments

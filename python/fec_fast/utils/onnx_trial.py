"""Whether an ONNX file from outside runs: tried in a process of its own, which a damaged file may end."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .errors import CheckpointError

_PROGRAM = Path(__file__).with_name("onnx_process.py")
_MOST_WAITING = 300  # seconds, on a busy machine; the process itself ends after 60 of a core


def try_onnx(content: bytes, what: str) -> dict[str, list[Any]]:
    """Loads an ONNX file into onnxruntime and runs it once on zeros, in another process and within its bounds.

    Args:
        content: The content of the file. Weights beside it are not read.
        what: The subject of the error message, such as the file's name.

    Returns:
        The names and shapes of its inputs; a size that may vary is a text or ``None``.

    Raises:
        CheckpointError: It cannot be loaded or run, or not within the bounds of
            :mod:`fec_fast.utils.onnx_process`.
    """
    from .onnx_process import MOST_SECONDS, memory_for

    with tempfile.TemporaryDirectory() as empty:  # where weights would be looked for that lie beside the file
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(_PROGRAM)],
                input=content,
                capture_output=True,
                cwd=empty,
                timeout=_MOST_WAITING,
            )
        except subprocess.TimeoutExpired:
            raise CheckpointError(f"{what} cannot be run: it did not end within {_MOST_WAITING} s") from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        answer = {"error": f"its process ended with {done.returncode} ({last:.200})"}
    if "inputs" not in answer:
        raise CheckpointError(
            f"{what} cannot be run in onnxruntime, which may take {memory_for(len(content)) >> 20:,} MB and "
            f"{MOST_SECONDS} s of a core for a file of this size: {answer['error']}"
        )
    inputs: dict[str, list[Any]] = answer["inputs"]
    return inputs

"""Runs an ONNX network that a stranger may have written, within bounds of memory and time: a program of its own.

:mod:`fec_fast.utils.onnx_trial` starts it by the path of this file, so it imports neither torch nor the package.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

MOST_INPUT_BYTES = 64 << 20
MOST_SECONDS = 60
# What onnxruntime takes to load and run a network: so many bytes, and several copies of the weights.
_LEAST_MEMORY, _COPIES = 192 << 20, 16
_TYPES = {
    **{f"tensor({name})": name for name in ("float16", "int64", "int32", "int16", "int8", "uint8", "bool")},
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}


def memory_for(size: int) -> int:
    """How much memory loading and running a network may take.

    Args:
        size: Bytes of its file.

    Returns:
        Bytes.
    """
    return _LEAST_MEMORY + _COPIES * size


def run_once(content: bytes) -> dict[str, Any]:
    """Loads a network and runs it on zeros; a size that may vary is 1.

    On Linux the memory that this process may take meanwhile is bounded: see :func:`memory_for`.

    Args:
        content: The content of an ONNX file.

    Returns:
        ``{"inputs": {name: shape}}``, or ``{"error": text}``.
    """
    # onnxruntime prints about some errors before it raises them.
    with contextlib.redirect_stdout(io.StringIO()), _bounded_memory(memory_for(len(content))):
        return _answer(content)


def _answer(content: bytes) -> dict[str, Any]:
    try:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # As it is written: an optimiser would compute parts of it in advance.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        inputs = {entry.name: list(entry.shape) for entry in session.get_inputs()}
        types = {entry.name: entry.type for entry in session.get_inputs()}
        json.dumps(inputs)  # a name that is no text is an error of the file's
        if unknown := next((name for name in types if types[name] not in _TYPES), None):
            return {"error": f"its input {unknown!r:.80} is a {types[unknown]}"}
        shapes = {name: [size if isinstance(size, int) else 1 for size in shape] for name, shape in inputs.items()}
        size = sum(math.prod(shape) * np.dtype(_TYPES[types[name]]).itemsize for name, shape in shapes.items())
        if size > MOST_INPUT_BYTES:
            return {"error": f"its inputs take {size:,} bytes; at most {MOST_INPUT_BYTES:,} are tried"}
        session.run(None, {name: np.zeros(shape, _TYPES[types[name]]) for name, shape in shapes.items()})
    except Exception as error:  # onnxruntime raises many kinds
        return {"error": f"{type(error).__name__}: {str(error)[:1000]}"}
    return {"inputs": inputs}


@contextlib.contextmanager
def _bounded_memory(more: int) -> Iterator[None]:
    """Lets this process take so many bytes in the block, beside those that it has. Only Linux counts them so."""
    status = Path("/proc/self/statm")
    if not status.exists():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    present = int(status.read_text(encoding="ascii").split()[5]) * resource.getpagesize()
    limits = [present + more, *(limit for limit in before if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def main() -> None:
    """Reads a network from standard input, and prints what :func:`run_once` returns as JSON."""
    content = sys.stdin.buffer.read()
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps(run_once(content)))


if __name__ == "__main__":
    main()

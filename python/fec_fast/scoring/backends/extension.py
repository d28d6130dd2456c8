"""The compiled extension, or its absence: installations without a C++ compiler have none."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

# An extension that is there and cannot be loaded is an error: only one that is not there has a replacement.
native: Any = None
if importlib.util.find_spec(f"{__package__}._native") is not None:
    from . import _native

    native = _native

_COMPILERS = {
    "darwin": "the compiled kernels need clang: `xcode-select --install`",
    "win32": "there are no compiled kernels for Windows; they run under WSL",
}


def remedy() -> str:
    """Says how to install the compiled kernels."""
    compiler = "the compiled kernels need a C++ compiler (Debian: `apt install g++`; Fedora: `dnf install gcc-c++`)"
    text = _COMPILERS.get(sys.platform, compiler)
    again = "pip install --force-reinstall --no-deps --no-cache-dir --no-binary fec-fast fec-fast"
    return (
        text if sys.platform == "win32" else f"{text}, then `{again}` (in a clone: `pip install --force-reinstall .`)"
    )

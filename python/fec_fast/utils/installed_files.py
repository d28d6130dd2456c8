"""Whether code is the user's own or was installed: Python's library, other packages, this one."""

from __future__ import annotations

import functools
import os
import sysconfig

import torch

_PACKAGE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


@functools.cache
def is_installed(file: str) -> bool:
    """Whether a file is not the user's own code.

    Args:
        file: Of a frame or a module.

    Returns:
        True for Python's library, what pip has installed, and this package, wherever it lies.
    """
    if file.startswith("<frozen "):  # the machinery of imports
        return True
    real = os.path.realpath(file)
    return any(real.startswith(folder + os.sep) for folder in _folders())


@functools.cache
def _folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    # Distributions and users have further folders of packages: those that torch can be in.
    return (*map(os.path.realpath, [*folders, os.path.dirname(os.path.dirname(torch.__file__))]), _PACKAGE)

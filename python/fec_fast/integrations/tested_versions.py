"""Versions of other libraries that an integration was tested with."""

from __future__ import annotations

import re
import warnings
from importlib.metadata import version

from ..utils.errors import FecWarning


def warn_if_untested(package: str, first: str, last: str) -> None:
    """Warns if an installed package is older or newer than what the integration was tested with.

    Args:
        package: The distribution.
        first: The oldest tested version, such as ``"2.4"``.
        last: The newest tested version; its later patches count as tested.
    """
    installed = version(package)
    if not _numbers(first) <= _numbers(installed) <= _numbers(last):
        warnings.warn(
            f"{package} {installed} is installed, fec_fast was tested with {first} to {last}: check a short training, "
            f"or install {package}=={last}.*",
            FecWarning,
            stacklevel=3,
        )


def _numbers(text: str) -> tuple[int, ...]:
    """Major and minor version."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])

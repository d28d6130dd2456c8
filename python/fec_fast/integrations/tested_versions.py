"""Versions of other libraries that an integration was tested with."""

from __future__ import annotations

import re
from importlib.metadata import version

from ..utils.user_warnings import warn_user


def warn_if_untested(package: str, first: str, last: str) -> None:
    """Warns if an installed package is older or newer than what the integration was tested with.

    Args:
        package: The distribution.
        first: The oldest tested version, such as ``"2.4"`` or ``"8.4.190"``.
        last: The newest tested version, such as ``"2.6"``; its later patches count as tested.
    """
    installed, oldest, newest = (_numbers(each) for each in (version(package), first, last))
    if not (oldest <= installed[: len(oldest)] and installed[: len(newest)] <= newest):
        warn_user(
            f"{package} {version(package)} is installed, fec_fast was tested with {first} to {last}: check a short "
            f"training, or install {package}=={last}.*"
        )


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers of a version: major, minor, and those that follow."""
    return tuple(int(number) for number in re.findall(r"\d+", text))

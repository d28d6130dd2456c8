"""Held-out share: which images are kept from training where a data set does not say so itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

from ..utils.errors import ArgumentError, InputError
from ..utils.user_warnings import warn_user

DEFAULT_SHARE = 0.2

T = TypeVar("T")


def check_share(share: Any) -> None:
    """Checks the value of the option ``held_out``.

    Args:
        share: The value; ``None`` was not given.

    Raises:
        ArgumentError: It is not a number.
        InputError: It is not between 0 and 1.
    """
    if share is None:
        return
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise ArgumentError(f"held_out={share!r:.80}: give a share, such as {DEFAULT_SHARE}")
    if not 0 < share < 1:
        raise InputError(f"held_out={share!r:.80}: give the share of the images to hold out, between 0 and 1")


def refuse_share(share: float | None, where: str, own: str) -> None:
    """Raises ``InputError`` if a share was given for data that say themselves what is held out.

    Args:
        share: The value of ``held_out``.
        where: The data set, for the message.
        own: What says it there.
    """
    if share is not None:
        raise InputError(f"{where}: held_out={share}: {own} says what is held out; leave held_out= away")


def take_share(
    items: Sequence[T], names: Sequence[str], share: float | None, where: str, reason: str
) -> tuple[list[T], list[T]]:
    """Splits a data set, and warns that it does.

    The names decide: an image is held out in every call, whatever the seed and the order, and more images that are
    added later move few others. So no network is measured on images that an earlier call trained it on.

    Args:
        items: What is split, one per image.
        names: The names of the images.
        share: The share to hold out; ``None`` for 0.2.
        where: The data set, for the messages.
        reason: Why it is split, for the warning, such as ``"has no val.txt"``.

    Returns:
        The items to train on and those to hold out, in their order; at least one of each.

    Raises:
        InputError: There are fewer than two.
    """
    if len(items) < 2:
        raise InputError(f"{where} {reason}, and {len(items)} image(s): two are needed, one of them to hold out")
    wanted = DEFAULT_SHARE if share is None else share
    count = min(len(items) - 1, max(1, round(wanted * len(items))))
    ranks = sorted(
        range(len(items)), key=lambda at: (hashlib.sha256(names[at].encode("utf-8", "replace")).digest(), at)
    )
    chosen = set(ranks[:count])
    warn_user(
        f"{where} {reason}: {count} of its {len(items)} images, chosen by their names, are held out; "
        "held_out=SHARE holds out another share"
    )
    return (
        [item for at, item in enumerate(items) if at not in chosen],
        [item for at, item in enumerate(items) if at in chosen],
    )

"""Amounts of pruning in words that cannot be read backwards: ``--remove params=0.7``, ``--keep macs=1.2G``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from ..pruning.allocation.budget import Budget, share_hint
from ..utils.errors import BudgetError, nearest

# What may be removed or kept besides the quantities of a budget: the same share of the filters of every layer.
FILTERS = "filters"
_REMOVED = ("params", "macs", "memory", FILTERS)
_KEPT = (*_REMOVED, "latency")
# Other tools' words for what is counted here in multiply-accumulates.
_FLOPS = ("flops", "flop", "gflops", "mac", "madds", "mult-adds")

Remove = Annotated[
    list[str] | None,
    typer.Option(
        "--remove",
        metavar="NAME=SHARE",
        help="The share of the whole network to remove: params=0.7, macs=0.5 or memory=0.5. filters=0.5 removes half "
        "of the filters of every layer.",
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="NAME=AMOUNT",
        help="What may be left: a share as for --remove (params=0.3), or an amount: macs=1.2G, params=5M, memory=50MB, "
        "latency=3ms, or latency=3ms@onnxruntime (torch.compile, openvino).",
    ),
]
BudgetText = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="NAME=NUMBER",
        help="An older spelling: a number as for --remove, an amount with a unit as for --keep.",
    ),
]


def amounts_of(
    remove: Sequence[str] | None, keep: Sequence[str] | None, budget: Sequence[str] | None
) -> list[Budget | float]:
    """Reads the amounts of a command line.

    Args:
        remove: The values of ``--remove``.
        keep: Those of ``--keep``.
        budget: Those of ``--budget``.

    Returns:
        Budgets, and for ``filters`` the share of every layer's filters to remove, as a number.

    Raises:
        BudgetError: A text has another form, or a number is out of its range.
    """
    amounts: list[Budget | float] = []
    for option, texts in (("--remove", remove), ("--keep", keep)):
        for text in texts or ():
            name, equals, amount = text.partition("=")
            if not equals:
                raise BudgetError(f"{option} {text!r:.80}: write NAME=NUMBER, such as params=0.7")
            amounts.append(amount_of(option.removeprefix("--"), {name.strip(): _number(amount)}, f"{option} {text}"))
    return [*amounts, *(Budget.parse(text) for text in budget or ())]


def amount_of(word: str, entry: Mapping[str, Any], where: str) -> Budget | float:
    """Reads one amount.

    Args:
        word: ``"remove"`` or ``"keep"``.
        entry: The name of the quantity, and a share or a text with a unit.
        where: What it is, for the messages.

    Returns:
        A budget; for ``filters`` the share of every layer's filters to remove.

    Raises:
        BudgetError: Another quantity, or a number that is out of its range.
    """
    known = _REMOVED if word == "remove" else _KEPT
    (name, amount) = next(iter(entry.items()))
    if name not in known:
        hint = "latency has no share: --keep latency=3ms" if name == "latency" else nearest(name, known)
        hint = "nearest: 'macs'" if name.lower() in _FLOPS else hint
        raise BudgetError(f"{where}: {word} one of {', '.join(known)}; {hint}")
    if isinstance(amount, str) and (word == "remove" or name == FILTERS):
        hint = "; an amount that may be left belongs to keep, such as macs=1.2G"
        given = share_hint(amount)
        raise BudgetError(f"{where}: give a share, such as {given or 0.5}{'' if given or name == FILTERS else hint}")
    if name == "latency" and (not isinstance(amount, str) or share_hint(amount)):
        raise BudgetError(f"{where}: a latency has no share: give a time with its unit, such as 3ms")
    if isinstance(amount, str) and (given := share_hint(amount)):
        raise BudgetError(f"{where}: write the share as a number: {name}={given}")
    if name == FILTERS:
        if not 0 < amount < 1:
            raise BudgetError(f"{where}: give the share of every layer's filters, between 0 and 1")
        return float(amount) if word == "remove" else round(1 - amount, 12)
    if isinstance(amount, int | float) and not isinstance(amount, bool) and not 0 < amount < 1:
        what = "to remove" if word == "remove" else "that may be left, or an amount with a unit"
        raise BudgetError(f"{where}: give the share {what}; a share is a number between 0 and 1")
    return Budget.remove(**{name: amount}) if word == "remove" else Budget.keep(**{name: amount})


def _number(text: str) -> float | str:
    """A number where the text is one; else the text, which has a unit."""
    try:
        return float(text)
    except ValueError:
        return text.strip()

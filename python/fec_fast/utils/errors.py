"""Every error the package raises on purpose.

All of them are :class:`FecError`. Where Python itself would raise ``ValueError``, ``TypeError``, ``KeyError`` or
``ImportError``, the class is that as well, so callers need not know the package to handle it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FecError(Exception):
    """Base of every error raised by fec_fast."""


class FormulaError(FecError, ValueError):
    """A formula word or number that does not exist or cannot be combined."""


class WeightError(FecError, ValueError):
    """A weight that cannot be scored: NaN or infinite, quantised, sparse, on the meta device, not initialised.

    Attributes:
        layer: The name of the layer that holds the weight, ``""`` for the model itself; ``None`` where the weight was
            given without its layer.
        index: The index of the first element that is NaN or infinite; ``None`` where the weight as a whole is unfit.
    """

    def __init__(self, message: str, *, layer: str | None = None, index: tuple[int, ...] | None = None) -> None:
        """Stores where the weight is.

        Args:
            message: Names the layer, the trouble and the remedy.
            layer: See the attribute.
            index: See the attribute.
        """
        super().__init__(message)
        self.layer = layer
        self.index = index


class LayerError(FecError, ValueError):
    """A layer that does not exist, cannot be scored or cannot be pruned."""


class RatioError(FecError, ValueError):
    """A pruning ratio outside [0, 1), or contradictory ratios for coupled layers."""


class BudgetError(FecError, ValueError):
    """A budget that says nothing, contradicts itself, or cannot be met."""


class InputError(FecError, ValueError):
    """Example inputs the model cannot be run on, or data that cannot be trained on."""


class ArgumentError(FecError, TypeError):
    """An argument of the wrong kind."""


class PlanError(FecError, ValueError):
    """A plan that is malformed, or belongs to another model."""


class CheckpointError(FecError, ValueError):
    """A checkpoint that is missing, truncated, edited, or belongs to another model."""


class EquivalenceError(FecError, ValueError):
    """The pruned network does not compute what the masked original computes."""


class BackendError(FecError, RuntimeError):
    """A backend that is not built or cannot run here."""


class TrainingError(FecError, RuntimeError):
    """Training that cannot go on, such as a loss that is not a number."""


class TrainingInterrupted(KeyboardInterrupt):  # noqa: N818 (what it is, rather than an error)
    """Ctrl-C during training; the message tells how to go on. No FecError: ``except Exception`` must not swallow it."""


class MissingExtraError(FecError, ImportError):
    """An optional dependency is missing; the message names the command that installs it."""


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """Builds the error for an optional dependency that is not installed.

    Args:
        package: The distribution that could not be imported.
        extra: The extra of fec_fast that brings it.
        purpose: What it is needed for, as the subject of "needs".

    Returns:
        The error, to be raised by the caller.
    """
    return MissingExtraError(f"{purpose} needs {package}: pip install 'fec_fast[{extra}]'")


def nearest(name: str, known: Iterable[str]) -> str:
    """Words a hint at the real names nearest to a wrong one.

    Args:
        name: The name that was not found.
        known: The names that exist.

    Returns:
        A clause such as ``"the nearest names are 'conv1' and 'conv2'"``, or one that lists a few names
        when none is near.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "nearest: " + ", ".join(repr(n) for n in close)
    shown = ", ".join(repr(n) for n in known[:5])
    return f"known: {shown}{', ...' if len(known) > 5 else ''}" if known else "there are none"


def list_some(names: Sequence[str]) -> str:
    """Lists the first names, and how many more there are, for messages.

    Args:
        names: At least one name.

    Returns:
        At most three names, such as ``"a, b, c and 4 more"``.
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

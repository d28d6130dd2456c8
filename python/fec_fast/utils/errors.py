"""Errors of the package, and the parts of messages that several modules word alike.

All errors are :class:`FecError`. Where Python itself would raise ``ValueError``, ``TypeError``, ``RuntimeError`` or
``ImportError``, the class derives from that too, so that callers can handle it without knowing the package.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence

import torch

from .installed_files import is_installed


class FecError(Exception):
    """Base class of all errors of fec_fast."""


class FecWarning(UserWarning):
    """A result that is likely not what the caller wants; the message names it and the remedy."""


class FormulaError(FecError, ValueError):
    """A choice of a formula that does not exist, a number out of range, or choices that cannot be combined."""


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
            message: The layer, the trouble and the remedy.
            layer: The name of the layer that holds the weight, if it is known.
            index: The index of the first element that is NaN or infinite, if there is one.
        """
        super().__init__(message)
        self.layer = layer
        self.index = index


class LayerError(FecError, ValueError):
    """A layer that does not exist, cannot be scored or cannot be pruned."""


class RatioError(FecError, ValueError):
    """A pruning ratio outside [0, 1), or contradictory ratios for coupled layers."""


class BudgetError(FecError, ValueError):
    """A budget without a target, with contradictory targets, or with one that cannot be met."""


class InputError(FecError, ValueError):
    """Example inputs that the model cannot be run on, or data that cannot be used for training."""


class ArgumentError(FecError, TypeError):
    """An argument of the wrong type, or outside the allowed values."""


class PlanError(FecError, ValueError):
    """A plan that is malformed, or that was made for another model."""


class CheckpointError(FecError, ValueError):
    """A checkpoint that is missing, truncated or edited, or that was made for another model."""


class EquivalenceError(FecError, ValueError):
    """A pruned network whose outputs differ from those of the masked original."""


class BackendError(FecError, RuntimeError):
    """A backend that is not built, or cannot run on this machine."""


class TrainingError(FecError, RuntimeError):
    """Training that cannot continue, for instance because the loss is NaN."""


class TrainingInterrupted(KeyboardInterrupt):  # noqa: N818 (not an error, like KeyboardInterrupt)
    """Ctrl-C during training; the message says how to resume.

    It is not a :class:`FecError`, because ``except Exception`` must not catch it.
    """


class MissingExtraError(FecError, ImportError):
    """An optional dependency is missing; the message names the command that installs it."""


def missing_extra(package: str, extra: str, purpose: str, error: Exception | None) -> MissingExtraError:
    """Builds the error for an optional dependency that cannot be imported: it is not installed, hidden, or broken.

    Args:
        package: The distributions that the import needs.
        extra: The extra of fec_fast that installs them.
        purpose: What needs them, the subject of the message's sentence.
        error: What the import raised; ``None`` if it is known to be missing.

    Returns:
        The error, for the caller to raise.
    """
    if isinstance(error, MissingExtraError):  # raised by a script that was imported in the package's place
        return error
    if (file := _users_file(error)) is not None:
        return MissingExtraError(
            f"{purpose} needs {package}, but Python imports {file} in the place of a package: rename that file"
        )
    if error is None or isinstance(error, ModuleNotFoundError):
        return MissingExtraError(f"{purpose} needs {package}: pip install 'fec_fast[{extra}]'")
    names = " ".join(re.split(", | and ", package))
    return MissingExtraError(
        f"{purpose} needs {package}, which cannot be imported with torch {torch.__version__} ({type(error).__name__}: "
        f"{error}): versions may not fit together; pip install --upgrade {names}"
    )


def _users_file(error: Exception | None) -> str | None:
    """The file of the user's that an import which failed has read, if there is one."""
    if error is None:
        return None
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules: list[object] = []
    if isinstance(error, ImportError):
        files.append(error.path or "")
        modules.append(sys.modules.get((error.name or "").partition(".")[0]))
    elif isinstance(error, AttributeError):
        modules.append(error.obj)
    files += [getattr(module, "__file__", None) or "" for module in modules]
    return next((file for file in files if os.path.isfile(file) and not is_installed(file)), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """Hints at the existing names that are nearest to an unknown one, for messages.

    Args:
        name: The unknown name.
        known: The names that exist.

    Returns:
        A clause such as ``"nearest: 'conv1', 'conv2'"``; where none is near, one that lists a few names, such as
        ``"known: 'conv1', 'conv2', ..."``.
    """
    known = list(known)
    # A name may be anything that was given in place of one; a very long text would take very long to compare.
    texts = [text for text in known if isinstance(text, str)]
    close = difflib.get_close_matches(str(name)[:200], texts, n=3, cutoff=0.5)
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

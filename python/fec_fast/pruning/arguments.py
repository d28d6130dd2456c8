"""What is looked at before a model is traced: the arguments, and whether there are weights that can be scored."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..scoring.formula import Formula
from ..utils.errors import ArgumentError
from .criteria import ENTROPY_CRITERIA, Criterion, criterion_name


def check_arguments(
    model: nn.Module, criterion: str | Criterion, formula: Formula | None, sides: str, ignore: Sequence[str]
) -> tuple[str, Formula]:
    """Validates what says how channels are scored.

    Args:
        model: See :func:`fec_fast.prune`, as the others.
        criterion: See there.
        formula: See there.
        sides: See there.
        ignore: See there.

    Returns:
        The criterion's name, and the formula.

    Raises:
        ArgumentError: An argument of the wrong kind.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(ignore, str):
        raise ArgumentError(f"ignore={ignore!r}: give a sequence of names, such as ({ignore!r},)")
    if sides not in ("both", "producer"):
        raise ArgumentError(f"sides={sides!r}: one of 'both', 'producer'")
    if formula is not None and not isinstance(formula, Formula):
        raise ArgumentError(f"formula: expected a fec_fast.Formula, got {type(formula).__name__}")
    if formula is not None and criterion not in ENTROPY_CRITERIA:
        raise ArgumentError(f"formula= belongs to criterion='fec_l1' or 'fec', not to criterion={criterion!r}")
    return criterion_name(criterion), formula or Formula()

"""The registry of operator rules: what one ATen operator does to labels and shapes, and what it costs.

An operator is supported by one entry, in the module of its family (``elementwise``, ``views``, ``reductions``,
``spatial``, ``norms``, ``contractions``, ``recurrent``). An operator without an entry is never guessed. It is tried out
on drawn numbers (:mod:`fec_fast.graph.operator_trial`): if it is shown to act within each channel, its channels can be
removed, otherwise they keep their width; the notes say which. It is called as it is in shape-only runs; torch's own
counter gives its multiply-accumulates. Those that torch tags as pointwise have the rule of element-wise operators
without an entry. An entry saves the time of the trial, and is needed where weights are read, sizes are arguments, or
channels meet in other ways. Operators on parameters alone, which compute weights, come before all others: see
``weights``.

To add an operator:

1. Find its name. The notes of ``fec_fast.couplings(model, inputs)`` have it: that of ``aten.pixel_shuffle.default`` is
   ``"pixel_shuffle"`` here. One from another library bears its namespace, such as ``"torchvision::roi_align"``.
2. If an existing rule does the same (another pooling, another activation), add the name to its ``@operator(...)``, and
   go on with step 6.
3. Otherwise write a function of a :class:`~fec_fast.graph.label_tracker.LabelTracker` and an
   :class:`~fec_fast.graph.operator_call.OperatorCall`, decorated with ``@operator("the_name")``. It reads the labels of
   the operands (``tracker.label_map``) and sets those of every result (``tracker.label_results`` where all results have
   the same, otherwise ``tracker.set_label_map``). Where channels of two operands meet, it unites their labels
   (``tracker.sets.unite``). Where it cannot say what happens to the channels, it calls ``tracker.pin_call``.
4. Set ``zero_when_masked`` to true only if the result is exactly zero at a channel whose input is exactly zero.
5. Optional. ``shape=``: a function of the operator's own arguments that returns zeros of the result's shape, dtype and
   memory format, for operators that take long to compute; it raises :class:`DataDependentError` where a real call would
   fail. ``macs=``: a function of the call that returns its multiply-accumulates, for an operator that torch's counter
   does not know, or is slow to count.
6. Add a small network to tests/unit/graph/test_rules.py: it is pruned, and compared with the original whose removed
   channels are set to zero, so a wrong rule fails there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..label_tracker import LabelTracker
from ..operator_call import OperatorCall
from ..weight_labels import ProductWidths, WeightUse

LabelRule = Callable[[LabelTracker, OperatorCall], WeightUse | ProductWidths | None]
ShapeFunction = Callable[..., Any]
MacsFunction = Callable[[OperatorCall], int]
_Rule = TypeVar("_Rule", bound=LabelRule)


class DataDependentError(Exception):
    """An operator of a shape-only run whose result, or its shape, depends on values, or which has to fail by itself."""


@dataclass(frozen=True, slots=True)
class OperatorRule:
    """What one operator does.

    Attributes:
        labels: Sets the labels of the results. Returns the use of a weight where the operator is a convolution or
            linear operation with a weight of the model, the widths of a product of activations, otherwise ``None``.
        shape: Called with the operator's arguments in shape-only runs, in its place; ``None`` to call the operator.
        macs: Returns the multiply-accumulates of a call; ``None`` for an operator that is not counted.
    """

    labels: LabelRule
    shape: ShapeFunction | None = None
    macs: MacsFunction | None = None


RULES: dict[str, OperatorRule] = {}


def operator(
    *names: str, shape: ShapeFunction | None = None, macs: MacsFunction | None = None
) -> Callable[[_Rule], _Rule]:
    """Registers a function as the label rule of operators.

    Args:
        names: The operators. A name such as ``"add"`` stands for all overloads; its ``shape`` and ``macs`` hold for the
            default overload alone, because others have further arguments. ``"index.Tensor"`` is one overload.
        shape: See :class:`OperatorRule`.
        macs: See :class:`OperatorRule`.

    Returns:
        The decorator; it returns the function as it is.
    """

    def register(labels: _Rule) -> _Rule:
        for name in names:
            assert name not in RULES, f"{name} is registered twice"
            RULES[name] = OperatorRule(labels, shape, macs)
        return labels

    return register

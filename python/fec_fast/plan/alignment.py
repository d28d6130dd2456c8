"""Alignment of the widths of a pruned network: which of them hardware may run slowly."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..utils.compat import ConvolutionBase
from ..utils.model_index import ModelIndex
from .plan import Plan
from .shapes import weight_name

# Tensor cores and the vector units of CPUs process channels eight at a time. Other widths are padded to a multiple of
# eight, or run in a slower kernel.
MULTIPLE = 8


def alignment_notes(index: ModelIndex, plan: Plan) -> list[str]:
    """Names the layers with a width that was a multiple of 8, or at least 8, before pruning and is not afterwards.

    The widths of a layer are its number of output channels and, in a grouped convolution, the input and output channels
    per group. The input channels of other layers are the output channels of the layers before.

    Args:
        index: The index of the model after pruning.
        plan: The plan that was applied.

    Returns:
        At most one note.
    """
    layers_by_change: dict[str, list[str]] = {}
    for name in plan.attributes:
        for width, before, after in _widths(index.modules[name], name, plan):
            if (before % MULTIPLE == 0 and after % MULTIPLE) or before >= MULTIPLE > after:
                layers_by_change.setdefault(f"{before} to {after} {width}", []).append(name)
    if not layers_by_change:
        return []
    changes = "; ".join(f"{change}: {', '.join(names)}" for change, names in layers_by_change.items())
    return [f"no longer a multiple of {MULTIPLE}, or fewer than {MULTIPLE}, which hardware may be slow at: {changes}"]


def _widths(module: nn.Module, name: str, plan: Plan) -> Iterator[tuple[str, int, int]]:
    """Yields each width of a convolution or linear layer: what it counts, before pruning, and after."""
    if not isinstance(module, nn.Linear | ConvolutionBase):
        return  # a batch norm is as wide as the layers that it is coupled to
    weight = weight_name(name, plan.shapes)
    if weight is None:
        return
    old, new = plan.shapes[weight], plan.new_shapes[weight]
    groups = getattr(module, "groups", 1)
    transposed = getattr(module, "transposed", False)
    if groups == 1:
        yield "outputs", old[transposed], new[transposed]
        return
    # A grouped weight is [outputs, inputs per group, ...], transposed [inputs, outputs per group, ...].
    axis_0, axis_1 = ("inputs", "outputs") if transposed else ("outputs", "inputs")
    if not transposed:
        yield "outputs", old[0], new[0]
    yield f"{axis_1} per group", old[1], new[1]
    # Axis 1 is pruned only where every group loses the same positions, so the number of groups has not changed and the
    # width of axis 0 per group can be told from the shape.
    if "1" in plan.keep[weight]:
        yield f"{axis_0} per group", old[0] // groups, new[0] // groups

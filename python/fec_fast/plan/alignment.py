"""Which widths of a pruned network hardware may be slow at."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..utils.compat import ConvolutionBase
from .plan import Plan

# Tensor cores and the vector units of CPUs take channels by eights; other widths are padded to it, or fall back.
STEP = 8


def width_notes(pruned: nn.Module, plan: Plan) -> list[str]:
    """Names the layers with a width that was a multiple of 8, or at least 8, before a plan was applied, and is not now.

    The widths are a layer's output channels and, in a grouped convolution, the input and output channels of a group;
    other input channels are the outputs of the layers before.

    Args:
        pruned: The model after the plan was applied.
        plan: The plan.

    Returns:
        At most one note.
    """
    layers: dict[str, list[str]] = {}
    for name in plan.attributes:
        for what, before, after in _widths(pruned.get_submodule(name), name, plan):
            if (before % STEP == 0 and after % STEP) or before >= STEP > after:
                layers.setdefault(f"{before} to {after} {what}", []).append(name)
    if not layers:
        return []
    listed = "; ".join(f"{change}: {', '.join(names)}" for change, names in layers.items())
    return [f"no longer a multiple of {STEP}, or fewer than {STEP}, which hardware may be slow at: {listed}"]


def _widths(module: nn.Module, name: str, plan: Plan) -> Iterator[tuple[str, int, int]]:
    """Widths of a convolution or linear layer before and after: what it is, then two numbers."""
    if not isinstance(module, nn.Linear | ConvolutionBase):
        return  # a batch norm is as wide as the layers that it is coupled to
    weight = f"{name}.weight" if name else "weight"
    old, new = plan.shapes[weight], plan.new_shapes[weight]
    groups = getattr(module, "groups", 1)
    transposed = getattr(module, "transposed", False)
    if groups == 1:
        yield "outputs", old[transposed], new[transposed]
        return
    across, inside = ("inputs", "outputs") if transposed else ("outputs", "inputs")
    if not transposed:
        yield "outputs", old[0], new[0]
    yield f"{inside} a group", old[1], new[1]
    # Axis 1 is narrowed only where every group loses the same positions, so that the number of groups has not changed.
    if "1" in plan.keep[weight]:
        yield f"{across} a group", old[0] // groups, new[0] // groups

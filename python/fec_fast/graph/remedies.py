"""Remedies: what would let channels go that are kept for a reason. Reasons that lie in the network itself have none."""

from __future__ import annotations

# A part of the reason, and the remedy. The first that fits is taken.
REMEDIES = (
    (
        "a tensor of fixed width",
        "a constant that is made from x.shape, or a parameter of the model, would shrink with it",
    ),
    ("with channels of fixed width", "these are of an input or a constant; those of a layer would shrink with it"),
    (
        "cuts its channels at fixed positions of",
        "sizes computed from x.shape, or held by an attribute of that module and used for nothing else, would follow",
    ),
    ("code wants its width", "a number computed from x.shape, or held by an attribute of that module, would follow"),
    (
        "goes another way with fewer",
        "a comparison with an attribute of that module, used for nothing else, would follow",
    ),
    ("its values leave the model by", "values that stay tensors of torch would be followed"),
    ("its channels outlive the run", "take the hook or the reference away before the call, if nothing reads it"),
    ("the example inputs do not reach it", "give example inputs that do"),
    ("was not reached by the example inputs", "give example inputs that reach it"),
    ("training mode could not be traced", "give example inputs that training mode accepts"),
    ("the model's code writes to", "write to a copy of it"),
    ("is used by an operator other than", "call the layer, or compute with what it returns"),
    ("has an empty result on these inputs", "give larger example inputs"),
    ("mixes channels with other dimensions", "a shape with a dimension for the channels alone would be followed"),
    ("crops channels by a fixed number", "a slice of sizes computed from x.shape would follow"),
    ("is not a parameter of the model", "make it a parameter"),
    ("normalises different channels", "give each of them a norm of its own"),
    ("does not accept fewer channels", "a rule of your own may know more, see fec_fast/graph/rules/registry.py"),
    ("takes a tensor without channels", "a rule of your own may know more, see fec_fast/graph/rules/registry.py"),
)


def with_remedy(reason: str) -> str:
    """A reason with what would help.

    Args:
        reason: Why channels are kept.

    Returns:
        The reason, followed by the remedy if there is one.
    """
    remedy = next((remedy for part, remedy in REMEDIES if part in reason), None)
    return reason if remedy is None else f"{reason}: {remedy}"

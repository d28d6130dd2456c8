"""How channel labels pass through each ATen operator.

An operator without a rule pins what goes into it and what comes out: it is reported, never guessed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import labels as lb
from . import rules_places  # noqa: F401 (registers its rules)
from .contractions import contract_convolution, contract_linear
from .rulebook import RULES, argument, keep, line_of, opaque, rule
from .tracer import Owned, Tracer, tensors_in


def apply_rule(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Gives an operator's results their planes.

    Args:
        tracer: Holds the planes.
        func: The ATen operator.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        out: Its result.
    """
    found = RULES.get(func._schema.name.removeprefix("aten::"))
    tracer.remember(func, args, kwargs)
    with torch.utils._python_dispatch._disable_current_modes():
        if found is not None:
            found(tracer, func, args, kwargs, out)
        elif torch.Tag.pointwise in func.tags:
            pointwise(tracer, func, args, kwargs, out)
        else:
            opaque(tracer, func, args, kwargs, out)


# Element by element -------------------------------------------------------------------------------------------------
# Beside the operators that torch tags: these are untagged in 2.14, those of the last line in 2.6.
@rule(
    *("copy_", "native_dropout", "lerp_", "masked_fill", "masked_fill_"),
    *("hardswish", "hardswish_", "mish_", "relu6_", "threshold_", "_prelu_kernel", "log_sigmoid_forward"),
    *("hardtanh_", "leaky_relu", "leaky_relu_", "elu_", "celu_", "selu_", "hardsigmoid_"),
)
def pointwise(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Unites the channels that meet; a map of one channel that scales many (a gate) is pinned itself."""
    result = next(tensors_in(out), None)
    operands = list(tensors_in((args, kwargs)))
    if result is None or not operands:
        return
    rank = result.dim()
    planes = []
    for operand in operands:
        plane, _ = tracer.plane(operand)
        planes.append(plane.expand([*([1] * (rank - plane.dim())), *plane.shape]) if plane.dim() < rank else plane)
    dims = sorted({dim for plane in planes for dim in lb.varying(plane)})
    if len(dims) > 1:
        opaque(tracer, func, args, kwargs, out, "brings together tensors whose channels lie on different dimensions")
        return
    if not dims:
        merged = lb.FREE
        for plane in planes:
            label = int(plane.reshape(-1)[0]) if plane.numel() else lb.FREE
            tracer.sets.unite(merged, label, f"it meets a tensor of fixed width in {func}")
            merged = label if merged == lb.FREE else merged
        keep(tracer, out, [merged], None, _vanishes(tracer, func, args, kwargs))
        return
    (dim,) = dims
    size = result.shape[dim]
    line = [lb.FREE] * size
    reason = f"it meets a tensor of fixed width in {func}"
    for plane in planes:
        labels = lb.along(plane, dim)
        if dim not in lb.varying(plane) and (plane.shape[dim] == 1 or labels[0] != lb.FIXED):
            tracer.sets.pin(labels, f"its one channel scales many in {func}")
            continue
        tracer.sets.unite_all(line, labels, reason)
        line = [label if known == lb.FREE else known for known, label in zip(line, labels, strict=True)]
    keep(tracer, out, line, dim, _vanishes(tracer, func, args, kwargs))


def _vanishes(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the result is zero wherever the masked operands are, found by computing it."""
    flags = [tracer.plane(tensor)[1] for tensor in tensors_in((args, kwargs))]
    if not any(flags):
        return False

    def stand_in(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        value = 0.0 if tracer.plane(leaf)[1] else 0.7
        return torch.full((1,), value).to(leaf.dtype)

    probe = torch.utils._pytree.tree_map(stand_in, (args, kwargs))
    try:
        result = next(tensors_in(func(*probe[0], **probe[1])))
    except (RuntimeError, StopIteration):
        return False
    return bool((result == 0).all())


# Other views of the same elements -----------------------------------------------------------------------------------
@rule(
    *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "alias"),
    *("detach", "clone", "contiguous", "lift_fresh", "flip", "_to_copy", "_reshape_alias"),
)
def rearrange(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Applies the same rearrangement to the plane."""
    source, name = args[0], func._schema.name.removeprefix("aten::")
    owned = tracer.owned(source)
    if owned is not None and sum(size > 1 for size in source.shape) > 1:
        order = _order(name, args, source.dim())
        if order is not None:
            tracer.own(out, Owned(owned.name, owned.tensor, tuple(owned.axes[dim] for dim in order)))
            return
    plane, vanishes = tracer.plane(source)
    if name in ("clone", "contiguous", "lift_fresh", "_to_copy", "alias", "detach"):
        tracer.put(out, plane, vanishes)
        return
    if name == "_unsafe_view" or name == "view" or name == "_reshape_alias":
        moved = plane.reshape(out.shape)
    else:
        moved = func(plane, *args[1:], **kwargs)
    moved = lb.canonical(moved)
    if len(lb.varying(moved)) > 1:
        opaque(tracer, func, args, kwargs, out, f"splits channels over {[out.shape[d] for d in lb.varying(moved)]}")
        return
    tracer.put(out, moved, vanishes)


def _order(name: str, args: Any, rank: int) -> list[int] | None:
    """The permutation an operator makes of the dimensions of a weight; ``None`` when it is another thing."""
    order = list(range(rank))
    if name == "t":
        return order[::-1]
    if name == "transpose":
        a, b = args[1] % rank, args[2] % rank
        order[a], order[b] = order[b], order[a]
        return order
    if name == "permute":
        return [dim % rank for dim in args[1]]
    if name in ("detach", "alias"):
        return order
    return None


@rule("cat", "stack")
def join(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Concatenates planes; what has no channel of its own becomes fixed where it takes up room."""
    sources = [tensor for tensor in args[0] if tensor.numel() > 0]
    new_dim = func._schema.name == "aten::stack"
    at = (argument(func, args, kwargs, "dim") or 0) % out.dim()
    planes, flags = [], []
    for source in sources:
        plane, vanishes = tracer.plane(source)
        planes.append(plane.unsqueeze(at) if new_dim else plane)
        flags.append(vanishes)
    dims = {dim for plane in planes for dim in lb.varying(plane)}
    if not planes or len(dims | {at}) > 2 or (dims and at in dims and len(dims) > 1):
        opaque(tracer, func, args, kwargs, out, "joins tensors whose channels lie on different dimensions")
        return
    other = next(iter(dims - {at}), None)
    if other is None:
        line = [max(label, lb.FIXED) for plane in planes for label in lb.along(plane, at)]
        tracer.put(out, lb.canonical(lb.spread(line, at, out.shape)), all(flags))
        return
    line = lb.along(planes[0], other)
    for plane in planes[1:]:
        labels = [max(label, lb.FIXED) for label in lb.along(plane, other)]
        tracer.sets.unite_all(line, labels, f"it is joined to a tensor of fixed width in {func}")
    tracer.put(out, lb.spread(line, other, out.shape), all(flags))


# Many elements into one ---------------------------------------------------------------------------------------------
@rule("mean", "sum", "amax", "amin", "linalg_vector_norm", "std", "var", "var_mean", "max", "min", "norm")
def reduce(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Drops dimensions; over the channels, only a sum of terms that vanish is the same without them."""
    source = args[0]
    plane, vanishes = tracer.plane(source)
    given = argument(func, args, kwargs, "dim")
    given = [given] if isinstance(given, int) else given
    reduced = sorted({dim % plane.dim() for dim in given}) if given else list(range(plane.dim()))
    line, dim = line_of(plane)
    name = func._schema.name.removeprefix("aten::")
    if dim is not None and dim in reduced:
        order = argument(func, args, kwargs, "ord")
        if not (vanishes and (name == "sum" or (name == "linalg_vector_norm" and order in (1, 2)))):
            note = f"{func} runs over channels: they keep their width"
            tracer.pin(source, f"{func} runs over all its channels", note)
        line, dim, vanishes = [lb.FREE], None, False
    if dim is not None and not argument(func, args, kwargs, "keepdim"):
        dim -= sum(d < dim for d in reduced)
    keep(tracer, out, line, dim, vanishes and name in ("mean", "sum", "amax", "amin", "linalg_vector_norm"))


@rule("_softmax", "_log_softmax", "cumsum", "sort")
def within(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Relates the elements along one dimension; channels may not be among them."""
    plane, _ = tracer.plane(args[0])
    line, dim = line_of(plane)
    if dim is not None and dim == argument(func, args, kwargs, "dim") % plane.dim():
        opaque(tracer, func, args, kwargs, out, "relates channels to one another")
        return
    keep(tracer, out, line, dim, False)


@rule("native_layer_norm", "native_group_norm")
def normalise(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Statistics over channels change when one is removed."""
    opaque(tracer, func, args, kwargs, out, "takes statistics over channels")


@rule(
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("bernoulli", "bernoulli_", "uniform_", "normal_", "exponential_", "zero_"),
)
def like(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """New numbers in a tensor whose extent follows another's."""
    tracer.put(out, tracer.plane(args[0])[0], func._schema.name in ("aten::zeros_like", "aten::zero_"))


# Weighted sums ------------------------------------------------------------------------------------------------------
@rule("convolution")
def convolution(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """See :func:`fec_fast.contractions.contract_convolution`."""
    if not contract_convolution(tracer, args, out):
        opaque(tracer, func, args, kwargs, out, "has a weight that is not a parameter of the model")


@rule("addmm", "mm")
def linear(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """See :func:`fec_fast.contractions.contract_linear`."""
    bias, source, weight = args if len(args) == 3 else (None, *args)
    plain = not any(kwargs.get(name, 1) != 1 for name in ("alpha", "beta"))
    if not plain or not contract_linear(tracer, bias, source, weight, out):
        opaque(tracer, func, args, kwargs, out, "has a weight that is not a parameter of the model")


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def batch_norm(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Scales each channel by numbers of its own: the parameters and running statistics follow the channel."""
    source = args[0]
    plane, _ = tracer.plane(source)
    per_channel = [tensor for tensor in args[1:5] if isinstance(tensor, Tensor)]
    if lb.varying(plane) not in ([], [1]) or any(tracer.owned(tensor) is None for tensor in per_channel):
        opaque(tracer, func, args, kwargs, out, "normalises something else than the model's own channels")
        return
    line = [max(label, lb.FIXED) for label in lb.along(plane, 1)]
    for tensor in per_channel:
        owned = tracer.owned(tensor)
        assert owned is not None
        tracer.axis(owned, 0, line, f"{owned.name} also serves a tensor of fixed width")
    result = next(tensors_in(out))
    affine = isinstance(args[1], Tensor) and isinstance(args[2], Tensor)
    tracer.put(result, lb.canonical(lb.spread(line, 1, result.shape)), affine)

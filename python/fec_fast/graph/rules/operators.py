"""How channel labels pass through each ATen operator.

An operator without a rule pins what goes into it and what comes out: it is reported, never guessed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...utils.compat import tree_map, without_dispatch_modes
from .. import labels as lb
from ..dispatch_mode import Owned, Tracer, operands_of
from . import spatial as rules_places  # noqa: F401 (registers its rules)
from .contractions import contract_convolution, contract_linear
from .registry import RULES, argument, keep, moved, name_of, opaque, results, rule


def apply_rule(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Gives an operator's results their planes.

    Args:
        tracer: Holds the planes.
        func: The ATen operator.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        out: Its result.
    """
    operands = operands_of(args, kwargs)
    tracer.remember(func, operands)
    if not operands:  # a new tensor: nothing to follow
        return
    found = RULES.get(name_of(func))
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
    result = next(iter(results(out)), None)
    operands = operands_of(args, kwargs)
    if result is None or not operands:
        return
    shape, rank = tuple(result.shape), result.dim()
    known = [tracer.plane(operand) for operand in operands]
    vanishes = _vanishes(tracer, func, args, kwargs, known)
    planes = [plane for plane, _ in known]
    if all(plane is planes[0] for plane in planes) and planes[0].shape == shape:
        tracer.put(result, planes[0], vanishes)
        return
    # Dimensions are counted from the last, as broadcasting does.
    dims = {plane.dim + rank - len(plane.shape) for plane in planes if plane.dim is not None}
    if len(dims) > 1:
        opaque(tracer, func, args, kwargs, out, "brings together tensors whose channels lie on different dimensions")
        return
    dim = next(iter(dims), None)
    reason = f"it meets a tensor of fixed width in {func}"
    merged: np.ndarray | None = None
    for plane in planes:
        line = plane.labels
        if dim is not None and plane.dim is None:
            own = dim - rank + len(plane.shape)  # this plane's own number of the dimension
            size = plane.shape[own] if own >= 0 else 1
            if size == 1 or line[0] != lb.FIXED:
                tracer.sets.pin(line, f"its one channel scales many in {func}")
                continue
            line = np.full(size, lb.FIXED)
        if merged is None:
            merged = line
        elif merged is not line:
            tracer.sets.unite(merged, line, reason)
            merged = np.where(merged == lb.FREE, line, merged) if (merged == lb.FREE).any() else merged
    assert merged is not None
    keep(tracer, out, merged, dim, vanishes)


def _vanishes(tracer: Tracer, func: Any, args: Any, kwargs: Any, known: list[tuple[lb.LabelMap, bool]]) -> bool:
    """Whether the result is zero wherever the masked operands are, found by computing it once for numbers like these.

    The answers are kept by operator and plain arguments; a tensor counts as zero or not.
    """
    if not any(vanishes for _, vanishes in known):
        return False
    flags = iter(known)

    def stand_in(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.dtype, next(flags)[1]
        return tuple(map(stand_in, value)) if isinstance(value, list | tuple) else value

    key = (func, tuple(map(stand_in, args)), tuple((name, stand_in(value)) for name, value in kwargs.items()))
    try:
        answer = tracer.vanishing.get(key)
    except TypeError:  # an argument without a hash, such as a generator's state
        return _computed(func, args, kwargs, known)
    if answer is None:
        answer = tracer.vanishing[key] = _computed(func, args, kwargs, known)
    return answer


def _computed(func: Any, args: Any, kwargs: Any, known: list[tuple[lb.LabelMap, bool]]) -> bool:
    flags = iter(known)

    def stand_in(leaf: Any) -> Any:
        return torch.full((1,), 0.0 if next(flags)[1] else 0.7).to(leaf.dtype) if isinstance(leaf, Tensor) else leaf

    with without_dispatch_modes():
        probe = tree_map(stand_in, (args, kwargs))
        try:
            result = results(func(*probe[0], **probe[1]))[0]
        except (RuntimeError, IndexError):
            return False
        return bool((result == 0).all())


# Other views of the same elements -----------------------------------------------------------------------------------
@rule("clone", "contiguous", "lift_fresh", "_to_copy", "alias", "detach")
def same(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Hands the plane on, and the parameter where it is one."""
    owned = tracer.owned(args[0])
    if owned is not None and name_of(func) in ("alias", "detach"):
        tracer.own(out, owned)
        return
    tracer.put(out, *tracer.plane(args[0]))


@rule(
    *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "flip"),
    "_reshape_alias",
)
def rearrange(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Applies the same rearrangement to the plane."""
    source, name = args[0], name_of(func)
    order = _order(name, args, source.dim())
    owned = tracer.owned(source)
    if owned is not None and order is not None and sum(size > 1 for size in source.shape) > 1:
        tracer.own(out, Owned(owned.name, owned.tensor, tuple(owned.axes[dim] for dim in order)))
        return
    plane, vanishes = tracer.plane(source)
    viewed = name in ("view", "_unsafe_view", "reshape", "_reshape_alias")
    at = _same_place(plane, tuple(out.shape)) if viewed else None
    if plane.dim is None or at is not None:
        keep(tracer, out, plane.labels, at, vanishes)
        return
    if order is not None:
        keep(tracer, out, plane.labels, order.index(plane.dim), vanishes)
        return
    there = moved(plane, torch.reshape, out.shape) if viewed else moved(plane, func, *args[1:], **kwargs)
    if isinstance(there, list):
        opaque(tracer, func, args, kwargs, out, f"splits channels over {[out.shape[dim] for dim in there]}")
        return
    tracer.put(out, there, vanishes)


def _same_place(plane: lb.LabelMap, shape: tuple[int, ...]) -> int | None:
    """The dimension of a reshaped tensor that has the channels as they were, if one has."""
    if plane.dim is None:
        return None
    before, size = math.prod(plane.shape[: plane.dim]), plane.shape[plane.dim]
    for dim, now in enumerate(shape):
        if now == size and before > 0 and math.prod(shape[:dim]) == before:
            return dim
    return None


def _order(name: str, args: Any, rank: int) -> list[int] | None:
    """The permutation an operator makes of the dimensions; ``None`` when it is another thing."""
    order = list(range(rank))
    if name == "t":
        return order[::-1]
    if name == "transpose":
        a, b = args[1] % rank, args[2] % rank
        order[a], order[b] = order[b], order[a]
        return order
    if name == "permute":
        return [dim % rank for dim in args[1]]
    return None


@rule("cat", "stack")
def join(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Concatenates planes; what has no channel of its own becomes fixed where it takes up room."""
    sources = [tensor for tensor in args[0] if tensor.numel() > 0]
    new_dim = name_of(func) == "stack"
    at = (argument(func, args, kwargs, "dim") or 0) % out.dim()
    known = [tracer.plane(source) for source in sources]
    vanishes = all(flag for _, flag in known)
    planes = [_with_new(plane, at) if new_dim else plane for plane, _ in known]
    others = {plane.dim for plane in planes if plane.dim not in (None, at)}
    if not planes or len(others) > 1 or (others and any(plane.dim == at for plane in planes)):
        opaque(tracer, func, args, kwargs, out, "joins tensors whose channels lie on different dimensions")
        return
    if not others:
        line = np.concatenate([lb.free_as_fixed(plane.along(at)) for plane in planes])
        tracer.put(out, lb.LabelMap.compact(line, at, out.shape), vanishes)
        return
    (other,) = (dim for dim in others if dim is not None)
    line = lb.free_as_fixed(planes[0].along(other))
    for plane in planes[1:]:
        there = lb.free_as_fixed(plane.along(other))
        tracer.sets.unite(line, there, f"it is joined to a tensor of fixed width in {func}")
    tracer.put(out, lb.LabelMap.varying(line, other, out.shape), vanishes)


def _with_new(plane: lb.LabelMap, at: int) -> lb.LabelMap:
    """A plane with another dimension, of size 1."""
    dim = plane.dim if plane.dim is None or plane.dim < at else plane.dim + 1
    return lb.LabelMap((*plane.shape[:at], 1, *plane.shape[at:]), dim, plane.labels)


# Many elements into one ---------------------------------------------------------------------------------------------
@rule("mean", "sum", "amax", "amin", "linalg_vector_norm", "std", "var", "var_mean", "max", "min", "norm")
def reduce(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Drops dimensions; over the channels, only a sum of terms that vanish is the same without them."""
    source = args[0]
    plane, vanishes = tracer.plane(source)
    given = argument(func, args, kwargs, "dim")
    given = [given] if isinstance(given, int) else given
    rank = source.dim()
    reduced = sorted({dim % rank for dim in given}) if given else list(range(rank))
    line, dim, name = plane.labels, plane.dim, name_of(func)
    if dim is not None and dim in reduced:
        order = argument(func, args, kwargs, "ord")
        if not (vanishes and (name == "sum" or (name == "linalg_vector_norm" and order in (1, 2)))):
            note = f"{func} runs over channels: they keep their width"
            tracer.pin(source, f"{func} runs over all its channels", note)
        line, dim, vanishes = np.array([lb.FREE]), None, False
    if dim is not None and not argument(func, args, kwargs, "keepdim"):
        dim -= sum(d < dim for d in reduced)
    keep(tracer, out, line, dim, vanishes and name in ("mean", "sum", "amax", "amin", "linalg_vector_norm"))


@rule("_softmax", "_log_softmax", "cumsum", "sort")
def within(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Relates the elements along one dimension; channels may not be among them."""
    plane, _ = tracer.plane(args[0])
    if plane.dim is not None and plane.dim == argument(func, args, kwargs, "dim") % args[0].dim():
        opaque(tracer, func, args, kwargs, out, "relates channels to one another")
        return
    keep(tracer, out, plane.labels, plane.dim, False)


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
    tracer.put(out, tracer.plane(args[0])[0], name_of(func) in ("zeros_like", "zero_"))


# Weighted sums ------------------------------------------------------------------------------------------------------
@rule("convolution")
def convolution(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """See :func:`fec_fast.graph.rules.contractions.contract_convolution`."""
    if not contract_convolution(tracer, args, out):
        opaque(tracer, func, args, kwargs, out, "has a weight that is not a parameter of the model")


@rule("addmm", "mm")
def linear(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """See :func:`fec_fast.graph.rules.contractions.contract_linear`."""
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
    if plane.dim not in (None, 1) or any(tracer.owned(tensor) is None for tensor in per_channel):
        opaque(tracer, func, args, kwargs, out, "normalises something else than the model's own channels")
        return
    line = lb.free_as_fixed(plane.along(1))
    for tensor in per_channel:
        owned = tracer.owned(tensor)
        assert owned is not None
        tracer.axis(owned, 0, line, f"{owned.name} also serves a tensor of fixed width")
    affine = isinstance(args[1], Tensor) and isinstance(args[2], Tensor)
    tracer.put(out[0], lb.LabelMap.compact(line, 1, out[0].shape), affine)

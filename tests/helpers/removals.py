"""Networks with weights that are hard to rank, and what is removed from them, decided under different circumstances."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fec_fast.pruning import context, unit_entropies
from fec_fast.pruning.allocation.allocate import AllocationRequest, Measurements
from fec_fast.pruning.allocation.budget import Budget
from fec_fast.pruning.plan_builder import lowest_units
from fec_fast.scoring import ops, reference
from fec_fast.scoring.backends import triton
from fec_fast.scoring.formula import Formula
from helpers.networks import Blocks, SharedWeight

KINDS = ("normal", "few values", "equal", "copies", "near copies", "offset", "sparse", "sizes")
Entropies = Callable[..., list[Tensor]]


class Case(NamedTuple):
    """A network and a request to prune it.

    Attributes:
        network: The network.
        inputs: Its example inputs.
        criterion: The name of a criterion that looks at weights.
        formula: Of the entropies, where the criterion has them.
        sides: ``"both"`` or ``"producer"``.
        request: How much is removed, and from where.
    """

    network: nn.Module
    inputs: Tensor
    criterion: str
    formula: Formula | None
    sides: str
    request: AllocationRequest


class Wide(nn.Module):
    """A layer whose filters are compared in parts, and one of few channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, width, 1), nn.Conv2d(width, 5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).mean((2, 3)))


def drawn_case(seed: int) -> Case:
    """Draws a case; the same one for the same seed, in every process."""
    pick = random.Random(seed)
    torch.manual_seed(seed)
    network: nn.Module = pick.choice(
        [
            lambda: Blocks(pick.randint(2, 24), pick.randint(2, 12), pick.randint(1, 4), pick.randint(1, 4)),
            lambda: Blocks(pick.randint(2, 24), pick.randint(2, 12), 2, pick.randint(1, 4), extra=3),
            SharedWeight,
            lambda: Wide(pick.choice([40, 257, 300])),
        ]
    )()
    dtype = pick.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64])
    # Down to subnormal numbers, and up to the largest.
    powers = {torch.float16: [0, 0, -8, -18], torch.float64: [0, -300, 300]}.get(dtype, [0, 0, -40, -130, 40, 125])
    # One kind for all layers at times: then whole layers are alike, too.
    kinds = pick.choice([KINDS, (pick.choice(KINDS),)])
    network, most = network.to(dtype).eval(), torch.finfo(dtype).max
    with torch.no_grad():
        for parameter in network.parameters():
            values = _values(parameter.double(), pick.choice(kinds)) * 2.0 ** pick.choice(powers)
            parameter.copy_(values.clamp(-most, most))
    words: Any = [
        ("rms", "absmean", "mean", "none"),
        ("similarity", "similarity", "softmax", "distance"),
        ("channels", "filters", "filters", "both"),
    ]
    formula = Formula(*[pick.choice(word) for word in words], None, pick.choice([1.0, 1.0, 0.5]))
    if pick.random() < 0.5:
        request = AllocationRequest(ratio=pick.choice([0.25, 0.5, pick.random() * 0.9]))
    else:
        budget = Budget(**{pick.choice(["params", "macs"]): 0.1 + pick.random() * 0.3})
        request = AllocationRequest(budget=budget, ratios=pick.choice(["uniform", "entropy", "global"]))
    criterion = pick.choice(["fec_l1", "fec_l1", "fec", "l1", "l2", "fpgm"])
    inputs, sides = torch.zeros(1, 3, 8, 8, dtype=dtype), pick.choice(["both", "producer"])
    return Case(network, inputs, criterion, formula if criterion.startswith("fec") else None, sides, request)


def _values(parameter: Tensor, kind: str) -> Tensor:
    """Random values in the shape of a parameter; most kinds have filters whose scores are mathematically equal."""
    values = torch.randn(parameter.shape, dtype=torch.float64)
    if kind == "few values":
        return values.round()
    if kind == "equal":
        return torch.full_like(values, 0.1)
    if kind in ("copies", "near copies"):
        values = values[torch.randint(0, max(1, len(values) // 3), (len(values),))]
        return values if kind == "copies" else values + 1e-6 * torch.randn(values.shape)
    if kind == "offset":
        return values + 100
    if kind == "sparse":
        return values * (values > 1)
    if kind == "sizes":
        return values * 10.0 ** torch.linspace(-12, 0, len(values)).view(-1, *[1] * (values.dim() - 1))
    return values


class Decision(NamedTuple):
    """What is removed, and what would be if it were more or less.

    Attributes:
        removed: For each coupled set the positions of the units that are removed.
        order: For each coupled set all units, in the order in which they would be removed.
    """

    removed: list[list[int]]
    order: list[list[int]]


def decide(case: Case, entropies: Entropies = ops.entropies, ignore: Sequence[str] = ()) -> Decision:
    """Decides what is removed.

    Args:
        case: The network and the request.
        entropies: Called in place of :func:`fec_fast.scoring.ops.entropies`.
        ignore: Names of layers that keep their channels.
    """
    with _replaced(entropies):
        scored = _context(case, ignore)
        counts, _ = case.request.removal_counts(scored, Measurements())
        order = [scores.numpy().argsort(kind="stable").tolist() for scores in scored.scores]
        return Decision(lowest_units(scored.scores, counts), order)


def layers_outside_of_first_set(case: Case) -> list[str]:
    """The layers that can lose channels, and do not belong to the first coupled set."""
    first, *others = _context(case, ()).coupling.sets
    return sorted({layer for coupled in others for layer in coupled.layers} - set(first.layers))


def _context(case: Case, ignore: Sequence[str]) -> context.PruningContext:
    return context.build_context(case.network, case.inputs, case.criterion, case.formula, case.sides, ignore)


@contextlib.contextmanager
def _replaced(entropies: Entropies) -> Iterator[None]:
    """Lets the scoring of units call another function for the entropies."""
    used = unit_entropies.ops
    unit_entropies.ops = SimpleNamespace(entropies=entropies)  # type: ignore[assignment]
    try:
        yield
    finally:
        unit_entropies.ops = used


def one_by_one(weights: list[Tensor], formula: Formula, *, axes: Any, groups: Any, **options: Any) -> list[Tensor]:
    """The entropies of weights in a call for each, the last one first."""
    options.pop("names")
    results = [
        ops.entropies([weight], formula, axes=[axis], groups=[group], **options)[0]
        for weight, axis, group in reversed(list(zip(weights, axes, groups, strict=True)))
    ]
    return results[::-1]


def by_reference(weights: list[Tensor], formula: Formula, *, axes: Any, groups: Any, **_: Any) -> list[Tensor]:
    """The entropies by the reference, in torch."""
    return [
        reference.entropy(weight, formula, axis=axis, groups=group)
        for weight, axis, group in zip(weights, axes, groups, strict=True)
    ]


def by_triton(weights: list[Tensor], formula: Formula, *, axes: Any, groups: Any, **_: Any) -> list[Tensor]:
    """The entropies by Triton's kernels, in its interpreter, one part of the formula after the other."""
    wide = [weight.detach().double() for weight in weights]
    return triton.entropies(wide, formula, axes=axes, groups=groups) if wide else []

"""Readers: which operators read a layer's output, on its way through a batch norm and a sum to an activation."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from ..utils.compat import version_of
from ..utils.forward import tensors_in

_RELU = {functional.relu, functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_ADD = {torch.add, Tensor.add, Tensor.add_}

Arguments = Mapping[int | str, Any]


@dataclass(eq=False)
class Reader:
    """What reads one output of a layer.

    Attributes:
        sample: Returns ``[rows, kept outputs]`` of a tensor of the output's shape.
        norm: The name of the running mean of the batch norm in evaluation mode that reads the output.
        scale: ``[channels]``: what that batch norm multiplies by.
        shift: ``[channels]``: what it adds then.
        addend: ``[rows, kept outputs]``: what is added to the output, or to the norm's result.
        addend_made_at: Where in the run it was made, see ``LayerCallMode.path``; ``None`` for an input.
        interval: Where the activation is not constant that reads the output, the norm's result or the sum.
        reads: How many operators read the output (``"output"``), the norm's result (``"norm"``), the sum (``"sum"``).
    """

    sample: Callable[[Tensor], Tensor | None]
    norm: str | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    addend: Tensor | None = None
    addend_made_at: int | None = None
    interval: tuple[float, float] | None = None
    reads: Counter[str] = field(default_factory=Counter)

    @property
    def is_chain(self) -> bool:
        """Whether nothing else sees the layer's output: each result on the way to what is known last is read once."""
        last = "sum" if self.interval is None and self.addend is not None else None
        return all(number == 1 for stage, number in self.reads.items() if stage != last)

    @property
    def feeds_norm_only(self) -> bool:
        """Whether a batch norm with running statistics is all that reads the output."""
        return self.norm is not None and self.reads["output"] == 1


@dataclass(frozen=True)
class _Step:
    """A reader that is not complete, the layer it belongs to, and how far its tensor has come."""

    reader: Reader
    layer: str
    stage: str


class ReaderTracker:
    """Follows layers' outputs through a run."""

    def __init__(self, names: Mapping[int, str]) -> None:
        """Starts a run.

        Args:
            names: The names of the model's tensors, by identity.
        """
        self.layers_of_norm: dict[str, set[str | None]] = defaultdict(set)
        self._names = names
        # For each tensor on the way from layers' outputs: who follows it. Weak, because a run's results are released.
        self._on_the_way: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._made_at: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._addends: dict[int, tuple[Tensor, int | None]] = {}

    def made(self, result: Any, path: int) -> None:
        """Notes where in the run tensors were made.

        Args:
            result: What a function returned.
            path: See ``LayerCallMode.path``.
        """
        for tensor in tensors_in(result):
            self._made_at[tensor] = path, version_of(tensor)

    def follow(self, output: Tensor, layer: str, reader: Reader) -> None:
        """Begins with a layer's output.

        Args:
            output: The tensor that the model goes on with.
            layer: The name of the layer's weight.
            reader: Is filled in.
        """
        self._on_the_way[output] = [_Step(reader, layer, "output")]

    def read(self, values: Any) -> None:
        """Notes that something that is not understood further reads tensors.

        Args:
            values: Tensors, nested.
        """
        for tensor in tensors_in(values):
            for step in self._steps(tensor):
                step.reader.reads[step.stage] += 1

    def before(self, function: Callable[..., Any], arguments: Arguments) -> None:
        """Is called before a function runs: an addend must be read before the sum is written in its place.

        Args:
            function: The function.
            arguments: Its arguments.
        """
        self._addends = {}
        if function in _ADD and arguments.get("alpha", 1) == 1:
            operands = arguments.get(0, arguments.get("input")), arguments.get(1, arguments.get("other"))
            for one, other in (operands, operands[::-1]):
                for step in self._steps(one):
                    if isinstance(other, Tensor) and step.stage != "sum" and not step.reader.reads[step.stage]:
                        rows = step.reader.sample(other)
                        if rows is not None and one is not other:
                            path, version = self._made_at.get(other, (None, 0))  # type: ignore[no-untyped-call]
                            made_at = path if version == version_of(other) else None  # it may be written to by a view
                            self._addends[id(step.reader)] = rows, made_at

    def after(self, function: Callable[..., Any], arguments: Arguments, result: Any) -> None:
        """Is called with what a function returned.

        Args:
            function: The function.
            arguments: Its arguments.
            result: What it returned.
        """
        results = list(tensors_in(result))
        if not results:
            return  # a question about the tensor, such as its shape
        norm = self._norm(arguments) if function is functional.batch_norm else None
        interval = _interval(function, arguments)
        if norm is not None:
            steps = self._steps(arguments.get(0, arguments.get("input")))
            self.layers_of_norm[norm].add(steps[0].layer if steps and steps[0].stage == "output" else None)
        following: list[_Step] = []
        for tensor in tensors_in(list(arguments.values())):
            for step in self._steps(tensor):
                reader = step.reader
                reader.reads[step.stage] += 1
                if norm is not None and step.stage == "output":
                    reader.norm = norm
                    reader.scale, reader.shift = _affine(arguments)
                    following.append(_Step(reader, step.layer, "norm"))
                elif interval is not None:
                    reader.interval = interval
                elif id(reader) in self._addends:
                    reader.addend, reader.addend_made_at = self._addends[id(reader)]
                    following.append(_Step(reader, step.layer, "sum"))
            if any(tensor is one for one in results):  # in place: the tensor has another value from now on
                self._on_the_way.pop(tensor, None)  # type: ignore[no-untyped-call]
        if following:
            self._on_the_way[results[0]] = following

    def _steps(self, tensor: Any) -> list[_Step]:
        if not isinstance(tensor, Tensor):
            return []
        steps: list[_Step] = self._on_the_way.get(tensor, [])  # type: ignore[no-untyped-call]
        return steps

    def _norm(self, arguments: Arguments) -> str | None:
        """The name of the running mean, for a batch norm that uses one."""
        mean = arguments.get(1, arguments.get("running_mean"))
        training = arguments.get(5, arguments.get("training", False))
        return None if training or mean is None else self._names.get(id(mean))


def _interval(function: Callable[..., Any], arguments: Arguments) -> tuple[float, float] | None:
    """Where an activation is not constant; ``None`` for other functions."""
    if function in _RELU:
        return 0.0, math.inf
    if function is functional.relu6:
        return 0.0, 6.0
    if function is functional.hardtanh:
        low, high = arguments.get(1, arguments.get("min_val", -1.0)), arguments.get(2, arguments.get("max_val", 1.0))
    elif function in (torch.clamp, Tensor.clamp, Tensor.clamp_):
        low, high = arguments.get(1, arguments.get("min")), arguments.get(2, arguments.get("max"))
    else:
        return None
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    return None if isinstance(low, Tensor) or isinstance(high, Tensor) else (float(low), float(high))


def _affine(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Scale and shift of a call of ``torch.nn.functional.batch_norm`` in evaluation mode, ``[channels]``."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = {name: arguments.get(position, arguments.get(name)) for position, name in enumerate(names)}
    mean, variance, weight, bias = (given[name] for name in ("running_mean", "running_var", "weight", "bias"))
    scale = (variance + (1e-5 if given["eps"] is None else given["eps"])).rsqrt()
    scale = scale if weight is None else scale * weight
    return scale, (0 if bias is None else bias) - mean * scale

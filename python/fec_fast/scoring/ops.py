"""The operator ``fec_fast::entropy``, for tensors on any device, and the function in front of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, get_type_hints

import torch
from torch import Tensor

from ..utils.errors import ArgumentError, BackendError, WeightError, nearest
from ..utils.user_warnings import warn_user
from ..utils.weights import first_not_finite
from .backends import cpu, cuda, torch_operators, triton
from .backends.layout import algorithm_for, filter_count
from .backends.registry import ResolvedBackend, backends, resolve
from .formula import Formula
from .gpu_check import cross_check
from .weight_checks import check_algorithm, check_filters, check_lengths, check_weight, label_of

_ON_PROCESSOR = ("cpu", "torch")  # backends that read weights in the processor's memory


class NonFiniteWeightError(WeightError):
    """A weight with a NaN or an infinity.

    Attributes:
        position: The weight's position in the list of weights.
    """

    def __init__(
        self, message: str, *, layer: str | None = None, index: tuple[int, ...] | None = None, position: int = 0
    ) -> None:
        """Stores where the element is.

        Args:
            message: The weight, the element and the remedy.
            layer: The name of the layer, if it is known.
            index: The index of the element in the weight.
            position: The weight's position in the list of weights.
        """
        super().__init__(message, layer=layer, index=index)
        self.position = position


def entropies(
    weights: Sequence[Tensor],
    formula: Formula,
    *,
    axes: Sequence[int],
    groups: Sequence[int],
    names: Sequence[str] | None = None,
    algorithm: str = "auto",
    backend: str | ResolvedBackend = "auto",
    in_float64: bool = False,
) -> list[Tensor]:
    """Computes the entropy of every filter of every weight, in one call of the extension.

    Args:
        weights: ``[N, C/groups, *kernel]`` each, float16, bfloat16, float32 or float64, on any devices and with any
            strides; the weights of convolutions or linear layers. They are read, never changed. The weight of a
            transposed convolution, ``[C, N/groups, *kernel]``, is given with axis 1.
        formula: What to compute.
        axes: For each weight the axis its filters lie on. 0: filter ``i`` is ``weight[i]``. 1: filter
            ``q * weight.shape[1] + l`` is ``weight[q*n:(q+1)*n, l]`` with ``n = weight.shape[0] // groups``.
        groups: For each weight the groups of its layer.
        names: For each weight the name of its layer, for error messages; without names, positions are given.
        algorithm: ``"sorted"`` (channel axis, one number per channel; on a GPU not for the distance entropy),
            ``"pairwise"``, or ``"auto"``: sorted wherever that is possible.
        backend: A backend's name, ``"auto"``, or what :func:`fec_fast.scoring.backends.registry.resolve` returned,
            which is not looked up again. ``"cpu"`` and ``"torch"`` score weights on other devices by copies, with a
            warning.
        in_float64: Whether to compute in float64, whatever the dtype of the weights. Backends, instruction sets and
            devices then agree to some ``1e-13`` nats, so that they rank filters alike.

    Returns:
        For each weight a float64 CPU tensor ``[filters]`` in nats; an empty one for a weight without filters.

    Raises:
        NonFiniteWeightError: A weight has a NaN or an infinity; the first one is named.
        WeightError: A weight that cannot be read: on the meta device, sparse, quantised, an integer, fewer than two
            dimensions, or not divisible into its groups. ``layer`` is its name, if names were given.
        FormulaError: An unknown algorithm, or ``"sorted"`` for a formula or a weight that it does not support.
        BackendError: An unknown backend, one that cannot run here, or weights that are on the CPU, where it does not
            run. Or a GPU's kernels that are wrong (:mod:`fec_fast.scoring.gpu_check`).
        ArgumentError: Lists of different lengths, or something that is not a tensor.
    """
    if backend != "auto":  # an unknown or unusable backend is reported before anything about the weights
        backend = resolve(backend)
    check_lengths(weights, axes, groups)
    if names is not None and len(names) != len(weights):
        raise ArgumentError(f"{len(weights)} weights and {len(names)} names; give as many of each")
    check_algorithm(algorithm)
    for i, (weight, axis, group) in enumerate(zip(weights, axes, groups, strict=True)):
        check_weight(weight, axis, group, label_of(names, i), None if names is None else names[i], may_be_empty=True)
        if algorithm == "sorted":
            algorithm_for(algorithm, formula, weight, axis, group, index=i)
    if not weights:  # an operator without a tensor has no device to be dispatched by
        return []
    used = resolve(backend, device_type(weights))
    return entropies_of_checked(list(weights), formula, axes, groups, names, algorithm, used, in_float64)


def entropies_of_checked(
    weights: list[Tensor],
    formula: Formula,
    axes: Sequence[int],
    groups: Sequence[int],
    names: Sequence[str] | None,
    algorithm: str,
    backend: ResolvedBackend,
    in_float64: bool = False,
) -> list[Tensor]:
    """Does what :func:`entropies` does, for weights that are known to be readable; at least one."""
    first = weights[0].device
    if backend.name not in _ON_PROCESSOR and any(weight.device != first for weight in weights):
        return _by_device(weights, formula, axes, groups, names, algorithm, backend, in_float64)
    if in_float64 and backend.name not in _ON_PROCESSOR:  # a GPU's kernels compute in the dtype of the weights
        weights = [weight.detach().double() for weight in weights]
    call = _Arguments(
        weights,
        list(axes),
        list(groups),
        formula.compress,
        formula.entropy,
        formula.axis,
        formula.tau,
        formula.tau_scale,
        algorithm,
        backend.name,
    )
    try:
        # Not through the dispatcher: it would hand over the results weight by weight, and they are looked at together.
        if backend.name in _ON_PROCESSOR:
            if not all(weight.is_cpu for weight in weights):
                call = replace(call, weights=_on_cpu(weights, backend.requested))
            return _on_processor(call, apart=False, in_float64=in_float64)
        _check_devices(call.weights, backend.name)
        results = _fetched(call.weights, *_on_device(call), backend.name)
        on_cpu = functools.partial(_one_on_cpu, call)
        cross_check(weights, results, formula, axes, groups, algorithm, backend.name, on_cpu)
        return results
    except NonFiniteWeightError as error:
        if names is None:
            raise
        raise _not_finite(call.weights, error.position, names) from error


def device_type(weights: Sequence[Tensor]) -> str:
    """The type of the devices that a backend is chosen for: where a model is spread over several, that of a GPU."""
    return next((weight.device.type for weight in weights if not weight.is_cpu), "cpu")


def _by_device(
    weights: list[Tensor],
    formula: Formula,
    axes: Sequence[int],
    groups: Sequence[int],
    names: Sequence[str] | None,
    algorithm: str,
    backend: ResolvedBackend,
    in_float64: bool,
) -> list[Tensor]:
    """The entropies of weights on several devices: one call for each device, where the weights are."""
    if backend.requested != "auto":
        _check_devices(weights, backend.name)
    results: dict[int, Tensor] = {}
    for device in dict.fromkeys(weight.device for weight in weights):
        positions = [i for i, weight in enumerate(weights) if weight.device == device]
        # Weights that were left on the CPU are scored there, unless the backend was asked for by name.
        used = resolve("auto", device.type) if backend.requested == "auto" else backend
        try:
            found = entropies_of_checked(
                [weights[i] for i in positions],
                formula,
                [axes[i] for i in positions],
                [groups[i] for i in positions],
                None if names is None else [names[i] for i in positions],
                algorithm,
                used,
                in_float64,
            )
        except NonFiniteWeightError as error:
            raise _not_finite(weights, positions[error.position], names) from error
        results.update(zip(positions, found, strict=True))
    return [results[i] for i in range(len(weights))]


def _one_on_cpu(call: _Arguments, weight: Tensor, axis: int, group: int) -> Tensor:
    """The entropies of one weight on the CPU, for the same formula."""
    return _on_processor(replace(call, weights=[weight], axes=[axis], groups=[group]), apart=False)[0]


def _on_cpu(weights: list[Tensor], requested: str) -> list[Tensor]:
    """Copies weights that are not all on the CPU to it, with a warning."""
    away = sorted({str(weight.device) for weight in weights if weight.device.type != "cpu"})
    reasons = "".join(f"; {name}: {info.reason}" for name, info in backends().items() if name not in _ON_PROCESSOR)
    warn_user(
        f"weights on {', '.join(away)} are copied to the CPU and scored there"
        + (reasons if requested == "auto" else f", as backend={requested!r} asks")
    )
    return [weight.detach().cpu() for weight in weights]


def _check_devices(weights: list[Tensor], backend: str) -> None:
    """Checks that a GPU's backend can read all weights: they are on CUDA devices."""
    for i, weight in enumerate(weights):
        if weight.device.type != "cuda":
            raise BackendError(
                f"weight {i} is on {weight.device}, where the backend {backend!r} does not run; move the model to a "
                "CUDA device, or use backend='cpu'"
            )


def _fetched(weights: Sequence[Tensor], results: Tensor, sizes: Sequence[int], backend: str) -> list[Tensor]:
    """Copies the results of all weights, one after another, to the CPU, and splits them.

    This is the only place that waits for the device, and so the only one that can look at the results: a GPU's kernels
    report a weight that is not finite as NaN in its entropies.
    """
    host = results.cpu()
    by_weight = list(host.split_with_sizes(list(sizes)))
    if not math.isnan(float(host.sum())):  # entropies are finite, so their sum is
        return by_weight
    i = next(i for i, values in enumerate(by_weight) if bool(values.isnan().any()))
    if first_not_finite(weights[i]) is None:
        raise BackendError(f"the backend {backend!r} gave NaN for weight {i}, which is finite: please report it")
    raise _not_finite(weights, i)


def _not_finite(weights: Sequence[Tensor], position: int, names: Sequence[str] | None = None) -> NonFiniteWeightError:
    """The error for a weight that has a NaN or an infinity."""
    index = first_not_finite(weights[position])
    assert index is not None
    element = f"{label_of(names, position)} has {float(weights[position].detach()[index])} at {list(index)}"
    return NonFiniteWeightError(
        f"{element}; scores need finite weights: load a sound checkpoint",
        layer=None if names is None else names[position],
        index=index,
        position=position,
    )


@dataclass(frozen=True)
class _Arguments:
    """The arguments of the operator, declared once: the schema is derived from the fields, and all kernels read them.

    The formula is spelt out, because a schema has no type for it: only tensors, numbers and strings.
    """

    weights: list[Tensor]
    axes: list[int]
    groups: list[int]
    compress: str
    entropy: str
    axis: str
    tau: float | None
    tau_scale: float
    algorithm: str
    backend: str = "auto"

    @property
    def formula(self) -> Formula:
        return Formula(self.compress, self.entropy, self.axis, self.tau, self.tau_scale)  # type: ignore[arg-type]

    @property
    def layout(self) -> dict[str, Any]:
        """The keyword arguments that every backend's ``entropies`` takes beside the weights and the formula."""
        return {"axes": self.axes, "groups": self.groups, "algorithm": self.algorithm}


def _schema() -> str:
    """Derives the operator's schema; torch 2.6 cannot infer one from ``list[...]`` and ``... | None``."""
    types = {
        list[Tensor]: "Tensor[]",
        list[int]: "int[]",
        str: "str",
        float: "float",
        float | None: "float?",
    }
    hints = get_type_hints(_Arguments)
    arguments = [
        f"{types[hints[field.name]]} {field.name}" + ("" if field.default is MISSING else f"={field.default!r}")
        for field in fields(_Arguments)
    ]
    return f"({', '.join(arguments)}) -> Tensor[]"


def _on_processor(call: _Arguments, *, apart: bool, in_float64: bool = False) -> list[Tensor]:
    """The entropies of CPU tensors: the sum of the formula's parts; see :func:`cpu.entropies` for the options."""
    if call.backend == "torch" or not cpu.built():
        compute = functools.partial(torch_operators.entropies, in_float64=in_float64)
    else:
        compute = functools.partial(cpu.entropies, in_float64=in_float64, apart=apart)
    of_parts = []
    for part in call.formula.parts():
        results, first_bad = compute(call.weights, part, **call.layout)
        if first_bad >= 0:
            raise _not_finite(call.weights, first_bad)
        of_parts.append(results)
    return _sum_of_parts(of_parts)


def _on_device(call: _Arguments) -> tuple[Tensor, list[int]]:
    """The entropies of tensors on a GPU, weight after weight on the device, and the number of filters of each weight.

    ``call.backend`` is ``"cuda"`` or ``"triton"``.
    """
    of_parts = []
    sizes: list[int] = []
    for part in call.formula.parts():
        if call.backend == "cuda":
            results, sizes = cuda.queue(call.weights, part, **call.layout)
        else:
            by_weight = triton.entropies([weight.detach() for weight in call.weights], part, **call.layout)
            results, sizes = torch.cat(by_weight), [len(values) for values in by_weight]
        of_parts.append(results)
    return functools.reduce(torch.add, of_parts), sizes


def _sum_of_parts(of_parts: list[list[Tensor]]) -> list[Tensor]:
    """Adds the entropies of the formula's parts, weight by weight."""
    return of_parts[0] if len(of_parts) == 1 else [a + b for a, b in zip(*of_parts, strict=True)]


# Not by torch.library.custom_op: it imports torch._dynamo at the first call of the operator, which takes seconds.
torch.library.define("fec_fast::entropy", _schema(), tags=torch.Tag.pt2_compliant_tag)


@torch.library.impl("fec_fast::entropy", "cpu")
def _(*arguments: Any) -> list[Tensor]:
    """The operator ``torch.ops.fec_fast.entropy``; its arguments are those of ``_Arguments``.

    On the CPU a weight that is not finite is an error. On a CUDA device its entropies are NaN instead: an error would
    have to wait for the device, and then the operator could not be captured in a CUDA graph. Callers of the operator
    look for NaN themselves, as :func:`entropies` does.

    The results of an operator may not share memory: torch.compile relies on it.
    """
    call = _Arguments(*arguments)
    _check_call(call, has_values=True)
    if call.backend not in ("auto", *_ON_PROCESSOR):
        raise BackendError(f"backend={call.backend!r} does not run on CPU tensors; use 'cpu' or 'auto'")
    if not cpu.built():
        resolve(call.backend)
    return _on_processor(call, apart=True)


@torch.library.impl("fec_fast::entropy", "cuda")
def _(*arguments: Any) -> list[Tensor]:
    call = _Arguments(*arguments)
    _check_call(call, has_values=True)
    used = resolve("auto", "cuda").name if call.backend == "auto" else call.backend
    if used not in ("cuda", "triton"):
        reasons = "; ".join(f"{name}: {info.reason}" for name, info in backends().items() if name not in _ON_PROCESSOR)
        raise BackendError(f"nothing can score weights on a CUDA device here ({reasons}); move them to the CPU")
    kernels = functools.partial(cuda.entropies, apart=True) if used == "cuda" else triton.entropies
    return _sum_of_parts([kernels(call.weights, part, **call.layout) for part in call.formula.parts()])


def _check_call(call: _Arguments, *, has_values: bool) -> None:
    """Checks the arguments of the public operator as :func:`entropies` checks its own.

    Args:
        call: The arguments.
        has_values: False where the operator is traced, with weights that have shapes alone.
    """
    check_lengths(call.weights, call.axes, call.groups)
    check_algorithm(call.algorithm)
    if call.backend != "auto" and call.backend not in backends():
        raise BackendError(f"backend={call.backend!r}; {nearest(call.backend, ['auto', *backends()])}")
    _ = call.formula  # its choices are checked as it is made
    for i, (weight, axis, group) in enumerate(zip(call.weights, call.axes, call.groups, strict=True)):
        if has_values:
            check_weight(weight, axis, group, label_of(None, i), None, may_be_empty=True)
        else:
            check_filters(weight, axis, group, label_of(None, i), None)


@torch.library.register_fake("fec_fast::entropy")  # type: ignore[untyped-decorator]
def _(*arguments: Any) -> list[Tensor]:
    call = _Arguments(*arguments)
    _check_call(call, has_values=False)
    return [
        weight.new_empty(filter_count(weight, axis, groups), dtype=torch.float64)
        for weight, axis, groups in zip(call.weights, call.axes, call.groups, strict=True)
    ]

"""The operator ``fec_fast::entropy``: entropies of a list of weights, for tensors on any device."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..utils.errors import ArgumentError, BackendError, FormulaError, WeightError, nearest
from . import reference
from .backends import cpu, cuda, triton
from .backends import layout as rows
from .backends.registry import backends, resolve
from .formula import Formula

ALGORITHMS = ("auto", "sorted", "pairwise")


class NonFiniteWeightError(WeightError):
    """A weight with a NaN or an infinity.

    Attributes:
        layer_index: Its place in the list of weights.
        index: The index of the first such element in the weight.
    """

    def __init__(self, layer_index: int, index: tuple[int, ...], value: float) -> None:
        """Words the error.

        Args:
            layer_index: The weight's place in the list.
            index: The element's index in the weight.
            value: The element.
        """
        super().__init__(f"weight {layer_index} has {value} at {list(index)}")
        self.layer_index = layer_index
        self.index = index
        self.value = value


def entropies(
    weights: Sequence[Tensor],
    formula: Formula,
    *,
    axes: Sequence[int],
    groups: Sequence[int],
    algorithm: str = "auto",
    backend: str = "cpu",
) -> list[Tensor]:
    """Computes the entropy of every filter of every weight, in one call of the extension.

    Args:
        weights: ``[N, C/groups, *kernel]`` each, float16, bfloat16, float32 or float64, on any one device and with
            any strides; convolutions' or linear layers' weights. They are read, never changed. A transposed
            convolution's weight ``[C, N/groups, *kernel]`` is given with axis 1.
        formula: What to compute.
        axes: For each weight the axis its filters lie on. 0: filter ``i`` is ``weight[i]``. 1: filter
            ``q * weight.shape[1] + l`` is ``weight[q*n:(q+1)*n, l]`` with ``n = weight.shape[0] // groups``.
        groups: For each weight the groups of its layer.
        algorithm: ``"sorted"`` (channel axis, one number a channel; on a GPU not for the distance entropy),
            ``"pairwise"``, or ``"auto"``: sorted wherever it can be.
        backend: A backend's name, or ``"auto"``: see
            :func:`fec_fast.scoring.backends.registry.resolve`. ``"cpu"`` scores weights on
            other devices by copies, and says so.

    Returns:
        For each weight a float64 CPU tensor ``[filters]`` in nats.

    Raises:
        NonFiniteWeightError: A weight has a NaN or an infinity; the first one is named.
        WeightError: A weight that cannot be read: on the meta device, sparse, quantised, an integer, fewer than two
            dimensions, or not divisible into its groups. It has ``layer_index`` too.
        FormulaError: An unknown algorithm, or ``"sorted"`` for a formula or a weight that it cannot do.
        BackendError: An unknown backend, one that cannot run here, or weights that are not where it runs: on the CPU,
            or on several devices.
        ArgumentError: Lists of different lengths, or something that is not a tensor.
    """
    if backend != "auto":
        resolve(backend)
    if not len(weights) == len(axes) == len(groups):
        raise ArgumentError(f"{len(weights)} weights, {len(axes)} axes and {len(groups)} groups; give as many of each")
    if algorithm not in ALGORITHMS:
        raise FormulaError(f"algorithm={algorithm!r}; {nearest(algorithm, ALGORITHMS)}")
    for i, (weight, axis, group) in enumerate(zip(weights, axes, groups, strict=True)):
        _check(i, weight, axis, group)
        if algorithm == "sorted":
            _check_sortable(i, weight, formula)
    if not weights:  # an operator without a tensor has no device to be dispatched by
        return []
    used = resolve(backend, weights[0].device.type)
    detached = [weight.detach() for weight in weights]
    if used == "cpu":
        detached = _on_cpu(detached, backend)
    else:
        _check_devices(detached, used)
    results: list[Tensor] = torch.ops.fec_fast.entropy(
        detached,
        list(axes),
        list(groups),
        formula.compress,
        formula.entropy,
        formula.axis,
        formula.tau,
        formula.tau_scale,
        algorithm,
        used,
    )
    return results if used == "cpu" else _fetched(detached, results, used)


def _on_cpu(weights: list[Tensor], asked: str) -> list[Tensor]:
    away = sorted({str(weight.device) for weight in weights if weight.device.type != "cpu"})
    if away:
        reasons = "".join(f"; {name}: {info.reason}" for name, info in backends().items() if name != "cpu")
        warnings.warn(
            f"weights on {', '.join(away)} are copied to the CPU and scored there"
            + (reasons if asked == "auto" else ", as backend='cpu' asks"),
            stacklevel=3,
        )
    return [weight.cpu() for weight in weights]


def _check_devices(weights: list[Tensor], backend: str) -> None:
    devices = [str(weight.device) for weight in weights]
    first = weights[0].device
    for i, weight in enumerate(weights):
        if weight.device.type != "cuda":
            raise BackendError(
                f"weight {i} is on {weight.device}, where the backend {backend!r} does not run; move the model to a "
                f"CUDA device, or use backend='cpu'"
            )
        if weight.device != first:
            raise BackendError(
                f"weight {i} is on {weight.device}, weight 0 on {first}: the backend {backend!r} scores weights of one "
                f"device at a time ({', '.join(sorted(set(devices)))}); move the model to one, or use backend='cpu'"
            )


def _fetched(weights: list[Tensor], results: list[Tensor], backend: str) -> list[Tensor]:
    """The results on the CPU, in one copy: the only place that waits for the device. NaN is a weight not finite."""
    host = list(torch.split(torch.cat(results).cpu(), [len(result) for result in results]))
    for i, entropies_of_one in enumerate(host):
        if not bool(entropies_of_one.isnan().any()):
            continue
        if bool(torch.isfinite(weights[i]).all()):
            raise BackendError(f"the backend {backend!r} gave NaN for weight {i}, which is finite: please report it")
        raise _not_finite(weights, i)
    return host


def _not_finite(weights: list[Tensor], i: int) -> NonFiniteWeightError:
    where = tuple(int(k) for k in (~torch.isfinite(weights[i])).nonzero()[0])
    return NonFiniteWeightError(i, where, float(weights[i][where]))


def channel_distances(weight: Tensor, formula: Formula | None = None, *, filters: slice | None = None) -> Tensor:
    """The matrix of distances itself, to look at or to check.

    Args:
        weight: ``[N, C, *kernel]`` of any floating dtype.
        formula: Its ``compress`` and ``axis`` count; ``None`` compares the channels inside a filter, each by its root
            mean square: ``Formula("rms", axis="channels")``.
        filters: The filters whose distances are wanted, ``None`` for all. All of a large layer may not fit in
            memory: ``8 N C^2`` bytes.

    Returns:
        Float64 on the weight's device, in the units of the weights, for the ``B`` filters chosen: ``[B, C, C]``
        between the channels of each for ``axis="channels"``, ``[B, N]`` to all filters for ``axis="filters"``.

    Raises:
        WeightError: As :func:`entropies` has it for the shape and the dtype.
        ArgumentError: ``filters`` is not a slice, or holds no filter of the weight.
        FormulaError: A formula of both axes: it has two matrices.
    """
    _check(0, weight, 0, 1)
    formula = formula or Formula("rms", axis="channels")
    if formula.axis == "both":
        raise FormulaError("axis='both' has a matrix of either axis: ask for axis='channels' or axis='filters'")
    if filters is not None and not isinstance(filters, slice):
        raise ArgumentError(f"filters={filters!r}: give a slice, as slice(0, 8) for the first eight")
    chosen = slice(None) if filters is None else filters
    if weight.shape[0] and len(range(weight.shape[0])[chosen]) == 0:
        raise ArgumentError(f"filters={filters!r} holds none of the weight's {weight.shape[0]} filters")
    if formula.axis == "filters":
        return reference.distances(weight, formula)[0, chosen]
    return reference.distances(weight[chosen], formula)


def _unreadable(layer_index: int, message: str) -> WeightError:
    error = WeightError(f"weight {layer_index} {message}")
    error.layer_index = layer_index  # type: ignore[attr-defined]
    return error


def _check(i: int, weight: Tensor, axis: int, groups: int) -> None:
    if not isinstance(weight, Tensor):
        raise ArgumentError(f"weight {i} is a {type(weight).__name__}, not a tensor")
    if weight.device.type == "meta":
        raise _unreadable(i, "is on the meta device: it has no values to score")
    if weight.layout != torch.strided:
        raise _unreadable(i, f"is stored as {weight.layout}: give a dense tensor")
    if not rows.supported(weight.dtype):
        raise _unreadable(i, f"is {weight.dtype}: only float16, bfloat16, float32 and float64 can be scored")
    if weight.dim() < 2:
        raise _unreadable(i, f"has shape {list(weight.shape)}: a filter needs channels, so two dimensions or more")
    if axis not in (0, 1):
        raise ArgumentError(f"axis {axis} of weight {i}: 0 or 1")
    if groups < 1 or weight.shape[0] % groups:
        raise _unreadable(i, f"has shape {list(weight.shape)}, which {groups} groups do not divide")


def _check_sortable(i: int, weight: Tensor, formula: Formula) -> None:
    several = formula.compress == "none" and weight.shape[2:].numel() != 1
    if formula.axis != "channels" or several:
        raise FormulaError(
            f"algorithm='sorted' needs the channel axis and one number a channel, not {formula} for weight {i} of "
            f"shape {list(weight.shape)}; use 'auto'"
        )


def _added(of_parts: list[list[Tensor]]) -> list[Tensor]:
    """The entropies of each weight, from those of the formula's parts."""
    return of_parts[0] if len(of_parts) == 1 else [a + b for a, b in zip(*of_parts, strict=True)]


# Spelt out because torch 2.6 cannot infer a schema from annotations with builtin generics.
_SCHEMA = (
    "(Tensor[] weights, int[] axes, int[] groups, str compress, str entropy, str axis, float? tau, float tau_scale, "
    "str algorithm, str backend='auto') -> Tensor[]"
)


@torch.library.custom_op("fec_fast::entropy", mutates_args=(), device_types="cpu", schema=_SCHEMA)
def entropy(
    weights: list[Tensor],
    axes: list[int],
    groups: list[int],
    compress: str,
    entropy: str,
    axis: str,
    tau: float | None,
    tau_scale: float,
    algorithm: str,
    backend: str = "auto",
) -> list[Tensor]:
    """The operator behind :func:`entropies`, with the formula's fields spelt out.

    On the CPU a weight that is not finite is an error. On a CUDA device it is NaN in the entropies of that weight: the
    operator waits for nothing, so that it can be part of a CUDA graph, and whoever reads the entropies has to look.
    """
    formula = Formula(compress, entropy, axis, tau, tau_scale)  # type: ignore[arg-type]

    def of(part: Formula) -> list[Tensor]:
        results, bad = cpu.entropies(weights, part, axes=axes, groups=groups, algorithm=algorithm)
        if bad >= 0:
            raise _not_finite(weights, bad)
        return results

    return _added([of(part) for part in formula.parts()])


@entropy.register_kernel("cuda")
def _(
    weights: list[Tensor],
    axes: list[int],
    groups: list[int],
    compress: str,
    entropy: str,
    axis: str,
    tau: float | None,
    tau_scale: float,
    algorithm: str,
    backend: str = "auto",
) -> list[Tensor]:
    formula = Formula(compress, entropy, axis, tau, tau_scale)  # type: ignore[arg-type]
    used = resolve(backend, "cuda")
    if used == "cpu":
        reasons = "; ".join(f"{name}: {info.reason}" for name, info in backends().items() if name != "cpu")
        raise BackendError(f"nothing can score weights on a CUDA device here ({reasons}); move them to the CPU")
    kernels = cuda.entropies if used == "cuda" else triton.entropies
    return _added([kernels(weights, part, axes=axes, groups=groups, algorithm=algorithm) for part in formula.parts()])


@entropy.register_fake
def _(
    weights: list[Tensor],
    axes: list[int],
    groups: list[int],
    compress: str,
    entropy: str,
    axis: str,
    tau: float | None,
    tau_scale: float,
    algorithm: str,
    backend: str = "auto",
) -> list[Tensor]:
    return [
        weight.new_empty(weight.shape[0] if on == 0 else group * weight.shape[1], dtype=torch.float64)
        for weight, on, group in zip(weights, axes, groups, strict=True)
    ]

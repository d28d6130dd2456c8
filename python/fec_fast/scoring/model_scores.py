"""Scores of a model: ``score_model``, and ``ModelScores``, the entropies of all filters by layer."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import torch
from torch import Tensor, nn

from ..utils.errors import ArgumentError, BackendError, InputError, LayerError, WeightError, nearest
from ..utils.html import html_panel
from ..utils.model_index import checked_modules
from ..utils.public_call import names_checked
from ..utils.reading import check_json_text, parse_json
from ..utils.tensor_files import StoredTensor
from ..utils.text import counted, text_table
from ..utils.weights import plain_copy
from . import ops
from .backends.registry import ResolvedBackend, resolve
from .formula import Formula
from .layers import LayerInfo, attached_weight, described, select
from .sharded_weights import entropies_of_parts, has_whole_filters
from .stored_weights import Files, open_weights
from .weight_checks import check_groups

_FORMAT = "fec_fast.scores"
_VERSION = 1
_Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class _LayerDocument(TypedDict):
    kind: str
    shape: Annotated[list[_Size], msgspec.Meta(min_length=2, max_length=64)]
    axis: Literal[0, 1]
    groups: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    entropies: list[float]


class _Head(TypedDict):
    format: str
    version: int


class _Document(_Head):
    formula: dict[str, str | float | None]
    backend: str
    layers: dict[str, _LayerDocument]
    unscored: dict[str, str]


class ModelScores(Mapping[str, Tensor]):
    """Entropies by layer: a mapping from layer name to a float64 CPU tensor ``[filters]``, in nats.

    Attributes:
        layers: :class:`LayerInfo` of every scored layer, in the order of the model.
        unscored: The layers with filters that have no score, with the reason.
        formula: The formula the entropies were computed with.
        backend: The backend that computed them.
    """

    def __init__(
        self,
        entropies: Mapping[str, Tensor],
        layers: Mapping[str, LayerInfo],
        unscored: Mapping[str, str],
        formula: Formula,
        backend: str,
    ) -> None:
        """Stores the entropies and what they belong to.

        Args:
            entropies: For each layer name, a float64 CPU tensor ``[filters]`` in nats.
            layers: For each of these names, the description of the layer.
            unscored: For each layer without a score, the reason.
            formula: The formula that was used.
            backend: The name of the backend that was used.
        """
        self._entropies = dict(entropies)
        self.layers = dict(layers)
        self.unscored = dict(unscored)
        self.formula = formula
        self.backend = backend

    def __getitem__(self, name: str) -> Tensor:
        """Returns the entropies of one layer.

        Args:
            name: The name of a scored layer.

        Returns:
            A float64 CPU tensor ``[filters]``, in nats.

        Raises:
            KeyError: The layer has no score; the message says why.
        """
        try:
            return self._entropies[name]
        except KeyError:
            if name in self.unscored:
                raise KeyError(f"{name!r} has no score: {self.unscored[name]}") from None
            raise KeyError(f"no layer {name!r}; {nearest(str(name), self._entropies)}") from None

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names of the scored layers, in the order of the model."""
        return iter(self._entropies)

    def __len__(self) -> int:
        """Counts the scored layers."""
        return len(self._entropies)

    def __contains__(self, name: object) -> bool:
        """Tells whether a layer has a score."""
        return name in self._entropies

    def __eq__(self, other: object) -> bool:
        """Tells whether everything is equal, the entropies bit for bit."""
        if not isinstance(other, ModelScores):
            return NotImplemented
        return (
            self.layers == other.layers
            and self.unscored == other.unscored
            and self.formula == other.formula
            and self.backend == other.backend
            and list(self) == list(other)
            and all(torch.equal(self[name], other[name]) for name in self)
        )

    __hash__ = None  # type: ignore[assignment]  # holds tensors, which can change

    def __repr__(self) -> str:
        """Describes the scores in one line; ``str()`` gives the table."""
        filters = counted(sum(map(len, self.values())), "filter")
        return f"<ModelScores: {counted(len(self), 'layer')}, {filters}, {self.backend}>"

    def _repr_html_(self) -> str:
        """For notebooks: one row per layer."""
        rows = []
        for name, values in self.items():
            spread = [f"{number:.4f}" for number in (values.min(), values.mean(), values.max())]
            rows.append((name, "x".join(map(str, self.layers[name].shape)), *spread))
        facts = [f"entropies in nats: {self.formula}"]
        facts += [f"{counted(len(self.unscored), 'layer')} without a score"] if self.unscored else []
        return html_panel(repr(self).strip("<>"), facts, ("layer", "weight", "min", "mean", "max"), rows, "llrrr")

    def __str__(self) -> str:
        """A table with one row per layer: name, kind, weight shape, filters; minimum, mean and maximum in nats."""
        rows = []
        for name, values in self.items():
            info = self.layers[name]
            spread = (f"{number:.4f}" for number in (values.min(), values.mean(), values.max()))
            rows.append((name, info.kind, "x".join(map(str, info.shape)), str(len(values)), *spread))
        lines = [text_table(("layer", "kind", "weight", "filters", "min", "mean", "max"), rows, "lllrrrr")]
        lines.append(f"entropies in nats: {self.formula}; backend {self.backend}")
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.unscored.items():
            by_reason.setdefault(reason, []).append(name)
        lines.extend(f"without a score ({reason}): {', '.join(names)}" for reason, names in by_reason.items())
        return "\n".join(lines)

    def to_rows(self) -> list[dict[str, Any]]:
        """Converts the scores to rows, for a data frame or a CSV file.

        Returns:
            One dictionary per filter: ``layer`` (str), ``filter`` (int), ``entropy`` (float, nats).
        """
        return [
            {"layer": name, "filter": index, "entropy": entropy}
            for name, values in self.items()
            for index, entropy in enumerate(values.tolist())
        ]

    def to_json(self) -> str:
        """Converts the scores to JSON; :meth:`from_json` restores the same, bit for bit.

        Returns:
            The text of a JSON object.
        """
        layers = {
            name: {
                "kind": info.kind,
                "shape": list(info.shape),
                "axis": info.axis,
                "groups": info.groups,
                "entropies": self[name].tolist(),
            }
            for name, info in self.layers.items()
        }
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "formula": self.formula.to_dict(),
            "backend": self.backend,
            "layers": layers,
            "unscored": self.unscored,
        }
        return json.dumps(content, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelScores:
        """Restores scores from JSON.

        Args:
            text: The text that :meth:`to_json` returned, also in UTF-8.

        Returns:
            The scores.

        Raises:
            InputError: The text is not the JSON of scores, has a version that this package does not know, or values
                that no model has.
            FormulaError: Its formula does not exist.
            ArgumentError: ``text`` is not text.
        """
        check_json_text(text)
        head = parse_json(text, _Head, "the JSON of scores", InputError)
        if (head["format"], head["version"]) != (_FORMAT, _VERSION):
            raise InputError(
                f"JSON of format {head['format']!r} version {head['version']!r}; expected {_FORMAT!r} version "
                f"{_VERSION}"
            )
        content = parse_json(text, _Document, "the JSON of scores", InputError)
        layers, entropies = {}, {}
        for name, layer in content["layers"].items():
            info = LayerInfo(layer["kind"], tuple(layer["shape"]), layer["axis"], layer["groups"])
            filters = info.shape[info.axis] * (info.groups if info.axis == 1 else 1)
            if info.shape[0] % info.groups or len(layer["entropies"]) != filters:
                raise InputError(
                    f"the JSON of scores: layer {name!r} of shape {list(info.shape)} with {info.groups} groups has "
                    f"{len(layer['entropies'])} entropies, which does not fit: write it again"
                )
            # An entropy is at most the logarithm of the number of things compared, here of all elements.
            most = math.log(max(1, math.prod(info.shape))) + 1e-6
            if not all(-1e-6 <= value <= most for value in layer["entropies"]):
                raise InputError(
                    f"the JSON of scores: layer {name!r} has an entropy outside 0 to {most:.3g} nats: write it again"
                )
            layers[name], entropies[name] = info, torch.tensor(layer["entropies"], dtype=torch.float64)
        formula = Formula.from_dict(content["formula"])
        return cls(entropies, layers, content["unscored"], formula, content["backend"])


@names_checked
def score_model(
    model: nn.Module,
    *,
    formula: Formula | None = None,
    backend: str = "auto",
    layers: Sequence[str | type[nn.Module]] | None = None,
    weights: Files | None = None,
) -> ModelScores:
    """Computes the entropy of every filter of a model. The model is only read.

    float8 weights (e4m3fn, e5m2) and sharded ones (DTensor, ``fully_shard``) are scored one after another, from copies
    with the same values: beside the model there is the largest of them. Sharded ones are gathered, except by a formula
    of ``axis="channels"`` if they are sharded along their filters: then each process scores the filters that it has,
    within the tolerance of all backends. All processes that have a part have to call this, and get the same scores.

    Args:
        model: The model; it may be wrapped by ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile``, and
            may be on any device.
        formula: The formula of the entropy; ``None`` is ``Formula()``.
        backend: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"torch"`` (torch's operators: slow, needs no
            compiled kernels). A backend that is named is never replaced by another. ``"auto"`` is the CPU for weights
            on the CPU (torch's operators, with one warning, where the CPU's kernels are not installed); for weights on
            a CUDA device it is the CUDA kernels, else those of Triton, else (with a warning that gives the reasons) the
            CPU.
        layers: ``None`` for every convolution, plain or transposed, of one to three dimensions; or a list
            of layer names and module classes, such as ``[nn.Conv2d, nn.Linear, "head"]``.
        weights: ``None`` for the weights that the model has; or a safetensors file of its state dict, or a list of the
            files that share it out. They are then read and scored on the CPU, a tensor at a time, so that the memory
            needed is that of the largest one. The model gives names, kinds and shapes alone and may be on the meta
            device: ``with torch.device("meta"): model = ...``.

    Returns:
        The scores, float64 on the CPU, in nats.

    Raises:
        ArgumentError: The model is not a module, or an argument has the wrong type.
        LayerError: An unknown layer name, a layer that has no filters, or a model with nothing to score.
        WeightError: A weight is NaN or infinite, quantised, sparse, uninitialised, empty, on the meta device, of an
            unsupported dtype, float8 with a scale beside it, or wrapped by ``FullyShardedDataParallel``; or it is not
            in the files, or has another shape there. The message and ``error.layer`` name the layer.
        CheckpointError: A file is missing, damaged, or not in the safetensors format.
        BackendError: The backend does not exist or cannot run here.
    """
    if formula is None:
        formula = Formula()
    elif not isinstance(formula, Formula):
        raise ArgumentError(f"formula={formula!r}: give a fec_fast.Formula")
    model, by_every_name, modules = checked_modules(model)
    # "auto" depends on the device of the weights; a backend that is asked for by name is checked before any work.
    used = None if backend == "auto" else resolve(backend)
    if weights is not None and used is not None and used.name in ("cuda", "triton"):
        raise BackendError(
            f"backend={backend!r}: the weights of a file are scored on the CPU; leave backend= out, or load them into "
            "the model on the GPU and leave weights= out"
        )
    chosen, unscored = select(model, modules, layers)
    with contextlib.nullcontext() if weights is None else open_weights(weights, by_every_name) as stored:
        found: dict[str, Tensor] = {}
        copied: list[str] = []
        in_file: dict[str, StoredTensor] = {}
        taken: dict[str, Any] = found if stored is None else in_file
        infos: dict[str, LayerInfo] = {}
        for name, module in chosen.items():
            kind: Any = type(module)
            weight: Any = attached_weight(name, module, copied) if stored is None else stored.weight_of(name, module)
            groups = getattr(module, "groups", 1)
            if groups != 1:
                check_groups(weight.shape, groups, f"layer {name!r}: its weight", name)
            info, reason = described(kind, weight.shape, groups, formula.axis)
            if reason:
                unscored[name] = reason
            else:
                taken[name] = weight
                infos[name] = info
        if not infos:
            raise LayerError(_nothing_to_score(model, unscored))
        if used is None:
            used = resolve("auto", ops.device_type(list(found.values())))
        try:
            entropies = _entropies(found, copied, in_file, infos, formula, used)
        except ops.NonFiniteWeightError as error:
            message = f"{error}, or leave the layer out with layers=[...]"
            raise WeightError(message, layer=error.layer, index=error.index) from error
    return ModelScores({name: entropies[name] for name in infos}, infos, unscored, formula, used.name)


def _entropies(
    weights: dict[str, Tensor],
    copied: Sequence[str],
    in_file: Mapping[str, StoredTensor],
    infos: Mapping[str, LayerInfo],
    formula: Formula,
    used: ResolvedBackend,
) -> dict[str, Tensor]:
    """The entropies by layer: in one call of all weights, and in one of each that is sharded, copied or in a file."""
    results: dict[str, Tensor] = {}

    def score(readable: dict[str, Tensor]) -> None:
        names, of = list(readable), [infos[name] for name in readable]
        axes, groups = [info.axis for info in of], [info.groups for info in of]
        found = ops.entropies_of_checked(list(readable.values()), formula, axes, groups, names, "auto", used)
        results.update(zip(names, found, strict=True))

    def score_part(part: Tensor, with_tau: Formula, name: str) -> Tensor:
        # The groups matter for filters on axis 1 only, and there such layers are gathered.
        return ops.entropies_of_checked([part], with_tau, [infos[name].axis], [1], [name], "auto", used)[0]

    if not copied:
        together, apart = weights, []
    else:
        together = {name: weight for name, weight in weights.items() if name not in copied}
        apart = [name for name in copied if name in weights]  # others have too few filters to be compared
        in_parts = {name: weights[name] for name in apart if has_whole_filters(weights[name], infos[name], formula)}
        results = entropies_of_parts(in_parts, infos, formula, score_part)
    if together:
        score(together)
    for name in apart:
        if name not in results:
            score({name: plain_copy(weights[name])})
    for name, stored in in_file.items():
        score({name: plain_copy(stored.read())})  # no variable holds a tensor while the next one is read
    return results


def _nothing_to_score(model: nn.Module, unscored: dict[str, str]) -> str:
    """Words the message for a model in which no layer can be scored."""
    kind = type(model).__name__
    if not unscored:
        return f"the {kind} has no convolution and no linear layer: there is nothing to score"
    reasons = "; ".join(f"{name!r}: {reason}" for name, reason in list(unscored.items())[:5])
    return f"no layer of the {kind} can be scored ({reasons}{'; ...' if len(unscored) > 5 else ''})"

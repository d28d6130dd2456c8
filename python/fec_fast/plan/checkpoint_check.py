"""What ``fec-fast load-check`` finds out: whether a folder is a whole checkpoint, what it is, and how it is loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..utils.errors import CheckpointError
from ..utils.onnx_trial import try_onnx
from ..utils.reading import parse_json, read_bytes
from ..utils.tensor_files import TensorFile
from .checkpoint_files import CARD, FILES, ONNX, WEIGHTS, parse_manifest, read_manifest, verified_contents
from .model_card import LIBRARY
from .plan import Plan
from .shapes import shapes_fingerprint

_MOST_CARD_BYTES = 1 << 20
_MOST_ONNX_BYTES = 2 << 30  # the format's own bound


@dataclass(frozen=True)
class CheckedCheckpoint:
    """A folder that is a whole checkpoint.

    Attributes:
        folder: Its path.
        plan: The plan in one line.
        layers: The number of coupled sets that the plan decides on.
        tensors: The number of tensors of the pruned network.
        parameters: How many numbers they hold.
        dtypes: Their types.
        card: ``"as written"``, ``"edited since it was written"``, or ``None`` where there is no card.
        onnx: What was done with the ONNX file: ``"runs in onnxruntime"``, or why it was not run; ``None`` where there
            is none.
        onnx_inputs: The names and shapes of its inputs.
        others: The names of other files and folders, which were not looked at.
        fingerprint: That of the network before pruning.
    """

    folder: str
    plan: str
    layers: int
    tensors: int
    parameters: int
    dtypes: list[str]
    card: str | None
    onnx: str | None
    onnx_inputs: dict[str, list[Any]]
    others: list[str]
    fingerprint: str

    def __str__(self) -> str:
        """What it is, and how to load it."""
        inputs = ", ".join(f"{name} {shape}" for name, shape in self.onnx_inputs.items())
        lines = [
            f"{self.folder}: a network pruned by fec_fast; its files match their checksums",
            f"plan: {self.plan}",
            f"weights: {self.tensors:,} tensors with {self.parameters:,} numbers, {', '.join(self.dtypes)}; they fit "
            "the plan",
            f"card: {self.card or 'none'}",
            f"ONNX: {'none' if self.onnx is None else self.onnx}{f'; takes {inputs}' if inputs else ''}",
            *([f"not looked at: {', '.join(self.others)}"] if self.others else []),
            f"load it: model = the network before pruning ({self.fingerprint[:19]}...)",
            f"         fec_fast.load(model, {self.folder!r})",
        ]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps({"format": "fec_fast.load_check", "version": 1, **asdict(self)}, indent=1) + "\n"


def check_checkpoint(folder: Path) -> CheckedCheckpoint:
    """Checks the files of a checkpoint: checksums, the plan, the weights against the plan, the card, the ONNX file.

    Args:
        folder: The folder, written by :func:`fec_fast.save`, or downloaded.

    Returns:
        What it is.

    Raises:
        CheckpointError: It is not a checkpoint, or a part of it is missing, damaged, or of another network.
        PlanError: The plan is damaged.
    """
    _, plan, weights = verified_contents(folder)
    names = _check_weights(folder, plan, weights)
    files = parse_manifest(folder, read_manifest(folder))["files"]
    onnx, inputs = _checked_onnx(folder, files["model.onnx"]["sha256"]) if "model.onnx" in files else (None, {})
    return CheckedCheckpoint(
        folder=str(folder),
        plan=repr(plan).strip("<>").removeprefix("Plan: "),
        layers=len(plan.sets),
        tensors=names,
        parameters=sum(tensor.numel() for tensor in weights.tensors.values()),
        dtypes=sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.tensors.values()}),
        card=_checked_card(folder, files["README.md"]["sha256"]) if "README.md" in files else None,
        onnx=onnx,
        onnx_inputs=inputs,
        others=sorted(entry.name for entry in folder.iterdir() if entry.name not in FILES),
        fingerprint=plan.fingerprint,
    )


def _check_weights(folder: Path, plan: Plan, weights: TensorFile) -> int:
    """Compares names and shapes with the plan, and the values with finite numbers; the number of names."""
    file, text = folder / WEIGHTS, weights.metadata.get("aliases", "{}")
    aliases = parse_json(text, dict[str, str], f"{file}: the list of its tied tensors", CheckpointError)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}
    for name, first in aliases.items():
        if first not in shapes:
            raise CheckpointError(f"{file}: {name!r} shall be tied to {first!r}, which it lacks")
        shapes[name] = shapes[first]
    if shapes_fingerprint(shapes) != plan.pruned_fingerprint:
        wrong = next((name for name, shape in plan.new_shapes.items() if shapes.get(name) != shape), None)
        detail = "names or shapes differ" if wrong is None else f"{wrong!r} is {list(shapes.get(wrong, ()))}"
        raise CheckpointError(f"{file} is not what the plan leaves of its network: {detail}; save it again")
    for name, tensor in weights.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointError(f"{file}: {name!r} has NaN or infinite values")
    return len(shapes)


def _checked_card(folder: Path, expected: str) -> str:
    content = _read(folder / CARD, _MOST_CARD_BYTES)
    if hashlib.sha256(content).hexdigest() == expected:
        return "as written"
    head = content.decode("utf-8", "replace").split("---", 2)
    if len(head) < 3 or head[0].strip() or LIBRARY not in head[1]:
        raise CheckpointError(f"{folder / CARD} has no head with {LIBRARY!r}, by which the Hub knows what it is")
    return "edited since it was written"


def _checked_onnx(folder: Path, expected: str) -> tuple[str, dict[str, list[Any]]]:
    content = _read(folder / ONNX, _MOST_ONNX_BYTES)
    if hashlib.sha256(content).hexdigest() != expected:
        raise CheckpointError(f"{folder / ONNX} has another SHA-256 than checkpoint.json says: edited or damaged")
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return "not run: pip install 'fec_fast[onnx]' installs what runs it", {}
    return "runs in onnxruntime", try_onnx(content, str(folder / ONNX))


def _read(file: Path, most: int) -> bytes:
    try:
        return read_bytes(file, most, CheckpointError)
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent} is incomplete: it has no {file.name}") from None

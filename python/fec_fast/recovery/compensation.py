"""``compensate``: the kept channels take over the work of the removed ones, without training and without labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..plan.plan import Plan, check_plan
from ..plan.shapes import fingerprint
from ..utils.compat import storage_id
from ..utils.copying import copied_model
from ..utils.critical_section import one_thread_at_a_time
from ..utils.errors import ArgumentError, InputError, PlanError, WeightError
from ..utils.forward import tensors_in
from ..utils.model_index import ModelIndex
from ..utils.modules import unwrap_for_surgery
from ..utils.plain_code import as_written
from ..utils.precision import full_float32
from ..utils.progress import progress_bar
from ..utils.public_call import interruptible
from ..utils.text import counted, text_table
from ..utils.user_warnings import warn_user
from .calibration import DATA_FREE, calibration_batches, count_images, warn_if_few
from .data_free import NOT_KNOWN, fit_on_noise
from .layer_fits import LayerFits, LayerRecovery, write_tensors

ROWS = 20_000
IMAGES = 1_024
MEMORY = 4.0
FEWEST_IMAGES = 8
# Noise tells less about a layer's inputs than images do, so weights stay nearer to where they are.
NOISE_RIDGE = 0.1


@dataclass(frozen=True)
class Compensation:
    """What :func:`compensate` changed.

    Attributes:
        method: ``"least squares"`` or ``"data-free"``, which is least squares on noise.
        images: How many calibration images were used.
        images_read: How many were read; more than were used if ``memory`` was too little for all.
        layers: The changed layers, in the order of the run.
        left: For each layer that was left as it was although its inputs had changed, the reason.
    """

    method: str
    images: int
    images_read: int
    layers: tuple[LayerRecovery, ...]
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """One sentence on the method, for a plan's notes."""
        on_noise = self.method == DATA_FREE
        images = f"{self.images} of {self.images_read}" if self.images < self.images_read else str(self.images)
        how = f"{self.method}, on noise" if on_noise else f"by {self.method} on {images} images without labels"
        left = f"; {len(self.left)} left as {'it was' if len(self.left) == 1 else 'they were'}" if self.left else ""
        done = "recovered" if self.layers else "not recovered"
        return f"{done} {how}: {counted(len(self.layers), 'layer')} changed{left}"

    def __repr__(self) -> str:
        """One line; ``str()`` gives the table."""
        return f"<Compensation: {self.note}>"

    def __str__(self) -> str:
        """A table of the layers, and what was left alone."""
        header = ("layer", "rows", "unknowns", "ridge", "error before", "error after", "seconds")
        rows = [
            (
                layer.layer,
                str(layer.rows),
                str(layer.unknowns),
                f"{layer.ridge:g}",
                f"{layer.error_before:.3g}",
                f"{layer.error:.3g}",
                f"{layer.seconds:.2f}",
            )
            for layer in self.layers
        ]
        left = [f"left as it was: {layer}: {reason}" for layer, reason in self.left.items()]
        return "\n".join([self.note, text_table(header, rows, "lrrrrrr"), *left])


@interruptible
def compensate(
    original: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    calibration: Any = None,
    *,
    example_inputs: Any = None,
    ridge: float | None = None,
    rows: int = ROWS,
    images: int = IMAGES,
    memory: float = MEMORY,
    progress: bool = True,
) -> Compensation:
    """Lets the layers of a pruned model take over the work of the removed channels. No training, no labels.

    Every convolution and linear layer whose inputs changed gets the weight with which its outputs, on what the pruned
    model now gives it, come nearest to the outputs of the original. This is ridge regression towards the present
    weight, layer after layer in the order of the run. (He et al., "Channel pruning for accelerating very deep neural
    networks", 2017, fit the layer behind each removed channel; here every layer behind is fitted.) Where an activation
    with constant parts (ReLU) follows, the fit need not follow the original there. The bias is written to the layer's
    own bias, else to the running mean of the batch norm behind it; no parameter is added. Both models run in evaluation
    mode, on the device they are on, with float32 products in float32 (not TF32). The original is not changed. Do not
    re-estimate batch norms afterwards.

    Without images, the same is done on noise (:func:`fec_fast.recovery.data_free.fit_on_noise`), for the layers behind
    a batch norm; the others are left as they are. A warning says so if these are all.

    Args:
        original: The model before pruning, in float32 or float64. Wrappers are looked through.
        pruned: What ``plan`` made of it, which is changed in place; all layers, or none if anything fails.
        plan: The plan of the pruning.
        calibration: Images as the models take them: a tensor ``[N, ...]``, or an iterable of batches: tensors, lists of
            images ``[C, H, W]`` (detectors), dictionaries (keyword arguments), or tuples and lists that begin with one
            of these; the rest (labels) is ignored. A tuple as first element holds the positional arguments. ``None``:
            without images.
        example_inputs: What the models can be called on, as for :func:`fec_fast.prune`; needed without images, where
            its shapes and types matter but not its values.
        ridge: How strongly a weight is held where it is, relative to the mean variance of the layer's inputs.
            ``None``: 0.01; 0.1 with fewer than 512 images, or none; 1 for a layer with few rows. 0.3 gives a better
            start for training where very much was removed.
        rows: How many output positions each layer is fitted on at most, as many from every image.
        images: How many images are read at most; without effect if none are given.
        memory: About how much memory is used beside the models and the images, in GiB. Fewer rows and images are used
            where this is not enough for all; a warning says so if images are left out.
        progress: Whether to show a progress bar on the standard error.

    Returns:
        What was changed, by layer, and what was not and why.

    Raises:
        PlanError: The models are not those before and after the plan.
        InputError: Too few images, images that a model cannot be run on, or NaN in images or outputs.
        WeightError: A model in half precision, or sharded; without images, weights with NaN or infinity.
        ArgumentError: An argument of the wrong kind. After any error the pruned model is as it was.
    """
    before, after = ModelIndex.of(original), ModelIndex.of(unwrap_for_surgery(pruned))
    _check_models(before, after, plan)
    if ridge is not None and not _is_positive(ridge):
        raise ArgumentError(f"ridge={ridge!r}: give a positive number, such as 0.01, or None")
    for name, number in (("rows", rows), ("images", images)):
        if type(number) is not int or number < 1:
            raise ArgumentError(f"{name}={number!r}: give a whole number of at least 1")
    if not _is_positive(memory):
        raise ArgumentError(f"memory={memory!r}: give a positive number of GiB")
    if calibration is None:
        if not any(True for _ in tensors_in(example_inputs)):
            raise ArgumentError(
                "calibration=None: give images, or example_inputs= (as for prune) to recover the model without images"
            )
        unfit = next((one for one in tensors_in(example_inputs) if one.is_meta or one.layout != torch.strided), None)
        if unfit is not None:
            raise ArgumentError(
                f"example_inputs: a tensor is {'on the meta device' if unfit.is_meta else unfit.layout}: give dense "
                "tensors with values"
            )

        def make_fits(original: ModelIndex, pruned: ModelIndex) -> LayerFits:
            return LayerFits(original, pruned, plan, ridge or NOISE_RIDGE, rows, int(memory * 2**30))

        with one_thread_at_a_time(), full_float32(), as_written(before, after):
            fits = fit_on_noise(before, after, plan, example_inputs, make_fits, progress)
        _warn_if_nothing(fits)
        return Compensation(DATA_FREE, 0, 0, tuple(fits.records), dict(fits.left))
    batches = calibration_batches(calibration, images, before)
    number = sum(map(count_images, batches))
    if number < FEWEST_IMAGES:
        raise InputError(
            f"{number} calibration image(s) are too few: give at least {FEWEST_IMAGES}, better some hundreds"
        )
    warn_if_few(batches)
    with one_thread_at_a_time(), full_float32(), as_written(before, after):
        small = ModelIndex.of(copied_model(after))
        fits = LayerFits(before, small, plan, ridge, rows, int(memory * 2**30))
        with progress_bar("recovery: original network", len(batches), shown=progress) as done:
            batches = list(fits.gather_targets(batches, done))
        with progress_bar("recovery: layers", fits.layers, shown=progress) as done:
            fits.fit(batches, done)
    write_tensors(after, {name: small.tensors[name] for name in fits.changed})
    _warn_if_nothing(fits)
    used = sum(map(count_images, batches))
    if used < number:
        warn_user(
            f"{used} of {number} calibration images were used: memory={memory:g} GiB is not enough for what the model "
            "computes on more of them at a time; give more memory"
        )
    return Compensation("least squares", used, number, tuple(fits.records), dict(fits.left))


def _warn_if_nothing(fits: LayerFits) -> None:
    """Warns if layers were to be fitted and none was."""
    if fits.left and not fits.records:
        layer, reason = next(iter(fits.left.items()))
        remedy = "; give images" if reason == NOT_KNOWN else ""
        count = counted(len(fits.left), "layer")
        warn_user(f"nothing was recovered: {count} could not be fitted, such as {layer!r}: {reason}{remedy}")


def _is_positive(number: object) -> bool:
    return isinstance(number, int | float) and 0 < number < math.inf


def _check_models(before: ModelIndex, after: ModelIndex, plan: Plan) -> None:
    """Checks that two models are those before and after a plan, and of a precision that can be fitted."""
    if not isinstance(plan, Plan):
        raise ArgumentError(f"plan: expected a fec_fast.Plan, got {type(plan).__name__}")
    check_plan(plan, before)
    if fingerprint(after) != plan.pruned_fingerprint:
        raise PlanError(
            f"the pruned {type(after.model).__name__} is not what the plan leaves: give the model that was pruned by it"
        )
    storages = {storage_id(tensor) for tensor in before.tensors.values() if tensor.numel()}
    for name, tensor in after.tensors.items():
        if tensor.numel() and storage_id(tensor) in storages:
            raise PlanError(f"{name} of the pruned model is the original's own tensor: prune a copy.deepcopy of it")
    for index in (before, after):
        for name, tensor in index.tensors.items():
            if tensor.dtype in (torch.float16, torch.bfloat16):
                layer = name.rpartition(".")[0]
                raise WeightError(
                    f"layer {layer!r}: {name} is {str(tensor.dtype).removeprefix('torch.')}, which is too coarse to be "
                    "fitted in: call .float() on both models, and convert the result",
                    layer=layer,
                )

"""The public methods, the sweep and what loads detection data: sound calls, and wrong values of each argument."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fec_fast
from fec_fast import detection, voc, zoo
from fec_fast.vision.box_images import collate_lists
from helpers import bad_values as bad
from helpers import voc_folders
from helpers.bad_calls import (
    FUNCTIONS,
    LABELLED,
    MODEL,
    NOT_ZERO,
    NUMBER,
    PRUNING,
    RUN,
    WHOLE,
    WORDS,
    Subject,
    plan,
    pruned,
    result,
    without,
)
from helpers.bad_export_calls import EXPORTS
from helpers.bad_training_calls import TRAINING
from helpers.bad_values import IMAGE, Make, loader, network

TEXT = without({**bad.NO_NAMES, "None": lambda: None}, "empty", "unknown", "long", "surrogate")
SHARES = {**NOT_ZERO, "one": lambda: 1.0, "several": lambda: (0.5, 0.5)}
LEFT = {**bad.NO_NUMBERS, **bad.NO_NAMES, "unit": lambda: "5 apples", "below zero": lambda: "-5M", "zero": lambda: "0"}
COSTS = WORDS


class Detector(nn.Module):
    """A detector of one box."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3)

    def forward(self, images: Any, targets: Any = None) -> Any:
        score = torch.stack([self.one(image[None]).mean() for image in images]).sigmoid()
        if self.training:
            return {"loss": score.mean()}
        box = torch.tensor([[1.0, 1.0, 5.0, 5.0]])
        return [{"boxes": box, "labels": torch.tensor([1]), "scores": each.reshape(1)} for each in score]


def detector() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Detector().eval()


def _target(**changes: Any) -> dict[str, Any]:
    return {"boxes": torch.tensor([[1.0, 1.0, 5.0, 5.0]]), "labels": torch.tensor([1]), **changes}


def detections(**changes: Any) -> list[Any]:
    return [([IMAGE[0], IMAGE[1]], [_target(**changes), _target()])]


NO_DETECTIONS: dict[str, Make] = {
    "classification": loader,
    "no lists": lambda: [(IMAGE, [_target(), _target()])],
    "fewer targets": lambda: [([IMAGE[0], IMAGE[1]], [_target()])],
    "no boxes": lambda: [([IMAGE[0]], [{"labels": torch.tensor([1])}])],
    "no area": lambda: detections(boxes=torch.tensor([[5.0, 5.0, 5.0, 5.0]])),
    "NaN box": lambda: detections(boxes=torch.full((1, 4), bad.NAN)),
    "text boxes": lambda: detections(boxes="1 1 5 5"),
    "float labels": lambda: detections(labels=torch.tensor([1.0])),
    "label 0": lambda: detections(labels=torch.tensor([0])),
    "negative label": lambda: detections(labels=torch.tensor([-3])),
    "other count": lambda: detections(labels=torch.tensor([1, 1])),
    "no targets": lambda: [([IMAGE[0]], None)],
}
NO_BATCHES = {
    name: functools.partial(lambda make: next(iter(make()), None), make) for name, make in NO_DETECTIONS.items()
}
BROKEN_DETECTORS = {
    **bad.BROKEN_MODELS,
    "gives one": lambda: bad.StrangeOutput([{}]),
    "gives no boxes": lambda: bad.StrangeOutput([{"labels": torch.tensor([1])}] * 2),
    "gives texts": lambda: bad.StrangeOutput(["a", "b"]),
}


def _voc(folder: Path) -> Path:
    boxes: list[voc_folders.Box] = [("cat", 2, 2, 9, 9)]
    return voc_folders.write(folder / "voc", {"train": {"a": boxes, "b": boxes}, "val": {"c": boxes}})


def _sensitivity() -> Any:
    return fec_fast.measure_sensitivity(network(), IMAGE, loader(), at=(0.5,), progress=False)


@functools.cache
def swept() -> Any:
    return fec_fast.sweep(
        network(), IMAGE, None, metric=lambda model: 0.5, budgets=("macs=0.3",), latency=False, progress=False
    )


def _other_point() -> Any:
    return fec_fast.sweep(
        network(), IMAGE, None, metric=lambda model: 0.25, budgets=("params=0.2",), progress=False
    ).points[0]


def _metric(model: nn.Module) -> float:
    return 0.5


def _raising(error: type[BaseException]) -> Any:
    def function(*_: Any) -> Any:
        raise error("broken")

    return function


NO_FUNCTIONS: dict[str, Make] = {
    **bad.NO_NAMES,
    "raises TypeError": lambda: _raising(TypeError),
    "raises KeyError": lambda: _raising(KeyError),
    "no arguments": lambda: lambda: 0.5,
}
RECORDS: dict[str, Make] = without(bad.NO_PLANS, "None", "other")
NO_PATHS = {**bad.NO_PATHS, "missing folder": lambda: "no/such/folder/a.html"}

METHODS: dict[str, Subject] = {
    "Budget by text": Subject(
        fec_fast.Budget, lambda _: {"latency": "5 ms"}, {"latency": without(LEFT, "bool"), "runtime": WORDS}
    ),
    "Budget.remove": Subject(
        fec_fast.Budget.remove, lambda _: {"params": 0.5}, {name: SHARES for name in ("params", "macs", "memory")}
    ),
    "Budget.keep": Subject(
        fec_fast.Budget.keep, lambda _: {"params": 0.5}, {"params": SHARES, "macs": SHARES, "memory": SHARES}
    ),
    "Budget.keep by text": Subject(
        fec_fast.Budget.keep, lambda _: {"latency": "5 ms"}, {"latency": LEFT, "params": LEFT, "runtime": WORDS}
    ),
    "Budget.share_of": Subject(
        fec_fast.Budget(params="5k").share_of, lambda _: {"size": 10_000}, {"size": {**NUMBER, "zero": lambda: 0}}
    ),
    "Plan.check": Subject(lambda model: plan().check(model), lambda _: {"model": network()}, {"model": MODEL}),
    "Plan.with_notes": Subject(lambda notes: plan().with_notes(notes), lambda _: {"notes": "a note"}, {"notes": TEXT}),
    "PruneResult.summary": Subject(
        lambda latency: result().summary(latency), lambda _: {"latency": None}, {"latency": RECORDS}
    ),
    "PruneResult.with_recovery": Subject(
        lambda recovery: result().with_recovery(recovery),
        lambda _: {
            "recovery": fec_fast.compensate(network(), pruned().model, plan(), progress=False, example_inputs=IMAGE)
        },
        {"recovery": {**RECORDS, "None": lambda: None}},
    ),
    "PruneResult.report": Subject(
        lambda **arguments: result().report(**arguments),
        lambda folder: {"path": folder / "a.html", "original": network(), "example_inputs": IMAGE},
        {
            "path": without(NO_PATHS, "missing folder"),
            "original": without(RUN, "None"),
            "example_inputs": without(bad.NO_INPUTS, "None"),
            "title": without(TEXT, "None"),
            "sensitivity": RECORDS,
            "sweep": RECORDS,
            "images": {**bad.NO_LOADERS, "one channel": lambda: [torch.zeros(1, 8, 8)]},
            "filters": {
                **bad.NO_NAMES,
                "names": lambda: ["one"],
                "unknown": lambda: [("zzz", 0)],
                "beyond": lambda: [("one", 99)],
                "negative": lambda: [("one", -1)],
                "text": lambda: [("one", "0")],
                "number": lambda: [(1, 0)],
            },
        },
    ),
    "Sweep.front": Subject(lambda cost: swept().front(cost), lambda _: {"cost": "macs"}, {"cost": COSTS}),
    "Sweep.smallest": Subject(
        lambda within=1.0, cost="macs": swept().smallest(within, cost),
        lambda _: {},
        {"within": NUMBER, "cost": COSTS},
    ),
    "Sweep.make": Subject(
        lambda point: swept().make(point),
        lambda _: {"point": swept().points[0]},
        {"point": {**RECORDS, "None": lambda: None, "tensor": lambda: IMAGE, "other": _other_point}},
    ),
    "Sweep.plot": Subject(
        lambda path=None, cost="macs": swept().plot(path, cost),
        lambda folder: {"path": folder / "a.svg"},
        {"path": {**NO_PATHS, "ending": lambda: "a.doc"}, "cost": COSTS},
    ),
    "sweep": Subject(
        fec_fast.sweep,
        lambda folder: {
            "model": network(),
            "example_inputs": IMAGE,
            "loader": None,
            "metric": _metric,
            "budgets": ("macs=0.3",),
            "progress": False,
        },
        {
            "model": RUN,
            "example_inputs": bad.NO_INPUTS,
            "loader": bad.NO_LOADERS,
            "metric": NO_FUNCTIONS,
            "val_loader": LABELLED,
            "budgets": {**bad.NO_NUMBERS, **bad.NO_NAMES, "none": tuple, "number in it": lambda: [0.5]},
            "policies": {**bad.NO_NAMES, "none": tuple, "number in it": lambda: [3], "unknown in it": lambda: ["zzz"]},
            "criteria": {**bad.NO_NAMES, "none": tuple, "number in it": lambda: [3], "unknown in it": lambda: ["zzz"]},
            "tune": without(NO_FUNCTIONS, "raises TypeError", "raises KeyError", "no arguments"),
            "results": bad.NO_PATHS,
            "formula": PRUNING["formula"],
            "sides": WORDS,
            "ignore": PRUNING["ignore"],
            "min_channels": WHOLE,
            "round_to": WHOLE,
            "norms": WORDS,
        },
    ),
    "sweep by accuracy": Subject(
        fec_fast.sweep,
        lambda _: {
            "model": network(),
            "example_inputs": IMAGE,
            "loader": loader(),
            "budgets": ("macs=0.3",),
            "progress": False,
        },
        {"loader": LABELLED, "val_loader": LABELLED},
    ),
    "measure_sensitivity by": Subject(
        fec_fast.measure_sensitivity,
        lambda _: {
            "model": network(),
            "example_inputs": IMAGE,
            "calibration": loader(),
            "at": (0.5,),
            "progress": False,
        },
        {name: PRUNING[name] for name in ("formula", "sides", "ignore", "norms")},
    ),
    "prune with recovery": Subject(
        fec_fast.prune,
        lambda _: {"model": network(), "example_inputs": IMAGE, "ratio": 0.5, "recover": "data-free"},
        {"recover": without(bad.NO_LOADERS, "tensor")},
    ),
    "TrainingSettings.merge": Subject(
        lambda settings=None, **overrides: fec_fast.TrainingSettings.merge(settings, overrides),
        lambda _: {"epochs": 1},
        {
            "settings": RECORDS,
            "overrides": {"value": bad.Thing},
        },
    ),
    "TrainingSettings by": Subject(
        fec_fast.TrainingSettings,
        lambda _: {"epochs": 1},
        {
            "clip_norm": NOT_ZERO,
            "accumulate": WHOLE,
            "ema_decay": {**NUMBER, "one": lambda: 1.0},
            "distill_weight": NUMBER,
            "temperature": NOT_ZERO,
            "feature_layers": {**bad.NO_NAMES, "number in it": lambda: [3], "number key": lambda: {3: "a"}},
            "feature_weight": NUMBER,
            "patience": WHOLE,
            "max_minutes": NOT_ZERO,
            "mixed_precision": WORDS,
        },
    ),
    "zoo.input_shape": Subject(zoo.input_shape, lambda _: {"name": "zoo:vgg-digits"}, {"name": WORDS}),
    "zoo.build with": Subject(
        lambda kwargs: zoo.build("zoo:vgg-digits", **kwargs),
        lambda _: {"kwargs": {}},
        {"kwargs": {"unknown": lambda: {"zzz": 3}, "text": lambda: {"num_classes": "ten"}}},
    ),
    "data.load with": Subject(
        lambda options: fec_fast.data.load("sklearn:digits", **options),
        lambda _: {"options": {"limit": 2}},
        {"options": {"unknown": lambda: {"zzz": 3}, "of others": lambda: {"augment": "none"}}},
    ),
    "voc.load_voc": Subject(
        voc.load_voc,
        lambda folder: {"path": _voc(folder)},
        {
            "path": {**bad.NO_PATHS, "missing": lambda: "nowhere", "empty": lambda: ""},
            "batch_size": WHOLE,
            "seed": NUMBER,
            "held_out": {**NUMBER, "one": lambda: 1.0, "zero": lambda: 0},
            "image_size": {**WHOLE, "three": lambda: (1, 2, 3), "text in it": lambda: ("a", "b")},
            "classes": {**bad.NO_NAMES, "number in it": lambda: [3], "others": lambda: ["dog"], "none": tuple},
            "splits": {
                **bad.NO_NAMES,
                "one": lambda: ("train",),
                "unknown": lambda: ("train", "zzz"),
                "None": lambda: None,
            },
            "augment": WORDS,
            "limit": WHOLE,
            "workers": WHOLE,
        },
    ),
    "collate_lists": Subject(
        collate_lists,
        lambda _: {"samples": [(IMAGE[0], _target())]},
        {"samples": {**bad.NO_NUMBERS, "None": lambda: None, "numbers": lambda: [1, 2], "three": lambda: [(1, 2, 3)]}},
    ),
    "detection.Detection": Subject(detection.Detection, lambda _: {"main_metric": "map"}, {"main_metric": WORDS}),
    "detection.Detection.evaluate": Subject(
        detection.Detection().evaluate,
        lambda _: {"model": detector(), "loader": detections()},
        {
            "model": {**MODEL, **BROKEN_DETECTORS},
            "loader": {**without(bad.NO_LOADERS, "wrong channels"), **NO_DETECTIONS},
        },
    ),
    "detection.evaluate_detector": Subject(
        detection.evaluate_detector,
        lambda _: {"model": detector(), "loader": detections()},
        {
            "model": {**MODEL, **BROKEN_DETECTORS},
            "loader": {**without(bad.NO_LOADERS, "wrong channels"), **NO_DETECTIONS},
        },
    ),
    "detection.images_and_targets": Subject(
        detection.images_and_targets,
        lambda _: {"batch": detections()[0]},
        {"batch": {**bad.NO_NUMBERS, **NO_BATCHES}},
    ),
    "detection.num_classes_of": Subject(
        detection.num_classes_of, lambda _: {"model": detector()}, {"model": bad.NO_MODELS}
    ),
}
# Made by the package alone, or called by it with arguments that it has checked.
NOT_CALLED_BY_USERS = {
    *("Agreement", "Int8Export", "OnnxExport", "Pt2eExport"),
    *("BackendInfo", "ChannelSet", "Compensation", "Counts", "Couplings", "DenseNetwork", "Epoch", "FilterExplanation"),
    *("FinetuneResult", "Latency", "LayerCount", "LayerExplanation", "LayerInfo", "LayerRecovery", "ModelScores"),
    *("Pinned", "Plan", "Proof", "PruneResult", "Sensitivity", "Sweep", "SweepPoint"),
    *("PruningRound", "PruningSchedule.due", "PruningSchedule.is_over", "PruningSchedule.size_after"),
    *("detection.Detection.check", "detection.Detection.objective"),
}
# Parameters of which every value has a meaning: what is true or false, and what the two forms of save() take.
ANY_VALUE = {
    "any_batch",
    "progress",
    "verify",
    "resume",
    "latency",
    "accelerator",
    "args",
    "kwargs",
    "options",
    "overrides",
}


@dataclass(frozen=True)
class Row:
    """One bad call: an argument of a function, and the wrong value that it is given."""

    subject: str
    argument: str
    value: str

    def __str__(self) -> str:
        return f"{self.subject}-{self.argument}-{self.value}"


def subjects() -> dict[str, Subject]:
    """The tables of functions and methods. A name is that of a callable, and a word or two where it has several."""
    return {**FUNCTIONS, **METHODS, **TRAINING, **EXPORTS}


def rows() -> list[Row]:
    return [
        Row(name, argument, value)
        for name, subject in subjects().items()
        for argument, values in subject.wrong.items()
        for value in values
    ]

"""The public functions with a sound call of each, and for each argument the kinds of wrong values that it is given."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fec_fast
from fec_fast.plan.plan import Plan
from fec_fast.vision import data, zoo
from fec_fast.vision.weights import load_weights
from helpers import bad_values as bad
from helpers.bad_values import IMAGE, Make, loader, network

Values = Mapping[str, Make]
NUMBER = {**bad.NO_NUMBERS, **bad.ODD_NUMBERS}
MODEL = {**bad.NO_MODELS, **bad.UNFIT_MODELS}
RUN = {**MODEL, **bad.BROKEN_MODELS}
LABELLED = {**bad.NO_LOADERS, **bad.NO_LABELS}
WHOLE = {**NUMBER, "zero": lambda: 0, "half": lambda: 0.5}
NOT_ZERO = {**NUMBER, "zero": lambda: 0}
WORDS = {**bad.NO_NAMES, "None": lambda: None}


JSON = {**bad.NO_NUMBERS, **bad.NO_NAMES, "array": lambda: "[]", "null": lambda: "null", "deep": lambda: "[" * 9**5}


def without(values: Values, *names: str) -> Values:
    return {name: make for name, make in values.items() if name not in names}


@dataclass(frozen=True)
class Subject:
    """A function, the arguments of a sound call, and wrong values by argument."""

    call: Callable[..., Any]
    sound: Callable[[Path], dict[str, Any]]
    wrong: Mapping[str, Values]


def _for_layer_one(make: Make) -> dict[str, Any]:
    return {"one": make()}


def pruned() -> Any:
    return fec_fast.prune(network(), IMAGE, ratio=0.5, recover=None)


_RESULT: list[Any] = []


def result() -> Any:
    """One pruned network, made once; calls get copies of its model."""
    if not _RESULT:
        _RESULT.append(pruned())
    return _RESULT[0]


def plan() -> Plan:
    return result().plan


def small() -> Any:
    model = network()
    fec_fast.apply_plan(model, plan())
    return model


def optimizer(model: Any) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def _remap(optimizer: Any, plan: Any, model: Any) -> None:
    fec_fast.remap_optimizer(optimizer, plan, model)


def _remap_sound(_: Path) -> dict[str, Any]:
    model = network()
    made = optimizer(model)
    fec_fast.apply_plan(model, plan())
    return {"optimizer": made, "plan": plan(), "model": model}


def _saved(folder: Path) -> Path:
    return fec_fast.save(small(), plan(), folder / "saved")


_TRAINING = {
    "epochs": {**WHOLE, "None": lambda: None},
    "optimizer": WORDS,
    "lr": {**NUMBER, "zero": lambda: 0, "None": lambda: None},
    "momentum": {**NUMBER, "one": lambda: 1.0},
    "weight_decay": NUMBER,
    "schedule": WORDS,
    "warmup_epochs": NUMBER,
    "label_smoothing": {**NUMBER, "one": lambda: 1.0},
    "mixup": NUMBER,
    "seed": NUMBER,
}
PRUNING: dict[str, Values] = {
    "sides": WORDS,
    "norms": WORDS,
    "criterion": without(WORDS, "None"),
    "formula": {**bad.NO_NAMES, **bad.NO_NUMBERS},
    "ignore": {**bad.NO_NAMES, "number in it": lambda: [3], "None in it": lambda: [None], "unknown": lambda: ["zzz"]},
}
FUNCTIONS: dict[str, Subject] = {
    "score_model": Subject(
        fec_fast.score_model,
        lambda _: {"model": network()},
        {
            "model": MODEL,
            "formula": without(PRUNING["formula"], "None"),
            "backend": WORDS,
            "layers": PRUNING["ignore"],
            "weights": {**bad.NO_NAMES, **bad.NO_PATHS, "no files": lambda: []},
        },
    ),
    "prune": Subject(
        fec_fast.prune,
        lambda _: {"model": network(), "example_inputs": IMAGE, "remove": 0.5},
        {
            **PRUNING,
            "model": RUN,
            "example_inputs": bad.NO_INPUTS,
            "remove": {**NUMBER, "one": lambda: 1.0, "None": lambda: None},
            "min_channels": WHOLE,
            "round_to": WHOLE,
        },
    ),
    "prune by ratios": Subject(
        fec_fast.prune,
        lambda _: {"model": network(), "example_inputs": IMAGE, "ratios": {"one": 0.5}, "recover": None},
        {
            "ratios": {
                **bad.NO_NAMES,
                "number key": lambda: {3: 0.5},
                "unknown layer": lambda: {"zzz": 0.5},
                "None key": lambda: {None: 0.5},
                **{f"{name} in it": functools.partial(_for_layer_one, make) for name, make in NUMBER.items()},
            }
        },
    ),
    "prune by budget": Subject(
        fec_fast.prune,
        lambda _: {
            "model": network(),
            "example_inputs": IMAGE,
            "budget": fec_fast.Budget(params=0.5),
            "recover": None,
        },
        {"budget": {**bad.NO_NUMBERS, "words": lambda: "params=0.5"}, "ratios": bad.NO_NAMES},
    ),
    "prune by taylor": Subject(
        fec_fast.prune,
        lambda _: {
            "model": network(),
            "example_inputs": IMAGE,
            "ratio": 0.5,
            "criterion": "taylor",
            "calibration": loader(),
            "recover": None,
        },
        {"calibration": {**LABELLED, "None": lambda: None}},
    ),
    "prune by reconstruction": Subject(
        fec_fast.prune,
        lambda _: {
            "model": network(),
            "example_inputs": IMAGE,
            "ratio": 0.5,
            "criterion": "reconstruction",
            "calibration": loader(),
            "recover": None,
        },
        {"calibration": {**bad.NO_LOADERS, "None": lambda: None}},
    ),
    "prune_iteratively": Subject(
        fec_fast.prune_iteratively,
        lambda _: {
            "model": network(),
            "example_inputs": IMAGE,
            "budget": fec_fast.Budget(params=0.3),
            "train": lambda model, number: None,
            "rounds": 1,
            "recover": None,
        },
        {
            "model": RUN,
            "example_inputs": bad.NO_INPUTS,
            "budget": {**bad.NO_NUMBERS, "None": lambda: None},
            "train": {"number": lambda: 3, "None": lambda: None, "text": lambda: "x", "object": bad.Thing},
            "rounds": WHOLE,
        },
    ),
    "couplings": Subject(
        fec_fast.couplings,
        lambda _: {"model": network(), "example_inputs": IMAGE},
        {"model": RUN, "example_inputs": bad.NO_INPUTS, "ignore": PRUNING["ignore"], "norms": WORDS},
    ),
    "explain": Subject(
        fec_fast.explain,
        lambda _: {"plan": plan(), "layer": "one", "model": network()},
        {"plan": bad.NO_PLANS, "layer": WORDS, "model": without(MODEL, "None"), "neighbours": WHOLE},
    ),
    "apply_plan": Subject(
        fec_fast.apply_plan,
        lambda _: {"model": network(), "plan": plan()},
        {"model": {**bad.NO_MODELS, **bad.UNFIT_MODELS}, "plan": bad.NO_PLANS},
    ),
    "verify_equivalence": Subject(
        fec_fast.verify_equivalence,
        lambda _: {"original": network(), "pruned": small(), "plan": plan(), "example_inputs": IMAGE},
        {
            "original": RUN,
            "pruned": RUN,
            "plan": bad.NO_PLANS,
            "example_inputs": bad.NO_INPUTS,
            "tolerance": NOT_ZERO,
        },
    ),
    "compose": Subject(
        fec_fast.compose, lambda _: {"first": plan(), "second": plan()}, {"first": bad.NO_PLANS, "second": bad.NO_PLANS}
    ),
    "remap_optimizer": Subject(
        _remap, _remap_sound, {"optimizer": {**bad.NO_PATHS}, "plan": bad.NO_PLANS, "model": bad.NO_MODELS}
    ),
    "compensate": Subject(
        fec_fast.compensate,
        lambda _: {
            "original": network(),
            "pruned": small(),
            "plan": plan(),
            "calibration": loader(),
            "progress": False,
        },
        {
            "original": RUN,
            "pruned": RUN,
            "plan": bad.NO_PLANS,
            "calibration": bad.NO_LOADERS,
            "ridge": NOT_ZERO,
            "rows": WHOLE,
            "images": WHOLE,
            "memory": NOT_ZERO,
        },
    ),
    "compensate without images": Subject(
        fec_fast.compensate,
        lambda _: {
            "original": network(),
            "pruned": small(),
            "plan": plan(),
            "example_inputs": IMAGE,
            "progress": False,
        },
        {"example_inputs": bad.NO_INPUTS},
    ),
    "recalibrate": Subject(
        fec_fast.recalibrate,
        lambda _: {"model": network(), "loader": loader()},
        {"model": MODEL, "loader": bad.NO_LOADERS},
    ),
    "evaluate": Subject(
        fec_fast.evaluate, lambda _: {"model": network(), "loader": loader()}, {"model": RUN, "loader": LABELLED}
    ),
    "finetune": Subject(
        fec_fast.finetune,
        lambda folder: {"model": network(), "train_loader": loader(), "epochs": 1, "progress": False},
        {
            **_TRAINING,
            "model": RUN,
            "train_loader": {**LABELLED, "None": lambda: None},
            "val_loader": LABELLED,
            "teacher": {k: v for k, v in RUN.items() if k not in ("None", "scripted", "traced")},
            "settings": bad.NO_PATHS,
            "task": bad.NO_NAMES,
            "sparsify": {**bad.NO_NUMBERS, "words": lambda: "group lasso", "plan alone": plan},
            "checkpoint": bad.NO_PATHS,
            "log_dir": bad.NO_PATHS,
            "log_with": WORDS,
        },
    ),
    "measure_sensitivity": Subject(
        fec_fast.measure_sensitivity,
        lambda _: {
            "model": network(),
            "example_inputs": IMAGE,
            "calibration": loader(),
            "progress": False,
            "at": (0.5,),
        },
        {
            "model": RUN,
            "example_inputs": bad.NO_INPUTS,
            "calibration": {**LABELLED, "None": lambda: None},
            "at": {**bad.NO_NUMBERS, "none": tuple, "one": lambda: (1.0,), "NaN in it": lambda: (bad.NAN,)},
            "cache": bad.NO_PATHS,
            "criterion": without(WORDS, "None"),
        },
    ),
    "PruneResult.latency": Subject(
        lambda original, example_inputs, **options: result().latency(original, example_inputs, **options),
        lambda _: {"original": network(), "example_inputs": IMAGE, "min_run_time": 0.01},
        {"original": RUN, "example_inputs": bad.NO_INPUTS, "min_run_time": NOT_ZERO, "runtime": WORDS},
    ),
    "channel_distances": Subject(
        fec_fast.channel_distances,
        lambda _: {"weight": torch.rand(4, 3, 2, 2)},
        {"weight": {**bad.NO_NUMBERS, **bad.NO_NAMES}, "formula": PRUNING["formula"], "filters": bad.NO_NAMES},
    ),
    "save": Subject(
        fec_fast.save,
        lambda folder: {"model": small(), "plan": plan(), "folder": folder / "out"},
        {"model": bad.NO_MODELS, "plan": without(bad.NO_PLANS, "other"), "folder": bad.NO_PATHS},
    ),
    "load": Subject(
        fec_fast.load,
        lambda folder: {"model": network(), "folder": _saved(folder)},
        {"model": MODEL, "folder": {**bad.NO_PATHS, "missing": lambda: "nowhere", "empty": lambda: ""}},
    ),
    "load_weights": Subject(
        load_weights,
        lambda folder: {"model": network(), "file": _saved(folder) / "model.safetensors"},
        {"model": MODEL, "file": {**bad.NO_PATHS, "missing": lambda: "nowhere.pth", "empty": lambda: ""}},
    ),
    "data.load": Subject(
        data.load,
        lambda _: {"spec": "sklearn:digits"},
        {
            "spec": {**WORDS, "NUL": lambda: "voc:a\0b", "no zip": lambda: "imagefolder:a.zip"},
            "batch_size": WHOLE,
            "seed": NUMBER,
            "limit": WHOLE,
        },
    ),
    "zoo.build": Subject(
        zoo.build,
        lambda _: {"name": "zoo:vgg-digits"},
        {"name": {**WORDS, "NUL": lambda: "a\0b.py:f"}},
    ),
    "Budget": Subject(
        fec_fast.Budget,
        lambda _: {"params": 0.5},
        {name: NOT_ZERO for name in ("params", "macs", "memory", "latency_ms")},
    ),
    "Budget by latency": Subject(
        fec_fast.Budget,
        lambda _: {"latency_ms": 5.0},
        {"latency_ms": {**NUMBER, "zero": lambda: 0}, "runtime": WORDS},
    ),
    "Budget.parse": Subject(
        fec_fast.Budget.parse,
        lambda _: {"text": "params=0.5"},
        {
            "text": {
                **WORDS,
                "no number": lambda: "params=x",
                "NaN": lambda: "params=nan",
                "unknown": lambda: "size=0.5",
                "unknown runtime": lambda: "latency=3ms@onnx",
                "a runtime without latency": lambda: "macs=0.5@onnxruntime",
                "twice": lambda: "params=0.5=0.5",
                "huge": lambda: "params=1e999",
            }
        },
    ),
    "Formula": Subject(
        fec_fast.Formula,
        lambda _: {},
        {"compress": WORDS, "entropy": WORDS, "axis": WORDS, "tau": NOT_ZERO, "tau_scale": NOT_ZERO},
    ),
    "Formula.from_dict": Subject(
        fec_fast.Formula.from_dict,
        lambda _: {"values": {}},
        {"values": {**bad.NO_NUMBERS, "number key": lambda: {3: 1}, "None": lambda: None, "unknown": lambda: {"a": 1}}},
    ),
    "TrainingSettings": Subject(fec_fast.TrainingSettings, lambda _: {"epochs": 1}, _TRAINING),
    "Plan.from_json": Subject(
        Plan.from_json,
        lambda _: {"text": plan().to_json()},
        {"text": JSON},
    ),
    "ModelScores.from_json": Subject(
        fec_fast.ModelScores.from_json,
        lambda _: {"text": fec_fast.score_model(network()).to_json()},
        {"text": JSON},
    ),
}

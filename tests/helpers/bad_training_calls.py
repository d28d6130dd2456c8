"""Wrong arguments of what prunes during training, and of results that are read from JSON."""

from __future__ import annotations

import functools
from typing import Any

import torch

import fec_fast
from helpers import bad_values as bad
from helpers.bad_calls import JSON, NOT_ZERO, NUMBER, RUN, WHOLE, WORDS, Subject, without
from helpers.bad_values import IMAGE, loader, network

_STEPS = {**WHOLE, "words": lambda: "ab", "text inside": lambda: ("a",), "descending": lambda: (2, 1)}
_WHEN = {"unit": WORDS, "recover": without(WORDS, "None")}


def _training_pruner(model: Any, optimizer: Any = None, **options: Any) -> fec_fast.TrainingPruner:
    if optimizer is None:
        try:  # of the model itself, so that what is wrong with the model is met
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        except Exception:
            optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    return fec_fast.TrainingPruner(model, optimizer, **options)


@functools.cache
def _ready() -> fec_fast.TrainingPruner:
    schedule = fec_fast.PruningSchedule.one_shot(1)
    return _training_pruner(
        network(), example_inputs=IMAGE, budget=fec_fast.Budget.remove(params=0.3), schedule=schedule
    )


TRAINING = {
    "GroupLasso": Subject(
        fec_fast.GroupLasso,
        lambda _: {"sets": fec_fast.couplings(network(), IMAGE).sets},
        {
            "sets": {
                **bad.NO_NAMES,
                **bad.NO_NUMBERS,
                "None": lambda: None,
                "none": tuple,
                "number in it": lambda: [3],
            },
            "strength": {**NUMBER, "zero": lambda: 0, "None": lambda: None},
        },
    ),
    "GrowingPenalty": Subject(
        fec_fast.GrowingPenalty,
        lambda _: {"plan": fec_fast.prune(network(), IMAGE, remove=0.5, recover=None).plan},
        {
            "plan": without({**bad.NO_PLANS, "None": lambda: None}, "other"),
            "until": {**NUMBER, "zero": lambda: 0, "above one": lambda: 1.01, "None": lambda: None},
        },
    ),
    "TrainingPruner": Subject(
        _training_pruner,
        lambda _: {
            "model": network(),
            "example_inputs": IMAGE,
            "budget": fec_fast.Budget(params=0.3),
            "schedule": fec_fast.PruningSchedule.one_shot(1, recover="images"),
            "images": loader(),
        },
        {
            "model": RUN,
            "example_inputs": bad.NO_INPUTS,
            "optimizer": without(bad.NO_PATHS, "None"),
            "budget": {**bad.NO_NUMBERS, "None": lambda: None},
            "schedule": {**bad.NO_NUMBERS, "None": lambda: None},
            "copies": without({**bad.NO_MODELS, **bad.NO_NUMBERS}, "list", "dict"),
            "images": {"None": lambda: None, "generator": lambda: iter(loader()), "number": lambda: 3},
            "ddp": without(bad.NO_MODELS, "None"),
            "state": {"dict": dict, "list": list, "number": lambda: 3, "text": lambda: "x", "object": bad.Thing},
            "criterion": without(WORDS, "None"),
            "min_channels": WHOLE,
            "round_to": WHOLE,
        },
    ),
    "TrainingPruner.load_state_dict": Subject(
        lambda state: _ready().load_state_dict(state),
        lambda _: {"state": _ready().state_dict()},
        {"state": {"dict": dict, "list": list, "number": lambda: 3, "text": lambda: "x", "None": lambda: None}},
    ),
    "PruningSchedule": Subject(
        fec_fast.PruningSchedule,
        lambda _: {"at": (1, 2), "curve": "until budget", "every": 3, "share": 0.1},
        {
            "at": _STEPS,
            "curve": WORDS,
            **_WHEN,
            "every": {**WHOLE, "None": lambda: None},
            "share": {**NOT_ZERO, "one": lambda: 1, "None": lambda: None},
        },
    ),
    **{
        f"PruningSchedule.{curve}": Subject(
            getattr(fec_fast.PruningSchedule, curve),
            lambda _: {"at": (1, 2)},
            {"at": {**_STEPS, "None": lambda: None}, **_WHEN},
        )
        for curve in ("linear", "cubic")
    },
    "PruningSchedule.one_shot": Subject(
        fec_fast.PruningSchedule.one_shot, lambda _: {"at": 1}, {"at": {**WHOLE, "None": lambda: None}, **_WHEN}
    ),
    "PruningSchedule.until_budget": Subject(
        fec_fast.PruningSchedule.until_budget,
        lambda _: {"first": 1, "every": 2, "share": 0.1},
        {"first": WHOLE, "every": WHOLE, "share": {**NOT_ZERO, "one": lambda: 1}, **_WHEN},
    ),
    "Sweep.from_json": Subject(
        fec_fast.Sweep.from_json,
        lambda _: {"text": fec_fast.Sweep("accuracy", fec_fast.DenseNetwork(0.5, 10, 20), (), {}).to_json()},
        {"text": JSON},
    ),
    "Sensitivity.from_json": Subject(
        fec_fast.Sensitivity.from_json,
        lambda _: {"text": fec_fast.Sensitivity("sha256:0", 0.75, {"one": 4}, {"one": {2: 0.5}}).to_json()},
        {"text": JSON},
    ),
    "prune by ratio": Subject(
        fec_fast.prune,
        lambda _: {"model": network(), "example_inputs": IMAGE, "ratio": 0.5},
        {"ratio": {**NUMBER, "one": lambda: 1.0}},
    ),
}

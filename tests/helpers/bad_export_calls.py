"""Wrong arguments of what writes networks for other programs, and of model cards."""

from __future__ import annotations

from typing import Any

import torch

import fec_fast
from helpers import bad_values as bad
from helpers.bad_calls import RUN, WHOLE, WORDS, Subject, Values, plan, small, without
from helpers.bad_values import IMAGE, loader, network

FILES: Values = {**bad.NO_PATHS, "missing": lambda: "nowhere/a.onnx", "folder": lambda: "."}
# A list of the images is an iterable of batches; NaN and wrong images are those of the calibration.
IMAGES: Values = {**bad.NO_LOADERS, "None": lambda: None}
ONE_LINE: Values = {**without(WORDS, "None", "unknown"), "two lines": lambda: "a\nb"}


def _sound(name: str) -> Any:
    return lambda folder: {"model": network(), "file": folder / name, "calibration": loader()}


def _int8(**arguments: Any) -> Any:
    return fec_fast.export_int8(**{"images": 4, **arguments})


EXPORTS = {
    "export_onnx": Subject(
        fec_fast.export_onnx,
        lambda folder: {"model": network(), "example_inputs": IMAGE, "file": folder / "a.onnx"},
        {"model": RUN, "example_inputs": bad.NO_INPUTS, "file": FILES},
    ),
    "export_int8": Subject(
        _int8,
        _sound("a.onnx"),
        {
            "model": RUN,
            "file": FILES,
            "calibration": IMAGES,
            "images": WHOLE,
            "method": WORDS,
            "float_layers": {
                **without(bad.NO_NAMES, "list", "dict"),
                "number in it": lambda: [3],
                "unknown": lambda: ["zzz"],
            },
        },
    ),
    "export_pt2e": Subject(
        fec_fast.export_pt2e,
        _sound("a.pt2"),
        {"model": RUN, "file": FILES, "calibration": IMAGES, "images": WHOLE},
    ),
    "save for others": Subject(
        fec_fast.save,
        lambda folder: {"model": small(), "plan": plan(), "folder": folder / "out", "model_card": True},
        {"onnx": without(bad.NO_INPUTS, "None"), "model_card": {**without(bad.NO_NAMES, "bool"), "None": lambda: None}},
    ),
    "ModelCard": Subject(
        fec_fast.ModelCard,
        lambda _: {},
        {
            **{name: ONE_LINE for name in ("base_model", "budget", "license", "data")},
            "metrics": {
                **without(bad.NO_NUMBERS, "dict"),
                "no number": lambda: {"accuracy": "high"},
                "NaN": lambda: {"accuracy": float("nan")},
                "two lines": lambda: {"a\nb": 1.0},
                "tensor in it": lambda: {"accuracy": torch.ones(1)},
            },
        },
    ),
}

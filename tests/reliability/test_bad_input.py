"""Bad input: public functions called with a wrong value of each argument in turn give documented errors.

The table is made of :mod:`helpers.bad_calls`: every argument of every function meets the wrong values of its kind. An
error is a ``FecError`` (or, for paths, an ``OSError``) that names the argument, the value or the layer; afterwards the
model, the working folder, the random state and torch's settings are as before.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fec_fast.utils.errors import FecError, MissingExtraError
from helpers import bad_values
from helpers.bad_method_calls import ANY_VALUE, NOT_CALLED_BY_USERS, Row, rows, subjects
from helpers.public_names import public_callables

ROWS = rows()
NOT_INSTALLED = "not installed"  # how an answer begins where an optional package is missing here
# Values that are unusual, and right: what the function does with them is not an error.
RIGHT = {
    # names in a list, or none at all, where a sequence of names is taken
    *(("prune", "ignore", kind) for kind in ("list", "dict")),
    *(("couplings", "ignore", kind) for kind in ("list", "dict")),
    ("score_model", "layers", "list"),
    ("prune by ratios", "ratios", "dict"),
    ("measure_sensitivity", "at", "list"),
    # layers that are not scored are reported as such; those that are scored are sound
    ("score_model", "model", "quantised"),
    ("score_model", "model", "uninitialised"),
    # which channels belong together depends on shapes alone
    *(("couplings", "model", kind) for kind in ("meta", "NaN", "infinite", "empty", "no parameters")),
    *(("couplings", "example_inputs", kind) for kind in ("empty image", "meta")),
    ("measure_sensitivity", "example_inputs", "meta"),
    *(("apply_plan", "model", kind) for kind in ("meta", "NaN", "infinite", "complex")),
    # values do not matter, or are replaced
    *(("explain", "model", kind) for kind in ("NaN", "infinite")),
    *(("PruneResult.latency", "original", kind) for kind in ("NaN", "infinite")),
    *(("load", "model", kind) for kind in ("NaN", "infinite")),
    *(("load_weights", "model", kind) for kind in ("NaN", "infinite")),
    *(("evaluate", "model", kind) for kind in ("NaN", "infinite", "scripted", "traced")),
    *(("finetune", "model", kind) for kind in ("scripted", "traced")),
    # nothing to recalibrate: a warning says so
    *(("recalibrate", "model", kind) for kind in ("empty", "no parameters", "lazy", "exported module")),
    # as many as there are; seeds below 0
    ("explain", "neighbours", "huge"),
    *((subject, "seed", "negative") for subject in ("finetune", "TrainingSettings", "data.load")),
    ("verify_equivalence", "example_inputs", "float64"),
    ("channel_distances", "weight", "tensor"),
    ("prune", "remove", "None"),
    # shapes alone are compared
    *(("Plan.check", "model", kind) for kind in ("meta", "NaN", "infinite", "complex")),
    *(("PruneResult.report", "example_inputs", kind) for kind in ("empty image", "meta")),
    # none, which is what is there by default
    *(("PruneResult.report", "images", kind) for kind in ("empty", "empty generator", "empty loader", "lying")),
    ("PruneResult.report", "filters", "dict"),
    *((subject, "ignore", kind) for subject in ("sweep", "measure_sensitivity by") for kind in ("list", "dict")),
    *(("TrainingSettings by", "feature_layers", kind) for kind in ("list", "dict")),
    ("sweep", "tune", "type"),
    # a network that is not of the zoo may have any name
    *(("zoo.input_shape", "name", kind) for kind in ("empty", "unknown", "long", "surrogate")),
    *((subject, "seed", "negative") for subject in ("voc.load_voc",)),
    *(("export_onnx", "model", kind) for kind in ("empty", "no parameters")),
    *((subject, "images", "huge") for subject in ("export_int8", "export_pt2e")),  # as many as there are
    ("voc.load_voc", "workers", "zero"),
    ("voc.load_voc", "splits", "None"),
    # which labels there are depends on the model
    *(("detection.images_and_targets", "batch", kind) for kind in ("label 0", "negative label")),
    *(("detection.num_classes_of", "model", kind) for kind in ("scripted", "traced")),
}


def settings_of_the_process() -> dict[str, Any]:
    return {
        "random": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "folder": sorted(path.name for path in Path.cwd().iterdir()),
    }


def state_of(value: Any) -> Any:
    """What must not change in an argument: the tensors and modes of a network."""
    if not isinstance(value, nn.Module) or isinstance(value, torch.jit.ScriptModule):
        return None
    tensors: list[Any] = []
    for name, tensor in [*value.named_parameters(), *value.named_buffers()]:
        lazy = isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer)
        fit = not lazy and not tensor.is_meta and not type(tensor).__name__.startswith("Fake")
        tensors.append((name, tensor.detach().clone() if fit else None, tensor.requires_grad))
    return tensors, [module.training for module in value.modules()]


def is_same(before: Any, after: Any) -> bool:
    if before is None or after is None:
        return before is after
    same = [
        a[0] == b[0] and a[2] == b[2] and (a[1] is b[1] or torch.equal(a[1].nan_to_num(), b[1].nan_to_num()))
        for a, b in zip(before[0], after[0], strict=True)
    ]
    return all(same) and before[1] == after[1]


_SUBJECTS_OF_MESSAGES = {
    *("model", "layer", "batch", "images", "network", "plan", "calibration", "weight", "JSON", "budget", "Budget"),
    *("field", "checkpoint", "Network", "Raising", "Sequential", "StrangeOutput", "criterion", "voc:", "label"),
    "data of dictionaries",
}


def names_it(message: str, argument: str, value: Any) -> bool:
    """Whether a message names the argument, the value, or what it is about."""
    about = {argument, argument.replace("_", " "), repr(value)[:20]}
    about |= set(map(str, value)) if isinstance(value, dict) else set()
    return any(word in message for word in about | _SUBJECTS_OF_MESSAGES)


def answer(row: Row, folder: Path) -> str | None:
    """What is wrong with the answer to a bad call; ``None`` if nothing is."""
    subject = subjects()[row.subject]
    folder.mkdir()
    arguments = {**subject.sound(folder), row.argument: subject.wrong[row.argument][row.value]()}
    before, process = {name: state_of(value) for name, value in arguments.items()}, settings_of_the_process()
    trouble = None
    try:
        subject.call(**arguments)
        odd = row.value.removesuffix(" in it") in bad_values.ODD_NUMBERS
        if not odd and (row.subject, row.argument, row.value) not in RIGHT:
            return "accepted"
        return None  # it did what it does with a sound value
    except MissingExtraError as error:
        module = error.__cause__.name if isinstance(error.__cause__, ImportError) else None
        is_there = module is None or importlib.util.find_spec(module.partition(".")[0]) is not None
        return f"{'raised although it is installed' if is_there else NOT_INSTALLED}: {error}"
    except FecError as error:
        if not names_it(str(error), row.argument, arguments[row.argument]):
            trouble = f"names nothing: {error}"
    except OSError as error:
        trouble = (
            None if row.value in ("long", "missing", "empty", "raises OSError") else f"{type(error).__name__}: {error}"
        )
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if (row.subject, row.argument) == ("finetune", "val_loader"):
        return trouble  # it is read after an epoch
    if isinstance(arguments[row.argument], DataLoader):
        del process["random"]  # torch draws a seed for the workers when a DataLoader is read
    changed = [name for name in arguments if not is_same(before[name], state_of(arguments[name]))]
    if changed:
        return f"changed {changed}"
    now = settings_of_the_process()
    return trouble or next((f"changed {name}" for name in process if now[name] != process[name]), None)


def test_the_table_is_large() -> None:
    assert len(ROWS) >= 800 and len({str(row) for row in ROWS}) == len(ROWS)
    known = {(row.subject, row.argument, row.value) for row in ROWS}
    assert known >= RIGHT, RIGHT - known


def test_every_public_function_method_and_constructor_is_in_the_table() -> None:
    known: dict[str, set[str]] = {}
    for name, subject in subjects().items():
        known.setdefault(name.partition(" ")[0], set()).update(subject.wrong)
    public = public_callables()
    missing = {
        name: lacking
        for name, parameters in public.items()
        if name not in NOT_CALLED_BY_USERS and (lacking := set(parameters) - known.get(name, set()) - ANY_VALUE)
    }
    assert not missing
    assert not NOT_CALLED_BY_USERS - set(public) and not NOT_CALLED_BY_USERS & set(known)
    assert len(public) > 60


@pytest.mark.slow
@pytest.mark.parametrize("subject", list(subjects()))
def test_bad_values_give_documented_errors(subject: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "own"
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = [row for row in ROWS if row.subject == subject]
        wrong = {str(row): trouble for i, row in enumerate(chosen) if (trouble := answer(row, folder / str(i)))}
    missing = {row: trouble for row, trouble in wrong.items() if trouble.startswith(NOT_INSTALLED)}
    wrong = {row: trouble for row, trouble in wrong.items() if row not in missing}
    assert not wrong, "\n".join(f"{row}: {trouble}" for row, trouble in wrong.items())
    if missing:
        pytest.skip(f"{len(missing)} of {len(chosen)} rows, such as {next(iter(missing.items()))}")

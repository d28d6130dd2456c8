"""Tables of latency on disk: kept by machine, runtime, threads and layer, reused, and not believed when damaged."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fec_fast
from fec_fast.pruning.allocation import layer_times
from fec_fast.pruning.allocation.layer_times import FOLDER_VARIABLE, LayerShape, LayerTables, read_table, tables_folder
from fec_fast.utils.compat import ConvolutionBase
from fec_fast.utils.runtimes import COMPILED, ONNXRUNTIME, OPENVINO, TORCH
from fec_fast.utils.timing import Timing, time_call
from helpers.optional import skip_without

CPU = torch.device("cpu")
OPTIONS: tuple[tuple[str, Any], ...] = (
    ("kernel_size", (3, 3)),
    ("stride", (1, 1)),
    ("padding", (1, 1)),
    ("dilation", (1, 1)),
    ("output_padding", (0, 0)),
    ("transposed", False),
)
LINEAR = LayerShape(nn.Linear, 16, 32, 1, False, (2, 5), (), torch.float32, CPU)
CONVOLUTION = LayerShape(ConvolutionBase, 16, 32, 1, False, (2, 6, 6), OPTIONS, torch.float32, CPU)
DEPTHWISE = LayerShape(ConvolutionBase, 16, 16, 16, True, (2, 6, 6), OPTIONS, torch.float32, CPU)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """A folder of tables, and every measurement that is made: a made-up time that differs from any other."""
    calls: list[tuple[Any, ...]] = []

    def time_layer(*arguments: Any) -> Timing:
        calls.append(arguments)
        return Timing(1e-6 * len(calls), 0.0)

    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "tables"))
    monkeypatch.setattr(layer_times, "time_layer", time_layer)
    return calls


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "tables").iterdir())


def test_a_table_is_measured_once_and_reused(measured: list[Any], tmp_path: Path) -> None:
    for shape in (LINEAR, CONVOLUTION, DEPTHWISE):
        first = LayerTables(TORCH).times_of(shape)
        number = len(measured)
        again = LayerTables(TORCH).times_of(shape)
        assert len(measured) == number and np.array_equal(first.seconds, again.seconds)
        assert first(first.input_widths[-1:], first.output_widths[:1]) == first.seconds[-1, :1]
    assert len(files(tmp_path)) == 3
    document = json.loads(files(tmp_path)[0].read_text())
    assert document["format"] == "fec_fast.latency_table" and document["runtime"] == TORCH
    assert document["machine"]["threads"] == torch.get_num_threads()


def test_what_the_times_depend_on_has_a_table_of_its_own(
    measured: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_times, "runtime_version", lambda runtime: "1.0")
    LayerTables(TORCH).times_of(LINEAR)
    here = layer_times.describe_machine()
    others: list[tuple[str, dict[str, Any], str]] = [
        (ONNXRUNTIME, here, "1.0"),
        (OPENVINO, here, "1.0"),
        (TORCH, {**here, "threads": here["threads"] + 1}, "1.0"),
        (TORCH, {**here, "processor": "another"}, "1.0"),
        (TORCH, here, "1.1"),
    ]
    for number, (runtime, machine, version) in enumerate(others, start=2):
        monkeypatch.setattr(layer_times, "describe_machine", lambda machine=machine: machine)
        monkeypatch.setattr(layer_times, "runtime_version", lambda runtime, version=version: version)
        LayerTables(runtime).times_of(LINEAR)
        assert len(files(tmp_path)) == number
    assert {call[-1] for call in measured} == {TORCH, ONNXRUNTIME, OPENVINO}
    before = len(measured)
    LayerTables(COMPILED).times_of(LINEAR)  # its layers are torch's own kernels
    assert len(measured) == before


def damaged(name: str, text: str) -> str:
    document = json.loads(text)
    if name == "cut off":
        return text[: len(text) // 2]
    changes: dict[str, dict[str, Any]] = {
        "negative": {"seconds": [[-1.0] * len(row) for row in document["seconds"]]},
        "huge": {"seconds": [[1e300] * len(row) for row in document["seconds"]]},
        "text": {"seconds": "fast"},
        "ragged": {"seconds": [*document["seconds"][:-1], [1.0]]},
        "too few": {"seconds": document["seconds"][:-1]},
        "other widths": {"input_widths": [1]},
        "a list of a million": {"output_widths": list(range(1_000_000))},
        "another format": {"format": "fec_fast.plan"},
        "a newer version": {"version": 2},
    }
    return json.dumps({**document, **changes[name]}).replace("1e+300", "1e999" if name == "huge" else "1e+300")


@pytest.mark.parametrize(
    "name",
    ["cut off", "negative", "huge", "text", "ragged", "too few", "other widths", "a list of a million"]
    + ["another format", "a newer version"],
)
def test_a_damaged_table_is_measured_anew(name: str, measured: list[Any], tmp_path: Path) -> None:
    LayerTables(TORCH).times_of(LINEAR)
    (file,) = files(tmp_path)
    whole = file.read_text()
    file.write_text(damaged(name, whole))
    number = len(measured)
    with pytest.warns(fec_fast.FecWarning, match="measured anew"):
        LayerTables(TORCH).times_of(LINEAR)
    assert len(measured) == 2 * number
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LayerTables(TORCH).times_of(LINEAR)  # the damaged one was replaced
    assert len(measured) == 2 * number and len(files(tmp_path)) == 1


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 2000), byte=st.integers(0, 255))
def test_any_byte_may_be_wrong(at: int, byte: int, measured: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "tables" / "whole"
    if not file.exists():
        LayerTables(TORCH).times_of(LINEAR)
        files(tmp_path)[0].rename(file)
    widths = (np.array(json.loads(file.read_text())[name]) for name in ("input_widths", "output_widths"))
    content = bytearray(file.read_bytes())
    content[at % len(content)] = byte
    (tmp_path / "damaged").write_bytes(content)
    try:
        seconds = read_table(tmp_path / "damaged", *widths)
    except fec_fast.CheckpointError:
        return
    assert seconds.shape == (len(layer_times.GRID),) * 2 and (seconds > 0).all() and (seconds <= 1e5).all()


@given(st.lists(st.lists(st.floats(1e-6, 1.0), min_size=5, max_size=5), min_size=5, max_size=5))
def test_a_narrower_layer_counts_as_no_slower(rows: list[list[float]]) -> None:
    """Whatever the noise: the search for removal counts relies on it."""
    widths = np.array([4, 8, 16, 24, 32])
    times = layer_times.LayerTimes(widths, widths, np.array(rows))
    inputs, outputs = np.meshgrid(np.arange(4, 33), np.arange(4, 33), indexing="ij")
    seconds = times(inputs, outputs)
    assert (np.diff(seconds, axis=0) >= -1e-12).all() and (np.diff(seconds, axis=1) >= -1e-12).all()
    assert (times.seconds <= np.array(rows)).all() and times.seconds[-1, -1] == rows[-1][-1]


def test_unsteady_times_are_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "tables"))
    monkeypatch.setattr(layer_times, "time_layer", lambda *_: Timing(1e-3, 0.5e-3))
    assert (LayerTables(TORCH).times_of(LINEAR).seconds == 1e-3).all()
    assert not (tmp_path / "tables").exists()


def test_the_folder(measured: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    assert tables_folder() is None
    LayerTables(TORCH).times_of(LINEAR)
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setattr(layer_times.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert tables_folder() == tmp_path / "caches" / "fec_fast" / "latency"
    monkeypatch.setattr(layer_times.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert tables_folder() == tmp_path / "local" / "fec_fast" / "latency"
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv(FOLDER_VARIABLE, str(file))
    with pytest.raises(fec_fast.InputError, match=f"{FOLDER_VARIABLE}=.*is a file"):
        LayerTables(TORCH)
    monkeypatch.setenv(FOLDER_VARIABLE, str(file / "below"))  # a folder that cannot be made
    tables = LayerTables(TORCH)
    with pytest.warns(fec_fast.FecWarning, match="cannot be written") as caught:
        for shape in (LINEAR, CONVOLUTION):
            tables.times_of(shape)
    assert len([each for each in caught if "cannot be written" in str(each.message)]) == 1


@pytest.mark.parametrize("runtime", [TORCH, ONNXRUNTIME, OPENVINO])
def test_real_layers_are_timed(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without(*{TORCH: (), ONNXRUNTIME: ("onnx", "onnxruntime"), OPENVINO: ("onnx", "openvino")}[runtime])
    monkeypatch.setattr(layer_times, "GRID", (0.5, 1.0))
    monkeypatch.setattr(layer_times, "time_call", lambda call, *_: time_call(call, 0.5, 0.001))
    transposed = tuple((name, {"transposed": True, "padding": (0, 0)}.get(name, value)) for name, value in OPTIONS)
    same = tuple((name, "same" if name == "padding" else value) for name, value in OPTIONS)
    shapes = [LINEAR, CONVOLUTION, DEPTHWISE]
    for options in (transposed, same):
        shapes.append(LayerShape(ConvolutionBase, 8, 16, 2, False, (1, 6, 6), options, torch.float32, CPU))
    for shape in shapes:
        times = LayerTables(runtime).times_of(shape)
        assert times.seconds.shape == (2, 2) and (times.seconds > 0).all()

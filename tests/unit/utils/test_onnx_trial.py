"""ONNX files of strangers are tried in a process of their own: within bounds, whatever they do to it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.optional import skip_without

skip_without("onnx", "onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fec_fast.utils import onnx_trial  # noqa: E402
from fec_fast.utils.errors import CheckpointError  # noqa: E402
from fec_fast.utils.onnx_process import MOST_INPUT_BYTES  # noqa: E402

SHAPE: list[Any] = ["batch", 3, 8, 8]


def network(nodes: list[Any], shape: list[Any] = SHAPE, kind: int = TensorProto.FLOAT, weights: Any = ()) -> bytes:
    """A network from the input x to the output y."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        list(weights),
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = proto.SerializeToString()
    return content


def relu(source: str = "x") -> Any:
    return helper.make_node("Relu", [source], ["y"])


def outside(location: str) -> Any:
    """A weight that lies in a file beside."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    return weight


def doubled(times: int) -> list[Any]:
    names = ["x", *(f"c{number}" for number in range(times))]
    pairs = zip(names, names[1:], strict=False)
    return [*(helper.make_node("Concat", [a, a], [b], axis=0) for a, b in pairs), relu(names[-1])]


def test_a_sound_network_runs_and_says_what_it_takes() -> None:
    assert onnx_trial.try_onnx(network([relu()]), "a.onnx") == {"x": SHAPE}
    assert onnx_trial.try_onnx(network([relu()], [2, 5], TensorProto.INT32), "a.onnx") == {"x": [2, 5]}


def test_inputs_are_bounded_before_memory_is_taken() -> None:
    largest = [4, 1, 2048, 2048]
    assert int(np.prod(largest)) * 4 == MOST_INPUT_BYTES
    assert onnx_trial.try_onnx(network([relu()], largest), "a.onnx")
    with pytest.raises(CheckpointError, match="a.onnx cannot be run .*its inputs take 67,141,632 bytes; at most 67,10"):
        onnx_trial.try_onnx(network([relu()], [4, 1, 2048, 2049]), "a.onnx")
    with pytest.raises(CheckpointError, match="its inputs take 4,"):
        onnx_trial.try_onnx(network([relu()], [2**20, 2**20, 2**20]), "a.onnx")


SIZES = numpy_helper.from_array(np.array([30_000, 30_000]), "s")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux alone")
@pytest.mark.parametrize(
    "content",
    [
        network(doubled(40)),
        network([helper.make_node("ConstantOfShape", ["s"], ["c"]), relu("c")], weights=[SIZES]),
    ],
    ids=["doubled", "constant"],
)
def test_what_a_network_computes_is_bounded(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"which may take 192 MB and 60 s of a core .*(allocate|alloc)"):
        onnx_trial.try_onnx(content, "a.onnx")


@pytest.mark.parametrize("location", ["beside", "../beside", "/etc/passwd"])
def test_weights_in_other_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    (tmp_path / "here").mkdir()
    for folder in (tmp_path, tmp_path / "here"):
        (folder / "beside").write_bytes(bytes(16))
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CheckpointError, match="cannot be run"):
        onnx_trial.try_onnx(network([relu("w")], weights=[outside(location)]), "a.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be run"),
        (b"no protobuf", "cannot be run"),
        (network([helper.make_node("Identity", ["x"], ["y"])], [2], TensorProto.STRING), r"'x' is a tensor\(string\)"),
        (network([relu()], kind=TensorProto.BOOL), "cannot be run"),
        (network([helper.make_node("Custom", ["x"], ["y"])]), "cannot be run"),
    ],
    ids=["empty", "bytes", "text", "type", "operator"],
)
def test_what_is_no_network_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        onnx_trial.try_onnx(content, "a.onnx")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"its process ended with -11"),
        ("raise ValueError('broken')", r"its process ended with 1 \(ValueError: broken\)"),
        ("import time; time.sleep(60)", "did not end within 2 s"),
    ],
    ids=["signal", "error", "sleep"],
)
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_process_that_ends_or_does_not_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(onnx_trial, "_PROGRAM", tmp_path / "program.py")
    monkeypatch.setattr(onnx_trial, "_MOST_WAITING", 2)
    with pytest.raises(CheckpointError, match=message):
        onnx_trial.try_onnx(network([relu()]), "a.onnx")

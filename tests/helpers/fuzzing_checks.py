"""Readers of what a checkpoint has for others, of ONNX networks and of tables of latency, for the tests of files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fec_fast
from fec_fast.cli import recipe_run
from fec_fast.cli.recipe import read_recipe
from fec_fast.plan.checkpoint_check import check_checkpoint
from fec_fast.pruning.allocation import layer_times
from fec_fast.pruning.during_training.stored_state import progress_of
from fec_fast.utils.errors import CheckpointError
from fec_fast.utils.reading import parse_json
from helpers import yolo_data
from helpers.fuzzing import RECIPE, Target, Tiny, tiny


class Tied(nn.Module):
    """A network that has a layer by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = Tiny(), nn.Module()
        self.again.two = self.first.two

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x)


_FORMS = {"json": "json", "safetensors": "safetensors", "md": "bytes"}


def _load_check(folder: Path, name: str) -> Target:
    """A checkpoint of which one file is mutated; its checksum is made right, but for the card, which may be edited."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = fec_fast.prune(Tied().eval(), torch.randn(1, 1, 4, 4), ratio=0.5, recover=None)
    card = fec_fast.ModelCard(base_model="timm/a", license="mit", metrics={"accuracy": 0.5})
    path = fec_fast.save(result, folder / "checkpoint", model_card=card)
    manifest = json.loads((path / "checkpoint.json").read_text())

    def read(content: bytes) -> None:
        (path / name).write_bytes(content)
        if name in ("plan.json", "model.safetensors"):
            manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            (path / "checkpoint.json").write_text(json.dumps(manifest))
        checked = check_checkpoint(path)
        assert json.loads(checked.to_json())["tensors"] == checked.tensors > 0 and checked.parameters >= 0
        assert str(checked).encode() and checked.card in ("as written", "edited since it was written", None)

    return Target(((path / name).read_bytes(),), _FORMS[name.rpartition(".")[2]], read)


def _networks() -> tuple[bytes, ...]:
    """Small networks with what torch's exporter writes: a size that may vary, weights, shapes and scales."""
    from onnx import TensorProto, helper, numpy_helper

    def weight(name: str, *shape: int) -> Any:
        values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        return numpy_helper.from_array(values, name)

    def model(batch: Any) -> bytes:
        nodes = [
            helper.make_node(
                "Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[1, 1], group=1, auto_pad="NOTSET"
            ),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=0),
            helper.make_node("Resize", ["p", "", "scales"], ["s"], mode="nearest"),
            helper.make_node("GlobalAveragePool", ["s"], ["g"]),
            helper.make_node("Reshape", ["g", "shape"], ["f"], allowzero=0),
            helper.make_node("Gemm", ["f", "v"], ["y"], alpha=1.0, transB=1),
        ]
        graph = helper.make_graph(
            nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2])],
            [
                *(weight("w", 4, 3, 3, 3), weight("b", 4), weight("v", 2, 4)),
                numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
                numpy_helper.from_array(np.array([-1, 4]), "shape"),
            ],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        content: bytes = proto.SerializeToString()
        return content

    return model("batch"), model(2)


def _onnx(_: Path) -> Target:
    """What the process runs that :func:`fec_fast.utils.onnx_trial.try_onnx` starts."""
    from fec_fast.utils.onnx_process import run_once

    def read(content: bytes) -> None:
        answer = json.loads(json.dumps(run_once(content)))
        if "error" in answer:
            raise CheckpointError(answer["error"])
        sizes = [[size if isinstance(size, int) else 1 for size in shape] for shape in answer["inputs"].values()]
        assert all(size >= 0 for shape in sizes for size in shape)
        assert sum(map(math.prod, sizes)) <= 64 << 20

    return Target(_networks(), "onnx", read)


def _latency_table(folder: Path) -> Target:
    rows, columns = np.array([1, 2, 4]), np.array([2, 8])
    document = {
        "format": "fec_fast.latency_table",
        "version": 1,
        **{"machine": {"processor": "a", "cores": 2}, "runtime": "torch", "runtime_version": "2.14.1"},
        "layer": {"kind": "linear", "inputs": 4, "outputs": 8, "image": [1], "options": {}},
        "input_widths": rows.tolist(),
        "output_widths": columns.tolist(),
        "seconds": [[1e-6, 2e-6], [2e-6, 3e-6], [3e-6, 5e-6]],
    }
    file = folder / "table.json"

    def read(content: bytes) -> None:
        file.write_bytes(content)
        seconds = layer_times.read_table(file, rows, columns)
        assert seconds.shape == (3, 2) and bool((seconds > 0).all() and (seconds <= 1e5).all())
        assert bool((layer_times.LayerTimes(rows, columns, seconds)(np.array([1, 3]), np.array([2, 5])) > 0).all())

    return Target((json.dumps(document).encode(),), "json", read)


def _pruning_state(_: Path) -> Target:
    """The state of a pruning during training, which a checkpoint of the training holds."""
    image, schedule = torch.zeros(1, 1, 4, 4), fec_fast.PruningSchedule.linear((1, 2, 3), unit="epochs")

    def pruner() -> Any:
        model = tiny()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return fec_fast.TrainingPruner(model, optimizer, image, budget=fec_fast.Budget(params=0.6), schedule=schedule)

    started = pruner()
    started.end_epoch()
    started.end_epoch()
    sound = started.state_dict()
    assert sound["rounds"] and sound["plan"]

    def read(content: bytes) -> None:
        state = parse_json(content, dict[str, Any], "state", CheckpointError)
        resumed = pruner()
        resumed.load_state_dict(state)
        found = progress_of(state)
        assert all(0 <= size < 1e301 for each in found.rounds for size in (each.size_before, each.size_after))
        numbers, steps = [each.number for each in found.rounds], [each.steps for each in found.rounds]
        assert numbers == sorted(set(numbers)) and steps == sorted(steps) and max([0, *steps]) <= found.steps

    return Target((json.dumps(sound).encode(),), "json", read)


def _stored_recipe(folder: Path) -> Target:
    """The recipe that a run has stored in its folder: a run that goes on must have the same."""
    (folder / "recipe.yaml").write_bytes(RECIPE)
    recipe = read_recipe(folder / "recipe.yaml")
    (folder / "run").mkdir()

    def read(content: bytes) -> None:
        (folder / "run" / "recipe.json").write_bytes(content)
        recipe_run._check_folder(folder / "run", recipe, resume=True)
        assert json.loads(content) == recipe.content

    return Target((json.dumps(recipe.content).encode(),), "json", read)


CHECKS: dict[str, Callable[[Path], Target]] = {
    **{
        f"load-check {name}": lambda folder, name=name: _load_check(folder, name)
        for name in ("checkpoint.json", "plan.json", "model.safetensors", "README.md")
    },
    "ONNX network": _onnx,
    "latency table": _latency_table,
    "pruning state": _pruning_state,
    "stored recipe": _stored_recipe,
}


def _ultralytics(folder: Path) -> Target:
    """A pruned detector whose YAML file is mutated: ultralytics builds what it describes."""
    import yaml

    yolo_data.without_network()
    from ultralytics import YOLO

    from fec_fast.integrations import ultralytics as integration

    head = [[[2, 3], 1, "Detect", ["nc"]]]
    backbone = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "C2f", [16, True]]]
    backbone.append([-1, 1, "nn.MaxPool2d", [3, 2, 1]])
    content = {"nc": 2, "channels": 3, "activation": "nn.ReLU()", "backbone": backbone, "head": head}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content, default_flow_style=None))
    yolo = YOLO(str(folder / "tiny.yaml"), task="detect")
    integration.prune(yolo, budget=fec_fast.Budget(params=0.7), imgsz=64, recover=None)
    file = integration.save(yolo, folder / "saved") / "tiny.yaml"
    present = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()

    def read(content: bytes) -> None:
        for number in (b"0", b"1"):  # mutations write YAML as JSON, whose keys are text
            content = content.replace(b'"%s":' % number, number + b": ")
        file.write_bytes(content)
        before = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (present + (1 << 30), before[1]))  # for the other programs here
        try:
            loaded = integration.load(folder / "saved")
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)
        assert len(list(loaded.model.parameters())) > 10 and all(
            isinstance(n, str) for n in loaded.model.names.values()
        )

    return Target((file.read_bytes(),), "yaml", read)


def _transformers(folder: Path) -> Target:
    """A pruned model of transformers whose config is mutated: transformers builds what it describes."""
    from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

    from fec_fast.integrations import transformers as integration

    config = ResNetConfig(num_channels=1, embedding_size=4, hidden_sizes=[8], depths=[1], num_labels=3)
    model = ResNetForImageClassification(config).eval()
    result = fec_fast.prune(model, {"pixel_values": torch.zeros(1, 1, 32, 32)}, ratio=0.5, recover=None)
    file = integration.save_pretrained(result, folder / "saved") / "config.json"

    def read(content: bytes) -> None:
        file.write_bytes(content)
        model = integration.from_pretrained(AutoModelForImageClassification, folder / "saved")
        assert type(model) is ResNetForImageClassification and len(list(model.parameters())) > 10

    return Target((file.read_bytes(),), "json", read)


if importlib.util.find_spec("ultralytics") is not None:
    CHECKS["ultralytics YAML"] = _ultralytics
if importlib.util.find_spec("transformers") is not None:
    CHECKS["transformers config"] = _transformers

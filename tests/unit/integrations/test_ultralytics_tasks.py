"""Segmentation, poses, turned boxes and classes: pruned, trained for a moment, exported and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.yolo_data import without_network, write_boxes

without_network()
pytest.importorskip("ultralytics", reason="needs the extra 'ultralytics': pip install 'fec_fast[ultralytics]'")

from PIL import Image  # noqa: E402

from fec_fast import Budget, PruningSchedule  # noqa: E402
from fec_fast.integrations import ultralytics as integration  # noqa: E402
from helpers.yolo_networks import settings, tiny_rtdetr, two_classes, widths  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

EXAMPLE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
SQUARE = "0.3 0.3 0.7 0.3 0.7 0.7 0.3 0.7"
LABELS = {
    "segment": SQUARE,
    "pose": "0.5 0.5 0.4 0.4 " + " ".join(f"{0.35 + 0.02 * point:.2f} 0.5 2" for point in range(17)),
    "obb": SQUARE,
}


def write_data(root: Path, task: str) -> Path:
    """Ten images to train on and four to validate on; returns what ``data=`` is."""
    drawn = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 4)):
        for number in range(count):
            kind = number % 2
            folder = root / part / f"kind{kind}" if task == "classify" else root / "images" / part
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawn.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
            if task != "classify":
                labels = root / "labels" / part
                labels.mkdir(parents=True, exist_ok=True)
                (labels / f"{number}.txt").write_text(f"{kind} {LABELS[task]}\n")
    if task == "classify":
        return root
    points = "kpt_shape: [17, 3]\n" if task == "pose" else ""
    file = root / "data.yaml"
    file.write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames: {{0: kind0, 1: kind1}}\n{points}")
    return file


def arrays(found: Any) -> list[np.ndarray]:
    """The tensors that a network returns and an export returns too: predictions, and prototypes of masks."""
    if isinstance(found, torch.Tensor):
        return [found.numpy()]
    return [each for inner in found if isinstance(inner, torch.Tensor | tuple | list) for each in arrays(inner)]


@pytest.mark.parametrize(
    ("task", "family"),
    [
        ("segment", "11/yolo11-seg.yaml"),
        ("pose", "v8/yolov8-pose.yaml"),
        ("obb", "11/yolo11-obb.yaml"),
        ("classify", "v8/yolov8-cls.yaml"),
    ],
)
def test_every_task_is_trained_and_exported_at_the_pruned_widths(
    task: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    data, yolo = write_data(tmp_path / "data", task), two_classes(tmp_path, family)
    assert yolo.task == task
    result = integration.prune(
        yolo, budget=Budget.remove(macs=0.5), imgsz=64, criterion="l1", verify=False, recover=None
    )
    before = widths(yolo.model)
    first = {name: tensor.clone() for name, tensor in yolo.model.state_dict().items()}
    yolo.train(epochs=1, nbs=5, **settings(data, tmp_path))
    assert widths(yolo.model) == before and integration.plan_of(yolo) == result.plan
    assert any(not torch.equal(tensor, first[name]) for name, tensor in yolo.model.state_dict().items())
    again = integration.load(integration.save(yolo, tmp_path / "saved"))
    with torch.no_grad():
        expected = arrays(again.model.eval()(EXAMPLE))
    monkeypatch.chdir(tmp_path)  # the file is written where the process is
    file = again.export(format="onnx", imgsz=64, simplify=False, device="cpu")
    outputs = runtime.InferenceSession(file).run(None, {"images": EXAMPLE.numpy()})
    assert len(outputs) == (2 if task == "segment" else 1)
    for found in outputs:
        nearest = min(np.abs(found - each).max() / np.abs(each).max() for each in expected if each.shape == found.shape)
        assert nearest <= 1e-3


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify", "rtdetr"])
def test_every_task_is_pruned_during_its_training(task: str, tmp_path: Path) -> None:
    if task == "rtdetr":
        data, yolo = write_boxes(tmp_path / "data"), tiny_rtdetr(tmp_path)
    else:
        dash = {"segment": "seg", "classify": "cls"}.get(task, task)
        data, yolo = write_data(tmp_path / "data", task), two_classes(tmp_path, f"v8/yolov8-{dash}.yaml")
    yolo.save(str(tmp_path / "dense.pt"))
    yolo = type(yolo)(str(tmp_path / "dense.pt"))  # as a user has it
    schedule = PruningSchedule.linear([1], unit="steps")
    options = {"criterion": "l1", "ratios": "uniform", "imgsz": 64}  # the defaults take longer
    pruning = integration.PruningCallback(budget=Budget.remove(macs=0.3), schedule=schedule, **options)
    pruning.attach(yolo)
    yolo.train(epochs=1, nbs=5, val=False, **settings(data, tmp_path))
    (made,) = pruning.pruner.rounds
    assert made.size_after <= 0.7 * made.size_before
    last = integration.from_checkpoint(tmp_path / "run" / "weights" / "last.pt")
    again = integration.load(integration.save(yolo, tmp_path / "saved"))
    assert widths(again.model) == widths(yolo.model) == widths(last.model)
    assert again.task == yolo.task and integration.plan_of(last) == pruning.plan

"""Training in two processes on the CPU (gloo): equal to one process with twice the batch, resumable after a kill."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from helpers.optional import skip_without

skip_without("accelerate", "torchvision", "pycocotools", "defusedxml")

import fec_fast  # noqa: E402
from fec_fast.training.tasks.detection import evaluate_detector  # noqa: E402
from fec_fast.vision import zoo  # noqa: E402
from helpers.distributed_training import box_loaders, fading, labelled_images, network, train, trained_detector  # noqa: E402
from helpers.processes import accelerate_launch  # noqa: E402

pytestmark = pytest.mark.distributed


def launch(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    return accelerate_launch("-m", "helpers.distributed_training", folder, how)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all three launches, with images to detect in."""
    folder = tmp_path_factory.mktemp("trainings")
    box_loaders(folder / "voc")
    return folder


@pytest.fixture(scope="module")
def killed_in_epoch(folder: Path) -> int:
    """The epoch in whose state a killed training has left its checkpoint."""
    done = launch(folder, "killed")
    assert done.returncode != 0 and not (folder / "killed-0.safetensors").exists()
    return int(json.loads((folder / "killed-state" / "training.json").read_text())["epoch"])


@pytest.fixture(scope="module")
def sharded(folder: Path) -> Path:
    done = launch(folder, "sharded")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def replicated(folder: Path, killed_in_epoch: int, sharded: Path) -> Path:
    """Resumes what the two others have left, so it is launched after them."""
    done = launch(folder, "replicated")
    assert done.returncode == 0, done.stderr
    return folder


def history_of(folder: Path, name: str) -> list[dict[str, Any]]:
    """Reads what ``write_result`` has written, without the wall-clock times."""
    rows: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_two_processes_equal_one_with_twice_the_batch(replicated: Path) -> None:
    model = network(norm=False)
    result = train(model, 16)
    weights = [load_file(replicated / f"replicated-False-{rank}.safetensors") for rank in (0, 1)]
    start = network(norm=False).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(weights[0][name], weights[1][name])
        assert torch.allclose(weights[0][name], value, atol=1e-5)
        assert not torch.allclose(start[name], value, atol=1e-3)
    first, second = (history_of(replicated, f"replicated-False-{rank}") for rank in (0, 1))
    assert first == second
    for one, two in zip(result.history, first, strict=True):
        assert two["images"] == one.images == 96
        assert two["loss"] == pytest.approx(one.loss, rel=1e-4)
        assert two["metrics"] == pytest.approx(one.metrics, abs=2 / 96) and two["lr"] == one.lr
        assert two["held_out"] == pytest.approx(one.held_out, rel=1e-4)


def test_sparse_training_in_two_processes_equals_one_with_twice_the_batch(replicated: Path) -> None:
    model = network(norm=False)
    penalty = fading(model)
    train(model, 16, sparsify=penalty)
    found, other = (load_file(replicated / f"sparse-{rank}.safetensors") for rank in (0, 1))
    assert equal(found, other) and close(found, model.state_dict())
    gone = sorted({0, 1, 2, 3} - set(penalty.plan.keep["0.weight"]["0"]))
    assert len(gone) == 2 and not found["0.weight"][gone].any() and found["0.weight"].any()


@pytest.mark.parametrize("norm", [False, True])
def test_every_held_out_image_is_counted_once(replicated: Path, norm: bool) -> None:
    model = network(norm)
    model.load_state_dict(load_file(replicated / f"replicated-{norm}-0.safetensors"))
    held_out = DataLoader(labelled_images(45, 2), 45)
    accuracy = fec_fast.evaluate(model, held_out)
    assert round(45 * accuracy) not in (0, 45)
    for rank in (0, 1):
        last = history_of(replicated, f"replicated-{norm}-{rank}")[-1]
        assert last["held_out"]["accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_processes_agree_on_batch_norm(replicated: Path) -> None:
    first, second = (load_file(replicated / f"replicated-True-{rank}.safetensors") for rank in (0, 1))
    assert "1.running_mean" in first and equal(first, second)


def test_only_one_process_writes_the_log(replicated: Path) -> None:
    assert len((replicated / "logs" / "metrics.csv").read_text().splitlines()) == 4


def test_after_a_kill_training_resumes_to_the_same_bits(replicated: Path, killed_in_epoch: int) -> None:
    assert killed_in_epoch == 1
    resumed = load_file(replicated / "resumed-killed-1.safetensors")
    assert equal(resumed, load_file(replicated / "replicated-False-0.safetensors"))
    assert history_of(replicated, "resumed-killed-0") == history_of(replicated, "replicated-False-0")
    # Batches and random numbers depend on the number of processes.
    with pytest.raises(fec_fast.CheckpointError, match="processes was 2 and is 1"):
        train(network(norm=False), 8, checkpoint=replicated / "killed-state", resume=True)


def test_a_recipe_is_run_by_two_processes(tmp_path: Path) -> None:
    skip_without("yaml", "jsonschema", "sklearn")
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(
        "model: zoo:vgg-digits\ndata: {name: 'sklearn:digits', limit: 20, batch_size: 50}\n"
        "prune: {ratio: 0.5}\nfinetune: {epochs: 1}\n"
    )
    done = accelerate_launch("-m", "helpers.distributed_recipe", recipe, out)
    assert done.stderr.count("the first run is done") == 2, done.stderr
    results = json.loads((out / "results.json").read_text())
    assert results["processes"] == 2 and results["training"]["pruned_tuned"]["epochs"][0]["images"] == 200
    network = fec_fast.load(zoo.build("zoo:vgg-digits"), out / "checkpoint")
    assert sum(p.numel() for p in network.parameters()) == results["size"]["after"]["parameters"]
    assert done.stdout.count("written:") == 1
    # The second run is refused in both processes.
    assert done.returncode != 0 and "continue it with --resume" in done.stderr


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], *, atol: float = 1e-5) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=atol) for name in one)


def test_a_detector_in_two_processes_equals_one_process_that_accumulates_two_batches(replicated: Path) -> None:
    model, result = trained_detector(replicated / "voc", accumulate=2)
    found, other = (load_file(replicated / f"replicated-boxes-{rank}.safetensors") for rank in (0, 1))
    names = [name for name, _ in model.named_parameters()]
    assert close({name: found[name] for name in names}, dict(model.named_parameters()), atol=1e-4)
    assert equal(found, other)
    rows = history_of(replicated, "replicated-boxes-0")
    assert rows == history_of(replicated, "replicated-boxes-1")
    for two, one in zip(rows, result.history, strict=True):
        assert two["images"] == one.images == 12 and two["loss"] == pytest.approx(one.loss, rel=1e-3)
        assert two["metrics"] == pytest.approx(one.metrics, rel=1e-3)
    model.load_state_dict(found)
    expected = evaluate_detector(model, box_loaders(replicated / "voc")[1])
    assert rows[-1]["held_out"]["map"] == pytest.approx(expected.coco, abs=1e-6)


@pytest.mark.parametrize("name", ["sharded-False", "sharded-True", "bf16-True"])
def test_sharded_weights_train_as_replicated_ones(replicated: Path, sharded: Path, name: str) -> None:
    peer = f"replicated-{name.split('-')[1]}"
    expected, exactly = load_file(replicated / f"{peer}-0.safetensors"), not name.startswith("bf16")
    found, other = (load_file(sharded / f"{name}-{rank}.safetensors") for rank in (0, 1))
    assert equal(found, other)
    assert close(found, expected, atol=1e-5 if exactly else 1e-2) and close(found, expected) == exactly
    rows = history_of(sharded, f"{name}-0")
    assert rows == history_of(sharded, f"{name}-1")
    for one, two in zip(rows, history_of(replicated, f"{peer}-0"), strict=True):
        assert one["images"] == two["images"] and one["lr"] == two["lr"]
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4 if exactly else 1e-2)
        assert one["held_out"] == pytest.approx(two["held_out"], rel=1e-4 if exactly else 0.1)


def test_sharded_weights_are_resumed_to_the_same_bits(sharded: Path) -> None:
    names = ("resumed", "undisturbed", "interrupted")
    resumed, undisturbed, interrupted = (load_file(sharded / f"{name}-0.safetensors") for name in names)
    assert equal(resumed, undisturbed)
    assert history_of(sharded, "resumed-1") == history_of(sharded, "undisturbed-0")
    assert not close(interrupted, undisturbed, atol=1e-3)  # the weights after the first epoch
    assert not close(interrupted, network(norm=True).state_dict(), atol=1e-3)


def test_replicated_weights_resume_a_state_of_sharded_ones(replicated: Path, sharded: Path) -> None:
    found, expected = (load_file(sharded / f"{name}-0.safetensors") for name in ("resumed-sharded", "undisturbed"))
    # The gradient of a bias before batch norm is rounding alone. AdamW makes full steps of it; the mean cancels them.
    bias, mean = ([state.pop(name) for state in (found, expected)] for name in ("0.bias", "1.running_mean"))
    assert close(found, expected, atol=1e-4)
    assert torch.allclose(mean[0] - bias[0], mean[1] - bias[1], atol=0.02)  # the mean lags behind the bias
    rows = zip(history_of(sharded, "resumed-sharded-0"), history_of(sharded, "undisturbed-0"), strict=True)
    assert all(one["loss"] == pytest.approx(other["loss"], rel=1e-4) for one, other in rows)


def test_the_metrics_of_a_sharded_detector_are_those_of_its_final_weights(sharded: Path) -> None:
    model = zoo.build("zoo:ssd-small", num_classes=3, image_size=64)
    model.load_state_dict(load_file(sharded / "sharded-boxes-1.safetensors"))
    expected = evaluate_detector(model, box_loaders(sharded / "voc")[1])
    assert history_of(sharded, "sharded-boxes-0")[-1]["held_out"]["map_50"] == pytest.approx(expected.coco_50, abs=1e-6)

"""Two processes on the CPU (gloo) train as one does with twice the batch; one that is killed leaves a state behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

for package in ("accelerate", "torchvision", "pycocotools", "defusedxml"):
    pytest.importorskip(package)

import fec_fast  # noqa: E402
from fec_fast.training.fsdp import uses_fsdp2  # noqa: E402
from fec_fast.training.tasks.detection import Detection, evaluate_detector  # noqa: E402
from fec_fast.vision import zoo  # noqa: E402
from fec_fast.vision.voc import voc  # noqa: E402
from helpers import voc_folders  # noqa: E402
from helpers.training import Stops  # noqa: E402

# `accelerate launch --cpu --num_processes 2` starts one process only, unless there is MPI. This starts two on the CPU.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
SCRIPT = """
import sys
sys.path[:0] = {tests!r}
from test_processes import work
work(*sys.argv[1:])
"""


def data(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randn(count, 1, 6, 6, generator=generator)
    images[torch.arange(count), 0, labels, labels] += 1.0  # too little to be always right
    return TensorDataset(images, labels)


class Deadly(TensorDataset):
    """In the second process, the last image that is fetched in the second epoch kills it."""

    fetched = 0

    def __getitem__(self, index: int) -> Any:
        self.fetched += 1
        # 8 images are looked at before training, and half of 96 make an epoch.
        if os.environ.get("RANK") == "1" and self.fetched == 8 + 48 + 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def network(norm: bool) -> nn.Module:
    torch.manual_seed(1)
    first = nn.Conv2d(1, 4, 3, padding=1)
    return nn.Sequential(first, nn.BatchNorm2d(4) if norm else nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def train(model: nn.Module, batch_size: int, **options: Any) -> Any:
    dataset = options.pop("dataset", data(96, 1))
    loader = DataLoader(dataset, batch_size, shuffle=True, generator=torch.Generator())
    # 45 images do not go into pairs of batches: some would be counted twice.
    held_out = options.pop("val_loader", DataLoader(data(45, 2), 8))
    fixed: dict[str, Any] = {"epochs": 3, "lr": 0.05, "clip_norm": 1.0, "ema_decay": 0.8, "progress": False}
    return fec_fast.finetune(model, loader, val_loader=held_out, **{**fixed, **options})


def boxes(folder: Path) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Twelve training images and five held-out ones, each with one or two boxes."""

    def image(number: int) -> list[voc_folders.Box]:
        left = 5 + 7 * number % 40
        red: voc_folders.Box = ("red", left, 10, left + 30, 40)
        return [red, ("blue", 50, 90 - left, 75, 115 - left)] if number % 3 else [red]

    if not folder.exists():
        splits = {part: {f"{part}{n}": image(n) for n in range(count)} for part, count in (("train", 12), ("val", 5))}
        voc_folders.write(folder, splits, size=(128, 128))
    return voc(folder, batch_size=3, image_size=64, augment="none")


def detector(folder: Path, **options: Any) -> tuple[nn.Module, Any]:
    """A trained one."""
    torch.manual_seed(1)
    model = zoo.build("zoo:ssd-small", num_classes=3, image_size=64)
    train_loader, held_out = boxes(folder)
    fixed: dict[str, Any] = {"epochs": 2, "lr": 0.01, "clip_norm": 10.0, "progress": False}
    return model, fec_fast.finetune(model, train_loader, task=Detection(), val_loader=held_out, **fixed, **options)


def pretend_gpus() -> None:
    """Makes accelerate split the weights (FSDP2) among processes on the CPU, which it does on GPUs only."""
    from accelerate import DistributedType, PartialState

    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}
    # The second is what `accelerate launch` sets.
    os.environ |= {"FSDP_MIN_NUM_PARAMS": "30", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def kept(out: Path, name: str, model: nn.Module, result: Any) -> None:
    """Leaves what came out for the test."""
    save_file(model.state_dict(), out / f"{name}-{os.environ['RANK']}.safetensors")
    rows = [asdict(row) for row in result.history]
    (out / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(rows))


def whole_ones(out: Path, how: str) -> None:
    """Each process has all weights."""
    options: dict[str, Any] = {"checkpoint": out / "state", "resume": how == "resume"}
    if how == "killed":
        options["dataset"] = Deadly(*data(96, 1).tensors)
    for norm in (False, True) if how == "whole" else (False,):
        model = network(norm)
        kept(out, f"{how}-{norm}", model, train(model, 8, log_dir=out / "logs", **({} if norm else options)))
    if how == "whole":
        kept(out, "boxes", *detector(out / "voc"))


def parts(out: Path) -> None:
    """Each process has a part of each weight."""
    pretend_gpus()
    bf16 = {"mixed_precision": "bf16"}
    for name, norm, options in (("parts", False, {}), ("parts", True, {}), ("bf16", True, bf16)):
        model = network(norm)
        if os.environ["RANK"] == "1":  # all get the first one's
            nn.init.normal_(model[0].weight)
        kept(out, f"{name}-{norm}", model, train(model, 8, checkpoint=out / "state", **options))
    with pytest.raises(fec_fast.BackendError, match="SSD cannot be sharded.*NO_WRAP: .*ModuleList"):
        detector(out / "voc")
    with mock.patch.dict(os.environ, {"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}):
        kept(out, "boxes", *detector(out / "voc", ema_decay=0.5))
    held_out = DataLoader(data(45, 2), 45)
    for after, resume in ((1, False), (99, True)):
        model = network(norm=True)
        options = {"val_loader": Stops(held_out, after), "optimizer": "adamw", "checkpoint": out / "stopped"}
        try:
            result = train(model, 8, resume=resume, **options)
        except fec_fast.TrainingInterrupted:
            assert not resume
            save_file(model.state_dict(), out / f"interrupted-{os.environ['RANK']}.safetensors")
            if os.environ["RANK"] == "0":
                shutil.copytree(out / "stopped", out / "handed")
        else:
            kept(out, "resumed", model, result)
    model = network(norm=True)
    kept(out, "undisturbed", model, train(model, 8, val_loader=held_out, optimizer="adamw"))


def handed(out: Path) -> None:
    """Whole weights go on with a state that parts have left."""
    model = network(norm=True)
    options: dict[str, Any] = {"val_loader": DataLoader(data(45, 2), 45), "optimizer": "adamw", "resume": True}
    kept(out, "handed", model, train(model, 8, checkpoint=out / "handed", **options))


def work(folder: str, how: str) -> None:
    """What a process does."""
    if how == "handed":
        handed(Path(folder))
    elif how == "parts":
        parts(Path(folder))
    else:
        whole_ones(Path(folder), how)


def start(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*LAUNCH, *command], capture_output=True, text=True, env=environment, timeout=200, check=False
    )


def launch(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(tests=[str(Path(__file__).parent), str(Path(__file__).parents[1])]))
    return start(script, folder, how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    boxes(folder / "voc")
    done = launch(folder, "whole")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, whole: Path) -> Path:
    folder = tmp_path_factory.mktemp("split")
    boxes(folder / "voc")
    done = launch(folder, "parts")
    assert done.returncode == 0, done.stderr
    return folder


def told(folder: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_two_processes_are_one_with_twice_the_batch(whole: Path) -> None:
    model = network(norm=False)
    result = train(model, 16)
    weights = [load_file(whole / f"whole-False-{rank}.safetensors") for rank in (0, 1)]
    start = network(norm=False).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(weights[0][name], weights[1][name])
        assert torch.allclose(weights[0][name], value, atol=1e-5)
        assert not torch.allclose(start[name], value, atol=1e-3)
    for one, two, other in zip(result.history, told(whole, "whole-False-0"), told(whole, "whole-False-1"), strict=True):
        assert two == other
        assert two["images"] == one.images == 96
        assert two["loss"] == pytest.approx(one.loss, rel=1e-4)
        assert two["metrics"] == pytest.approx(one.metrics, abs=2 / 96) and two["lr"] == one.lr
        assert two["held_out"] == pytest.approx(one.held_out, rel=1e-4)


@pytest.mark.parametrize("norm", [False, True])
def test_every_held_out_image_is_counted_once(whole: Path, norm: bool) -> None:
    model = network(norm)
    model.load_state_dict(load_file(whole / f"whole-{norm}-0.safetensors"))
    held_out = DataLoader(data(45, 2), 45)
    accuracy = fec_fast.evaluate(model, held_out)
    assert round(45 * accuracy) not in (0, 45)
    for rank in (0, 1):
        assert told(whole, f"whole-{norm}-{rank}")[-1]["held_out"]["accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_processes_agree_on_batch_norm(whole: Path) -> None:
    one, other = (load_file(whole / f"whole-True-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_only_one_process_writes_the_log(whole: Path) -> None:
    assert len((whole / "logs" / "metrics.csv").read_text().splitlines()) == 4


def test_a_killed_process_leaves_a_state_that_goes_on(whole: Path, tmp_path: Path) -> None:
    done = launch(tmp_path, "killed")
    assert done.returncode != 0 and not (tmp_path / "killed-False-0.safetensors").exists()
    assert json.loads((tmp_path / "state" / "training.json").read_text())["epoch"] == 1
    done = launch(tmp_path, "resume")
    assert done.returncode == 0, done.stderr
    expected, found = load_file(whole / "whole-False-0.safetensors"), load_file(tmp_path / "resume-False-1.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert told(tmp_path, "resume-False-0") == told(whole, "whole-False-0")
    # The numbers depend on how many share the work.
    with pytest.raises(fec_fast.CheckpointError, match="processes was 2 and is 1"):
        train(network(norm=False), 8, checkpoint=tmp_path / "state", resume=True)


def test_a_recipe_is_run_by_two_processes(tmp_path: Path) -> None:
    for package in ("yaml", "jsonschema", "sklearn"):
        pytest.importorskip(package)
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(
        "model: zoo:vgg-digits\ndata: {name: 'sklearn:digits', limit: 20, batch_size: 50}\n"
        "prune: {ratio: 0.5}\nfinetune: {epochs: 1}\n"
    )
    done = start("-m", "fec_fast", "run", recipe, "--out", out)
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "results.json").read_text())
    assert results["processes"] == 2 and results["training"]["pruned_tuned"]["epochs"][0]["images"] == 200
    network = fec_fast.load(zoo.build("zoo:vgg-digits"), out / "checkpoint")
    assert sum(p.numel() for p in network.parameters()) == results["size"]["after"]["parameters"]
    assert done.stdout.count("written:") == 1
    done = start("-m", "fec_fast", "run", recipe, "--out", out)
    assert done.returncode != 0 and "go on with it by --resume" in done.stderr


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], *, atol: float = 1e-5) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=atol) for name in one)


def test_detectors_are_trained_by_two_processes_as_by_one_in_two_parts(whole: Path) -> None:
    model, result = detector(whole / "voc", accumulate=2)
    found, other = (load_file(whole / f"boxes-{rank}.safetensors") for rank in (0, 1))
    names = [name for name, _ in model.named_parameters()]
    assert close({name: found[name] for name in names}, dict(model.named_parameters()), atol=1e-4)
    assert all(torch.equal(found[name], other[name]) for name in found)
    rows = told(whole, "boxes-0")
    assert rows == told(whole, "boxes-1")
    for two, one in zip(rows, result.history, strict=True):
        assert two["images"] == one.images == 12 and two["loss"] == pytest.approx(one.loss, rel=1e-3)
        assert two["metrics"] == pytest.approx(one.metrics, rel=1e-3)
    model.load_state_dict(found)
    assert rows[-1]["held_out"]["map"] == pytest.approx(
        evaluate_detector(model, boxes(whole / "voc")[1]).coco, abs=1e-6
    )


@pytest.mark.parametrize("name", ["parts-False", "parts-True", "bf16-True"])
def test_split_weights_train_as_whole_ones(whole: Path, split: Path, name: str) -> None:
    as_whole = f"whole-{name.split('-')[1]}"
    expected, exactly = load_file(whole / f"{as_whole}-0.safetensors"), not name.startswith("bf16")
    found, other = (load_file(split / f"{name}-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(found[key], other[key]) for key in found)
    assert close(found, expected, atol=1e-5 if exactly else 1e-2) and close(found, expected) == exactly
    rows = told(split, f"{name}-0")
    assert rows == told(split, f"{name}-1")
    for one, two in zip(rows, told(whole, f"{as_whole}-0"), strict=True):
        assert one["images"] == two["images"] and one["lr"] == two["lr"]
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4 if exactly else 1e-2)
        assert one["held_out"] == pytest.approx(two["held_out"], rel=1e-4 if exactly else 0.1)


def test_split_weights_are_resumed_to_the_same_bits(split: Path) -> None:
    names = ("resumed", "undisturbed", "interrupted")
    resumed, undisturbed, interrupted = (load_file(split / f"{name}-0.safetensors") for name in names)
    assert all(torch.equal(resumed[key], undisturbed[key]) for key in undisturbed)
    assert told(split, "resumed-1") == told(split, "undisturbed-0")
    assert not close(interrupted, undisturbed, atol=1e-3)  # it holds what the first epoch came to, not nothing
    assert not close(interrupted, network(norm=True).state_dict(), atol=1e-3)


def test_whole_weights_go_on_with_a_state_of_split_ones(split: Path) -> None:
    done = launch(split, "handed")
    assert done.returncode == 0, done.stderr
    found, expected = (load_file(split / f"{name}-0.safetensors") for name in ("handed", "undisturbed"))
    # A bias before batch norm has no gradient but rounding, of which AdamW makes whole steps; the mean takes it off.
    bias, mean = ([state.pop(name) for state in (found, expected)] for name in ("0.bias", "1.running_mean"))
    assert close(found, expected, atol=1e-4)
    assert torch.allclose(mean[0] - bias[0], mean[1] - bias[1], atol=0.02)  # the mean lags behind the bias
    rows = zip(told(split, "handed-0"), told(split, "undisturbed-0"), strict=True)
    assert all(one["loss"] == pytest.approx(other["loss"], rel=1e-4) for one, other in rows)


def test_a_detector_with_split_weights_is_evaluated_as_it_results(split: Path) -> None:
    model = zoo.build("zoo:ssd-small", num_classes=3, image_size=64)
    model.load_state_dict(load_file(split / "boxes-1.safetensors"))
    expected = evaluate_detector(model, boxes(split / "voc")[1])
    assert told(split, "boxes-0")[-1]["held_out"]["map_50"] == pytest.approx(expected.coco_50, abs=1e-6)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_other_ways_of_splitting_weights_are_refused(kind: str) -> None:
    from accelerate import DistributedType

    accelerator: Any = SimpleNamespace(distributed_type=DistributedType[kind], is_fsdp2=False)
    with pytest.raises(fec_fast.BackendError, match="fsdp_version 2" if kind == "FSDP" else f"{kind} is not supported"):
        uses_fsdp2(accelerator)
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=True)
    assert uses_fsdp2(accelerator)


def test_weights_that_are_not_split_after_all_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.warns(UserWarning, match="only across several GPUs: here every process holds all weights"):
        train(network(norm=False), 8, epochs=1)

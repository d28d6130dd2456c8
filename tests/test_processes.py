"""Two processes on the CPU (gloo) train as one does with twice the batch; one that is killed leaves a state behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fec_fast
from fec_fast import zoo

pytest.importorskip("accelerate")

# `accelerate launch --cpu --num_processes 2` starts one process only, unless there is MPI. This starts two on the CPU.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
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
    held_out = DataLoader(data(45, 2), 8)  # 45 images do not go into pairs of batches: some would be counted twice
    fixed: dict[str, Any] = {"epochs": 3, "lr": 0.05, "clip_norm": 1.0, "ema_decay": 0.8, "progress": False}
    return fec_fast.finetune(model, loader, val_loader=held_out, **fixed, **options)


def work(folder: str, how: str) -> None:
    """What a process does."""
    out = Path(folder)
    rank = os.environ["RANK"]
    options: dict[str, Any] = {"checkpoint": out / "state", "resume": how == "resume"}
    if how == "killed":
        options["dataset"] = Deadly(*data(96, 1).tensors)
    for norm in (False, True) if how == "whole" else (False,):
        model = network(norm)
        result = train(model, 8, log_dir=out / "logs", **({} if norm else options))
        save_file(model.state_dict(), out / f"{how}-{norm}-{rank}.safetensors")
        rows = [asdict(row) for row in result.history]
        (out / f"{how}-{norm}-{rank}.json").write_text(json.dumps(rows))


def start(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*LAUNCH, *command], capture_output=True, text=True, env=environment, timeout=200, check=False
    )


def launch(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    return start(script, folder, how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = launch(folder, "whole")
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

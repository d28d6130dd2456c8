"""Networks of ultralytics: pruned in a YOLO object, then validated, trained, resumed, exported, saved and loaded."""

from __future__ import annotations

import importlib
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import yolo_data
from helpers.processes import run_python, torchrun
from helpers.yolo_data import without_network, write_boxes

without_network()
pytest.importorskip("ultralytics", reason="needs the extra 'ultralytics': pip install 'fec_fast[ultralytics]'")

from PIL import Image  # noqa: E402
from ultralytics import RTDETR, YOLO  # noqa: E402

import fec_fast  # noqa: E402
from fec_fast import ArgumentError, Budget, CheckpointError, InputError, PlanError  # noqa: E402
from fec_fast.integrations import tested_versions  # noqa: E402
from fec_fast.integrations import ultralytics as integration  # noqa: E402
from helpers.yolo_networks import (  # noqa: E402
    Interrupted,
    interrupt,
    settings,
    tiny_rtdetr,
    two_classes,
    widths,
    with_statistics,
)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

HALF = Budget.remove(macs=0.5)
EXAMPLE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def outputs(yolo: Any) -> torch.Tensor:
    """What the head computes for the example, in evaluation mode."""
    with torch.no_grad():
        found = yolo.model.eval()(EXAMPLE)
    while isinstance(found, tuple | list):
        found = found[0]
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up data set: ten images to train on, four to validate on, one box in each."""
    return write_boxes(tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned network, as a folder; every test loads its own."""
    yolo = two_classes(tmp_path_factory.mktemp("dense"))
    integration.prune(yolo, budget=HALF, imgsz=64, criterion="l1", recover=None)
    return integration.save(yolo, tmp_path_factory.mktemp("pruned") / "yolo")


@pytest.fixture(scope="module")
def interrupted(saved: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last.pt of a training that ended after the first of three epochs."""
    yolo, folder = integration.load(saved), tmp_path_factory.mktemp("interrupted")
    yolo.add_callback("on_model_save", interrupt)
    with pytest.raises(Interrupted):
        yolo.train(epochs=3, **settings(data, folder))
    return folder / "run" / "weights" / "last.pt"


@pytest.mark.parametrize("name", ["yolov10n", "yolo11n-seg", "yolo26n-pose", "yolov8n-obb", "yolo11n-cls"])
def test_every_family_and_task_is_pruned_and_loaded_again(name: str, tmp_path: Path) -> None:
    yolo = with_statistics(YOLO(f"{name}.yaml"))
    head = outputs(yolo).shape
    result = integration.prune(yolo, budget=HALF, imgsz=64, criterion="l1", verify=False, recover=None)
    assert yolo.model is result.model and result.after.macs <= 0.5 * result.before.macs
    assert result.plan.pinned
    assert outputs(yolo).shape == head
    again = integration.load(integration.save(yolo, tmp_path / "saved"))
    assert torch.equal(outputs(again), outputs(yolo))
    assert type(again) is type(yolo) and again.task == yolo.task and again.names == yolo.names


def test_rtdetr_keeps_its_own_class(tmp_path: Path) -> None:
    model = tiny_rtdetr(tmp_path)
    integration.prune(model, budget=Budget.remove(macs=0.3), imgsz=64, criterion="l1", verify=False, recover=None)
    again = integration.load(integration.save(model, tmp_path / "saved"))
    assert isinstance(again, RTDETR) and torch.equal(outputs(again), outputs(model))


def test_pruning_again_gives_one_plan_for_the_original(tmp_path: Path) -> None:
    yolo = two_classes(tmp_path)
    first = integration.prune(
        yolo, budget=Budget.remove(macs=0.3), imgsz=64, criterion="l1", verify=False, recover=None
    )
    second = integration.prune(
        yolo, budget=Budget.remove(macs=0.3), imgsz=64, criterion="l1", verify=False, recover=None
    )
    assert integration.plan_of(yolo) == fec_fast.compose(first.plan, second.plan)
    again = integration.load(integration.save(yolo, tmp_path / "saved"))
    assert torch.equal(outputs(again), outputs(yolo))


def test_it_recovers_on_the_images_of_its_data_set(data: Path, tmp_path: Path) -> None:
    yolo, plain = two_classes(tmp_path), two_classes(tmp_path)
    reference = outputs(plain)
    result = integration.prune(yolo, budget=HALF, imgsz=64, recover=data, criterion="l1", verify=False)
    fec_fast.apply_plan(plain.model, result.plan)
    assert result.recovery is not None and result.recovery.note in result.plan.notes
    assert (outputs(yolo) - reference).norm() < (outputs(plain) - reference).norm() / 2


def test_calibration_images_are_those_of_the_files(data: Path, saved: Path) -> None:
    yolo, folder = integration.load(saved), data.parent / "images" / "val"
    files = [folder / f"{number}.png" for number in range(4)]
    pictures = np.stack([np.array(Image.open(file)) for file in files])
    expected = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    loader = integration.calibration_images(yolo, folder, imgsz=64, batch=3)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == 2 and torch.equal(torch.cat(batches), expected)
    train = data.parent / "images" / "train"
    for source in (data, data.parent / "images"):
        some = integration.calibration_images(yolo, source, imgsz=64, images=5).files
        assert some == [str(train / f"{number}.png") for number in (0, 2, 4, 6, 8)]


def test_val_predict_and_train_keep_the_widths(saved: Path, data: Path, tmp_path: Path) -> None:
    yolo, seen = integration.load(saved), []
    plan, before, given = integration.plan_of(yolo), widths(yolo.model), outputs(yolo)
    weights = {name: tensor.clone() for name, tensor in yolo.model.state_dict().items()}
    yolo.add_callback("on_train_start", lambda trainer: seen.extend([trainer.model, trainer.ema.ema]))
    yolo.val(**settings(data, tmp_path))
    assert len(yolo.predict(str(data.parent / "images" / "val"), imgsz=64, verbose=False)) == 4
    after = yolo.model.state_dict()
    assert after.keys() == weights.keys() and all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    # Both set the number of threads, by which sums are rounded differently.
    torch.testing.assert_close(outputs(yolo), given, rtol=1e-4, atol=1e-4)
    yolo.train(epochs=1, **settings(data, tmp_path))
    assert all(widths(model) == before for model in (*seen, yolo.model)) and len(seen) == 2
    assert yolo.names == {0: "kind0", 1: "kind1"}
    assert integration.plan_of(yolo) == plan and not torch.equal(outputs(yolo), given)
    best = integration.from_checkpoint(yolo.trainer.best)
    assert torch.equal(outputs(best), outputs(yolo))
    again = integration.load(integration.save(yolo, tmp_path / "tuned"))
    assert torch.equal(outputs(again), outputs(yolo)) and again.names == yolo.names


def test_training_starts_from_the_pruned_weights(saved: Path, data: Path, tmp_path: Path) -> None:
    yolo, first = integration.load(saved), {}
    weights = {name: tensor.clone() for name, tensor in yolo.model.state_dict().items()}

    def look(trainer: Any) -> None:
        first.update(trainer.model.state_dict())
        raise Interrupted

    yolo.add_callback("on_train_start", look)
    with pytest.raises(Interrupted):
        yolo.train(epochs=1, **settings(data, tmp_path))
    assert all(torch.equal(first[name], tensor) for name, tensor in weights.items())


def test_a_training_is_resumed_at_its_widths(interrupted: Path, saved: Path, tmp_path: Path) -> None:
    yolo, starts = integration.from_checkpoint(interrupted), []
    stored = yolo.ckpt["ema"].state_dict()

    def look(trainer: Any) -> None:
        starts.append((trainer.start_epoch, len(trainer.optimizer.state)))
        assert all(torch.equal(trainer.ema.ema.state_dict()[name], tensor) for name, tensor in stored.items())

    yolo.add_callback("on_train_start", look)
    yolo.train(resume=True, save_dir=str(tmp_path))
    assert starts[0][0] == 1 and starts[0][1] > 100 and yolo.trainer.epoch == 2
    assert widths(yolo.model) == widths(integration.load(saved).model)


def test_stock_code_uses_a_pruned_checkpoint_but_ends_with_a_hint_where_it_would_undo_it(
    interrupted: Path, data: Path, tmp_path: Path
) -> None:
    pruned = integration.from_checkpoint(interrupted)
    stock = YOLO(str(interrupted))
    assert type(stock) is YOLO and torch.equal(outputs(stock), outputs(pruned))
    stock.val(**settings(data, tmp_path))
    for options in ({"resume": True, "save_dir": str(tmp_path)}, {"epochs": 1, **settings(data, tmp_path)}):
        with pytest.raises(KeyError, match="integrations.ultralytics.from_checkpoint"):
            YOLO(str(interrupted)).train(**options)
    with pytest.raises(RuntimeError, match="size mismatch"):
        two_classes(tmp_path).model.load_state_dict(pruned.model.state_dict())


def test_stock_code_that_is_not_stopped_makes_no_pruned_network(interrupted: Path, saved: Path, tmp_path: Path) -> None:
    pruned = widths(integration.load(saved).model)
    dense = two_classes(tmp_path)
    assert dense.load(str(interrupted)) is dense
    beside_the_class_branch = {name for name in pruned if ".cv3." not in name}
    assert {name: widths(dense.model)[name] for name in beside_the_class_branch} == {
        name: widths(two_classes(tmp_path).model)[name] for name in beside_the_class_branch
    }
    (file,) = saved.glob("*.yaml")
    assert widths(YOLO(str(file)).model) == widths(two_classes(tmp_path).model) != pruned
    torch.save(dense.model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(TypeError, match=r"weights\.pt"):
        YOLO(str(tmp_path / "weights.pt"))
    with pytest.raises(TypeError, match="is not a supported model format"):
        YOLO(str(saved)).predict(torch.rand(1, 3, 64, 64))


def test_what_the_wrong_function_opens_is_told_the_right_one(interrupted: Path, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="open it with load of the same module, not with YOLO"):
        integration.prune(YOLO(str(saved)), budget=HALF)
    with pytest.raises(CheckpointError, match="open it with load"):
        integration.from_checkpoint(saved)
    with pytest.raises(CheckpointError, match="with from_checkpoint"):
        integration.load(interrupted)
    with pytest.raises(CheckpointError, match="its folder 'pruned' is one.*open it with load"):
        fec_fast.load(two_classes(tmp_path).model, saved)
    torch.save(two_classes(tmp_path).model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="weights alone"):
        integration.from_checkpoint(tmp_path / "weights.pt")


def test_the_file_for_several_processes_trains_the_widths_in_a_fresh_one(
    saved: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("cloudpickle")
    from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file

    yolo = integration.load(saved)
    yolo.add_callback("on_train_start", interrupt)
    with pytest.raises(Interrupted):
        yolo.train(epochs=1, **settings(data, tmp_path))
    trainer = yolo.trainer
    trainer.callbacks = {}
    trainer.model = trainer.get_model(cfg=yolo.model.yaml, weights=yolo.model)
    file = generate_ddp_file(trainer)
    try:
        done = run_python(file, timeout=240)
    finally:
        ddp_cleanup(trainer, file)
    assert done.returncode == 0, done.stderr[-2000:]
    assert widths(integration.from_checkpoint(trainer.last).model) == widths(yolo.model)


@pytest.mark.distributed
def test_two_processes_train_the_same_narrow_network(saved: Path, data: Path, tmp_path: Path) -> None:
    program = Path(yolo_data.__file__).with_name("yolo_pair.py")
    done = torchrun(program, saved, data, tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    size = sum(parameter.numel() for parameter in integration.load(saved).model.parameters())
    assert first == second and first["wrapped"] and first["parameters"] == first["average"] == size
    assert widths(integration.from_checkpoint(tmp_path / "run" / "weights" / "last.pt").model) == widths(
        integration.load(saved).model
    )


def test_older_patches_and_newer_versions_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, warned in (("8.4.189", True), ("8.4.190", False), ("8.4.300", False), ("8.5.0", True)):
        monkeypatch.setattr(tested_versions, "version", lambda package, installed=installed: installed)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            tested_versions.warn_if_untested("ultralytics", "8.4.190", "8.4")
        assert bool(seen) == warned, installed


def test_where_ultralytics_is_missing_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [each for each in sys.modules if each.startswith("fec_fast.integrations.ultralytics")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(fec_fast.MissingExtraError, match=r"pip install 'fec_fast\[ultralytics\]'"):
        importlib.import_module("fec_fast.integrations.ultralytics")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_export_computes_what_the_pruned_network_computes(
    runtime: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip(runtime)
    yolo = integration.load(saved)
    expected = outputs(yolo).numpy()
    monkeypatch.chdir(tmp_path)  # the file is written where the process is
    if runtime == "onnxruntime":
        file = yolo.export(format="onnx", imgsz=64, simplify=False, device="cpu")
        assert file == "yolov8n-pruned.onnx"  # not the name of the dense network's export
        (found, *_) = package.InferenceSession(file).run(None, {"images": EXAMPLE.numpy()})
    else:
        (file,) = Path(yolo.export(format="openvino", imgsz=64, device="cpu")).glob("*.xml")
        exact = {"INFERENCE_PRECISION_HINT": "f32"}  # the default is bfloat16 where the processor has it
        found = package.Core().compile_model(str(file), "CPU", exact)(EXAMPLE.numpy())[0]
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


def test_words_for_a_recovery_are_no_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yolo, asked = two_classes(tmp_path), []

    def stop(*arguments: object, recover: object, **options: object) -> None:
        asked.append(recover)
        raise Interrupted

    monkeypatch.setattr(integration, "prune_network", stop)
    for given in ({}, {"recover": "auto"}, {"recover": "data-free"}, {"recover": None}):
        with pytest.raises(Interrupted):
            integration.prune(yolo, budget=HALF, imgsz=64, **given)
    assert asked == ["auto", "auto", "data-free", None]


def test_what_cannot_be_pruned_is_refused(saved: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="expected an ultralytics.YOLO or RTDETR object, got a DetectionModel"):
        integration.prune(two_classes(tmp_path).model, budget=HALF)
    fused = two_classes(tmp_path)
    fused.fuse(verbose=False)
    with pytest.raises(ArgumentError, match=r"before fuse\(\)"):
        integration.prune(fused, budget=HALF)
    yolo = two_classes(tmp_path)
    dense = yolo.model
    for imgsz in (50, 0, "64"):
        with pytest.raises(ArgumentError, match="a multiple of 32 pixels"):
            integration.prune(yolo, budget=HALF, imgsz=imgsz)
    with pytest.raises(fec_fast.BudgetError):
        integration.prune(yolo, budget=Budget(macs=1), imgsz=64, recover=None)
    (tmp_path / "empty").mkdir()
    misspelt = tmp_path / "misspelt.yaml"
    misspelt.write_text(data.read_text().replace("images/train", "empty"))
    with pytest.raises(InputError, match="misspelt.yaml.*empty"):
        integration.prune(yolo, budget=HALF, imgsz=64, recover=misspelt)
    for missing in (tmp_path / "empty", tmp_path / "no.yaml"):
        with pytest.raises(InputError, match="data"):
            integration.prune(yolo, budget=HALF, imgsz=64, recover=missing)
    with pytest.raises(ArgumentError, match="was not pruned"):
        integration.save(yolo, tmp_path / "saved")
    assert yolo.model is dense and type(yolo) is YOLO and integration.plan_of(yolo) is None


def test_a_plain_pruning_says_that_ultralytics_builds_its_networks_anew(tmp_path: Path) -> None:
    yolo = two_classes(tmp_path)
    options = {"budget": HALF, "criterion": "l1", "verify": False}
    with pytest.raises(ArgumentError, match=r"a YOLO object .* is no network: call fec_fast.integrations.ultralytics"):
        fec_fast.prune(yolo, EXAMPLE, **options, recover=None)
    with pytest.warns(fec_fast.FecWarning, match="trainer builds it anew at full width"):
        fec_fast.prune(yolo.model, EXAMPLE, **options, recover=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*builds it anew")
        integration.prune(yolo, imgsz=64, recover=None, **options)


def test_trainings_that_would_undo_the_pruning_are_refused(saved: Path, data: Path, tmp_path: Path) -> None:
    yolo = integration.load(saved)
    with pytest.raises(ArgumentError, match="no weights, so at full width"):
        yolo.train(epochs=1, pretrained=False, **settings(data, tmp_path))
    with pytest.raises(ArgumentError, match="tune the dense network"):
        yolo.tune(data=str(data))
    with pytest.raises(ArgumentError, match="no interrupted training.*from_checkpoint"):
        yolo.train(resume=True)
    three = tmp_path / "three.yaml"
    three.write_text(data.read_text().replace("1: kind1", "1: kind1, 2: kind2"))
    with pytest.raises(PlanError, match="pruned with 2 classes, the data have 3"):
        integration.load(saved).train(epochs=1, **settings(three, tmp_path))


def test_damaged_and_foreign_folders_and_files_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="leave out .pt"):
        integration.save(integration.load(saved), tmp_path / "pruned.pt")
    with pytest.raises(CheckpointError, match="give what save wrote"):
        integration.load(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="something other"):
        integration.save(integration.load(saved), tmp_path)
    (tmp_path / "link").symlink_to(saved)
    with pytest.raises(CheckpointError, match="is not a folder but a symbolic link"):
        integration.save(integration.load(saved), tmp_path / "link")
    with pytest.raises(CheckpointError, match="no such file"):
        integration.from_checkpoint(tmp_path / "last.pt")
    dense = two_classes(tmp_path)
    dense.save(str(tmp_path / "dense.pt"))
    with pytest.raises(CheckpointError, match="was not pruned"):
        integration.from_checkpoint(tmp_path / "dense.pt")
    (file,) = saved.glob("*.yaml")
    whole = file.read_text()
    try:
        for edited, message in (
            (whole.replace("SPPF", "torch_load"), "'torch_load', which is no layer"),
            (whole.replace("SPPF", "Path"), "'Path', which is no layer"),
            (whole + "activation: exit()\n", r"activation 'exit\(\)'"),
            ("nc: 2\n", "edited or damaged"),
            ("nc: [", "is not YAML"),
            (re.sub(r"head:(.|\n)*?(?=^\w)", "head: []\n", whole, count=1, flags=re.MULTILINE), "edited or damaged"),
            (whole.replace("[64, 3, 2]", "[65537, 3, 2]"), "the number 65,537"),
            (whole.replace("- 6\n", "- 60000\n"), "layers; at most 1,000 layers"),
            (whole.replace("[64, 3, 2]", "[64, 3, -7]"), "cannot build its network"),
            (whole.replace("0.125, 1024", "20.0, 60000"), "needs far more than the one that was pruned"),  # weights
            (whole.replace("[64, 3, 2]", "[64, 250, 1]"), "needs far more than the one that was pruned"),  # products
        ):
            assert edited != whole
            file.write_text(edited)
            with pytest.raises(CheckpointError, match=message):
                integration.load(saved)
    finally:
        file.write_text(whole)
    assert integration.save(integration.load(saved), saved) == saved, "its own folder is replaced"

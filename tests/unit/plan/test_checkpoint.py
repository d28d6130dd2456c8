"""save and load: bit-equal, all or nothing, and no file of another program is overwritten."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import nn

import fec_fast
from fec_fast.plan import checkpoint, checkpoint_files
from fec_fast.utils import files, tensor_files
from fec_fast.utils.files import sha256
from fec_fast.vision import zoo
from helpers.comparison import assert_same_weights
from helpers.folders import umask
from helpers.networks import SharedWeight

EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pruned() -> fec_fast.PruneResult:
    torch.manual_seed(0)
    model = zoo.build("zoo:resnet-digits")
    for _ in range(3):
        model(torch.randn(8, 1, 8, 8))  # running statistics that are not the initial ones
    return fec_fast.prune(model.eval(), EXAMPLE, ratio=0.5, recover=None)


@pytest.fixture
def folder(pruned: fec_fast.PruneResult, tmp_path: Path) -> Path:
    return fec_fast.save(pruned, tmp_path / "saved")


def fresh() -> nn.Module:
    torch.manual_seed(5)
    return zoo.build("zoo:resnet-digits").eval()


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    tensors = {name: (id(t), t.clone()) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    numbers = {
        (name, key): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | float)
    }
    return tensors, numbers


def assert_untouched(model: nn.Module, before: tuple[Any, ...]) -> None:
    tensors, numbers = snapshot(model)
    assert numbers == before[1]
    assert list(tensors) == list(before[0])
    for name, (identity, value) in tensors.items():
        assert identity == before[0][name][0]
        assert torch.equal(value, before[0][name][1]), name


def test_loaded_model_is_bit_equal(pruned: fec_fast.PruneResult, folder: Path) -> None:
    model = fresh()
    assert fec_fast.load(model, folder) is model
    assert_same_weights(model, pruned.model)
    with torch.no_grad():
        assert torch.equal(model(EXAMPLE), pruned.model(EXAMPLE))
    assert model.conv1.weight.requires_grad and not model.training


def test_files(pruned: fec_fast.PruneResult, folder: Path) -> None:
    assert sorted(os.listdir(folder)) == ["checkpoint.json", "model.safetensors", "plan.json"]
    assert os.listdir(folder.parent) == ["saved"]
    assert checkpoint.read_plan(folder) == pruned.plan
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask()
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o666 & ~umask()}


def header_and_data(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, whose entries the library writes in any order, and all bytes of the tensors."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


@pytest.mark.parametrize("by_name", [False, True])
def test_both_forms_of_save_write_the_same_files(pruned: fec_fast.PruneResult, tmp_path: Path, by_name: bool) -> None:
    paths = [tmp_path / "result", tmp_path / "model"]
    if by_name:
        assert fec_fast.save(folder=str(paths[0]), result=pruned) == paths[0]
        assert fec_fast.save(folder=str(paths[1]), plan=pruned.plan, model=pruned.model) == paths[1]
    else:
        assert fec_fast.save(pruned, paths[0]) == paths[0]
        assert fec_fast.save(pruned.model, pruned.plan, paths[1]) == paths[1]
    assert [sorted(os.listdir(path)) for path in paths] == [["checkpoint.json", "model.safetensors", "plan.json"]] * 2
    assert (paths[0] / "plan.json").read_bytes() == (paths[1] / "plan.json").read_bytes()
    headers, weights = zip(*(header_and_data(path / "model.safetensors") for path in paths), strict=True)
    assert headers[0] == headers[1] and weights[0] == weights[1]
    assert_same_weights(fec_fast.load(fresh(), paths[1]), pruned.model)


class NoModel:
    """What has a plan but no model to save."""

    model = {"weight": torch.ones(1)}  # noqa: RUF012 (never changed)

    def __init__(self, plan: object) -> None:
        self.plan = plan


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r, f: fec_fast.save(), "result is missing"),
        (lambda r, f: fec_fast.save(r), "folder is missing"),
        (lambda r, f: fec_fast.save(folder=f), "result is missing"),
        (lambda r, f: fec_fast.save(r.model), "plan is missing"),
        (lambda r, f: fec_fast.save(r.model, r.plan), "folder is missing"),
        (lambda r, f: fec_fast.save(r.model, "out"), r"plan='out': expected a fec_fast\.Plan"),
        (lambda r, f: fec_fast.save(r.model, "out", f), r"plan='out': expected a fec_fast\.Plan"),
        (lambda r, f: fec_fast.save(r.model, {}, f), r"plan=<dict>: expected a fec_fast\.Plan"),
        (lambda r, f: fec_fast.save(r.plan, r.model, f), r"model=<Plan>: expected a torch\.nn\.Module"),
        (lambda r, f: fec_fast.save(r, r.plan, f), r"model=<PruneResult>: expected a torch\.nn\.Module"),
        (lambda r, f: fec_fast.save(r.model.state_dict(), r.plan, f), r"model=<OrderedDict>: expected a torch\.nn"),
        (lambda r, f: fec_fast.save(r.plan, f), r"result=<Plan>: expected a fec_fast\.PruneResult"),
        (lambda r, f: fec_fast.save("out", r), r"result='out': expected a fec_fast\.PruneResult"),
        (lambda r, f: fec_fast.save(NoModel(r.plan), f), r"result\.model=<dict>: expected a torch\.nn\.Module"),
        (lambda r, f: fec_fast.save(r, r), r"folder=<PruneResult>: expected a path"),
        (lambda r, f: fec_fast.save(r, 3), "folder=3: expected a path"),
        (lambda r, f: fec_fast.save(r.model, r.plan, None), "folder=None: expected a path"),
        (lambda r, f: fec_fast.save(r.model, r.plan, f, 7), "7 is one argument too many"),
        (lambda r, f: fec_fast.save(r, folder=f, overwrite=True), "overwrite=True is one argument too many"),
        (lambda r, f: fec_fast.save(r.model, r.plan, f, model=r.model), "model=<SmallResNet> is one argument too many"),
        (lambda r, f: fec_fast.save(r, plan=r.plan, folder=f), r"model=<PruneResult>: expected a torch\.nn\.Module"),
    ],
)
def test_arguments_of_neither_form_are_named(
    pruned: fec_fast.PruneResult, tmp_path: Path, call: Callable[..., Any], words: str
) -> None:
    with pytest.raises(
        fec_fast.ArgumentError, match=rf"^save: {words}.*: call save\(result, folder\) or save\(model, p"
    ):
        call(pruned, tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_a_result_whose_plan_is_none(pruned: fec_fast.PruneResult, tmp_path: Path) -> None:
    result = dataclasses.replace(pruned, plan=None)  # type: ignore[arg-type]
    with pytest.raises(fec_fast.ArgumentError, match=r"save: result\.plan=None: expected a fec_fast\.Plan: call"):
        fec_fast.save(result, tmp_path / "x")


def test_loaded_model_trains(folder: Path) -> None:
    model = fec_fast.load(fresh(), folder).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.conv1.weight.clone()
    model(EXAMPLE).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.conv1.weight, before)


def test_finetuned_weights_are_saved(pruned: fec_fast.PruneResult, tmp_path: Path) -> None:
    tuned = copy.deepcopy(pruned.model)
    with torch.no_grad():
        tuned.conv1.weight += 1
    path = fec_fast.save(nn.DataParallel(tuned), pruned.plan, tmp_path / "tuned")
    assert_same_weights(fec_fast.load(fresh(), path), tuned)


def test_wrapped_model(pruned: fec_fast.PruneResult, folder: Path) -> None:
    model = fresh()
    wrapped = nn.DataParallel(model)
    assert fec_fast.load(wrapped, folder) is wrapped
    assert_same_weights(model, pruned.model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_that_of_the_file(pruned: fec_fast.PruneResult, tmp_path: Path, dtype: torch.dtype) -> None:
    converted = copy.deepcopy(pruned.model).to(dtype)
    path = fec_fast.save(converted, pruned.plan, tmp_path / "converted")
    model = fresh()
    model.conv1.weight.grad = torch.zeros_like(model.conv1.weight)
    assert_same_weights(fec_fast.load(model, path), converted)


def test_shared_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = fec_fast.prune(SharedWeight(in_channels=1).eval(), EXAMPLE, ratio=0.5, recover=None)
    path = fec_fast.save(result, tmp_path / "tied")
    model = fec_fast.load(SharedWeight(in_channels=1).eval(), path)
    assert model.one.weight is model.two.weight
    assert_same_weights(model, result.model)
    with torch.no_grad():
        assert torch.equal(model(EXAMPLE), result.model(EXAMPLE))


def test_a_file_without_sharing_is_refused_by_a_model_with_it(tmp_path: Path) -> None:
    result = fec_fast.prune(SharedWeight(in_channels=1).eval(), EXAMPLE, ratio=0.5, recover=None)
    untied = copy.deepcopy(result.model)
    untied.two.weight = nn.Parameter(untied.one.weight + 1)
    path = fec_fast.save(untied, result.plan, tmp_path / "untied")
    model = SharedWeight(in_channels=1).eval()
    before = snapshot(model)
    with pytest.raises(fec_fast.CheckpointError, match=r"one\.weight.*two\.weight"):
        fec_fast.load(model, path)
    assert_untouched(model, before)


def test_older_checkpoint_is_replaced(pruned: fec_fast.PruneResult, folder: Path) -> None:
    changed = copy.deepcopy(pruned.model)
    with torch.no_grad():
        changed.conv1.weight.zero_()
    assert fec_fast.save(changed, pruned.plan, folder) == folder
    assert_same_weights(fec_fast.load(fresh(), folder), changed)
    assert os.listdir(folder.parent) == ["saved"]


def test_replacing_without_an_exchange(
    pruned: fec_fast.PruneResult, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    changed = copy.deepcopy(pruned.model)
    with torch.no_grad():
        changed.conv1.weight.zero_()
    fec_fast.save(changed, pruned.plan, folder)
    assert_same_weights(fec_fast.load(fresh(), folder), changed)
    assert os.listdir(folder.parent) == ["saved"]


def test_new_and_empty_folders(pruned: fec_fast.PruneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    fec_fast.save(pruned, tmp_path / "empty")
    fec_fast.save(pruned, tmp_path / "new" / "deep")
    monkeypatch.chdir(tmp_path)
    assert fec_fast.save(pruned, "relative") == tmp_path / "relative"
    for name in ("empty", "new/deep", "relative"):
        assert_same_weights(fec_fast.load(fresh(), name), pruned.model)


def test_foreign_folder_is_not_overwritten(pruned: fec_fast.PruneResult, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("all of it")
    (tmp_path / "file").write_text("x")
    (folder / "notes.txt").write_text("mine")
    for name, words in (("thesis", "chapter.tex"), ("file", "not a folder"), ("saved", "notes.txt")):
        with pytest.raises(fec_fast.CheckpointError, match=words):
            fec_fast.save(pruned, tmp_path / name)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "all of it"
    assert (folder / "notes.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "saved", "thesis"]


def test_plan_json_of_another_program_is_not_overwritten(pruned: fec_fast.PruneResult, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(fec_fast.CheckpointError, match=r"no checkpoint\.json"):
        fec_fast.save(pruned, tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        "Error while serializing: I/O error: No space left (os error 28)",
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left" })',  # 0.4
    ],
)
def test_failed_save_leaves_the_old_checkpoint(
    words: str, pruned: fec_fast.PruneResult, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}

    def full(*args: Any, **kwargs: Any) -> None:
        raise safetensors.SafetensorError(words)

    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        fec_fast.save(pruned, folder)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before
    assert os.listdir(folder.parent) == ["saved"]


def test_state_that_is_not_a_tensor(pruned: fec_fast.PruneResult, tmp_path: Path) -> None:
    class Stateful(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

    with pytest.raises(fec_fast.CheckpointError, match="_extra_state"):
        fec_fast.save(Stateful(2, 2), pruned.plan, tmp_path / "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["checkpoint.json", "plan.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "edited", "empty"])
def test_damaged_checkpoint(folder: Path, name: str, damage: str) -> None:
    file = folder / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        # Replacing one digit keeps the size, and the JSON valid.
        position = max(content.rfind(digit) for digit in (b"0", b"1", b"2", b"3"))
        file.write_bytes(content[:position] + b"9" + content[position + 1 :])
    model = fresh()
    before = snapshot(model)
    with pytest.raises(fec_fast.CheckpointError, match=name):
        fec_fast.load(model, folder)
    assert_untouched(model, before)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(fec_fast.CheckpointError, match="no checkpoint folder"):
        fec_fast.load(fresh(), tmp_path / "nowhere")
    with pytest.raises(fec_fast.CheckpointError, match="not a checkpoint"):
        fec_fast.load(fresh(), tmp_path)


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "fec_fast.plan"}, {"files": {}}, {"files": 3}])
def test_manifest_of_another_kind(folder: Path, change: dict[str, Any]) -> None:
    file = folder / "checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(fec_fast.CheckpointError, match=r"checkpoint\.json"):
        fec_fast.load(fresh(), folder)


def test_another_model(folder: Path) -> None:
    model = zoo.build("zoo:vgg-digits")
    before = snapshot(model)
    with pytest.raises(fec_fast.PlanError, match="another model"):
        fec_fast.load(model, folder)
    assert_untouched(model, before)


def test_already_pruned_model(pruned: fec_fast.PruneResult, folder: Path) -> None:
    model = copy.deepcopy(pruned.model)
    before = snapshot(model)
    with pytest.raises(fec_fast.PlanError, match="already pruned"):
        fec_fast.load(model, folder)
    assert_untouched(model, before)


def test_meta_model(folder: Path) -> None:
    with torch.device("meta"):
        model = zoo.build("zoo:resnet-digits")
    with pytest.raises(fec_fast.CheckpointError, match="meta"):
        fec_fast.load(model, folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("conv1.weight"), r"lacks 'conv1\.weight'"),
        (lambda state: state.update(extra=torch.ones(1)), "'extra'"),
        (lambda state: state.update({"bn1.bias": torch.ones(99)}), r"'bn1\.bias'.*\[99\]"),
        (lambda state: state.update({"bn1.bias": state["bn1.bias"].long()}), r"'bn1\.bias'.*int64"),
    ],
)
def test_weights_that_do_not_fit(pruned: fec_fast.PruneResult, folder: Path, change: Any, words: str) -> None:
    """A checkpoint whose checksums are right but whose weights are not those of the plan."""
    state = {name: tensor.clone() for name, tensor in pruned.model.state_dict().items()}
    change(state)
    weights = folder / "model.safetensors"
    save_file(state, weights)
    manifest = json.loads((folder / "checkpoint.json").read_text())
    manifest["files"]["model.safetensors"] = {"bytes": weights.stat().st_size, "sha256": sha256(weights)}
    (folder / "checkpoint.json").write_text(json.dumps(manifest))
    model = fresh()
    before = snapshot(model)
    with pytest.raises(fec_fast.CheckpointError, match=words):
        fec_fast.load(model, folder)
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (fresh, "not pruned yet"),
        (lambda: zoo.build("zoo:vgg-digits"), "for another model"),
        (lambda: nn.Sequential(), "lacks conv1.weight"),
    ],
)
def test_a_plan_that_is_not_the_models_is_not_saved(
    pruned: fec_fast.PruneResult, tmp_path: Path, model: Any, words: str
) -> None:
    with pytest.raises(fec_fast.PlanError, match=f"^save: .*{words}"):
        fec_fast.save(model(), pruned.plan, tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_a_buffer_that_was_added_after_pruning_is_refused(pruned: fec_fast.PruneResult, tmp_path: Path) -> None:
    model = copy.deepcopy(pruned.model)
    model.register_buffer("calls", torch.zeros(1))
    with pytest.raises(fec_fast.PlanError, match="parameters and buffers it had"):
        fec_fast.save(model, pruned.plan, tmp_path / "x")


@pytest.mark.parametrize("moment", ["parse_manifest", "_read_plan", "read_tensors"])
def test_a_checkpoint_that_is_replaced_while_it_is_read_is_refused(
    pruned: fec_fast.PruneResult, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The plan of one checkpoint never meets the weights of another."""
    torch.manual_seed(8)
    other = fec_fast.prune(fresh(), EXAMPLE, ratio=0.25, recover=None)
    read = getattr(checkpoint_files, moment)

    def replaced_behind(*args: Any) -> Any:
        monkeypatch.setattr(checkpoint_files, moment, read)  # once
        parsed = read(*args)
        fec_fast.save(other, folder)
        return parsed

    monkeypatch.setattr(checkpoint_files, moment, replaced_behind)
    model = fresh()
    before = snapshot(model)
    if moment != "read_tensors":
        with pytest.raises(fec_fast.CheckpointError, match="replaced by another checkpoint meanwhile"):
            fec_fast.load(model, folder)
        assert_untouched(model, before)
    else:  # all files were read
        assert_same_weights(fec_fast.load(model, folder), pruned.model)
    assert_same_weights(fec_fast.load(fresh(), folder), other.model)


def test_tied_tensors_of_the_file_stay_apart_in_a_model_without_ties(tmp_path: Path) -> None:
    result = fec_fast.prune(SharedWeight(in_channels=1).eval(), EXAMPLE, ratio=0.5, recover=None)
    path = fec_fast.save(copy.deepcopy(result.model).half(), result.plan, tmp_path / "tied")
    untied = SharedWeight(in_channels=1).eval()
    untied.two.weight = nn.Parameter(untied.two.weight.detach().clone())
    fec_fast.load(untied, path)
    assert untied.one.weight.data_ptr() != untied.two.weight.data_ptr()
    assert torch.equal(untied.one.weight, untied.two.weight)


def test_no_pickle_in_the_files(folder: Path) -> None:
    for file in folder.iterdir():
        if file.suffix == ".json":
            json.loads(file.read_text())
    header = (folder / "model.safetensors").read_bytes()[8:200]
    assert header.startswith(b"{")

"""save(..., onnx=, model_card=): a card and an ONNX file in the same write; load does not look at them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import fec_fast
from fec_fast.plan.checkpoint_check import check_checkpoint
from fec_fast.utils import onnx_files
from helpers.comparison import same_weights
from helpers.networks import SharedWeight
from helpers.optional import skip_without

yaml = pytest.importorskip("yaml")
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
FACTS = {"base_model": "someone/net: one", "budget": "remove macs=0.5", "license": "apache-2.0", "data": "a | b"}


@pytest.fixture(scope="module")
def result() -> fec_fast.PruneResult:
    torch.manual_seed(0)
    return fec_fast.prune(SharedWeight().eval(), IMAGES, ratio=0.5, criterion="l1", recover=None)


def parts(card: str) -> tuple[dict[str, object], str]:
    empty, head, text = card.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(head), text


def test_a_card_has_the_head_of_the_hub_and_the_figures(result: fec_fast.PruneResult, tmp_path: Path) -> None:
    card = fec_fast.ModelCard(**FACTS, metrics={"top-1 | accuracy": 0.9125})
    folder = fec_fast.save(result, tmp_path / "saved", model_card=card)
    assert sorted(os.listdir(folder)) == ["README.md", "checkpoint.json", "model.safetensors", "plan.json"]
    head, text = parts((folder / "README.md").read_text(encoding="utf-8"))
    assert head["library_name"] == "fec_fast" and "pruning" in head["tags"]
    assert head["base_model"] == FACTS["base_model"] and head["license"] == "apache-2.0"
    assert f"| {result.before.parameters:,} | {result.after.parameters:,} |" in text
    assert f"| {result.before.macs:,} | {result.after.macs:,} |" in text
    assert "| top-1 \\| accuracy | 0.9125 |" in text and "a \\| b" in text and "fec_fast.load(model" in text
    for record in result.plan.sets:
        assert f"| `{record['name']}` |" in text
    assert same_weights(fec_fast.load(SharedWeight(), folder), result.model)


def test_the_sizes_are_known_without_a_result(result: fec_fast.PruneResult, tmp_path: Path) -> None:
    folder = fec_fast.save(result.model, result.plan, tmp_path / "saved", model_card=True)
    text = (folder / "README.md").read_text()
    assert f"| {result.before.parameters:,} | {result.after.parameters:,} |" in text
    assert "multiply-accumulates" not in text and "base_model" not in text and "license" not in text


def test_how_a_network_of_the_zoo_is_built_is_said(result: fec_fast.PruneResult, tmp_path: Path) -> None:
    card = fec_fast.ModelCard(base_model="torchvision:resnet18")
    head, text = parts((fec_fast.save(result, tmp_path / "saved", model_card=card) / "README.md").read_text())
    assert "base_model" not in head  # it is no name of the Hub
    assert 'model = fec_fast.zoo.build("torchvision:resnet18")' in text


@settings(max_examples=60)
@given(text=st.text(max_size=40))
@example(text="\U00010000 \\ \" ' # : |")
def test_any_line_is_the_same_in_the_head(text: str) -> None:
    from fec_fast.plan.model_card import card_text, sizes_of

    torch.manual_seed(0)
    try:
        card = fec_fast.ModelCard(base_model=text, license=text)
    except fec_fast.ArgumentError:
        assert not text.strip() or not text.isprintable()
        return
    plan = RESULT.plan
    head, _ = parts(card_text(card, "Network", plan, sizes_of(RESULT, RESULT.model, plan, 1), None))
    assert head["license"] == text and head.get("base_model", text) == text


RESULT = fec_fast.prune(SharedWeight().eval(), IMAGES, ratio=0.5, criterion="l1", verify=False, recover=None)


@pytest.mark.slow
def test_an_onnx_file_is_compared_and_checked(
    result: fec_fast.PruneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without("onnx", "onnxscript", "onnxruntime")
    folder = fec_fast.save(result, tmp_path / "saved", onnx=IMAGES[:1], model_card=True)
    assert sorted(os.listdir(folder)) == [
        "README.md",
        "checkpoint.json",
        "model.onnx",
        "model.safetensors",
        "plan.json",
    ]
    assert set(json.loads((folder / "checkpoint.json").read_text())["files"]) == set(os.listdir(folder)) - {
        "checkpoint.json"
    }
    assert "`model.onnx`" in (folder / "README.md").read_text()
    checked = check_checkpoint(folder)
    assert checked.onnx == "runs in onnxruntime" and [len(shape) for shape in checked.onnx_inputs.values()] == [4]
    (folder / "model.onnx").unlink()
    assert same_weights(fec_fast.load(SharedWeight(), folder), result.model)  # which does not need it
    with pytest.raises(fec_fast.CheckpointError, match="incomplete: it has no model.onnx"):
        check_checkpoint(folder)
    before = sorted(os.listdir(folder))
    monkeypatch.setattr(onnx_files, "PARITY", -1.0)
    with pytest.raises(fec_fast.FecError, match="other outputs than torch"):
        fec_fast.save(result, folder, onnx=IMAGES)
    assert sorted(os.listdir(folder)) == before and os.listdir(tmp_path) == ["saved"]
    fec_fast.save(result, folder)
    assert sorted(os.listdir(folder)) == ["checkpoint.json", "model.safetensors", "plan.json"]


def edit(folder: Path) -> None:
    with (folder / "README.md").open("a") as stream:
        stream.write("More words.\n")


def behead(folder: Path) -> None:
    (folder / "README.md").write_text("# Only words\n")


def bad_weights(folder: Path) -> None:
    """A checkpoint of other weights with fitting checksums."""
    other = fec_fast.prune(SharedWeight().eval(), IMAGES, ratio=0.25, criterion="l1", verify=False, recover=None)
    saved = fec_fast.save(other, folder.parent / "other")
    manifest = json.loads((folder / "checkpoint.json").read_text())
    manifest["files"]["model.safetensors"] = json.loads((saved / "checkpoint.json").read_text())["files"][
        "model.safetensors"
    ]
    (folder / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    (folder / "checkpoint.json").write_text(json.dumps(manifest))


def not_finite(folder: Path) -> None:
    model = SharedWeight()
    fec_fast.load(model, folder)
    with torch.no_grad():
        next(iter(model.parameters())).flatten()[0] = float("nan")
    (folder / "README.md").unlink()
    manifest = json.loads((folder / "checkpoint.json").read_text())
    del manifest["files"]["README.md"]
    (folder / "checkpoint.json").write_text(json.dumps(manifest))
    fec_fast.save(model, RESULT.plan, folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (behead, "no head with 'library_name: fec_fast'"),
        (lambda folder: (folder / "README.md").unlink(), "incomplete: it has no README.md"),
        (lambda folder: (folder / "plan.json").write_text("{}"), "plan.json has 2 bytes"),
        (lambda folder: (folder / "checkpoint.json").unlink(), "not a checkpoint"),
        (bad_weights, "is not what the plan leaves of its network"),
        (not_finite, "has NaN or infinite values"),
    ],
)
def test_a_spoilt_folder_is_noticed(
    result: fec_fast.PruneResult, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = fec_fast.save(result, tmp_path / "saved", model_card=True)
    assert check_checkpoint(folder).card == "as written"
    spoil(folder)
    with pytest.raises(fec_fast.CheckpointError, match=message):
        check_checkpoint(folder)


def test_an_edited_card_is_right_and_is_not_lost(result: fec_fast.PruneResult, tmp_path: Path) -> None:
    folder = fec_fast.save(result, tmp_path / "saved", model_card=True)
    fec_fast.save(result, folder, model_card=True)
    edit(folder)
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    checked = check_checkpoint(folder)
    assert checked.card == "edited since it was written" and checked.others == [".gitattributes"]
    (folder / ".gitattributes").unlink()
    with pytest.raises(fec_fast.CheckpointError, match="README.md was edited since it was written"):
        fec_fast.save(result, folder)
    assert "More words." in (folder / "README.md").read_text()


def test_a_readme_of_the_user_is_not_overwritten(result: fec_fast.PruneResult, tmp_path: Path) -> None:
    folder = fec_fast.save(result, tmp_path / "saved")
    (folder / "README.md").write_text("mine")
    with pytest.raises(fec_fast.CheckpointError, match="'README.md', which is no part of a checkpoint"):
        fec_fast.save(result, folder, model_card=True)
    assert (folder / "README.md").read_text() == "mine"


def test_a_checkpoint_is_found_through_links_as_the_hub_keeps_it(result: fec_fast.PruneResult, tmp_path: Path) -> None:
    folder = fec_fast.save(result, tmp_path / "blobs", model_card=True)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert check_checkpoint(snapshot).card == "as written"
    assert same_weights(fec_fast.load(SharedWeight(), snapshot), result.model)


def test_the_hub_reads_the_head(result: fec_fast.PruneResult, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder = fec_fast.save(result, tmp_path / "saved", model_card=fec_fast.ModelCard(**FACTS))
    data = hub.ModelCard.load(folder / "README.md").data
    assert data.library_name == "fec_fast" and data.license == "apache-2.0" and data.base_model == FACTS["base_model"]


def test_a_wrapped_network_has_the_name_of_its_class(result: fec_fast.PruneResult, tmp_path: Path) -> None:
    folder = fec_fast.save(nn.DataParallel(result.model), result.plan, tmp_path / "saved", model_card=True)
    assert "`SharedWeight`" in (folder / "README.md").read_text()

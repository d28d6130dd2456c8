"""score_model(model, weights=...): a file's weights are read a tensor at a time, with the scores of a loaded model."""

from __future__ import annotations

import copy
import gc
import json
import struct
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fec_fast
from fec_fast import Formula, score_model
from fec_fast.utils import tensor_files
from tests.helpers.networks import KindsOfLayers as Net

LAYERS = [nn.Conv2d, nn.ConvTranspose2d, nn.Linear]


def on_meta() -> Net:
    with torch.device("meta"):
        return Net()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(Net().state_dict(), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize("formula", [Formula(), Formula("rms", axis="channels"), Formula.literal()], ids=str)
def test_the_scores_are_those_of_the_loaded_model(file: Path, formula: Formula) -> None:
    assert score_model(on_meta(), formula=formula, layers=LAYERS, weights=file) == score_model(
        Net(), formula=formula, layers=LAYERS
    )
    assert score_model(on_meta(), formula=formula, weights=str(file)) == score_model(Net(), formula=formula)


def test_the_file_counts_and_not_what_the_model_holds(file: Path) -> None:
    model = Net()
    with torch.no_grad():
        model.stem.weight.zero_()
    before = copy.deepcopy(model.state_dict())
    assert score_model(model, weights=file) == score_model(Net())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_several_files_share_out_the_weights(tmp_path: Path) -> None:
    state = Net().state_dict()
    first = {name: value for name, value in state.items() if name.startswith("stem")}
    save_file(first, tmp_path / "1.safetensors")
    save_file({name: value for name, value in state.items() if name not in first}, tmp_path / "2.safetensors")
    files = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    assert score_model(on_meta(), weights=files) == score_model(Net())
    with pytest.raises(fec_fast.WeightError, match=r"'depthwise' \(Conv2d\): its weight is not in the file"):
        score_model(on_meta(), weights=files[:1])
    with pytest.raises(fec_fast.CheckpointError, match=r"1\.safetensors and .*1\.safetensors both have 'stem\.bias'"):
        score_model(on_meta(), weights=[files[0], files[0]])


def test_dtypes_of_the_file_are_scored_as_they_are(tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2):
        state = {name: value.to(dtype) for name, value in Net().state_dict().items()}
        save_file(state, tmp_path / "half.safetensors")
        loaded = Net().to(torch.float16 if dtype.itemsize == 1 else dtype)
        loaded.load_state_dict(state)
        assert score_model(on_meta(), weights=tmp_path / "half.safetensors") == score_model(loaded), dtype


def test_a_shared_layer_is_found_under_any_of_its_names(tmp_path: Path) -> None:
    model = Net()
    model.again = model.stem
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("stem")}
    save_file(state, tmp_path / "net.safetensors")
    assert score_model(model, weights=tmp_path / "net.safetensors") == score_model(model)


def test_one_tensor_is_in_memory_at_a_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []
    read = tensor_files.StoredTensor.read

    def counted(stored: Any) -> Tensor:
        gc.collect()
        assert not any(tensor() is not None for tensor in made), f"an earlier tensor lives while {stored.name} is read"
        tensor = read(stored)
        made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(tensor_files.StoredTensor, "read", counted)
    score_model(on_meta(), weights=file)
    assert len(made) == 4


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    state = Net().state_dict()
    state["body.0.weight"][3, 2, 0, 0] = float("nan")
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(fec_fast.WeightError, match=r"'body\.0'.* nan at \[3, 2, 0, 0\].*layers=") as caught:
        score_model(on_meta(), weights=tmp_path / "net.safetensors")
    assert (caught.value.layer, caught.value.index) == ("body.0", (3, 2, 0, 0))


def changed(**state: Tensor) -> dict[str, Tensor]:
    return Net().state_dict() | {name.replace("__", "."): value for name, value in state.items()}


WRONG = {
    "another shape": (
        changed(stem__weight=torch.randn(9, 3, 3, 3)),
        r"'stem'.*\[8, 3, 3, 3\].*\[9, 3, 3, 3\].*file of",
    ),
    "integers": (changed(stem__weight=torch.ones(8, 3, 3, 3, dtype=torch.int8)), "'stem'.*int8 in .*float weights"),
    "a scale": (
        changed(stem__weight=torch.randn(8, 3, 3, 3).to(torch.float8_e4m3fn), stem__weight_scale=torch.ones(8)),
        "'stem'.*float8_e4m3fn with a scale.*'stem.weight_scale'.*multiply.*bfloat16",
    ),
    "another name": (
        {f"model.{name}": value for name, value in Net().state_dict().items()},
        "'stem'.*there is no 'stem.weight'.*'model.stem.weight'.*leave weights= out",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_weight_that_does_not_fit_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    state, words = WRONG[kind]
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(fec_fast.WeightError, match=words) as caught:
        score_model(on_meta(), weights=tmp_path / "net.safetensors")
    assert caught.value.layer == "stem"


def test_a_layer_without_a_shape_of_its_own_is_refused(file: Path) -> None:
    model = Net()
    parametrizations.spectral_norm(model.stem)
    with pytest.raises(fec_fast.WeightError, match="'stem'.*not a parameter of a known shape.*leave weights= out"):
        score_model(model, weights=file)
    lazy = Net()
    lazy.stem = nn.LazyConv2d(8, 3)
    with pytest.raises(fec_fast.WeightError, match="'stem'.*not a parameter of a known shape"):
        score_model(lazy, weights=file)


def test_files_that_are_none(file: Path, tmp_path: Path) -> None:
    with pytest.raises(fec_fast.CheckpointError, match="there is no weights file"):
        score_model(on_meta(), weights=tmp_path / "none.safetensors")
    with pytest.raises(fec_fast.CheckpointError, match=r"net\.pth.*load others into the model"):
        score_model(on_meta(), weights=tmp_path / "net.pth")
    content = file.read_bytes()
    file.write_bytes(content[:-4])
    with pytest.raises(fec_fast.CheckpointError, match="do not fit its shape"):
        score_model(on_meta(), weights=file)
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header["stem.weight"]["shape"] = [1 << 60, 3, 3, 3]  # the memory is not asked for
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(fec_fast.CheckpointError, match=r"'stem\.weight' the bytes .* do not fit its shape"):
        score_model(on_meta(), weights=file)


def test_a_file_that_shrinks_while_it_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = tensor_files.StoredTensor.read

    def shrunk(stored: Any) -> Tensor:
        with file.open("r+b") as stream:
            stream.truncate(stored.begin + 1)
        return read(stored)

    monkeypatch.setattr(tensor_files.StoredTensor, "read", shrunk)
    with pytest.raises(fec_fast.CheckpointError, match="truncated"):
        score_model(on_meta(), weights=file)


def test_a_gpu_is_refused_with_the_way_out(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fec_fast.scoring import model_scores
    from fec_fast.scoring.backends.registry import ResolvedBackend

    monkeypatch.setattr(model_scores, "resolve", lambda name: ResolvedBackend(name, name))
    with pytest.raises(fec_fast.BackendError, match="'cuda'.*scored on the CPU.*leave weights= out"):
        score_model(on_meta(), backend="cuda", weights=file)

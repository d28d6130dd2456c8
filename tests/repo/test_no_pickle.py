"""No pickle: the package reads and writes none of its own, and files that would run code do not."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch

import fec_fast
from fec_fast.utils.errors import FecError
from fec_fast.vision import data, zoo
from fec_fast.vision.weights import load_weights

PACKAGE = Path(__file__).parents[2] / "python" / "fec_fast"
FILES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN = re.compile(
    r"^\s*(?:import|from)\s+(?:pickle|cPickle|_pickle|dill|cloudpickle|joblib|shelve|marshal)\b"
    r"|\bpickle\.\w|\bnp\.load\(|numpy\.load\(|allow_pickle|\byaml\.(?:unsafe_load|full_load|UnsafeLoader|FullLoader)"
    r"|torch\.save\(|\beval\(|\bexec\(",
    re.MULTILINE,
)


def test_the_package_has_no_pickle() -> None:
    assert len(FILES) > 100
    found = {}
    for file in FILES:
        # model.eval() and self.eval() are modes of networks, not Python's eval.
        text = re.sub(r"\.eval\(", ".", file.read_text(encoding="utf-8"))
        if hits := [hit.group().strip() for hit in FORBIDDEN.finditer(text)]:
            found[file.name] = hits
    assert not found


def test_torch_load_reads_weights_only() -> None:
    calls = [call for file in FILES for call in re.findall(r"torch\.load\(.*", file.read_text(encoding="utf-8"))]
    assert calls and all("weights_only=True" in call for call in calls)


class Payload:
    """What would make a folder if it were unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def payloads(folder: Path) -> dict[str, bytes]:
    evil = Payload(folder)
    forms = {f"pickle {protocol}": pickle.dumps(evil, protocol) for protocol in range(6)}
    for name, content in (("weights", evil), ("weights in a dictionary", {"state_dict": {"a": evil}})):
        for new in (True, False):
            stream = io.BytesIO()
            torch.save(content, stream, _use_new_zipfile_serialization=new)
            forms[f"{name}, {'new' if new else 'old'} format"] = stream.getvalue()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/constants.pkl", pickle.dumps(evil, 2))
        archive.writestr("a/data.pkl", pickle.dumps(evil, 2))
        archive.writestr("a/version", "3")
    forms["archive of torch.jit"] = stream.getvalue()
    forms["YAML"] = f"model: !!python/object/apply:os.mkdir ['{folder}']\n".encode()
    return forms


def test_the_payload_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "run")))
    assert (tmp_path / "run").is_dir()


@pytest.mark.parametrize("name", [*(f"pickle {protocol}" for protocol in range(6)), "weights, new format",
    "weights, old format", "weights in a dictionary, new format", "weights in a dictionary, old format",
    "archive of torch.jit", "YAML"])  # fmt: skip
def test_a_payload_does_not_run(tmp_path: Path, name: str) -> None:
    ran, content = tmp_path / "ran", payloads(tmp_path / "ran")[name]
    model = zoo.build("zoo:vgg-digits")
    for file in ("a.pth", "a.pt", "a.safetensors", "a.bin"):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(FecError):
            load_weights(model, tmp_path / file)
    (tmp_path / "a.yaml").write_bytes(content)
    from fec_fast.cli.recipe import read_recipe

    with pytest.raises(FecError):
        read_recipe(tmp_path / "a.yaml")
    for reader in (fec_fast.Plan.from_json, fec_fast.ModelScores.from_json):
        with pytest.raises(FecError):
            reader(content)  # type: ignore[operator]
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in ("checkpoint.json", "plan.json", "model.safetensors"):
        (folder / file).write_bytes(content)
    with pytest.raises(FecError):
        fec_fast.load(model, folder)
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    for file in ("data_batch_1", "test_batch", "batches.meta"):
        (batches / file).write_bytes(content)
    pytest.importorskip("torchvision")
    with pytest.raises(FecError):  # torchvision compares checksums before it reads
        data.load(f"torchvision:cifar10:{tmp_path}")
    assert not ran.exists()

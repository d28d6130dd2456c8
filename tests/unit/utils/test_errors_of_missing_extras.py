"""An optional package that cannot be imported: not installed, hidden by a file of the user's, or broken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fec_fast
from fec_fast.cli import doctor
from fec_fast.utils.errors import missing_extra
from fec_fast.utils.onnx_model import require_exporter
from fec_fast.vision import zoo
from helpers.optional import skip_without

REQUIRE = "from fec_fast.utils.onnx_model import require_onnx; require_onnx('this')"
INTEGRATION = "import fec_fast.integrations.torch_pruning"


def last_line(folder: Path, code: str) -> str:
    (folder / "script.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(fec_fast.__file__).parents[1])}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "content", "code", "package"),
    [
        ("onnx.py", "", REQUIRE, "onnxscript"),
        ("torch_pruning.py", "", INTEGRATION, "torch_pruning"),
        ("torch_pruning.py", "from torch_pruning import importance", INTEGRATION, "torch_pruning"),
        ("torch_pruning.py", "import a_package_that_nobody_has", INTEGRATION, "torch_pruning"),
        ("onnx.py", REQUIRE, REQUIRE, "onnxscript"),  # a script that has the package's name itself
    ],
)
def test_a_file_of_the_users_in_the_place_of_a_package_is_named(
    tmp_path: Path, file: str, content: str, code: str, package: str
) -> None:
    skip_without(package)
    (tmp_path / file).write_text(content)
    line = last_line(tmp_path, code)
    assert "MissingExtraError" in line and "rename that file" in line and "pip install" not in line
    assert f"imports {tmp_path / file} in the place of a package" in line


def test_a_package_that_is_not_installed_is_named_with_the_command() -> None:
    error = missing_extra("pyyaml", "train", "YAML", ModuleNotFoundError("No module named 'yaml'", name="yaml"))
    assert str(error) == "YAML needs pyyaml: pip install 'fec_fast[train]'"


@pytest.mark.parametrize("error", [ImportError("DLL load failed", name="yaml"), AttributeError("no attribute 'x'")])
def test_a_package_that_is_broken_is_not_called_missing(error: Exception) -> None:
    text = str(missing_extra("torchvision, numpy and pyyaml", "train", "YAML", error))
    assert f"which cannot be imported with torch {torch.__version__} ({type(error).__name__}: {error})" in text
    assert text.endswith("pip install --upgrade torchvision numpy pyyaml")


def test_a_torch_whose_exporter_does_not_work_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, example = zoo.build("zoo:vgg-digits").eval(), torch.randn(2, 1, 8, 8)
    result = fec_fast.prune(model, example, remove=0.5, criterion="l1", verify=False, recover=None)
    monkeypatch.setattr(torch, "__version__", "2.6.1+cpu")
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("export_onnx", lambda: fec_fast.export_onnx(model, example, tmp_path / "a.onnx")),
        ("export_int8", lambda: fec_fast.export_int8(model, tmp_path / "a.onnx", example)),
        (r"save\(..., onnx=...\)", lambda: fec_fast.save(result, tmp_path / "saved", onnx=example)),
        ("runtime='onnxruntime'", lambda: result.latency(model, example, runtime="onnxruntime")),
        ("runtime='openvino'", lambda: result.latency(model, example, runtime="openvino")),
    ]
    for purpose, call in calls:
        message = rf"^{purpose} needs torch 2\.7 or newer, torch 2\.6\.1\+cpu is installed: pip install --upgrade torch"
        with pytest.raises(fec_fast.MissingExtraError, match=message):
            call()
    assert not list(tmp_path.iterdir())
    line = next(finding for finding in doctor._extras() if finding.name == "extra onnx")
    assert line.state == "missing" and ("torch 2.7" in line.text or "pip install 'fec_fast[onnx]'" in line.text)
    monkeypatch.setattr(torch, "__version__", "2.7.0+cpu")
    require_exporter("this")

"""An optional package that cannot be imported: not installed, hidden by a file of the user's, or broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fec_fast.utils.errors import missing_extra

REQUIRE = "from fec_fast.utils.onnx_model import require_onnx; require_onnx('this')"
INTEGRATION = "import fec_fast.integrations.torch_pruning"


def last_line(folder: Path, code: str) -> str:
    (folder / "script.py").write_text(code)
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=120)
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
    pytest.importorskip(package)
    (tmp_path / file).write_text(content)
    line = last_line(tmp_path, code)
    assert "MissingExtraError" in line and "rename that file" in line and "pip install" not in line
    assert f"imports {tmp_path / file} in the place of a package" in line


def test_a_package_that_is_not_installed_is_named_with_the_command() -> None:
    error = missing_extra("pyyaml", "train", "YAML", ModuleNotFoundError("No module named 'yaml'", name="yaml"))
    assert str(error) == "YAML needs pyyaml: pip install 'fec_fast[train]'"


@pytest.mark.parametrize("error", [ImportError("DLL load failed", name="yaml"), AttributeError("no attribute 'x'")])
def test_a_package_that_is_broken_is_not_called_missing(error: Exception) -> None:
    text = str(missing_extra("pyyaml", "train", "YAML", error))
    assert f"which cannot be imported ({type(error).__name__}: {error})" in text
    assert text.endswith("pip install --upgrade 'fec_fast[train]'")

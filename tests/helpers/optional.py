"""Tests that need an optional package, or a version of torch that it works with."""

from __future__ import annotations

from typing import Any

import pytest

from fec_fast.utils.errors import MissingExtraError
from fec_fast.utils.onnx_model import require_exporter


def skip_without(*packages: str) -> Any:
    """Skips a test, or at module level its file, where a package cannot be used.

    Args:
        packages: Their modules. ``onnxscript`` is for torch's exporter, which older versions of torch do not have.

    Returns:
        The last of the modules.
    """
    module = None
    for package in packages:
        module = pytest.importorskip(package)
        if package == "onnxscript":
            try:
                require_exporter("this test")
            except MissingExtraError as error:
                pytest.skip(str(error), allow_module_level=True)
    return module

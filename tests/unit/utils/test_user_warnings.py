"""Warnings name the user's line, from whatever depth of the package and through whatever lies between."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.recovery.calibration import warn_if_few
from fec_fast.utils.installed_files import is_installed
from fec_fast.utils.user_warnings import warn_user


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3))


def test_a_warning_of_a_nested_call_names_this_file() -> None:
    # prune -> compensate -> warn_if_few: two public functions, each with its decorator, are between.
    with pytest.warns(fec_fast.FecWarning, match="images are few") as told:
        fec_fast.prune(
            small_network().eval(),
            torch.randn(1, 3, 12, 12),
            remove=0.5,
            criterion="l1",
            recover=torch.randn(64, 3, 12, 12),
        )
    assert {warning.filename for warning in told} == {__file__}


def test_contexts_and_decorators_of_torch_and_python_are_passed_over() -> None:
    with pytest.warns(fec_fast.FecWarning) as told, contextlib.ExitStack() as stack:
        stack.callback(torch.no_grad()(warn_if_few), [])
    assert [Path(warning.filename).name for warning in told] == [Path(__file__).name]


def test_each_line_warns_once_by_python_s_default() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            warn_user("one line")
        warn_user("one line")
    assert len(told) == 2


def test_a_filter_of_the_users_module_applies() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module=__name__.replace(".", r"\."))
        warn_user("not shown")
    assert not told


def test_what_is_installed(tmp_path: Path) -> None:
    assert all(map(is_installed, (torch.__file__, contextlib.__file__, fec_fast.__file__, "<frozen importlib>")))
    assert not any(map(is_installed, (__file__, str(tmp_path / "script.py"), "<stdin>")))

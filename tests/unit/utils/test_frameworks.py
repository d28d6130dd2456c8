"""Networks of frameworks: what a plain pruning says of them. Real ones: tests/unit/integrations/test_ultralytics.py."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.utils.frameworks import check_framework, keeps_widths


def of_module(name: str) -> nn.Module:
    return type("Network", (nn.Module,), {"__module__": name})()


def test_an_object_of_ultralytics_is_refused_and_its_network_warned_of() -> None:
    with pytest.raises(fec_fast.ArgumentError, match="is no network: call fec_fast.integrations.ultralytics.prune"):
        check_framework(of_module("ultralytics.engine.model"))
    network = of_module("ultralytics.nn.tasks")
    with pytest.warns(fec_fast.FecWarning, match="builds it anew at full width"):
        check_framework(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with keeps_widths():
            check_framework(network)
        check_framework(torch.nn.Conv2d(1, 1, 1))
    with pytest.warns(fec_fast.FecWarning):
        check_framework(network)

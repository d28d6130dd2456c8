"""Which networks of torchvision and timm can be pruned: each one pruned, run, proven, saved and loaded.

For every network: prune half of every coupled set, forward and backward in evaluation and in training mode,
``verify_equivalence``, save, load into a fresh instance, compare bit for bit. Results are kept as they come in
benchmarks/results/coverage.json and written to docs/coverage.md.

    python -m benchmarks.coverage [--only NAME ...] [--anew] [--page-only]
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import re
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fec_fast
from benchmarks.common.measuring import RESULTS, write_json
from benchmarks.coverage.networks import Network, networks
from benchmarks.coverage.page import page
from fec_fast.graph.groups import couple_channels
from fec_fast.graph.trace import trace_model
from fec_fast.utils.forward import tensors_in
from fec_fast.utils.machine import describe_machine
from fec_fast.utils.model_index import ModelIndex

RESULT, PAGE = RESULTS / "coverage.json", Path(__file__).parent.parent.parent / "docs" / "coverage.md"
CONVOLUTIONS = nn.modules.conv._ConvNd


def prunable_share(model: nn.Module, inputs: Any) -> tuple[float, dict[str, int]]:
    """The share of the convolutions' output channels that may go, and how many stay for which reason."""
    traced = trace_model(ModelIndex.of(model), inputs)
    coupling = couple_channels(traced)
    free, reasons = 0, {}
    total = 0
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):
            total += module.out_channels
    for use in traced.weight_uses.values():
        if isinstance(model.get_submodule(use.layer), CONVOLUTIONS):
            for label in use.outputs:
                reason = coupling.partition.reason(label)
                if reason is None:
                    free += 1
                else:
                    reasons[general(reason)] = reasons.get(general(reason), 0) + 1
    for layer in traced.unreached:
        module = model.get_submodule(layer)
        if isinstance(module, CONVOLUTIONS):
            reason = coupling.pinned[layer]
            reasons[reason] = reasons.get(reason, 0) + module.out_channels
    return (free / total if total else float("nan")), reasons


def general(reason: str) -> str:
    """A reason without the names of layers in it."""
    return re.sub(r"it feeds (?!aten)\S+ together", "it feeds a layer together", reason)


def backward(model: nn.Module, call: Callable[[nn.Module], Any]) -> None:
    """Runs a model and differentiates the sum of its outputs."""
    outputs = [t for t in tensors_in(call(model)) if t.requires_grad]
    if not outputs:
        return
    sum(t.float().sum() for t in outputs).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.grad.shape != parameter.shape:
            raise AssertionError(f"the gradient of {name} has shape {list(parameter.grad.shape)}")
    model.zero_grad()


def enliven(network: Network, model: nn.Module) -> None:
    """Scales every layer so that its outputs have a spread of one on the inputs, and gives it a bias.

    With random weights the signal of a deep network dies away, and a wrong channel would not show in the outputs.
    """

    def rescale(module: nn.Module, _: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or output.numel() < 2:
            return output
        spread = float(output.std())
        if not 0 < spread < float("inf"):
            return output
        module.weight.div_(spread)  # type: ignore[operator,union-attr]
        if module.bias is not None:
            module.bias.div_(spread)  # type: ignore[operator,union-attr]
        return output / spread

    layers = [m for m in model.modules() if isinstance(m, CONVOLUTIONS | nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            if layer.bias is not None:
                layer.bias.normal_(0, 0.1)
        hooks = [layer.register_forward_hook(rescale) for layer in layers if not parametrize.is_parametrized(layer)]
        network.call(model)
    for hook in hooks:
        hook.remove()


def sensitive(network: Network, model: nn.Module) -> bool | None:
    """Whether the outputs depend on the inputs at all: if not, their equality proves nothing. None without outputs."""

    def outputs(inputs: Any) -> list[Tensor]:
        with torch.no_grad():
            return [t for t in tensors_in(network.call(model, inputs)) if t.is_floating_point()]

    moved = torch.utils._pytree.tree_map(lambda t: t.flip(-1), network.inputs)
    found = list(zip(outputs(network.inputs), outputs(moved), strict=False))
    if not any(a.numel() for a, _ in found):
        return None
    return any(a.shape != b.shape or not torch.allclose(a, b, rtol=1e-4) for a, b in found)


def examine(network: Network) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    model = network.build().eval()
    enliven(network, model)
    row: dict[str, Any] = {"family": network.family}
    row["parameters"] = sum(p.numel() for p in model.parameters())
    start = time.process_time()
    result = fec_fast.prune(model, network.inputs, ratio=0.5, verify=False)
    row["seconds"] = round(time.process_time() - start, 2)
    row["after"] = sum(p.numel() for p in result.model.parameters())
    row["difference"] = fec_fast.verify_equivalence(model, result.model, result.plan, network.inputs)
    share, reasons = prunable_share(model, network.inputs)
    row["sensitive"] = sensitive(network, result.model)
    row["prunable"] = round(share, 4)
    row["kept for"] = dict(sorted(reasons.items(), key=lambda item: -item[1])[:3])
    row["notes"] = result.plan.notes
    del model
    pruned = copy.deepcopy(result.model)
    backward(pruned.eval(), network.call)
    backward(pruned.train(), network.call_training)
    with tempfile.TemporaryDirectory() as folder:
        fec_fast.save(result, Path(folder) / "pruned")
        torch.manual_seed(1)
        fresh = fec_fast.load(network.build().eval(), Path(folder) / "pruned")
    with torch.no_grad():
        torch.manual_seed(2)
        wanted = list(tensors_in(network.call(result.model.eval())))
        torch.manual_seed(2)
        found = list(tensors_in(network.call(fresh)))
    if len(wanted) != len(found) or not all(equal(a, b) for a, b in zip(wanted, found, strict=True)):
        raise AssertionError("what was loaded computes something else than what was saved")
    return row


def equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a.float()), torch.nan_to_num(b.float()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="examine these alone")
    parser.add_argument("--anew", action="store_true", help="examine what already has a result, too")
    parser.add_argument("--page-only", action="store_true", help="write the page from the results that are there")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"networks": {}}
    every = list(networks())
    result["listed"] = len(every)
    for network in [] if arguments.page_only else every:
        chosen = network.name in arguments.only if arguments.only else True
        known = result["networks"].get(network.name, {"error": "not examined yet"})
        if not chosen or ("error" not in known and not arguments.anew and not arguments.only):
            continue
        try:
            row = examine(network)
        except fec_fast.LayerError as error:
            row = {"family": network.family, "nothing": str(error).partition("nothing to prune: ")[2] or str(error)}
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            row = {"family": network.family, "error": f"{type(error).__name__}: {error} ({where.name})"[:400]}
        print(network.name, json.dumps(row), flush=True)
        result["networks"][network.name] = row
        result["machine"] = describe_machine()
        write_json(RESULT, result)
        gc.collect()
    write_json(RESULT, result)
    PAGE.parent.mkdir(exist_ok=True)
    beside = PAGE.with_suffix(".part")
    beside.write_text(page(result))
    beside.replace(PAGE)


if __name__ == "__main__":
    main()

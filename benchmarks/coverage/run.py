"""Coverage: prunes networks of torchvision and timm, runs, proves, saves and loads the results.

Each network is pruned at ratio 0.5, run forward and backward in evaluation and in training mode, compared with the
masked original by ``verify_equivalence``, saved, loaded into a new instance and compared bit for bit. Where less than
60% of the channels can go, this is done again with ``norms="renormalise"``. A result that
exists is not measured again, so that an interrupted run continues.

    pip install '.[coverage]' && python -m benchmarks.coverage [--only NAME ...] [--anew] [--page-only]

Writes benchmarks/results/coverage.json and docs/coverage.md.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fec_fast
from benchmarks.common.measuring import timed
from benchmarks.common.pages import write_page
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.coverage.networks import Network, networks
from benchmarks.coverage.packages_page import RENORMALISED
from benchmarks.coverage.page import ENOUGH, page
from fec_fast.pruning.context import build_context
from fec_fast.utils.forward import tensors_in

RESULT = RESULTS / "coverage.json"
SHORT = ("after", "difference", "prunable", "nothing", "error")  # of a row: what is kept of the second choice of norms
CONVOLUTIONS = nn.modules.conv._ConvNd


def prunable_share(model: nn.Module, inputs: Any, norms: str) -> tuple[float, dict[str, int]]:
    """The share of the convolutions' output channels that can be removed, and the number kept for each reason."""
    context = build_context(model, inputs, "l1", None, "both", (), norms=norms).settled()  # after trial runs
    traced, coupling = context.trace, context.coupling
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
    """A reason without the names of layers and lines of code."""
    reason = re.sub(r" \(\S+\.py:\d+\)", "", reason)
    return re.sub(r"it feeds (?!aten)\S+ together", "it feeds a layer together", reason)


def backward(model: nn.Module, call: Callable[[nn.Module], Any]) -> None:
    """Runs a model and differentiates the sum of its outputs; checks the shapes of the gradients."""
    outputs = [t for t in tensors_in(call(model)) if t.requires_grad]
    if not outputs:
        return
    sum(t.float().sum() for t in outputs).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.grad.shape != parameter.shape:
            raise AssertionError(f"the gradient of {name} has shape {list(parameter.grad.shape)}")
    model.zero_grad()


def normalise_activations(network: Network, model: nn.Module) -> None:
    """Scales every layer so that its outputs have standard deviation 1 on the inputs, and sets random biases.

    With random weights the activations of a deep network vanish, and a wrong channel would not change the outputs.
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


def depends_on_inputs(network: Network, model: nn.Module) -> bool | None:
    """Whether the outputs depend on the inputs: otherwise their equality proves nothing. ``None`` without outputs."""

    def outputs(inputs: Any) -> list[Tensor]:
        with torch.no_grad():
            return [t for t in tensors_in(network.call(model, inputs)) if t.is_floating_point()]

    flipped = torch.utils._pytree.tree_map(lambda t: t.flip(-1), network.inputs)
    pairs = list(zip(outputs(network.inputs), outputs(flipped), strict=False))
    if not any(a.numel() for a, _ in pairs):
        return None
    return any(a.shape != b.shape or not torch.allclose(a, b, rtol=1e-4) for a, b in pairs)


def examine(network: Network, norms: str = "exact") -> dict[str, Any]:
    """Prunes a network and checks the result; returns its row.

    Args:
        network: The network.
        norms: What may happen to channels that norms take statistics over, see :func:`fec_fast.prune`.

    Raises:
        AssertionError: A gradient has the wrong shape, or the loaded network differs from the saved one.
    """
    torch.manual_seed(0)
    model = network.build().eval()
    normalise_activations(network, model)
    row: dict[str, Any] = {"family": network.family}
    row["parameters"] = sum(p.numel() for p in model.parameters())
    options: dict[str, Any] = {"ratio": 0.5, "norms": norms, "verify": False, "recover": None}
    result, seconds = timed(partial(fec_fast.prune, model, network.inputs, **options))
    row["seconds"] = round(seconds, 2)
    row["after"] = sum(p.numel() for p in result.model.parameters())
    row["difference"] = fec_fast.verify_equivalence(model, result.model, result.plan, network.inputs)
    share, reasons = prunable_share(model, network.inputs, norms)
    row["sensitive"] = depends_on_inputs(network, result.model)
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
        loaded = fec_fast.load(network.build().eval(), Path(folder) / "pruned")
    with torch.no_grad():
        torch.manual_seed(2)
        before = list(tensors_in(network.call(result.model.eval())))
        torch.manual_seed(2)
        after = list(tensors_in(network.call(loaded)))
    if len(before) != len(after) or not all(equal(a, b) for a, b in zip(before, after, strict=True)):
        raise AssertionError("the loaded network computes other outputs than the saved one")
    return row


def attempt(network: Network, norms: str) -> dict[str, Any]:
    """The row of a network, also where it cannot be pruned or something fails."""
    try:
        return examine(network, norms)
    except fec_fast.LayerError as error:
        return {"family": network.family, "nothing": str(error).partition("nothing to prune: ")[2] or str(error)}
    except Exception as error:
        function = traceback.extract_tb(error.__traceback__)[-1].name
        return {"family": network.family, "error": f"{type(error).__name__}: {error} ({function})"[:400]}


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have equal bits; NaN equals NaN."""
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a.float()), torch.nan_to_num(b.float()))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these networks alone")
    parser.add_argument("--anew", action="store_true", help="measure networks again that have a result")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page from the results")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    result = read_result(RESULT) or {"networks": {}}
    listed = [] if arguments.page_only else list(networks())
    for network in listed:
        missing = "error" in result["networks"].get(network.name, {"error": ""})
        if network.name not in arguments.only if arguments.only else not (missing or arguments.anew):
            continue
        row = attempt(network, "exact")
        if row.get("prunable", 0) < ENOUGH and "error" not in row:
            again = attempt(network, "renormalise")
            row[RENORMALISED] = {key: again[key] for key in SHORT if key in again}
        print(network.name, json.dumps(row), flush=True)
        result["networks"][network.name] = row | {"run": run_number(result, "torchvision", "timm")}
        result["listed"] = len(listed)
        write_result(RESULT, result)
        gc.collect()
    write_page("coverage.md", page(result))


if __name__ == "__main__":
    main()

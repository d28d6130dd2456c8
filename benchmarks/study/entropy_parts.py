"""Entropies estimated by parts, compared with exact ones, in the large convolutions of trained networks.

    pip install . && python -m benchmarks.study.entropy_parts STATE_DICT ...

In a layer with many filters, ``prune`` compares each with a part of the others
(:mod:`fec_fast.pruning.unit_entropies`). Here that is done for every side of a convolution that has more than 256
filters or slices and is not depthwise, and compared with the exact entropies: the correlation of the ranks, of
entropies and of entropies times L1 norms, and the share of the lower half by entropy times L1 norm that both have in
common. Writes benchmarks/results/entropy_parts.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.common.results import RESULTS, run_number, write_result
from fec_fast import Formula
from fec_fast.pruning.layer_sides import UnitsOfSide, as_filters
from fec_fast.pruning.unit_entropies import MOST_COMPARED, WeightSide, entropies
from fec_fast.scoring.backends.registry import resolve


def state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch or safetensors."""
    if file.suffix == ".safetensors":
        return load_file(file)
    tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return tensors


def compared(layer: str, weight: Tensor, axis: int) -> dict[str, Any]:
    """The row of one side of a layer, whose weight is float32 ``[N, C, kh, kw]``."""
    filters = as_filters(weight, axis, 1)
    side = WeightSide(weight, axis, 1, UnitsOfSide.of(np.arange(1, len(filters) + 1)), layer)
    exact, estimated = (
        entropies([side], Formula(), resolve("cpu"), most_compared=most)[0] for most in (len(filters), 0)
    )
    norms = filters.abs().flatten(1).sum(1).double().numpy()
    half = len(filters) // 2
    lower = [set(np.argsort(values * norms)[:half].tolist()) for values in (exact, estimated)]
    return {
        "layer": layer,
        "axis": axis,
        "units": len(filters),
        "ranks of entropy": round(_rank_correlation(exact, estimated), 4),
        "ranks of entropy times L1": round(_rank_correlation(exact * norms, estimated * norms), 4),
        "lower half in common": round(len(lower[0] & lower[1]) / half, 4),
    }


def _rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.corrcoef(left.argsort().argsort(), right.argsort().argsort())[0, 1])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="STATE_DICT")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"networks": {}}
    for file in arguments.files:
        name = file.stem
        rows = [
            compared(layer, weight.float(), axis)
            for layer, weight in state_dict(file).items()
            if weight.dim() == 4 and weight.shape[1] > 1
            for axis in (0, 1)
            if weight.shape[axis] > MOST_COMPARED
        ]
        least = {key: min(row[key] for row in rows) for key in rows[0] if isinstance(rows[0][key], float)}
        result["networks"][name] = {"run": run_number(result), "least": least, "layers": rows}
        print(name, len(rows), "sides; least:", least, flush=True)
    write_result(RESULTS / "entropy_parts.json", result)


if __name__ == "__main__":
    main()

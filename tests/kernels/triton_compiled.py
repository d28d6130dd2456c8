"""Compiles every Triton kernel ahead of time for one target, without a GPU; prints each one's resources as JSON.

python tests/kernels/triton_compiled.py cuda 90 32
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fec_fast.scoring.backends import triton_kernels as kernels

I32, I64 = "i32", "i64"


def compiled(
    target: GPUTarget, kernel: object, signature: dict[str, str], constants: dict[str, object], warps: int
) -> object:
    full = signature | {name: "constexpr" for name in constants}
    source = ASTSource(fn=kernel, signature=full, constexprs=constants)
    return triton.compile(source, target=target, options={"num_warps": warps})


def resources(cubin: bytes) -> dict[str, int]:
    """Reads the machine code's own table with cuobjdump, which Triton installs."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": usage["REG"], "stack": usage["STACK"] + usage["LOCAL"]}


def main() -> None:
    name, architecture, width = sys.argv[1:4]
    target = GPUTarget(name, int(architecture) if architecture.isdigit() else architecture, int(width))
    found = {}
    for storage, real in (("fp32", "fp32"), ("bf16", "fp32"), ("fp16", "fp32"), ("fp64", "fp64")):
        sizes = {"inner": I32, "channels": I32, "taps": I32}
        sizes |= {f"stride_{axis}": I32 for axis in ("outer", "inner", "channel", "tap")}
        signature = {"data": f"*{storage}", "points": f"*{real}", "scale": f"*{real}"} | sizes
        found[f"compress {storage}"] = compiled(target, kernels.compress, signature, {"KIND": "rms", "BLOCK": 128}, 4)
        names = "count matrix_inner matrix_stride_outer matrix_stride_inner inner stride_outer stride_inner"
        places = {name: I32 for name in [*names.split(), "runs", "stride_run", "steps", "stride_step"]}
        signature = {"data": f"*{storage}", "rows": "*fp64", "scale": f"*{real}", "factor": "*fp64"} | places
        for terms in ("distances", "similarity", "softmax", "distance"):
            constants = {"TERMS": terms, "ONE_COORDINATE": False, "ROWS": 32, "COLUMNS": 32}
            found[f"pairs {storage} {terms}"] = compiled(target, kernels.pairs, signature, constants, 4)
    for real in ("fp32", "fp64"):
        for block in (32, 512, 2048):
            warps = min(8, max(1, block // 256))
            signature = {"points": f"*{real}", "means": "*fp64", "channels": I32}
            found[f"sort_rows {real} {block}"] = compiled(target, kernels.sort_rows, signature, {"BLOCK": block}, warps)
            signature = {"points": f"*{real}", "entropies": "*fp64", "factor": "*fp64", "channels": I32}
            constants = {"SOFTMAX": False, "BLOCK": block}
            found[f"scan_rows {real} {block}"] = compiled(target, kernels.scan_rows, signature, constants, warps)
    report = {}
    for what, kernel in found.items():
        cubin = kernel.asm.get("cubin")  # type: ignore[attr-defined]
        report[what] = {"shared": kernel.metadata.shared} | (resources(cubin) if cubin else {})  # type: ignore[attr-defined]
    print(json.dumps(report))


main()

"""Compiles the Triton kernels that run most for one target, without a GPU; prints each one's resources as JSON.

python tests/kernels/triton_compiled.py cuda 90 32
"""

from __future__ import annotations

import json
import re
import sys

from benchmarks.gpu.triton_resources import FREQUENT, OTHERS, compiled, resources


def float32_sums(split: bool) -> int:
    """How often multiply_tiles adds a tile of products to its float32 sums in one turn of its loop."""
    build = next(
        build
        for build in (*FREQUENT, *OTHERS)
        if build.kernel == "multiply_tiles" and dict(build.constants)["SPLIT"] == split
    )
    code = compiled(build, target).asm["ttgir"]
    loop = code[code.index("scf.for") :].split("scf.yield")[0]
    return len(re.findall(r"arith\.addf .*tensor<(\d+)x\1xf32", loop))


def vector_accesses() -> list[str]:
    """Loads and stores of several numbers in the sorting kernels. Their hint promises consecutive channels, which holds
    for one stride only: such an access would read wrong numbers.
    """
    found = []
    for build in FREQUENT:
        if build.module == "triton_sorted":
            found += re.findall(r"(?:ld|st)\.global\S*\.v\d\S*", compiled(build, target).asm.get("ptx", ""))
    return found


name, architecture, lanes = sys.argv[1:4]
target = (name, int(architecture) if architecture.isdigit() else architecture, int(lanes))
report = {str(build): resources(build, target) for build in FREQUENT}
sums = [float32_sums(split) for split in (True, False)]
print(json.dumps({"resources": report, "float32 sums": sums, "vector accesses": vector_accesses()}))

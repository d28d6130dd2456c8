"""Registers, spills and shared memory of Triton's kernels, compiled ahead of time for every architecture.

    python -m benchmarks.gpu.triton_resources     writes docs/triton_resources.md; takes some ten minutes

Needs Triton and no GPU.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.common.pages import page_of, paragraph, write_page
from benchmarks.common.tables import markdown_table
from benchmarks.gpu.nvcc import tool
from fec_fast.scoring.backends.triton_launches import warps_of

PAGE = "triton_resources.md"
# Backend, architecture, lanes of a warp.
TARGETS = (
    *(("cuda", architecture, 32) for architecture in (80, 86, 90, 100, 120)),
    ("hip", "gfx942", 64),
)
# Bytes of shared memory that one block can have, by compute capability (CUDA programming guide, technical
# specifications); AMD's local data share has 64 KiB.
SHARED = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
_I32, _I64, _F16, _F32, _F64 = "*i32", "*i64", "*fp16", "*fp32", "*fp64"


class Build(NamedTuple):
    """One way in which a kernel is compiled.

    Attributes:
        module: The kernel's module in ``fec_fast.scoring.backends``.
        kernel: Its name.
        real: The arithmetic, ``"fp32"`` or ``"fp64"``.
        constants: Those that matter, by name.
        warps: The warps of a program.
    """

    module: str
    kernel: str
    real: str = "fp32"
    constants: tuple[tuple[str, Any], ...] = ()
    warps: int = 4

    def __str__(self) -> str:
        """The kernel and its constants."""
        return " ".join([self.kernel, self.real, *(f"{name}={value}" for name, value in self.constants)])


def _sorted(kernel: str, block: int, real: str = "fp32", terms: str = "similarity") -> Build:
    """A kernel for filters that are padded to a size, as triton_launches.Sorted launches it."""
    size = 4 if real == "fp32" else 8
    shape = (("ROWS", max(1, 2048 // size // block)), ("BLOCK", block), ("BITS", block.bit_length() - 1))
    constants = shape if kernel == "sort_rows" else (("TERMS", terms), *shape[:2])
    return Build("triton_sorted", kernel, real, constants, warps_of(block * size))


# What runs most: between filters and sorted, float32.
FREQUENT = (
    Build("triton_filters", "split_filters", constants=(("SPLIT", True),)),
    Build("triton_filters", "multiply_tiles", constants=(("SPLIT", True),)),
    Build("triton_filters", "near_tiles", constants=(("SPLIT", True),)),
    Build("triton_filters", "sum_tiles", constants=(("TERMS", "similarity"),)),
    Build("triton_filters", "finish_filters", constants=(("TERMS", "similarity"),)),
    Build("triton_parts", "set_units"),
    *(_sorted(kernel, block) for block in (64, 512, 1024) for kernel in ("sort_rows", "scan_rows")),
)
OTHERS = (
    Build("triton_filters", "multiply_tiles", constants=(("SPLIT", False),)),
    Build("triton_filters", "sum_tiles", constants=(("TERMS", "softmax"),)),
    *(_sorted(kernel, block) for block in (2048, 4096) for kernel in ("sort_rows", "scan_rows")),
    _sorted("scan_rows", 1024, terms="softmax"),
    *(_sorted(kernel, 512, "fp64") for kernel in ("sort_rows", "scan_rows")),
    *(
        Build("triton_pairs", "compare_pairs", real, (("TERMS", terms), ("INSIDE", inside)))
        for real, inside in (("fp32", True), ("fp64", False))
        for terms in ("distances", "similarity")
    ),
    Build("triton_pairs", "gather_points", "fp32", (("INSIDE", True),)),
    Build("triton_pairs", "average_rows"),
)


def resources(build: Build, target: tuple[str, int | str, int]) -> dict[str, int]:
    """Compiles a kernel for a target.

    Args:
        build: The kernel and its constants.
        target: Backend, architecture, lanes of a warp.

    Returns:
        ``shared`` in bytes; of NVIDIA's machine code also ``registers`` and ``stack``, in which spills are.
    """
    kernel = compiled(build, target)
    cubin = kernel.asm.get("cubin")
    return {"shared": kernel.metadata.shared} | (_of_machine_code(cubin) if cubin else {})


def compiled(build: Build, target: tuple[str, int | str, int]) -> Any:
    """Triton's compiled kernel.

    Args:
        build: The kernel and its constants.
        target: Backend, architecture, lanes of a warp.
    """
    import importlib

    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fec_fast.scoring.backends import triton_launches

    kernel = getattr(importlib.import_module(f"fec_fast.scoring.backends.{build.module}"), build.kernel)
    real = tl.float64 if build.real == "fp64" else tl.float32
    tiling = triton_launches.tiling_for(divmod(int(target[1]), 10) if target[0] == "cuda" else None)
    own = f"*{build.real}"
    types = {"table": _I64, "halves": _F16, "squares": _F32, "distances": _F32, "partials": _F32, "kept": own}
    types |= {"points": own, "sums": _F64, "units": _F64, "results": _F64, "first": "i32"}
    types |= {name: _I32 for name in ("blocks", "tiles", "strips", "exponents", "notes")}
    given = {"DTYPE": real, "REAL": real, "KIND": "rms" if build.module == "triton_sorted" else "none"}
    given |= {"SPLIT": True, "TILE": tiling.tile, "STEP": tiling.step, "MEASURED": True, "LARGEST": 1024}
    shapes = {
        "split_filters": {"ROWS": triton_launches.SPLIT_ROWS, "BLOCK": triton_launches.SPLIT_BLOCK},
        "gather_points": {"ROWS": triton_launches.GATHER_ROWS, "BLOCK": triton_launches.GATHER_BLOCK},
        "compare_pairs": {"ROWS": triton_launches.PAIR_ROWS, "COLUMNS": triton_launches.PAIR_COLUMNS},
        "average_rows": {"ROWS": triton_launches.PAIR_ROWS, "FILTERS": 64},
        "set_units": {"BLOCK": 1024},
    }
    given |= shapes.get(build.kernel, {}) | dict(build.constants)
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    constants = {name: given[name] for name, kind in signature.items() if kind == "constexpr"}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    options = {"num_warps": build.warps}
    if build.kernel == "multiply_tiles":
        options = {"num_warps": tiling.warps, "num_stages": tiling.stages}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget(*target), options=options)


def _of_machine_code(cubin: bytes) -> dict[str, int]:
    """Registers per thread, and bytes of stack and local memory, from the machine code's own table."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool("cuobjdump"), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": usage["REG"], "stack": usage["STACK"] + usage["LOCAL"]}


def table(builds: Sequence[Build]) -> str:
    """The table of kernels by architecture."""
    rows = []
    for build in builds:
        cells = []
        for target in TARGETS:
            takes = resources(build, target)
            shared = f"{takes['shared'] / 1024:.3g}"
            cells.append(f"{takes['registers']} / {takes['stack']} / {shared}" if "registers" in takes else shared)
            print(f"{build} {target[1]}: {cells[-1]}", flush=True)
        name, *constants = str(build).split(" ", 1)
        rows.append([f"`{name}`", constants[0], build.warps if build.kernel != "multiply_tiles" else "", *cells])
    names = [f"sm_{target[1]}" if target[0] == "cuda" else str(target[1]) for target in TARGETS]
    return markdown_table(["kernel", "constants", "warps", *names], rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    import triton

    write_page(
        PAGE,
        page_of(
            "Registers, spills and shared memory of Triton's kernels",
            paragraph(
                f"Written by `python -m benchmarks.gpu.triton_resources` with Triton {triton.__version__} (no GPU",
                "needed); do not edit. Registers per thread / bytes of stack and spills / KiB of shared memory; for",
                "AMD's gfx942 shared memory alone. Tile sizes, warps and stages are those that are used on the",
                "architecture (`triton_launches.Tiling`).",
            ),
            table((*FREQUENT, *OTHERS)),
        ),
    )


if __name__ == "__main__":
    main()

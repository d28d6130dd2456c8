"""Registers, spills, shared memory and occupancy of every CUDA kernel on every architecture.

    python -m benchmarks.gpu.resources [--check]     writes docs/gpu_resources.md, or compares it with nvcc's output

Needs nvcc and no GPU. Fails if a frequently run kernel spills, or if PTX of a kernel is missing.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.common.pages import page_of, paragraph
from benchmarks.common.tables import markdown_table
from benchmarks.gpu.nvcc import (
    ARCHITECTURES,
    CUDA,
    DEVICES,
    FILES,
    WARPGROUP_FILE,
    Job,
    compile_all,
    default_architectures,
    main,
    newest_virtual,
    ptx_entries,
    tool,
)

PAGE = "gpu_resources.md"
# (Kernel, type, variant): by architecture registers per thread, bytes of stack and spills, and occupancy.
Resources = dict[tuple[str, str, str], dict[int, tuple[int, int, float]]]
# Threads per block, and bytes of dynamic shared memory by type, as the launches set them
# (sorted_launches.h, pairwise_launches.h).
LAUNCHES = {
    "narrow_filters": (128, {"float": 21352, "double": 17096}),
    "wide_filters": (512, {"float": 33288, "double": 33672}),
    "long_sort": (512, {"float": 33288, "double": 33672}),
    "long_scans": (512, {"float": 33288, "double": 33672}),
    "long_distances": (512, {"float": 128, "double": 128}),
    "long_merge": (256, {}),
    "line_pairs": (128, {"float": 1056, "double": 2080}),
    "channel_pairs": (64, {"float": 24560, "double": 12400}),
    "filter_pairs": (64, {"float": 24560, "double": 12400}),
    "split_points": (32, {}),
    "product_tiles": (256, {"": 49152}),
    "warpgroup_tiles": (256, {"": 197616}),
    "kept_pairs": (256, {"": 8192}),
    "squared_lengths": (128, {"float": 32, "double": 32}),
    "compress": (128, {"float": 12800, "double": 16416}),
    "largest_weights": (128, {"float": 32, "double": 32}),
    "set_tau": (256, {}),
    "finish_parts": (128, {}),
    "finish_rows": (128, {}),
    "upload": (32, {}),
}
HOT = ("narrow_filters", "wide_filters", "line_pairs", "channel_pairs", "filter_pairs", "compress")
HOT += ("split_points", "kept_pairs")
# The bytes that kernels may have on their stack: the arguments of functions that are called for near pairs only.
STACK = {"product_tiles": 40, "warpgroup_tiles": 40}
WARPGROUP_KERNEL = "warpgroup_tiles"
TASKS, TERMS = ("sort", "scan", "both"), ("distances", "similarity", "softmax", "distance")
INSIDE = ("filters", "channels")


def parsed(mangled: str) -> tuple[str, str, str] | None:
    """Kernel, type and variant of a mangled name; ``None`` for other functions."""
    for kernel in LAUNCHES:
        match = re.search(rf"{len(kernel)}{kernel}(?:I([fd])(?:L(?:NS0_\d+(Task|Terms)E|(b))(\d)E)?)?", mangled)
        if match and mangled.startswith("_ZN3fec4cuda"):
            kind = {"f": "float", "d": "double", None: ""}[match[1]]
            variants = {"Task": TASKS, "Terms": TERMS, "b": INSIDE}.get(match[2] or match[3])
            return kernel, kind, variants[int(match[4])] if variants else ""
    return None


def occupancy(architecture: int, threads: int, registers: int, shared: int) -> float:
    """The share of a multiprocessor's threads that blocks of a kernel can occupy.

    Args:
        architecture: The compute capability.
        threads: Threads per block.
        registers: Registers per thread.
        shared: Bytes of shared memory per block.
    """
    device = DEVICES[architecture]
    warps = (threads + 31) // 32
    per_warp = -(-registers * 32 // 256) * 256  # registers are allocated per warp, in units of 256
    by_registers = device.registers // (per_warp * warps)
    by_shared = device.shared_kib * 1024 // (shared + 1024)  # the system reserves 1 KiB per block
    blocks = min(device.blocks, device.threads // threads, by_registers, by_shared)
    return blocks * threads / device.threads


def measure(folder: Path) -> Resources:
    """Registers, spilled bytes and occupancy by kernel and architecture."""
    jobs: list[Job] = [
        (CUDA / f"{f}.cu", a, folder / f"{Path(f).name}_{a}.cubin", []) for a in ARCHITECTURES for f in FILES
    ]
    jobs.append((CUDA / f"{WARPGROUP_FILE}.cu", "90a", folder / "warpgroups.cubin", ["-DFEC_WITH_WGMMA"]))
    compile_all(jobs)
    rows: Resources = {}
    for _, compiled_for, cubin, _ in jobs:
        architecture = 90 if compiled_for == "90a" else int(compiled_for)
        command = [tool("cuobjdump"), "--dump-resource-usage", str(cubin)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for mangled, usage in re.findall(r"Function (\S+):\n\s*(REG.*)", text):
            name = parsed(mangled)
            if name is None or (name[0] == WARPGROUP_KERNEL) != (compiled_for == "90a"):
                continue  # that file has copies of other kernels too
            numbers = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage)}
            threads, shared = LAUNCHES[name[0]]
            share = occupancy(architecture, threads, numbers["REG"], shared.get(name[1], 0) + numbers["SHARED"])
            spilled = numbers["STACK"] + numbers.get("LOCAL", 0)
            rows.setdefault(name, {})[architecture] = (numbers["REG"], spilled, share)
    return rows


def table_of_resources(rows: Resources) -> str:
    """Registers, bytes of stack and spills, and occupancy, by kernel and architecture."""
    body = []
    for (kernel, kind, variant), by_architecture in sorted(rows.items()):
        threads, shared = LAUNCHES[kernel]
        found = [by_architecture.get(a) for a in ARCHITECTURES]
        cells = ["" if each is None else f"{each[0]} / {each[1]} / {each[2]:.0%}" for each in found]
        body.append([kernel, kind, variant, threads, shared.get(kind, 0), *cells])
    return markdown_table(["kernel", "type", "", "threads", "shared", *(f"sm_{a}" for a in ARCHITECTURES)], body)


def page(folder: Path, version: str) -> str:
    """The page; ends the program if a frequently run kernel spills, or if PTX or machine code is missing.

    Args:
        folder: A folder for the compiled files.
        version: The version of nvcc.
    """
    rows = measure(folder)
    spilling = [
        f"{' '.join(name)} on sm_{a}: {by_architecture[a][1]} bytes"
        for name, by_architecture in rows.items()
        for a in by_architecture
        if name[0] in (*HOT, *STACK) and by_architecture[a][1] > STACK.get(name[0], 0)
    ]
    if spilling:
        sys.exit("spills in kernels that must not spill: " + "; ".join(spilling))
    newest = newest_virtual()
    portable = {name for name in rows if name[0] != WARPGROUP_KERNEL}
    missing = portable - {parsed(name) for name in ptx_entries(newest, folder)}
    if missing:
        sys.exit(f"{newest}: no PTX of {missing}")
    machine_code, ptx = default_architectures(folder)
    if not machine_code or not ptx:
        sys.exit(f"a build for all-major contains machine code for {machine_code} and PTX for {ptx}")
    return page_of(
        "Registers, shared memory and occupancy of the CUDA kernels",
        paragraph(
            f"Written by `python -m benchmarks.gpu.resources` with nvcc {version} (no GPU needed); do not edit.",
            "Registers per thread / bytes of stack and spills / the occupancy that registers, shared memory and block",
            "size allow, in % of the threads of a multiprocessor. Shared memory in bytes per block. Where the sources",
            "have changed, CI compiles the kernels and compares this table.",
        ),
        table_of_resources(rows),
        paragraph(
            f"`{WARPGROUP_KERNEL}` exists for sm_90a alone, beside sm_90.",
            f"All {len(portable)} others compile to PTX of the newest virtual architecture of this nvcc, {newest}. A",
            f"build for `all-major` contains machine code for {', '.join(machine_code)} and PTX for {', '.join(ptx)},",
            "which the driver compiles for newer devices (`cuobjdump --list-elf --list-ptx`).",
        ),
    )


if __name__ == "__main__":
    main(__doc__, PAGE, page)

"""Registers, spills and shared memory of every CUDA kernel on every architecture, and the occupancy they allow.

    python -m benchmarks.gpu.resources [--check]     docs/gpu_resources.md, or whether it is still what nvcc makes

Needs nvcc and no GPU. Spills in a hot kernel end it with an error, as does PTX that is missing or not whole.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.nvcc import (
    ARCHITECTURES,
    CUDA,
    DEVICES,
    FILES,
    ROOT,
    all_major,
    compile_all,
    keep_page,
    newest_virtual,
    ptx_entries,
    tool,
)

PAGE = ROOT / "docs" / "gpu_resources.md"
# Threads a block, and dynamic shared memory as the launches give it (sorted_launches.h, pairwise_launches.h).
LAUNCHES = {
    "narrow_filters": (128, {"float": 13160, "double": 17096}),
    "wide_filters": (512, {"float": 33288, "double": 33672}),
    "long_sort": (512, {"float": 33288, "double": 33672}),
    "long_scans": (512, {"float": 33288, "double": 33672}),
    "long_distances": (512, {"float": 128, "double": 128}),
    "long_merge": (256, {}),
    "line_pairs": (128, {"float": 1056, "double": 2080}),
    "channel_pairs": (64, {"float": 24560, "double": 12400}),
    "filter_pairs": (64, {"float": 24560, "double": 12400}),
    "squared_lengths": (128, {"float": 32, "double": 32}),
    "compress": (128, {"float": 12800, "double": 16416}),
    "largest_weights": (128, {"float": 32, "double": 32}),
    "set_tau": (256, {}),
    "finish_parts": (128, {}),
    "finish_rows": (128, {}),
    "upload": (32, {}),
}
HOT = ("narrow_filters", "wide_filters", "line_pairs", "channel_pairs", "filter_pairs", "compress")
TASKS, TERMS = ("sort", "scan", "both"), ("distances", "similarity", "softmax", "distance")
INSIDE = ("filters", "channels")


def named(mangled: str) -> tuple[str, str, str] | None:
    """Kernel, type and variant of a mangled name."""
    for kernel in LAUNCHES:
        found = re.search(rf"{len(kernel)}{kernel}(?:I([fd])(?:L(?:NS0_\d+(Task|Terms)E|(b))(\d)E)?)?", mangled)
        if found and mangled.startswith("_ZN3fec4cuda"):
            kind = {"f": "float", "d": "double", None: ""}[found[1]]
            words = {"Task": TASKS, "Terms": TERMS, "b": INSIDE}.get(found[2] or found[3])
            return kernel, kind, words[int(found[4])] if words else ""
    return None


def occupancy(architecture: int, threads: int, registers: int, shared: int) -> float:
    """The share of a multiprocessor's threads that blocks of this size can fill."""
    device = DEVICES[architecture]
    warps = (threads + 31) // 32
    a_warp = -(-registers * 32 // 256) * 256  # registers are given out by warps, 256 at a time
    by_registers = device.registers // (a_warp * warps)
    by_shared = device.shared_kib * 1024 // (shared + 1024)  # the system keeps 1 KiB a block
    blocks = min(device.blocks, device.threads // threads, by_registers, by_shared)
    return blocks * threads / device.threads


def measure(folder: Path) -> dict[tuple[str, str, str], dict[int, tuple[int, int, float]]]:
    """Registers, spilled bytes and occupancy by kernel and architecture."""
    jobs = [(CUDA / f"{f}.cu", a, folder / f"{Path(f).name}_{a}.cubin", []) for a in ARCHITECTURES for f in FILES]
    compile_all(jobs)
    rows: dict[tuple[str, str, str], dict[int, tuple[int, int, float]]] = {}
    for _, architecture, cubin, _ in jobs:
        command = [tool("cuobjdump"), "--dump-resource-usage", str(cubin)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for mangled, usage in re.findall(r"Function (\S+):\n\s*(REG.*)", text):
            name = named(mangled)
            if name is None:
                continue
            numbers = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage)}
            threads, shared = LAUNCHES[name[0]]
            share = occupancy(architecture, threads, numbers["REG"], shared.get(name[1], 0) + numbers["SHARED"])
            spilled = numbers["STACK"] + numbers.get("LOCAL", 0)
            rows.setdefault(name, {})[architecture] = (numbers["REG"], spilled, share)
    return rows


def page(rows: dict[tuple[str, str, str], dict[int, tuple[int, int, float]]], version: str) -> str:
    lines = [
        "# Registers, shared memory and occupancy of the CUDA kernels",
        "",
        f"Written by `python -m benchmarks.gpu.resources` with nvcc {version} (needs no GPU); do not edit. Registers "
        "a\nthread / bytes of stack and spills / the occupancy that registers, shared memory and block size allow, in "
        "% of",
        "a multiprocessor's threads. Shared memory in bytes a block. CI makes this table anew and compares.",
        "",
        "| kernel | type | | threads | shared | " + " | ".join(f"sm_{a}" for a in ARCHITECTURES) + " |",
        "| --- " * (5 + len(ARCHITECTURES)) + "|",
    ]
    for (kernel, kind, variant), by in sorted(rows.items()):
        threads, shared = LAUNCHES[kernel]
        cells = [f"{r} / {s} / {share:.0%}" for r, s, share in (by[a] for a in ARCHITECTURES)]
        memory = str(shared.get(kind, 0))
        lines.append(f"| {kernel} | {kind} | {variant} | {threads} | {memory} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def written(folder: Path, version: str) -> str:
    """The page; ends the program where a hot kernel spills, so that no page says it is well."""
    rows = measure(folder)
    spilling = [f"{' '.join(name)} on sm_{a}: {by[a][1]} bytes" for name, by in rows.items() for a in by
                if name[0] in HOT and by[a][1] > 0]  # fmt: skip
    if spilling:
        sys.exit("spills in hot kernels: " + "; ".join(spilling))
    newest = newest_virtual()
    missing = set(rows) - {named(name) for name in ptx_entries(newest, folder)}
    if missing:
        sys.exit(f"{newest}: no PTX of {missing}")
    machine, ptx = all_major(folder)
    if not machine or not ptx:
        sys.exit(f"a build for all-major holds machine code for {machine} and PTX for {ptx}")
    end = (
        f"\nPTX of the newest virtual architecture of this nvcc, {newest}, is made of all {len(rows)} kernels.\n"
        f"A build for `all-major` holds machine code for {', '.join(machine)} and PTX for {', '.join(ptx)},\n"
        "which the driver compiles for what is newer (`cuobjdump --list-elf --list-ptx`).\n"
    )
    return page(rows, version) + end


if __name__ == "__main__":
    keep_page(__doc__, PAGE, written)

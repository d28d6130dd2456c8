"""What the kernels cost, counted from the machine code that nvcc makes, and the bound that follows for ResNet-50.

    python -m benchmarks.gpu.cost [--check]     docs/gpu_cost.md, or whether it is still what nvcc makes

Needs nvcc and no GPU. It is a bound, not a measurement: every pipe as fast as its data sheet says, nothing waited for.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.nvcc import CUDA, ROOT, compile_all, keep_page, tool

PAGE = ROOT / "docs" / "gpu_cost.md"
TILE = 64  # points a side of a block's pairs (csrc/cuda/pairwise/points.cuh)
# Threads' results a clock and multiprocessor (CUDA programming guide, arithmetic instructions) by pipe, the number of
# multiprocessors, clock in GHz, memory in TB/s. Of the tensor cores: 1024 float16 multiply-adds a clock, 64 an
# instruction and thread; those of the H100 do twice as many, but not of `mma.sync`, so they are taken for the A100's.
PIPES = ("fma", "alu", "xu", "lsu", "fp64", "tensor", "issue")


@dataclass(frozen=True)
class Gpu:
    """Rates of one GPU."""

    architecture: int
    rates: dict[str, int]
    processors: int
    clock: float
    memory: float


GPUS = {
    "A100": Gpu(80, dict(zip(PIPES, (64, 64, 16, 32, 32, 16, 128), strict=True)), 108, 1.41, 2.039),
    "H100": Gpu(90, dict(zip(PIPES, (128, 64, 16, 32, 64, 16, 128), strict=True)), 132, 1.755, 3.35),
}
ON_FMA = ("FFMA", "FMUL", "FADD", "IMAD", "HFMA2", "FFMA32I", "FMUL32I", "FADD32I")
ON_XU = ("MUFU", "F2F", "I2F", "F2I", "FRND", "POPC", "I2FP")
ON_LSU = ("SHFL", "LD", "ST", "LDS", "STS", "LDG", "STG", "LDL", "STL", "LDSM", "ATOMG", "RED", "ATOM")
ON_FP64 = ("DFMA", "DADD", "DMUL", "DSETP", "DMNMX")
ON_TENSOR = ("HMMA",)
ELSEWHERE = (
    *("BRA", "EXIT", "NOP", "BSSY", "BSYNC", "BAR", "CALL", "RET", "WARPSYNC", "LDC", "ULDC", "LDCU", "S2R", "S2UR"),
    *("DEPBAR", "UMOV", "USEL", "UISETP", "ULOP3", "UIADD3", "ULEA", "USHF", "UIMAD", "CS2R", "R2UR", "VOTE", "VOTEU"),
    *("MEMBAR", "ERRBAR", "YIELD"),
)


def pipe(opcode: str) -> str:
    """The pipe of an instruction; "" for those that only take an issue slot."""
    name = opcode.split(".")[0]
    pipes = ((ON_FMA, "fma"), (ON_XU, "xu"), (ON_LSU, "lsu"), (ON_FP64, "fp64"), (ON_TENSOR, "tensor"), (ELSEWHERE, ""))
    for names, where in pipes:
        if name in names:
            return where
    return "alu"


def functions(cubin: Path) -> dict[str, list[tuple[int, str, str]]]:
    """Address, opcode and operands of every instruction, by function."""
    text = subprocess.run([tool("cuobjdump"), "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[tuple[int, str, str]]] = {}
    for block in re.split(r"\tFunction : ", text)[1:]:
        name = block.split("\n", 1)[0].strip()
        found[name] = [
            (int(a, 16), op, rest)
            for a, op, rest in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)([^;]*);", block)
        ]
    return found


def straight(instructions: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """Up to the last EXIT: what follows are out-of-line slow paths of divisions, which ordinary numbers do not take."""
    last = max(i for i, (_, op, _) in enumerate(instructions) if op == "EXIT")
    return instructions[: last + 1]


def count(instructions: list[tuple[int, str, str]]) -> Counter[str]:
    """Instructions by pipe, and of all."""
    counts: Counter[str] = Counter(pipe(op) for _, op, _ in instructions)
    counts["issue"] = len(instructions)
    del counts[""]
    return counts


def inner_loop(instructions: list[tuple[int, str, str]], marker: str) -> tuple[Counter[str], int]:
    """The innermost loop with most of a marker's opcode: instructions by pipe, and how many of the marker."""
    best: tuple[Counter[str], int] = (Counter(), 0)
    loops = []
    for at, op, rest in instructions:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if op.startswith("BRA") and target and int(target[1], 16) < at:
            loops.append((int(target[1], 16), at))
    for begin, end in loops:
        if any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in loops):
            continue
        body = [i for i in instructions if begin <= i[0] <= end]
        marks = sum(op.startswith(marker) for _, op, _ in body)
        if marks > best[1]:
            best = (count(body), marks)
    return best


def clocks(counts: Counter[str], gpu: Gpu) -> tuple[float, str]:
    """Clocks of a multiprocessor for one thread's share of these instructions, and the pipe that takes longest."""
    times = {where: counts[where] / rate for where, rate in gpu.rates.items()}
    slowest = max(times, key=lambda where: times[where])
    return times[slowest], slowest


def divided(counts: Counter[str], by: float) -> Counter[str]:
    return Counter({key: value / by for key, value in counts.items()})  # type: ignore[misc]


# ResNet-50's convolutions as (filters, channels, taps): how many.
def resnet50() -> Counter[tuple[int, int, int]]:
    layers: Counter[tuple[int, int, int]] = Counter({(64, 3, 49): 1})
    before = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        layers[4 * width, before, 1] += 1
        for block in range(blocks):
            layers[width, before if block == 0 else 4 * width, 1] += 1
            layers[width, width, 9] += 1
            layers[4 * width, width, 1] += 1
        before = 4 * width
    return layers


def numbers_a_thread(channels: int) -> tuple[int, int]:
    """Numbers a thread and warps a filter (csrc/cuda/sorted/block_kernels.cuh)."""
    padded = max(32, 1 << (channels - 1).bit_length())
    return (padded // 32, 1) if channels <= 512 else (padded // 128, 4)


def piece(found: dict[str, list[tuple[int, str, str]]], name: str) -> list[tuple[int, str, str]]:
    return straight(next(body for mangled, body in found.items() if name in mangled))


def between_filters(found: dict[str, list[tuple[int, str, str]]], gpu: Gpu) -> list[str]:
    """Rows for the products between filters: on tensor cores, and as float32 multiply-adds with the same loads."""
    tiles = sum(
        layers * (-(-n // TILE)) * (-(-n // TILE) + 1) // 2 * c * taps for (n, c, taps), layers in resnet50().items()
    )
    work = 2 * tiles * TILE * TILE  # twice: the distances for tau, and their exponentials
    rows = []
    for what, probe, loads in (
        ("float32, tensor cores", "probe_tensorILb1E", "probe_halvesIfLb1E"),
        ("float16 and bfloat16, tensor cores", "probe_tensorILb0E", "probe_halvesIN3fec"),
        ("float32 multiply-adds instead", "probe_fma", "probe_halvesIN3fec"),
    ):
        body = next(b for name, b in found.items() if probe in name)
        if "fma" in probe:
            loop, marks = inner_loop(body, "FFMA")
            products = divided(loop, marks)
        else:  # 16 coordinates of a thread's 64 pairs, less the sums that the probe reads and writes
            counts = count([i for i in straight(body) if not i[1].startswith(("LDG", "STG"))])
            products = divided(counts, 64 * 16)
        body = next(b for name, b in found.items() if loads in name)
        turn, _ = inner_loop(body, "STS")
        whole = products + divided(turn, 8 * 32)  # 8 coordinates a turn, each for 32 of a thread's products
        time, slowest = clocks(whole, gpu)
        rate = gpu.processors * gpu.clock / time / 1e3
        rows.append(
            f"| between filters, {what} | {whole['issue']:.2f} instructions a pair and coordinate "
            f"({products['issue']:.2f} to multiply), bound by {slowest}: {rate:.0f} T of them a second, "
            f"{work / rate / 1e9:.2f} ms |"
        )
    return rows


def cost(folder: Path, gpu: Gpu) -> list[str]:
    probes, pairs = folder / f"probes_{gpu.architecture}.cubin", folder / f"pairs_{gpu.architecture}.cubin"
    source = ROOT / "benchmarks" / "gpu" / "cost_probes.cu"
    jobs = [(source, gpu.architecture, probes, ["-DFEC_COUNTED"])]
    compile_all([*jobs, (CUDA / "pairwise" / "pairwise_f32.cu", gpu.architecture, pairs, [])])
    found = functions(probes)
    steps: dict[tuple[int, int], dict[str, Counter[str]]] = {}
    for e, warps in ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 4), (16, 4)):
        sort = f"probe_sort_warpILi{e}E" if warps == 1 else f"probe_sort_blockILi{e}ELi128E"
        steps[e, warps] = {
            "sort": divided(count(piece(found, sort)), e),
            "mean": divided(count(piece(found, f"probe_meanILi{e}E")), e),
            "scan": divided(count(piece(found, f"probe_scanILi{e}ELi{warps}E")), e),
        }
    reads = {taps: divided(count(piece(found, f"probe_readILi{taps}E")), 8) for taps in (1, 9, 49)}
    columns = ("channels", "sort", "mean distance", "scan, logarithm", "all", "alu", "fma", "lsu", "clocks", "pipe")
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for (e, warps), parts in steps.items():
        whole = parts["sort"] + parts["mean"] + parts["scan"]
        time, slowest = clocks(whole, gpu)
        sizes = " | ".join(f"{parts[p]['issue']:.1f}" for p in ("sort", "mean", "scan"))
        pipes = " | ".join(f"{whole[p]:.1f}" for p in ("issue", "alu", "fma", "lsu"))
        lines.append(f"| {e * 32 * warps} | {sizes} | {pipes} | {time:.2f} | {slowest} |")
    total: Counter[str] = Counter()
    weights = channels = pairs_of_channels = 0
    for (n, c, taps), layers in resnet50().items():
        e, warps = numbers_a_thread(c)
        slots = layers * n * e * 32 * warps
        parts = steps[e, warps]
        for counts in (parts["sort"], parts["mean"], parts["scan"], reads[taps]):
            for key, value in counts.items():
                total[key] += value * slots  # type: ignore[assignment]
        weights += layers * n * c * taps
        channels += layers * n * c
        pairs_of_channels += layers * n * c * c
    time, slowest = clocks(total, gpu)
    bound = time / gpu.processors / gpu.clock / 1e6
    read = 4 * weights / (0.8 * gpu.memory * 1e9)
    body = next(b for name, b in functions(pairs).items() if "line_pairsIfLNS0_5TermsE1E" in name)
    loop, exponentials = inner_loop(body, "MUFU.EX2")
    pair = divided(loop, exponentials)
    pair_time, pair_pipe = clocks(pair, gpu)
    pair_rate = gpu.processors * gpu.clock / pair_time / 1e3
    pair_bound = pairs_of_channels / pair_rate / 1e9
    lines += [
        "",
        f"ResNet-50: {weights / 1e6:.1f} M weights, {channels / 1e6:.1f} M channels, "
        f"{pairs_of_channels / 1e9:.1f} G pairs.",
        "",
        "| | |",
        "| --- | --- |",
        f"| `sorted`, all of it, with reading and padding | {bound:.3f} ms, bound by {slowest} "
        f"({channels / bound / 1e6:.0f} G channels/s) |",
        f"| reading the weights once at 80 % of {gpu.memory:g} TB/s | {read:.3f} ms; "
        f"`sorted` is {bound / read:.1f} times that |",
        f"| sorted numbers written and read again for tau, if all of it went to memory | "
        f"{2 * 4 * channels / (0.8 * gpu.memory * 1e9):.3f} ms |",
        f"| `pairwise` | {pair['issue']:.2f} instructions a pair, bound by {pair_pipe}: {pair_rate:.1f} T pairs/s, "
        f"{pair_bound:.2f} ms; `sorted` is {pair_bound / bound:.0f} times less |",
        *between_filters(found, gpu),
    ]
    if gpu.architecture == 90:
        goals = [
            ("sorted within 5 times the read", bound <= 5 * read),
            ("20 times below pairwise", pair_bound >= 20 * bound),
        ]
        lines += ["", "Aims: " + "; ".join(f"{what}: {'met' if met else '**missed**'}" for what, met in goals) + "."]
    return lines


def page(folder: Path, version: str) -> str:
    """The page, from what is compiled in a folder by this version of nvcc."""
    lines = [
        "# What the CUDA kernels cost, on paper",
        "",
        f"Written by `python -m benchmarks.gpu.cost` with nvcc {version}; do not edit. **Not yet timed on a GPU**:",
        "counted, not measured. Instructions a channel (float32, similarity, tau measured), from the machine code of",
        "the kernels' pieces compiled straight through (the kernels keep some loops, which adds a little), with the",
        "threads' overhead, loads and stores; and the clocks that the slowest pipe of a multiprocessor needs for one",
        "channel. A bound: no latency, no tail, every pipe at the rate of the CUDA programming guide. Between filters",
        "(axis=filters, none): loads, conversions and products, without the end of each pair; tau measured, so twice.",
    ]
    for name, gpu in GPUS.items():
        lines += ["", f"## {name} (sm_{gpu.architecture}, {gpu.processors} multiprocessors at {gpu.clock:g} GHz)", ""]
        lines += cost(folder, gpu)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    keep_page(__doc__, PAGE, page)

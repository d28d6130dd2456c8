"""Cost of the CUDA kernels: instruction counts in the machine code, and the lower bound for ResNet-50.

    python -m benchmarks.gpu.cost [--check]     writes docs/gpu_cost.md, or compares it with what nvcc compiles

Needs nvcc and no GPU. A bound, not a measurement: every pipe at the rate of the data sheet, no latency.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.pages import heading, page_of, paragraph
from benchmarks.common.tables import markdown_table
from benchmarks.gpu.nvcc import CUDA, ROOT, Job, compile_all, main, tool

PAGE = "gpu_cost.md"
Functions = dict[str, list[tuple[int, str, str]]]  # address, opcode and operands of every instruction, by function
READ_SHARE = 0.8  # of the bandwidth of the data sheet
TILE = 128  # filters per side of the tile of pairs of a block (csrc/cuda/pairwise/scratch.cuh)
# Tensor cores: 1024 float16 multiply-adds per clock, 64 per instruction and thread. Those of the H100 compute twice as
# many, but not by `mma.sync`, which the kernels use: the rate of the A100 is taken. By `wgmma` they do: 1024 per
# instruction and thread, as long as 8 instructions of the others.
HMMA_PER_HGMMA = 8
PIPES = ("fma", "alu", "xu", "lsu", "fp64", "tensor", "issue")


@dataclass(frozen=True)
class Gpu:
    """The rates of one GPU.

    Attributes:
        architecture: The compute capability, such as 90 for 9.0.
        rates: Results of threads per clock and multiprocessor, by pipe (CUDA programming guide, arithmetic
            instructions).
        processors: The number of multiprocessors.
        clock: In GHz.
        memory: The bandwidth in TB/s.
    """

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
ON_LSU = ("SHFL", "LD", "ST", "LDS", "STS", "LDG", "STG", "LDL", "STL", "LDSM", "LDGSTS", "ATOMG", "RED", "ATOM")
ON_FP64 = ("DFMA", "DADD", "DMUL", "DSETP", "DMNMX")
ON_TENSOR = ("HMMA", "HGMMA")
ELSEWHERE = (
    *("BRA", "EXIT", "NOP", "BSSY", "BSYNC", "BAR", "CALL", "RET", "WARPSYNC", "LDC", "ULDC", "LDCU", "S2R", "S2UR"),
    *("DEPBAR", "UMOV", "USEL", "UISETP", "ULOP3", "UIADD3", "ULEA", "USHF", "UIMAD", "CS2R", "R2UR", "VOTE", "VOTEU"),
    *("MEMBAR", "ERRBAR", "YIELD", "LDGDEPBAR", "DEPBAR", "FENCE", "WARPGROUP"),
)


def pipe(opcode: str) -> str:
    """The pipe of an instruction; "" for instructions that only take an issue slot."""
    name = opcode.split(".")[0]
    pipes = ((ON_FMA, "fma"), (ON_XU, "xu"), (ON_LSU, "lsu"), (ON_FP64, "fp64"), (ON_TENSOR, "tensor"), (ELSEWHERE, ""))
    for names, unit in pipes:
        if name in names:
            return unit
    return "alu"


def functions(cubin: Path) -> Functions:
    """The functions in a compiled file."""
    text = subprocess.run([tool("cuobjdump"), "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    instructions: Functions = {}
    for block in re.split(r"\tFunction : ", text)[1:]:
        name = block.split("\n", 1)[0].strip()
        instructions[name] = [
            (int(a, 16), op, rest)
            for a, op, rest in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)([^;]*);", block)
        ]
    return instructions


def straight(instructions: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """The instructions up to the last EXIT: behind it are the slow paths of divisions, which normal numbers skip."""
    last = max(i for i, (_, op, _) in enumerate(instructions) if op == "EXIT")
    return instructions[: last + 1]


def count(instructions: list[tuple[int, str, str]]) -> Counter[str]:
    """The number of instructions by pipe, and of all under "issue"."""
    counts: Counter[str] = Counter(pipe(op) for _, op, _ in instructions)
    counts["issue"] = len(instructions)
    counts["tensor"] += (HMMA_PER_HGMMA - 1) * sum(op.startswith("HGMMA") for _, op, _ in instructions)
    del counts[""]
    return counts


def inner_loop(instructions: list[tuple[int, str, str]], marker: str) -> tuple[Counter[str], int]:
    """The innermost loop with the most instructions of an opcode: its counts by pipe, and the number of these."""
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
    """The clocks of a multiprocessor per thread for these instructions, and the pipe that takes longest."""
    times = {unit: counts[unit] / rate for unit, rate in gpu.rates.items()}
    slowest = max(times, key=lambda unit: times[unit])
    return times[slowest], slowest


def divided(counts: Counter[str], by: float) -> Counter[str]:
    """Counts divided by a number."""
    return Counter({key: value / by for key, value in counts.items()})  # type: ignore[misc]


def resnet50() -> Counter[tuple[int, int, int]]:
    """The number of convolutions of ResNet-50 by (filters, channels, taps)."""
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


def channels_per_thread(channels: int) -> tuple[int, int]:
    """Channels per thread and warps per filter (csrc/cuda/sorted/block_kernels.cuh)."""
    padded = max(32, 1 << (channels - 1).bit_length())
    return (padded // 32, 1) if channels <= 1024 else (padded // 128, 4)


def probe(probes: Functions, name: str) -> list[tuple[int, str, str]]:
    """The instructions of the probe whose mangled name contains ``name``."""
    return straight(next(body for mangled, body in probes.items() if name in mangled))


def compiled(folder: Path, gpu: Gpu) -> tuple[Functions, Functions]:
    """Compiles the probes and the kernels of `pairwise` for a GPU."""
    probes, pairs = folder / f"probes_{gpu.architecture}.cubin", folder / f"pairs_{gpu.architecture}.cubin"
    source = ROOT / "benchmarks" / "gpu" / "cost_probes.cu"
    jobs: list[Job] = [(source, gpu.architecture, probes, ["-DFEC_COUNTED"])]
    jobs.append((CUDA / "pairwise" / "pairwise_f32.cu", gpu.architecture, pairs, []))
    warpgroups = folder / "warpgroups.cubin"
    if gpu.architecture == 90:
        jobs.append((source.with_name("cost_probes_wgmma.cu"), "90a", warpgroups, []))
    compile_all(jobs)
    more = functions(warpgroups) if gpu.architecture == 90 else {}
    return functions(probes) | more, functions(pairs)


def between_filters(probes: Functions, gpu: Gpu) -> list[tuple[str, str]]:
    """Rows for the distances between filters: products on tensor cores, float32 multiply-adds instead, and memory."""
    shapes = resnet50().items()
    tiles = [(layers * strips(n) * (strips(n) + 1) // 2, c * taps) for (n, c, taps), layers in shapes]
    work = sum(count * coordinates for count, coordinates in tiles) * TILE * TILE
    rows = []
    for what, name in (
        ("float32, tensor cores", "probe_sliceILb1E"),
        ("float16 and bfloat16, tensor cores", "probe_sliceILb0E"),
        ("float32, wgmma", "probe_warpgroup_sliceILb1E"),
        ("float16 and bfloat16, wgmma", "probe_warpgroup_sliceILb0E"),
        ("float32 multiply-adds instead, without loads", "probe_fma"),
    ):
        body = next((b for mangled, b in probes.items() if name in mangled), None)
        if body is None:  # the GPU has no wgmma
            continue
        if "fma" in name:
            loop, marks = inner_loop(body, "FFMA")
            whole = divided(loop, marks)
        else:  # some coordinates of the 64 pairs of a thread, without the sums that the probe reads and writes
            coordinates = 64 if "warpgroup" in name else 16
            kept = [i for i in straight(body) if not i[1].startswith(("LDG.", "STG"))]
            whole = divided(count(kept), 64 * coordinates)
        time, slowest = clocks(whole, gpu)
        rate = gpu.processors * gpu.clock / time / 1e3
        rows.append(
            (
                f"between filters, {what}",
                f"{whole['issue']:.2f} instructions per pair and coordinate, bound by {slowest}: {rate:.0f} T per"
                f" second, {work / rate / 1e9:.2f} ms",
            )
        )
    weights = 4 * sum(layers * n * c * taps for (n, c, taps), layers in shapes)
    distances = 4 * TILE * TILE * sum(count for count, _ in tiles)
    moved = 4 * weights + 2 * distances  # read for the largest, read, split, and the halves read; distances twice
    rows.append(
        (
            "between filters, float32: weights read twice, written and read as halves; distances written and read",
            f"{moved / 1e6:.0f} MB, {moved / (READ_SHARE * gpu.memory * 1e9):.2f} ms if all of it misses the caches",
        )
    )
    return rows


def strips(filters: int) -> int:
    """How many strips of TILE filters a layer has."""
    return -(-filters // TILE)


def kernel_steps(probes: Functions) -> dict[tuple[int, int], dict[str, Counter[str]]]:
    """Instructions per channel of the steps of `sorted`, by (channels per thread, warps per filter)."""
    steps = {}
    for e, warps in ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (16, 4)):
        sort = f"probe_sort_warpILi{e}E" if warps == 1 else f"probe_sort_blockILi{e}ELi128E"
        steps[e, warps] = {
            "sort": divided(count(probe(probes, sort)), e),
            "mean": divided(count(probe(probes, f"probe_meanILi{e}E")), e),
            "scan": divided(count(probe(probes, f"probe_scanILi{e}ELi{warps}E")), e),
        }
    return steps


def table_of_steps(steps: dict[tuple[int, int], dict[str, Counter[str]]], gpu: Gpu) -> str:
    """Instructions per channel by step and by pipe, and the clocks of the slowest pipe."""
    rows = []
    for (e, warps), parts in steps.items():
        whole = parts["sort"] + parts["mean"] + parts["scan"]
        time, slowest = clocks(whole, gpu)
        by_step = [f"{parts[step]['issue']:.1f}" for step in ("sort", "mean", "scan")]
        by_pipe = [f"{whole[pipe]:.1f}" for pipe in ("issue", "alu", "fma", "lsu")]
        rows.append([e * 32 * warps, *by_step, *by_pipe, f"{time:.2f}", slowest])
    columns = ("channels", "sort", "mean distance", "scan, logarithm", "all", "alu", "fma", "lsu", "clocks", "pipe")
    return markdown_table(columns, rows)


def bounds(probes: Functions, pairs: Functions, gpu: Gpu) -> tuple[str, str]:
    """The bounds for ResNet-50 in milliseconds, as a table, and whether the aims for the H100 are met."""
    steps = kernel_steps(probes)
    reads = {taps: divided(count(probe(probes, f"probe_readILi{taps}E")), 8) for taps in (1, 9, 49)}
    total: Counter[str] = Counter()
    weights = channels = channel_pairs = 0
    for (n, c, taps), layers in resnet50().items():
        e, warps = channels_per_thread(c)
        slots = layers * n * e * 32 * warps
        parts = steps[e, warps]
        for counts in (parts["sort"], parts["mean"], parts["scan"], reads[taps]):
            for key, value in counts.items():
                total[key] += value * slots  # type: ignore[assignment]
        weights += layers * n * c * taps
        channels += layers * n * c
        channel_pairs += layers * n * c * c
    time, slowest = clocks(total, gpu)
    sort_ms = time / gpu.processors / gpu.clock / 1e6
    bandwidth = READ_SHARE * gpu.memory * 1e9  # bytes per millisecond
    read_ms = 4 * weights / bandwidth
    body = next(b for name, b in pairs.items() if "line_pairsIfLNS0_5TermsE1E" in name)
    pair = divided(*inner_loop(body, "MUFU.EX2"))
    pair_time, pair_pipe = clocks(pair, gpu)
    pair_rate = gpu.processors * gpu.clock / pair_time / 1e3
    pairs_ms = channel_pairs / pair_rate / 1e9
    rows = [
        (
            "`sorted`, with reading and padding",
            f"{sort_ms:.3f} ms, bound by {slowest} ({channels / sort_ms / 1e6:.0f} G channels/s)",
        ),
        (
            f"reading the weights once at {100 * READ_SHARE:.0f} % of {gpu.memory:g} TB/s",
            f"{read_ms:.3f} ms; `sorted` takes {sort_ms / read_ms:.1f} times as long",
        ),
        (
            "sorted numbers written and read for tau, if all of them miss the caches",
            f"{8 * channels / bandwidth:.3f} ms",
        ),
        (
            "`pairwise`",
            f"{pair['issue']:.2f} instructions per pair, bound by {pair_pipe}: {pair_rate:.1f} T pairs/s,"
            f" {pairs_ms:.2f} ms, {pairs_ms / sort_ms:.0f} times as long as `sorted`",
        ),
        *between_filters(probes, gpu),
    ]
    summary = paragraph(
        f"ResNet-50: {weights / 1e6:.1f} M weights, {channels / 1e6:.1f} M channels, {channel_pairs / 1e9:.1f} G pairs."
    )
    aims = {
        "`sorted` at most 5 times as long as the read": sort_ms <= 5 * read_ms,
        "`pairwise` at least 20 times as long as `sorted`": pairs_ms >= 20 * sort_ms,
    }
    met = "; ".join(f"{aim}: {'met' if is_met else '**missed**'}" for aim, is_met in aims.items())
    return summary + markdown_table(("", ""), rows), paragraph(f"Aims: {met}.")


def page(folder: Path, version: str) -> str:
    """The page, from the machine code that nvcc compiles.

    Args:
        folder: A folder for the compiled files.
        version: The version of nvcc.
    """
    blocks = []
    for name, gpu in GPUS.items():
        probes, pairs = compiled(folder, gpu)
        table, aims = bounds(probes, pairs, gpu)
        title = f"{name} (sm_{gpu.architecture}, {gpu.processors} multiprocessors at {gpu.clock:g} GHz)"
        blocks += [heading(title), table_of_steps(kernel_steps(probes), gpu), table, aims if name == "H100" else ""]
    return page_of(
        "Cost of the CUDA kernels by instruction counts",
        paragraph(
            f"Written by `python -m benchmarks.gpu.cost` with nvcc {version}; do not edit. Counted from machine code,",
            "not measured; times on a GPU are in [gpu.md](gpu.md).",
        ),
        paragraph(
            "Instructions per channel (float32, similarity, tau measured) of pieces of the kernels, compiled without",
            "loops (the kernels keep some loops, which adds a few instructions), with the overhead of the threads,",
            "loads and stores; then the clocks that the slowest pipe of a multiprocessor needs for one channel. A",
            "lower bound: no latency, no partly filled last wave, every pipe at the rate of the CUDA programming",
            "guide. Between filters (axis=filters, none): copies to shared memory and products, without the final step",
            "of each pair.",
        ),
        *blocks,
    )


if __name__ == "__main__":
    main(__doc__, PAGE, page)

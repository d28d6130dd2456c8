"""Everything that needs a GPU, in one command, on a machine that has one:

    python -m benchmarks.gpu [--runs 20] [--skip-sanitizer]

Builds the extension anew for the GPU here, compares every kernel of both GPU backends with the float64 reference on
the device (so nothing is timed that is wrong), replays a CUDA graph, runs compute-sanitizer's memcheck and racecheck
on small shapes, measures throughput, and writes benchmarks/results/gpu-NAME.json with a table ready for docs/gpu.md.
Without a GPU it says so and does nothing. What imports the extension runs in processes of its own, so that it is the
new one.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NETWORKS = ("resnet50", "resnet152", "wide_resnet101_2")
DEVICE = "cuda"  # the tests run everything below in the emulator, on "cpu"


def device_name() -> str:
    """The GPU's name; ends the program with the reason where there is none."""
    import torch

    if not torch.cuda.is_available():
        why = "it is built without CUDA" if torch.version.cuda is None else "it sees no CUDA device"
        sys.exit(f"benchmarks.gpu needs a CUDA GPU: torch {torch.__version__} is here, but {why}. Nothing was run.")
    return torch.cuda.get_device_name(0)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    gpu = torch.cuda.get_device_properties(0)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"],
        capture_output=True,
        text=True,
    )
    return {
        "multiprocessors": gpu.multi_processor_count,
        "memory GiB": round(gpu.total_memory / 2**30, 1),
        "driver, greatest clock": driver.stdout.strip().split("\n")[0],
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip(),
    }


def build() -> dict[str, Any]:
    """Builds the extension for the GPU here and puts it where `fec_fast` is imported from."""
    import time

    import torch

    major, minor = torch.cuda.get_device_capability(0)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder, str(ROOT)]
        options = {"CUDAARCHS": f"{major}{minor}", "SKBUILD_CMAKE_DEFINE": "FEC_CUDA=ON"}
        subprocess.run(command, check=True, env=os.environ | options, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
        built = next(Path(folder, "fec_fast").rglob("_native*.so"))
        package = importlib.util.find_spec("fec_fast")  # not imported: the processes below shall find the new one
        if package is None or package.origin is None:
            sys.exit("fec_fast is not installed: pip install '.[bench]' first")
        target = Path(package.origin).parent / built.relative_to(Path(folder, "fec_fast"))
        beside = target.with_suffix(".part")
        shutil.copy2(built, beside)
        beside.replace(target)
    return {"architecture": f"sm_{major}{minor}", "seconds": round(seconds, 1), "bytes": target.stat().st_size}


SMALL = ((5, 7, 3, 3), (6, 40, 5, 5), (70, 33, 1, 1), (3, 600, 1, 1))
ALL = (*SMALL, (64, 3, 7, 7), (96, 200, 3, 3), (300, 130, 1, 1), (2, 2048, 1, 1), (1, 8192, 1, 1), (1, 12000, 1, 1))
# The float64 reference forms all pairs: filters of more channels are compared by one number a channel alone.
LONG = 2048


class Parity:
    """Comparisons with the float64 reference, counted, and those that fail described."""

    def __init__(self, names: Sequence[str]) -> None:
        from fec_fast.scoring.backends.registry import backends

        self.backends = [name for name in names if backends()[name].usable]
        self.checks, self.worst, self.failures = 0, 0.0, list[str]()

    def compare(self, w: Any, formula: Any, what: str = "", *, axis: int = 0, groups: int = 1) -> None:
        """One weight, a CPU tensor, on every backend and algorithm, contiguous and channels last."""
        import torch

        from fec_fast.scoring import ops, reference

        want = reference.entropy(w, formula, axis=axis, groups=groups)
        filters = w.shape[0] if axis == 0 else groups * w.shape[1]
        channels = w.shape[1] if axis == 0 else w.shape[0] // groups
        allowed = reference.tolerance(w.dtype, channels if formula.axis == "channels" else filters)
        one = formula.axis == "channels" and (formula.compress != "none" or w.shape[2:].numel() == 1)
        for name, memory in itertools.product(self.backends, (torch.contiguous_format, torch.channels_last)):
            there = w.to(DEVICE).to(memory_format=memory)
            both = one and formula.entropy != "distance" and (name == "cuda" or channels <= 4096)
            for algorithm in ("sorted", "pairwise") if both else ("auto",):
                (got,) = ops.entropies(
                    [there], formula, axes=[axis], groups=[groups], algorithm=algorithm, backend=name
                )
                error = float((got - want).abs().max())
                self.checks, self.worst = self.checks + 1, max(self.worst, error / allowed)
                if not error <= allowed:
                    case = f"{name} {algorithm} {list(w.shape)} axis {axis} {w.dtype} {formula} {what}"
                    self.failures.append(f"{case}: {error:.1e}, allowed {allowed:.1e}")


def parity(sizes: Sequence[tuple[int, ...]], names: Sequence[str] = ("cuda", "triton")) -> dict[str, Any]:
    """Every formula, dtype and layout on the device against the float64 reference, on the backends of these names."""
    import torch

    from fec_fast.scoring import ops
    from fec_fast.scoring.formula import Formula

    found = Parity(names)
    words: Any = (("rms", "absmean", "mean", "none"), ("similarity", "softmax", "distance"), ("channels", "filters"))
    for size, dtype in itertools.product(sizes, (torch.float32, torch.float64, torch.float16, torch.bfloat16)):
        # Channels of different strength: the distance entropy of a few that are nearly alike is ill-conditioned, it
        # divides by distances that are mostly rounding.
        strength = torch.linspace(0.03, 0.06, size[1])[:, None, None]
        w = (torch.randn(size, generator=torch.Generator().manual_seed(0)) * strength).to(dtype)
        print(f"  {list(size)} {dtype}", file=sys.stderr, flush=True)
        for compress, entropy, axis in itertools.product(*words):
            if size[1] <= LONG or (compress, axis) == ("rms", "channels"):
                for tau in (None, 0.05):
                    found.compare(w, Formula(compress, entropy, axis, tau))
        if size[1] > LONG:
            continue
        for formula in (Formula(), Formula("rms", axis="channels")):  # what reads input channels, read where it lies
            found.compare(w, formula, axis=1)
            if size[0] % 2 == 0:
                found.compare(w, formula, axis=1, groups=2)
        # Products of one sign, pairs about as near as products are trusted: what tensor cores round worst.
        spread = torch.rand(size, generator=torch.Generator().manual_seed(1)) * 2 - 1
        found.compare((0.5 * (1 + 0.34 * spread)).to(dtype), Formula(tau=3.0), "of one sign")
        there = w[:2].to(DEVICE)
        for formula in (Formula("none", axis="channels"), Formula("rms", axis="filters")):
            if not torch.allclose(
                ops.channel_distances(there, formula).cpu(),
                ops.channel_distances(w[:2], formula),
                rtol=1e-9,
                atol=1e-12,
            ):
                found.failures.append(f"channel_distances {list(size)} {dtype} {formula}")
    found.failures += graph()
    share = "worst share of the tolerance"
    return {"backends": found.backends, "checks": found.checks, share: found.worst, "failures": found.failures}


def graph() -> list[str]:
    """The operator captured in a CUDA graph and replayed on other weights; a NaN shows without an error. What fails."""
    import torch

    weights = [torch.randn(64, 48, 3, 3, device=DEVICE), torch.randn(32, 64, 1, 1, device=DEVICE)]
    failures = []
    for compress, axis in (("rms", "channels"), ("none", "filters")):
        arguments: Any = ([0, 0], [1, 1], compress, "similarity", axis, None, 1.0, "auto", "cuda")
        operator = torch.ops.fec_fast.entropy
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            operator(weights, *arguments)
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            results = operator(weights, *arguments)
        for weight in weights:
            weight.normal_()
        captured.replay()
        for found, wanted in zip(results, operator(weights, *arguments), strict=True):
            if not torch.equal(found, wanted):
                failures.append(f"a replayed graph gives other entropies: {compress}, {axis}")
        weights[1][3, 2] = float("nan")
        captured.replay()
        if bool(results[0].isnan().any()) or not bool(results[1].isnan().any()):
            failures.append(f"a NaN does not show as it should: {compress}, {axis}")
        weights[1].normal_()
    return failures


def alone(*arguments: str, under: list[str] | None = None) -> str:
    """This module's other commands in a process of their own."""
    command = [*(under or []), sys.executable, "-m", "benchmarks.gpu", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")
    return done.stdout


def sanitizer() -> dict[str, str]:
    """compute-sanitizer's memcheck and racecheck over the small shapes."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"not run": "no compute-sanitizer on the PATH"}
    found = {}
    for kind in ("memcheck", "racecheck"):
        print(f"{kind} ...", flush=True)
        text = alone("--command", "small", under=[program, "--tool", kind, "--error-exitcode", "1"])
        found[kind] = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)[-1]
        failures = json.loads(next(line for line in text.splitlines() if line.startswith("{")))["failures"]
        if failures:
            sys.exit(f"wrong under {kind}:\n" + "\n".join(failures))
    return found


FLOOR = "memory floor: all weights in one tensor, read once (sum)"


def milliseconds(function: Callable[[], object], runs: int) -> float:
    """The median over runs, by CUDA events, after two calls."""
    import torch

    times = []
    for run in range(runs + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        if run >= 2:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def throughput(name: str, runs: int) -> dict[str, float]:
    """One network: milliseconds on the device of ours and of the yardsticks."""
    import torch
    from torchvision.models import get_model

    from fec_fast.scoring.backends import cuda, triton
    from fec_fast.scoring.backends.registry import backends
    from fec_fast.scoring.formula import Formula

    model = get_model(name, weights=None)
    weights = [m.weight.detach().to(DEVICE) for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    zeros, ones = [0] * len(weights), [1] * len(weights)
    call: Any = {"axes": zeros, "groups": ones}
    rms, filters = Formula("rms", axis="channels"), Formula()
    points = [w.flatten(2).square().mean(-1).sqrt() for w in weights]
    flat = torch.cat([w.flatten() for w in weights])

    def captured() -> Callable[[], object]:
        cuda.entropies(weights, rms, **call)  # loads the kernels, which a capture does not do everywhere
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            cuda.entropies(weights, rms, **call)
        return graph.replay

    @torch.compile(dynamic=True)
    def pairwise(v: Any, tau: Any) -> Any:
        return -torch.exp(-(v[:, :, None] - v[:, None, :]).abs() / tau).mean(-1).log().mean(-1)

    def compiled() -> None:
        for v in points:  # as many filters at a time as 64 Mi pairs hold
            step = max(1, (64 << 20) // v.shape[1] ** 2)
            for first in range(0, len(v), step):
                pairwise(v[first : first + step], 0.01)

    sides: dict[str, Callable[[], object]] = {
        FLOOR: flat.sum,
        "sorted, rms": partial(cuda.entropies, weights, rms, **call),
        "sorted, rms, as a CUDA graph": captured(),
        "brute force: pairwise, rms": partial(cuda.entropies, weights, rms, algorithm="pairwise", **call),
        "between filters": partial(cuda.entropies, weights, filters, **call),
        "torch.cdist between filters, distances alone": lambda: [
            torch.cdist(w.flatten(1), w.flatten(1)) for w in weights
        ],
    }
    if backends()["triton"].usable:
        sides["Triton: sorted, rms"] = partial(triton.entropies, weights, rms, **call)
        sides["Triton: between filters"] = partial(triton.entropies, weights, filters, **call)
    sides["pairwise, rms, torch.compile (given tau)"] = compiled  # last: it compiles for long
    found = {}
    for side, function in sides.items():  # said one by one: what is stopped by a clock has told something
        found[side] = round(milliseconds(function, runs), 4)
        print(f"  {name}: {side}: {found[side]} ms", file=sys.stderr, flush=True)
    found["sorted, as a CUDA graph, times the memory floor"] = round(
        found["sorted, rms, as a CUDA graph"] / found[FLOOR], 2
    )
    found["channels/s of sorted, G"] = round(sum(p.numel() for p in points) / found["sorted, rms"] / 1e6, 2)
    return found


def table(result: dict[str, Any]) -> str:
    """The throughput in Markdown."""
    networks = result["throughput"]
    rows = list(next(iter(networks.values())))
    lines = [f"Milliseconds on {result['device']}, medians (`python -m benchmarks.gpu`):", ""]
    lines += ["| | " + " | ".join(networks) + " |", "| --- " * (1 + len(networks)) + "|"]
    lines += [f"| {row} | " + " | ".join(f"{networks[n][row]:g}" for n in networks) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="how often each side is timed")
    parser.add_argument("--skip-sanitizer", action="store_true", help="leave compute-sanitizer out")
    parser.add_argument(
        "--command", choices=("all", "parity", "small", "throughput"), default="all", help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    name = device_name()
    if arguments.command == "throughput":
        return print(json.dumps({network: throughput(network, arguments.runs) for network in NETWORKS}))
    if arguments.command != "all":
        # Under the sanitizer our kernels alone: racecheck reports the sums that Triton makes, whose lanes write one
        # number to one place.
        return print(json.dumps(parity(ALL) if arguments.command == "parity" else parity(SMALL, ("cuda",))))
    import torch

    print(f"building for {name} ...", flush=True)
    result: dict[str, Any] = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}
    result |= {"machine": machine(), "build": build()}
    print("parity ...", flush=True)
    result["parity"] = json.loads(alone("--command", "parity").splitlines()[-1])
    if result["parity"]["failures"]:
        sys.exit("not timed, these are wrong:\n" + "\n".join(result["parity"]["failures"]))
    result["compute-sanitizer"] = {"not run": "--skip-sanitizer"} if arguments.skip_sanitizer else sanitizer()
    print("throughput ...", flush=True)
    timed = alone("--command", "throughput", "--runs", str(arguments.runs))
    result["throughput"] = json.loads(timed.splitlines()[-1])
    result["table"] = table(result)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(result, indent=2) + "\n")
    beside.replace(path)
    print(result["table"])
    print(f"written: {path}")


if __name__ == "__main__":
    main()

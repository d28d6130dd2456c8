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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NETWORKS = ("resnet50", "resnet152", "wide_resnet101_2")


def device_name() -> str:
    """The GPU's name; ends the program with the reason where there is none."""
    import torch

    if not torch.cuda.is_available():
        why = "it is built without CUDA" if torch.version.cuda is None else "it sees no CUDA device"
        sys.exit(f"benchmarks.gpu needs a CUDA GPU: torch {torch.__version__} is here, but {why}. Nothing was run.")
    return torch.cuda.get_device_name(0)


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
        built = next(Path(folder, "fec_fast").glob("_native*.so"))
        package = importlib.util.find_spec("fec_fast")  # not imported: the processes below shall find the new one
        if package is None or package.origin is None:
            sys.exit("fec_fast is not installed: pip install '.[bench]' first")
        target = Path(package.origin).parent / built.name
        beside = target.with_suffix(".part")
        shutil.copy2(built, beside)
        beside.replace(target)
    return {"architecture": f"sm_{major}{minor}", "seconds": round(seconds, 1), "bytes": target.stat().st_size}


def parity(shapes: str) -> None:
    """Every formula, dtype and layout on the device against the float64 reference; prints JSON."""
    import torch

    from fec_fast import ops, reference
    from fec_fast.backends import backends
    from fec_fast.formula import Formula

    sizes = [(5, 7, 3, 3), (6, 40, 5, 5), (70, 33, 1, 1), (3, 600, 1, 1)]
    if shapes == "all":
        sizes += [(64, 3, 7, 7), (96, 200, 3, 3), (300, 130, 1, 1), (8, 2048, 1, 1), (2, 8192, 1, 1), (2, 20000, 1, 1)]
    checks, worst, failures = 0, 0.0, []
    names = [name for name in ("cuda", "triton") if backends()[name].usable]
    words: Any = (("rms", "absmean", "mean", "none"), ("similarity", "softmax", "distance"), ("channels", "filters"))
    for size, dtype in itertools.product(sizes, (torch.float32, torch.float64, torch.float16, torch.bfloat16)):
        w = (torch.randn(size, generator=torch.Generator().manual_seed(0)) * 0.05).to(dtype)
        for compress, entropy, axis in itertools.product(*words):
            for tau in (None, 0.05):
                formula = Formula(compress, entropy, axis, tau)
                want = reference.entropy(w, formula)
                allowed = reference.tolerance(dtype, size[1] if axis == "channels" else size[0])
                for name, memory in itertools.product(names, (torch.contiguous_format, torch.channels_last)):
                    there = w.cuda().to(memory_format=memory)
                    one = axis == "channels" and (compress != "none" or w.shape[2:].numel() == 1)
                    both = one and entropy != "distance" and (name == "cuda" or size[1] <= 4096)
                    for algorithm in ("sorted", "pairwise") if both else ("auto",):
                        (got,) = ops.entropies(
                            [there], formula, axes=[0], groups=[1], algorithm=algorithm, backend=name
                        )
                        error = float((got - want).abs().max())
                        checks, worst = checks + 1, max(worst, error / allowed)
                        if not error <= allowed:
                            failures.append(f"{name} {algorithm} {list(size)} {dtype} {formula}: {error:.1e}")
    graph()
    print(
        json.dumps({"backends": names, "checks": checks, "worst share of the tolerance": worst, "failures": failures})
    )


def graph() -> None:
    """The operator captured in a CUDA graph and replayed on other weights; and a NaN that shows without an error."""
    import torch

    weights = [torch.randn(64, 48, 3, 3, device="cuda"), torch.randn(32, 64, 1, 1, device="cuda")]
    arguments: Any = ([0, 0], [1, 1], "rms", "similarity", "channels", None, 1.0, "auto", "cuda")
    operator = torch.ops.fec_fast.entropy
    stream = torch.cuda.Stream()
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
        assert torch.equal(found, wanted), "a replayed graph gives other entropies"
    weights[1][3, 2] = float("nan")
    captured.replay()
    assert not bool(results[0].isnan().any()) and bool(results[1].isnan().any()), "a NaN does not show as it should"


def alone(*arguments: str, under: list[str] | None = None) -> str:
    """This module's other commands in a process of their own."""
    command = [*(under or []), sys.executable, "-m", "benchmarks.gpu", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
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
    return found


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

    from fec_fast.backends import backends, cuda, triton
    from fec_fast.formula import Formula

    model = get_model(name, weights=None)
    weights = [m.weight.detach().cuda() for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    zeros, ones = [0] * len(weights), [1] * len(weights)
    call: Any = {"axes": zeros, "groups": ones}
    rms, filters = Formula("rms", axis="channels"), Formula()
    points = [w.flatten(2).square().mean(-1).sqrt() for w in weights]

    def captured() -> Callable[[], object]:
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
        "memory floor: every weight read once (sum)": lambda: [w.sum() for w in weights],
        "sorted, rms": partial(cuda.entropies, weights, rms, **call),
        "sorted, rms, as a CUDA graph": captured(),
        "brute force: pairwise, rms": partial(cuda.entropies, weights, rms, algorithm="pairwise", **call),
        "between filters": partial(cuda.entropies, weights, filters, **call),
        "torch.cdist between filters, distances alone": lambda: [
            torch.cdist(w.flatten(1), w.flatten(1)) for w in weights
        ],
        "pairwise, rms, torch.compile (given tau)": compiled,
    }
    if backends()["triton"].usable:
        sides["Triton: sorted, rms"] = partial(triton.entropies, weights, rms, **call)
        sides["Triton: between filters"] = partial(triton.entropies, weights, filters, **call)
    found = {side: round(milliseconds(function, runs), 4) for side, function in sides.items()}
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
        return parity("all" if arguments.command == "parity" else "small")
    import torch

    print(f"building for {name} ...", flush=True)
    result: dict[str, Any] = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "build": build()}
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

"""Parity of the CUDA and Triton kernels with the float64 reference, on the device, and of replayed CUDA graphs.

The rows of ``python -m benchmarks.gpu --part parity``; each has ``failures``, one line per comparison that failed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.environment import ROOT
from benchmarks.common.parity import allowed_error
from benchmarks.gpu.rows import Row
from fec_fast.scoring import ops, reference
from fec_fast.scoring.backends import cuda
from fec_fast.scoring.backends.registry import backends
from fec_fast.scoring.distance_matrix import channel_distances
from fec_fast.scoring.formula import Formula
from fec_fast.utils.errors import BackendError

DEVICE = "cuda"  # the tests run everything in the emulator, on "cpu"
SMALL = ((5, 7, 3, 3), (6, 40, 5, 5), (70, 33, 1, 1), (3, 600, 1, 1))
ALL = (*SMALL, (64, 3, 7, 7), (96, 200, 3, 3), (300, 130, 1, 1), (2, 2048, 1, 1), (1, 8192, 1, 1), (1, 12000, 1, 1))
WARPGROUPS = ((70, 33, 1, 1), (96, 200, 3, 3), (300, 130, 1, 1))  # what is compared by wgmma too
# The float64 reference computes all pairs: filters with more channels are compared with one number per channel only.
MOST_CHANNELS = 2048
SANITIZER = "compute-sanitizer"
_SANITIZER_SECONDS = 90


class Parity:
    """A series of comparisons with the float64 reference.

    Attributes:
        backends: The names of the usable backends.
        checks: The number of comparisons.
        worst: The largest error, as a share of the tolerance.
        failures: One line per comparison that failed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.backends = [name for name in names if backends()[name].usable]
        self.checks, self.worst, self.failures = 0, 0.0, list[str]()

    def compare(self, w: Any, formula: Any, what: str = "", *, axis: int = 0, groups: int = 1) -> None:
        """One weight, a CPU tensor, on every backend and algorithm, contiguous and channels last."""
        wanted = reference.entropy(w, formula, axis=axis, groups=groups)
        channels = w.shape[1] if axis == 0 else w.shape[0] // groups
        allowed = allowed_error(w, formula, axis=axis, groups=groups)
        one_number = formula.axis == "channels" and (formula.compress != "none" or w.shape[2:].numel() == 1)
        for name, memory in itertools.product(self.backends, (torch.contiguous_format, torch.channels_last)):
            on_device = w.to(DEVICE).to(memory_format=memory)
            both = one_number and formula.entropy != "distance" and (name == "cuda" or channels <= 4096)
            for algorithm in ("sorted", "pairwise") if both else ("auto",):
                (got,) = ops.entropies(
                    [on_device], formula, axes=[axis], groups=[groups], algorithm=algorithm, backend=name
                )
                error = float((got - wanted).abs().max())
                self.checks, self.worst = self.checks + 1, max(self.worst, error / allowed)
                if not error <= allowed:
                    case = f"{name} {algorithm} {list(w.shape)} axis {axis} {w.dtype} {formula} {what}"
                    self.failures.append(f"{case}: {error:.1e}, allowed {allowed:.1e}")


def parity(sizes: Sequence[tuple[int, ...]], names: Sequence[str] = ("cuda", "triton")) -> dict[str, Any]:
    """Compares every formula, dtype and layout on the device with the float64 reference.

    Args:
        sizes: The shapes of the weights, [N, C, *kernel].
        names: The backends, as far as they are usable.

    Returns:
        ``backends``, ``checks``, ``worst share of the tolerance`` and ``failures``, see :class:`Parity`.
    """
    comparisons = Parity(names)
    choices: Any = (("rms", "absmean", "mean", "none"), ("similarity", "softmax", "distance"), ("channels", "filters"))
    for size, dtype in itertools.product(sizes, (torch.float32, torch.float64, torch.float16, torch.bfloat16)):
        # Channels of different norm: the distance entropy of a few nearly equal channels is ill-conditioned, because it
        # divides by distances that consist mostly of rounding errors.
        strength = torch.linspace(0.03, 0.06, size[1])[:, None, None]
        w = (torch.randn(size, generator=torch.Generator().manual_seed(0)) * strength).to(dtype)
        print(f"  {list(size)} {dtype}", file=sys.stderr, flush=True)
        for compress, entropy, axis in itertools.product(*choices):
            if size[1] <= MOST_CHANNELS or (compress, axis) == ("rms", "channels"):
                for tau in (None, 0.05):
                    comparisons.compare(w, Formula(compress, entropy, axis, tau))
        if size[1] > MOST_CHANNELS:
            continue
        for formula in (Formula(), Formula("rms", axis="channels")):  # consumers' weights, read in place
            comparisons.compare(w, formula, axis=1)
            if size[0] % 2 == 0:
                comparisons.compare(w, formula, axis=1, groups=2)
        # Products of one sign and pairs at the smallest distance that is computed by products: the worst case for the
        # rounding of tensor cores.
        spread = torch.rand(size, generator=torch.Generator().manual_seed(1)) * 2 - 1
        comparisons.compare((0.5 * (1 + 0.34 * spread)).to(dtype), Formula(tau=3.0), "of one sign")
        on_device = w[:2].to(DEVICE)
        for formula in (Formula("none", axis="channels"), Formula("rms", axis="filters")):
            if not torch.allclose(
                channel_distances(on_device, formula).cpu(),
                channel_distances(w[:2], formula),
                rtol=1e-9,
                atol=1e-12,
            ):
                comparisons.failures.append(f"channel_distances {list(size)} {dtype} {formula}")
    share = "worst share of the tolerance"
    return {
        "backends": comparisons.backends,
        "checks": comparisons.checks,
        share: comparisons.worst,
        "failures": comparisons.failures,
    }


def graph(backend: str = "cuda") -> list[str]:
    """Captures the operator in a CUDA graph and replays it on other weights, one of them with a NaN.

    Args:
        backend: The backend whose kernels are captured.

    Returns:
        One line per failure.
    """
    weights = [torch.randn(64, 48, 3, 3, device=DEVICE), torch.randn(32, 64, 1, 1, device=DEVICE)]
    failures = []
    for compress, axis in (("rms", "channels"), ("none", "filters")):
        arguments: Any = ([0, 0], [1, 1], compress, "similarity", axis, None, 1.0, "auto", backend)
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
        for replayed, wanted in zip(results, operator(weights, *arguments), strict=True):
            if not torch.equal(replayed, wanted):
                failures.append(f"a replayed graph returns other entropies: {compress}, {axis}")
        weights[1][3, 2] = float("nan")
        captured.replay()
        if bool(results[0].isnan().any()) or not bool(results[1].isnan().any()):
            failures.append(
                f"a NaN is missing in the entropies of its layer, or is in those of another: {compress}, {axis}"
            )
        weights[1].normal_()
    return failures


@contextlib.contextmanager
def by_wgmma() -> Iterator[None]:
    """Multiplies between filters by wgmma meanwhile, where that is not the default."""
    before = os.environ.get("FEC_FAST_TENSOR_CORES")
    os.environ["FEC_FAST_TENSOR_CORES"] = "wgmma"
    try:
        yield
    finally:
        if before is None:
            del os.environ["FEC_FAST_TENSOR_CORES"]
        else:
            os.environ["FEC_FAST_TENSOR_CORES"] = before


def has_wgmma() -> bool:
    """Whether the CUDA kernels can multiply by wgmma here."""
    if not backends()["cuda"].usable or cuda.compiled() is None:
        return False
    with by_wgmma():
        try:
            return cuda.tensor_cores(None) == "wgmma"
        except BackendError:
            return False


def parity_rows(network: str = "resnet50") -> Iterator[Row]:
    """The comparisons, and compute-sanitizer's checks after them.

    Args:
        network: The network of torchvision whose weights are compared too.
    """
    names = [name for name in ("cuda", "triton") if backends()[name].usable]
    for size in ALL:
        yield Row("shapes", str(list(size)), partial(parity, (size,)))
    for name in names:
        yield Row("graphs", name, lambda name=name: {"failures": graph(name)})
        yield Row(f"weights of {network}", name, partial(network_parity, network, name))
    if has_wgmma():
        for size in WARPGROUPS:
            yield Row("wgmma", f"shapes {list(size)}", by_wgmma()(partial(parity, (size,), ("cuda",))))
        yield Row("wgmma", "graphs", by_wgmma()(lambda: {"failures": graph("cuda")}))
        yield Row("wgmma", f"weights of {network}", by_wgmma()(partial(network_parity, network, "cuda")))
    for check in ("memcheck", "racecheck"):
        yield Row(SANITIZER, check, partial(sanitized, check))
    if has_wgmma():
        yield Row(SANITIZER, "memcheck, wgmma", by_wgmma()(partial(sanitized, "memcheck")))


def network_parity(network: str, backend: str) -> dict[str, Any]:
    """Compares the entropies of a network's weights with the float64 reference on the device, in three dtypes.

    Args:
        network: Its name in torchvision.
        backend: The backend whose kernels are compared.
    """
    from torchvision.models import get_model

    weights = [m.weight.detach() for m in get_model(network, weights=None).modules() if isinstance(m, torch.nn.Conv2d)]
    worst, failures = 0.0, []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        on_device = [weight.to(DEVICE, dtype) for weight in weights]
        for formula in (Formula(), Formula("rms", axis="channels")):
            zeros, ones = [0] * len(weights), [1] * len(weights)
            found = ops.entropies(on_device, formula, axes=zeros, groups=ones, backend=backend)
            for i, (weight, got) in enumerate(zip(on_device, found, strict=True)):
                share = float((got - _wanted(weight, formula).cpu()).abs().max()) / allowed_error(weight, formula)
                worst = max(worst, share)
                if not share <= 1:
                    failures.append(f"{backend} {network} convolution {i} {dtype} {formula}: {share:.2f} tolerances")
    return {"worst share of the tolerance": worst, "failures": failures}


def _wanted(weight: Tensor, formula: Formula) -> Tensor:
    """The float64 reference; on the channel axis, where it has C x C numbers per filter, in blocks with one tau."""
    if formula.axis == "filters":
        return reference.entropy(weight, formula)
    blocks = weight.split(max(1, (1 << 26) // weight.shape[1] ** 2))
    tau = float(torch.cat([reference.distances(block, formula).mean((1, 2)) for block in blocks]).mean())
    return torch.cat([reference.entropy(block, replace(formula, tau=tau)) for block in blocks])


def sanitized(check: str) -> dict[str, Any] | None:
    """Runs the comparisons of the CUDA kernels on small shapes under a tool of compute-sanitizer.

    Triton's are left out: racecheck reports its sums, in which several lanes write equal numbers to one address.

    Args:
        check: ``"memcheck"`` or ``"racecheck"``.

    Returns:
        Its summary; ``None`` if it took too long.
    """
    program = shutil.which(SANITIZER)
    if program is None or not backends()["cuda"].usable:
        reason = "no CUDA kernels" if program else f"no {SANITIZER} on the PATH"
        return {"not run": reason, "failures": []}
    command = [program, "--tool", check, "--error-exitcode", "1", sys.executable, "-m", "benchmarks.gpu", "--small"]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=_SANITIZER_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", done.stdout)[-1:]
    found = next((line for line in done.stdout.splitlines() if line.startswith("{")), None)
    failures = [f"under {check}: {failure}" for failure in (json.loads(found)["failures"] if found else [])]
    if done.returncode != 0 or found is None:
        failures.append(f"{check} failed ({done.returncode}): {done.stdout[-2000:]}")
    return {"summary": "".join(summary), "failures": failures}

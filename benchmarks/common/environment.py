"""Environment of a measurement: machine, versions, commit and date, as result files record it and pages print it."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fec_fast.scoring.backends.registry import backends
from fec_fast.utils.machine import machine

ROOT = Path(__file__).parents[2]
PACKAGES = ("fec-fast", "numpy")
NOT_RECORDED = "not recorded"


@functools.cache
def environment(*packages: str) -> dict[str, Any]:
    """Describes this process for a result file; the date is that of the first call.

    Call it after ``torch.set_num_threads``: the number of threads is part of it.

    Args:
        packages: Distributions whose versions matter besides torch, fec-fast and numpy, such as ``"torch-pruning"``.

    Returns:
        ``machine`` (processor, family, model, stepping, cores, threads, system, device, kernels), ``versions``,
        ``commit`` and ``date`` (UTC, ISO 8601).
    """
    here = machine()
    versions = {name: here.pop(name) for name in ("python", "torch")}
    versions |= {name: _version(name) for name in (*PACKAGES, *packages)}
    return {
        "machine": here | _processor_identity() | {"kernels": backends()["cpu"].reason},
        "versions": versions,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe(run: dict[str, Any]) -> str:
    """One sentence for a page: what was measured on what.

    Args:
        run: What :func:`environment` returned, or a bare machine description of a result file that is older than it.
            What such a file lacks is called "not recorded".
    """
    older = "machine" not in run
    here, versions = (run, {}) if older else (run["machine"], run["versions"])
    identity = [f"{name} {here[name]}" for name in ("family", "model", "stepping") if here.get(name) is not None]
    kernels = here.get("kernels", here.get("fec_fast cpu"))
    versions = versions or {"python": here["python"], "torch": here["torch"]}
    parts = [
        here["processor"] + (f" ({', '.join(identity)})" if identity else ""),
        f"{here['cores']} cores",
        f"{here['threads']} {'thread' if here['threads'] == 1 else 'threads'}",
        "no GPU" if here["device"] == "cpu" else here["device"],
        *([f"kernels: {kernels}"] if kernels else []),
        *(f"{name} {version}" for name, version in versions.items()),
        f"commit {run.get('commit', NOT_RECORDED)}",
        f"date {run.get('date', NOT_RECORDED)}",
    ]
    return "; ".join(parts)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # imported from a source tree that is not installed
        return str(getattr(importlib.import_module(package.replace("-", "_")), "__version__", NOT_RECORDED))


def _processor_identity() -> dict[str, int]:
    """Family, model and stepping of an x86 processor: its name alone ("AMD EPYC") covers several generations."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    identity = {}
    for name, key in (("family", "cpu family"), ("model", "model"), ("stepping", "stepping")):
        match = re.search(rf"^{key}\s*: (\d+)$", text, re.MULTILINE)
        if match:
            identity[name] = int(match[1])
    return identity


def _commit() -> str:
    """The commit that is checked out, with "+dirty" if a tracked file differs that is not a result or a page."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs")
    return (commit or NOT_RECORDED) + ("+dirty" if changed else "")

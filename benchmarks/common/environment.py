"""Environment of a measurement: machine, versions, commit and date, as result files record it and pages print it."""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fec_fast.scoring.backends import cpu
from fec_fast.scoring.backends.registry import backends
from fec_fast.utils.machine import describe_machine

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
        ``machine`` (of :func:`fec_fast.utils.machine.describe_machine`, and ``kernels``: the instruction set and the
        threads of the compiled kernels), ``versions``, ``commit`` and ``date`` (UTC, ISO 8601).
    """
    here = describe_machine()
    versions = {name: here.pop(name) for name in ("python", "torch")}
    versions |= {name: _version(name) for name in (*PACKAGES, *packages)}
    return {
        "machine": here | {"kernels": _kernels()},
        "versions": versions,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe(run: dict[str, Any]) -> str:
    """The machine and the versions of a run, for a page.

    Args:
        run: What :func:`environment` returned, or a bare machine description of a result file that is older than it.
            What such a file lacks is called "not recorded".
    """
    older = "machine" not in run
    here, versions = (run, {}) if older else (run["machine"], run["versions"])
    identity = [
        f"{name} {here[f'processor_{name}']}" for name in ("family", "model", "stepping") if f"processor_{name}" in here
    ]
    kernels = here.get("kernels", here.get("fec_fast cpu"))
    versions = versions or {"python": here["python"], "torch": here["torch"]}
    parts = [
        f"{here['processor']} ({', '.join(identity) or f'family, model and stepping {NOT_RECORDED}'})",
        f"{here['cores']} cores",
        f"{here['threads']} {'thread' if here['threads'] == 1 else 'threads'}",
        "no GPU" if here["device"] == "cpu" else here["device"],
        *([f"kernels: {kernels}"] if kernels else []),
        *(f"{name} {version}" for name, version in versions.items()),
    ]
    return "; ".join(parts)


def describe_commit(run: dict[str, Any]) -> str:
    """The commit and the date of a run, see :func:`describe`."""
    return f"commit {run.get('commit', NOT_RECORDED)}, date {run.get('date', NOT_RECORDED)}"


def _kernels() -> str:
    """What runs the kernels, without the timing that chose it: it differs in its last digits between processes."""
    if not cpu.built():
        return backends()["cpu"].reason
    return f"runs on {cpu.forced() or cpu.chosen()[0]}, {cpu.threads()}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # fec-fast too, where it is imported from its sources: the commit is recorded beside it


def _commit() -> str:
    """The commit that is checked out, with "+dirty" if a tracked file differs that is not a result or a page."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs")
    return (commit or NOT_RECORDED) + ("+dirty" if changed else "")

"""Description of the machine that a measurement was taken on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def package_version() -> str:
    """The version of fec_fast.

    Returns:
        The version, or ``"unknown (not installed)"`` where the sources are used without an installation.
    """
    try:
        return version("fec-fast")
    except PackageNotFoundError:
        return "unknown (not installed)"


def describe_machine() -> dict[str, Any]:
    """Describes the machine for a table of measurements.

    Returns:
        ``processor``: the processor's name. ``processor_family``, ``processor_model`` and ``processor_stepping``: its
        CPUID numbers, which tell apart processors of one name; only where Linux reports them. ``cores``: the cores that
        this process may use. ``threads``: torch's threads. ``system``, ``python`` and ``torch``: the operating system's
        name and versions. ``device``: the GPU's name, or ``"cpu"``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        **_processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """The name and the CPUID numbers of the first processor in ``/proc/cpuinfo``."""
    fields: dict[str, str] = {}
    if cpuinfo.is_file():  # Linux, where platform.processor() is often empty
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    processor: dict[str, Any] = {"processor": fields.get("model name") or platform.processor() or platform.machine()}
    for key, field in (("family", "cpu family"), ("model", "model"), ("stepping", "stepping")):
        if fields.get(field, "").isdecimal():
            processor[f"processor_{key}"] = int(fields[field])
    return processor

"""``fec-fast doctor`` and ``info``: what this machine has, and what to install for what."""

from __future__ import annotations

import importlib.util
import json as json_module
import platform
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

import torch
import typer

from ..scoring.backends.registry import backends
from ..utils.errors import MissingExtraError
from ..utils.machine import describe_machine, package_version
from ..utils.onnx_model import require_exporter
from ..utils.text import counted
from .output import Json, say, write_json

# Extras, what they are for, and the packages that they bring.
_EXTRAS = {
    "train": ("finetune, recipes, processes", ("accelerate", "torchmetrics", "yaml", "jsonschema")),
    "vision": ("torchvision's networks, images in folders", ("torchvision", "PIL")),
    "detection": ("detectors, VOC, COCO, YOLO", ("torchvision", "PIL", "defusedxml", "pycocotools", "yaml")),
    "hf": ("Hugging Face data from the disk", ("datasets", "torchvision", "PIL")),
    "demo": ("fec-fast demo, sklearn:digits", ("accelerate", "torchmetrics", "sklearn")),
    "report": ("pictures", ("matplotlib",)),
    "tensorboard": ("logs for TensorBoard", ("tensorboard",)),
    "onnx": ("fec-fast export onnx and int8, latency in onnxruntime", ("onnx", "onnxscript", "onnxruntime")),
    "openvino": ("latency in openvino", ("openvino", "onnx", "onnxscript")),
    "torchao": ("fec-fast export pt2e", ("torchao",)),
    "torch-pruning": ("FEC as an importance for Torch-Pruning", ("torch_pruning",)),
}


@dataclass(frozen=True)
class _Finding:
    """One line of the doctor: ``state`` is ``"ok"``, ``"missing"`` or ``"note"``."""

    name: str
    state: str
    text: str


def doctor_command(json: Json = None) -> None:
    """Examine this machine: compiler, CUDA, driver, Triton, torch, instruction set; what to install for what."""
    findings = [*_tools(), *_backends(), *_extras()]
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        say(f"{finding.state:<8}{finding.name:<{width}}  {finding.text}")
    document = {
        "format": "fec_fast.doctor",
        "version": 1,
        "machine": describe_machine(),
        "findings": [vars(finding) for finding in findings],
    }
    write_json(json, json_module.dumps(document, indent=1) + "\n")


def info_command(json: Json = None) -> None:
    """Print the version and the backends: which are built and usable, and why the others are not."""
    say(f"fec-fast {package_version()}, torch {torch.__version__}, Python {platform.python_version()}")
    say(f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads")
    document: dict[str, Any] = {"fec_fast": package_version(), **describe_machine(), "backends": {}}
    for name, backend in backends().items():
        state = "usable" if backend.usable else "built, not usable" if backend.built else "not built"
        say(f"{name}: {state}" + (f" ({backend.reason})" if backend.reason else ""))
        document["backends"][name] = {"built": backend.built, "usable": backend.usable, "reason": backend.reason}
    write_json(json, json_module.dumps(document, indent=1) + "\n")


def _tools() -> list[_Finding]:
    machine = describe_machine()
    findings = [
        _Finding("fec-fast", "ok", str(package_version())),
        _Finding("python", "ok", platform.python_version()),
        _Finding(
            "processor",
            "ok",
            f"{machine['processor']}, {counted(machine['cores'], 'core')}, {counted(machine['threads'], 'thread')}",
        ),
        _Finding("torch", "ok", f"{torch.__version__}, built for {_built_for()}"),
    ]
    compiler = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    needed = "needed to install the compiled kernels from source: Debian: apt install g++; Fedora: dnf install gcc-c++"
    findings.append(_Finding("compiler", "ok", compiler) if compiler else _Finding("compiler", "missing", needed))
    nvcc = shutil.which("nvcc")
    text = nvcc or "needed to compile the CUDA kernels only (NVIDIA's CUDA toolkit, then FEC_CUDA=ON pip install .)"
    findings.append(_Finding("nvcc", "ok" if nvcc else "note", text))
    driver = _driver()
    findings.append(_Finding("driver", "ok" if driver else "note", driver or "no NVIDIA driver: scores run on the CPU"))
    return findings


def _built_for() -> str:
    cuda: str | None = torch.version.cuda
    return "the CPU" if cuda is None else f"CUDA {cuda}"


def _driver() -> str | None:
    """The GPUs and their driver, as nvidia-smi lists them; ``None`` without."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return "; ".join(lines) if done.returncode == 0 and lines else None


def _backends() -> list[_Finding]:
    found = backends()
    built = found["cpu"].built
    states = {name: "ok" if backend.usable else "note" for name, backend in found.items()}
    states |= {"cpu": states["cpu"] if built else "missing", "torch": "ok" if built else "note"}
    return [_Finding(f"backend {name}", states[name], backend.reason) for name, backend in found.items()]


def _extras() -> list[_Finding]:
    findings = []
    for extra, (purpose, packages) in _EXTRAS.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        text = purpose if not missing else f"{purpose}: pip install 'fec_fast[{extra}]' (lacks {', '.join(missing)})"
        if "onnxscript" in packages and not missing:
            try:
                require_exporter(purpose)
            except MissingExtraError as error:
                missing, text = ["torch"], str(error)
        findings.append(_Finding(f"extra {extra}", "missing" if missing else "ok", text))
    return findings


def register(app: typer.Typer) -> None:
    """Adds these commands to the program.

    Args:
        app: The program.
    """
    app.command("doctor")(doctor_command)
    app.command("info")(info_command)

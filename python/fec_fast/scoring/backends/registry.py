"""Registry of the scoring backends: which are built and usable here, and which one a call uses."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...utils.errors import BackendError, nearest
from ...utils.user_warnings import warn_user
from . import cpu, cuda, extension, triton


@dataclass(frozen=True)
class BackendInfo:
    """One backend.

    Attributes:
        name: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"torch"``.
        built: Whether this installation contains it.
        usable: Whether it can run here.
        reason: Why it is not usable, or what it runs on.
    """

    name: str
    built: bool
    usable: bool
    reason: str


@dataclass(frozen=True)
class ResolvedBackend:
    """A backend that was found usable. :func:`resolve` makes it once per public call, and it is handed down.

    Attributes:
        name: The name of the backend that is used.
        requested: The name that was asked for; ``"auto"`` where the package chose.
    """

    name: str
    requested: str


def _describe_cpu() -> BackendInfo:
    if not cpu.built():
        return BackendInfo("cpu", False, False, f"not in this installation: {extension.remedy()}")
    sets = cpu.instruction_sets()
    usable = [name for name, supported in sets.items() if supported]
    lacking = [name for name, supported in sets.items() if not supported]
    threads = cpu.threads()
    forced = cpu.forced()
    if forced:
        setting = f"FEC_FAST_INSTRUCTION_SET={forced}"
        if not sets.get(forced, False):
            wrong = f"{setting}, which cannot run here; unset it, or one of: {', '.join(usable)}"
            return BackendInfo("cpu", True, False, wrong)
        return BackendInfo("cpu", True, True, f"runs on {forced}, as {setting} asks, {threads}")
    chosen, seconds = cpu.chosen()
    others = [f"{name} takes {seconds[name] / seconds[chosen]:.2f} times as long" for name in seconds if name != chosen]
    timed = f" by a timing at first use ({', '.join(others)})" if others else ""
    unsupported = f"; not on this processor: {', '.join(lacking)}" if lacking else ""
    return BackendInfo("cpu", True, True, f"runs on {chosen}{timed}, {threads}{unsupported}")


def _describe_cuda() -> BackendInfo:
    trouble = cuda.trouble()
    return BackendInfo("cuda", cuda.compiled() is not None, not trouble, trouble or cuda.describe())


def _describe_triton() -> BackendInfo:
    trouble = triton.trouble()
    return BackendInfo("triton", triton.installed(), not trouble, trouble or triton.describe())


def _describe_torch() -> BackendInfo:
    used = "" if cpu.built() else ", used in place of the compiled kernels, which are not here"
    return BackendInfo("torch", True, True, f"runs torch's operators in float64: slow{used}")


_BACKENDS: dict[str, Callable[[], BackendInfo]] = {
    "cpu": _describe_cpu,
    "cuda": _describe_cuda,
    "triton": _describe_triton,
    "torch": _describe_torch,
}
# What "auto" tries for weights on a device of this type, best first, before the processor.
_PREFERRED = {"cuda": ("cuda", "triton")}
# Whether this process was told that it scores without the compiled kernels.
_told: list[bool] = []
# The findings that a GPU's backend is usable: what described it, the process (CUDA does not survive a fork) and the
# current device, the one that was looked at. That it is not usable is never kept: a package may be installed, or a
# driver come up.
_found_usable: set[tuple[Callable[[], BackendInfo], int, int]] = set()


def backends() -> dict[str, BackendInfo]:
    """Lists the backends, and whether each is built and usable here.

    Returns:
        Names to facts.
    """
    return {name: describe() for name, describe in _BACKENDS.items()}


def _trouble(name: str) -> str | None:
    """Says why a backend is not usable; ``None`` if it is. A GPU that was found usable is not looked at again."""
    describe = _BACKENDS[name]
    started = name != "cpu" and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    finding = (describe, os.getpid(), torch.cuda.current_device()) if started else None
    if finding in _found_usable:
        return None
    info = describe()
    if finding is not None and info.usable:
        _found_usable.add(finding)
    return None if info.usable else info.reason


def _of_processor() -> str:
    """The backend of the processor: the compiled kernels, or, with a warning, what works without them."""
    if cpu.built():
        return "cpu"
    if not _told:
        _told.append(True)
        warn_user(
            "fec_fast is installed without its compiled kernels: entropies are computed by torch's operators, as exact "
            f"but slower. For speed: {extension.remedy()}"
        )
    return "torch"


def resolve(backend: str | ResolvedBackend, device: str = "cpu") -> ResolvedBackend:
    """Chooses the backend of a call.

    Args:
        backend: A backend's name, or ``"auto"``: on CUDA tensors the CUDA kernels where they are built and usable, else
            Triton's, else the CPU's on copies of the weights. Where the CPU's kernels are not installed, torch's
            operators, with one warning per process. A backend that is asked for by name is never replaced by another.
            A backend that was resolved before is returned as it is, and nothing is looked up.
        device: The type of device that the weights are on; only ``"auto"`` depends on it.

    Returns:
        A usable backend.

    Raises:
        BackendError: No backend has this name, or it cannot run here.
    """
    if isinstance(backend, ResolvedBackend):
        return backend
    if not isinstance(backend, str):
        raise BackendError(f"backend={backend!r:.80}: give the name of one: {', '.join(['auto', *_BACKENDS])}")
    requested, name = backend, backend
    if requested == "auto":
        # The search ends at the first usable backend: to look at Triton means to read its package's metadata.
        usable = next((name for name in _PREFERRED.get(device, ()) if _trouble(name) is None), None)
        if usable is not None:
            return ResolvedBackend(usable, requested)
        name = _of_processor()
    if name not in _BACKENDS:
        raise BackendError(f"no backend is called {name!r}; {nearest(name, ['auto', *_BACKENDS])}")
    trouble = _trouble(name)
    if trouble is not None:
        raise BackendError(f"the backend {name!r} cannot run: {trouble}")
    return ResolvedBackend(name, requested)

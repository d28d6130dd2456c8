"""What can compute the entropies here, and what cannot and why."""

from __future__ import annotations

from dataclasses import dataclass

from ...utils.errors import BackendError, nearest


@dataclass(frozen=True)
class BackendInfo:
    """One backend.

    Attributes:
        name: ``"cpu"``, ``"cuda"`` or ``"triton"``.
        built: Whether this installation contains it.
        usable: Whether it can run here.
        reason: Why it is not usable, or what it runs on.
    """

    name: str
    built: bool
    usable: bool
    reason: str


def _cpu() -> BackendInfo:
    from . import cpu

    sets = cpu.instruction_sets()
    usable = [name for name, has in sets.items() if has]
    lacking = [name for name, has in sets.items() if not has]
    threads = cpu.threads()
    reason = f"runs on {usable[-1]}, {threads}" + (f"; not on this processor: {', '.join(lacking)}" if lacking else "")
    forced = cpu.forced()
    runs = not forced or sets.get(forced, False)
    if forced:
        setting = f"FEC_FAST_INSTRUCTION_SET={forced}"
        wrong = f"{setting}, which cannot run here; unset it, or one of: {', '.join(usable)}"
        reason = f"runs on {forced}, as {setting} asks, {threads}" if runs else wrong
    return BackendInfo("cpu", True, runs, reason)


def _cuda() -> BackendInfo:
    from . import cuda

    trouble = cuda.trouble()
    return BackendInfo("cuda", cuda.compiled() is not None, not trouble, trouble or cuda.describe())


def _triton() -> BackendInfo:
    from . import triton

    trouble = triton.trouble()
    return BackendInfo("triton", triton.installed(), not trouble, trouble or triton.describe())


_KNOWN = {"cpu": _cpu, "cuda": _cuda, "triton": _triton}


def backends() -> dict[str, BackendInfo]:
    """Says of every backend whether it is built and usable.

    Returns:
        Names to facts.
    """
    return {name: look() for name, look in _KNOWN.items()}


def resolve(backend: str, device: str = "cpu") -> str:
    """Chooses a backend.

    Args:
        backend: A backend's name, or ``"auto"``: on CUDA tensors the CUDA kernels where they are built and usable, else
            Triton's, else the CPU's on copies of the weights. One asked for by name is never replaced by another.
        device: The type of device that the weights are on.

    Returns:
        The name of a usable backend.

    Raises:
        BackendError: No backend has this name, or it cannot run here.
    """
    if backend == "auto":
        ready = [name for name in ("cuda", "triton") if device == "cuda" and _KNOWN[name]().usable]
        backend = ready[0] if ready else "cpu"
    if backend not in _KNOWN:
        raise BackendError(f"no backend is called {backend!r}; {nearest(backend, ['auto', *_KNOWN])}")
    info = _KNOWN[backend]()
    if not info.usable:
        raise BackendError(f"the backend {backend!r} cannot run: {info.reason}")
    return backend

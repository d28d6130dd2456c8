"""What can compute the entropies here, and what cannot and why."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BackendError, nearest


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


def backends() -> dict[str, BackendInfo]:
    """Says of every backend whether it is built and usable.

    Returns:
        Names to facts.
    """
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
    absent = "this version has no {} kernels"
    return {
        "cpu": BackendInfo("cpu", True, runs, reason),
        "cuda": BackendInfo("cuda", False, False, absent.format("CUDA")),
        "triton": BackendInfo("triton", False, False, absent.format("Triton")),
    }


def resolve(backend: str) -> str:
    """Chooses a backend.

    Args:
        backend: A backend's name, or ``"auto"``. One asked for by name is never replaced by another.

    Returns:
        The name of a usable backend.

    Raises:
        BackendError: No backend has this name, or it cannot run here.
    """
    known = backends()
    backend = "cpu" if backend == "auto" else backend
    if backend not in known:
        raise BackendError(f"no backend is called {backend!r}; {nearest(backend, ['auto', *known])}")
    if not known[backend].usable:
        raise BackendError(f"the backend {backend!r} cannot run: {known[backend].reason}")
    return backend

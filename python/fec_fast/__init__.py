"""Channel-similarity entropy pruning of convolutional networks."""

import importlib

import lazy_loader

from .scoring import ops as _ops  # noqa: F401  registers torch.ops.fec_fast

# A name's module is imported when the name is first used: a script that only scores does not wait for the rest.
_public, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)
# Modules that have a short address too: fec_fast.zoo is fec_fast.vision.zoo.
_MODULES = {"data": "vision.data", "detection": "training.tasks.detection", "voc": "vision.voc", "zoo": "vision.zoo"}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{_MODULES[name]}")
    if name == "__version__":
        from .utils.machine import package_version

        return package_version()
    try:
        return _public(name)
    except AttributeError as error:
        from .utils.errors import nearest

        # Only for public names: Python and its tools look for many with underscores that need not be there.
        if name in __all__ or name.startswith("_"):
            raise
        hint = nearest(name, __dir__())
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; {hint}", name=name) from error


def __dir__() -> list[str]:
    return sorted([*_names(), *_MODULES, "__version__"])

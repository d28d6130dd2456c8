"""Channel-similarity entropy pruning of convolutional networks."""

import lazy_loader

from .scoring import ops as _ops  # noqa: F401  registers torch.ops.fec_fast

# A name's module is imported when the name is first used: a script that only scores does not wait for the rest.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Models whose code is run as it was written: nothing is compiled, and no results of earlier runs are used."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .cached_functions import uncached
from .compiled_parts import uncompiled
from .critical_section import surely_closed
from .model_index import ModelIndex


@surely_closed
def as_written(*models: nn.Module | ModelIndex) -> Iterator[None]:
    """Runs compiled parts of models without compiling them, and calls anew functions that keep their results.

    Args:
        *models: The models, or their indexes. What is switched off is the process's; it is as before at the end.

    Yields:
        Nothing.
    """
    with uncompiled(*models), uncached(*models):
        yield

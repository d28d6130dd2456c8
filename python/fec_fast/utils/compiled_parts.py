"""Models with parts that torch compiles, run as they were written."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from .compat import is_compiled
from .critical_section import one_thread_at_a_time, surely_closed
from .model_index import ModelIndex
from .modules import modules_of


@surely_closed
def uncompiled(*models: nn.Module | ModelIndex) -> Iterator[None]:
    """Runs compiled parts of models as they were written: nothing is compiled, and everything inside can be seen.

    A model that changes while it runs (a momentum, a weight) would be compiled anew each time, and each time counts
    towards torch's limit, beyond which it compiles code of this kind no more: neither for these models nor for others
    of the process.

    Args:
        *models: The models, or their indexes. torch's switch is the process's; it is as before at the end.

    Yields:
        Nothing.
    """
    modules = (model.modules if isinstance(model, ModelIndex) else modules_of(model) for model in models)
    if not any(is_compiled(module) for of_model in modules for module in of_model.values()):
        yield
        return
    with one_thread_at_a_time(), torch.compiler.set_stance("force_eager"):
        yield

"""Models as their code says, in the precision of their weights, while a round is planned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ...utils.compat import ACCELERATE_ATTRIBUTES
from ...utils.critical_section import put_back_by, surely_closed
from ...utils.precision import without_autocast as autocast_off

_FORWARD, _ORIGINAL, _ = ACCELERATE_ATTRIBUTES


@surely_closed
def without_autocast(models: Sequence[nn.Module]) -> Iterator[None]:
    """Switches autocast off: that of the training loop, and that which accelerate builds into a model's forward.

    Args:
        models: Models without wrappers; what accelerate has put on them is put back at the end.

    Yields:
        Nothing.
    """
    held = [(vars(model), {name: vars(model)[name] for name in _put_on(model)}) for model in models]

    def restore() -> None:
        for own, attributes in held:
            own.update(attributes)

    with put_back_by(restore):
        for model, (own, attributes) in zip(models, held, strict=True):
            for name in attributes:
                del own[name]
            original = attributes.get(_ORIGINAL)
            if original is not None and getattr(original, "__func__", None) is not type(model).forward:
                own[_FORWARD] = original  # the model had one of its own
        with autocast_off(), torch.inference_mode(False):
            yield


def _put_on(model: nn.Module) -> list[str]:
    """The attributes that accelerate has put on a model, if it has replaced its forward."""
    own = vars(model)
    return [_FORWARD, _ORIGINAL] if _FORWARD in own and _ORIGINAL in own else []

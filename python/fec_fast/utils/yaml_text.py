"""YAML within bounds: the values that JSON has, without references, which unfold to any size."""

from __future__ import annotations

import functools
import math
from collections import Counter
from typing import Any

from .errors import InputError, missing_extra

# A recipe has some 2,000 characters, with a ratio for each of 300 layers 12,000; a data.yaml of 1,000 classes 30,000.
# The parser of pyyaml takes half a second for 24,000 characters of the slowest kind.
MOST_YAML_BYTES = 36_000
_DEEPEST = 20
_LARGEST = 1 << 53


def parse_yaml(text: str, *, number_keys: bool = False) -> Any:
    """Parses YAML.

    Args:
        text: At most 36,000 characters, nested at most 20 deep.
        number_keys: Whether keys of mappings may be whole numbers too.

    Returns:
        Text, numbers, true or false, ``None``, and lists and mappings of them. The keys of mappings are text.

    Raises:
        InputError: The text is not YAML, is too large, has a key twice in one mapping, or has a value of another kind:
            a reference, a date, a number that is not finite. The message has no subject: it reads on from the name of
            the file.
        MissingExtraError: pyyaml is not installed.
    """
    try:
        import yaml
    except (ImportError, AttributeError) as error:
        raise missing_extra("pyyaml", "train", "YAML", error) from error
    if len(text) > MOST_YAML_BYTES:
        raise InputError(f"has {len(text):,} characters; at most {MOST_YAML_BYTES:,} are read")
    try:
        content = yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise InputError(f"is not YAML: {error}") from error
    except RecursionError:
        raise InputError("is nested too deeply") from None
    except Exception as error:  # pyyaml lets errors of int() and of dates through
        raise InputError(f"is not YAML: {type(error).__name__}: {error}") from error
    _check(content, 0, (str, int) if number_keys else (str,))
    return content


@functools.cache
def _loader() -> Any:
    """A loader without references and without repeated keys; made when first used, for pyyaml is an extra."""
    import yaml

    class PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # pyyaml has no types
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has a reference (*name), which is not followed: write the value again")
            return super().compose_node(parent, index)

        # The depth is bounded here and not only in _check: what the scanner does for a bracket grows with it.
        def fetch_flow_collection_start(self, token: Any) -> Any:
            if self.flow_level > _DEEPEST:
                raise yaml.YAMLError(f"it is nested too deeply: at most {_DEEPEST} levels")
            return super().fetch_flow_collection_start(token)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for name, count in Counter(names).items():
                if count > 1:
                    raise yaml.YAMLError(f"it has {name!r} {count} times in one mapping: write it once")
            return super().construct_mapping(node, deep)

    return PlainLoader


def _check(value: Any, depth: int, keys: tuple[type, ...]) -> None:
    """Raises for a value that JSON does not have, or that is nested too deeply."""
    if depth > _DEEPEST:
        raise InputError(f"is nested too deeply: at most {_DEEPEST} levels")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, keys) or isinstance(key, bool):
                raise InputError(f"has the key {key!r}, which is not text: put it in quotes")
            _check(inner, depth + 1, keys)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth + 1, keys)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"has the number {value}: give a finite one")
    elif isinstance(value, int) and abs(value) > _LARGEST:
        raise InputError(f"has a number of {value.bit_length()} bits: give one of at most 53")
    elif not isinstance(value, str | int | float | None):
        raise InputError(f"has a {type(value).__name__}, {value!r}: give text in quotes")

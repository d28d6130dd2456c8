"""Mutations of files: of their bytes, and of what their format has: values, sizes, keys, depth, chunks, entries.

A mutation is a kind and a seed, so that a file can be made again, and left out to see whether a fault stays.
"""

from __future__ import annotations

import functools
import io
import json
import pickletools
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any
from xml.etree import ElementTree

from helpers.mutations_onnx import changed_graph

Mutator = Callable[[bytes, random.Random], bytes]
Step = tuple[str, int]

TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|[\[\]{}:,<>&]|[A-Za-z_]+')
TOKENS = [
    *(b"NaN", b"1e999", b"-1", b"1" + b"0" * 400, b"0.5", b"true", b"null", b"{}", b"[]", b"[[[[", b'""', b'"\\ud800"'),
    *(b"&a", b"*a", b"!!python/object", b"9007199254740993", b"-0.0", b"1_0", b"<object/>", b"\xff\xfe", b"\0", b"0"),
]
# Values at bounds: of integer types, of floats, of what JSON can say, of what a file system takes.
NUMBERS = [
    *(0, 1, -1, 2, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**62, 2**63 - 1),
    *(2**63, 2**64, -(2**31), -(2**63), 10**30, 0.0, -0.0, 0.5, 1.0, 5e-324, 1e-7, 1.7976931348623157e308, 24_000_001),
]
TEXTS = ["", " ", "\0", "../a", "/etc/passwd", "a" * 201, "a" * 5000, "\ud800", "é", "e\u0301", "0", "nan", "-1", "a/b"]
FOREIGN = [
    *(b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff\xe0", b"II*\0\x08\0\0\0", b"BM", b"RIFF\xff\xff\xff\xffWEBPVP8 "),
    *(b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x80\x02}q\0.", b"P6 9 9 255\n", b'{"a":[1,2]}', b"<a><b/></a>"),
]


class Pairs(list[Any]):
    """An object of JSON as a list of ``[key, value]``, so that it can have a key twice."""


class Raw(str):
    """Text that is written as it is."""


# --- bytes ---


def _at(content: bytes, rng: random.Random) -> int:
    return rng.randrange(len(content) + 1)


def _flip(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) or 1)
    return content[:at] + bytes(byte ^ 1 << rng.randrange(8) for byte in content[at : at + 1]) + content[at + 1 :]


def _set(content: bytes, rng: random.Random) -> bytes:
    at, new = _at(content, rng), rng.randbytes(rng.randint(1, 8))
    return content[:at] + new + content[at + len(new) :]


def _insert(content: bytes, rng: random.Random) -> bytes:
    at = _at(content, rng)
    return content[:at] + rng.randbytes(rng.randint(1, 8)) * rng.choice((1, 1, 3, 1000)) + content[at:]


def _remove(content: bytes, rng: random.Random) -> bytes:
    at = _at(content, rng)
    return content[:at] + content[at + rng.randint(1, 16) :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: _at(content, rng)]


def _double(content: bytes, rng: random.Random) -> bytes:
    at = _at(content, rng)
    return content[:at] + content[at : at + 64] * rng.choice((1, 1, 2, 100)) + content[at:]


def _splice(content: bytes, rng: random.Random) -> bytes:
    """The beginning of one file and the end of another."""
    other = rng.choice((*FOREIGN, content))
    return content[: _at(content, rng)] + other[_at(other, rng) :]


def _field(content: bytes, rng: random.Random) -> bytes:
    """A number of 1 to 8 bytes at its bounds, as sizes and counts in headers are."""
    width, at = rng.choice((1, 2, 4, 8)), _at(content, rng)
    value = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 1 << (8 * width - 1), (1 << 8 * width) - 1, rng.randrange(65536)))
    new = (value % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "big")))
    return content[:at] + new + content[at + width :]


def _token(content: bytes, rng: random.Random) -> bytes:
    return _replaced_token(content, rng, lambda _: rng.choice(TOKENS))


def _swap(content: bytes, rng: random.Random) -> bytes:
    return _replaced_token(content, rng, lambda spans: content[slice(*rng.choice(spans))])


def _replaced_token(content: bytes, rng: random.Random, make: Callable[[Sequence[tuple[int, int]]], bytes]) -> bytes:
    spans = [match.span() for match in TOKEN.finditer(content[:20_000])]
    if not spans:
        return content
    start, end = rng.choice(spans)
    return content[:start] + make(spans) + content[end:]


# --- trees: JSON, YAML and XML ---


def _slots(tree: Any) -> list[tuple[list[Any], int]]:
    """Every place of a value in a tree."""
    slots: list[tuple[list[Any], int]] = []
    waiting = [tree]
    while waiting and len(slots) < 3000:
        node = waiting.pop()
        if isinstance(node, Pairs):
            slots += [(pair, 1) for pair in node]
            waiting += [pair[1] for pair in node]
        elif isinstance(node, list):
            slots += [(node, position) for position in range(len(node))]
            waiting += node
    return slots


def _as_json(value: Any) -> str:
    if isinstance(value, Raw):
        return value
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{encode_basestring_ascii(key)}:{_as_json(part)}" for key, part in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_as_json, value)) + "]"
    if type(value) is int:
        return str(value)
    return encode_basestring_ascii(value) if type(value) is str else json.dumps(value)


def _as_xml(value: Any) -> str:
    if isinstance(value, Pairs):
        return "".join(f"<{key}>{_as_xml(part)}</{key}>" for key, part in value)
    if isinstance(value, list):
        return "".join(f"<a>{_as_xml(part)}</a>" for part in value)
    return str(value)


def _change_type(slot: Any, tree: Any, rng: random.Random) -> Any:
    return rng.choice((None, True, False, 3, -1.5, "text", [], Pairs(), [slot], Pairs([["a", slot]]), [None], "0"))


def _change_bound(slot: Any, tree: Any, rng: random.Random) -> Any:
    if isinstance(slot, str) and rng.random() < 0.7:
        return rng.choice(TEXTS)
    return rng.choice((*NUMBERS, Raw("NaN"), Raw("1e999"), Raw("-1e999"), Raw("1" + "0" * 400), Raw("1_0")))


def _change_size(slot: Any, tree: Any, rng: random.Random) -> Any:
    most = rng.choice((*(300,) * 5, *(3000,) * 4, 40_000)) // (len(_as_json(slot)) + 1)  # mostly small, for speed
    times = min(rng.choice((0, 2, 3, 100, 10_000)), 1 + most)
    if isinstance(slot, list):
        return type(slot)(slot[: rng.randint(0, len(slot))] if times == 0 else slot * times)
    return slot * times if isinstance(slot, str) else [slot] * times


def _change_key(slot: Any, tree: Any, rng: random.Random) -> Any:
    """A key of an object twice, lost, or renamed."""
    if not isinstance(slot, Pairs) or not slot:
        return slot
    pairs, at = Pairs(list(pair) for pair in slot), rng.randrange(len(slot))
    what = rng.randrange(3)
    if what == 0:
        pairs.insert(rng.randint(0, len(pairs)), [pairs[at][0], rng.choice(pairs)[1]])
    elif what == 1:
        del pairs[at]
    else:
        pairs[at][0] = rng.choice((*TEXTS[:6], pairs[at][0] + "x", rng.choice(pairs)[0], str(rng.choice(NUMBERS))))
    return pairs


def _change_depth(slot: Any, tree: Any, rng: random.Random) -> Any:
    depth = rng.choice((1, 2, 10, 30, 500, 5000))
    for _ in range(min(depth, 30)):
        slot = [slot] if rng.random() < 0.5 else Pairs([["a", slot]])
    return slot if depth <= 30 else Raw("[" * depth + "]" * depth)


def _change_depth_of_xml(slot: Any, tree: Any, rng: random.Random) -> Any:
    depth = rng.choice((1, 2, 10, 500, 5000))
    return Raw("<object>" * depth + _as_xml(slot) + "</object>" * depth)


def _move(slot: Any, tree: Any, rng: random.Random) -> Any:
    """A value from another place of the same file."""
    container, key = rng.choice(_slots([tree]))
    return container[key]


_TREE = {
    "type": _change_type,
    "bound": _change_bound,
    "size": _change_size,
    "key": _change_key,
    "depth": _change_depth,
    "move": _move,
}


def _changed(tree: Any, change: Callable[[Any, Any, random.Random], Any], rng: random.Random) -> Any:
    root = [tree]
    slots = _slots(root)
    if change is _change_key:
        slots = [slot for slot in slots if isinstance(slot[0][slot[1]], Pairs)] or slots
    container, key = rng.choice(slots)
    container[key] = change(container[key], tree, rng)
    return root[0]


def _parsed(text: bytes) -> Any:
    return json.loads(text, object_pairs_hook=lambda pairs: Pairs(map(list, pairs)))


def _changed_json(content: bytes, name: str, rng: random.Random) -> bytes:
    return _as_json(_changed(_parsed(content), _TREE[name], rng)).encode("utf-8", "surrogatepass")


def _changed_line(content: bytes, name: str, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = _changed_json(lines[at], name, rng)
    return b"\n".join(lines)


def _changed_header(content: bytes, name: str, rng: random.Random) -> bytes:
    """Of a safetensors file: its length is made right."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = _changed_json(content[8:end], name, rng)
    return len(header).to_bytes(8, "little") + header + content[end:]


def _changed_yaml(content: bytes, name: str, rng: random.Random) -> bytes:
    return _changed_json(content if content.startswith(b"{") else _yaml_as_json(content), name, rng)


@functools.lru_cache(maxsize=1)  # of a sound recipe, mostly
def _yaml_as_json(content: bytes) -> bytes:
    import yaml

    return json.dumps(yaml.safe_load(content)).encode()


def _changed_xml(content: bytes, name: str, rng: random.Random) -> bytes:
    def tree(element: Any) -> Any:
        return Pairs([child.tag, tree(child)] for child in element) if len(element) else (element.text or "")

    root = ElementTree.fromstring(content)
    change = _change_depth_of_xml if name == "depth" else _TREE[name]
    changed = _changed(Pairs([[root.tag, tree(root)]]), change, rng)
    return _as_xml(changed).encode("utf-8", "surrogatepass")


# --- containers: PNG, zip, pickle ---


def _chunk(content: bytes, rng: random.Random) -> bytes:
    """A chunk of a PNG changed, lost, twice or moved, with a checksum that is right."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    place = rng.randrange(len(chunks))
    what = rng.randrange(6)
    if what == 0:
        del chunks[place]
    elif what == 1:
        chunks.insert(rng.randint(0, len(chunks)), chunks[place])
    elif what == 2:
        chunks[place] = (rng.choice((b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"acTL", b"IEND")), chunks[place][1])
    elif what == 3 and chunks[place][0] == b"IDAT":  # pixels that are fewer or more than announced
        pixels = rng.choice((_cut, _double, _set))(zlib.decompress(chunks[place][1]), rng)
        chunks[place] = (b"IDAT", zlib.compress(pixels))
    else:
        chunks[place] = (chunks[place][0], rng.choice((_field, _field, _flip, _cut, _double))(chunks[place][1], rng))
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return content[:8] + b"".join(parts)


def _entry(content: bytes, rng: random.Random) -> bytes:
    """A file of a zip changed, renamed, lost or twice, with a checksum that is right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry.filename, archive.read(entry), entry.compress_type) for entry in archive.infolist()]
    at = rng.randrange(len(entries))
    name, data, packing = entries[at]
    what = rng.randrange(6)
    if what == 0:
        del entries[at]
    elif what == 1:
        entries.insert(rng.randint(0, len(entries)), (name, rng.choice(entries)[1], packing))
    elif what == 2:
        other = rng.choice(("../" + name, "/" + name, name + "/", name.upper(), "a\\b", "é/" + name, "x" * 300))
        entries[at] = (rng.choice((other, rng.choice(entries)[0])), data, packing)
    elif what == 3:
        entries[at] = (name, data, zipfile.ZIP_DEFLATED if packing == zipfile.ZIP_STORED else zipfile.ZIP_STORED)
    else:
        change = rng.choice((_opcode,) * 3 + (_field, _flip, _cut) if name.endswith(".pkl") else tuple(BYTES.values()))
        entries[at] = (name, change(data, rng), packing)
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data, packing in entries:
            archive.writestr(name, data, packing)
    return stream.getvalue()


def _opcode(content: bytes, rng: random.Random) -> bytes:
    """An instruction of a pickle lost, twice, replaced by another one, or with an argument at its bounds."""
    ends, at = [0], 0
    try:
        while at < len(content):
            for _, _, position in pickletools.genops(content[at:]):
                ends.append(at + (position or 0))
            at = ends[-1] + 1
    except Exception:  # values that lie behind the last pickle
        pass
    place = rng.randrange(len(ends) - 1) if len(ends) > 1 else 0
    start, end = ends[place], ends[place + 1] if place + 1 < len(ends) else len(content)
    what = rng.randrange(4)
    other = rng.randrange(len(ends) - 1) if len(ends) > 1 else 0
    new = {
        0: b"",
        1: content[start:end] * 2,
        2: content[ends[other] : ends[other + 1]] if len(ends) > 1 else b"",
        3: rng.choice(
            (b"K\0", b"K\xff", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"J\0\0\0\x80", b"\x8a\x09" + b"\xff" * 9)
        ),
    }[what]
    return content[:start] + new + content[end:]


BYTES: dict[str, Mutator] = {
    "flip": _flip,
    "set": _set,
    "insert": _insert,
    "remove": _remove,
    "cut": _cut,
    "double": _double,
    "splice": _splice,
    "field": _field,
    "token": _token,
    "swap": _swap,
}


def _of_tree(change: Callable[[bytes, str, random.Random], bytes]) -> dict[str, Mutator]:
    return {name: lambda content, rng, name=name: change(content, name, rng) for name in _TREE}


FORMATS: dict[str, dict[str, Mutator]] = {
    "bytes": {},
    "json": _of_tree(_changed_json),
    "json lines": _of_tree(_changed_line),
    "safetensors": _of_tree(_changed_header),
    "yaml": _of_tree(_changed_yaml),
    "xml": _of_tree(_changed_xml),
    "png": {"chunk": _chunk},
    "zip": {"entry": _entry},
    "pickle": {"opcode": _opcode},
    "onnx": {"graph": changed_graph},
}


def steps_of(form: str, seed: str) -> list[Step]:
    """One to five mutations: of the format alone (half of all files that have one), of the bytes, or of both."""
    rng = random.Random(seed)
    structure, mixed = list(FORMATS[form]), rng.random()
    kinds = structure if structure and mixed < 0.5 else [*BYTES, *structure * 2] if mixed < 0.75 else list(BYTES)
    return [(rng.choice(kinds), rng.getrandbits(32)) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4, 5)))]


def mutated(content: bytes, form: str, steps: Sequence[Step]) -> tuple[bytes, list[str]]:
    """The content after some mutations, and the kinds that changed it: a format's need it to be still readable."""
    effective = []
    for kind, seed in steps:
        before, mutators = content, BYTES | FORMATS[form]
        try:
            content = mutators[kind](content, random.Random(seed))
        except Exception:  # an earlier mutation has left nothing that this one understands
            continue
        if content != before:
            effective.append(kind)
    return content, effective

"""Input that is nearly right: mutations of bytes, text, JSON and protocol buffers, decided by random numbers."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

__all__ = ["Mutate", "mutated_bytes", "mutated_json", "mutated_message", "mutated_text"]

Mutate = Callable[[Sequence[bytes], Random], bytes]
"""Takes the seeds, and gives one input."""

MAX_BYTES = 1 << 16
"""No input is larger, but by what a last mutation adds: size alone is what tests of bounds are about."""

_BYTES = (b"\0", b"\xff", b"\x80", b"\n", b"\r\n", b"\r\n\r\n", b"\xff" * 9 + b"\x01", b"\xed\xa0\x80", b"%00", b"\x7f")
_INTEGERS = (
    0,
    1,
    -1,
    127,
    128,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
_WORDS: tuple[Any, ...] = (
    None, True, False, "", "\0", "\ud800", "NaN", "x" * 300, [], {}, [[]], [{}], {"b64": "AA"},
    {"b64": 7}, 1e308, -1e-320, 5e-324, 1e999, float("nan"), 0.1, *_INTEGERS,
)  # fmt: skip
_TOKENS = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"1E-400",
    b"00",
    b"-",
    b"1.",
    b'"',
    b"\\u0000",
    b"\\ud800",
    b"[",
    b"]",
    b"{",
    b"}",
)


def mutated_bytes(seeds: Sequence[bytes], random: Random) -> bytes:
    """Change a few places of a seed: flip, set, cut, repeat, insert, or go on with another seed."""
    data = bytearray(random.choice(seeds))
    for _ in range(_count(random)):
        at = random.randrange(len(data) + 1)
        size = min(1 << random.randrange(10), len(data) - at)
        match random.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case 1 if at < len(data):
                data[at] = random.randrange(256)
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size] * random.choice((1, 1, 2, 50))
            case 4:
                data[at:at] = random.choice(_BYTES)
            case 5:
                data[at : at + 8] = struct.pack(random.choice("<>") + "Q", random.choice(_INTEGERS) % 2**64)[
                    -size or 8 :
                ]
            case _:
                other = random.choice(seeds)
                data[at:] = other[random.randrange(len(other) + 1) :]
    return bytes(data[:MAX_BYTES])


def mutated_text(seeds: Sequence[bytes], random: Random) -> bytes:
    """Move, repeat and drop the words of a text, such as a configuration; now and then its bytes."""
    if random.random() < 0.3:
        return mutated_bytes(seeds, random)
    words = _words(random.choice(seeds))
    for _ in range(_count(random)):
        at = random.randrange(len(words) + 1)
        match random.randrange(5):
            case 0:
                del words[at : at + 1 + random.randrange(3)]
            case 1:
                words[at:at] = words[at : at + 1 + random.randrange(8)] * random.choice((1, 2, 10))
            case 2:
                words.insert(at, random.choice(words or [b"0"]))
            case 3:
                words[at : at + 1] = [str(random.choice(_INTEGERS)).encode()]
            case _:
                words[at : at + 1] = [random.choice(_TOKENS)]
    return b"".join(words)[:MAX_BYTES]


def mutated_json(seeds: Sequence[bytes], random: Random) -> bytes:
    """Change values, names and the nesting of a JSON text; now and then its bytes."""
    chance = random.random()
    if chance < 0.2:
        return mutated_bytes(seeds, random)
    if chance < 0.35:
        return mutated_text(seeds, random)
    document = [json.loads(random.choice(seeds))]
    for _ in range(min(_count(random), 3)):  # each may repeat what the last has repeated
        _change(document, random)
    text = json.dumps(document[0] if document else None, ensure_ascii=random.random() < 0.7).encode(
        errors="surrogatepass"
    )
    if random.random() < 0.1:
        at = random.randrange(len(text) + 1)
        text = text[:at] + random.choice(_TOKENS) + text[at:]
    return text[:MAX_BYTES]


def _change(document: list[Any], random: Random) -> None:
    """Change one place of `document`, at any depth."""
    place: Any = document
    while len(place) and random.random() < 0.7:
        inner = random.choice(list(place.values()) if isinstance(place, dict) else place)
        if not isinstance(inner, list | dict):
            break
        place = inner
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    other = copy.deepcopy(random.choice(_WORDS))
    if random.random() < 0.1:
        other = copy.deepcopy(document[0] if document else None)
    if not keys:
        _add(place, other, random)
        return
    key = random.choice(keys)
    match random.randrange(7):
        case 0:
            del place[key]
        case 1:
            place[key] = other
        case 2:
            _add(place, other, random)
        case 3:
            place[key] = [place[key]] * random.choice((1, 2, 3, 50))
        case 4:
            for _ in range(random.choice((1, 2, 40))):
                place[key] = [place[key]]
        case 5:
            place[key] = {random.choice(("x", "b64", "value", "", "\0", "a" * 300)): place[key]}
        case _:
            _add(place, copy.deepcopy(place[key]), random)


def _add(place: Any, value: Any, random: Random) -> None:
    if isinstance(place, dict):
        names = [*place, "instances", "inputs", "signature_name", "examples", "context", "x", "b64", ""]
        place[random.choice(names)] = value
    else:
        place.insert(random.randrange(len(place) + 1), value)


def mutated_message(seeds: Sequence[bytes], random: Random) -> bytes:
    """Change the fields of a serialized message, at any depth; now and then its bytes."""
    if random.random() < 0.2:
        return mutated_bytes(seeds, random)
    data = random.choice(seeds)
    for _ in range(_count(random)):
        data = _changed_message(data, seeds, random, 0)
    return data[:MAX_BYTES]


def _changed_message(data: bytes, seeds: Sequence[bytes], random: Random, depth: int) -> bytes:
    found = _fields(data)
    if not found:
        return data + _field(random.randrange(1, 20), random.choice(seeds)[:100])
    at = random.randrange(len(found))
    number, wire, content = found[at]
    if wire == 2 and depth < 8 and random.random() < 0.6 and _fields(content):
        found[at] = (number, wire, _changed_message(content, seeds, random, depth + 1))
    else:
        match random.randrange(9):
            case 0:
                del found[at]
            case 1:
                found[at:at] = [found[at]] * random.choice((1, 2, 300))
            case 2:
                found[at] = (random.choice((number + 1, max(1, number - 1), random.randrange(1, 200))), wire, content)
            case 3:
                found[at] = (number, 0, _varint(random.choice(_INTEGERS)))
            case 4:
                found[at] = (number, random.randrange(8), content)
            case 5:
                found[at] = (number, 2, mutated_bytes([content or b"\0"], random))
            case 6:
                found[at] = (
                    number,
                    2,
                    b"".join(_varint(random.choice(_INTEGERS)) for _ in range(random.randrange(20))),
                )
            case 7:
                random.shuffle(found)
            case _:
                found[at] = (number, 2, _field(number, content))
    return b"".join(_tag(number, wire) + _content(wire, content) for number, wire, content in found)[:MAX_BYTES]


def _fields(data: bytes) -> list[tuple[int, int, bytes]]:
    """The fields of a message as (number, wire type, content); none if `data` is no message."""
    found = []
    position = 0
    try:
        while position < len(data):
            tag, position = _read_varint(data, position)
            number, wire = tag >> 3, tag & 7
            if wire == 2:
                size, start = _read_varint(data, position)
                position = start + size
            else:
                start = position
                position = {0: _read_varint(data, start)[1], 1: start + 8, 5: start + 4}[wire]
            if not number or position > len(data):
                return []
            found.append((number, wire, data[start:position]))
    except (IndexError, KeyError):
        return []
    return found


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _field(number: int, content: bytes) -> bytes:
    return _tag(number, 2) + _content(2, content)


def _tag(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _content(wire: int, content: bytes) -> bytes:
    return _varint(len(content)) + content if wire == 2 else content


def _varint(value: int) -> bytes:
    value %= 2**64
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _count(random: Random) -> int:
    """How many mutations one input gets: mostly few, so that it comes far."""
    return random.choice((1, 1, 1, 2, 2, 3, 5, 12))


def _words(text: bytes) -> list[bytes]:
    words: list[bytes] = []
    kind = -1
    for byte in text:
        now = 0 if chr(byte).isalnum() or byte in b"_" else byte
        if now == kind == 0:
            words[-1] += bytes([byte])
        else:
            words.append(bytes([byte]))
        kind = now
    return words

"""Kinds of requests that end the process of a version, and which of them are refused. Pure: no process, file or clock.

A `Kind` is what requests have in common: the signature, and each input's dtype and shape. If a version's process dies
of a fatal signal while it runs requests of one kind only, that counts against the kind; the second time, it is refused.
A kind that the signature admits, or that the version has ever answered, is never refused as a whole: only the exact
inputs are. If in doubt, nothing is refused, because refusing good clients is worse than one more crash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec
import numpy as np

from backends.contract import Signature

__all__ = [
    "ANY",
    "NO_RUNS",
    "Held",
    "Kind",
    "Refused",
    "Runs",
    "Suspects",
    "admits",
    "digest_of",
    "kind_of",
    "refusal",
    "shape_text",
]

ANY = -1
"""A size of any value but 0."""

_T = TypeVar("_T")

_DEATHS = 2
_MAX_SUSPECTS = 256
_MAX_REFUSED = 64
_MAX_ANSWERED = 1024
_MAX_TEXT = 300  # of a kind in words: a signature may have hundreds of inputs


class Kind(msgspec.Struct, frozen=True, array_like=True):
    """The signature, and the name, dtype and shape of each input, sorted by name; a short array in JSON."""

    signature: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]

    def __str__(self) -> str:
        told = ", ".join(f"{name}: {dtype} {shape_text(shape)}" for name, dtype, shape in self.inputs)
        if len(told) > _MAX_TEXT:
            told = f"{told[:_MAX_TEXT]}..."
        return f'signature "{self.signature[:_MAX_TEXT]}" with {told or "no inputs"}'


def shape_text(shape: Sequence[int] | None) -> str:
    """Return a shape for people, such as "[any, 5]"; None means any shape."""
    if shape is None:
        return "of any shape"
    return f"[{', '.join('any' if size == ANY else str(size) for size in shape)}]"


def kind_of(name: str, signature: Signature, inputs: Mapping[str, np.ndarray]) -> Kind:
    """Return the kind of a request of signature `name` with `inputs`, which have the signature's dtypes.

    The number of rows (the first size) is left out, so that a request with one row more is of the same kind. If the
    rank is not the declared one, all sizes are left out. A size of 0 is always kept.
    """
    specs = signature.inputs
    return Kind(
        name,
        tuple(
            (alias, specs[alias].dtype, _abstracted(specs[alias].shape, inputs[alias].shape))
            for alias in sorted(inputs)
            if alias in specs
        ),
    )


def _abstracted(declared: Sequence[int] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    if declared is not None and len(declared) != len(shape):
        return tuple(ANY if size else 0 for size in shape)
    if shape and shape[0] and (declared is None or declared[0] == ANY):
        return (ANY, *shape[1:])
    return shape


def admits(signature: Signature, kind: Kind) -> bool:
    """Return whether `kind`, which is of this signature, has the declared ranks and sizes.

    A size that is not declared may be any but 0.
    """
    return all(_admits(signature.inputs[name].shape, shape) for name, _, shape in kind.inputs)


def _admits(declared: Sequence[int] | None, shape: tuple[int, ...]) -> bool:
    if declared is None:
        return 0 not in shape
    if len(declared) != len(shape):
        return False
    return all(size == known if known >= 0 else size != 0 for known, size in zip(declared, shape, strict=True))


def _has_declared_ranks(signature: Signature, kind: Kind) -> bool:
    shapes = ((signature.inputs[name].shape, shape) for name, _, shape in kind.inputs)
    return all(declared is None or len(declared) == len(shape) for declared, shape in shapes)


def digest_of(inputs: Mapping[str, np.ndarray]) -> str:
    """Return a digest (32 hexadecimal digits) of names, shapes and values, the same for any order and memory layout."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(inputs):
        array = inputs[name]
        digest.update(f"{name}\0{array.shape}\0".encode())
        if array.dtype == object:
            for value in array.reshape(-1).tolist():
                digest.update(len(value).to_bytes(8, "little"))
                digest.update(value)
        else:
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Held:
    """A request that ran when its process ended; `digest` is that of its inputs, "" if it was not taken."""

    kind: Kind
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Runs:
    """What a process ran at its end, and the kinds that it had answered.

    `forgot` if it had answered more kinds; `unnamed` if it also ran requests whose kinds are not known. `survived` are
    digests of inputs that it had run, answered or not: the last few.
    """

    held: tuple[Held, ...] = ()
    answered: frozenset[Kind] = frozenset()
    forgot: bool = False
    unnamed: bool = False
    survived: frozenset[str] = frozenset()

    def with_answered_of(self, other: Runs) -> Runs:
        """Return the same with what `other` had answered too."""
        return replace(self, answered=self.answered | other.answered, forgot=self.forgot or other.forgot)


NO_RUNS = Runs()


@dataclass(frozen=True, slots=True)
class Refused:
    """Requests that are refused: all of `kind`, or with a `digest` those with exactly such inputs."""

    kind: Kind
    why: str
    digest: str = ""

    def __str__(self) -> str:
        which = f" and the inputs of digest {self.digest}" if self.digest else ""
        return f"requests of {self.kind}{which} {self.why}; they are refused until the version changes"


def refusal(
    refused: Sequence[Refused], name: str, signature: Signature, inputs: Mapping[str, np.ndarray]
) -> Refused | None:
    """Return the entry of `refused` that refuses a request of signature `name`, or None if it may run.

    Values are hashed only if inputs of the same kind are refused.
    """
    kind = kind_of(name, signature, inputs)
    digest = ""
    for one in refused:
        if one.kind != kind:
            continue
        if one.digest and not digest:
            digest = digest_of(inputs)
        if one.digest == digest or not one.digest:
            return one
    return None


class Suspects:
    """Counts deaths and answers of one version with certain `files` (their digest), in bounded memory.

    If `is_watched`, the next process runs its first requests one at a time, so that a death shows what caused it.
    """

    def __init__(self, files: str | None = None) -> None:
        self.files = files
        self.refused: tuple[Refused, ...] = ()
        self.is_watched = False
        self._deaths: dict[Kind, int] = {}  # those that died last are the last
        self._deaths_of_inputs: dict[Held, int] = {}
        self._answered: dict[Kind, None] = {}  # the oldest first
        self._forgot = False

    def learn(self, runs: Runs) -> None:
        """Take in what a process of the version has answered."""
        self._answered.update(dict.fromkeys(runs.answered))
        self._forgot |= runs.forgot
        while len(self._answered) > _MAX_ANSWERED:
            del self._answered[next(iter(self._answered))]
            self._forgot = True

    def died(self, runs: Runs, how: str, signatures: Mapping[str, Signature]) -> Refused | None:
        """Take in that the process died of a fatal signal during `runs`; return what is refused from now on, or None.

        If it ran several kinds, none is blamed: the next process runs one request at a time, so its death shows which.
        `how` describes the death, for the error that clients get.
        """
        self.is_watched = True
        held = [one for one in runs.held if _is_of(one.kind, signatures)]
        is_sure = len(held) == len(runs.held) and not runs.unnamed
        why = f"have ended this version's process twice ({how})"
        twice = [one for one in dict.fromkeys(held) if one.digest and _count(self._deaths_of_inputs, one) >= _DEATHS]
        if is_sure and len({one.kind for one in held}) == 1 and _count(self._deaths, held[0].kind) >= _DEATHS:
            if not self._is_spared(held[0].kind, signatures):
                return self._refuse(Refused(held[0].kind, why))
            if len(held) == 1 and held[0].digest:
                return self._refuse(Refused(held[0].kind, why, held[0].digest))
        # Inputs that an earlier run survived are not to blame: a client may send them all the time.
        blamed = [one for one in twice if one.digest not in runs.survived]
        if len(blamed) == 1:
            return self._refuse(Refused(blamed[0].kind, why, blamed[0].digest))
        return None

    def tried(self, kind: Kind, how: str, signatures: Mapping[str, Signature]) -> Refused | None:
        """Take in that a trial process died of `kind`; return what is refused from now on, or None."""
        if not _is_of(kind, signatures) or self._is_spared(kind, signatures):
            return None
        return self._refuse(Refused(kind, f"end the process that runs them, as a trial has shown ({how})"))

    def _is_spared(self, kind: Kind, signatures: Mapping[str, Signature]) -> bool:
        """Return whether good clients may send requests of `kind`, which is of one of `signatures`."""
        signature = signatures[kind.signature]
        if kind in self._answered or admits(signature, kind):
            return True
        # There are few kinds of other ranks, so one that was answered is likely to be remembered.
        return self._forgot and _has_declared_ranks(signature, kind)

    def _refuse(self, one: Refused) -> Refused | None:
        if any((one.kind, one.digest) == (known.kind, known.digest) for known in self.refused):
            return None
        self.refused = (*self.refused, one)[-_MAX_REFUSED:]
        return one


def _is_of(kind: Kind, signatures: Mapping[str, Signature]) -> bool:
    """Return whether the signature and the inputs of `kind` exist: it was read from what a model's process wrote."""
    signature = signatures.get(kind.signature)
    return signature is not None and all(name in signature.inputs for name, _, _ in kind.inputs)


def _count(deaths: dict[_T, int], key: _T) -> int:
    """Count one more death of `key`, forget the oldest of too many, and return how many it has died now."""
    found = deaths[key] = deaths.pop(key, 0) + 1
    if len(deaths) > _MAX_SUSPECTS:
        del deaths[next(iter(deaths))]
    return found

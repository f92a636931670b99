"""Kinds of requests that end the process of a version, and which of them are refused. Pure: no process, file or clock.

A `Kind` is what requests have in common: the signature, and each input's dtype and shape. A version's kinds are counted
when its process dies of a fatal signal while it runs them; the second time, the kind is refused. One that the version
has ever answered is never refused as a whole: only the exact inputs are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.contract import Signature

__all__ = ["NO_RUNS", "Held", "Kind", "Refused", "Runs", "Suspects", "digest_of", "kind_of", "refusal", "shape_text"]

ANY = -1
"""A size of any value but 0."""

_DEATHS = 2
_MAX_SUSPECTS = 256
_MAX_REFUSED = 64
_MAX_ANSWERED = 1024
_MAX_TEXT = 300  # of a kind in words: a signature may have hundreds of inputs


@dataclass(frozen=True, slots=True)
class Kind:
    """The signature, and the name, dtype and shape of each input, by name."""

    signature: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]

    def __str__(self) -> str:
        told = ", ".join(f"{name}: {dtype} {shape_text(shape)}" for name, dtype, shape in self.inputs)
        if len(told) > _MAX_TEXT:
            told = f"{told[:_MAX_TEXT]}..."
        return f'signature "{self.signature[:_MAX_TEXT]}" with {told or "no inputs"}'

    def to_json(self) -> list[Any]:
        return [self.signature, [[name, dtype, list(shape)] for name, dtype, shape in self.inputs]]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Kind:
        """Raises ValueError, TypeError for what is no kind."""
        signature, inputs = value
        found = tuple((str(name), str(dtype), tuple(int(size) for size in shape)) for name, dtype, shape in inputs)
        return cls(str(signature), found)


def shape_text(shape: Sequence[int] | None) -> str:
    if shape is None:
        return "of any shape"
    return f"[{', '.join('any' if size == ANY else str(size) for size in shape)}]"


def kind_of(name: str, signature: Signature, inputs: Mapping[str, np.ndarray]) -> Kind:
    """Return the kind of a request of signature `name` with `inputs`, which have the signature's dtypes.

    The number of rows makes no kind: a client that sends one more would have to kill the version anew. Nor do sizes
    where the rank is not the declared one. Nothing (a size of 0) is always a kind of its own.
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


def digest_of(inputs: Mapping[str, np.ndarray]) -> str:
    """Return what identifies exactly these inputs: names, shapes and values, whatever their order and memory."""
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
    """A request that ran when its process ended; `digest` is that of its inputs, "" where it was not taken."""

    kind: Kind
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Runs:
    """What a process ran at its end, and the kinds that it had answered; `forgot` if it had answered more."""

    held: tuple[Held, ...] = ()
    answered: frozenset[Kind] = frozenset()
    forgot: bool = False


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

    def to_json(self) -> list[Any]:
        return [self.kind.to_json(), self.why, self.digest]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Refused:
        return cls(Kind.from_json(value[0]), value[1], value[2])


def refusal(
    refused: Sequence[Refused], name: str, signature: Signature, inputs: Mapping[str, np.ndarray]
) -> Refused | None:
    """Return what says that a request is refused, or None. Only for a kind of which some inputs are refused does it
    look at values."""
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
    """What is known of one version with certain `files` (their digest): bounded, whatever clients send."""

    def __init__(self, files: str | None = None) -> None:
        self.files = files
        self.refused: tuple[Refused, ...] = ()
        self._deaths: dict[Kind, int] = {}  # those that died last are the last
        self._answered: set[Kind] = set()
        self._forgot = False

    @property
    def is_watched(self) -> bool:
        """Whether the next process is to run its requests one at a time at first, so that it is known what ends it."""
        return bool(self._deaths)

    def learn(self, answered: Collection[Kind], forgot: bool = False) -> None:
        """Takes in what the version has answered; `forgot` if it has answered more kinds than that."""
        self._answered.update(answered)
        if forgot or len(self._answered) > _MAX_ANSWERED:
            self._forgot = True  # any kind may have been answered: none is refused as a whole any more
            self._answered.clear()

    def died(self, held: Sequence[Held], how: str) -> Refused | None:
        """The process died of a fatal signal while it ran `held`; return what is refused from now on, if anything.

        If several could be to blame, nothing is: they will be run one at a time, and the next death tells.
        """
        kinds = list(dict.fromkeys(one.kind for one in held))
        for kind in kinds:
            self._deaths[kind] = self._deaths.pop(kind, 0) + 1
        while len(self._deaths) > _MAX_SUSPECTS:
            del self._deaths[next(iter(self._deaths))]
        again = [kind for kind in kinds if self._deaths[kind] >= _DEATHS]
        never_answered = [kind for kind in again if not self._may_be_answered(kind)]
        why = f"have ended this version's process twice ({how})"
        if len(never_answered) == 1:
            return self._refuse(Refused(never_answered[0], why))
        if again and len(held) == 1 and held[0].digest:
            return self._refuse(Refused(held[0].kind, why, held[0].digest))
        return None

    def tried(self, kind: Kind, how: str) -> Refused | None:
        """A process that was there to be lost died of `kind`; return what is refused from now on, if anything."""
        if self._may_be_answered(kind):
            return None
        return self._refuse(Refused(kind, f"end the process that runs them, as a trial has shown ({how})"))

    def _may_be_answered(self, kind: Kind) -> bool:
        return self._forgot or kind in self._answered

    def _refuse(self, one: Refused) -> Refused | None:
        if any((one.kind, one.digest) == (known.kind, known.digest) for known in self.refused):
            return None
        self.refused = (*self.refused, one)[-_MAX_REFUSED:]
        return one

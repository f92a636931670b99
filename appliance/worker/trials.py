"""Tries each signature with made-up requests, until it has answered one, before clients send theirs.

A signature that is slow or hangs does not keep the others from being tried. If a request kills the process, the next
process gets the number of that attempt and leaves it out.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from appliance.core.outcomes import Outcome, Trial
from appliance.host.memory import available_bytes
from appliance.worker.attempts import Made, attempts
from appliance.worker.running import Running
from appliance.worker.verdicts import Failure, verdict
from backends.contract import DEFAULT_SIGNATURE, Backend, BackendError, Changing, Code, Placed, Signature
from backends.domain import UnprovenError
from backends.made_inputs import TooLargeError

__all__ = [
    "COPY",
    "MAX_SIGNATURES",
    "NOTHING_FATAL",
    "PROOF",
    "Announce",
    "Fatal",
    "SignatureTrial",
    "by_importance",
    "changing",
    "check_memory",
    "check_memory_for_copy",
    "outside",
    "tell_nobody",
    "try_on_copy",
    "try_out",
]

# The most signatures that are tried: clients call few, and a backend keeps no more callables than this.
MAX_SIGNATURES = 64
PROOF = 0
"""The number of the attempt that is the proof of merging (`warmup`); a signature's other attempts begin at 1."""
COPY = -1
"""The number of the attempt that is a second load of the model (`try_on_copy`)."""

_MAX_LESSONS = 200  # refusals to learn from, for one signature
_MAX_DEATHS = 4  # of processes; after more, nothing is tried
_MAX_DEATHS_OF_SIGNATURE = 3  # after so many, only attempts that a process has survived are made
_LEAST_SHARE_SECONDS = 1.0
_MEMORY_FACTOR = 1.5  # a second load needs this multiple of the model's memory to be available
_MAX_AT_ONCE = 4  # with so many requests that have not ended in time, no other signature is begun

Announce = Callable[[str, int], None]
"""Called before each attempt, with the signature and the attempt's number."""


@dataclass(frozen=True, slots=True)
class Fatal:
    """The attempts that have killed earlier processes: (signature, number, how the process ended)."""

    attempts: Sequence[tuple[str, int, str]] = ()

    @property
    def too_many(self) -> bool:
        """Whether so many processes have died that nothing more is tried."""
        return len(self.attempts) > _MAX_DEATHS

    def of(self, signature: str) -> dict[int, str]:
        """Return the fatal attempts of `signature`: number → how the process ended."""
        return {number: how for name, number, how in self.attempts if name == signature}


NOTHING_FATAL = Fatal()


def tell_nobody(signature: str, number: int) -> None:
    """Do nothing; an `Announce` for a process whose death nobody examines."""


def by_importance(signatures: Collection[str]) -> list[str]:
    """Return the names in the order in which they are tried: the default signature first."""
    return sorted(signatures, key=lambda name: (name != DEFAULT_SIGNATURE, name))


def changing(backend: Backend) -> frozenset[str]:
    """Return the signatures that change the model: a made-up request to one would change what clients get."""
    return backend.changing if isinstance(backend, Changing) else frozenset()


def outside(backend: Backend) -> Mapping[str, str]:
    """Return the signatures that act outside of the process, which are not tried on a copy either: name → operator."""
    return backend.outside if isinstance(backend, Changing) else {}


def check_memory(model_bytes: int) -> None:
    """Check that there is memory to load a model of `model_bytes` once more.

    Raise BackendError (RESOURCE_EXHAUSTED) if there is not: the kernel might then kill any process, not this one.
    """
    available = available_bytes()
    if available is not None and available < _MEMORY_FACTOR * model_bytes:
        mib = 1 << 20
        raise BackendError(
            Code.RESOURCE_EXHAUSTED,
            f"another copy of the model takes about {model_bytes // mib} MiB, and only {available // mib} MiB of "
            "memory are available",
        )


def check_memory_for_copy(path: str, besides: int) -> None:
    """Do as `check_memory` for the version in the folder `path`, whose files are about as large as the loaded model,
    and `besides` bytes of what loads it."""
    check_memory(besides + sum(_sizes_below(path)))


def _sizes_below(path: str) -> Iterator[int]:
    for folder, _, names in os.walk(path, followlinks=True):
        for name in names:
            with contextlib.suppress(OSError):
                yield os.stat(os.path.join(folder, name)).st_size


class SignatureTrial:
    """The trial of one signature."""

    def __init__(
        self, backend: Backend, name: str, fatal: Fatal = NOTHING_FATAL, announce: Announce = tell_nobody
    ) -> None:
        self.name = name
        self.draw: Made | None = None
        """What has drawn the inputs that the signature answered; None if it has not answered yet."""
        self._backend = backend
        self._signature: Signature = backend.signatures[name]
        self._fatal = {number: how for number, how in fatal.of(name).items() if number > PROOF}
        self._excluded = fatal.too_many
        self._announce = announce
        self._failures: list[Failure] = []
        self._todo = self._makers()
        self._next: tuple[int, Made] | None = None
        self._lessons = 0
        self._running: Running | None = None
        self._over = False

    @property
    def is_running(self) -> bool:
        """Whether a request of it has not ended."""
        return self._running is not None

    def advance(self, deadline: float) -> None:
        """Continue the trial until its outcome is known, or until `deadline` (monotonic seconds).

        A request that has not ended by then goes on in its thread.
        """
        while not self._over:
            if self._running is None:
                self._begin(deadline)
                if self._running is None:
                    return
            if not self._running.wait(deadline):
                return
            running, self._running = self._running, None
            assert self._next is not None
            made = self._next[1]
            try:
                running.answer()
                self.draw, self._over = made, True
            except UnprovenError as error:  # a form was not proven for this input: TensorFlow answers it
                self._failures.append(Failure(Code.INVALID_ARGUMENT, error.message))
                self._next = None
            except BackendError as error:
                self._failures.append(Failure(error.code, error.message, self._text_of(made)))
                self._lessons += 1
                if self._lessons >= _MAX_LESSONS or not made.examples.learn(error.message):
                    self._next, self._lessons = None, 0

    def outcome(self) -> Trial:
        """Return the outcome so far."""
        if self.draw is not None:
            return Trial(Outcome.ANSWERED)
        if self._excluded and not self._fatal:
            return Trial(Outcome.LATE, Code.UNAVAILABLE, "it was not tried, since other trials ended the process")
        if self._over:
            return verdict(self._failures)
        if self._running is None:
            return Trial(Outcome.LATE, Code.DEADLINE_EXCEEDED, "no time was left for its trial")
        on_gpu = isinstance(self._backend, Placed) and self._backend.device == "cuda"
        if not on_gpu and (seconds := self._running.idle_seconds()):
            why = f"a made-up request had not ended after {seconds:.0f} s, and used no processor: it hangs"
            return verdict([*self._failures, Failure(Code.DEADLINE_EXCEEDED, why)])
        return Trial(Outcome.LATE, Code.DEADLINE_EXCEEDED, "a made-up request had not ended when the time was up")

    def _begin(self, deadline: float) -> None:
        """Begin the next request, if one is left and `deadline` has not passed."""
        while self._next is not None or (found := next(self._todo, None)) is not None:
            self._next = self._next or found
            if time.monotonic() >= deadline:
                return
            assert self._next is not None
            number, made = self._next
            try:
                inputs = made(made.attempt.rows, 0)
            except TooLargeError as error:
                if made.attempt.rows == 1 or not self._failures:
                    self._failures.append(Failure(Code.INVALID_ARGUMENT, str(error)))
                self._next = None
                continue
            self._announce(self.name, number)
            self._running = Running(self._backend, self.name, inputs, tuple(self._signature.outputs))
            return
        self._over = True

    def _makers(self) -> Iterator[tuple[int, Made]]:
        """Yield the attempts that are left, with their numbers.

        A process has survived those below the last fatal one, so they are made also if no new ones are.
        """
        last = max(self._fatal, default=0)
        for number, attempt in enumerate(attempts(self._signature), 1):
            if number in self._fatal:
                why = f"its process died of a made-up input: {self._fatal[number]}"
                self._failures.append(Failure(Code.INTERNAL, why))
            elif number > last and (self._excluded or len(self._fatal) >= _MAX_DEATHS_OF_SIGNATURE):
                return
            elif not self._excluded:
                yield number, Made(self._signature, attempt)

    @staticmethod
    def _text_of(made: Made) -> bytes | None:
        if not any(spec.dtype == "string" for spec in made.signature.inputs.values()):
            return None
        return made.examples.example(0) if made.examples else made.attempt.strings[0]


def try_out(
    backend: Backend,
    names: Sequence[str],
    deadline: float,
    fatal: Fatal = NOTHING_FATAL,
    announce: Announce = tell_nobody,
) -> list[SignatureTrial]:
    """Try the first 64 of these signatures in turn until `deadline` (monotonic seconds); return their trials."""
    trials = [SignatureTrial(backend, name, fatal, announce) for name in names[:MAX_SIGNATURES]]
    for position, trial in enumerate(trials):
        if sum(other.is_running for other in trials) >= _MAX_AT_ONCE:
            break
        now = time.monotonic()
        share = max((deadline - now) / (len(trials) - position), _LEAST_SHARE_SECONDS)
        trial.advance(min(now + share, deadline))
    for trial in trials:
        trial.advance(deadline)
    return trials


def try_on_copy(
    load: Callable[[], Backend],
    names: Sequence[str],
    deadline: float,
    fatal: Fatal = NOTHING_FATAL,
    announce: Announce = tell_nobody,
) -> dict[str, Trial]:
    """Try signatures that change variables and tables on a second load of their model, which is dropped afterwards."""
    names = names[:MAX_SIGNATURES]
    why = "it changes the model, and "
    if fatal.too_many or any(COPY in fatal.of(name) for name in names):
        why += "the process died of loading a copy of it to try"
    elif time.monotonic() >= deadline:
        why += "no time was left to load a copy of it to try"
    else:
        announce(names[0], COPY)
        try:
            copy = load()
        except BackendError as error:
            why += f"a copy of it could not be loaded: {error.message}"
        else:
            found = {}
            for trial in try_out(copy, names, deadline, fatal, announce):
                outcome = trial.outcome()
                if outcome.outcome is Outcome.LATE and not trial.is_running:  # the copy has taken the time
                    outcome = Trial(Outcome.UNTRIED, outcome.code, f"it changes the model, and {outcome.message}")
                found[trial.name] = outcome
            del copy, trial
            gc.collect()  # a backend may refer to itself, and what it holds is large
            return found
    return dict.fromkeys(names, Trial(Outcome.UNTRIED, Code.UNAVAILABLE, why))

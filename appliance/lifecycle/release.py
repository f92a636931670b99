"""Whether a version that has loaded may take over, and what its clients will notice. Pure.

What a version's trials came to (`core.outcomes`) is the worker's report; what follows from it is decided here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from appliance.core.errors import Code
from appliance.core.outcomes import Outcome, Trials
from backends.contract import Signature

_NAMED = 3  # signatures that a refusal names


class Gate(StrEnum):
    """When a version must have answered, or refused a request for the input's sake, before it serves."""

    STRICT = "strict"  # always
    ONLY_REPLACING = "only-replacing"  # if another version of its model serves meanwhile
    OFF = "off"


@dataclass(frozen=True, slots=True)
class ReleaseRules:
    """What a model's configuration says of its versions' release; the options of the same names."""

    gate: Gate = Gate.STRICT
    refuse_signature_changes: bool = False
    incomplete_after_seconds: float = 30.0
    crash_window_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a version does not take over; `is_final` if another attempt with the same files cannot end otherwise."""

    code: Code
    reason: str
    is_final: bool = False


def refusal(
    trials: Trials | None, gate: Gate, replaces: bool, unsupported: Mapping[str, str] | None = None
) -> Refusal | None:
    """Return why a version with these `trials` must not take over, or None if it may.

    `replaces` says whether another version of its model serves meanwhile, `unsupported` why each signature that was not
    tried cannot be served. No trials (None) were asked for: nothing is refused. A signature that was only late is given
    the benefit of the doubt, but a version of which all that were tried were late replaces none that answers.
    """
    if trials is None or gate is Gate.OFF or (gate is Gate.ONLY_REPLACING and not replaces):
        return None
    if not trials:
        reasons = "".join(f"; {name!r} cannot be: {why}" for name, why in sorted((unsupported or {}).items())[:_NAMED])
        return Refusal(
            Code.FAILED_PRECONDITION,
            f"it has no signature that can be served: export it with one (serving_default){reasons}",
            is_final=True,
        )
    trials = {name: trial for name, trial in trials.items() if trial.outcome is not Outcome.UNTRIED}
    failed = [name for name in sorted(trials) if trials[name].outcome is Outcome.FAILED]
    if failed:
        told = [f'signature "{name}" cannot answer: {_words(trials[name].message)}' for name in failed[:_NAMED]]
        more = f"; {len(failed) - _NAMED} more signatures neither" if len(failed) > _NAMED else ""
        return Refusal(trials[failed[0]].code, "; ".join(told) + more)
    if replaces and trials and all(trial.outcome is Outcome.LATE for trial in trials.values()):
        first = trials[min(trials)].message
        return Refusal(
            Code.DEADLINE_EXCEEDED,
            f"it has answered no request in the time that warm-up has ({first}); "
            "give it more by warmup_timeout_seconds, or let it take over by release_gate = off",
        )
    return None


def doubts(trials: Trials) -> tuple[str, ...]:
    """Return remarks on the signatures that a version serves although they have not shown that they can answer."""
    return tuple(
        f'signature "{name}" {_DOUBTS[trial.outcome]}: {_words(trial.message)}'
        for name, trial in sorted(trials.items())
        if trial.outcome in _DOUBTS
    )


_DOUBTS = {Outcome.FAILED: "cannot answer", Outcome.LATE: "has not shown that it can answer"}


def _words(message: str) -> str:
    return message or "the model gave no reason"


def signature_changes(old: Mapping[str, Signature], new: Mapping[str, Signature]) -> tuple[str, ...]:
    """Return what clients of `old` will miss in `new`, in words: signatures, inputs and outputs that are gone, inputs
    that are new and needed, and inputs of another dtype or rank."""
    return tuple(_changes(old, new))


def _changes(old: Mapping[str, Signature], new: Mapping[str, Signature]) -> Iterator[str]:
    for name, before in sorted(old.items()):
        after = new.get(name)
        if after is None:
            yield f'signature "{name}" is gone'
            continue
        for alias, spec in sorted(before.inputs.items()):
            now = after.inputs.get(alias)
            if now is None:
                yield f'input "{alias}" of signature "{name}" is gone'
                continue
            if now.dtype != spec.dtype:
                yield f'input "{alias}" of signature "{name}" is {now.dtype}, and was {spec.dtype}'
            # A shape of unknown rank takes all that came before.
            if now.shape is not None and (spec.shape is None or len(now.shape) != len(spec.shape)):
                was = "any rank" if spec.shape is None else f"rank {len(spec.shape)}"
                yield f'input "{alias}" of signature "{name}" has rank {len(now.shape)}, and had {was}'
        for alias in sorted(after.inputs.keys() - before.inputs.keys() - after.defaults.keys()):
            yield f'input "{alias}" of signature "{name}" is new, and has no default'
        for alias in sorted(before.outputs.keys() - after.outputs.keys()):
            yield f'output "{alias}" of signature "{name}" is gone'

"""Decide which form serves a version, from values alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from converters.report import Chosen, FormReport, Timing, Verdict

__all__ = ["Choice", "choose", "unproven"]


@dataclass(frozen=True, slots=True)
class Choice:
    """`form` is the name of the chosen form, "" if TensorFlow stays. `forms` are those that were given, with their
    speed-ups and with why each was chosen or not."""

    chosen: Chosen
    form: str
    reason: str
    forms: tuple[FormReport, ...]


def unproven(form: FormReport, served: Sequence[str]) -> str:
    """Return why `form` cannot replace TensorFlow, "" if it can: a version uses one form for all of the signatures
    `served`."""
    proofs = {proof.signature: proof for proof in form.proofs}
    for name in served:
        proof = proofs.get(name)
        if proof is not None and proof.verdict is Verdict.PROVEN:
            continue
        if proof is not None:
            return f"signature {name!r} is not proven ({proof.verdict}): {proof.reason}"
        # Most often all entry points fail for one reason.
        reasons: dict[str, list[str]] = {}
        for attempt in form.attempts:
            if name in attempt.failures:
                reasons.setdefault(attempt.failures[name], []).append(attempt.entry_point)
        said = "; ".join(f"{reason} (by {', '.join(points)})" for reason, points in reasons.items())
        return f"signature {name!r} was not converted: {said or 'another one failed before'}"
    return ""


def choose(
    forms: Sequence[FormReport],
    tensorflow: Sequence[Timing],
    served: Sequence[str],
    min_speedup: float,
    given_up: Mapping[str, str] = MappingProxyType({}),
) -> Choice:
    """Choose among the forms and TensorFlow, given all timings. `given_up` has the forms that may not be chosen → why.
    Forms that were judged before are judged anew, with the same result.

    A form's speed-up is the geometric mean over signatures and batch sizes: twice as fast at one and half as fast at
    the other is no gain. It must reach `min_speedup`, and no single part may be below 1 (or below `min_speedup` if that
    is less than 1): no request is served more slowly than by TensorFlow.
    """
    truth = {(timing.signature, timing.batch): timing.milliseconds for timing in tensorflow}
    judged: list[FormReport] = []
    for form in forms:
        reason = given_up.get(form.name) or unproven(form, served)
        if reason:
            judged.append(msgspec.structs.replace(form, reason=reason))
            continue
        speedups = _speedups(form.timings, truth)
        if not speedups:
            judged.append(msgspec.structs.replace(form, reason=form.reason or "it was not measured"))
            continue
        mean = math.exp(sum(map(math.log, speedups.values())) / len(speedups))
        (signature, batch), slowest = min(speedups.items(), key=lambda item: item[1])
        reason = ""
        if slowest < min(1.0, min_speedup):
            reason = f"{signature!r} at batch {batch} is {slowest:.2f} times as fast as TensorFlow"
        elif mean < min_speedup:
            reason = (
                f"it is {mean:.2f} times as fast as TensorFlow, less than acceleration_min_speedup, {min_speedup:g}"
            )
        judged.append(msgspec.structs.replace(form, speedup=mean, slowest=slowest, reason=reason))
    able = [form for form in judged if form.speedup and not form.reason]
    if not able:
        return Choice("tensorflow", "", _nothing(judged), tuple(judged))
    best = max(able, key=lambda form: form.speedup)
    said = (
        f"{best.name} is proven for all signatures and {best.speedup:.2f} times as fast as TensorFlow "
        f"({best.slowest:.2f} at least)"
    )
    final = tuple(
        msgspec.structs.replace(c, reason=said if c is best else f"{best.name} is faster") if c in able else c
        for c in judged
    )
    return Choice(best.format, best.name, said, final)


def _nothing(judged: Sequence[FormReport]) -> str:
    if not judged:
        return "nothing was tried"
    return "; ".join(f"{form.name}: {form.reason}" for form in judged)


def _speedups(timings: Sequence[Timing], truth: Mapping[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    return {
        (timing.signature, timing.batch): truth[timing.signature, timing.batch] / max(timing.milliseconds, 1e-6)
        for timing in timings
        if (timing.signature, timing.batch) in truth
    }

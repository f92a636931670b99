"""Gather what a proof needs of TensorFlow: its answers on cases, and how far roundings move them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from backends.contract import BackendError, Signature
from backends.domain import FINITE, Domain
from converters.cases import Case, CaseMaker, Inputs, Run
from converters.hard_cases import HardCases, Refused
from converters.processes import Reference
from converters.proof import Comparison
from converters.report import SignatureProof, Verdict
from converters.roundings import RunMoved, WeightsMove, noise_of, with_medians

__all__ = ["ENOUGH_CASES", "Evidence", "gather"]

ENOUGH_CASES = 4
"""So many cases are run, no matter how long they take."""

_MAX_CASE_BYTES = 512 << 20  # of all cases of a version
# The cases that look for trouble may take half as long as the others, within bounds.
_HARD_SHARE = 0.5
_MIN_HARD_SECONDS = 5.0
_MAX_HARD_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What TensorFlow answers on the cases of one signature.

    `noise` has for each case, by output, how far roundings of the inputs move the output, relative to it. `problem` is
    a proof that failed without any form; None if there is none. `refused` are unusual inputs that TensorFlow refuses,
    and `domain` is what was tried. `risk` runs TensorFlow on inputs that may kill it, and `risk_moved` does so with
    moved weights. `numbers` are constants of the graph. `seconds` is how long all this took.

    A search adds inputs on which a form was wrong to `counterexamples`, where those are already that were found in
    service. Each later proof begins its search with them: two conversions may have the same error, and a search finds
    it by chance.
    """

    signature: Signature
    cases: tuple[Case, ...]
    maker: CaseMaker
    noise: tuple[Mapping[str, float], ...]
    problem: SignatureProof | None
    refused: tuple[Refused, ...] = ()
    domain: Domain = FINITE
    risk: Run | None = None
    risk_moved: RunMoved | None = None
    numbers: tuple[float, ...] = ()
    seconds: float = 0.0
    counterexamples: list[Inputs] = field(default_factory=list)


def gather(
    reference: Reference,
    recorded: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    seconds: float,
    numbers: Sequence[float] = (),
) -> dict[str, Evidence]:
    """Return the evidence of each signature that TensorFlow serves, in about `seconds`.

    `recorded` has the inputs of recorded requests by signature, and `numbers` the constants of the model's graph
    (`converters.constants`). Raise ChildError if TensorFlow dies too often.
    """
    found = {}
    nbytes = 0
    for index, (name, signature) in enumerate(reference.signatures.items()):
        begun = time.monotonic()
        ends = begun + seconds / len(reference.signatures)
        share = _MAX_CASE_BYTES * (index + 1) // len(reference.signatures)
        timed = _Timed(reference, name)
        maker = CaseMaker(signature, timed.run, recorded.get(name, ()))
        cases: list[Case] = []

        def is_full(case: Case, share: int = share, cases: list[Case] = cases) -> bool:
            nonlocal nbytes
            cases.append(case)
            nbytes += sum(array.nbytes for side in (case.inputs, case.outputs) for array in side.values())
            return nbytes > share

        for case in maker.cases():
            if is_full(case) or (len(cases) >= ENOUGH_CASES and time.monotonic() > ends):
                break
        problem = _problem(name, signature, cases, maker, timed.run)
        if problem is not None and problem.verdict is not Verdict.INDISTINCT:
            found[name] = Evidence(signature, tuple(cases), maker, (), problem)
            continue
        noise_ends = ends + seconds / len(reference.signatures)
        noise = noise_of(cases, timed.run, noise_ends)
        now = time.monotonic()
        hard_ends = now + min(_MAX_HARD_SECONDS, max(_MIN_HARD_SECONDS, _HARD_SHARE * (now - begun)))
        hard = HardCases(maker, timed.risk, numbers)
        for case in hard.cases():
            if is_full(case) or time.monotonic() > min(hard_ends, noise_ends):
                break
        if problem is not None:  # the graph's own numbers may make a difference that made-up inputs do not
            problem = _problem(name, signature, cases, maker, timed.run)
        found[name] = Evidence(
            signature,
            tuple(cases),
            maker,
            with_medians(noise, len(cases)),
            problem,
            tuple(hard.refused),
            hard.domain,
            timed.risk,
            timed.risk_moved,
            tuple(numbers),
            time.monotonic() - begun,
        )
    return found


class _Timed:
    """TensorFlow on one signature. Inputs that may never end get 20 times as long as the slowest that did end."""

    def __init__(self, reference: Reference, name: str) -> None:
        self._reference = reference
        self._name = name
        self._longest = 0.0

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return all outputs. Raise BackendError."""
        begun = time.monotonic()
        answer = self._reference.run(self._name, inputs)
        self._longest = max(self._longest, time.monotonic() - begun)
        return answer

    def risk(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return all outputs for inputs that may kill TensorFlow. Raise BackendError, DiedError."""
        return self._reference.risk(self._name, inputs, min(20 * self._longest, _MAX_HARD_SECONDS))

    def risk_moved(self, inputs: Mapping[str, np.ndarray], move: WeightsMove) -> dict[str, np.ndarray] | None:
        """Do the same with moved weights; return None if the model has none."""
        return self._reference.risk_moved(self._name, inputs, move)


def _problem(
    name: str,
    signature: Signature,
    cases: Sequence[Case],
    maker: CaseMaker,
    run: Run,
) -> SignatureProof | None:
    """Return a proof that fails for TensorFlow's own answers alone, on those of `cases` on which a form must be right;
    None if they can prove something."""
    cases = [case for case in cases if case.without is None]
    if not cases:
        reason = f"TensorFlow took none of the inputs that were made from the signature: {maker.refusal}"
        return SignatureProof(name, Verdict.UNTESTED, reason, refused=maker.refused)
    itself = Comparison(name, signature, "float32")
    for case in cases:
        itself.add(case.label, case.outputs, case.outputs, case.recorded)
    proof = itself.proof(maker.refused)
    if proof.verdict is not Verdict.PROVEN:
        return proof
    again = Comparison(name, signature, "float32")
    try:
        again.add(cases[0].label, cases[0].outputs, run(cases[0].inputs))
    except BackendError as error:
        again.difference = f"TensorFlow refuses the second time what it answered first: {error.message}"
    if again.difference:
        reason = f"TensorFlow's own answers differ from call to call, by chance or by state: {again.difference}"
        return SignatureProof(name, Verdict.UNTESTED, reason, len(cases), maker.refused)
    return None

"""Carries out a proof: makes the cases by TensorFlow, runs a converted form on them, and has both compared."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from backends.contract import BackendError, Signature
from backends.domain import FINITE, Domain
from converters.cases import Case, CaseMaker, Run
from converters.child import ChildError
from converters.forms import Form, Reference
from converters.hard_cases import HardCases, Refused
from converters.proof import Comparison
from converters.report import SignatureProof, Verdict
from converters.roundings import DRAWS, moves, noise_of, with_medians
from converters.tolerances import Tolerances

__all__ = ["Evidence", "Proof", "gather", "prove"]

_MAX_CASE_BYTES = 512 << 20  # of all cases of a version
_ENOUGH_CASES = 4  # these are run however long they take
# The cases that look for trouble may take half as long as the others, within bounds.
_HARD_SHARE = 0.5
_MIN_HARD_SECONDS = 5.0
_MAX_HARD_SECONDS = 20.0
_CALL_SECONDS = 120.0
_HARD_CALL_SECONDS = 30.0
_MAX_BEYOND = 12  # differences that a report tells of


@dataclass(frozen=True, slots=True)
class Evidence:
    """What TensorFlow answers on the cases of one signature. `noise` is, for each case, by
    how much the outputs move with roundings of the inputs. `problem` says why that proves nothing, if it does not.
    `refused` are inputs out of the usual that TensorFlow refuses, and `domain` those that were tried."""

    signature: Signature
    cases: tuple[Case, ...]
    maker: CaseMaker
    noise: tuple[Mapping[str, float], ...]
    problem: SignatureProof | None
    refused: tuple[Refused, ...] = ()
    domain: Domain = FINITE
    risk: Run | None = None


def gather(
    reference: Reference,
    recorded: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    tolerances: Tolerances,
    seconds: float,
    numbers: Sequence[float] = (),
) -> dict[str, Evidence]:
    """The evidence of each signature that TensorFlow serves, in about `seconds`. `numbers` are those of the model's
    graph (`converters.constants`). Raises ChildError."""
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
            if is_full(case) or (len(cases) >= _ENOUGH_CASES and time.monotonic() > ends):
                break
        usual = [case for case in cases if case.without is None]
        problem = _problem(name, signature, usual, maker, timed.run, tolerances)
        if problem is not None:
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
        found[name] = Evidence(
            signature,
            tuple(cases),
            maker,
            with_medians(noise, len(cases)),
            None,
            tuple(hard.refused),
            hard.domain,
            timed.risk,
        )
    return found


class _Timed:
    """TensorFlow on one signature. What may never end gets much more time than what did."""

    def __init__(self, reference: Reference, name: str) -> None:
        self._reference = reference
        self._name = name
        self._longest = 0.0

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raises BackendError."""
        begun = time.monotonic()
        answer = self._reference.run(self._name, inputs)
        self._longest = max(self._longest, time.monotonic() - begun)
        return answer

    def risk(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raises BackendError, DiedError."""
        return self._reference.risk(self._name, inputs, min(20 * self._longest, _MAX_HARD_SECONDS))


def _problem(
    name: str,
    signature: Signature,
    cases: Sequence[Case],
    maker: CaseMaker,
    run: Run,
    tolerances: Tolerances,
) -> SignatureProof | None:
    """What shows before anything is converted."""
    if not cases:
        reason = f"TensorFlow took none of the inputs that were made from the signature: {maker.refusal}"
        return SignatureProof(name, Verdict.UNTESTED, reason, refused=maker.refused)
    itself = Comparison(name, signature, "float32", tolerances)
    for case in cases:
        itself.add(case.label, case.outputs, case.outputs, case.recorded)
    proof = itself.proof(maker.refused)
    if proof.verdict is not Verdict.PROVEN:
        return proof
    again = Comparison(name, signature, "float32", tolerances)
    try:
        again.add(cases[0].label, cases[0].outputs, run(cases[0].inputs))
    except BackendError as error:
        again.difference = f"TensorFlow refuses the second time what it answered first: {error.message}"
    if again.difference:
        reason = f"TensorFlow's own answers differ from call to call, by chance or by state: {again.difference}"
        return SignatureProof(name, Verdict.UNTESTED, reason, len(cases), maker.refused)
    return None


def prove(
    load: Callable[[], Form],
    names: Sequence[str],
    evidence: Mapping[str, Evidence],
    precision: str,
    tolerances: Tolerances,
    seconds: float,
) -> dict[str, SignatureProof]:
    """The proofs of the signatures `names`. `load` starts the converted form, again where it has died. Raises
    BackendError, ChildError where it cannot be loaded."""
    found: dict[str, SignatureProof] = {}
    form = _Reloaded(load)
    try:
        for name in names:
            ends = time.monotonic() + seconds / len(names)
            found[name] = Proof(form, name, evidence[name], precision, tolerances).run(ends)
    finally:
        form.end()
    return found


class Runs(Protocol):
    """What a form is for a proof."""

    def run(self, name: str, inputs: Mapping[str, np.ndarray], seconds: float) -> Mapping[str, np.ndarray]:
        """The outputs. Raises BackendError where the framework refuses, ChildError where the process dies or hangs."""
        ...


class _Reloaded:
    """A form that is started again where it has died."""

    def __init__(self, load: Callable[[], Form]) -> None:
        self._load = load
        self._form: Form | None = load()

    def run(self, name: str, inputs: Mapping[str, np.ndarray], seconds: float) -> dict[str, np.ndarray]:
        """See `Runs`."""
        if self._form is None:
            self._form = self._load()
        try:
            return self._form.run(name, inputs, seconds)
        except ChildError:
            self._form = None
            raise

    def end(self) -> None:
        if self._form is not None:
            self._form.__exit__()


class Proof:
    """The proof of one signature of a form: what it must be right on, then where it is right besides."""

    def __init__(
        self,
        form: Runs,
        name: str,
        evidence: Evidence,
        precision: str,
        tolerances: Tolerances,
    ) -> None:
        self._form = form
        self._name = name
        self._evidence = evidence
        self._comparison = Comparison(name, evidence.signature, precision, tolerances)
        self._precision = precision
        self._tolerances = tolerances
        self._domain = evidence.domain
        self._edges = 0
        self._beyond: list[str] = []

    def run(self, ends: float) -> SignatureProof:
        """The proof. Raises BackendError, ChildError where the form cannot be loaded again."""
        evidence, maker = self._evidence, self._evidence.maker
        for number, case in enumerate(evidence.cases):
            if number >= _ENOUGH_CASES and time.monotonic() > ends:
                self._domain &= FINITE
                break
            if case.without is not None:
                self._try_beyond(number, case, case.without)
                continue
            try:
                answer = self._form.run(self._name, case.inputs, _CALL_SECONDS)
            except BackendError as error:
                failure = f"it refuses what TensorFlow answers, {case.label}: {error.message}"
                return self._comparison.proof(maker.refused, failure=failure)
            except ChildError as error:
                return self._comparison.proof(maker.refused, failure=f"on {case.label}, {error}")
            noise = self._noise(number, case, answer) if case.hard else evidence.noise[number]
            self._comparison.add(case.label, case.outputs, answer, case.recorded, noise)
            if self._comparison.difference:
                return self._comparison.proof(maker.refused)
        for refused in evidence.refused:
            self._try_refused(refused)
        on_refused = ""
        if maker.refused_example is not None:
            # A form that such a request kills would go down with the first client that sends one.
            try:
                self._form.run(self._name, maker.refused_example, _CALL_SECONDS)
                on_refused = "answered"
            except BackendError:
                on_refused = "refused"
            except ChildError as error:
                return self._comparison.proof(maker.refused, "died", f"on inputs that TensorFlow refuses, {error}")
        proof = self._comparison.proof(maker.refused, on_refused)
        return dataclasses.replace(
            proof, edges=self._edges, domain=self._domain, beyond=tuple(self._beyond[:_MAX_BEYOND])
        )

    def _try_beyond(self, number: int, case: Case, without: Domain) -> None:
        """A case that only tells for which inputs the form is proven."""
        if self._domain & without == self._domain:
            return  # it is not proven for such inputs anyway
        self._edges += 1
        try:
            answer = self._form.run(self._name, case.inputs, _HARD_CALL_SECONDS)
        except BackendError as error:
            self._leave_out(without, f"it refuses what TensorFlow answers, {case.label}: {error.message}")
            return
        except ChildError as error:
            self._leave_out(without, f"on {case.label}, {error}")
            return
        if wrong := self._difference(case, answer, self._noise(number, case, answer)):
            self._leave_out(without, wrong)

    def _try_refused(self, refused: Refused) -> None:
        if self._domain & refused.without == self._domain:
            return
        try:
            self._form.run(self._name, refused.inputs, _HARD_CALL_SECONDS)
            self._leave_out(refused.without, f"it answers what TensorFlow refuses, {refused.label}")
        except BackendError:
            pass
        except ChildError as error:
            self._leave_out(refused.without, f"on {refused.label}, which TensorFlow refuses, {error}")

    def _noise(self, number: int, case: Case, answer: Mapping[str, np.ndarray]) -> Mapping[str, float]:
        """By how much the outputs move with roundings: of a hard case that is measured where it matters only."""
        usual, risk = self._evidence.noise[number], self._evidence.risk
        is_finite = all(array.dtype.kind != "f" or np.all(np.isfinite(array)) for array in case.inputs.values())
        if risk is None or not is_finite or not self._difference(case, answer, usual):
            return usual
        own = moves(case, risk, number, DRAWS)
        return {alias: max(usual.get(alias, 0.0), own.get(alias, 0.0)) for alias in {*usual, *own}}

    def _difference(self, case: Case, answer: Mapping[str, np.ndarray], noise: Mapping[str, float]) -> str:
        alone = Comparison(self._name, self._evidence.signature, self._precision, self._tolerances)
        alone.add(case.label, case.outputs, answer, noise=noise)
        return alone.difference

    def _leave_out(self, without: Domain, why: str) -> None:
        self._domain &= without
        self._beyond.append(why)

"""Carries out a proof: makes the cases by TensorFlow, runs a converted form on them, and has both compared."""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from backends.contract import BackendError, Signature
from backends.domain import FINITE, Domain
from converters.cases import Case, CaseMaker, Inputs, Run
from converters.child import ChildError
from converters.hard_cases import HardCases, Refused
from converters.judging import Judge, Runs
from converters.mutations import within
from converters.narrowing import USUAL, narrowed, open_sizes, tamed
from converters.processes import ModelProcess, Reference
from converters.proof import Comparison
from converters.report import Searched, SignatureProof, Verdict
from converters.roundings import noise_of, with_medians
from converters.search import Search, Suspect
from converters.shrinking import Budget, said, shrunk

__all__ = ["Bounds", "Evidence", "Proof", "gather", "prove"]

_MAX_CASE_BYTES = 512 << 20  # of all cases of a version
_ENOUGH_CASES = 4  # these are run however long they take
# The cases that look for trouble may take half as long as the others, within bounds.
_HARD_SHARE = 0.5
_MIN_HARD_SECONDS = 5.0
_MAX_HARD_SECONDS = 20.0
_SEARCH_SHARE = 0.5
_SHRINK_TRIES = 200
_SHRINK_SECONDS = 2.0
_CALL_SECONDS = 120.0
_SEARCHED = "searched inputs"
_MAX_COUNTEREXAMPLES = 8  # that are kept of a signature
_MAX_BEYOND = 12  # differences that a report tells of


@dataclass(frozen=True, slots=True)
class Evidence:
    """What TensorFlow answers on the cases of one signature. `noise` is, for each case, by
    how much the outputs move with roundings of the inputs. `problem` says why that proves nothing, if it does not.
    `refused` are inputs out of the usual that TensorFlow refuses, and `domain` those that were tried. `risk` runs
    TensorFlow on what may kill it. `numbers` are the graph's own, and `seconds` is how long TensorFlow took. A search
    adds to `counterexamples` on what it found a form to be wrong; each later proof begins its search with them, since
    what one conversion gets wrong by chance of a search, the next may as well."""

    signature: Signature
    cases: tuple[Case, ...]
    maker: CaseMaker
    noise: tuple[Mapping[str, float], ...]
    problem: SignatureProof | None
    refused: tuple[Refused, ...] = ()
    domain: Domain = FINITE
    risk: Run | None = None
    numbers: tuple[float, ...] = ()
    seconds: float = 0.0
    counterexamples: list[Inputs] = field(default_factory=list)


def gather(
    reference: Reference,
    recorded: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
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
        problem = _problem(name, signature, usual, maker, timed.run)
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
            tuple(numbers),
            time.monotonic() - begun,
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
) -> SignatureProof | None:
    """What shows before anything is converted."""
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


def prove(
    load: Callable[[], ModelProcess],
    names: Sequence[str],
    evidence: Mapping[str, Evidence],
    precision: str,
    seconds: float,
    search_seconds: tuple[float, float],
) -> dict[str, SignatureProof]:
    """The proofs of the signatures `names`, by their cases in about `seconds`, and by a search that takes half as long
    as those, within `search_seconds`: at least for each, at most for all. `load` starts the converted form, again where
    it has died. Raises BackendError, ChildError where it cannot be loaded."""
    least, most = search_seconds[0], search_seconds[1] / len(names)
    bounds = Bounds(min(least, most), most)
    found: dict[str, SignatureProof] = {}
    form = _Reloaded(load)
    try:
        for name in names:
            ends = time.monotonic() + seconds / len(names)
            found[name] = Proof(form, name, evidence[name], precision).run(ends, bounds)
    finally:
        form.end()
    return found


class _Reloaded:
    """A form that is started again where it has died."""

    def __init__(self, load: Callable[[], ModelProcess]) -> None:
        self._load = load
        self._form: ModelProcess | None = load()

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


@dataclass(frozen=True, slots=True)
class Bounds:
    """The seconds of a search: half of what the cases took, within these. None where `most` is 0."""

    least: float
    most: float

    def seconds(self, cases: float) -> float:
        return min(self.most, max(self.least, _SEARCH_SHARE * cases))


class Proof:
    """The proof of one signature of a form: what it must be right on, then where it is right besides."""

    def __init__(
        self,
        form: Runs,
        name: str,
        evidence: Evidence,
        precision: str,
    ) -> None:
        signature = evidence.signature
        self._name = name
        self._evidence = evidence
        self._right = [case for case in evidence.cases if case.without is None]
        self._judge = Judge(form, name, signature, evidence.risk, self._right, evidence.noise, precision)
        self._comparison = Comparison(name, signature, precision)
        self._domain = evidence.domain
        self._edges = 0
        self._beyond: list[str] = []
        self._budget: Budget | None = None
        self._searched = Searched()

    def run(self, ends: float, bounds: Bounds = Bounds(0.0, 0.0)) -> SignatureProof:
        """The proof; the cases end at `ends`. Raises BackendError, ChildError where the form cannot be loaded again."""
        begun = time.monotonic()
        maker = self._evidence.maker
        failure = self._cases(ends)
        if failure or self._comparison.difference:
            return self._comparison.proof(maker.refused, failure=failure)
        for refused in self._evidence.refused:
            self._try_refused(refused)
        on_refused = ""
        if maker.refused_example is not None:
            # A form that such a request kills would go down with the first client that sends one.
            try:
                self._judge.answer(maker.refused_example, _CALL_SECONDS)
                on_refused = "answered"
            except BackendError:
                on_refused = "refused"
            except ChildError as error:
                return self._comparison.proof(maker.refused, "died", f"on inputs that TensorFlow refuses, {error}")
        proof = self._comparison.proof(maker.refused, on_refused)
        if proof.verdict is Verdict.PROVEN:
            failure = self._search(bounds.seconds(self._evidence.seconds + time.monotonic() - begun))
            proof = self._comparison.proof(maker.refused, on_refused, failure)
        return dataclasses.replace(
            proof,
            edges=self._edges,
            domain=self._domain,
            beyond=tuple(self._beyond[:_MAX_BEYOND]),
            searched=self._searched,
        )

    def _cases(self, ends: float) -> str:
        """Compares all cases, up to the first difference; how the form failed where it has no answer."""
        evidence = self._evidence
        for number, case in enumerate(evidence.cases):
            if number >= _ENOUGH_CASES and time.monotonic() > ends:
                self._domain &= FINITE
                break
            if case.without is not None:
                self._try_beyond(number, case, case.without)
            else:
                try:
                    answer = self._judge.answer(case.inputs, _CALL_SECONDS)
                except BackendError as error:
                    return f"it refuses what TensorFlow answers, {case.label}: {error.message}"
                except ChildError as error:
                    return f"on {case.label}, {error}"
                usual = evidence.noise[number]
                noise = self._judge.noise(case, answer, usual, number) if case.hard else usual
                self._comparison.add(case.label, case.outputs, answer, case.recorded, noise)
                if self._comparison.difference:
                    _, why = self._smallest(case.inputs, case.label, _budget())
                    self._comparison.difference = why or self._comparison.difference
            if self._comparison.difference:
                break
        return ""

    def _try_beyond(self, number: int, case: Case, without: Domain) -> None:
        """A case that only tells for which inputs the form is proven."""
        if self._domain & without == self._domain:
            return  # it is not proven for such inputs anyway
        self._edges += 1
        try:
            answer = self._judge.answer(case.inputs)
        except BackendError as error:
            self._leave_out(without, f"it refuses what TensorFlow answers, {case.label}: {error.message}")
            return
        except ChildError as error:
            self._leave_out(without, f"on {case.label}, {error}")
            return
        noise = self._judge.noise(case, answer, self._evidence.noise[number], number)
        if wrong := self._judge.difference(case.label, case.outputs, answer, noise):
            self._budget = self._budget or _budget()
            smallest, why = self._smallest(self._tamed(case.inputs, without), case.label, self._budget)
            self._leave_out(without, why or wrong)
            # What is odd about the case need not be what is wrong.
            if why and within(self._domain, self._evidence.signature, smallest) and self._is_wrong(smallest):
                self._comparison.difference = why

    def _try_refused(self, refused: Refused) -> None:
        if self._domain & refused.without == self._domain:
            return
        try:
            self._judge.answer(refused.inputs)
            self._leave_out(refused.without, f"it answers what TensorFlow refuses, {refused.label}")
        except BackendError:
            pass
        except ChildError as error:
            self._leave_out(refused.without, f"on {refused.label}, which TensorFlow refuses, {error}")

    def _search(self, seconds: float) -> str:
        """Searches within the domain so far for inputs on which the form is wrong, and leaves out what can be; how the
        form died, if it did."""
        evidence, signature = self._evidence, self._evidence.signature
        begun = time.monotonic()
        if not seconds or evidence.risk is None:
            return ""
        right = [case.inputs for case in self._right]
        cases = [case for case in evidence.cases if within(self._domain, signature, case.inputs)]
        search = Search(self._judge, cases, evidence.numbers, self._domain, zlib.crc32(self._name.encode()))
        failure = ""
        for suspect in self._suspects(search, begun + seconds):
            if suspect.failure:
                self._remember(suspect.inputs)
                failure = f"on {said(suspect.inputs)}, {suspect.failure}"
                break
            smallest, why = self._smallest(self._tamed(suspect.inputs, USUAL), _SEARCHED, _budget())
            without = narrowed(signature, smallest, right)
            if without is not None and (tame := self._tamed(smallest, without)) is not smallest:
                # What seemed to be odd about them is not what is wrong.
                smallest, why = self._smallest(tame, _SEARCHED, _budget())
                without = narrowed(signature, smallest, right)
            self._remember(smallest)
            why = why or f"it differs on {said(smallest)}, from {_SEARCHED}"
            if without is None:
                self._comparison.difference = why
                break
            self._leave_out(without, why)
            search.narrow(self._domain)
        worst = said(search.worst_row) if search.worst_row else ""
        took = time.monotonic() - begun
        self._searched = Searched(search.tried, took, search.worst, worst, search.explained)
        return failure

    def _suspects(self, search: Search, ends: float) -> Iterator[Suspect]:
        """What other forms of this job were wrong on, if this one is as well, and then what the search finds."""
        for inputs in tuple(self._evidence.counterexamples):
            if within(self._domain, self._evidence.signature, inputs) and (known := search.again(inputs)) is not None:
                yield known
        while (suspect := search.run(ends)) is not None:
            yield suspect

    def _remember(self, inputs: Inputs) -> None:
        known = self._evidence.counterexamples
        is_known = any(all(np.array_equal(each[alias], inputs[alias]) for alias in inputs) for each in known)
        if len(known) < _MAX_COUNTEREXAMPLES and not is_known:
            known.append(inputs)

    def _tamed(self, inputs: Inputs, domain: Domain) -> Inputs:
        """The inputs without what lies outside of `domain`, if the form is wrong on them still."""
        tame = tamed(self._evidence.signature, inputs, domain)
        return tame if self._is_wrong(tame) else inputs

    def _smallest(self, inputs: Inputs, label: str, budget: Budget) -> tuple[Inputs, str]:
        """The smallest inputs found on which the form differs still, and how; "" where it does no longer."""
        is_wrong = self._is_wrong(inputs)

        def differs(found: Inputs) -> bool:
            # Where it is wrong beyond what it is proven for is known.
            if not within(self._domain, self._evidence.signature, found):
                return False
            return self._is_wrong(found) if is_wrong else bool(self._differs(found))

        sizes = open_sizes(self._evidence.signature, [case.inputs for case in self._right])
        smallest = shrunk(self._evidence.signature, inputs, differs, budget, min(sizes, default=1))
        return smallest, self._differs(smallest, f"{said(smallest)}, the smallest input that was found from {label}")

    def _is_wrong(self, inputs: Inputs) -> bool:
        try:
            return self._judge.is_wrong(inputs)
        except ChildError:
            return False

    def _differs(self, inputs: Inputs, label: str = "") -> str:
        try:
            return self._judge.differs(inputs, label)
        except ChildError:
            return ""

    def _leave_out(self, without: Domain, why: str) -> None:
        self._domain &= without
        self._beyond.append(why)


def _budget() -> Budget:
    return Budget(_SHRINK_TRIES, _SHRINK_SECONDS)

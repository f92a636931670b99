"""Carry out a proof: run a form on the cases, then search for inputs on which it differs from TensorFlow."""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backends.contract import BackendError
from backends.domain import FINITE, Domain
from converters.cases import Case, Inputs
from converters.child import ChildError
from converters.evidence import ENOUGH_CASES, Evidence
from converters.hard_cases import Refused
from converters.judging import Judge, Runs
from converters.mutations import within
from converters.narrowing import USUAL, largest_of, narrowed, open_sizes, tamed
from converters.processes import ModelProcess
from converters.report import Searched, SignatureProof, Verdict
from converters.search import Search, Suspect
from converters.shrinking import Budget, said, shrunk

__all__ = ["Bounds", "Proof", "prove"]

_SEARCH_SHARE = 0.5
_SHRINK_TRIES = 200
_SHRINK_SECONDS = 2.0
_CALL_SECONDS = 120.0
_SEARCHED = "searched inputs"
_ENOUGH_INPUTS = 2000
_MORE_SECONDS = 1.0
_MAX_COUNTEREXAMPLES = 8  # that are kept of a signature
_MAX_BEYOND = 12  # differences that a report tells of


def prove(
    load: Callable[[], ModelProcess],
    names: Sequence[str],
    evidence: Mapping[str, Evidence],
    precision: str,
    seconds: float,
    search_seconds: tuple[float, float],
) -> dict[str, SignatureProof]:
    """Return the proofs of the signatures `names` of a form.

    The cases take about `seconds`. The search of each signature takes half as long as its cases, at least
    `search_seconds[0]`; those of all signatures take at most `search_seconds[1]`. `load` starts the form, and again
    after it has died. Raise BackendError, ChildError if it cannot be loaded.
    """
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
    """A form that is started again after it has died."""

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
    """The least and the most seconds of a search, which takes half as long as the cases did. 0 at most: no search."""

    least: float
    most: float

    def seconds(self, cases: float) -> float:
        return min(self.most, max(self.least, _SEARCH_SHARE * cases))


class Proof:
    """The proof of one signature of a form. On usual inputs the form must be right. The proof finds out which others it
    is right on too: its domain."""

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
        self._judge = Judge(
            form, name, signature, evidence.risk, self._right, evidence.noise, precision, evidence.risk_moved
        )
        self._comparison = self._judge.comparison()
        self._domain = evidence.domain
        self._edges = 0
        self._beyond: list[str] = []
        self._budget: Budget | None = None
        self._searched = Searched()

    def run(self, ends: float, bounds: Bounds = Bounds(0.0, 0.0)) -> SignatureProof:
        """Return the proof. No case begins after `ends` (monotonic clock), but the first few. Raise BackendError,
        ChildError if the form has died and cannot be loaded again."""
        begun = time.monotonic()
        maker = self._evidence.maker
        failure = self._cases(ends)
        if failure or self._comparison.difference:
            return self._comparison.proof(maker.refused, failure=failure)
        for refused in self._evidence.refused:
            self._try_refused(refused)
        on_refused = ""
        if maker.refused_example is not None:
            # A form that dies of such inputs would die of the first client's request that has some.
            try:
                self._judge.answer(maker.refused_example, _CALL_SECONDS)
                on_refused = "answered"
            except BackendError:
                on_refused = "refused"
            except ChildError as error:
                return self._comparison.proof(maker.refused, "died", f"on inputs that TensorFlow refuses, {error}")
        proof = self._comparison.proof(maker.refused, on_refused)
        if proof.verdict is Verdict.PROVEN:
            failure = self._search(bounds.seconds(self._evidence.seconds + time.monotonic() - begun), bounds.most)
            proof = self._comparison.proof(maker.refused, on_refused, failure)
        return dataclasses.replace(
            proof,
            edges=self._edges,
            domain=self._domain,
            beyond=tuple(self._beyond[:_MAX_BEYOND]),
            searched=self._searched,
        )

    def _cases(self, ends: float) -> str:
        """Compare all cases, up to the first difference. Return how the form failed if it gives no answer, else ""."""
        evidence = self._evidence
        for number, case in enumerate(evidence.cases):
            if number >= ENOUGH_CASES and time.monotonic() > ends:
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
                noise = self._judge.noise(case, answer, evidence.noise[number], number)
                self._comparison.add(case.label, case.outputs, answer, case.recorded, noise)
                if self._comparison.difference and self._judge.is_explained(case, answer):
                    self._comparison.difference = ""
                if self._comparison.difference:
                    _, why = self._smallest(case.inputs, case.label, _budget())
                    self._comparison.difference = why or self._comparison.difference
            if self._comparison.difference:
                break
        return ""

    def _try_beyond(self, number: int, case: Case, without: Domain) -> None:
        """Try a case outside of `without`. If the form is wrong on it, the form is proven for `without` only."""
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
            # The form may be wrong on the smaller inputs for another reason, within its domain.
            if why and within(self._domain, self._evidence.signature, smallest) and self._is_wrong(smallest):
                self._comparison.difference = why

    def _try_refused(self, refused: Refused) -> None:
        without = refused.without or largest_of(case.inputs for case in self._right)
        if self._domain & without == self._domain or within(without, self._evidence.signature, refused.inputs):
            return
        try:
            self._judge.answer(refused.inputs)
            self._leave_out(without, f"it answers what TensorFlow refuses, {refused.label}")
        except BackendError:
            pass
        except ChildError as error:
            self._leave_out(without, f"on {refused.label}, which TensorFlow refuses, {error}")

    def _search(self, seconds: float, most: float) -> str:
        """Search for inputs within the domain so far on which the form is wrong, and narrow the domain to leave them
        out, if possible. Return how the form died, "" if it did not."""
        evidence, signature = self._evidence, self._evidence.signature
        begun = time.monotonic()
        if not seconds or evidence.risk is None:
            return ""
        right = [case.inputs for case in self._right]
        cases = [case for case in evidence.cases if within(self._domain, signature, case.inputs)]
        search = Search(self._judge, cases, evidence.numbers, self._domain, zlib.crc32(self._name.encode()))
        failure = ""
        for suspect in self._suspects(search, begun, begun + seconds, begun + most):
            if suspect.failure:
                self._remember(suspect.inputs)
                failure = f"on {said(suspect.inputs)}, {suspect.failure}"
                break
            smallest, why = self._smallest(self._tamed(suspect.inputs, USUAL), _SEARCHED, _budget())
            without = narrowed(signature, smallest, right)
            if without is not None and (tame := self._tamed(smallest, without)) is not smallest:
                # The form is wrong on tamer inputs too: these tell better what it is wrong on.
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

    def _suspects(self, search: Search, begun: float, ends: float, last: float) -> Iterator[Suspect]:
        """Yield inputs on which other forms of this job were wrong, if this one is too; then what the search finds. If
        it has tried few inputs by `ends`, as on a busy machine, it goes on until `last`, unless those are few too."""
        for inputs in tuple(self._evidence.counterexamples):
            if within(self._domain, self._evidence.signature, inputs) and (known := search.again(inputs)) is not None:
                yield known
        while True:
            while (suspect := search.run(ends)) is not None:
                yield suspect
            now = time.monotonic()
            if search.tried >= _ENOUGH_INPUTS or now < ends or now >= last:  # before its end, it cannot go on
                return
            if 0 < search.tried * (last - begun) < _ENOUGH_INPUTS * (now - begun):  # a large model, probably
                return
            ends = min(last, now + _MORE_SECONDS)

    def _remember(self, inputs: Inputs) -> None:
        known = self._evidence.counterexamples
        is_known = any(all(np.array_equal(each[alias], inputs[alias]) for alias in inputs) for each in known)
        if len(known) < _MAX_COUNTEREXAMPLES and not is_known:
            known.append(inputs)

    def _tamed(self, inputs: Inputs, domain: Domain) -> Inputs:
        """Return the inputs brought into `domain` if the form is still wrong on them, else `inputs`."""
        tame = tamed(self._evidence.signature, inputs, domain)
        return tame if self._is_wrong(tame) else inputs

    def _smallest(self, inputs: Inputs, label: str, budget: Budget) -> tuple[Inputs, str]:
        """Return the smallest inputs found on which the form still differs, and how it differs, "" if it does not."""
        is_wrong = self._is_wrong(inputs)

        def differs(found: Inputs) -> bool:
            # It is already known that the form is wrong outside of its domain.
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

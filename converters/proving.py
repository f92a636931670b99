"""Carries out a proof: makes the cases by TensorFlow, runs a converted form on them, and has both compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backends.contract import BackendError, Signature
from converters.cases import Case, CaseMaker, Run
from converters.child import ChildError
from converters.forms import Form, Reference
from converters.proof import Comparison, relative_moves
from converters.report import SignatureProof, Verdict
from converters.tolerances import Tolerances

__all__ = ["Evidence", "gather", "prove"]

_MAX_CASE_BYTES = 512 << 20  # of all cases of a version
_NOISE_DRAWS = 2
_ENOUGH_CASES = 4  # these are run however long they take


@dataclass(frozen=True, slots=True)
class Evidence:
    """What TensorFlow answers on the cases of one signature. `noise` is, for each case, by
    how much the outputs move with roundings of the inputs. `problem` says why that proves nothing, if it does not."""

    signature: Signature
    cases: tuple[Case, ...]
    maker: CaseMaker
    noise: tuple[Mapping[str, float], ...]
    problem: SignatureProof | None


def gather(
    reference: Reference,
    recorded: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    tolerances: Tolerances,
    seconds: float,
) -> dict[str, Evidence]:
    """The evidence of each signature that TensorFlow serves, in about `seconds`. Raises ChildError."""
    found = {}
    nbytes = 0
    for index, (name, signature) in enumerate(reference.signatures.items()):
        ends = time.monotonic() + seconds / len(reference.signatures)
        share = _MAX_CASE_BYTES * (index + 1) // len(reference.signatures)

        def run(inputs: Mapping[str, np.ndarray], name: str = name) -> dict[str, np.ndarray]:
            return reference.run(name, inputs)

        maker = CaseMaker(signature, run, recorded.get(name, ()))
        cases: list[Case] = []
        for case in maker.cases():
            cases.append(case)
            nbytes += sum(array.nbytes for side in (case.inputs, case.outputs) for array in side.values())
            if nbytes > share or (len(cases) >= _ENOUGH_CASES and time.monotonic() > ends):
                break
        problem = _problem(name, signature, cases, maker, run, tolerances)
        noise = () if problem is not None else _noise(cases, run, ends + seconds / len(reference.signatures))
        found[name] = Evidence(signature, tuple(cases), maker, noise, problem)
    return found


def _noise(cases: Sequence[Case], run: Run, ends: float) -> tuple[dict[str, float], ...]:
    """For each case, by how much each output moves at most when each input of floats moves by one rounding, up or down.

    A few draws may miss how sensitive a case is, so it is taken to be as sensitive as half of the cases, at least.
    """
    found: list[dict[str, float]] = []
    for index, case in enumerate(cases):
        own: dict[str, float] = {}
        has_floats = any(array.dtype.kind == "f" for array in case.inputs.values())
        for draw in range(_NOISE_DRAWS if has_floats and time.monotonic() < ends else 0):
            random = np.random.default_rng([index, draw])
            try:
                outputs = run({alias: _rounded(array, random) for alias, array in case.inputs.items()})
            except BackendError:
                continue
            for alias, move in relative_moves(case.outputs, outputs).items():
                own[alias] = max(own.get(alias, 0.0), move)
        found.append(own)
    medians = {
        alias: float(np.median([own[alias] for own in found if alias in own]))
        for alias in {alias for own in found for alias in own}
    }
    return tuple({alias: max(own.get(alias, 0.0), median) for alias, median in medians.items()} for own in found)


def _rounded(array: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each float moved by one unit in the last place: its own, or that of the array's root mean square (1 where all are
    0) where that is larger. A zero has none to speak of, but the layers that follow round all the same."""
    if array.dtype.kind != "f":
        return array
    wide = array.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    typical = float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0
    steps = np.maximum(np.abs(wide), typical or 1.0) * np.finfo(array.dtype).eps
    moved: np.ndarray = (wide + np.where(random.random(array.shape) < 0.5, -steps, steps)).astype(array.dtype)
    return moved


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
    form = load()
    try:
        for name in names:
            ends = time.monotonic() + seconds / len(names)
            proof, is_dead = _prove(
                form,
                name,
                evidence[name],
                Comparison(name, evidence[name].signature, precision, tolerances),
                ends,
            )
            found[name] = proof
            if is_dead:
                form = load()
    finally:
        form.__exit__()
    return found


def _prove(
    form: Form, name: str, evidence: Evidence, comparison: Comparison, ends: float
) -> tuple[SignatureProof, bool]:
    """The proof, and whether the form has died of it."""
    maker = evidence.maker
    for number, case in enumerate(evidence.cases):
        if number >= _ENOUGH_CASES and time.monotonic() > ends:
            break
        try:
            answer = form.run(name, case.inputs)
            comparison.add(case.label, case.outputs, answer, case.recorded, evidence.noise[number])
        except BackendError as error:
            failure = f"it refuses what TensorFlow answers, {case.label}: {error.message}"
            return comparison.proof(maker.refused, failure=failure), False
        except ChildError as error:
            return comparison.proof(maker.refused, failure=f"on {case.label}, {error}"), True
        if comparison.difference:
            return comparison.proof(maker.refused), False
    on_refused = ""
    if maker.refused_example is not None:
        # A form that such a request kills would go down with the first client that sends one.
        try:
            form.run(name, maker.refused_example)
            on_refused = "answered"
        except BackendError:
            on_refused = "refused"
        except ChildError as error:
            return comparison.proof(maker.refused, "died", f"on inputs that TensorFlow refuses, {error}"), True
    return comparison.proof(maker.refused, on_refused), False

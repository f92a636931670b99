"""Run a TensorFlow Lite model by LiteRT, as TensorFlow Serving does: a pool of interpreters, one request on each.

Only worker processes import this module, because it imports LiteRT. It never imports TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from backends.contract import BackendError, Code, IncompleteError, Signature
from backends.default_values import default_arrays
from backends.form import FormDescription, FormSignature, is_form, read_form
from backends.interpreter_pool import InterpreterPool
from backends.litert_interpreters import Slot, new_pool, plan_memory, refusing
from backends.litert_plans import Declared, Mapped, Plan
from backends.litert_signatures import UnsupportedError, plan_of_file, plans_of
from backends.request_checks import check_outputs, complete, not_found
from backends.tflite_model import FILE, read, signatures_in_metadata


def load(path: str, intra_op_threads: int = 0, interpreters: int = 0) -> LiteRTBackend:
    """Load `model.tflite` in the folder `path`, or the converted model that is there.

    At most `interpreters` (0: one for each core) run at once of each file, each on `intra_op_threads` threads (0: one).
    Raise BackendError if LiteRT refuses the model.
    """
    size = interpreters or len(os.sched_getaffinity(0))
    try:
        if is_form(path, FILE):
            return _load_form(path, read_form(path), intra_op_threads or 1, size)
        return _load_model(path, intra_op_threads or 1, size)
    except IncompleteError as error:  # it was complete a moment ago
        raise BackendError(Code.FAILED_PRECONDITION, f"cannot load {path}: {error}") from error
    except BackendError as error:
        raise BackendError(error.code, f"cannot load {path}: {error.message}") from error


def _load_model(path: str, threads: int, size: int) -> LiteRTBackend:
    content = read(path)
    pool = new_pool(content, threads, size, falls_back=True)
    remark = plan_memory(pool)
    with refusing(Code.INTERNAL), pool.borrow() as slot:
        plans, unsupported = plans_of(slot.instance().interpreter, signatures_in_metadata(content))
    if not plans:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unsupported.items())
        raise BackendError(Code.UNIMPLEMENTED, f"no signature of it can be served: {reasons}")
    return LiteRTBackend(dict.fromkeys(plans, pool), plans, unsupported, [remark] if remark else [])


def _load_form(path: str, form: FormDescription, threads: int, size: int) -> LiteRTBackend:
    """Load a converted model: the signatures of the SavedModel share the interpreters of their files."""
    if form.format != "tflite":
        raise BackendError(Code.INVALID_ARGUMENT, f"it is converted to {form.format}, not to tflite")
    by_file: dict[str, tuple[InterpreterPool[Slot], Plan]] = {}
    pools: dict[str, InterpreterPool[Slot]] = {}
    plans: dict[str, Plan] = {}
    remarks: list[str] = []
    for name, entry in sorted(form.signatures.items()):
        if entry.file not in by_file:
            pool = new_pool(read(path, entry.file), threads, size, falls_back=False)
            if remark := plan_memory(pool):
                remarks.append(f"{entry.file}: {remark}")
            try:
                with refusing(Code.INTERNAL), pool.borrow() as slot:
                    by_file[entry.file] = pool, plan_of_file(slot.instance().interpreter)
            except UnsupportedError as error:
                raise BackendError(Code.UNIMPLEMENTED, f"{entry.file} cannot be served: {error}") from error
        pools[name], plan = by_file[entry.file]
        plans[name] = _mapped(name, entry, plan)
    return LiteRTBackend(pools, plans, form.unsupported, remarks)


def _mapped(name: str, entry: FormSignature, plan: Plan) -> Mapped:
    """Return the plan of a converted signature. Raise BackendError if signature and file do not match."""

    def mismatch(why: str) -> BackendError:
        return BackendError(Code.INVALID_ARGUMENT, f"its signature {name!r} does not fit {entry.file}: {why}")

    signature = entry.signature
    for specs, names, found, what in (
        (signature.inputs, entry.inputs, plan.signature.inputs, "input"),
        (signature.outputs, entry.outputs, plan.signature.outputs, "output"),
    ):
        for alias, inner in names.items():
            if inner not in found:
                raise mismatch(f"its {what} {alias!r} is {inner!r} there, which it has not")
            if found[inner].dtype != specs[alias].dtype:
                raise mismatch(f"its {what} {alias!r} is {specs[alias].dtype}, there {found[inner].dtype}")
    if missing := sorted(plan.signature.inputs.keys() - set(entry.inputs.values())):
        raise mismatch(f"nothing is given to the inputs {missing} there")
    return Mapped(
        plan,
        signature,
        {
            alias: Declared(plan.declared[inner].shape, strict=signature.inputs[alias].shape is not None)
            for alias, inner in entry.inputs.items()
        },
        entry.inputs,
        entry.outputs,
        default_arrays(signature),
    )


class LiteRTBackend:
    """A TensorFlow Lite model; see `load`. Implements `backends.contract.Backend`, `Placed` and `Partial`.

    `signatures` are those that can be served; `unsupported` says why each other one is not.
    """

    device = "cpu"

    def __init__(
        self,
        pools: Mapping[str, InterpreterPool[Slot]],
        plans: Mapping[str, Plan],
        unsupported: Mapping[str, str],
        remarks: Sequence[str],
    ) -> None:
        self.signatures: dict[str, Signature] = {name: plan.signature for name, plan in plans.items()}
        self.unsupported = dict(unsupported)
        self.remarks = tuple(remarks)
        self._pools = dict(pools)
        self._plans = dict(plans)

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Run `signature`; see `Backend.run`.

        Shapes may differ from the signature's as far as `Declared.check` allows; the interpreter is resized to them.
        """
        plan = self._plans.get(signature)
        if plan is None:
            raise not_found(signature, self.unsupported)
        inputs = complete(signature, plan.signature, inputs, plan.defaults)
        check_outputs(plan.signature, outputs)
        for name, declared in plan.declared.items():
            declared.check(name, inputs[name].shape)
        with refusing(), self._pools[signature].borrow() as slot:
            return slot.run(plan, inputs, outputs)

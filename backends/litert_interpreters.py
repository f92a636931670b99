"""LiteRT's interpreters: how they are made, lent out and planned, and what their errors mean.

An interpreter plans its memory for the shapes of its inputs: for made-up sizes while the model loads, later for those
of each request that has other shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from backends.contract import BackendError, Code
from backends.error_texts import has_in_order, shortened
from backends.interpreter_pool import InterpreterPool

__all__ = ["Instance", "Slot", "new_pool", "plan_memory", "refusing"]

_POOL_SECONDS = 60.0

# For sizes that a model leaves open: an image needs some pixels, and audio may need a second at 16 kHz.
_TRIED_SIZES = (1, 8, 32, 128, 256, 1024, 16_000)
_MAX_TRIED_ELEMENTS = 1 << 20  # of one input, so that trying large sizes does not take much memory

_MAX_REFUSED_SHAPES = 1024  # the most that are remembered

_DELEGATE = "TfLiteXNNPackDelegate"
# LiteRT appends the failed operator without a space in between.
_NODE = re.compile(r"(?<=\S)(?=Node number \d+ \()")
_NO_OPERATOR = re.compile(r"unresolved custom op|Select TensorFlow op")
# Element types are checked before LiteRT sees a request, so if a kernel lacks one, the model needs it.
_NO_TYPE = [
    [re.compile(part, re.IGNORECASE) for part in parts]
    for parts in (
        (r"\btypes?\b", r"\bunsupported"),
        (r"\btypes?\b", r"\bnot\b", r"\bsupported"),
        (r"(\bunsupported|\bnot support|n't support)\b", r"\btypes?\b"),
    )
]
_NO_KERNEL = re.compile(r"Didn't find op for builtin|builtin_code out of range")
_NO_VALUE = re.compile(r"\((READ_VARIABLE|HASHTABLE_FIND|HASHTABLE_SIZE)\) failed")


class Run(Protocol):
    """The part of a plan that a slot needs (see `backends.litert_plans.Plan`)."""

    def run(self, instance: Instance, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]: ...


class Instance:
    """An interpreter, and the runners made from it. For one thread at a time."""

    def __init__(self, content: bytes, threads: int, *, plain: bool) -> None:
        self.interpreter = Interpreter(
            model_content=content,
            num_threads=threads,
            experimental_op_resolver_type=(
                OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if plain else OpResolverType.AUTO
            ),
        )
        self._runners: dict[str, Any] = {}

    def runner(self, key: str) -> Any:
        """Return the runner of the signature `key`."""
        if key not in self._runners:
            self._runners[key] = self.interpreter.get_signature_runner(key)
        return self._runners[key]

    def without_runners(self) -> Interpreter:
        """Return the interpreter for direct use, which it refuses while a runner refers to it."""
        self._runners.clear()
        return self.interpreter

    def shapes(self) -> dict[int, list[int]]:
        """Return the shapes of the first graph's inputs by tensor number, with -1 for each unknown size.

        Empty if LiteRT does not report them.
        """
        try:
            details = self.interpreter.get_input_details()
        except ValueError:  # an element type that NumPy lacks: see `backends.litert_signatures._details_of`
            return {}
        return {detail["index"]: [int(size) for size in detail["shape_signature"]] for detail in details}

    def allocate(self, shapes: Mapping[int, Sequence[int]]) -> None:
        """Plan memory for inputs of these shapes."""
        for index, shape in shapes.items():
            self.interpreter.resize_tensor_input(index, shape)
        self.interpreter.allocate_tensors()


@dataclass(frozen=True, slots=True)
class _File:
    """A model file, and what its interpreters have learned.

    `falls_back`: see `new_pool`. `refused_shapes` are the shapes of inputs that XNNPACK refused and LiteRT's own
    kernels accepted.
    """

    content: bytes
    threads: int
    falls_back: bool
    refused_shapes: set[tuple[tuple[str, tuple[int, ...]], ...]] = field(default_factory=set)

    def instance(self, *, plain: bool) -> Instance:
        """Return an interpreter of the file; `plain`: without XNNPACK."""
        return Instance(self.content, self.threads, plain=plain)


class Slot:
    """What a pool lends: an interpreter with XNNPACK and, once a request has needed it, one without."""

    def __init__(self, file: _File) -> None:
        self.falls_back = file.falls_back
        self._file = file
        self._with_xnnpack: Instance | None = None
        self._plain: Instance | None = None

    def instance(self, *, plain: bool = False) -> Instance:
        """Return the slot's interpreter, made at the first call; `plain`: the one without XNNPACK."""
        if plain:
            if self._plain is None:
                self._plain = self._file.instance(plain=True)
            return self._plain
        if self._with_xnnpack is None:
            self._with_xnnpack = self._file.instance(plain=False)
        return self._with_xnnpack

    def run(self, plan: Run, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Run `plan`, by LiteRT's own kernels if XNNPACK refuses the shapes and the file `falls_back`.

        For some shapes these have an answer, such as no frames for audio that is shorter than a window. If they refuse
        too, their error is raised.
        """
        refused = self._file.refused_shapes
        if not refused or _shapes(inputs) not in refused:
            try:
                return plan.run(self.instance(), inputs, outputs)
            except RuntimeError as error:
                if not self.falls_back or _DELEGATE not in str(error):
                    raise
                # It is half-planned, and LiteRT 2.3 would repeat its message in the next error.
                self._with_xnnpack = None
        results = plan.run(self.instance(plain=True), inputs, outputs)
        if len(refused) < _MAX_REFUSED_SHAPES:
            refused.add(_shapes(inputs))
        return results


def _shapes(inputs: Mapping[str, np.ndarray]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, array.shape) for name, array in inputs.items())


def new_pool(content: bytes, threads: int, size: int, *, falls_back: bool) -> InterpreterPool[Slot]:
    """Return a pool of at most `size` interpreters of one file, each on `threads` threads.

    They share the weights of the file; each has its own tensors and packed weights. One that has failed is dropped.

    `falls_back`: if XNNPACK refuses a request's shapes, LiteRT's own kernels run it. Set it to false for a converted
    SavedModel: its proof did not try these kernels, and TensorFlow itself answers what the file refuses.
    """
    file = _File(content, threads, falls_back)
    return InterpreterPool(lambda: Slot(file), size, _POOL_SECONDS)


def plan_memory(pool: InterpreterPool[Slot]) -> str:
    """Have an interpreter plan its memory, to find models that LiteRT cannot run before the first request.

    Sizes that the model leaves open are made up. Return "", or a remark if LiteRT can plan none of them and the first
    request's shapes decide. Raise BackendError if no request could ever run, because an operator is missing, or LiteRT
    fails although all sizes are known.
    """
    with refusing(Code.INTERNAL), pool.borrow() as slot:
        shapes = slot.instance().shapes()
        kinds = (False, True) if slot.falls_back else (False,)
    tried = _made_shapes(shapes)
    refusal: BackendError | None = None
    for plain in kinds:
        for made in tried:
            try:
                with refusing(Code.INTERNAL), pool.borrow() as slot:
                    slot.instance(plain=plain).allocate(made)
            except BackendError as error:
                if error.code is Code.UNIMPLEMENTED:
                    raise
                refusal = error  # the last one comes from LiteRT's own kernels, whose message is clearer
            else:
                return ""
    assert refusal is not None  # at least one is always tried
    if not any(map(_is_open, shapes.values())):
        raise refusal
    sizes = ", ".join(map(str, _TRIED_SIZES[: len(tried)]))
    return (
        f"LiteRT could plan its memory with none of the sizes {sizes} for what the model leaves open; the shapes of "
        f"the first request decide whether it runs. It said: {refusal.message}"
    )


def _is_open(shape: Sequence[int]) -> bool:
    """Return whether a request may have other sizes. If all are 1, early converters meant unknown sizes."""
    return -1 in shape or set(shape) == {1}


def _made_shapes(shapes: Mapping[int, Sequence[int]]) -> list[dict[int, list[int]]]:
    """Return sets of shapes to try, one for each of the first _TRIED_SIZES: batch 1, that size for other open ones."""
    made: list[dict[int, list[int]]] = []
    for size in _TRIED_SIZES:
        found = {index: _made_shape(shape, size) for index, shape in shapes.items() if -1 in shape}
        if made and (found == made[-1] or any(math.prod(shape) > _MAX_TRIED_ELEMENTS for shape in found.values())):
            break
        made.append(found)
    return made


def _made_shape(shape: Sequence[int], size: int) -> list[int]:
    rest = [size if known < 0 else known for known in shape]
    return rest if len(shape) < 2 or shape[0] >= 0 else [1, *rest[1:]]


@contextmanager
def refusing(code: Code = Code.INVALID_ARGUMENT) -> Iterator[None]:
    """Raise LiteRT's exceptions as BackendError, with `code` unless their message says whose fault it is."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        text = " ".join(_NODE.sub("; ", shortened(str(error))).split())
        raise BackendError(_code(text) or code, _with_remedy(text)) from error
    except MemoryError as error:
        raise BackendError(Code.RESOURCE_EXHAUSTED, "there is not enough memory for these inputs") from error


def _code(text: str) -> Code | None:
    """Return the code of an error that is the model's or the server's fault; None if it may be the input's."""
    if _NO_OPERATOR.search(text) or _NO_KERNEL.search(text) or any(has_in_order(text, *parts) for parts in _NO_TYPE):
        return Code.UNIMPLEMENTED
    if _NO_VALUE.search(text):
        return Code.FAILED_PRECONDITION
    return None


def _with_remedy(text: str) -> str:
    if _NO_OPERATOR.search(text):
        return (
            f"{text} (LiteRT lacks this operator: convert with tf.lite.OpsSet.TFLITE_BUILTINS, or serve the SavedModel)"
        )
    return text

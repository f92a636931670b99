"""Runs Classify, Regress and MultiInference for every protocol: from the examples to the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from appliance.core.routes import VersionRoute
from appliance.core.servable import ModelSpec
from appliance.inference.accounting import Exchange
from appliance.inference.pipeline import Pipeline
from appliance.inference.reservation import Reservation
from appliance.inference.runs import Run
from appliance.protocols.classify_regress import INPUTS, Method, Result, Task, TaskPlan, WhyNot, result_of, task, tasks
from appliance.protocols.example_inputs import Examples
from appliance.protocols.example_messages import (
    decode_multi_request,
    decode_request,
    encode_multi_response,
    encode_response,
)
from appliance.transport.wire import pack_arrays
from backends.contract import Signature

__all__ = ["Done", "Inference"]

_VALUE_BYTES = 200  # of a label or score while it is written: Python's objects for it (150 are usual), and its text


class Done(NamedTuple):
    """The version that answered, and its results in the order of the tasks."""

    model: str
    version: int
    tasks: tuple[Task, ...]
    results: list[Result]


@dataclass(frozen=True, slots=True)
class Inference:
    """Runs these methods for one front.

    Examples take at most `max_bytes` once the context has been copied into each of them.
    """

    pipeline: Pipeline
    check_method_name: bool
    max_bytes: int
    on_examples: Callable[[str, int], None] = lambda _model, _count: None  # called with the number of answered examples

    async def classify_or_regress(
        self, data: bytes, method: Method, exchange: Exchange, reserved: Reservation, deadline_ns: int
    ) -> bytes:
        """Answer a serialized ClassificationRequest or RegressionRequest with a serialized response.

        `deadline_ns` is in CLOCK_MONOTONIC nanoseconds. Raise ServingError.
        """
        request = decode_request(data)
        exchange.model = request.spec.model
        plan = self.plan(method, request.signature_name)
        done = await self.run(request.spec, plan, request.examples, reserved, deadline_ns)
        return encode_response(done.model, done.version, done.tasks[0], done.results[0])

    async def multi_inference(self, data: bytes, exchange: Exchange, reserved: Reservation, deadline_ns: int) -> bytes:
        """Answer a serialized MultiInferenceRequest with a serialized response. Raise ServingError.

        `deadline_ns` is in CLOCK_MONOTONIC nanoseconds.
        """
        request = decode_multi_request(data)
        exchange.model = request.spec.model

        def plan(signatures: Mapping[str, Signature], why_not: WhyNot) -> tuple[Task, ...]:
            return tasks(request.wanted, signatures, self.check_method_name, why_not)

        done = await self.run(request.spec, plan, request.examples, reserved, deadline_ns)
        return encode_multi_response(done.model, done.version, done.tasks, done.results)

    def plan(self, method: Method, signature_name: str) -> TaskPlan:
        """Return the plan of a request with one task."""

        def plan(signatures: Mapping[str, Signature], why_not: WhyNot) -> tuple[Task, ...]:
            return (task(method, signature_name, signatures, self.check_method_name, why_not),)

        return plan

    async def run(
        self, spec: ModelSpec, plan: TaskPlan, examples: Examples, reserved: Reservation, deadline_ns: int
    ) -> Done:
        """Run all tasks that `plan` returns for the version that `spec` asks for, on that version.

        The bytes that the context adds to the examples are added to `reserved`, and what the results take while they
        are written. `deadline_ns` is in CLOCK_MONOTONIC nanoseconds. Raise ServingError.
        """
        inputs: dict[str, np.ndarray] = {}
        planned: tuple[Task, ...] = ()

        def check(version: VersionRoute) -> Sequence[Run]:
            nonlocal planned
            planned = plan(version.signatures, version.why_not)
            if not inputs:
                examples.check(self.max_bytes)
                reserved.add(len(examples.context) * len(examples.examples))
                inputs[INPUTS] = examples.array()
            packed = pack_arrays(inputs.items())  # the same for all tasks
            return [Run(one.signature_name, inputs, one.outputs, packed) for one in planned]

        answered = await self.pipeline.run(spec, check, deadline_ns)
        reserved.add_answer(
            _VALUE_BYTES * sum([array.size for arrays in answered.outputs for array in arrays.values()])
        )
        count = len(examples.examples)
        results = [result_of(one, arrays, count) for one, arrays in zip(planned, answered.outputs, strict=True)]
        self.on_examples(answered.model, count)
        return Done(answered.model, answered.version, planned, results)

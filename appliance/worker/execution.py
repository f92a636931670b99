"""Runs the requests that a queue has given, alone or merged, and answers each. It has no queue and no thread."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from appliance.transport.wire import parse_predict_meta, unpack_arrays
from appliance.worker.batching import Entry
from appliance.worker.clients import Client, Request
from appliance.worker.merging import Call, Merging, Outcome, joined
from appliance.worker.run_record import RunRecord
from appliance.worker.sampling import Sampler
from backends.contract import BackendError, Code

__all__ = ["Execution"]


class Execution:
    """Runs requests in the thread that calls it, and notes in `record` what runs.

    With `is_batching` (`enable_batching`) a single request too may be padded, or be a part of a larger one.
    `on_sent(client, done)` is called after each answer; it is not `done` if the client's socket had no room for all.
    `sampler` looks at what has run once the answers are sent.
    """

    def __init__(
        self,
        merging: Merging,
        record: RunRecord,
        is_batching: bool,
        on_sent: Callable[[Client, bool], None],
        sampler: Sampler | None = None,
    ) -> None:
        self._merging = merging
        self._record = record
        self._is_batching = is_batching
        self._on_sent = on_sent
        self._sampler = sampler
        self._lock = threading.Lock()  # guards `parts` and `unfinished` of split requests

    def run(self, work: Sequence[Entry[Request]], row: int) -> None:
        """Run what was taken together and answer each request of it. `row` is the calling thread's, of the record."""
        if not self._is_batching and len(work) == 1:
            self._run_one(work[0], row)
            return
        signature = ""
        outputs: Sequence[str] = ()
        wanted: list[Entry[Request]] = []
        calls: list[Call] = []
        for entry in work:
            if entry.stop is None:
                entry.item.client.pending.pop(entry.item.request_id, None)
            try:
                _check_wanted(entry)
                # Equal for all: the queue gives only requests together that agree in them.
                signature, outputs, table = parse_predict_meta(entry.item.meta)
                calls.append(_call(entry, unpack_arrays(table, entry.item.payload)))
                wanted.append(entry)
            except Exception as error:  # noqa: BLE001 - the loop of this thread: one request must not end it
                self._end(entry, outputs, error)
        if not self._record.merges:
            for entry, call in zip(wanted, calls, strict=True):
                self._end(entry, outputs, self._run_calls(row, signature, outputs, [call])[0])
        elif calls:
            self._end_all(wanted, outputs, self._run_calls(row, signature, outputs, calls))
        if self._sampler is not None:
            self._sampler.look()

    def _run_calls(self, row: int, signature: str, outputs: Sequence[str], calls: Sequence[Call]) -> list[Outcome]:
        """Run `calls` together, and return what came of each."""
        numbers = [self._record.number_of(signature, call.inputs) for call in calls]
        inputs = calls[0].inputs if len(calls) == 1 else None
        kinds = set(numbers)
        is_alone = self._record.is_watching and self._record.watch(row, kinds, inputs)
        self._record.begin_together(row, kinds)
        try:
            outcomes = self._merging.run(signature, outputs, calls)
            for number, outcome in zip(numbers, outcomes, strict=True):
                if not isinstance(outcome, Exception):
                    self._record.answered(number)
        finally:
            self._record.end_together(row)
            if is_alone:
                self._record.unwatch()
        return outcomes

    def _run_one(self, entry: Entry[Request], row: int) -> None:
        """Run and answer one request without batching.

        Almost all requests come this way, so it is written out: the calls that `run` makes would cost time.
        """
        request = entry.item
        request.client.pending.pop(request.request_id, None)
        try:
            _check_wanted(entry)
            signature, outputs, table = parse_predict_meta(request.meta)
            inputs = unpack_arrays(table, request.payload)
            record = self._record
            number = record.number_of(signature, inputs)
            is_alone = record.is_watching and record.watch(row, (number,), inputs)
            record.begin(row, number)
            try:
                arrays = self._merging.execute(signature, outputs, inputs)
                record.answered(number)
            finally:
                record.end(row)
                if is_alone:
                    record.unwatch()
            self._on_sent(request.client, request.answer(list(zip(outputs, arrays, strict=True))))
        except Exception as error:  # noqa: BLE001 - the loop of this thread: one request must not end it
            self._on_sent(request.client, request.fail(error))
        if self._sampler is not None:
            self._sampler.look()

    def _end_all(self, entries: Sequence[Entry[Request]], outputs: Sequence[str], outcomes: Sequence[Outcome]) -> None:
        """Answer the requests that ran together, and each client's small results by one call."""
        frames: dict[Client, list[bytes]] = {}
        for entry, outcome in zip(entries, outcomes, strict=True):
            frame = None
            if entry.stop is None and not isinstance(outcome, Exception):
                with contextlib.suppress(Exception):  # `_end` meets it again, and answers it
                    frame = entry.item.small_frame(list(zip(outputs, outcome, strict=True)))
            if frame is None:
                self._end(entry, outputs, outcome)
            else:
                frames.setdefault(entry.item.client, []).append(frame)
        for client, its_frames in frames.items():
            self._on_sent(client, client.send_frames(its_frames))

    def _end(self, entry: Entry[Request], outputs: Sequence[str], outcome: Outcome) -> None:
        """Answer the request; if `entry` is a part of it, once the outcomes of all parts are there."""
        request = entry.item
        if entry.stop is not None:
            with self._lock:
                request.parts[entry.start] = outcome
                request.unfinished -= entry.stop - entry.start
                if request.unfinished:
                    return
            request.client.pending.pop(request.request_id, None)
            outcome = joined([request.parts[start] for start in sorted(request.parts)])
        if isinstance(outcome, Exception):
            self._on_sent(request.client, request.fail(outcome))
            return
        try:
            self._on_sent(request.client, request.answer(list(zip(outputs, outcome, strict=True))))
        except Exception as error:  # noqa: BLE001 - the loop of this thread: one request must not end it
            self._on_sent(request.client, request.fail(error))


def _check_wanted(entry: Entry[Request]) -> None:
    """Raise BackendError if the request need not run any more."""
    if entry.item.cancelled:
        raise BackendError(Code.CANCELLED, "nobody waits for this request any more")
    if entry.deadline_ns and time.monotonic_ns() > entry.deadline_ns:
        raise BackendError(Code.DEADLINE_EXCEEDED, "the deadline passed while the request waited")


def _call(entry: Entry[Request], inputs: dict[str, np.ndarray]) -> Call:
    """Return the call of `entry`: all rows of the request's `inputs`, or those of its part."""
    if entry.stop is not None:
        part = slice(entry.start, entry.stop)
        return Call({name: array[part] for name, array in inputs.items()}, entry.stop - entry.start)
    assert entry.item.extent is not None  # a request without one is never merged
    return Call(inputs, entry.item.extent.rows)

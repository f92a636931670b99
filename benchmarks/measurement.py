"""What a run of load measures, and the clockwork that every load generator shares.

A generator counts the answers that arrive between the end of its warm-up and the end of its window. It keeps the
distinct answers, which the parent checks afterwards: checking in the generator would cost the servers' CPU time.
"""

import base64
import dataclasses
import json
import statistics
import time
from typing import Self

MAX_DISTINCT = 64  # batching and threads change the last bits of floats, so right answers may differ; but not widely


@dataclasses.dataclass(slots=True)
class Measurement:
    """One window. Latencies in milliseconds; `errors` are requests without an answer, by message."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    requests: int
    errors: dict[str, int] = dataclasses.field(default_factory=dict)
    answers: dict[str, int] = dataclasses.field(default_factory=dict)  # base64 → how often
    unchecked: int = 0  # answers beyond MAX_DISTINCT distinct ones

    @property
    def failures(self) -> int:
        """Requests that got no answer, or one that nobody checked."""
        return sum(self.errors.values()) + self.unchecked

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of to_json."""
        return cls(**json.loads(text))


class Recorder:
    """Collects the answers of one window. Not for several threads."""

    def __init__(self, warmup_seconds: float, seconds: float) -> None:
        self.opens = time.perf_counter() + warmup_seconds
        self.closes = self.opens + seconds
        self._seconds = seconds
        self._latencies: list[float] = []
        self._answers: dict[bytes, int] = {}
        self._errors: dict[str, int] = {}
        self._unchecked = 0

    def is_over(self, now: float) -> bool:
        """Whether a generator should stop sending."""
        return now >= self.closes

    def add_answer(self, sent: float, now: float, answer: bytes) -> None:
        """An answer to a request sent at `sent`; those outside the window are checked but not counted."""
        if self.opens <= now < self.closes:
            self._latencies.append(now - sent)
        if answer in self._answers:
            self._answers[answer] += 1
        elif len(self._answers) < MAX_DISTINCT:
            self._answers[answer] = 1
        else:
            self._unchecked += 1

    def add_error(self, message: str) -> None:
        """A request that failed, in the warm-up too: a server must not fail there either."""
        self._errors[message] = self._errors.get(message, 0) + 1

    def summarize(self) -> Measurement:
        """The figures of the window."""
        ordered = sorted(self._latencies)
        return Measurement(
            requests_per_second=len(ordered) / self._seconds,
            p50_ms=1e3 * pick_quantile(ordered, 0.50),
            p99_ms=1e3 * pick_quantile(ordered, 0.99),
            requests=len(ordered),
            errors=self._errors,
            answers={base64.b64encode(answer).decode(): count for answer, count in self._answers.items()},
            unchecked=self._unchecked,
        )


def pick_quantile(ordered: list[float], share: float) -> float:
    """The nearest-rank quantile of a sorted list; nan where nothing was measured."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def take_medians(repeats: list[Measurement]) -> Measurement:
    """The median of each figure over the repeats; errors add up."""
    errors: dict[str, int] = {}
    for repeat in repeats:
        for message, count in repeat.errors.items():
            errors[message] = errors.get(message, 0) + count
    return Measurement(
        requests_per_second=statistics.median(r.requests_per_second for r in repeats),
        p50_ms=statistics.median(r.p50_ms for r in repeats),
        p99_ms=statistics.median(r.p99_ms for r in repeats),
        requests=sum(r.requests for r in repeats),
        errors=errors,
        unchecked=sum(r.unchecked for r in repeats),
    )

"""What the kernel tells of threads, of real processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from appliance.host.activity import threads_of
from tests.support.server import eventually


@contextmanager
def child(work: Callable[[], object]) -> Iterator[int]:
    """A process that does `work` again and again."""
    pid = os.fork()
    if pid == 0:
        while True:
            work()
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_process_that_sleeps_is_told_from_one_that_is_stopped() -> None:
    with child(signal.pause) as pid:
        eventually(lambda: [thread.state for thread in threads_of(pid).values()] == ["S"], "it sleeps")
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: [thread.state for thread in threads_of(pid).values()] == ["T"], "it is stopped")


def test_a_process_that_computes_runs_or_waits_for_a_processor() -> None:
    with child(lambda: sum(range(1000))) as pid:
        before = time.monotonic()

        def busy_seconds() -> float:
            return sum(thread.ran + thread.waited for thread in threads_of(pid).values())

        eventually(lambda: busy_seconds() > 0.2, "it has run")
        assert busy_seconds() < time.monotonic() - before + 1.0, "in seconds"


def test_each_thread_is_told_of() -> None:
    over = threading.Event()
    threads = [threading.Thread(target=over.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert {thread.native_id for thread in threads} < threads_of("self").keys()
    over.set()


def test_a_process_that_is_gone_has_no_threads() -> None:
    with child(signal.pause) as pid:
        pass
    assert threads_of(pid) == {}

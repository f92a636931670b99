"""The supervisor's metrics: its own counters, and the folding of files of processes that have ended."""

from __future__ import annotations

import asyncio
import logging

from appliance.metrics.catalogue import (
    DEMOTIONS,
    HANGS,
    LOG_LINES_DROPPED,
    SIGNATURES,
    VERIFIED,
    WORKER_RESTARTS,
    is_passing,
)
from appliance.metrics.file import MetricsFileError, fold
from appliance.metrics.recording import Recorder

__all__ = ["MetricsKeeper"]

logger = logging.getLogger(__name__)

# A process releases its file a little after its sockets, and one fold serves many processes that end together.
_FOLD_DELAY_SECONDS = 0.5


class MetricsKeeper:
    """Keeps the metrics in the supervisor's event loop."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._recorder = Recorder(directory, "supervisor")
        self._wanted = False
        self._folding = False

    def worker_restarted(self, model: str) -> None:
        """Count a worker that died while it served."""
        self._recorder.counter(WORKER_RESTARTS, model).add()

    def lines_dropped(self, model: str, lines: int) -> None:
        """Count lines that workers of a model have printed beyond what is logged."""
        self._recorder.counter(LOG_LINES_DROPPED, model).add(lines)

    def hung(self, role: str) -> None:
        """Count a process that was killed because it hung."""
        self._recorder.counter(HANGS, role).add()

    def signature(self, model: str, outcome: str) -> None:
        """Count a signature that was verified; `outcome` is "valid", "missing" or "invalid"."""
        self._recorder.counter(SIGNATURES, model, outcome).add()

    def demoted(self, model: str) -> None:
        """Count a form that was given up."""
        self._recorder.counter(DEMOTIONS, model).add()

    def verified(self, model: str, outcome: str, requests: int) -> None:
        """Count requests that were verified, or should have been; `outcome` is "equal", "different" or "unjudged"."""
        if requests:
            self._recorder.counter(VERIFIED, model, outcome).add(requests)

    async def fold(self) -> None:
        """Fold the files of ended processes; call it when a process has ended. A call during another one joins it."""
        self._wanted = True
        if self._folding:
            return
        self._folding = True
        try:
            while self._wanted:
                await asyncio.sleep(_FOLD_DELAY_SECONDS)
                self._wanted = False
                await asyncio.to_thread(fold, self._directory, is_passing)
        except (OSError, MetricsFileError) as error:
            logger.warning("metrics of processes that ended stay in files of their own: %s", error)
        finally:
            self._folding = False

"""What the supervisor does for the metrics: its own, and the files of processes that have ended."""

from __future__ import annotations

import asyncio
import logging

from appliance.metrics.catalogue import DEMOTIONS, WORKER_RESTARTS, is_passing
from appliance.metrics.file import MetricsFileError, fold
from appliance.metrics.recording import Recorder

__all__ = ["MetricsKeeper"]

logger = logging.getLogger(__name__)

# A process lets go of its file a little after its sockets; and many that end at once are one fold.
_FOLD_DELAY_SECONDS = 0.5


class MetricsKeeper:
    """Lives in the supervisor's event loop."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._recorder = Recorder(directory, "supervisor")
        self._wanted = False
        self._folding = False

    def worker_restarted(self, model: str) -> None:
        self._recorder.counter(WORKER_RESTARTS, model).add()

    def demoted(self, model: str) -> None:
        self._recorder.counter(DEMOTIONS, model).add()

    async def fold(self) -> None:
        """Takes in what processes that have ended left; called when one has. One call at a time does it for all."""
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

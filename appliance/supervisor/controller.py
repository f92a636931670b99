"""The one place that tells the manager what has happened, and has carried out what it decides."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from appliance.core.servable import ServableId
from appliance.lifecycle.actions import Action, DrainWorker, KillWorker, StartWorker, StateChange
from appliance.lifecycle.manager import Manager

__all__ = ["Controller", "Effects", "Event"]

logger = logging.getLogger(__name__)

Event = Callable[[Manager, float], Iterable[Action] | None]
"""Tell the manager something, at a time in monotonic seconds; return what it wants done."""


class Effects(Protocol):
    """What carries decisions out. Nothing here waits."""

    def start_worker(self, action: StartWorker) -> None: ...
    def kill_worker(self, number: int) -> None: ...
    def drain_worker(self, number: int) -> None: ...
    def restarting(self, servable: ServableId) -> None:
        """A worker that served has died."""

    def demoted(self, servable: ServableId, why: str, lasting: bool) -> None:
        """A form is given up."""

    def decided(self) -> None:
        """Something may have changed: routes are to be published, and what is due next is to be looked at."""


class Controller:
    """Others ask `manager` what they like, and change it by `post` alone."""

    def __init__(self, manager: Manager, effects: Effects) -> None:
        self.manager = manager
        self._effects = effects
        self._stopped = False

    def stop(self) -> None:
        """Carry nothing out any more: workers end because they are told to, and none is started again."""
        self._stopped = True

    def post(self, event: Event, lasting: bool = True) -> None:
        """Tell the manager of `event`, and carry out what follows. If it gives up a form, `lasting` says that this has
        only itself to blame: it is not trusted after a restart either."""
        actions = event(self.manager, time.monotonic()) or ()
        if self._stopped:
            return
        for change in self.manager.take_changes():
            _log(change)
            if (change.old, change.new) == ("available", "restarting"):
                self._effects.restarting(change.servable)
        for given_up in self.manager.take_demotions():
            self._effects.demoted(given_up.servable, given_up.why, lasting and given_up.is_failure)
        for action in actions:
            match action:
                case StartWorker():
                    self._effects.start_worker(action)
                case KillWorker(number):
                    self._effects.kill_worker(number)
                case DrainWorker(number):
                    self._effects.drain_worker(number)
        self._effects.decided()


def _log(change: StateChange) -> None:
    is_warning = change.is_warning or change.new in ("failed", "restarting")
    text = f"{change.servable}: {change.new}" + (f": {change.reason}" if change.reason else "")
    fields = {
        "model": change.servable.model,
        "version": change.servable.version,
        "state": change.new,
        "old_state": change.old,
        "reason": change.reason,
    }
    logger.log(logging.WARNING if is_warning else logging.INFO, text, extra={"fields": fields})

"""Effects of the supervisor's controller that carry nothing out."""

from __future__ import annotations

from appliance.core.servable import ServableId
from appliance.lifecycle.actions import StartWorker


class Effects:
    """Notes which workers were to be started, and for which versions a worker was said to have died."""

    def __init__(self) -> None:
        self.started: list[StartWorker] = []
        self.died: list[ServableId] = []

    def start_worker(self, action: StartWorker) -> None:
        self.started.append(action)

    def kill_worker(self, number: int) -> None: ...
    def drain_worker(self, number: int) -> None: ...
    def restarting(self, servable: ServableId) -> None:
        self.died.append(servable)

    def demoted(self, servable: ServableId, why: str, lasting: bool) -> None: ...
    def decided(self) -> None: ...

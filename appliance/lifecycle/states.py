"""The states of one version, and the moves between them. An illegal move raises and changes nothing."""

from __future__ import annotations

from enum import Enum

from appliance.core.servable import PublicState


class State(Enum):
    """Where a version stands."""

    SETTLING = "settling"  # seen; its files still change, or are not all there
    LOADING = "loading"  # a worker inspects, loads and warms it
    AVAILABLE = "available"  # it is routed
    RESTARTING = "restarting"  # it was available; its worker died, and the next one loads or waits for its back-off
    DRAINING = "draining"  # unrouted; its worker ends what it has accepted
    FAILED = "failed"  # an error before it was available; retried, or waiting for its files to change
    ENDED = "ended"  # unloaded, because the version is no longer wanted


class Event(Enum):
    """What happens to a version."""

    LOAD = "load"
    INCOMPLETE = "incomplete"
    READY = "ready"
    LOAD_FAILED = "load failed"
    WORKER_DIED = "worker died"
    DRAIN = "drain"
    WORKER_ENDED = "worker ended"
    FILES_CHANGED = "files changed"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.SETTLING, Event.LOAD): State.LOADING,
    (State.SETTLING, Event.FILES_CHANGED): State.SETTLING,
    (State.LOADING, Event.INCOMPLETE): State.SETTLING,
    (State.LOADING, Event.READY): State.AVAILABLE,
    (State.LOADING, Event.LOAD_FAILED): State.FAILED,
    (State.LOADING, Event.DRAIN): State.DRAINING,
    (State.LOADING, Event.FILES_CHANGED): State.SETTLING,
    (State.AVAILABLE, Event.WORKER_DIED): State.RESTARTING,
    (State.AVAILABLE, Event.DRAIN): State.DRAINING,
    (State.RESTARTING, Event.READY): State.AVAILABLE,
    (State.RESTARTING, Event.LOAD_FAILED): State.RESTARTING,
    (State.RESTARTING, Event.DRAIN): State.DRAINING,
    (State.RESTARTING, Event.FILES_CHANGED): State.SETTLING,
    (State.DRAINING, Event.WORKER_ENDED): State.ENDED,
    (State.FAILED, Event.LOAD): State.LOADING,
    (State.FAILED, Event.FILES_CHANGED): State.SETTLING,
    (State.ENDED, Event.LOAD): State.LOADING,
    (State.ENDED, Event.FILES_CHANGED): State.SETTLING,
}

PUBLIC: dict[State, PublicState] = {
    State.SETTLING: PublicState.START,
    State.LOADING: PublicState.LOADING,
    State.AVAILABLE: PublicState.AVAILABLE,
    State.RESTARTING: PublicState.LOADING,
    State.DRAINING: PublicState.UNLOADING,
    State.FAILED: PublicState.END,
    State.ENDED: PublicState.END,
}


class IllegalTransitionError(Exception):
    """An event that cannot happen in a state."""


def transition(state: State, event: Event) -> State:
    """Return the state after `event`. Raises IllegalTransitionError if the table has no such move."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransitionError(f"{event.value!r} cannot happen to a version that is {state.value}") from None

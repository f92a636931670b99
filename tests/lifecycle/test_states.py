"""Every state and every event: the moves of the table happen, all others raise."""

from __future__ import annotations

import pytest

from appliance.core.servable import PublicState
from appliance.lifecycle.states import PUBLIC, TRANSITIONS, Event, IllegalTransitionError, State, transition

# Written out a second time, on purpose: a change of the table is a change of behaviour.
LEGAL = {
    (State.SETTLING, Event.LOAD, State.LOADING),
    (State.SETTLING, Event.FILES_CHANGED, State.SETTLING),
    (State.LOADING, Event.INCOMPLETE, State.SETTLING),
    (State.LOADING, Event.READY, State.AVAILABLE),
    (State.LOADING, Event.LOAD_FAILED, State.FAILED),
    (State.LOADING, Event.DRAIN, State.DRAINING),
    (State.LOADING, Event.FILES_CHANGED, State.SETTLING),
    (State.AVAILABLE, Event.WORKER_DIED, State.RESTARTING),
    (State.AVAILABLE, Event.DRAIN, State.DRAINING),
    (State.RESTARTING, Event.READY, State.AVAILABLE),
    (State.RESTARTING, Event.LOAD_FAILED, State.RESTARTING),
    (State.RESTARTING, Event.DRAIN, State.DRAINING),
    (State.RESTARTING, Event.FILES_CHANGED, State.SETTLING),
    (State.DRAINING, Event.WORKER_ENDED, State.ENDED),
    (State.FAILED, Event.LOAD, State.LOADING),
    (State.FAILED, Event.FILES_CHANGED, State.SETTLING),
    (State.ENDED, Event.LOAD, State.LOADING),
    (State.ENDED, Event.FILES_CHANGED, State.SETTLING),
}
ILLEGAL = [(s, e) for s in State for e in Event if not any((s, e) == move[:2] for move in LEGAL)]


@pytest.mark.parametrize(("state", "event", "after"), sorted(LEGAL, key=str))
def test_a_legal_event_moves_the_version(state: State, event: Event, after: State) -> None:
    assert transition(state, event) is after


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_an_illegal_event_raises_and_changes_nothing(state: State, event: Event) -> None:
    before = dict(TRANSITIONS)
    with pytest.raises(IllegalTransitionError, match=f"{event.value}.*{state.value}"):
        transition(state, event)
    assert before == TRANSITIONS


def test_every_state_can_be_reached_from_settling_and_ends_when_it_is_no_longer_wanted() -> None:
    reached, frontier = {State.SETTLING}, [State.SETTLING]
    while frontier:
        state = frontier.pop()
        for before, event in TRANSITIONS:
            after = TRANSITIONS[before, event]
            if before is state and after not in reached:
                reached.add(after)
                frontier.append(after)
    assert reached == set(State)
    for state in (State.LOADING, State.AVAILABLE, State.RESTARTING):
        assert transition(transition(state, Event.DRAIN), Event.WORKER_ENDED) is State.ENDED


def test_a_version_becomes_available_only_by_a_ready_worker() -> None:
    assert {event for (_, event), after in TRANSITIONS.items() if after is State.AVAILABLE} == {Event.READY}


def test_every_state_has_a_state_that_clients_see_and_only_available_is_available() -> None:
    assert set(PUBLIC) == set(State)
    assert [state for state, public in PUBLIC.items() if public is PublicState.AVAILABLE] == [State.AVAILABLE]

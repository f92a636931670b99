"""The lead of a worker's threads, and runs that keep it."""

from __future__ import annotations

import threading

from appliance.worker.lead import Lead

SECONDS = 30.0


def watched(look_seconds: float) -> Lead:
    lead = Lead(look_seconds)
    threading.Thread(target=lead.watch, daemon=True).start()
    return lead


def other_takes(lead: Lead) -> threading.Event:
    """Has another thread wait for the lead; the event tells that it leads."""
    leads = threading.Event()
    threading.Thread(target=lambda: (lead.take(), leads.set()), daemon=True).start()
    return leads


def test_a_run_that_ends_in_time_keeps_the_lead() -> None:
    lead = watched(3600.0)
    lead.take()
    other = other_takes(lead)
    for _ in range(100):
        lead.begin_run()
        assert lead.end_run()
    assert not other.is_set()
    lead.give_up()
    assert other.wait(SECONDS)


def test_a_run_that_goes_on_loses_the_lead_each_time() -> None:
    lead = watched(0.002)
    lead.take()
    for _ in range(5):
        other = other_takes(lead)
        lead.begin_run()
        assert other.wait(SECONDS)
        assert not lead.end_run()
        # The caller goes on as the other thread, which leads now.

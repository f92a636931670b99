"""Judges versions: whether one that has loaded takes over, and whether one that keeps dying gives way. Pure."""

from __future__ import annotations

from appliance.config.version_policy import Latest
from appliance.core.errors import Code
from appliance.lifecycle.models import Model, Version
from appliance.lifecycle.release import Refusal, doubts, refusal, signature_changes
from appliance.lifecycle.replicas import Loaded
from appliance.lifecycle.states import State
from appliance.lifecycle.wanted import wanted

_DEATHS = 3  # within crash_window_seconds, after which a version gives way


def judge(model: Model, version: Version, loaded: Loaded) -> tuple[Refusal | None, tuple[str, ...]]:
    """Return why what `version` has `loaded` must not serve (None if it may), and remarks for its operator. A version
    that serves already is judged as one from another folder would be; so is one that has served other files, if no
    other version serves."""
    serving = model.in_state(State.AVAILABLE, State.RESTARTING)
    before = version if version.id.version in serving else _predecessor(model, version)
    if before is None and version.has_served_others:
        before = version
    changes = () if before is None else signature_changes(before.signatures, loaded.signatures)
    told = ""
    if before is not None and changes:
        told = f"its signatures differ from those of version {before.id.version}: {'; '.join(changes)}"
        # An older version is the way back, and a version that stays keeps its clients: neither is a reason to refuse.
        stays = before is not version and before.id.version in wanted(model).aspired
        is_older = before.id.version > version.id.version
        if model.rules.refuse_signature_changes and not stays and not is_older:
            reason = f"{told}; signature_changes = refuse forbids it"
            return Refusal(Code.FAILED_PRECONDITION, reason, is_final=True), ()
    refused = refusal(loaded.trials, model.rules.gate, bool(serving), loaded.unsupported)
    return refused, (*([told] if told else []), *doubts(loaded.trials or {}))


def _predecessor(model: Model, version: Version) -> Version | None:
    """Return the version whose clients `version` gets when it becomes available, or None if it gets none."""
    others = [n for n in model.in_state(State.AVAILABLE) if n != version.id.version]
    if not others:
        return None
    newest = max(others)
    stays = newest > version.id.version and newest in wanted(model).aspired
    return None if stays else model.versions[newest]


def note_death(model: Model, version: Version, how: str) -> str:
    """Count that the worker of a version that has been served died, or did not come up again. The time that it takes to
    load does not count.

    Return why the version is given up, or "" if it is not: another one must be there to take its place, and nothing may
    ask for this one by its number.
    """
    window = model.rules.crash_window_seconds
    service = version.service
    served = service.seconds
    service.deaths = [*(death for death in service.deaths if served - death <= window), served][-_DEATHS:]
    if len(service.deaths) < _DEATHS or not window or not isinstance(model.policy, Latest):
        return ""
    number = version.id.version
    older = [other for n, other in model.versions.items() if n < number and other.is_loadable]
    if all(other.service.given_up for other in older) or number in model.labels.values():
        return ""
    return (
        f"its worker died {_DEATHS} times within {served - service.deaths[0]:.0f} s of service, the last time: {how}; "
        "it is loaded again when its files change"
    )

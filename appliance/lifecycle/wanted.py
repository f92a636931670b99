"""Which versions of a model are to be served, and which may go: functions of what the manager knows. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.config.version_policy import Latest, aspired_versions, surplus_versions
from appliance.lifecycle.models import Model
from appliance.lifecycle.states import State


@dataclass(frozen=True, slots=True)
class Wanted:
    """The numbers of the versions to serve (`aspired`), to have a worker (`loaded`), and to unload (`surplus`)."""

    aspired: frozenset[int]
    loaded: frozenset[int]
    surplus: frozenset[int]


def wanted(model: Model) -> Wanted:
    """Return what is to become of each version, from what its folder and its worker are like now."""
    versions = model.versions
    present = {number for number, version in versions.items() if version.present}
    loadable = {number for number, version in versions.items() if version.is_loadable}
    # One that died again and again counts only if there is no other, or if it is asked for by its number.
    reliable = loadable
    if isinstance(model.policy, Latest):
        reliable = {number for number in loadable if not versions[number].service.given_up} or loadable
    retriable = {n for n in model.in_state(State.FAILED) if versions[n].present and versions[n].retry_at is not None}
    labelled = frozenset() if model.removed else model.labelled
    aspired = aspired_versions(model.policy, reliable) | (labelled & loadable)
    hoped_for = aspired_versions(model.policy, reliable | retriable) | (labelled & retriable)
    available, restarting = model.in_state(State.AVAILABLE), model.in_state(State.RESTARTING)
    surplus = surplus_versions(aspired, available | (restarting - aspired))
    if aspired & available:
        surplus |= {number for number in available if not versions[number].present}
    elif not aspired and (aspired_versions(model.policy, present) | (labelled & present)):
        # Those that are asked for still settle, or have failed: what serves stays, also if its own folder is gone (a
        # base path that is a link was switched to another release).
        surplus = frozenset()
    # An old version that crashes while the new one loads is started again: it is all that there is to serve.
    return Wanted(aspired, aspired | hoped_for | (restarting - surplus), surplus)

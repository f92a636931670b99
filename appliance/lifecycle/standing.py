"""How far a model has come with what its configuration asks for: what a reload answers."""

from __future__ import annotations

from enum import Enum

from appliance.config.version_policy import Specific, aspired_versions
from appliance.lifecycle.models import Model
from appliance.lifecycle.states import State


class Standing(Enum):
    PENDING = "pending"  # a look at its folder, a load or a label is still to come
    LIVE = "live"
    FAILED = "failed"  # nothing that is under way will bring what was asked for


def standing(model: Model, is_waiting: bool) -> tuple[Standing, str]:
    """Return how the model stands, and the reason if it is not LIVE. `is_waiting`: it waits for its turn to load."""
    versions = model.versions
    available = model.in_state(State.AVAILABLE)
    if not model.seen:
        return Standing.PENDING, f"{model.base_path} has not been looked at yet"
    present = {number: version for number, version in versions.items() if version.present}
    for number, version in sorted(present.items()):
        if version.state in (State.LOADING, State.RESTARTING) or (
            version.second is not None and version.second.files != version.files
        ):
            return Standing.PENDING, f"version {number} is loading"
    if is_waiting:
        return Standing.PENDING, "it waits for other models to load"
    specific = model.policy.versions if isinstance(model.policy, Specific) else frozenset[int]()
    needed = set(specific | model.labelled)
    if not available:
        needed |= aspired_versions(model.policy, present)
    coming = {n for n in needed & present.keys() if present[n].state is State.SETTLING}
    if coming:
        number = min(coming)
        return Standing.PENDING, f"version {number} is settling: {versions[number].reason}"
    # The model was removed and configured again: its files are looked at after its old worker has ended.
    ending = {n for n in needed & present.keys() if present[n].is_coming_back}
    if ending:
        number = min(ending)
        return Standing.PENDING, f"version {number} is {versions[number].state.value}, and is loaded again after that"
    for number in sorted(needed - available):
        label = next((label for label, v in model.labels.items() if v == number), None)
        what = f"version {number}" if label is None else f"version {number} (label {label})"
        if number not in present:
            return Standing.FAILED, f"{what} is not under {model.base_path}"
        return Standing.FAILED, f"{what} is {versions[number].state.value}: {versions[number].reason}"
    moved = [version for number, version in sorted(present.items()) if number in available and version.reason]
    if moved:
        return Standing.FAILED, f"version {moved[0].id.version} is {moved[0].reason}"
    if not available:
        return Standing.FAILED, model.reason or f"there is no version under {model.base_path}"
    return Standing.LIVE, ""

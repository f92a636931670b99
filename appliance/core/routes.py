"""The models as the fronts know them: an immutable snapshot, replaced as a whole. It travels by `route_updates`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.core.errors import Code, ServingError
from appliance.core.poison import Refused
from appliance.core.servable import ModelSpec, PublicState
from backends.contract import Signature

_NAMED = 5  # the most failed models that a summary names


@dataclass(frozen=True, slots=True)
class VersionRoute:
    """One version: its state and, if it is AVAILABLE, its worker's socket and its signatures.

    `state` is the detailed state ("settling"), `public_state` TensorFlow Serving's. `reason` says why the version is
    not available yet or any more; "" if there is nothing to say.
    """

    version: int
    state: str
    public_state: PublicState
    code: Code = Code.OK
    reason: str = ""
    socket_path: str = ""
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    form_backend: str = ""  # the backend of the form that serves; "" if the model itself serves
    remarks: tuple[str, ...] = ()  # warnings for the operator about an available version
    unsupported: Mapping[str, str] = field(default_factory=dict)  # the signatures that are not served → why not
    refused: tuple[Refused, ...] = ()  # requests that have ended its process
    confined_by: tuple[str, ...] = ()  # what confines its process, such as seccomp
    has_changed: bool = False  # its files are not those that it was loaded from any more

    @property
    def available(self) -> bool:
        """Whether clients may use the version."""
        return self.public_state is PublicState.AVAILABLE

    def why_not(self, signature: str) -> str:
        """Return why a signature of the model is not served, to append to an error; "" if it is served or unknown."""
        reason = self.unsupported.get(signature)
        return "" if reason is None else f"the model has it, but it cannot be served: {reason}"


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """One model: its versions, newest first, its labels, and what is wrong with its folder, if anything."""

    name: str
    versions: tuple[VersionRoute, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    base_path: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All models at one moment.

    `ready` is what /readyz answers. `serial` grows with each snapshot. `ended` has the most recently unloaded versions
    by model name; the model itself may be gone too.
    """

    serial: int = 0
    ready: bool = False
    models: Mapping[str, ModelRoute] = field(default_factory=dict)
    ended: Mapping[str, tuple[VersionRoute, ...]] = field(default_factory=dict)

    def summary(self) -> str:
        """Return the number of available, failed and waiting models as text.

        A model without an available version has failed if one of its versions has failed or its folder has a problem.
        """
        available = {name for name, model in self.models.items() if any(v.available for v in model.versions)}
        failed = [
            name
            for name, model in self.models.items()
            if name not in available
            and (model.reason or any(v.state in ("failed", "restarting") for v in model.versions))
        ]
        named = f" ({', '.join(failed[:_NAMED])}{', ...' if len(failed) > _NAMED else ''})" if failed else ""
        waiting = len(self.models) - len(available) - len(failed)
        more = f", {waiting} not loaded yet" if waiting else ""
        return f"models: {len(available)} available, {len(failed)} failed{named}{more}"

    def status(self, spec: ModelSpec) -> list[VersionRoute]:
        """Return the versions that a status request asks for, newest first, unloaded ones included.

        Without a version number these are all versions; a label is ignored. Raise NOT_FOUND, in TensorFlow Serving's
        words, if there are none.
        """
        model = self.models.get(spec.model)
        known = (*self.ended.get(spec.model, ()), *(() if model is None else model.versions))
        versions = {version.version: version for version in known if spec.version in (None, version.version)}
        if not versions:
            wanted = "any versions" if spec.version is None else f"version {spec.version}"
            remedy = ""
            if model is not None:
                remedy = model.reason or "GET /v1/models lists all models with their states"
            raise ServingError(Code.NOT_FOUND, f"Could not find {wanted} of model {spec.model}", remedy)
        return [version for _, version in sorted(versions.items(), reverse=True)]

    def resolve(self, spec: ModelSpec) -> tuple[ModelRoute, VersionRoute]:
        """Return the available version that `spec` asks for by number, by label, or as the highest.

        Raise ServingError: NOT_FOUND if there is none, INVALID_ARGUMENT for an unknown label, UNAVAILABLE while the
        version's worker is being restarted.
        """
        version = spec.version
        model = self.models.get(spec.model)
        if spec.label:
            if model is None or spec.label not in model.labels:
                raise ServingError(Code.INVALID_ARGUMENT, f"Unrecognized servable version label: {spec.label}")
            version = model.labels[spec.label]
        wanted = f"Latest({spec.model})" if version is None else f"Specific({spec.model}, {version})"
        restarting = None
        for route in model.versions if model is not None else ():
            if version is not None and route.version != version:
                continue
            if route.available and model is not None:
                return model, route
            if route.state == "restarting" and restarting is None:
                restarting = route
        if restarting is not None:
            raise ServingError(
                Code.UNAVAILABLE,
                f"Model {spec.model} version {restarting.version} is being restarted: {restarting.reason}",
                "try again in a moment",
                retry_after_seconds=1,
            )
        message = f"Servable not found for request: {wanted}"
        raise ServingError(Code.NOT_FOUND, message)

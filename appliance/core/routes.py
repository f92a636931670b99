"""What the fronts know of the models: an immutable snapshot, replaced whole. It travels as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.core.errors import Code, ServingError
from appliance.core.poison import Refused
from appliance.core.servable import ModelSpec, PublicState
from backends.contract import Signature

_NAMED = 5  # models that a summary names


@dataclass(frozen=True, slots=True)
class VersionRoute:
    """One version: its state and, where it is AVAILABLE, its worker's socket and its signatures.

    `state` is the precise word ("settling"), `public_state` TensorFlow Serving's; `reason` says why it is not
    available yet or no longer, "" where there is nothing to say.
    """

    version: int
    state: str
    public_state: PublicState
    code: Code = Code.OK
    reason: str = ""
    socket_path: str = ""
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    accelerated: str = ""  # the backend of the accelerated form that is served, "" for the version's own model
    remarks: tuple[str, ...] = ()  # what its operator should know although it is available
    unsupported: Mapping[str, str] = field(default_factory=dict)  # the model's other signatures: why each is not served
    refused: tuple[Refused, ...] = ()  # requests that have ended its process

    @property
    def available(self) -> bool:
        return self.public_state is PublicState.AVAILABLE

    def why_not(self, signature: str) -> str:
        """Why the version does not serve a signature that its model has, for the end of an error; else ""."""
        reason = self.unsupported.get(signature)
        return "" if reason is None else f"the model has it, but it cannot be served: {reason}"

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "state": self.state,
            "public_state": int(self.public_state),
            "code": int(self.code),
            "reason": self.reason,
            "socket_path": self.socket_path,
            "signatures": {name: signature.to_json() for name, signature in self.signatures.items()},
            "accelerated": self.accelerated,
            "remarks": list(self.remarks),
            "unsupported": dict(self.unsupported),
            "refused": [refused.to_json() for refused in self.refused],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> VersionRoute:
        return cls(
            value["version"],
            value["state"],
            PublicState(value["public_state"]),
            Code(value["code"]),
            value["reason"],
            value["socket_path"],
            {name: Signature.from_json(signature) for name, signature in value["signatures"].items()},
            value["accelerated"],
            tuple(value["remarks"]),
            value["unsupported"],
            tuple(map(Refused.from_json, value["refused"])),
        )


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """One model: its versions, newest first, its labels, and what is wrong with its folder, if anything."""

    name: str
    versions: tuple[VersionRoute, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    base_path: str = ""
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "versions": [version.to_json() for version in self.versions],
            "labels": dict(self.labels),
            "base_path": self.base_path,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelRoute:
        versions = tuple(VersionRoute.from_json(version) for version in value["versions"])
        return cls(value["name"], versions, value["labels"], value["base_path"], value["reason"])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All models at one moment. `ready` is what /readyz answers; `serial` grows with each snapshot; `ended` has the
    last versions that are gone, by the names of their models, which may be gone too."""

    serial: int = 0
    ready: bool = False
    models: Mapping[str, ModelRoute] = field(default_factory=dict)
    ended: Mapping[str, tuple[VersionRoute, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "serial": self.serial,
            "ready": self.ready,
            "models": [model.to_json() for model in self.models.values()],
            "ended": {name: [version.to_json() for version in versions] for name, versions in self.ended.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Snapshot:
        models = map(ModelRoute.from_json, value["models"])
        ended = {name: tuple(map(VersionRoute.from_json, versions)) for name, versions in value["ended"].items()}
        return cls(value["serial"], value["ready"], {model.name: model for model in models}, ended)

    def summary(self) -> str:
        """How many models answer, in words. One without an available version has failed where a version has, or where
        something is wrong with its folder."""
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
        """The versions that a status request asks for, the newest first: all, also those that are gone, or the one of
        its number; a label is ignored.

        Raises NOT_FOUND where there are none, as TensorFlow Serving words it.
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
        """The available version that `spec` asks for: by number, by label, or the highest.

        Raises ServingError: NOT_FOUND where there is none, INVALID_ARGUMENT for an unknown label, UNAVAILABLE while
        the version's worker is being restarted.
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

"""The Open Inference Protocol's gRPC service: its methods, over the one pipeline."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import json_format

from appliance.core.errors import Code, ServingError
from appliance.core.servable import ModelSpec
from appliance.inference.accounting import Exchange
from appliance.inference.infer import deadline_of, infer_run
from appliance.inference.pipeline import Pipeline
from appliance.inference.reservation import Reservation
from appliance.inference.router import Router
from appliance.protocols import protos
from appliance.protocols.v2.documents import (
    NO_LOADING,
    model_config,
    model_metadata,
    repository_index,
    server_metadata,
)
from appliance.protocols.v2.infer_messages import encode_infer_response, open_infer_request
from appliance.protocols.v2.versions import model_spec
from appliance.rpc.messages import parse_question

__all__ = ["SERVICE", "OpenInferenceFront"]

SERVICE = "inference.GRPCInferenceService"


class OpenInferenceFront:
    """The methods. Each takes the exchange to fill in, a serialized request and the remaining seconds; it returns a
    serialized response, or raises ServingError."""

    def __init__(self, router: Router, pipeline: Pipeline) -> None:
        self._router = router
        self._pipeline = pipeline
        self.methods: dict[str, Callable[[Exchange, bytes, float], Awaitable[bytes]]] = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelInfer": self.model_infer,
            "ModelConfig": self.model_config,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.refuse_loading,
            "RepositoryModelUnload": self.refuse_loading,
        }

    async def model_infer(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        """Answer an inference request."""
        deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
        with Reservation(self._router) as reserved:
            reserved.add(len(data))
            spec, request = open_infer_request(data)
            exchange.model = spec.model
            answered = await self._pipeline.run(
                spec, lambda version: infer_run(request, version, reserved.add), deadline_of(request, deadline_ns)
            )
            outputs = answered.outputs[0]
            reserved.add(sum([array.nbytes for array in outputs.values()]))  # the answer that is encoded
            return encode_infer_response(request, answered.model, answered.version, outputs)

    async def server_live(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        """Say that the server answers."""
        return _encoded(protos.ServerLiveResponse(live=True))

    async def server_ready(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        """Say whether the server is ready, as /readyz does."""
        return _encoded(protos.ServerReadyResponse(ready=self._router.snapshot.ready))

    async def server_metadata(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        """Answer with the server's name, version and extensions."""
        return _encoded(protos.ServerMetadataResponse(**server_metadata()))

    async def model_ready(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        """Say whether a version of the model takes requests."""
        spec = _asked(exchange, protos.ModelReadyRequest, data)
        try:
            self._router.snapshot.resolve(spec)
        except ServingError:
            return _encoded(protos.ModelReadyResponse(ready=False))
        return _encoded(protos.ModelReadyResponse(ready=True))

    async def model_metadata(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        """Answer with the inputs and outputs of the model's default signature."""
        model, version = self._router.snapshot.resolve(_asked(exchange, protos.ModelMetadataRequest, data))
        return _encoded(json_format.ParseDict(model_metadata(model, version), protos.ModelMetadataResponse()))

    async def model_config(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        """Answer with the model's configuration."""
        model, version = self._router.snapshot.resolve(_asked(exchange, protos.ModelConfigRequest, data))
        return _encoded(json_format.ParseDict({"config": model_config(model, version)}, protos.ModelConfigResponse()))

    async def repository_index(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        """Answer with a row for each version of each model."""
        request = parse_question(protos.RepositoryIndexRequest, data)
        response = protos.RepositoryIndexResponse()
        for row in repository_index(self._router.snapshot, request.ready):
            response.models.add(**row)
        return _encoded(response)

    async def refuse_loading(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        """Refuse to load or unload: what lies in the models' folders decides."""
        raise ServingError(Code.FAILED_PRECONDITION, *NO_LOADING)


def _asked(exchange: Exchange, kind: Any, data: bytes) -> ModelSpec:
    """Return the model and version that a question is about."""
    request = parse_question(kind, data)
    exchange.model = request.name
    return model_spec(request.name, request.version)


def _encoded(message: Any) -> bytes:
    return bytes(message.SerializeToString())

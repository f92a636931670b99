"""TensorFlow Serving's gRPC API: grpc.aio on uvloop, with handlers on raw bytes.

Several of these processes share one port by SO_REUSEPORT; the supervisor has seen to it that the port is ours.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from appliance import logs
from appliance.dataplane.router import Router, Snapshot
from appliance.errors import Code, ServingError, truncated
from appliance.fronts import protos
from appliance.fronts.metadata import signature_def_map
from appliance.fronts.settings import FrontSettings
from appliance.fronts.tensor_protos import decode_predict_request, encode_predict_response, model_spec
from appliance.processes import die_with_parent, set_name

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("dropserve.access")

_DEFAULT_SIGNATURE = "serving_default"
_NO_DEADLINE_SECONDS = 3600.0  # for clients that set none: every wait has an end
_STATUS = {code: status for status in grpc.StatusCode for code in Code if status.value[0] == code.value}

Method = Callable[[bytes, float], Awaitable[bytes]]


class GrpcFront:
    """The methods: each takes a serialized request and the seconds that are left, and returns a serialized answer."""

    def __init__(self, settings: FrontSettings) -> None:
        self._options = settings.options
        self.router = Router(
            settings.control_path, "grpc", settings.options.shared_memory_bytes, settings.max_inflight_bytes
        )

    async def predict(self, data: bytes, seconds: float) -> bytes:
        deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
        nbytes = len(data)
        self.router.reserve(nbytes)
        try:
            request = decode_predict_request(data)
            if not request.spec.model:
                raise ServingError(Code.INVALID_ARGUMENT, "Missing ModelSpec", "set model_spec.name")
            model, version = self.router.snapshot.resolve(request.spec)
            name = request.signature_name or _DEFAULT_SIGNATURE
            signature = version.signatures.get(name)
            if signature is None:
                raise ServingError(Code.FAILED_PRECONDITION, f'Serving signature key "{name[:200]}" not found.')
            _check_inputs(request.inputs, signature.inputs)
            outputs = _wanted_outputs(request.output_filter, signature.outputs)
            del data
            arrays = await self.router.predict(request.spec, name, request.inputs, outputs, deadline_ns)
            return encode_predict_response(model.name, version.version, name, arrays)
        finally:
            self.router.release(nbytes)

    async def get_model_metadata(self, data: bytes, seconds: float) -> bytes:
        request = _parse(protos.GetModelMetadataRequest, data)
        if list(request.metadata_field) != ["signature_def"]:
            wanted = ", ".join(request.metadata_field) or "none"
            raise ServingError(
                Code.INVALID_ARGUMENT, f"Metadata field {wanted[:200]} is not supported", "ask for signature_def"
            )
        model, version = self.router.snapshot.resolve(model_spec(request.model_spec))
        response = protos.GetModelMetadataResponse()
        response.model_spec.name = model.name
        response.model_spec.version.value = version.version
        response.metadata["signature_def"].Pack(signature_def_map(version.signatures))
        return bytes(response.SerializeToString())

    async def get_model_status(self, data: bytes, seconds: float) -> bytes:
        versions = self.router.snapshot.status(model_spec(_parse(protos.GetModelStatusRequest, data).model_spec))
        response = protos.GetModelStatusResponse()
        for version in versions:
            status = response.model_version_status.add(version=version.version, state=int(version.public_state))
            status.status.error_code = int(version.code)
            status.status.error_message = version.reason
        return bytes(response.SerializeToString())


def _check_inputs(inputs: dict[str, Any], wanted: Any) -> None:
    if inputs.keys() != wanted.keys():
        extra, missing = sorted(inputs.keys() - wanted.keys()), sorted(wanted.keys() - inputs.keys())
        raise ServingError(
            Code.INVALID_ARGUMENT,
            f"input size does not match signature: {len(inputs)}!={len(wanted)} "
            f"len({{{','.join(sorted(inputs))}}}) != len({{{','.join(sorted(wanted))}}}). "
            f"Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}.",
        )
    for name, array in inputs.items():
        element = wanted[name].element
        if array.dtype != element.numpy:
            raise ServingError(
                Code.INVALID_ARGUMENT,
                f'Input "{name}" has elements of {array.dtype}',
                f"the signature expects {element.proto_name}",
            )


def _wanted_outputs(output_filter: tuple[str, ...], outputs: Any) -> list[str]:
    if not output_filter:
        return list(outputs)
    for index, name in enumerate(output_filter):
        if name not in outputs:
            raise ServingError(
                Code.INVALID_ARGUMENT,
                f"output tensor alias not found in signature: {name[:200]} "
                f"Outputs expected to be in the set {{{','.join(sorted(outputs))}}}.",
            )
        if name in output_filter[:index]:
            raise ServingError(Code.INVALID_ARGUMENT, f"duplicate output tensor alias: {name[:200]}")
    return list(output_filter)


def _parse(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except Exception as error:  # noqa: BLE001 - protobuf's DecodeError and, for bad text, UnicodeDecodeError
        raise ServingError(Code.INVALID_ARGUMENT, f"Not a {kind.DESCRIPTOR.full_name}: {error}") from None


def _handler(name: str, method: Method, access_log: bool) -> Any:
    async def handle(data: bytes, context: Any) -> bytes:
        started = time.monotonic()
        seconds = context.time_remaining()
        code, answer = Code.OK, b""
        try:
            answer = await method(data, _NO_DEADLINE_SECONDS if seconds is None else seconds)
            return answer
        except ServingError as error:
            code = error.code
            await context.abort(_STATUS[error.code], truncated(str(error)))
        except asyncio.CancelledError:
            code = Code.CANCELLED
            raise
        except grpc.aio.AbortError:
            raise
        except MemoryError:
            code = Code.RESOURCE_EXHAUSTED
            await context.abort(_STATUS[code], "The server has no memory for this request")
        except Exception as error:
            code = Code.INTERNAL
            logger.exception("a request failed: %s", name)
            await context.abort(_STATUS[code], f"Internal error: {type(error).__name__}; the server's log has more")
        finally:
            if access_log:
                milliseconds = (time.monotonic() - started) * 1000
                fields = {
                    "protocol": "grpc",
                    "client": context.peer(),
                    "method": name,
                    "status": code.name,
                    "request_bytes": len(data),
                    "response_bytes": len(answer),
                    "milliseconds": round(milliseconds, 3),
                }
                text = f"{context.peer()} {name} {code.name} {len(answer)} B {milliseconds:.1f} ms"
                access_logger.info(text, extra={"fields": fields})
        raise AssertionError("context.abort returned")

    return grpc.unary_unary_rpc_method_handler(handle)


async def serve(settings: FrontSettings) -> None:
    """Serves until SIGTERM, then ends what is in flight."""
    front = GrpcFront(settings)
    options = settings.options
    access_log = options.access_log
    services: dict[str, dict[str, Method]] = {
        "tensorflow.serving.PredictionService": {
            "Predict": front.predict,
            "GetModelMetadata": front.get_model_metadata,
        },
        "tensorflow.serving.ModelService": {"GetModelStatus": front.get_model_status},
    }
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", options.max_grpc_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", options.max_header_bytes),
        ],
    )
    for service, methods in services.items():
        handlers = {name: _handler(f"{service}/{name}", method, access_log) for name, method in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection([*services, reflection.SERVICE_NAME], server, pool=protos.POOL)

    tasks: set[asyncio.Task[None]] = set()

    async def set_health(snapshot: Snapshot) -> None:
        serving = (
            health_pb2.HealthCheckResponse.SERVING if snapshot.ready else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", *services):
            await health_servicer.set(name, serving)

    def on_snapshot(snapshot: Snapshot) -> None:
        task = asyncio.create_task(set_health(snapshot))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    front.router.on_snapshot = on_snapshot
    await front.router.start(on_lost=lambda: os.kill(os.getpid(), signal.SIGKILL))
    if settings.port is not None:
        address = f"[{options.bind_address}]" if ":" in options.bind_address else options.bind_address
        server.add_insecure_port(f"{address}:{settings.port}")
    if options.grpc_socket_path and settings.index == 0:
        server.add_insecure_port(f"unix:{options.grpc_socket_path}")
    await server.start()
    front.router.say_serving()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    await stop.wait()
    await server.stop(options.shutdown_grace_seconds)


def main() -> None:
    settings = FrontSettings.from_environment()
    die_with_parent(settings.supervisor)
    set_name("ds-grpc")
    logs.configure(settings.options.log_format, settings.options.log_level)
    uvloop.run(serve(settings))


if __name__ == "__main__":
    main()

"""TensorFlow Serving's gRPC API: grpc.aio on uvloop, with handlers on raw bytes.

Several of these processes share one port by SO_REUSEPORT; the supervisor has made sure that no other server has it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import uvloop
from grpc_reflection.v1alpha import reflection

from appliance.config.front_settings import FrontSettings
from appliance.config.tls import load_ssl_config
from appliance.core.errors import Code, ServingError, as_utf8, truncated
from appliance.core.routes import VersionRoute
from appliance.host import logs
from appliance.host.confinement import close_to_others
from appliance.host.descriptors import connections_within, raise_descriptor_limit
from appliance.host.memory import proportional_bytes
from appliance.host.processes import set_name, take_argument
from appliance.inference.accounting import Accounting, Exchange
from appliance.inference.examples import Inference
from appliance.inference.pipeline import Pipeline
from appliance.inference.predict_checks import check_dtypes, check_method_name, check_names, wanted_outputs
from appliance.inference.reservation import Reservation
from appliance.inference.router import Router
from appliance.inference.runs import Run
from appliance.metrics.recording import Recorder, RequestMetrics
from appliance.metrics.values import metric_values
from appliance.protocols import protos
from appliance.protocols.classify_regress import Method as ExamplesMethod
from appliance.protocols.metadata import signature_def_map
from appliance.protocols.predict_layouts import PredictLayouts
from appliance.protocols.predict_messages import encode_predict_response, model_spec
from appliance.rpc.access import access_of
from appliance.rpc.health import serve_health
from appliance.rpc.infer_stream import STREAM, stream_handler
from appliance.rpc.messages import parse, parse_question
from appliance.rpc.open_inference import SERVICE as OPEN_INFERENCE
from appliance.rpc.open_inference import OpenInferenceFront
from appliance.rpc.options import Slots, channel_arguments, credentials, quiet_lost_clients, socket_mode
from appliance.rpc.peers import check_may_reload, peer_of
from appliance.rpc.profiler import SERVICE as PROFILER_SERVICE
from appliance.rpc.profiler import ProfilerFront, check_may_profile
from appliance.rpc.unsent import Unsent
from backends.contract import DEFAULT_SIGNATURE

logger = logging.getLogger(__name__)

_NO_DEADLINE_SECONDS = 3600.0  # for clients that set no deadline: every wait must end
_MAX_DEADLINE_SECONDS = 30 * 86400.0  # gRPC's own deadlines reach 11,000 years, too long for a clock in nanoseconds
_MAX_RELOAD_BYTES = 16 << 20
_MAX_CALLS = 10_000  # of one process, from their head on, until their answer is sent
_RELOAD_MARGIN_SECONDS = 0.5
_STATUS = {code: status for status in grpc.StatusCode for code in Code if status.value[0] == code.value}

# The names of the methods in the metrics, the same for REST and gRPC.
_COUNTED_AS = {
    "Predict": "predict",
    "Classify": "classify",
    "Regress": "regress",
    "MultiInference": "multi_inference",
    "GetModelMetadata": "metadata",
    "GetModelStatus": "status",
    "HandleReloadConfigRequest": "reload",
    "ModelInfer": "infer",
    "ModelMetadata": "metadata",
}

_Method = Callable[[Exchange, bytes, float], Awaitable[bytes]]


class _GrpcFront:
    """The methods: each takes the exchange to fill in, a serialized request and the remaining seconds.

    Each returns a serialized response, or raises ServingError.
    """

    def __init__(self, settings: FrontSettings) -> None:
        self._options = settings.options
        self._metrics_directory = settings.metrics_directory
        self.router = Router(
            settings.control_path,
            f"grpc {settings.index}",
            settings.max_inflight_bytes,
            {"memory": proportional_bytes},
        )
        counts = RequestMetrics(Recorder(settings.metrics_directory, "grpc"), "grpc")
        self.accounting = Accounting(counts, self.router, "grpc", settings.options.access_log)
        self.router.on_inflight = counts.inflight
        self._pipeline = Pipeline(self.router, counts)
        self._layouts = PredictLayouts()
        self._inference = Inference(
            self._pipeline,
            settings.options.enable_signature_method_name_check,
            settings.options.max_grpc_message_bytes,
            counts.examples,
        )
        self.open_inference = OpenInferenceFront(self.router, self._pipeline)

    async def predict(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
        with Reservation(self.router) as reserved:
            reserved.add(len(data))
            request = self._layouts.open(data)
            exchange.model = request.spec.model
            name = request.signature_name or DEFAULT_SIGNATURE

            def check(version: VersionRoute) -> Sequence[Run]:
                signature = version.signatures.get(name)
                if signature is None:
                    message = f'Serving signature key "{name[:200]}" not found.'
                    raise ServingError(Code.FAILED_PRECONDITION, message, version.why_not(name))
                if self._options.enable_signature_method_name_check:
                    check_method_name(signature)
                check_names(request.names, signature)
                inputs = request.arrays(reserved.add)
                outputs = wanted_outputs(request.output_filter, signature)
                check_dtypes(inputs, signature)
                return (Run.of(name, inputs, outputs),)

            answered = await self._pipeline.run(request.spec, check, deadline_ns)
            reserved.add(sum([array.nbytes for array in answered.outputs[0].values()]))  # the answer that is encoded
            return encode_predict_response(
                answered.model,
                answered.version,
                name,
                answered.outputs[0],
                self._options.enable_serialization_as_tensor_content,
            )

    async def classify(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        return await self._classify_or_regress(exchange, data, ExamplesMethod.CLASSIFY, seconds)

    async def regress(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        return await self._classify_or_regress(exchange, data, ExamplesMethod.REGRESS, seconds)

    async def _classify_or_regress(
        self, exchange: Exchange, data: bytes, method: ExamplesMethod, seconds: float
    ) -> bytes:
        deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
        with Reservation(self.router) as reserved:
            reserved.add(len(data))
            return await self._inference.classify_or_regress(data, method, exchange, reserved, deadline_ns)

    async def multi_inference(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
        with Reservation(self.router) as reserved:
            reserved.add(len(data))
            return await self._inference.multi_inference(data, exchange, reserved, deadline_ns)

    async def get_model_metadata(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        request = parse_question(protos.GetModelMetadataRequest, data)
        spec = _spec_of(exchange, request)
        if not request.metadata_field:
            raise ServingError(
                Code.INVALID_ARGUMENT,
                "GetModelMetadataRequest must specify at least one metadata_field",
                "ask for signature_def",
            )
        for wanted in request.metadata_field:
            if wanted != "signature_def":
                raise ServingError(
                    Code.INVALID_ARGUMENT, f"Metadata field {wanted[:200]} is not supported", "ask for signature_def"
                )
        model, version = self.router.snapshot.resolve(model_spec(spec))
        response = protos.GetModelMetadataResponse()
        response.model_spec.name = model.name
        response.model_spec.version.value = version.version
        response.metadata["signature_def"].Pack(signature_def_map(version.signatures))
        return bytes(response.SerializeToString())

    async def get_model_status(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        spec = _spec_of(exchange, parse_question(protos.GetModelStatusRequest, data))
        versions = self.router.snapshot.status(model_spec(spec))
        response = protos.GetModelStatusResponse()
        for version in versions:
            status = response.model_version_status.add(version=version.version, state=int(version.public_state))
            status.status.error_code = int(version.code)
            status.status.error_message = as_utf8(version.reason)
        return bytes(response.SerializeToString())

    def admit_reload(self, context: Any) -> None:
        """Raise PERMISSION_DENIED if the caller may not reload."""
        check_may_reload(peer_of(context), self._options.allow_remote_reload)

    async def handle_reload_config_request(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        """Have the supervisor adopt the request's list of models.

        As in TensorFlow Serving, a failed reload fails the call, with the status that the response would carry.
        """
        if len(data) > _MAX_RELOAD_BYTES:
            raise ServingError(
                Code.INVALID_ARGUMENT,
                f"the request has {len(data):,} bytes, more than {_MAX_RELOAD_BYTES:,}",
                "send only the list of models",
            )
        request = parse(protos.ReloadConfigRequest, data)
        config = request.config
        if config.WhichOneof("config") != "model_config_list":
            raise ServingError(
                Code.INVALID_ARGUMENT,
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported",
                "send a model_config_list; an empty one unloads all",
            )
        # The supervisor must answer, with the state of each model, before the client's deadline.
        margin = min(_RELOAD_MARGIN_SECONDS, seconds / 10)
        seconds -= 2 * margin
        encoded = base64.b64encode(config.SerializeToString()).decode()
        names = list(dict.fromkeys(request.metric_names))
        before = await self._metric_values(names)
        answer = await self.router.call("reload", {"config": encoded, "seconds": seconds}, seconds + margin)
        if answer["code"]:
            raise ServingError(Code(answer["code"]), answer["message"])
        response = protos.ReloadConfigResponse()
        response.status.SetInParent()
        after = await self._metric_values(names)
        for name in (name for name in names if name in before and name in after):
            response.metric.add(name=name, int64_value_increase=after[name] - before[name])
        return bytes(response.SerializeToString())

    async def _metric_values(self, names: Sequence[str]) -> dict[str, int]:
        return await asyncio.to_thread(metric_values, self._metrics_directory, names) if names else {}


def _spec_of(exchange: Exchange, request: Any) -> Any:
    if not request.HasField("model_spec"):
        raise ServingError(Code.INVALID_ARGUMENT, "Missing ModelSpec")
    exchange.model = request.model_spec.name
    return request.model_spec


def _handler(
    name: str,
    method: _Method,
    slots: Slots,
    unsent: Unsent,
    admit: Callable[[Any], None] | None,
    accounting: Accounting,
) -> Any:
    """Return a gRPC handler for `method`.

    It first calls `admit` with the call's context, which may raise ServingError, then takes a slot. `unsent` holds the
    answer until it is sent.
    """
    counted_as = _COUNTED_AS.get(name.rpartition("/")[2], "other")

    async def handle(data: bytes, context: Any) -> bytes:
        exchange = Exchange(counted_as)
        seconds = context.time_remaining()
        deadline = exchange.started + (_NO_DEADLINE_SECONDS if seconds is None else min(seconds, _MAX_DEADLINE_SECONDS))
        try:
            if admit is not None:
                admit(context)
            await slots.take(len(data))
            try:
                answer = await method(exchange, data, deadline - time.monotonic())
            finally:
                slots.give()
            unsent.hold(context, len(answer), time.monotonic())
            exchange.code, exchange.response_bytes = Code.OK, len(answer)
            return answer
        except ServingError as error:
            exchange.code = error.code
            await context.abort(_STATUS[error.code], truncated(as_utf8(str(error))))
        except asyncio.CancelledError:
            exchange.code = Code.CANCELLED
            raise
        except MemoryError:
            exchange.code = Code.RESOURCE_EXHAUSTED
            await context.abort(_STATUS[exchange.code], "The server has no memory for this request")
        except Exception as error:
            logger.exception("a request failed: %s", name)
            await context.abort(
                _STATUS[exchange.code], f"Internal error: {type(error).__name__}; the server's log has more"
            )
        finally:
            accounting.account(exchange, lambda: access_of(exchange, name, data, context))
        raise AssertionError("context.abort returned")

    return grpc.unary_unary_rpc_method_handler(handle)


async def _serve(settings: FrontSettings) -> None:
    """Serve until SIGTERM, then finish the requests in flight."""
    front = _GrpcFront(settings)
    options = settings.options
    services: dict[str, dict[str, _Method]] = {
        "tensorflow.serving.PredictionService": {
            "Predict": front.predict,
            "Classify": front.classify,
            "Regress": front.regress,
            "MultiInference": front.multi_inference,
            "GetModelMetadata": front.get_model_metadata,
        },
        "tensorflow.serving.ModelService": {
            "GetModelStatus": front.get_model_status,
            "HandleReloadConfigRequest": front.handle_reload_config_request,
        },
        OPEN_INFERENCE: front.open_inference.methods,
    }
    admission: dict[str, Callable[[Any], None]] = {"HandleReloadConfigRequest": front.admit_reload}
    # Calls about a model's state need no slot, and a trace does not take a request's slot.
    slots, unbounded = (
        Slots(count, front.router.reserve, front.router.release) for count in (options.grpc_max_threads, 0)
    )
    unsent = Unsent(front.router.reserve, front.router.release, options.body_grace_seconds)
    immediate = {"GetModelMetadata", "GetModelStatus", "HandleReloadConfigRequest"}
    immediate |= front.open_inference.methods.keys() - {"ModelInfer"}
    if options.enable_profiler:
        profiler = ProfilerFront(front.router)
        services[PROFILER_SERVICE] = profiler.methods
        admission |= dict.fromkeys(profiler.methods, lambda context: check_may_profile(peer_of(context)))
        immediate |= profiler.methods.keys()
    arguments = channel_arguments(options, connections_within(raise_descriptor_limit()))
    server = grpc.aio.server(options=arguments, maximum_concurrent_rpcs=_MAX_CALLS)
    for service, methods in services.items():
        handlers = {
            name: _handler(
                f"{service}/{name}",
                method,
                unbounded if name in immediate else slots,
                unsent,
                admission.get(name),
                front.accounting,
            )
            for name, method in methods.items()
        }
        if service == OPEN_INFERENCE:
            handlers[STREAM] = stream_handler(
                front.open_inference, slots, front.accounting, front.router, unsent, options.body_grace_seconds
            )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    reflection.enable_server_reflection([*services, reflection.SERVICE_NAME], server, pool=protos.POOL)
    if options.enable_grpc_healthcheck_service:
        serve_health(server, front.router, services)

    await front.router.start(on_lost=lambda: os.kill(os.getpid(), signal.SIGKILL))
    if settings.port is not None:
        address = f"[{options.bind_address}]" if ":" in options.bind_address else options.bind_address
        if options.ssl_config_file:
            server.add_secure_port(f"{address}:{settings.port}", credentials(load_ssl_config(options.ssl_config_file)))
        else:
            server.add_insecure_port(f"{address}:{settings.port}")
    if options.grpc_socket_path and settings.index == 0:
        with socket_mode():
            server.add_insecure_port(f"unix:{options.grpc_socket_path}")
    await server.start()
    front.router.say_serving()
    sweeping = asyncio.create_task(unsent.sweep())
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    await stop.wait()
    await server.stop(options.shutdown_grace_seconds)
    sweeping.cancel()


def main() -> None:
    """Run one gRPC process."""
    settings = take_argument(FrontSettings)
    set_name("ds-grpc")
    if settings.options.sandbox != "off":
        close_to_others()
    logs.configure(settings.options.log_format, settings.options.log_level)
    quiet_lost_clients()
    # Measured end to end with 8 callers (2026-11, grpcio 1.85, alternated runs): asyncio's own loop costs as much CPU a
    # request as uvloop; a thread-pool server that hands requests to the router's loop answers as many requests a
    # second, within a fifth, for 5 % more CPU.
    uvloop.run(_serve(settings))


if __name__ == "__main__":
    main()

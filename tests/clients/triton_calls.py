"""Uses NVIDIA's tritonclient over HTTP and gRPC, sync and asyncio. Arguments: the ports of REST and gRPC."""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

SAMPLES: dict[str, np.ndarray] = {
    "bool": np.array([True, False, True]),
    "uint8": np.array([0, 1, 255], np.uint8),
    "uint16": np.array([0, 1, 2**16 - 1], np.uint16),
    "uint32": np.array([0, 1, 2**32 - 1], np.uint32),
    "uint64": np.array([0, 1, 2**64 - 1], np.uint64),
    "int8": np.array([-128, 0, 127], np.int8),
    "int16": np.array([-(2**15), 0, 2**15 - 1], np.int16),
    "int32": np.array([-(2**31), 0, 2**31 - 1], np.int32),
    "int64": np.array([-(2**63), 0, 2**63 - 1], np.int64),
    "float16": np.array([0.5, -2.0, 65504.0], np.float16),
    "float32": np.array([0.1, -2.0, 3e38], np.float32),
    "float64": np.array([0.1, -2.0, 1e300], np.float64),
    "string": np.array([b"", b"caf\xc3\xa9", b"abc"], object),
}


def inputs_of(module: ModuleType, name: str, **how: Any) -> list[Any]:
    array = SAMPLES[name]
    tensor = module.InferInput("x", list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, **how)
    return [tensor]


def is_echo(result: Any, name: str) -> bool:
    array = result.as_numpy("y")
    values = [value.encode() if isinstance(value, str) else value for value in array.tolist()]  # JSON's texts
    return array.dtype == SAMPLES[name].dtype and values == SAMPLES[name].tolist()


def told(error: InferenceServerException) -> list[str]:
    return [str(error.status()), error.message()]


def about(client: Any) -> dict[str, Any]:
    """What a client is told of the server and its models."""
    kwargs = {"as_json": True} if isinstance(client, triton_grpc.InferenceServerClient) else {}
    config = client.get_model_config("multi_io", **kwargs)
    index = client.get_model_repository_index(**kwargs)
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": [client.is_model_ready(*model) for model in (("multi_io",), ("multi_io", "1"), ("absent",))],
        "server": client.get_server_metadata(**kwargs)["name"],
        "metadata": client.get_model_metadata("multi_io", **kwargs),
        "config": config.get("config", config),
        "index": index["models"] if isinstance(index, dict) else index,
    }


def refusals(client: Any, module: ModuleType) -> dict[str, list[str]]:
    """The status and the text of what is refused."""
    calls = {
        "unknown model": lambda: client.infer("absent", inputs_of(module, "float32")),
        "wrong type": lambda: client.infer("half_plus_two", inputs_of(module, "float64")),
        "load": lambda: client.load_model("half_plus_two"),
    }
    found = {}
    for what, call in calls.items():
        try:
            call()
            found[what] = ["no error", ""]
        except InferenceServerException as error:
            found[what] = told(error)
    return found


def over_http(url: str) -> dict[str, Any]:
    client = triton_http.InferenceServerClient(url)
    echoes = {}
    for name in SAMPLES:
        parameters = {"signature_name": name}
        binary = client.infer("dtypes", inputs_of(triton_http, name), parameters=parameters)
        echoes[f"{name} binary"] = is_echo(binary, name)
        if name != "float16":  # the client sends it as binary data only
            asked = [triton_http.InferRequestedOutput("y", binary_data=False)]
            text = inputs_of(triton_http, name, binary_data=False)
            echoes[f"{name} json"] = is_echo(client.infer("dtypes", text, outputs=asked, parameters=parameters), name)
    for algorithm in ("gzip", "deflate"):
        result = client.infer(
            "dtypes",
            inputs_of(triton_http, "float32"),
            parameters={"signature_name": "float32"},
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        echoes[f"float32 {algorithm}"] = is_echo(result, "float32")
    return {"echoes": echoes, "about": about(client), "refusals": refusals(client, triton_http)}


def over_grpc(url: str) -> dict[str, Any]:
    client = triton_grpc.InferenceServerClient(url)
    echoes = {
        f"{name} raw": is_echo(
            client.infer("dtypes", inputs_of(triton_grpc, name), parameters={"signature_name": name}), name
        )
        for name in SAMPLES
    }
    return {
        "echoes": echoes,
        "about": about(client),
        "refusals": refusals(client, triton_grpc),
        "stream": streamed(client),
    }


def streamed(client: Any) -> list[Any]:
    """The ids, or the errors, of a stream's answers in their order; the third asks for an unknown model."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(5):
        model = "absent" if number == 2 else "half_plus_two"
        client.async_stream_infer(model, inputs_of(triton_grpc, "float32"), request_id=str(number))
    found = []
    for _ in range(5):
        result, error = answers.get(timeout=30)
        found.append(error.message() if error else result.get_response().id)
    client.stop_stream()
    return found


async def with_asyncio(rest: str, grpc: str) -> dict[str, bool]:
    found = {}
    for what, url, module, package in (
        ("http", rest, triton_http, triton_http_aio),
        ("grpc", grpc, triton_grpc, triton_grpc_aio),
    ):
        async with package.InferenceServerClient(url) as client:
            names = list(SAMPLES)
            results = await asyncio.gather(
                *(
                    client.infer("dtypes", inputs_of(module, name), parameters={"signature_name": name})
                    for name in names
                )
            )
            found[what] = all(is_echo(result, name) for result, name in zip(results, names, strict=True))
    return found


def main(rest_port: str, grpc_port: str) -> dict[str, Any]:
    rest, grpc = f"127.0.0.1:{rest_port}", f"127.0.0.1:{grpc_port}"
    return {"http": over_http(rest), "grpc": over_grpc(grpc), "asyncio": asyncio.run(with_asyncio(rest, grpc))}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))

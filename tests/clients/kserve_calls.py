"""Uses KServe's inference client over REST and gRPC. Arguments: the ports of REST and gRPC."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.constants.constants import PredictorProtocol

ARRAY = np.array([[1.0, 2.0], [5.0, -7.5]], np.float32)


def request_of(binary: bool) -> InferRequest:
    tensor = InferInput("x", list(ARRAY.reshape(-1).shape), "FP32")
    tensor.set_data_from_numpy(ARRAY.reshape(-1), binary_data=binary)
    return InferRequest(model_name="half_plus_two", infer_inputs=[tensor], request_id="r1")


async def main(rest_port: str, grpc_port: str) -> dict[str, Any]:
    base = f"http://127.0.0.1:{rest_port}"
    found: dict[str, Any] = {}
    rest = InferenceRESTClient(RESTConfig(protocol=PredictorProtocol.REST_V2.value, retries=0))
    found["live"] = await rest.is_server_live(base)
    found["ready"] = await rest.is_server_ready(base)
    found["model_ready"] = await rest.is_model_ready(base, "half_plus_two")
    for binary in (False, True):
        response = await rest.infer(base, request_of(binary), model_name="half_plus_two")
        found["binary" if binary else "json"] = response.outputs[0].as_numpy().tolist()
    grpc = InferenceGRPCClient(f"127.0.0.1:{grpc_port}")
    found["grpc_live"] = await grpc.is_server_live()
    found["grpc_ready"] = await grpc.is_server_ready()
    found["grpc_model_ready"] = await grpc.is_model_ready("half_plus_two")
    for binary in (False, True):
        response = await grpc.infer(request_of(binary))
        found["raw" if binary else "typed"] = response.outputs[0].as_numpy().tolist()
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))

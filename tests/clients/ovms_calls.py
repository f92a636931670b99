"""Uses OpenVINO Model Server's client, which speaks TensorFlow Serving's API. Arguments: the ports of REST and gRPC."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from ovmsclient import make_grpc_client, make_http_client


def main(rest_port: str, grpc_port: str) -> dict[str, Any]:
    found = {}
    for what, make, port in (("http", make_http_client, rest_port), ("grpc", make_grpc_client, grpc_port)):
        client = make(f"127.0.0.1:{port}")
        # Without a number, this client asks for version 0, which only its own server takes for the latest.
        answer = client.predict({"x": np.array([1.0, 2.0, 5.0], np.float32)}, "half_plus_two", 1)
        found[what] = {
            "predicted": (answer["y"] if isinstance(answer, dict) else answer).tolist(),
            "metadata": client.get_model_metadata("half_plus_two", 1),
            "status": client.get_model_status("half_plus_two", 1),
        }
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:]), default=str))

"""Traces a server with TensorFlow's own profiler client, and prints what it wrote as one JSON object.

A process of its own: TensorFlow stays out of the tests' process.
"""

from __future__ import annotations

import glob
import json
import os
import sys
from typing import Any

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2


def trace(address: str, folder: str, milliseconds: int) -> dict[str, Any]:
    """The events of each file by their names, and the error that the client raised."""
    error = ""
    try:
        tf.profiler.experimental.client.trace(address, folder, milliseconds, num_tracing_attempts=1)
    except RuntimeError as raised:  # a status of TensorFlow's, by way of C++
        error = str(raised)
    written = sorted(glob.glob(os.path.join(folder, "plugins", "profile", "*", "*")))
    return {"error": error, "files": {os.path.basename(path): events(path) for path in written}}


def events(path: str) -> list[str]:
    """The names of the events in a file of TensorBoard's profiler plugin."""
    with open(path, "rb") as file:
        space = xplane_pb2.XSpace.FromString(file.read())
    return sorted(
        {
            plane.event_metadata[event.metadata_id].name
            for plane in space.planes
            for line in plane.lines
            for event in line.events
        }
    )


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "trace":
        print(json.dumps(trace(arguments[0], arguments[1], int(arguments[2]))))
    else:
        print(json.dumps([events(path) for path in arguments]))

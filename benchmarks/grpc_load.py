"""gRPC load: the same serialized PredictRequest over and over, never parsing an answer.

    python -m benchmarks.grpc_load --port 8500 --body FILE --concurrency 8 --seconds 5

Each caller has a connection of its own, as separate clients have. One shared channel would send everything to one
process of a server that spreads connections.
"""

import argparse
import asyncio
import os
import time

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a lost connection is counted, not logged

import grpc
import grpc.aio
import uvloop

from benchmarks.measurement import Recorder

METHOD = "/tensorflow.serving.PredictionService/Predict"
TIMEOUT_SECONDS = 30.0
RETRY_SECONDS = 0.01  # keeps a refusing server from turning the generator into a busy loop
CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # without it channels to one address share a connection
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


async def call_repeatedly(target: str, request: bytes, recorder: Recorder) -> None:
    """One call at a time until the window closes."""
    async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        predict = channel.unary_unary(METHOD)  # without serializers: bytes in, bytes out
        sent = time.perf_counter()
        while not recorder.is_over(sent):
            try:
                answer = await predict(request, timeout=TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as error:
                recorder.add_error(f"{error.code().name}: {error.details()}")
                await asyncio.sleep(RETRY_SECONDS)
            else:
                recorder.add_answer(sent, time.perf_counter(), answer)
            sent = time.perf_counter()


async def generate_load(target: str, request: bytes, concurrency: int, recorder: Recorder) -> None:
    """Run all callers to the end of the window."""
    await asyncio.gather(*(call_repeatedly(target, request, recorder) for _ in range(concurrency)))


def main() -> None:
    """Prints one Measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--body", required=True, help="a file with a serialized PredictRequest")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warmup-seconds", type=float, default=1.0)
    options = parser.parse_args()
    with open(options.body, "rb") as file:
        request = file.read()
    recorder = Recorder(options.warmup_seconds, options.seconds)
    uvloop.run(generate_load(f"127.0.0.1:{options.port}", request, options.concurrency, recorder))
    print(recorder.summarize().to_json())


if __name__ == "__main__":
    main()

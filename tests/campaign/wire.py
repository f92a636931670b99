"""Mutated requests through the sockets of a server, whose processes must all be there afterwards."""

from __future__ import annotations

import contextlib
import socket
from random import Random

import grpc

from tests.campaign import seeds
from tests.campaign.clients import new_connections_answer
from tests.campaign.mutation import mutated_bytes, mutated_message
from tests.campaign.report import Report
from tests.campaign.serving import CampaignServer
from tests.support.grpc_calls import PREDICT, RELOAD, STATUS

__all__ = ["fuzz_sockets"]

_SERVICE = "/tensorflow.serving.PredictionService/"
_METHODS = {
    PREDICT: seeds.predict_requests,
    f"{_SERVICE}Classify": seeds.examples_requests,
    f"{_SERVICE}Regress": seeds.examples_requests,
    f"{_SERVICE}MultiInference": seeds.examples_requests,
    f"{_SERVICE}GetModelMetadata": seeds.questions,
    STATUS: seeds.questions,
}
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"
_PING = b"\0\0\x08\x06\0\0\0\0\0abcdefgh"
_WINDOW = b"\0\0\x04\x08\0\0\0\0\0\0\0\xff\xff"
_HTTP2 = [_PREFACE, _PREFACE + _PING + _WINDOW]
_OUR_FAULTS = {"UNKNOWN", "INTERNAL", "DATA_LOSS"}
_SECONDS = 30.0
_CHECKED_EACH = 500


def fuzz_sockets(report: Report, server: CampaignServer, model: str, seed: int, count: int) -> int:
    """Send `count` mutated requests over HTTP, gRPC and HTTP/2. Return how many were sent."""
    processes = server.lasting_processes()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        for number in range(count):
            random = Random(f"{seed}:sockets:{number}")
            kind = random.randrange(8)
            if kind < 4:
                found = _http(server.rest_port, mutated_bytes(seeds.HTTP, random))
            elif kind < 7:
                method = random.choice(list(_METHODS))
                found = _grpc(channel, method, mutated_message(_METHODS[method](), random))
            else:
                found = _http(server.grpc_port, mutated_bytes(_HTTP2, random), is_http=False)
            if found:
                report.finding(f"sockets: {found}", number=number, seed=seed)
            if number % _CHECKED_EACH == 0 and not new_connections_answer(server, model):
                report.finding(f"sockets: the server does not answer after input {number}", seed=seed)
    now = server.lasting_processes()
    if now != processes:
        report.finding(f"sockets: the processes were {processes}, and are {now}", seed=seed)
    if not new_connections_answer(server, model):
        report.finding("sockets: the server does not answer at the end", seed=seed)
    return count


def _http(port: int, data: bytes, *, is_http: bool = True) -> str:
    """Send `data`, and nothing more. Return what is wrong with the answer, or ""."""
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), _SECONDS) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                answer += piece
    except TimeoutError:
        return f"the connection does not end within {_SECONDS:g} s: {data[:300]!r}"
    except OSError:
        pass  # it was ended before all was sent
    if is_http and (b"HTTP/1.1 500" in answer or (answer and not answer.startswith(b"HTTP/1.1 "))):
        return f"{data[:300]!r} is answered {answer[:300]!r}"
    return ""


def _grpc(channel: grpc.Channel, method: str, data: bytes) -> str:
    assert method != RELOAD, "a mutated configuration may be a right one"
    with contextlib.suppress(ValueError):
        try:
            channel.unary_unary(method)(data, timeout=_SECONDS)
        except grpc.RpcError as error:
            if error.code().name in _OUR_FAULTS | {"DEADLINE_EXCEEDED", "UNAVAILABLE"}:
                return f"{method} of {data[:200]!r}: {error.code().name} {error.details()[:300]}"
    return ""

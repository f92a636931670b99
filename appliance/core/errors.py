"""The one error that reaches a client, and the one table from its code to an HTTP status."""

from __future__ import annotations

from backends.contract import Code
from backends.error_texts import shortened

__all__ = ["Code", "ConfigError", "ServingError", "as_utf8", "truncated"]

_HTTP_STATUS: dict[Code, int] = {
    Code.OK: 200,
    Code.INVALID_ARGUMENT: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ABORTED: 409,
    Code.ALREADY_EXISTS: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INTERNAL: 500,
    Code.DATA_LOSS: 500,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}

# TensorFlow Serving cuts what it sends as a gRPC status message at this length, and then says so.
_MAX_MESSAGE_CHARACTERS = 1024


class ServingError(Exception):
    """An error for a client: `message` says what failed and with which value, `remedy` what to do.

    `retry_after_seconds` is set if the same request may succeed later (it becomes HTTP's Retry-After). A long
    message is shortened, because many quote what clients send.
    """

    def __init__(self, code: Code, message: str, remedy: str = "", retry_after_seconds: int | None = None) -> None:
        message = shortened(message)
        joint = " " if message.endswith(".") else "; "  # some of TensorFlow Serving's texts end with a full stop
        super().__init__(f"{message}{joint}{remedy}" if remedy else message)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.retry_after_seconds = retry_after_seconds

    @property
    def http_status(self) -> int:
        """The HTTP status of the error's code."""
        return _HTTP_STATUS[self.code]


class ConfigError(Exception):
    """An option or a configuration file that cannot be used: `message` names the value, `remedy` what is allowed."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.message = message
        self.remedy = remedy


def truncated(message: str) -> str:
    """Return `message`, cut at 1,024 characters as TensorFlow Serving cuts it."""
    if len(message) <= _MAX_MESSAGE_CHARACTERS:
        return message
    return message[:_MAX_MESSAGE_CHARACTERS] + "...TRUNCATED"


def as_utf8(text: str) -> str:
    """Return `text` with a question mark for each byte of a file's name that is not UTF-8: orjson and protobuf refuse
    the lone surrogates by which Python keeps such bytes."""
    return text.encode(errors="replace").decode()

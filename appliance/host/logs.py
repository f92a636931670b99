"""Log lines: for people on a terminal, or JSON for programs. All processes write to the supervisor's stderr."""

from __future__ import annotations

import json
import logging
import sys
import time


def _on_one_line(text: str) -> str:
    """Return `text` with unprintable characters escaped.

    Names from clients and files (models, paths) could otherwise forge log lines or send control codes to a terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _TextFormatter(logging.Formatter):
    """Formats a record as one line for people, followed by its traceback if it has one."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        line = f"{moment}.{int(record.msecs):03d} {record.levelname[0]} {_on_one_line(record.getMessage())}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure(log_format: str, log_level: str) -> None:
    """Send all of this process's logging to stderr.

    Each line is one write, so that lines of several processes do not mix.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(log_level.upper())
    for noisy in ("asyncio", "watchdog"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

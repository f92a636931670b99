"""Log lines: one a record, whatever names it holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "a\n2026-01-01 00:00:00.000 I b/1: available\r\x1b[2J\x00\x85\u2028\u202e\ud800"


def logged(program: str, log_format: str) -> list[str]:
    """The lines that a process logs: `program` has NAME as `name`."""
    text = (
        "import logging, sys; from appliance.host import logs\n"
        f"logs.configure({log_format!r}, 'info')\nname = {NAME!r}\n{program}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, timeout=60, check=True, encoding="utf-8"
    )
    return done.stderr.splitlines()


def test_a_name_with_control_characters_begins_no_line_and_commands_no_terminal() -> None:
    (line,) = logged("logging.warning('model %s is removed', name)", "text")
    end = r"a\n2026-01-01 00:00:00.000 I b/1: available\r\x1b[2J\x00\x85\u2028\u202e\ud800 is removed"
    assert line.endswith(f" W model {end}")
    assert line.isprintable()


def test_names_in_any_script_are_shown_as_they_are() -> None:
    (line,) = logged("logging.info('model %s: \"%s\" → \\\\', 'grün', '模型')", "text")
    assert line.endswith('I model grün: "模型" → \\')


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_traceback_follows_its_record(log_format: str) -> None:
    lines = logged("try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.exception('model %s', name)", log_format)
    if log_format == "json":
        (line,) = lines
        entry = json.loads(line)
        assert entry["message"] == f"model {NAME}"
        lines = ["", *entry["traceback"].splitlines()]
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ZeroDivisionError: division by zero"

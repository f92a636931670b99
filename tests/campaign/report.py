"""What a part of the campaign writes as it goes: lines of JSON, for whoever reads it later, and on the terminal."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

__all__ = ["Report"]


class Report:
    """A file of lines, complete up to the last step also if the run is interrupted. Findings are kept for the end."""

    def __init__(self, path: str | os.PathLike[str], **about: Any) -> None:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self.path = str(path)
        self.findings: list[str] = []
        self._begun = time.monotonic()
        self.line("begins", **about)

    def line(self, kind: str, **values: Any) -> None:
        """Write one line; `kind` says what the others are."""
        seconds = round(time.monotonic() - self._begun, 1)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "seconds": seconds, **values}, default=repr) + "\n")
        said = ", ".join(f"{name} {value}" for name, value in values.items())
        print(f"{seconds:8.1f} s  {kind}: {said[:400]}", file=sys.stderr, flush=True)

    def finding(self, what: str, **values: Any) -> None:
        """Write a line about what should not be."""
        self.findings.append(what)
        self.line("FINDING", what=what, **values)

    def end(self, **figures: Any) -> int:
        """Write the figures; return how many findings there are."""
        self.line("ends", findings=len(self.findings), **figures)
        return len(self.findings)

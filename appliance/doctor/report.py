"""The report of `dropserve doctor`, for people or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from appliance.config.models import ConfiguredModel
from appliance.config.settings import Settings
from appliance.doctor.checks import findings
from appliance.doctor.facts import gather
from appliance.doctor.findings import Finding, Level

__all__ = ["examine", "exit_status", "page", "to_json"]


def examine(
    config: str | None, configured: Callable[[Settings], Mapping[str, ConfiguredModel]], as_json: bool
) -> tuple[str, int]:
    """Return the text to print and the exit status. For `config` and `configured` see `facts.gather`."""
    found = findings(gather(config, configured))
    return (to_json(found) if as_json else page(found)), exit_status(found)


def exit_status(found: Sequence[Finding]) -> int:
    """Return 1 if a check has failed, else 0; warnings do not count."""
    return int(any(finding.level is Level.FAILED for finding in found))


def page(found: Sequence[Finding]) -> str:
    """Return the findings as lines: level, check and text; below each its remedy."""
    width = max((len(finding.check) for finding in found), default=0)
    lines = []
    for finding in found:
        lines.append(f"{finding.level.value:7}  {finding.check:{width}}  {finding.text}")
        if finding.remedy:
            lines.append(f"{'':7}  {'':{width}}  -> {finding.remedy}")
    return "\n".join([*lines, _summary(found)]) + "\n"


def to_json(found: Sequence[Finding]) -> str:
    """Return the findings as JSON, for programs."""
    rows = [{"check": f.check, "level": f.level.value, "text": f.text, "remedy": f.remedy} for f in found]
    return json.dumps({"findings": rows, "summary": _summary(found)}, indent=2) + "\n"


def _summary(found: Sequence[Finding]) -> str:
    counts = [sum(finding.level is level for finding in found) for level in (Level.FAILED, Level.WARNING, Level.OK)]
    return f"{counts[0]} failed, {counts[1]} warnings, {counts[2]} ok"

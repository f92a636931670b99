"""How the children of a job are confined before they run a model: as workers are (`host.confinement`).

A forked child calls `confine`; one that is started afresh runs `appliance.conversion.runner`, which does the same. The
process that starts them runs no model itself.
"""

from __future__ import annotations

import os
import tempfile

import msgspec

from appliance.core.limits import SHARED_MEMORY_BYTES
from appliance.host.confinement import Profile, close_to_others, confine
from appliance.host.links import follow_links
from converters.child import Access, Sandbox, confine_children

__all__ = ["ENVIRONMENT", "confine_child", "confine_job"]

ENVIRONMENT = "DROPSERVE_ACCESS"
"""The variable with the `Access` of a child that is started afresh, as JSON, after the value of `sandbox`."""

_RUNNER = "appliance.conversion.runner"


def confine_job(mode: str) -> None:
    """Have the children of this process confined, as the option `sandbox` says, and let nobody look into it."""
    if mode == "off":
        return
    close_to_others()

    def variables(access: Access) -> dict[str, str]:
        return {ENVIRONMENT: f"{mode} {msgspec.json.encode(access).decode()}"}

    confine_children(Sandbox(lambda access: confine_child(access, mode), _RUNNER, variables))


def confine_child(access: Access, mode: str) -> None:
    """Take from this process all rights but those of `access`. Raise ConfigError if something is missing that `mode`
    requires."""
    if access.scratch:
        os.makedirs(access.scratch, mode=0o700, exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = access.scratch
    writes = tuple(filter(None, (*access.writes, access.scratch)))
    reads = tuple(target for path in access.reads for target in follow_links(path).targets)
    confine(Profile(reads, writes, access.gpu, None if writes else SHARED_MEMORY_BYTES), mode)

"""All checks of `dropserve doctor`: from facts to findings with remedies. Pure."""

from __future__ import annotations

from collections.abc import Callable

from appliance.doctor import configuration_checks, gpu_checks, machine_checks
from appliance.doctor.facts import Facts
from appliance.doctor.findings import Finding, Found

__all__ = ["CHECKS", "findings"]

# By name, in the order of the report.
CHECKS: dict[str, Callable[[Facts], Found]] = {
    "configuration": configuration_checks.configuration,
    "user": configuration_checks.user,
    "ports": configuration_checks.ports,
    "folders": configuration_checks.folders,
    "models": configuration_checks.models,
    "cache": configuration_checks.cache,
    "runtime": configuration_checks.runtime,
    "shared memory": configuration_checks.shared_memory,
    "cpu": machine_checks.cpu,
    "memory": machine_checks.memory,
    "clock": machine_checks.clock,
    "kernel": machine_checks.kernel,
    "sandbox": machine_checks.sandbox,
    "open files": machine_checks.open_files,
    "inotify": machine_checks.inotify,
    "selinux": machine_checks.selinux,
    "libraries": machine_checks.libraries,
    "locale": machine_checks.locale,
    "driver": gpu_checks.driver,
    "cuda": gpu_checks.cuda,
}


def findings(facts: Facts) -> list[Finding]:
    """Return all findings, in the order of `CHECKS`; each check has at least one."""
    return [Finding(name, *found) for name, check in CHECKS.items() for found in check(facts)]

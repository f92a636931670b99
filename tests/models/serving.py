"""Drops models into a running server, and tells of each what serves it and whether its answers are right."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.models.building import ROOT
from tests.models.catalogue import MODELS, library_files
from tests.models.model import Model
from tests.support.server import Server, eventually

PLAIN_TOLERANCE = 1e-5

Log = Callable[[str], None]


@dataclass(slots=True)
class Outcome:
    """What became of a model: `faults` says what was not as it has to be."""

    phase: str = ""
    reason: str = ""
    entry: Mapping[str, Any] = field(default_factory=dict)  # of GET /v1/models, for the version
    acceleration: Mapping[str, Any] = field(default_factory=dict)  # of GET …/acceleration
    faults: list[str] = field(default_factory=list)


def write_answers(folders: Mapping[str, Path], answers: Path) -> dict[str, str]:
    """Lets the judges answer, in a process of their own. Returns why there is no answer, by model."""
    asked = {n: f for n, f in folders.items() if MODELS[n].signatures and not (answers / n / "done").exists()}
    failures: dict[str, str] = {}
    while asked:
        pairs = [f"{name}={folder}" for name, folder in asked.items()]
        command = [sys.executable, "-m", "tests.models.judge", *pairs, str(answers)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        for name in list(asked):
            if (answers / name / "done").exists():
                del asked[name]
        if done.returncode:
            if not asked:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
            failed = next(iter(asked))  # they are judged in order
            failures[failed] = done.stderr.strip().splitlines()[-1]
            del asked[failed]
    return failures


def serve(
    names: Sequence[str],
    folders: Mapping[str, Path],
    answers: Path,
    work: Path,
    log: Log = lambda _: None,
    acceleration: str = "off",
    **options: Any,
) -> dict[str, Outcome]:
    """Serves the models in one server, from a folder that it makes in `work`, and asks them all."""
    root = work / "models"
    root.mkdir(parents=True)
    for name in names:
        shutil.copytree(folders[name], root / name / "1", copy_function=_link)
    accelerated = acceleration != "off"
    if accelerated:
        # Which form is the fastest is another matter on each machine; here every proven one will do.
        options = {"wait_for_acceleration": True, "acceleration_min_speedup": 0.0, **options}
    if tables := [f"[models.{n}]\nop_libraries = {json.dumps(f)}\n" for n in names if (f := library_files(MODELS[n]))]:
        options["config"] = work / "dropserve.toml"
        options["config"].write_text("\n".join(tables))
    about = {"acceleration": acceleration, "incomplete_after_seconds": 5, **options}
    with Server(model_root=root, **about) as server:
        outcomes = _settled(server, names, accelerated, log)
        served = [name for name in names if outcomes[name].phase == "available" and not MODELS[name].refused]
        tolerances = {n: MODELS[n].accelerated_tolerance if accelerated else PLAIN_TOLERANCE for n in served}
        for tolerance in sorted(set(tolerances.values())):
            alike = [name for name in served if tolerances[name] == tolerance]
            for name, faults in _ask(server, alike, answers, tolerance).items():
                outcomes[name].faults += faults
        for name in served:
            if accelerated:
                outcomes[name].acceleration = server.get(f"/v1/models/{name}/versions/1/acceleration")[1]
        for name in names:
            _judge_phase(MODELS[name], outcomes[name])
        return outcomes


def _link(source: str, target: str) -> None:
    """A model of 200 MB is not copied."""
    os.link(source, target)


def _settled(server: Server, names: Sequence[str], accelerated: bool, log: Log) -> dict[str, Outcome]:
    """Waits until each model is served or refused. Conversions take their time, one after the other."""
    outcomes: dict[str, Outcome] = {}
    seconds = 120.0 + (240.0 * len(names) if accelerated else 3.0 * len(names))

    def all_are_there() -> bool:
        _, document = server.get("/v1/models")
        for entry in document["models"]:
            name, versions = entry["name"], entry["versions"]
            if name in names and name not in outcomes and versions and _is_final(MODELS[name], versions[0]):
                version = versions[0]
                outcomes[name] = Outcome(version["phase"], version["reason"], version)
                log(f"{name}: {version['phase']} {version['reason']}".rstrip())
        time.sleep(0.2)  # a look costs the server a little of the time that it needs for the models
        return len(outcomes) == len(names)

    try:
        eventually(all_are_there, "every model is served or refused", seconds)
    except AssertionError:
        for name in set(names) - outcomes.keys():
            phase, reason = server.versions(name).get(1, ("", ""))
            outcomes[name] = Outcome(phase, reason, {}, {}, [f"still {phase}: {reason}"])
            log(f"{name}: still {phase} {reason}")
    return outcomes


def _is_final(model: Model, version: Mapping[str, Any]) -> bool:
    phase, reason = version["phase"], version["reason"]
    waits_for_files = phase == "settling" and reason.startswith("incomplete")
    return phase in ("available", "failed") or (bool(model.refused) and waits_for_files)


def _judge_phase(model: Model, outcome: Outcome) -> None:
    if not model.refused:
        if outcome.phase != "available" and not outcome.faults:
            outcome.faults.append(f"{outcome.phase}: {outcome.reason}")
    elif outcome.phase == "available":
        outcome.faults.append("is served, and should be refused")
    elif not re.search(model.refused, outcome.reason):
        outcome.faults.append(f"the reason {outcome.reason!r} says nothing of {model.refused!r}")


def _ask(server: Server, names: Sequence[str], answers: Path, tolerance: float) -> dict[str, list[str]]:
    ports = [str(server.rest_port), str(server.grpc_port), str(tolerance), str(answers)]
    command = [sys.executable, "-m", "tests.models.ask", *ports, *names]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found

"""Mutated models and configurations, dropped beside a good model that goes on answering."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from random import Random

from tests.campaign import seeds
from tests.campaign.clients import Clients
from tests.campaign.mutation import mutated_bytes, mutated_message
from tests.campaign.report import Report
from tests.campaign.serving import CampaignServer
from tests.support.server import eventually

__all__ = ["drop_mutated_models"]

_AT_ONCE = 8
_SECONDS = 150.0
_FINAL = {"available", "failed"}
_FOLDERS = ("half_plus_two", "strings", "assets_vocab", "tiny_tf2", "lite", "lite_in_metadata", "onnx")


def drop_mutated_models(report: Report, server: CampaignServer, model: str, seed: int, count: int) -> int:
    """Drop `count` models, some at a time, of which one file is mutated. Return how many came to an end.

    An end is that the version is available or has an error. `model` must go on answering, and the processes that serve
    it must stay.
    """
    lasting = {pid: name for pid, name in server.lasting_processes().items() if name != "ds-worker"}
    done = 0
    outcomes: dict[str, int] = {}
    with Clients(server, model, rest=1, grpc_clients=1) as clients:
        for first in range(0, count, _AT_ONCE):
            names = [f"mutated_{number}" for number in range(first, min(first + _AT_ONCE, count))]
            for name in names:
                _drop(server.root, name, Random(f"{seed}:drops:{name}"))
            for name in names:
                try:
                    phase = eventually(
                        lambda name=name: _final_phase(server, name), f"{name} comes to an end", _SECONDS
                    )
                    outcomes[phase] = outcomes.get(phase, 0) + 1
                    done += 1
                except AssertionError as error:
                    report.finding(f"drops: {error} {server.versions(name)}", seed=seed)
            clients.more(4)
            for name in names:
                shutil.rmtree(server.root / name)
            report.line("dropped", models=done, **outcomes)
    for what in clients.wrong:
        report.finding(f"drops: {what}", seed=seed)
    if refused := clients.refused():
        report.finding(f"drops: the good model refused: {refused}", seed=seed)
    left = server.processes()
    if gone := {pid: name for pid, name in lasting.items() if pid not in left}:
        report.finding(f"drops: these processes have ended: {gone}", seed=seed)
    return done


def _final_phase(server: CampaignServer, name: str) -> str:
    """The phase of the version, once nothing but time can change it."""
    phase, _ = server.versions(name).get(1, ("", ""))
    return phase if phase in _FINAL else ""


def _drop(root: Path, name: str, random: Random) -> None:
    files = _files(random.choice(_FOLDERS))
    file = random.choice(sorted(files))
    mutate = mutated_message if file.endswith((".pb", ".onnx")) else mutated_bytes
    incoming = root / name / ".incoming"
    for other, content in files.items():
        path = incoming / other
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutate([content], random) if other == file else content)
    os.rename(incoming, root / name / "1")


def _files(folder: str) -> Mapping[str, bytes]:
    if folder == "onnx":
        return {"model.onnx": seeds.onnx_files()[0]}
    source = seeds.zoo() / folder
    return {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if path.is_file()}

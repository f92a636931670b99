"""Gathers the facts for `dropserve doctor`: the configuration, its folders and ports, GPUs, and the machine.

The judgement is in `appliance.doctor.checks`. Calls that may hang (a folder on a dead file server, a driver) run in a
thread or process of their own with a deadline, and are reported if they miss it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from appliance.config.models import ConfiguredModel
from appliance.config.options import Options
from appliance.config.settings import Settings, read_settings
from appliance.core.errors import ConfigError
from appliance.doctor.machine import Machine, has_nvidia_card, label, listeners, read_machine
from appliance.gpu.client import driver_status
from appliance.gpu.values import GpuStatus
from appliance.host.ports import default_runtime_dir, hold_port, listen
from appliance.source.scan import scan_base_path, scan_root
from converters.cache import default_folder

__all__ = [
    "SERVICE_CONFIG",
    "Configuration",
    "Facts",
    "Folder",
    "Graphics",
    "ModelFolder",
    "Port",
    "gather",
    "within",
]

SERVICE_CONFIG = "/etc/dropserve/dropserve.toml"  # the service starts with it
_FOLDER_SECONDS = 10.0
_DRIVER_SECONDS = 15.0
_CUDA_SECONDS = 30.0  # its libraries have gigabytes, perhaps read from a cold disk
_THREADS = 16
_MAX_MODELS = 10_000

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Configuration:
    """The file that was read ("" for none), its options and models, and why it cannot be used ("" if it can)."""

    path: str
    options: Options = field(default_factory=Options)
    models: Mapping[str, ConfiguredModel] = field(default_factory=dict)
    error: str = ""
    warnings: tuple[str, ...] = ()  # about settings without effect


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that an option names. `problem` says why nothing is known of it.

    `exists` is false if the server has yet to make it; the other facts are then those of the nearest folder above.
    """

    option: str
    path: str
    problem: str = ""
    exists: bool = True
    readable: bool = True
    writable: bool = True
    uid: int = 0
    mode: int = 0o755
    free_bytes: int = 0
    total_bytes: int = 0
    label: str = ""  # SELinux's


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's base path: its problem, or remarks on what is not served; its newest change in wall clock seconds."""

    name: str
    base_path: str
    versions: int = 0
    remarks: tuple[str, ...] = ()
    problem: str = ""
    newest_ctime: float = 0.0


@dataclass(frozen=True, slots=True)
class Port:
    """A port that an option names: why it cannot be used, and the processes that listen on it, as far as visible."""

    option: str
    number: int
    problem: str = ""
    holders: tuple[tuple[int, str], ...] = ()  # process number and name


@dataclass(frozen=True, slots=True)
class Graphics:
    """`cards`: whether the machine has NVIDIA cards. `cuda_problem`: why ONNX Runtime cannot use CUDA, "" if it can."""

    cards: bool
    status: GpuStatus
    cuda_problem: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """All facts that the checks judge."""

    configuration: Configuration
    machine: Machine
    graphics: Graphics
    ports: tuple[Port, ...]
    model_folders: tuple[Folder, ...]
    cache: Folder
    runtime: Folder
    shared_memory: Folder
    models: tuple[ModelFolder, ...]
    unseen_models: int = 0  # models over the limit, which were not looked at


def gather(config: str | None, configured: Callable[[Settings], Mapping[str, ConfiguredModel]]) -> Facts:
    """Return all facts, after a minute and a half at most. Call it in the main thread.

    `config` is the configuration's path; None means the service's, if it exists. `configured` returns the models that a
    server would start with, and raises ConfigError if it would not start.
    """
    begun = time.monotonic()
    configuration = _configuration(config, configured)
    options = configuration.options
    status = asyncio.run(driver_status(_DRIVER_SECONDS))  # before any other child: its reaper waits for all
    cards = has_nvidia_card()
    ports = tuple(_ports(options))
    slow = f"loading its libraries took more than {_CUDA_SECONDS:g} s"
    cuda = within(_CUDA_SECONDS + 1, {"cuda": _cuda_problem}).get("cuda", slow) if status.gpus else ""
    configured_paths = {f"base_path of {model.name}": model.base_path for model in configuration.models.values()}
    sources = dict(list(configured_paths.items())[:_MAX_MODELS])
    if options.model_root:
        sources = {"model_root": options.model_root} | sources
    targets = {
        "cache_dir": options.cache_dir or default_folder(),
        "runtime_dir": options.runtime_dir or default_runtime_dir(),
        "shared memory": "/dev/shm",  # noqa: S108 - the kernel's shared memory, not a temporary file
    }
    places = sources | targets
    seen = within(_FOLDER_SECONDS, {o: partial(_folder, o, path, o in targets) for o, path in places.items()})
    late = f"it has not answered for {_FOLDER_SECONDS:g} s"
    folders = {option: seen.get(option, Folder(option, path, late)) for option, path in places.items()}
    models, unseen = _models(configuration)
    return Facts(
        configuration,
        read_machine(begun),
        Graphics(cards, status, cuda),
        ports,
        tuple(folders[option] for option in sources),
        folders["cache_dir"],
        folders["runtime_dir"],
        folders["shared memory"],
        models,
        unseen,
    )


def within(seconds: float, jobs: Mapping[K, Callable[[], T]]) -> dict[K, T]:
    """Run the jobs side by side in threads, and return the results of those that ended within `seconds`.

    A hanging thread is abandoned: it delays neither the others nor the end of the process. Jobs must not raise.
    """
    waiting: queue.SimpleQueue[tuple[K, Callable[[], T]]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[K, T]] = queue.SimpleQueue()
    for item in jobs.items():
        waiting.put(item)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                key, job = waiting.get_nowait()
                done.put((key, job()))

    for _ in range(min(_THREADS, len(jobs))):
        threading.Thread(target=work, daemon=True, name="doctor").start()
    deadline = time.monotonic() + seconds
    results: dict[K, T] = {}
    with contextlib.suppress(queue.Empty):
        while len(results) < len(jobs):
            key, value = done.get(timeout=max(deadline - time.monotonic(), 0.0))
            results[key] = value
    return results


# -- the configuration, and what it names ------------------------------------------------------------------------------


def _configuration(given: str | None, configured: Callable[[Settings], Mapping[str, ConfiguredModel]]) -> Configuration:
    path = given if given is not None else SERVICE_CONFIG if os.path.lexists(SERVICE_CONFIG) else ""
    if not path:
        return Configuration("")
    try:
        settings = read_settings({}, path)
    except ConfigError as error:
        return Configuration(path, error=str(error))
    try:
        return Configuration(path, settings.options, configured(settings), warnings=settings.warnings)
    except ConfigError as error:
        return Configuration(path, settings.options, error=str(error))


def _folder(option: str, path: str, is_made: bool) -> Folder:
    """Return what is known of a folder. `is_made`: a server creates it if it is missing."""
    exists, place = True, path
    while True:
        try:
            status = os.stat(place)
            break
        except FileNotFoundError:
            if not is_made or place == os.path.dirname(place):
                return Folder(option, path, "it does not exist", exists=False)
            exists, place = False, os.path.dirname(place)
        except OSError as error:
            return Folder(option, path, f"it cannot be looked at ({error.strerror})")
    if not stat.S_ISDIR(status.st_mode):
        return Folder(option, path, "it is no folder" if exists else f"{place} is no folder")
    try:
        space = os.statvfs(place)
    except OSError as error:
        return Folder(option, path, f"its file system cannot be looked at ({error.strerror})")
    return Folder(
        option,
        path,
        exists=exists,
        readable=os.access(place, os.R_OK | os.X_OK, effective_ids=True),
        writable=os.access(place, os.W_OK | os.X_OK, effective_ids=True),
        uid=status.st_uid,
        mode=stat.S_IMODE(status.st_mode),
        free_bytes=space.f_bavail * space.f_frsize,
        total_bytes=space.f_blocks * space.f_frsize,
        label=label(place),
    )


def _models(configuration: Configuration) -> tuple[tuple[ModelFolder, ...], int]:
    paths = {name: model.base_path for name, model in configuration.models.items()}
    found: list[ModelFolder] = []
    root = configuration.options.model_root
    if root:
        listed = within(_FOLDER_SECONDS, {root: lambda: _in_root(root)}).get(root)
        if listed is not None:
            names, remarks = listed
            paths = {name: os.path.join(root, name) for name in names} | paths
            if remarks:
                found.append(ModelFolder("", root, remarks=remarks))
    looked_at = dict(list(paths.items())[:_MAX_MODELS])
    seen = within(_FOLDER_SECONDS, {name: partial(_model, name, path) for name, path in looked_at.items()})
    for name, path in looked_at.items():
        hung = ModelFolder(name, path, problem=f"it has not answered for {_FOLDER_SECONDS:g} s")
        found.append(seen.get(name, hung))
    return tuple(found), len(paths) - len(looked_at)


def _in_root(root: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the models' names in a root, and remarks on what is ignored there.

    If the root cannot be read, both are empty: another check reports it.
    """
    try:
        _, names, refused = scan_root(root)
        held = scan_base_path(root).held
    except OSError:
        return [], ()
    ignored = list(refused.values())[:3]
    moved = [f"{held}, which is no model's name; move it to {root}/NAME/1"] if held else []
    return names, (*ignored, *moved)


def _model(name: str, base_path: str) -> ModelFolder:
    try:
        scan = scan_base_path(base_path)
    except OSError as error:
        return ModelFolder(name, base_path, problem=f"it cannot be read ({error.strerror or error})")
    remarks = [scan.remark] if scan.remark else []
    newest = 0.0
    for version, seen in scan.versions.items():
        path = scan.paths[version]
        if seen is None:
            continue
        newest = max(newest, seen.newest_ctime)
        if not seen.names:
            remarks.append(f"{path} holds no model: no saved_model.pb, model.onnx or model.tflite")
        denied = [file for file in sorted(seen.names) if not os.access(os.path.join(path, file), os.R_OK)]
        if denied:
            remarks.append(f"{os.path.join(path, denied[0])} may not be read by this user")
    return ModelFolder(name, base_path, len(scan.versions), tuple(remarks), newest_ctime=newest)


def _ports(options: Options) -> Iterator[Port]:
    for option, number, take in (("rest_api_port", options.rest_api_port, listen), ("port", options.port, hold_port)):
        if number <= 0:
            continue  # disabled, or any free port
        try:
            take(options.bind_address, number).close()
            yield Port(option, number)
        except ConfigError as error:
            yield Port(option, number, error.message, listeners(number))


# -- the GPU -----------------------------------------------------------------------------------------------------------


def _cuda_problem() -> str:
    """Return why ONNX Runtime cannot use CUDA, "" if it can.

    A process of its own tries it, because its libraries are large and may crash.
    """
    isolated = ["-I"] if sys.flags.isolated else []
    try:
        ended = subprocess.run(
            [sys.executable, *isolated, "-m", "appliance.doctor.cuda"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_CUDA_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"it could not be tried: {error}"
    if ended.returncode:
        words = ended.stderr.split("\n")
        return f"trying it failed with status {ended.returncode}: {' '.join(words[-2:]).strip()}"
    return ended.stdout.strip()

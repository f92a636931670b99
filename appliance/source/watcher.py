"""Watches folders for model versions, and reports them with whether they have settled.

watchdog's events only start a scan early. The periodic rescan is authoritative and works alone (NFS sends no events).
Every disk access runs in its own thread, because a stat on a dead NFS server hangs for ever: then only that model is
delayed, and its status says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirModifiedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

from appliance.core.observed import Observed
from appliance.source.content import content
from appliance.source.scan import scan_base_path, scan_root
from appliance.source.settle import Settler
from appliance.source.threads import ScanThreads

logger = logging.getLogger(__name__)

T = TypeVar("T")

_STALLED_SECONDS = 10.0
_COALESCE_SECONDS = 0.1
_LOADED_LOOK_SECONDS = 10.0  # between looks at the files of loaded versions, if no event and nothing unsettled asks
# Events that change a folder. Reads are left out, because our own scans and workers read.
_EVENTS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirModifiedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]


class Listener(Protocol):
    """Receives what the source sees, in the event loop.

    `loaded_versions` returns the versions whose files are looked at only now and then. `model_appeared` is called for a
    new sub-folder of the root, and returns its `settle_seconds`; `model_vanished` when it is gone. `versions_observed`
    gets each scan's version folders and a remark about ignored entries. `base_path_lost` gets the reason why a folder
    cannot be scanned; nothing must be unloaded then. `models_refused` gets the sub-folders of the root whose names
    cannot be a model's, with the reasons.
    """

    def loaded_versions(self, name: str) -> frozenset[int]: ...
    def model_appeared(self, name: str, base_path: str) -> float: ...
    def model_vanished(self, name: str) -> None: ...
    def versions_observed(self, name: str, observed: dict[int, Observed], remark: str, holds_model: bool) -> None: ...
    def base_path_lost(self, name: str, reason: str) -> None: ...
    def models_refused(self, refused: Mapping[str, str]) -> None: ...


class _Target:
    """A folder that is scanned repeatedly until it is stopped."""

    def __init__(self, path: str, settle_seconds: float = 0.0) -> None:
        self.path = path
        self.settle_seconds = settle_seconds
        self.wake = asyncio.Event()
        self.contents: dict[int, tuple[str, str]] = {}  # of each version's settled files: their digest, and content
        self.task: asyncio.Task[None] | None = None


class Source:
    """Follows base paths, and a root whose sub-folders are base paths, until `stop()`.

    If `poll_seconds` is 0 it scans once, and if negative never, as TensorFlow Serving's file system source does.
    """

    def __init__(self, listener: Listener, poll_seconds: float) -> None:
        self._listener = listener
        self._poll_seconds = poll_seconds
        self._threads = ScanThreads()
        self._targets: dict[str, _Target] = {}  # by model name
        self._in_root: set[str] = set()  # the models that are sub-folders of the root
        self._root: _Target | None = None
        self._observer: BaseObserver | None = None
        self._observer_lock = threading.Lock()
        self._watches: dict[str, ObservedWatch | None] = {}  # by path; None while the watch is being set up

    def add(self, name: str, base_path: str, settle_seconds: float) -> None:
        """Follow the base path of one model."""
        self._add(name, base_path, settle_seconds)
        self._watch(base_path)

    def _add(self, name: str, base_path: str, settle_seconds: float) -> None:
        target = self._targets[name] = _Target(base_path, settle_seconds)
        target.task = asyncio.create_task(self._follow(name, target, Settler(settle_seconds)))

    def follows(self, name: str) -> bool:
        """Return whether the model `name` is followed."""
        return name in self._targets

    def look(self, name: str) -> None:
        """Look at the model `name` again soon, if it is followed."""
        if name in self._targets:
            self._targets[name].wake.set()

    def remove(self, name: str) -> None:
        """Stop following the model `name`."""
        in_root = name in self._in_root
        self._in_root.discard(name)
        target = self._targets.pop(name)
        if target.task is not None:
            target.task.cancel()
        if not in_root and not any(other.path == target.path for other in self._targets.values()):
            threading.Thread(target=self._unwatch, args=(target.path,), daemon=True, name="watch").start()

    def set_root(self, root: str) -> None:
        """Follow a root: every sub-folder is a model."""
        self._root = _Target(root)
        self._root.task = asyncio.create_task(self._follow_root(self._root))
        self._watch(root)

    def stop(self) -> None:
        """Stop following all folders."""
        for target in [*self._targets.values(), self._root]:
            if target is not None and target.task is not None:
                target.task.cancel()

    # -- events ----------------------------------------------------------------------------------------------

    def _watch(self, path: str) -> None:
        if self._poll_seconds <= 0:
            return
        loop = asyncio.get_running_loop()

        def hint(changed: str) -> None:
            loop.call_soon_threadsafe(self._hint, changed)

        handler = _Hint(hint)

        def schedule() -> None:
            # In a thread, because setting watches walks the tree, which may hang.
            try:
                with self._observer_lock:
                    if self._observer is None:
                        observer = Observer()  # fails if the user has no inotify instance left
                        observer.start()
                        self._observer = observer
                    if path in self._watches:
                        return
                    self._watches[path] = None
                watch = self._observer.schedule(handler, path, recursive=True, event_filter=_EVENTS)
                with self._observer_lock:
                    self._watches[path] = watch
            except (OSError, RuntimeError) as error:
                self._watches.pop(path, None)
                logger.warning(
                    "no file events for %s (%s): changes are found by the rescan every %g s",
                    path,
                    error,
                    self._poll_seconds,
                )

        threading.Thread(target=schedule, daemon=True, name="watch").start()

    def _unwatch(self, path: str) -> None:
        with self._observer_lock:
            if any(target.path == path for target in list(self._targets.values())):
                return  # it was added again in the meantime
            watch = self._watches.pop(path, None)
        if watch is not None and self._observer is not None:
            with contextlib.suppress(OSError, KeyError):  # the folder is gone, and with it its watch
                self._observer.unschedule(watch)

    def _hint(self, changed: str) -> None:
        if self._root is not None and _is_below(changed, self._root.path):
            parts = os.path.relpath(changed, self._root.path).split(os.sep)
            if len(parts) <= 2:
                self._root.wake.set()
        for target in self._targets.values():
            if _is_below(changed, target.path):
                target.wake.set()

    async def _pause(self, target: _Target, seconds: float | None) -> bool:
        """Wait for an event, but at most `seconds` (None: without limit); return whether one has come."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(target.wake.wait(), seconds)
            await asyncio.sleep(_COALESCE_SECONDS)  # a copy sends many events: one scan handles all of them
        woken = target.wake.is_set()
        target.wake.clear()
        return woken

    async def _look(self, target: _Target, function: Callable[[], T], stalled: Callable[[], None]) -> T:
        """Return the result of `function`, called in a thread. Call `stalled` if it takes long, and keep waiting."""
        call = asyncio.ensure_future(self._threads.call(function))
        try:
            done, _ = await asyncio.wait([call], timeout=_STALLED_SECONDS)
            if not done:
                logger.warning("%s has not answered for %g s; is its file system there?", target.path, _STALLED_SECONDS)
                stalled()
            return await call
        finally:
            # If the model was removed, this was cancelled, and no caller takes the result. A call that has failed is
            # cancelled too: else asyncio would report its exception as never retrieved.
            call.cancel()

    # -- scans -----------------------------------------------------------------------------------------------

    async def _follow(self, name: str, target: _Target, settler: Settler) -> None:
        path = target.path
        woken, looked = False, time.monotonic()
        while self._poll_seconds >= 0:
            try:
                loaded = self._listener.loaded_versions(name)
                skip = loaded - settler.to_fingerprint
                now = time.monotonic()
                if woken or settler.due is not None or now - looked >= _LOADED_LOOK_SECONDS:
                    skip, looked = frozenset(), now
                scan = await self._look(
                    target,
                    partial(scan_base_path, path, skip, loaded),
                    lambda: self._listener.base_path_lost(name, f"{path} has not answered for {_STALLED_SECONDS:g} s"),
                )
                if settler.lost_mount(scan):
                    reason = f"{path} is suddenly empty and on another device (a lost mount?); nothing is unloaded"
                    self._listener.base_path_lost(name, reason)
                else:
                    observed = settler.observe(scan, time.monotonic(), time.time(), loaded)
                    observed = await self._with_contents(target, observed)
                    self._listener.versions_observed(name, observed, scan.remark, bool(scan.held))
            except OSError as error:
                problem = error.strerror or str(error)
                self._listener.base_path_lost(name, f"{path} cannot be read ({problem}); nothing is unloaded")
            except Exception:
                # The outer loop of this model: an error of ours must not leave it unwatched for ever.
                logger.exception("looking at %s failed; it is tried again", path)
            # As in TensorFlow Serving, 0 scans once, and again only if `look` asks for it.
            woken = await self._pause(target, _until(settler.due, self._poll_seconds or None))

    async def _with_contents(self, target: _Target, observed: dict[int, Observed]) -> dict[int, Observed]:
        """Return what was observed with the content of the files that have settled, which is read once."""
        target.contents = {version: known for version, known in target.contents.items() if version in observed}
        unknown = {
            version: (seen.digest, seen.path)
            for version, seen in observed.items()
            if seen.settled and seen.digest and target.contents.get(version, ("",))[0] != seen.digest
        }
        if unknown:
            target.contents |= await self._look(
                target,
                lambda: {version: (digest, _content(path)) for version, (digest, path) in unknown.items()},
                lambda: None,
            )
        return {
            version: replace(seen, content=target.contents[version][1]) if seen.settled and seen.digest else seen
            for version, seen in observed.items()
        }

    async def _follow_root(self, target: _Target) -> None:
        root = target.path
        device: int | None = None
        problem = ""
        missing: dict[str, float] = {}  # model → since when its folder has been missing (monotonic seconds)
        while self._poll_seconds >= 0:
            due: float | None = None
            found: list[str] | None = None
            try:
                seen_device, found, refused = await self._look(target, lambda: scan_root(root), lambda: None)
                if not found and self._in_root and seen_device != device:
                    found = None
                    raise OSError("it is suddenly empty and on another device: a lost mount?")
                device, problem = seen_device, ""
                self._listener.models_refused(refused)
            except OSError as error:
                if problem != (problem := error.strerror or str(error)):
                    logger.error("the model root %s cannot be read (%s); nothing is unloaded", root, problem)
            if found is not None:
                now = time.monotonic()
                missing = {name: missing.get(name, now) for name in self._in_root.difference(found)}
                for name, since in list(missing.items()):
                    # During `mv m old; mv new m` the folder is briefly missing, so a deletion must settle too.
                    gone_at = since + self._targets[name].settle_seconds
                    if now < gone_at:
                        due = gone_at if due is None else min(due, gone_at)
                        continue
                    del missing[name]
                    self.remove(name)
                    self._listener.model_vanished(name)
                for name in found:
                    if name not in self._targets:
                        base_path = os.path.join(root, name)
                        settle_seconds = self._listener.model_appeared(name, base_path)
                        self._in_root.add(name)
                        self._add(name, base_path, settle_seconds)
            if self._poll_seconds == 0:
                return
            await self._pause(target, _until(due, self._poll_seconds))


def _content(path: str) -> str:
    """Return what identifies the content of a version folder, "" if it cannot be read."""
    try:
        return content(path)
    except OSError:
        return ""


def _until(due: float | None, poll_seconds: float | None) -> float | None:
    """Return the seconds until the next scan: until `due` (monotonic) if that comes first; None: until an event."""
    seconds = [] if poll_seconds is None else [poll_seconds]
    return min([*seconds, *([] if due is None else [max(due - time.monotonic(), 0.01)])], default=None)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


class _Hint(FileSystemEventHandler):
    """Passes on the paths of watchdog's events."""

    def __init__(self, hint: Callable[[str], None]) -> None:
        self._hint = hint

    def on_any_event(self, event: FileSystemEvent) -> None:
        for path in (event.src_path, event.dest_path):
            if path:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    self._hint(os.fsdecode(path))

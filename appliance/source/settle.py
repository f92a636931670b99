"""When a version folder has stopped changing, and when an empty listing must not be believed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.core.observed import Observed


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What identifies a folder's content without reading it: a digest over every entry's path, size, inode and
    ctime, and the newest ctime (seconds of the wall clock). ctime, because `rsync -a` preserves mtime.

    `names` are those of the model files (`backends.registry.MODEL_FILES`) that it holds.
    """

    digest: str
    newest_ctime: float
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Scan:
    """One look at a base path: its device, its version folders, and remarks on what was ignored.

    A fingerprint is None where it was not asked for: the version is loaded, and only its existence matters, and by
    `inodes` that its folder is the one that it was.
    """

    device: int
    versions: Mapping[int, Fingerprint | None]
    paths: Mapping[int, str]
    remark: str = ""
    inodes: Mapping[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Settler:
    """Follows one base path through its scans."""

    settle_seconds: float
    _device: int | None = None
    _seen: dict[int, tuple[str, float]] = field(default_factory=dict)  # version → digest, since when (monotonic)
    _paths: dict[int, str] = field(default_factory=dict)  # of the versions that are there, or were just before
    _gone: dict[int, float] = field(default_factory=dict)  # version → since when its folder has been missing
    _returned: set[int] = field(default_factory=set)  # versions that went and came back, and have not settled since
    _inodes: dict[int, int] = field(default_factory=dict)  # of the versions' folders
    _had_versions: bool = False
    _first: bool = True
    due: float | None = None  # monotonic time at which the next version may have settled

    def lost_mount(self, scan: Scan) -> bool:
        """Whether `scan` shows an empty folder of another device where versions were: `umount -l`, not a deletion."""
        return self._had_versions and not scan.versions and scan.device != self._device

    @property
    def to_fingerprint(self) -> frozenset[int]:
        """The versions whose files are to be looked at although they are loaded: they went, and may be back."""
        return frozenset(self._returned | self._gone.keys())

    def observe(self, scan: Scan, now: float, wall_now: float) -> dict[int, Observed]:
        """The version folders of `scan`, each with whether it has settled. `now` is monotonic.

        A folder has settled when nothing in it has changed for `settle_seconds` as we watched. What was there before
        we first looked is judged by its ctimes instead, so that a restart waits for nothing. That a folder is gone must
        settle too: in `rm -r 1; cp -r … 2` there is a moment without any.
        """
        self._device = scan.device
        self._had_versions = bool(scan.versions)
        self._seen = {version: seen for version, seen in self._seen.items() if version in scan.versions}
        self.due = None
        # Another folder under the same number, such as that of the next release behind a link: it is looked at at once.
        # Not the device: that of a file system which is mounted again may be another one, with the same files.
        replaced = {n for n, inode in scan.inodes.items() if self._inodes.get(n, inode) != inode}
        self._inodes = dict(scan.inodes)
        self._returned |= replaced
        if replaced:
            self.due = now
        observed = self._still_there(scan, now)
        for version, fingerprint in scan.versions.items():
            path = scan.paths[version]
            if fingerprint is None:
                observed[version] = Observed(path, None, settled=True)
                continue
            digest, since = self._seen.get(version, ("", now))
            if digest != fingerprint.digest:
                since = now
                age = wall_now - fingerprint.newest_ctime
                if self._first and age > 0:
                    since = now - age
                self._seen[version] = (fingerprint.digest, since)
            quiet = now - since
            settled = quiet >= self.settle_seconds
            reason = ""
            if not settled:
                self.due = min(self.due or float("inf"), since + self.settle_seconds)
                reason = f"its files changed {quiet:.1f} s ago; waiting until they rest for {self.settle_seconds:g} s"
            else:
                self._returned.discard(version)
            observed[version] = Observed(path, fingerprint.digest, settled, reason, fingerprint.names)
        self._first = False
        return observed

    def _still_there(self, scan: Scan, now: float) -> dict[int, Observed]:
        """The versions that were there and are not in `scan`, for `settle_seconds`."""
        self._paths.update(scan.paths)
        self._returned |= self._gone.keys() & scan.versions.keys()
        self._gone = {version: self._gone.get(version, now) for version in self._paths if version not in scan.versions}
        observed: dict[int, Observed] = {}
        for version, since in self._gone.items():
            if now - since < self.settle_seconds:
                self.due = min(self.due or float("inf"), since + self.settle_seconds)
                observed[version] = Observed(self._paths[version], None, settled=False)
            else:
                del self._paths[version]
                self._returned.discard(version)
        return observed

"""Decides when a version folder has stopped changing, and when an empty listing is a lost mount. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.core.observed import Observed


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What identifies a folder's content without reading it.

    `digest` covers every entry's path, size, inode and ctime; `newest_ctime` is in seconds of the wall clock. ctime is
    used because `rsync -a` preserves mtime. `names` are the model files (`backends.registry.MODEL_FILES`) in the
    folder.
    """

    digest: str
    newest_ctime: float
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan of a base path: its device, its version folders, and a remark about ignored entries.

    A fingerprint is None if it was not asked for: the version is loaded, and this time only its folder's existence and
    inode matter. `held` says which model lies in the base path itself, where no version is looked for; "" if none does.
    """

    device: int
    versions: Mapping[int, Fingerprint | None]
    paths: Mapping[int, str]
    remark: str = ""
    inodes: Mapping[int, int] = field(default_factory=dict)
    held: str = ""


@dataclass(slots=True)
class Settler:
    """Follows one base path through its scans."""

    settle_seconds: float
    _device: int | None = None
    _seen: dict[int, tuple[str, float]] = field(default_factory=dict)  # version → digest, since when (monotonic)
    _paths: dict[int, str] = field(default_factory=dict)  # version → path, of present and recently present versions
    _gone: dict[int, float] = field(default_factory=dict)  # version → since when its folder has been missing
    _returned: set[int] = field(default_factory=set)  # versions that vanished and came back, and have not settled since
    _inodes: dict[int, int] = field(default_factory=dict)  # version → inode of its folder
    _had_versions: bool = False
    _first: bool = True
    due: float | None = None  # when the next version may have settled (monotonic seconds)

    def lost_mount(self, scan: Scan) -> bool:
        """Return whether an empty `scan` is a lost mount (`umount -l`): versions were there, on another device."""
        return self._had_versions and not scan.versions and scan.device != self._device

    @property
    def to_fingerprint(self) -> frozenset[int]:
        """Return the loaded versions that need a fingerprint: their folders vanished, and may have come back."""
        return frozenset(self._returned | self._gone.keys())

    def observe(
        self, scan: Scan, now: float, wall_now: float, loaded: frozenset[int] = frozenset()
    ) -> dict[int, Observed]:
        """Return the version folders of `scan`, each with whether it has settled.

        `now` is in monotonic seconds, `wall_now` in seconds of the wall clock. A folder has settled if nothing in it
        has changed for `settle_seconds`. At the first scan this is judged by the ctimes, so that a restart does not
        wait. A deletion must settle too: during `rm -r 1; cp -r … 2` there is a moment without any version. The folder
        of a version in `loaded` is the one that it was loaded from, unless it was replaced or had vanished.
        """
        self._device = scan.device
        self._had_versions = bool(scan.versions)
        self._seen = {version: seen for version, seen in self._seen.items() if version in scan.versions}
        self.due = None
        # A new folder under the same number, such as the next release behind a link, is fingerprinted at once. The
        # device is not compared: a file system that is mounted again may get another one for the same files.
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
            in_place = version in loaded and version not in self._returned
            reason = ""
            if not settled:
                self.due = min(self.due or float("inf"), since + self.settle_seconds)
                reason = f"its files changed {quiet:.1f} s ago; waiting until they rest for {self.settle_seconds:g} s"
            else:
                self._returned.discard(version)
            observed[version] = Observed(
                path, fingerprint.digest, settled, reason, fingerprint.names, in_place=in_place
            )
        self._first = False
        return observed

    def _still_there(self, scan: Scan, now: float) -> dict[int, Observed]:
        """Return the versions that are missing in `scan`, for `settle_seconds` after they vanished."""
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

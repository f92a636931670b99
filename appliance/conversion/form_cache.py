"""The cache of converted models as the options name it, and the key that seals what is kept there."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import threading

from appliance.config.options import Options
from appliance.core.errors import ConfigError
from converters.cache import default_folder

__all__ = ["FormCache", "check_key_file", "default_key_file", "form_cache"]

logger = logging.getLogger(__name__)

_MIN_BYTES, _MAX_BYTES = 32, 4096
_NEW_BYTES = 32


def default_key_file() -> str:
    """Return the default file of the key: of the service or of root, or in the user's folder for what programs keep."""
    if os.geteuid() == 0:
        return "/var/lib/dropserve/keys/cache.key"
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "dropserve", "cache.key")


class FormCache:
    """Where converted models are kept, at most `max_bytes` of them, and with which key they are sealed."""

    def __init__(self, folder: str, max_bytes: int, key_file: str) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._key_file = key_file
        self._key: bytes | None = None
        self._lock = threading.Lock()

    def key(self) -> bytes:
        """Return the key, which is read at the first call, or made if there is none; b"" if nothing is to be kept, or
        if it cannot be made, which is logged. It may wait for the disk. Raise ConfigError if the file cannot be
        used."""
        with self._lock:
            if self._key is None:
                self._key = self._read_or_make() if self.max_bytes else b""
            return self._key

    def _read_or_make(self) -> bytes:
        path = self._key_file
        if os.path.commonpath([os.path.realpath(path), os.path.realpath(self.folder)]) == os.path.realpath(self.folder):
            raise ConfigError(
                f"cache_key_file {path} lies in cache_dir {self.folder}",
                "set it to a file elsewhere: whoever may write in cache_dir must not have the key",
            )
        try:
            return _read(path)
        except FileNotFoundError:
            pass
        try:
            _make(path)
        except OSError as error:
            logger.warning(
                "converted models are not kept: the key that seals them cannot be made in %s (%s); set cache_key_file "
                "to a file in a folder that the server's user may write",
                path,
                error.strerror,
            )
            return b""
        logger.info("made %s, the key that seals converted models", path)
        return _read(path)


def form_cache(options: Options) -> FormCache:
    """Return the cache that `options` name."""
    return FormCache(
        options.cache_dir or default_folder(), options.cache_max_bytes, options.cache_key_file or default_key_file()
    )


def check_key_file(options: Options) -> None:
    """Raise ConfigError if there is a key of the cache and it cannot be used."""
    if options.cache_max_bytes:
        with contextlib.suppress(FileNotFoundError):
            _read(options.cache_key_file or default_key_file())


def _read(path: str) -> bytes:
    """Return the key in the file `path`. Raise FileNotFoundError; ConfigError if it cannot be used."""
    where = f"cache_key_file {path}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(
            f"{where} cannot be read: {error.strerror}", "make it a file of the server's user, of mode 0600"
        ) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ConfigError(f"{where} is no file", "give the path of a file; it is made if there is none")
    with open(descriptor, "rb") as file:
        if status.st_mode & 0o077:
            raise ConfigError(
                f"{where} has mode {stat.S_IMODE(status.st_mode):04o}: others may read or write it",
                f"chmod 600 {path}, and remove cache_dir's entries if others may have read it",
            )
        key = file.read(_MAX_BYTES + 1).strip()
    if not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise ConfigError(
            f"{where} has {'more than ' if len(key) > _MAX_BYTES else ''}{min(len(key), _MAX_BYTES):,} bytes",
            f"a key has {_MIN_BYTES} to {_MAX_BYTES:,}; remove the file to have one made",
        )
    return key


def _make(path: str) -> None:
    """Make a key, unless another server has made one meanwhile: a reader sees all of it or none. Raise OSError."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = f"{path}.{secrets.token_hex(4)}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(secrets.token_hex(_NEW_BYTES).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)

"""The key that seals converted models: made once, for the server's user alone, and refused if others may have it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.config.options import Options
from appliance.conversion.form_cache import FormCache, check_key_file, default_key_file, form_cache
from appliance.core.errors import ConfigError
from converters.spec import Job, JobSpec
from tests.support.acceleration_jobs import ROOT


def key_of(path: Path) -> bytes:
    return FormCache(str(path.parent / "cache"), 1 << 20, str(path)).key()


def test_the_key_is_made_once_and_for_nobody_else_to_read(tmp_path: Path) -> None:
    path = tmp_path / "state" / "cache.key"
    key = key_of(path)
    assert len(key) == 64
    assert key_of(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(path.parent) == ["cache.key"]
    assert key_of(tmp_path / "other.key") != key


def test_of_servers_that_start_together_all_have_the_same_key(tmp_path: Path) -> None:
    program = f"""
from appliance.conversion.form_cache import FormCache
print(FormCache("/cache", 1, {str(tmp_path / "cache.key")!r}).key().decode())
"""
    command = [sys.executable, "-c", program]
    servers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert len({server.communicate(timeout=60)[0] for server in servers}) == 1


def test_a_key_that_was_copied_from_another_server_is_used(tmp_path: Path) -> None:
    path = tmp_path / "cache.key"
    path.write_bytes(b"a key that somebody has typed, 32 bytes at least\n")
    path.chmod(0o400)
    assert key_of(path) == b"a key that somebody has typed, 32 bytes at least"


def mode(number: int) -> Callable[[Path], object]:
    def made(path: Path) -> None:
        path.write_bytes(b"k" * 40)
        path.chmod(number)

    return made


def content(data: bytes) -> Callable[[Path], object]:
    def made(path: Path) -> None:
        path.write_bytes(data)
        path.chmod(0o600)

    return made


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (mode(0o644), "has mode 0644: others may read or write it; chmod 600 "),
        (mode(0o620), "has mode 0620"),
        (content(b"short"), "has 5 bytes; a key has 32 to 4,096; remove the file to have one made"),
        (content(b" " * 100), "has 0 bytes"),
        (content(b"k" * 5000), "has more than 4,096 bytes"),
        (Path.mkdir, "is no file; give the path of a file"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
    ],
)
def test_a_file_that_is_no_secret_key_is_refused(tmp_path: Path, make: Callable[[Path], object], told: str) -> None:
    path = tmp_path / "cache.key"
    make(path)
    with pytest.raises(ConfigError) as raised:
        key_of(path)
    assert f"cache_key_file {path} {told}" in str(raised.value)
    with pytest.raises(ConfigError):
        check_key_file(Options(cache_key_file=str(path)))
    check_key_file(Options(cache_key_file=str(path), cache_max_bytes=0))  # nothing is kept


def test_a_key_in_the_folder_that_it_protects_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(tmp_path)
    for path in (tmp_path / "cache.key", tmp_path / "other" / "x" / "cache.key"):
        with pytest.raises(ConfigError, match="lies in cache_dir"):
            FormCache(str(tmp_path), 1, str(path)).key()
        assert not path.exists()


def test_without_a_place_for_the_key_nothing_is_kept_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FormCache(str(tmp_path / "cache"), 1, "/proc/none/cache.key")
    assert (cache.key(), cache.key()) == (b"", b"")
    assert caplog.text.count("cannot be made in") == 1
    assert "set cache_key_file to a file in a folder that the server's user may write" in caplog.text
    assert FormCache(str(tmp_path), 0, str(tmp_path / "none")).key() == b""
    assert not (tmp_path / "none").exists()


def test_the_default_is_the_services_or_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_key_file() == "/var/lib/dropserve/keys/cache.key"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/me/.state")
    assert default_key_file() == "/home/me/.state/dropserve/cache.key"
    assert form_cache(Options(cache_dir="/c", cache_max_bytes=7)).folder == "/c"


def test_no_text_of_a_job_has_the_key() -> None:
    assert "secret" not in repr(Job(JobSpec("/m/1", "/work"), b"secret"))

"""Files of the configuration that are no files, have no end, or are too large."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.config.files import read_config_file, read_config_text
from appliance.core.errors import ConfigError


def test_a_file_is_read_whole_also_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("größe")
    (tmp_path / "link").symlink_to("real")
    assert read_config_text(str(tmp_path / "link"), "the file") == "größe"
    assert read_config_file(str(tmp_path / "real"), "the file", 7) == "größe".encode()


def test_what_would_block_or_never_end_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ConfigError, match=rf"cannot read the file .*/{name}: it is not a file"):
            read_config_text(str(tmp_path / name), "the file")


def test_a_folder_a_dangling_link_and_an_impossible_path_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    for path, reason in (
        (tmp_path, "is a directory|not a file"),
        (tmp_path / "link", "No such file"),
        ("a\0b", "null"),
    ):
        with pytest.raises(ConfigError, match=f"(?i){reason}"):
            read_config_text(str(path), "the file")


def test_a_file_that_is_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    with pytest.raises(ConfigError, match=r"the file .*/file has more than 4 bytes"):
        read_config_text(str(file), "the file", 4)
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"the file .*/file is not UTF-8 text"):
        read_config_text(str(file), "the file")

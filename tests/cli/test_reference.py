"""What is written from the tables of options and flags: the manual pages and the sample configuration."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.cli.main import main
from appliance.cli.reference import flags_manual, options_file, options_manual, sample
from appliance.config.model_config import parse_model_config
from appliance.config.options import Options, about, option_types
from appliance.config.serving_flags import FLAGS
from appliance.config.settings import read_settings

ROOT = Path(__file__).parents[2]
MAN = ROOT / "docs" / "man"
SAMPLE = ROOT / "etc" / "dropserve.toml"
SETTABLE = [name for name in option_types(Options) if name != "base_path"]


def between(page: Path, mark: str) -> str:
    """What stands between the two comments of a manual page."""
    text = page.read_text()
    return text[text.index(f'.\\" {mark}\n') + len(mark) + 5 : text.index(f'.\\" end of {mark}\n')]


# -- the sample configuration ------------------------------------------------------------------------------------------


def test_the_sample_is_up_to_date() -> None:
    assert SAMPLE.read_text() == sample(), "run: make docs"


def test_the_sample_is_what_the_service_starts_with() -> None:
    assert read_settings({}, str(SAMPLE)).options == replace(
        Options(),
        model_root="/var/lib/dropserve/models",
        model_config_file="/etc/dropserve/models.config",
        cache_dir="/var/cache/dropserve",
        cache_key_file="/var/lib/dropserve/keys/cache.key",
        runtime_dir="/run/dropserve",
    )
    assert read_settings({}, str(SAMPLE)).models == {}
    assert parse_model_config((ROOT / "etc" / "models.config").read_text(), "models.config") == ()


def test_every_option_stands_in_the_sample_with_what_it_does_and_its_default() -> None:
    told, _, _ = sample().partition("# -- One model ")
    seen = []
    for entry in told.strip().split("\n\n"):
        *comment, last = entry.strip().splitlines()
        found = re.fullmatch(r"(# )?([a-z0-9_]+) = .*", last)
        if found is None:
            continue  # the head of the file, or of a group
        name = found[2]
        seen.append(name)
        assert about(name).help in " ".join(line.removeprefix("# ") for line in comment)
        if found[1]:
            default = getattr(Options(), name)
            shown = list(default) if isinstance(default, tuple) else default  # a list of TOML's
            assert tomllib.loads(last.removeprefix("# ")) == {name: shown}
    assert sorted(seen) == sorted(SETTABLE)


def test_a_file_of_options_has_what_is_set_and_says_it_as_toml(tmp_path: Path) -> None:
    path = tmp_path / "dropserve.toml"
    wanted = {"bind_address": 'a "b" \\ ä', "port": 7, "access_log": True, "settle_seconds": 0.5}
    path.write_text(options_file(wanted))
    assert read_settings({}, str(path)).options == replace(Options(), **wanted)


# -- the manual pages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "mark", "text"),
    [("dropserve.1", "options", options_manual()), ("tensorflow_model_server.1", "flags", flags_manual())],
)
def test_a_manual_page_is_up_to_date(page: str, mark: str, text: str) -> None:
    assert between(MAN / page, mark) == text, "run: make docs"


def test_the_manual_pages_tell_of_every_option_flag_and_command() -> None:
    options, flags = (MAN / "dropserve.1").read_text(), (MAN / "tensorflow_model_server.1").read_text()
    for name in SETTABLE:
        head = f"Ic {name}\n" if about(name).file_only else f"Fl -{name} Ar "
        assert f"\n.It {head}" in options
    for name in FLAGS:
        assert f"\n.It Fl -{name} Ns = Ns Ar " in flags


def test_the_manual_page_tells_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE)
    assert {"serve", "doctor", "models"} <= set(commands)
    page = (MAN / "dropserve.1").read_text()
    for command in commands:
        assert f"\n.Nm\n.Cm {command}\n" in page


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("page", ["dropserve.1", "tensorflow_model_server.1"])
def test_a_manual_page_is_formatted_without_a_warning(page: str) -> None:
    formatted = subprocess.run(
        ["groff", "-mdoc", "-Tascii", "-ww", "-P-cbou", str(MAN / page)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert formatted.stderr == ""
    for name in FLAGS if page != "dropserve.1" else SETTABLE:
        dashes = "" if page == "dropserve.1" and about(name).file_only else "--"
        assert re.search(rf"{dashes}{name}\b", formatted.stdout), name

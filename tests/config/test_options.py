"""Flags, the TOML file, which of them goes first, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.cli.main import main
from appliance.cli.reference import options_page
from appliance.config.model_options import ModelOptions
from appliance.config.options import Options, about, option_types
from appliance.config.removed import REMOVED
from appliance.config.settings import Settings, from_text, read_settings
from appliance.config.version_policy import (
    All,
    Latest,
    Specific,
    VersionPolicy,
    format_version_policy,
    parse_version_policy,
)
from appliance.core.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "dropserve.toml"


def configured(config: Path, text: str, **flags: object) -> Settings:
    config.write_text(text)
    return read_settings(flags, str(config))


def refused(config: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        configured(config, text)
    assert str(caught.value).startswith(f"{config}")
    return str(caught.value).removeprefix(f"{config}: ")


def refused_flag(name: str, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_settings({name: from_text(name, text)})
    return str(caught.value)


# -- what goes first --------------------------------------------------------------------------------------------


def test_without_flags_and_file_everything_is_at_its_default() -> None:
    assert read_settings({}) == Settings(Options(), {})
    assert (Options().port, Options().rest_api_port, Options().version_policy) == (8500, 8501, "latest")


def test_a_key_at_the_top_level_goes_before_the_default(config: Path) -> None:
    assert configured(config, "settle_seconds = 5\nport = 1").options == Options(settle_seconds=5.0, port=1)


def test_a_flag_goes_before_the_file(config: Path) -> None:
    settings = configured(config, "port = 1\nrest_api_port = 2", port=3)
    assert (settings.options.port, settings.options.rest_api_port) == (3, 2)


def test_the_nearest_word_on_a_model_goes_first(config: Path) -> None:
    text = 'version_policy = "latest:2"\nsettle_seconds = 1\n[models.a]\nversion_policy = "latest:5"\n'
    by_file = configured(config, text)
    assert by_file.of_model("b").version_policy == "latest:2"
    by_flag = configured(config, text, version_policy="latest:3")
    assert by_flag.of_model("b").version_policy == "latest:3"
    assert by_flag.of_model("b", version_policy="latest:4").version_policy == "latest:4"
    assert by_flag.of_model("a", version_policy="latest:4").version_policy == "latest:5"
    assert by_flag.of_model("a").settle_seconds == 1.0
    assert read_settings({}).of_model("a") == ModelOptions()


def test_a_table_says_where_a_model_is(config: Path) -> None:
    settings = configured(config, '[models.a]\nbase_path = "/models/a"\n[models."b.c"]\nload_timeout_seconds = 7\n')
    assert settings.of_model("a").base_path == "/models/a"
    assert settings.of_model("b.c") == ModelOptions(load_timeout_seconds=7.0)


def test_a_whole_number_may_stand_for_a_number_and_not_the_other_way_round(config: Path) -> None:
    assert configured(config, "settle_seconds = 3").options.settle_seconds == 3.0
    assert "port is 8500.0; it must be a whole number" in refused(config, "port = 8500.0")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", "8500", 8500),
        ("settle_seconds", "0.5", 0.5),
        ("access_log", "true", True),
        ("access_log", "False", False),
        ("access_log", "1", True),
        ("bind_address", "::", "::"),
        ("model_base_path", "/models/a b", "/models/a b"),
    ],
)
def test_the_text_of_a_flag_becomes_its_value(name: str, text: str, value: object) -> None:
    options = read_settings({name: from_text(name, text)}).options
    assert getattr(options, name) == value
    assert type(getattr(options, name)) is type(value)


def test_a_list_of_strings_is_one_of_the_file_and_travels_through_json(config: Path) -> None:
    settings = configured(config, 'op_libraries = ["/a.so"]\n[models.m]\nop_libraries = ["file:///b.so", "/c.so"]\n')
    assert settings.of_model("other").op_libraries == ("/a.so",)
    options = settings.of_model("m")
    assert options.op_libraries == ("/b.so", "/c.so")
    assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(options))), ModelOptions) == options


def test_tags_are_separated_by_commas() -> None:
    assert ModelOptions(saved_model_tags="serve, gpu").tags == ("serve", "gpu")
    assert ModelOptions().tags == ("serve",)


# -- what is refused --------------------------------------------------------------------------------------------

NUMBERS = [name for name in option_types(Options) if about(name).minimum is not None]
PATHS = ["model_root", "model_base_path", "grpc_socket_path", "runtime_dir"]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_beyond_its_limits_is_refused_with_the_limits(name: str) -> None:
    limits = about(name)
    assert limits.minimum is not None
    below = refused_flag(name, str(int(limits.minimum) - 1))
    assert below.startswith(f"--{name} is {int(limits.minimum) - 1}")
    assert f"; it must be {'at least' if limits.maximum is None else 'from'} " in below
    if limits.maximum is not None:
        assert f" to {limits.maximum:,.10g}" in refused_flag(name, str(int(limits.maximum) + 1))


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", ["", "x", "1e", "1,5", "0x10", "nan", "inf", "-inf"])
def test_what_is_no_number_is_refused(name: str, text: str) -> None:
    message = refused_flag(name, text)
    assert f"--{name} is " in message
    assert "; it must be " in message


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("access_log", "maybe", "--access_log is 'maybe'; it must be true or false"),
        ("log_format", "xml", "--log_format is 'xml'; it is one of text, json"),
        ("log_level", "INFO", "--log_level is 'INFO'; it is one of debug, info, warning, error"),
        ("model_name", "", "--model_name: '' is no model's name; a model's name is not empty and has no / and no :"),
        (
            "model_name",
            "a/b",
            "--model_name: 'a/b' is no model's name; a model's name is not empty and has no / and no :",
        ),
        ("model_name", "a\udcff", "--model_name: 'a\\udcff' is no model's name; a model's name is UTF-8"),
        ("model_root", "/m\udcff", "--model_root: '/m\\udcff' is not UTF-8; rename the folder or file"),
        (
            "model_root",
            "s3://b/m",
            "--model_root: 's3://b/m' is on s3; only local folders are served; mount it, or copy",
        ),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_what_is(name: str, text: str, message: str) -> None:
    assert refused_flag(name, text).startswith(message)


@pytest.mark.parametrize("name", PATHS)
def test_relative_and_remote_paths_are_refused(name: str) -> None:
    relative = refused_flag(name, "models/a")
    assert relative.startswith(f"--{name}: 'models/a' is a relative path; give an absolute one, such as {Path.cwd()}/")
    assert "'gs://bucket/models' is on gs" in refused_flag(name, "gs://bucket/models")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "there is no option {}prot; did you mean port?"),
        ("zzzz = 1", "there is no option {}zzzz; dropserve serve --help lists all options"),
        ("[server]\nport = 1", "there is no option {}server; "),
        ("port = true", "port is True; it must be a whole number"),
        ('port = "8500"', "port is '8500'; it must be a whole number"),
        ("access_log = 1", "access_log is 1; it must be true or false"),
        ("bind_address = 1", "bind_address is 1; it must be a string"),
        ("settle_seconds = []", "settle_seconds is []; it must be a number"),
        ('op_libraries = "/x.so"', "op_libraries is '/x.so'; it must be a list of strings, such as ["),
        ("op_libraries = [1]", "op_libraries is [1]; it must be a list of strings"),
        ('op_libraries = ["x.so"]', "op_libraries: 'x.so' is a relative path; give an absolute one"),
        ('op_libraries = [""]', "op_libraries: one of its paths is empty; give absolute paths"),
        ('[models.a]\nop_libraries = ["s3://b/x.so"]', "[models.a] op_libraries: 's3://b/x.so' is on s3; only local"),
        ("settle_seconds = inf", "settle_seconds is inf; it must be a finite number"),
        ("shutdown_grace_seconds = nan", "shutdown_grace_seconds is nan; it must be a finite number"),
        ("port = 1979-05-27", "port is datetime.date(1979, 5, 27); it must be a whole number"),
        ('base_path = "/m"', "base_path is '/m' for all models; set model_base_path, or base_path in a table"),
        ("models = 3", "models is 3; write a table [models.NAME] for each model"),
        ("[models]\na = 3", "[models.a] is 3; write it as a table of options"),
        ("[models.a]\nport = 3", "there is no option {}[models.a] port; "),
        (
            "[models.a]\nsetle_seconds = 3",
            "there is no option {}[models.a] setle_seconds; did you mean settle_seconds?",
        ),
        ("[models.a]\nsettle_seconds = -1", "[models.a] settle_seconds is -1.0; it must be from 0 to 86,400"),
        ('[models.a]\nbase_path = "m"', "[models.a] base_path: 'm' is a relative path; give an absolute one"),
        ('[models.a]\nbase_path = ""', "[models.a] base_path is ''; give the absolute path of the folder"),
        (
            '[models.a]\nversion_policy = "newest"',
            "[models.a] version_policy: version_policy is 'newest'; it is one of",
        ),
        ('[models.""]\n', "[models.] names no model; a model's name is not empty"),
        ('[models."a/b"]\n', "[models.a/b] names no model; a model's name is not empty and has no / and no :"),
        ('[models."a:b"]\n', "[models.a:b] names no model; "),
    ],
)
def test_a_file_with_something_that_is_not_allowed_is_refused_with_a_remedy(
    config: Path, text: str, message: str
) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_settings({}, str(config))
    expected = message.format(f"{config}: ")
    assert str(caught.value).removeprefix(f"{config}: ").startswith(expected)


def test_a_file_that_is_not_toml_is_refused_with_the_place(config: Path) -> None:
    config.write_text("port = \n")
    with pytest.raises(ConfigError, match=r"is not TOML: .*line 1, column"):
        read_settings({}, str(config))


def test_a_file_that_is_not_utf_8_is_refused(config: Path) -> None:
    config.write_bytes(b'bind_address = "\xff\xfe"\n')
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_settings({}, str(config))


def test_a_file_that_is_missing_or_a_folder_is_refused(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot read the configuration {config}: No such file"):
        read_settings({}, str(config))
    with pytest.raises(ConfigError, match="Is a directory"):
        read_settings({}, str(tmp_path))


# -- version policies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("latest", Latest(1)),
        ("latest:3", Latest(3)),
        ("all", All()),
        ("specific:7", Specific(frozenset({7}))),
        ("specific:1, 5,003", Specific(frozenset({1, 3, 5}))),
    ],
)
def test_a_version_policy_is_read(text: str, policy: VersionPolicy) -> None:
    assert parse_version_policy(text) == policy


@pytest.mark.parametrize(
    "text",
    [
        *("", "newest", "Latest", "latest:0", "latest:-1", "latest:x", "latest:1,2", "latest:", "latest:²"),
        *("all:1", "all:", "specific", "specific:", "specific:,", "specific:1,,2", "specific:-1", "specific:1.5"),
        pytest.param("latest:" + "9" * 5000, id="beyond what Python reads"),
    ],
)
def test_what_is_no_version_policy_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_version_policy(text)
    assert repr(text) in str(caught.value)
    assert "it is one of latest, latest:N (N at least 1), all, specific:V or specific:V,V" in str(caught.value)


@given(
    st.builds(Latest, st.integers(1, 10**6))
    | st.just(All())
    | st.builds(Specific, st.frozensets(st.integers(0, 2**63 - 1), min_size=1))
)
def test_a_version_policy_that_is_written_is_read_as_itself(policy: VersionPolicy) -> None:
    assert parse_version_policy(format_version_policy(policy)) == policy


# -- the command and the documents ------------------------------------------------------------------------------


def test_the_page_of_options_is_up_to_date() -> None:
    page = (ROOT / "docs" / "options.md").read_text()
    assert page == options_page(), "run: .venv/bin/dropserve options > docs/options.md"


def test_the_page_tells_of_every_option() -> None:
    page = options_page()
    for name in option_types(Options):
        assert f"| `{name}` |" in page
        assert about(name).help in page


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert caught.value.code == 0
    words = capsys.readouterr().out.split()
    for name in option_types(Options):
        assert (f"--{name}" in words) == (name not in ("base_path", "op_libraries", "model_signing_keys"))
    assert "[8501]" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--prot", "1"], "there is no option --prot; did you mean port?"),
        (["serve", "--prot=1"], "there is no option --prot; did you mean port?"),
        (["serve", "--rest_api_por", "1"], "there is no option --rest_api_por; did you mean rest_api_port?"),
        (["serve", "--base_path", "/m"], "there is no option --base_path; did you mean"),
        (
            ["serve", "--op_libraries", "/x.so"],
            '--op_libraries is no flag; write it into the file of --config: op_libraries = ["...", "..."]',
        ),
        (["serve", "--port"], "expected one argument"),
        (["serve", "--port", "x"], "--port is 'x'; it must be a whole number"),
        (["serve", "--port=70000"], "--port is 70000; it must be from -1 to 65,535"),
        (["serve", "models"], "'models' is not understood; see dropserve --help"),
        (["srve"], "invalid choice: 'srve'"),
        (["serve"], "no models are configured; give --model_root DIR"),
    ],
)
def test_a_command_that_is_wrong_says_why_and_exits_with_2(arguments: list[str], message: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "appliance", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("dropserve: ")
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


# -- options that were there once --------------------------------------------------------------------------------------


def test_a_removed_option_is_warned_of_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "old.toml"
    path.write_text('parity_tolerance = 1e-3\nlog_level = "debug"\n[models.m]\nonnx_spinning = true\n')
    settings = read_settings({"drain_timeout_seconds": "5"}, str(path))
    assert settings.options == Options(log_level="debug")
    assert settings.models == {"m": {}}
    flag, file, model = settings.warnings
    assert flag.startswith("--drain_timeout_seconds is no longer an option and has no effect: ")
    assert file.startswith(f"{path}: parity_tolerance is no longer an option")
    assert model.startswith(f"{path}: [models.m] onnx_spinning is no longer an option")


def test_a_removed_option_is_none_of_those_there_are() -> None:
    assert not REMOVED.keys() & option_types(Options).keys()

"""docs/conformance.md against the tables, the protos and the routes that it speaks of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from appliance.cli.reference import flags_table
from appliance.config.model_server import parse
from appliance.config.options import Options
from appliance.config.serving_flags import DEFAULTS, FLAGS
from appliance.protocols import protos

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/conformance.md").read_text()
MIGRATION = (ROOT / "docs/migration.md").read_text()
VERDICTS = ("same", "better: ", "accepted, no effect, because ")

# A row of the table of flags: name, type, default, verdict.
FLAG_ROWS = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \| (.+) \|$", PAGE, re.MULTILINE)
# A row of any other table: what it is about, verdict.
OTHER_ROWS = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)

# A value of each type, for flags whose default is no value.
VALUES = {"int32": "1", "int64": "1", "float": "0.5", "bool": "true", "string": "/x"}


def test_the_table_of_flags_is_written_from_the_code() -> None:
    written = PAGE.partition("<!-- flags -->\n")[2].partition("<!-- end of flags -->")[0]
    assert written == flags_table(), "run: make docs"


def test_every_flag_has_its_row_with_its_type_and_default() -> None:
    assert [row[0] for row in FLAG_ROWS] == list(FLAGS)
    for name, kind, default, _ in FLAG_ROWS:
        flag = FLAGS[name]
        assert (kind, default.strip("` ")) == (flag.kind, flag.shown_default)


@pytest.mark.parametrize("row", FLAG_ROWS, ids=lambda row: row[0])
def test_every_flag_of_the_page_is_one_of_the_command(row: tuple[str, str, str, str]) -> None:
    name, kind, default, _ = row
    value = default.strip("` ")
    if not value or "CPUs" in value:
        value = VALUES[kind]
    for arguments in ([f"--{name}={value}"], [f"--{name}", value]):
        line = parse(arguments)
        assert list(line.flags) == [name]
        assert not line.unknown


def test_every_row_has_a_verdict() -> None:
    assert len(OTHER_ROWS) > 50
    for about, verdict in [*((row[0], row[3]) for row in FLAG_ROWS), *OTHER_ROWS]:
        assert verdict.startswith(VERDICTS), f"{about}: {verdict}"


def test_every_rpc_has_its_row() -> None:
    rows = dict(OTHER_ROWS)
    for service in ("serving.PredictionService", "serving.ModelService", "ProfilerService"):
        for method in protos.POOL.FindServiceByName(f"tensorflow.{service}").methods:
            assert f"`tensorflow.{service}/{method.name}`" in rows


@pytest.mark.parametrize("route", ["NAME[VERSION]:predict", "NAME[VERSION]:classify", "NAME[VERSION]:regress"])
def test_every_route_that_infers_has_its_row(route: str) -> None:
    assert f"`POST /v1/models/{route}`" in dict(OTHER_ROWS)


MESSAGES = [
    *("ModelServerConfig", "ModelConfigList", "ModelConfig"),
    "FileSystemStoragePathSourceConfig.ServableVersionPolicy",
    "FileSystemStoragePathSourceConfig.ServableVersionPolicy.Latest",
    "FileSystemStoragePathSourceConfig.ServableVersionPolicy.Specific",
    *("SSLConfig", "MonitoringConfig", "PrometheusConfig", "BatchingParameters"),
]


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_of_a_config_file_has_its_row(name: str) -> None:
    rows = dict(OTHER_ROWS)
    message = protos.POOL.FindMessageTypeByName(f"tensorflow.serving.{name}")
    for field in message.fields:
        assert f"`{message.name}.{field.name}`" in rows


def test_the_page_on_migration_names_every_default_that_differs() -> None:
    defaults = Options()
    for name, value in DEFAULTS.items():
        (row,) = re.findall(rf"^\| `{name}` \| (.*) \| `(.*)` \|$", MIGRATION, re.MULTILINE)
        shown = "no REST" if name == "rest_api_port" else f"`{str(value).lower()}`"
        assert row == (shown, str(getattr(defaults, name)).lower())

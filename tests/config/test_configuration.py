"""Which models are configured, and what a new configuration changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.config.model_config import ModelConfig
from appliance.config.model_options import ModelOptions
from appliance.config.models import ConfiguredModel, configured_models, difference, needing_restart
from appliance.config.options import Options
from appliance.config.settings import Settings
from appliance.config.version_policy import All, Latest, Specific, VersionPolicy
from appliance.core.errors import ConfigError


def listed(name: str, path: str = "/m", policy: VersionPolicy | None = None, **labels: int) -> ModelConfig:
    return ModelConfig(name, path, policy or Latest(), labels)


def test_a_list_stands_instead_of_the_single_model_of_the_flags() -> None:
    settings = Settings(Options(model_name="one", model_base_path="/one/"))
    assert configured_models(settings, None)["one"].base_path == "/one"
    assert list(configured_models(settings, [listed("a"), listed("b")])) == ["a", "b"]
    assert configured_models(settings, []) == {}


def test_a_table_with_a_base_path_is_a_model_besides_and_its_options_go_before_the_list() -> None:
    tables = {"t": {"base_path": "/t", "settle_seconds": 9.0}, "a": {"version_policy": "all", "base_path": "/other"}}
    found = configured_models(Settings(Options(), tables), [listed("a", policy=Latest(2), stable=1)])
    assert found["t"].base_path == "/t"
    assert found["t"].options.settle_seconds == 9.0
    assert found["a"].base_path == "/other"
    assert found["a"].options.policy == All()
    assert found["a"].labels == {"stable": 1}


def test_a_label_must_point_at_a_version_that_the_policy_serves() -> None:
    both = Specific(frozenset({1, 2}))
    configured_models(Settings(Options()), [listed("a", policy=both, stable=1, canary=2)])
    configured_models(Settings(Options()), [listed("a", stable=1)])
    with pytest.raises(ConfigError, match=r"label canary points at version 3, .* \(specific: 1, 2\); add versions: 3"):
        configured_models(Settings(Options()), [listed("a", policy=both, canary=3)])
    allowing = Settings(Options(allow_version_labels_for_unavailable_models=True))
    assert configured_models(allowing, [listed("a", policy=both, canary=3)])["a"].labels == {"canary": 3}


@pytest.mark.parametrize(("label", "version"), [("", 1), ("a/b", 1), ("a:b", 1), ("x", -1)])
def test_a_label_that_no_request_can_name_is_refused(label: str, version: int) -> None:
    with pytest.raises(ConfigError, match="label"):
        configured_models(Settings(Options()), [ModelConfig("a", "/m", Latest(), {label: version})])


def test_the_difference_names_what_is_removed_added_and_changed() -> None:
    options = ModelOptions()
    a, b, c = (ConfiguredModel(name, f"/{name}", options) for name in "abc")
    moved = replace(b, base_path="/elsewhere")
    changes = difference({"a": a, "b": b}, {"b": moved, "c": c})
    assert (changes.removed, changes.added, changes.changed) == (("a",), (c,), (moved,))
    assert str(changes) == "added c; changed b; removed a"
    nothing = difference({"a": a}, {"a": a})
    assert not nothing
    assert str(nothing) == "nothing changed"


def test_only_what_a_running_server_cannot_change_needs_a_restart() -> None:
    old = Options()
    new = Options(port=1, settle_seconds=9.0, version_policy="all", log_level="debug", model_base_path="/m")
    assert needing_restart(old, new) == ["port", "log_level"]

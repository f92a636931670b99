"""The model config file: what parses, and what each refusal tells its author to do."""

from __future__ import annotations

import pytest

from appliance.config.model_config import ModelConfig, model_configs, parse_model_config
from appliance.config.version_policy import All, Latest, Specific, VersionPolicy
from appliance.core.errors import ConfigError
from appliance.protocols import protos


def entry(text: str) -> str:
    return f"model_config_list {{ config {{ {text} }} }}"


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_model_config(text, "models.config")
    assert caught.value.message.startswith("models.config: ")
    return caught.value


def test_a_full_file_parses() -> None:
    text = """
    # Served since spring.
    model_config_list: {
      config: {
        name: "resnet"
        base_path: "/models/resnet"
        model_platform: "tensorflow"
        model_version_policy { specific { versions: 42 versions: 43 } }
        version_labels { key: "stable" value: 42 }
        version_labels { key: "canary" value: 43 }
        logging_config {
          log_collector_config { type: "file" filename_prefix: "/var/log/resnet" }
          sampling_config { sampling_rate: 0.1 }
        }
      },
      config { name: 'half', base_path: 'file:///models/half' model_type: TENSORFLOW }
    }
    """
    assert parse_model_config(text, "models.config") == (
        ModelConfig("resnet", "/models/resnet", Specific(frozenset({42, 43})), {"stable": 42, "canary": 43}),
        ModelConfig("half", "/models/half", Latest(1), {}),
    )


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", Latest(1)),
        ("model_version_policy { }", Latest(1)),
        ("model_version_policy { latest { } }", Latest(1)),
        ("model_version_policy { latest { num_versions: 0 } }", Latest(1)),
        ("model_version_policy { latest { num_versions: 3 } }", Latest(3)),
        ("model_version_policy { all { } }", All()),
        ("model_version_policy: { specific: { versions: [7, 8, 7] } }", Specific(frozenset({7, 8}))),
    ],
)
def test_version_policies(text: str, policy: VersionPolicy) -> None:
    (model,) = parse_model_config(entry(f'name: "a" base_path: "/a" {text}'), "models.config")
    assert model.policy == policy


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "model_config_list { }"])
def test_a_file_may_list_no_models(text: str) -> None:
    assert parse_model_config(text, "models.config") == ()


def test_a_reload_request_is_read_like_a_file() -> None:
    request = protos.ReloadConfigRequest()
    request.config.model_config_list.config.add(name="a", base_path="/a", version_labels={"x": 1})
    assert model_configs(request.config, "reload") == (ModelConfig("a", "/a", Latest(1), {"x": 1}),)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("model_config_list {\n  config {\n    nam: 'a'\n  }\n}", "3:5: Message type"),
        ("model_config_list {\n  config { name: 3 }\n}", "2:18: "),
        ("model_config_list { config {", "1:28: Expected"),
        (entry("model_version_policy { latest { } all { } }"), "1:"),
        (entry("version_labels { key: 'a' value: 99999999999999999999 }"), "1:"),
        ("\0", "1:1: "),
    ],
)
def test_a_file_that_does_not_parse_is_refused_with_its_place(text: str, where: str) -> None:
    expected = f"Error parsing text-format tensorflow.serving.ModelServerConfig: {where}"
    assert expected in refusal(text).message


@pytest.mark.parametrize(
    "text",
    ['model_config { name: "a" base_path: "/a" }', '\n# models\nmodel_config: { name: "a" }', 'config { name: "a" }'],
)
def test_an_entry_without_its_list_is_told_how_to_begin(text: str) -> None:
    error = refusal(text)
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig: " in error.message
    assert "model_config_list { config {" in error.remedy


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ('base_path: "/a"', "a config has no name", "name and a base_path"),
        ('name: "a"', "model a: has no base_path", "absolute path"),
        ('name: "a" base_path: "file://"', "model a: has no base_path", "absolute path"),
        (
            'name: "a" base_path: "models/a"',
            "Expected model a to have an absolute path or URI; got base_path()=models/a",
            "did you mean '/",
        ),
        ('name: "a" base_path: "s3://bucket/a"', "'s3://bucket/a' is remote (s3://)", "local path"),
        ('name: "a" base_path: "/a\\000b"', "base_path '/a\\x00b' has a NUL character", ""),
        ('name: "a" base_path: "gs://bucket/a"', "'gs://bucket/a' is remote (gs://)", "local path"),
        ('name: "a" base_path: "hdfs://host/a"', "'hdfs://host/a' is remote (hdfs://)", "local path"),
        (
            'name: "a" base_path: "/a" model_platform: "onnx"',
            "Model a requests unsupported platform onnx",
            'model_platform: "tensorflow"',
        ),
        (
            'name: "a" base_path: "/a" model_type: OTHER',
            "Model a requests unsupported platform OTHER",
            'model_platform: "tensorflow"',
        ),
        ('name: "a" base_path: "/a" model_version_policy { specific { } }', "lists no versions", "specific {"),
    ],
)
def test_an_unusable_entry_is_refused_with_a_remedy(text: str, message: str, remedy: str) -> None:
    error = refusal(entry(text))
    assert message in error.message
    assert remedy in error.remedy


def test_a_model_listed_twice_is_refused() -> None:
    config = 'config { name: "a" base_path: "/a" }'
    error = refusal(f"model_config_list {{ {config} {config} }}")
    assert "Illegal to list model a multiple times in config list" in error.message


def test_a_custom_config_is_refused() -> None:
    custom = "custom_model_config { [type.googleapis.com/tensorflow.serving.ModelConfig] { } }"
    assert "custom_model_config is not supported" in refusal(custom).message

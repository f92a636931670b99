"""The command `tensorflow_model_server`: its flags, one by one and in use, its refusals, and its container's script."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest

from appliance.config.model_server import CommandLine, check, parse, translate, usage
from appliance.config.options import Options, option_types
from appliance.config.serving_flags import DEFAULTS, FLAGS
from appliance.config.settings import read_settings
from appliance.core.errors import ConfigError
from appliance.protocols import protos
from tests.support.server import ROOT, ModelServer, eventually

CORES = 4
CWD = os.getcwd()


def translated(*arguments: str) -> dict[str, Any]:
    return translate(parse(arguments), CORES)[0]


def said(*arguments: str) -> list[str]:
    return [text for _, text in translate(parse(arguments), CORES)[1]]


# -- each flag ---------------------------------------------------------------------------------------------------

# A value of each flag, and the options that it sets.
EFFECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "port": ("9000", {"port": 9000}),
    "grpc_socket_path": ("/run/s", {"grpc_socket_path": "/run/s"}),
    "rest_api_port": ("9001", {"rest_api_port": 9001}),
    "rest_api_num_threads": ("1", {"rest_workers": 1}),
    "rest_api_timeout_in_ms": ("5000", {"rest_api_timeout_in_ms": 5000}),
    "rest_api_enable_cors_support": ("true", {"rest_api_enable_cors_support": True}),
    "enable_batching": ("true", {"enable_batching": True}),
    "allow_version_labels_for_unavailable_models": ("true", {"allow_version_labels_for_unavailable_models": True}),
    "batching_parameters_file": ("b.txt", {"batching_parameters_file": f"{CWD}/b.txt"}),
    "enable_per_model_batching_parameters": ("true", {"enable_per_model_batching_parameters": True}),
    "model_config_file": ("/etc/m.txt", {"model_config_file": "/etc/m.txt"}),
    "model_config_file_poll_wait_seconds": ("7", {"model_config_file_poll_wait_seconds": 7}),
    "model_name": ("m", {"model_name": "m"}),
    "model_base_path": ("/models/m", {"model_base_path": "/models/m"}),
    "num_load_threads": ("3", {"max_concurrent_loads": 3}),
    "num_unload_threads": ("3", {}),
    "max_num_load_retries": ("9", {"max_num_load_retries": 9}),
    "load_retry_interval_micros": ("5000000000", {"load_retry_interval_micros": 5_000_000_000}),
    "file_system_poll_wait_seconds": ("10", {"file_system_poll_wait_seconds": 10}),
    "flush_filesystem_caches": ("false", {}),
    "tensorflow_session_parallelism": (
        "3",
        {"tensorflow_intra_op_parallelism": 3, "tensorflow_inter_op_parallelism": 3},
    ),
    "tensorflow_session_config_file": ("/etc/s.txt", {"tensorflow_session_config_file": "/etc/s.txt"}),
    "tensorflow_intra_op_parallelism": (
        "3",
        {"tensorflow_intra_op_parallelism": 3, "tensorflow_inter_op_parallelism": 0},
    ),
    "tensorflow_inter_op_parallelism": (
        "3",
        {"tensorflow_intra_op_parallelism": 0, "tensorflow_inter_op_parallelism": 3},
    ),
    "use_alts_credentials": ("true", {}),
    "ssl_config_file": ("/etc/ssl.txt", {"ssl_config_file": "/etc/ssl.txt"}),
    "platform_config_file": ("/etc/p.txt", {}),
    "per_process_gpu_memory_fraction": ("0.5", {}),
    "saved_model_tags": ("serve,gpu", {"saved_model_tags": "serve,gpu"}),
    "grpc_channel_arguments": ("grpc.max_connection_age_ms=2000", None),  # type: ignore[dict-item]  # as it is
    "grpc_max_threads": ("5", {"grpc_max_threads": 5}),
    "enable_model_warmup": ("false", {"enable_model_warmup": False}),
    "num_request_iterations_for_warmup": ("4", {"num_request_iterations_for_warmup": 4}),
    "version": ("true", {}),
    "monitoring_config_file": ("/etc/mon.txt", {"monitoring_config_file": "/etc/mon.txt"}),
    "remove_unused_fields_from_bundle_metagraph": ("false", {}),
    "prefer_tflite_model": ("true", {"prefer_tflite_model": True}),
    "num_tflite_pools": ("3", {"num_tflite_interpreters": 3}),
    "num_tflite_interpreters_per_pool": ("2", {"num_tflite_interpreters": 2 * CORES}),
    "enable_signature_method_name_check": ("true", {"enable_signature_method_name_check": True}),
    "xla_cpu_compilation_enabled": ("true", {}),
    "xla_gpu_compilation_enabled": ("true", {}),
    "enable_profiler": ("false", {"enable_profiler": False}),
    "thread_pool_factory_config_file": ("/etc/t.txt", {}),
    "mixed_precision": ("bfloat16", {}),
    "skip_initialize_tpu": ("true", {}),
    "enable_grpc_healthcheck_service": ("true", {"enable_grpc_healthcheck_service": True}),
    "enable_serialization_as_tensor_content": ("true", {"enable_serialization_as_tensor_content": True}),
}
EFFECTS["grpc_channel_arguments"] = (
    EFFECTS["grpc_channel_arguments"][0],
    {"grpc_channel_arguments": EFFECTS["grpc_channel_arguments"][0]},
)


def test_there_are_the_flags_of_tensorflow_serving() -> None:
    assert len(FLAGS) == 48
    assert EFFECTS.keys() == FLAGS.keys()


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_sets_its_option_however_it_is_written(name: str) -> None:
    text, options = EFFECTS[name]
    assert translated(f"--{name}={text}") == options
    assert translated(f"--{name}", text) == options
    assert read_settings(options, defaults=DEFAULTS).options == Options(
        **{**DEFAULTS, **{k: float(v) if option_types(Options)[k] is float else v for k, v in options.items()}}
    )


@pytest.mark.parametrize("name", [flag.name for flag in FLAGS.values() if flag.kind == "bool"])
def test_a_boolean_alone_is_true(name: str) -> None:
    assert parse([f"--{name}", "--port=1"]).flags == {name: True, "port": 1}
    assert parse([f"--{name}", "--port", "1"]).flags == {name: True, "port": 1}
    for text, value in [("TRUE", True), ("1", True), ("False", False), ("0", False)]:
        assert parse([f"--{name}={text}"]).flags == parse([f"--{name}", text]).flags == {name: value}


@pytest.mark.parametrize("flag", FLAGS.values(), ids=lambda flag: flag.name)
def test_a_flag_without_meaning_here_says_so_in_one_line_unless_it_has_its_default(flag: Any) -> None:
    text, _ = EFFECTS[flag.name]
    lines = said(f"--{flag.name}={text}")
    if flag.no_effect:
        (line,) = lines
        assert line.startswith(f"--{flag.name}: no effect, because ")
        default = str(flag.default).lower() if flag.kind == "bool" else flag.default
        assert said(f"--{flag.name}={default}") == []
    else:
        assert lines == []


@pytest.mark.parametrize("flag", FLAGS.values(), ids=lambda flag: flag.name)
def test_the_default_of_a_flag_is_what_happens_without_it(flag: Any) -> None:
    if flag.default in ("CPUs", "4 * CPUs", "") or flag.name in ("rest_api_num_threads", "version"):
        return  # a computed default, and one that names nothing, are not given as values
    default = str(flag.default).lower() if flag.kind == "bool" else str(flag.default)
    without = read_settings(translated(), defaults=DEFAULTS).options
    with_it = read_settings(translated(f"--{flag.name}={default}"), defaults=DEFAULTS).options
    if flag.name == "num_tflite_interpreters_per_pool":  # one for each core, in numbers
        without = read_settings({"num_tflite_interpreters": CORES}, defaults=DEFAULTS).options
    assert with_it == without


def test_help_shows_every_flag_with_its_default() -> None:
    page = usage()
    for flag in FLAGS.values():
        default = f'"{flag.default}"' if flag.kind == "string" else flag.shown_default
        assert f"--{flag.name}={default}" in page


# -- what flags mean together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--port=0", "--rest_api_port=8501"], {"port": -1, "rest_api_port": 8501}),
        (["--rest_api_port=0"], {"rest_api_port": -1}),
        (["--port=1", "--port=2"], {"port": 2}),
        (["--rest_api_num_threads=64"], {"rest_workers": 4}),
        (["--rest_api_num_threads=0"], {}),
        (["--num_load_threads=0"], {"max_concurrent_loads": 0}),
        (["--num_tflite_pools=3", "--num_tflite_interpreters_per_pool=2"], {"num_tflite_interpreters": 6}),
        (["--saved_model_tags="], {}),
        (["--load_retry_interval_micros=-1"], {"load_retry_interval_micros": 0}),
        (["--max_num_load_retries", "-1"], {"max_num_load_retries": 0}),
        (["--file_system_poll_wait_seconds=-5"], {"file_system_poll_wait_seconds": -1}),
        (["--model_config_file_poll_wait_seconds=-1"], {"model_config_file_poll_wait_seconds": 0}),
        (["--file_system_poll_wait_seconds=2147483647"], {"file_system_poll_wait_seconds": 86400}),
        (["--rest_api_timeout_in_ms=0"], {"rest_api_timeout_in_ms": 86_400_000}),
        (
            ["--tensorflow_session_parallelism=2", "--tensorflow_intra_op_parallelism=3"],
            {"tensorflow_intra_op_parallelism": 3, "tensorflow_inter_op_parallelism": 0},
        ),
        (["--settle_seconds=3", "--bind_address", "::1"], {"settle_seconds": 3.0, "bind_address": "::1"}),
    ],
)
def test_flags_are_translated(arguments: list[str], options: dict[str, Any]) -> None:
    assert translated(*arguments) == options


def test_a_config_file_goes_before_a_base_path() -> None:
    arguments = ["--model_config_file=/c", "--model_base_path=relative", "--model_name=m"]
    assert translated(*arguments) == {"model_config_file": "/c"}
    assert said(*arguments) == ["--model_name and --model_base_path: ignored, because --model_config_file is given"]


def test_rest_on_the_port_of_grpc_is_left_out_and_reported() -> None:
    for arguments in (["--port=9000", "--rest_api_port=9000"], ["--rest_api_port=8500"]):
        options, remarks = translate(parse(arguments), CORES)
        assert options["rest_api_port"] == -1
        assert [level for level, _ in remarks] == [logging.ERROR]


def test_flags_of_logging_libraries_are_accepted_in_one_line() -> None:
    arguments = [
        *("--logtostderr", "--v=1", "--v", "1", "--vmodule", "a=1", "--alsologtostderr", "true", "--minloglevel", "2"),
        *("--stderrthreshold=0", "--nologtostderr", "--tf_xla_auto_jit=2", "--log_dir", "/tmp", "--port=9000"),
    ]
    options, remarks = translate(parse(arguments), CORES)
    assert options == {"port": 9000}
    assert len(remarks) == 1
    assert "--logtostderr, --v, --vmodule" in remarks[0][1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--enable_batchin"], "unknown argument: --enable_batchin; it is ignored; did you mean --enable_batching?"),
        (
            ["--rest-api-port=8501"],
            "unknown argument: --rest-api-port=8501; it is ignored; did you mean --rest_api_port?",
        ),
        (["-port=9000"], "unknown argument: -port=9000; it is ignored; did you mean --port?"),
        (["--host", "0.0.0.0"], "unknown argument: --host; it is ignored; "),
        (["serve"], "unknown argument: serve; it is ignored; "),
        (["--", "--port=1"], "unknown argument: --port=1; "),
        (["--base_path=/x"], "unknown argument: --base_path=/x; it is ignored; did you mean --model_base_path?"),
    ],
)
def test_an_unknown_argument_is_reported_with_the_nearest_flag_and_ignored(arguments: list[str], words: str) -> None:
    options, remarks = translate(parse(arguments), CORES)
    assert options == {}
    (remark,) = remarks
    assert remark[0] == logging.WARNING
    assert remark[1].startswith(words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port=abc"], "Couldn't interpret value 'abc' for flag port; it must be a whole number of 32 bits"),
        (["--port="], "Couldn't interpret value '' for flag port"),
        (["--port=1_0"], "for flag port"),
        (["--port=1.0"], "for flag port"),
        (["--port=4294967296"], "for flag port"),
        (["--load_retry_interval_micros=9223372036854775808"], "a whole number of 64 bits"),
        (
            ["--enable_batching=yes"],
            "Couldn't interpret value 'yes' for flag enable_batching; it must be true or false",
        ),
        (["--per_process_gpu_memory_fraction=half"], "it must be a number"),
        (["--per_process_gpu_memory_fraction=nan"], "it must be a number"),
        (["--model_name"], "--model_name has no value; write --model_name=VALUE"),
        (["--model_name", "--port=1"], "--model_name has no value"),
        (["--settle_seconds=soon"], "--settle_seconds is 'soon'; it must be a number"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    assert words in str(caught.value)


def test_session_parallelism_beside_both_others_is_refused() -> None:
    arguments = [f"--tensorflow_{kind}_parallelism=2" for kind in ("session", "intra_op", "inter_op")]
    with pytest.raises(ConfigError, match="You cannot configure all"):
        translated(*arguments)


def test_two_kinds_of_credentials_are_refused() -> None:
    with pytest.raises(ConfigError, match="use_alts_credentials and ssl_config_file"):
        translated("--use_alts_credentials", "--ssl_config_file=/x")


def test_the_defaults_are_those_of_tensorflow_serving_and_the_file_goes_before_them(tmp_path: Path) -> None:
    options = read_settings(translated(), defaults=DEFAULTS).options
    assert (options.port, options.rest_api_port, options.enable_profiler) == (8500, -1, True)
    assert (options.enable_grpc_healthcheck_service, options.allow_remote_reload) == (False, "loopback")
    config = tmp_path / "dropserve.toml"
    config.write_text("rest_api_port = 1\nport = 2\n")
    options = read_settings(translated("--port=3"), str(config), DEFAULTS).options
    assert (options.port, options.rest_api_port) == (3, 1)


def test_a_command_line_with_a_model_is_one_that_starts() -> None:
    check(read_settings(translated("--model_base_path=file:///models/m/"), defaults=DEFAULTS))
    assert read_settings(translated("--model_base_path=file:///models/m/")).options.model_base_path == "/models/m"
    check(read_settings(translated("--port=0", "--rest_api_port=1", "--model_root=/models"), defaults=DEFAULTS))
    assert parse([]) == CommandLine()


# -- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [*ModelServer.command, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=cwd)


def test_versions_are_shown() -> None:
    done = run("--version")
    assert done.returncode == 0
    lines = dict(line.split(": ") for line in done.stdout.splitlines())
    assert lines["TensorFlow ModelServer"].startswith("2.21")
    assert lines["TensorFlow Library"].startswith("2.21")
    assert lines["dropserve"]


def test_help_is_shown() -> None:
    done = run("--help")
    assert (done.returncode, done.stdout) == (0, usage())


REFUSALS = [
    (
        [],
        "Both server_options.model_base_path and server_options.model_config_file are empty!; give --model_base_path=",
    ),
    (["--port=0", "--rest_api_port=0", "--model_base_path=/m"], "At least one of server_options.grpc_port"),
    (["--model_base_path=/m", "--batching_parameters_file=/b"], "server_options.enable_batching to true."),
    (["--model_base_path=models/m"], f"'models/m' is a relative path; give an absolute one, such as {ROOT}/models/m"),
    (["--model_base_path=s3://bucket/m"], "'s3://bucket/m' is on s3; only local folders are served"),
    (["--model_base_path=gs://bucket/m"], "is on gs; "),
    (["--model_base_path=hdfs://host/m"], "is on hdfs; "),
    (["--model_config_file=none.txt"], f"{ROOT}/none.txt: No such file or directory"),
    (["--port=70000", "--model_base_path=/m"], "--port is 70000; it must be from -1 to 65,535"),
    (["--port=x", "--model_base_path=/m"], "Couldn't interpret value 'x' for flag port"),
    (["--model_base_path=/m", "--model_name=a/b"], "'a/b' is no model's name"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSALS, ids=[" ".join(a) for a, _ in REFUSALS])
def test_what_cannot_start_ends_with_its_reason(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 255
    assert words in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('model_config { name: "m" base_path: "/m" }', "begin it with model_config_list { config {"),
        ("improperly formatted file", "Error parsing text-format tensorflow.serving.ModelServerConfig"),
        ('model_config_list { config { name: "m" base_path: "gs://b/m" } }', "'gs://b/m' is remote (gs://)"),
        (
            'model_config_list { config { name: "m" base_path: "m" } }',
            "to have an absolute path or URI; got base_path()=m",
        ),
    ],
)
def test_a_config_file_that_never_worked_gets_its_remedy(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "models.txt").write_text(text)
    done = run("--model_config_file=models.txt", cwd=tmp_path)
    assert done.returncode == 255
    assert words in done.stderr


# -- in use ----------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def predict(server: ModelServer, model: str, metadata: tuple[tuple[str, str], ...] = ()) -> list[float]:
    request = protos.PredictRequest()
    request.model_spec.name = model
    request.inputs["x"].dtype = 1
    request.inputs["x"].float_val.append(2.0)
    request.inputs["x"].tensor_shape.dim.add().size = 1
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=protos.PredictResponse.FromString,
        )
        answer = call(request, timeout=30, metadata=metadata)
    return list(answer.outputs["y"].float_val)


class AsItStands(ModelServer):
    """The command with its flags only: no --config."""

    def _arguments(self, values: dict[str, Any]) -> list[str]:
        return []


def test_a_command_line_of_tensorflow_serving_works_as_it_stands(drop: Callable[..., Path], tmp_path: Path) -> None:
    base_path = drop("half", 1).parent
    (tmp_path / "config.txt").write_text(
        f'model_config_list: {{ config: {{ name: "half" base_path: "{base_path}/" model_platform: "tensorflow" }} }}'
    )

    class InItsFolder(AsItStands):
        cwd = tmp_path

    port = free_port()
    flags = (f"--port={port}", "--model_config_file=config.txt", "--logtostderr", "--v", "1", "--skip_initialize_tpu")
    with InItsFolder(*flags, "--no_such_flag") as server:
        # The port opens when the models are there, so that whoever waits for it can send requests at once.
        assert (server.grpc_port, server.rest_port) == (port, 0)
        assert predict(server, "half", (("authorization", "Bearer of-somebody-else"),)) == [3.0]
        log = server.log()
        assert server.stop() == 0
    assert "--logtostderr, --v: no effect" in log
    assert "--skip_initialize_tpu: no effect, because there is no TPU" in log
    assert "unknown argument: --no_such_flag; it is ignored" in log
    assert "HandleReloadConfigRequest is accepted from this machine" in log


def test_the_entry_point_of_the_container_serves_the_named_model(drop: Callable[..., Path], tmp_path: Path) -> None:
    base_path = drop("resnet", 3).parent.parent

    class Container(AsItStands):
        command = (str(ROOT / "examples/tf_serving_entrypoint.sh"),)
        environment: ClassVar = {
            "MODEL_NAME": "resnet",
            "MODEL_BASE_PATH": str(base_path),
            "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        }

    port, rest_port = free_port(), free_port()
    with Container(f"--port={port}", f"--rest_api_port={rest_port}", "--rest_api_num_threads", "1") as server:
        assert (server.grpc_port, server.rest_port) == (port, rest_port)
        headers = {"Authorization": "Bearer of-somebody-else"}
        status, answer, _ = server.http("POST", "/v1/models/resnet:predict", b'{"instances": [1.0, 2.0]}', headers)
        assert (status, answer) == (200, {"predictions": [2.5, 3.0]})
        assert predict(server, "resnet") == [3.0]
        assert len(server.pids("ds-rest")) == 1


def test_the_entry_point_has_the_defaults_of_the_container(tmp_path: Path) -> None:
    program = tmp_path / "tensorflow_model_server"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    script = [str(ROOT / "examples/tf_serving_entrypoint.sh"), "--enable_batching", "--model_name=a b"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [
        *("--port=8500", "--rest_api_port=8501", "--model_name=model", "--model_base_path=/models/model"),
        *("--enable_batching", "--model_name=a b"),
    ]


def test_a_model_without_version_folder_says_where_to_move_it(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "half_plus_two", tmp_path / "m")
    with ModelServer(f"--model_base_path={tmp_path}/m/") as server:
        status, document = server.get("/v1/models")
        remark = f"{tmp_path}/m holds a SavedModel itself; move it to {tmp_path}/m/1"
        assert (status, document["models"][0]["reason"]) == (200, remark)
        assert f"model default: {remark}" in server.log()


def test_a_version_folder_as_base_path_says_which_folder_to_give(drop: Callable[..., Path]) -> None:
    version = drop("m", 7)
    with ModelServer(f"--model_base_path={version}") as server:
        eventually(
            lambda: f"{version} holds a SavedModel itself; give {version.parent} as base path" in server.log(), ""
        )


def test_a_server_that_never_looks_at_its_folder_waits_and_ends_when_told(drop: Callable[..., Path]) -> None:
    base_path = drop("m", 1).parent
    server = ModelServer(f"--model_base_path={base_path}", "--file_system_poll_wait_seconds=-1")
    eventually(lambda: server.pids("ds-forkserver"), "the fork server is there")
    assert server.stop() == 0
    assert "default/1" not in server.log()
    assert " serves " not in server.log()


def test_the_session_is_configured_by_its_file(drop: Callable[..., Path], tmp_path: Path) -> None:
    base_path = drop("m", 1).parent
    config = tmp_path / "session.txt"
    config.write_text("intra_op_parallelism_threads: 1\ngpu_options { allow_growth: true }")
    with ModelServer(f"--model_base_path={base_path}", f"--tensorflow_session_config_file={config}") as server:
        assert server.versions("default")[1][0] == "available"
        config.write_text("intra_op_parallelism_threads: one")
        drop("m", 2)
        reason = server.wait_for("default", 2, "failed")
        assert f"tensorflow_session_config_file {config} is no tensorflow.ConfigProto: 1:31 : " in reason
        assert predict(server, "default") == [3.0]

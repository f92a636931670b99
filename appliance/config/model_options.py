"""The options that can differ from model to model."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.config.about import Group, option
from appliance.config.parsing import local_path, local_paths, parse_precisions
from appliance.config.version_policy import VersionPolicy, parse_version_policy
from appliance.core.gpu_devices import parse_gpu_devices

__all__ = ["ModelOptions"]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Options that can differ from model to model: in `[models.NAME]`, or for all models at the top level."""

    base_path: str = option(
        "",
        Group.MODEL,
        "Folder that holds the version folders. Only in [models.NAME].",
        normal=local_path,
        file_only=True,
    )
    version_policy: str = option(
        "latest",
        Group.MODEL,
        "Which versions are served: latest, latest:N, all, or specific:V,V.",
        check=parse_version_policy,
    )
    settle_seconds: float = option(
        2.0,
        Group.MODEL,
        "A version folder is loaded once nothing in it has changed for so long.",
        minimum=0,
        maximum=86400,
    )
    saved_model_tags: str = option("serve", Group.MODEL, "Tags of the MetaGraph to load, separated by commas.")
    tensorflow_intra_op_parallelism: int = option(
        0, Group.MODEL, "Threads inside one op of a model; 0: the framework's choice.", minimum=0, maximum=4096
    )
    tensorflow_inter_op_parallelism: int = option(
        0, Group.MODEL, "Threads across TensorFlow ops; 0: TensorFlow's choice.", minimum=0, maximum=4096
    )
    max_concurrent_requests: int = option(
        0, Group.MODEL, "Requests that a version runs at once; 0: the number of cores.", minimum=0, maximum=1024
    )
    max_queue_requests: int = option(
        1000, Group.MODEL, "Requests that may wait for a version; more get 429 / RESOURCE_EXHAUSTED.", minimum=0
    )
    load_timeout_seconds: float = option(
        600.0, Group.MODEL, "A version that is not loaded by then has failed.", minimum=1, maximum=86400
    )
    release_gate: str = option(
        "strict",
        Group.MODEL,
        "Whether a version takes over only once its signatures have answered a request, or refused one for the "
        "input's sake: strict; only-replacing: if another version serves meanwhile; off.",
        choices=("strict", "only-replacing", "off"),
    )
    signature_changes: str = option(
        "warn",
        Group.MODEL,
        "What to do with a new version that drops a signature, or changes an input's name, dtype or rank: warn, or "
        "refuse it.",
        choices=("warn", "refuse"),
    )
    incomplete_after_seconds: float = option(
        30.0,
        Group.MODEL,
        "A version folder that looks incomplete and has not changed for so long is loaded as it is; what the loader "
        "says then is the reason.",
        minimum=0,
        maximum=86400,
    )
    crash_window_seconds: float = option(
        60.0,
        Group.MODEL,
        "A version whose worker dies three times within so many seconds gives way to the version before it; 0: never.",
        minimum=0,
        maximum=86400,
    )
    tensorflow_session_config_file: str = option(
        "",
        Group.MODEL,
        "File with a tensorflow.ConfigProto in protobuf's text format, for the session.",
        normal=local_path,
    )
    op_libraries: tuple[str, ...] = option(
        (),
        Group.MODEL,
        "Files of libraries with custom operators (.so), built for exactly this TensorFlow, that are loaded before a "
        "SavedModel: they run with the server's rights, so only root or the server's user may be able to write them. "
        "Only in the TOML file.",
        normal=local_paths,
        file_only=True,
    )
    prefer_tflite_model: bool = option(
        False, Group.MODEL, "Serve model.tflite of a version folder, where there is one, instead of its SavedModel."
    )
    num_tflite_interpreters: int = option(
        0,
        Group.MODEL,
        "Interpreters of a TF-Lite model, each with memory of its own; 0: the number of cores.",
        minimum=0,
        maximum=1024,
    )
    device: str = option(
        "auto",
        Group.MODEL,
        "What a model runs on: auto (a GPU where there is one), cpu, or cuda; that a GPU cannot be used is logged.",
        choices=("auto", "cpu", "cuda"),
    )
    gpu_devices: str = option(
        "",
        Group.MODEL,
        "The GPUs that may be used: numbers as nvidia-smi has them, or UUIDs, separated by commas; empty: all.",
        check=parse_gpu_devices,
    )
    gpu_memory_limit_bytes: int = option(
        0,
        Group.MODEL,
        "Bytes that a version on ONNX Runtime may take of a GPU for its tensors; 0: no limit.",
        minimum=0,
    )

    enable_batching: bool = option(
        False, Group.BATCHING, "Let requests wait for others, as batching_parameters_file says, and run them together."
    )
    batching_parameters_file: str = option(
        "", Group.BATCHING, "File with BatchingParameters in protobuf's text format.", normal=local_path
    )
    enable_per_model_batching_parameters: bool = option(
        False,
        Group.BATCHING,
        "With enable_batching: take BatchingParameters from batching_params.pbtxt in the version folder, and only "
        "num_batch_threads from batching_parameters_file; a version without the file is not batched.",
    )
    merge_waiting_requests: bool = option(
        True,
        Group.BATCHING,
        "Without enable_batching: run requests that wait anyway together, where warm-up has shown that the answers "
        "stay the same.",
    )
    max_merged_batch_size: int = option(
        8, Group.BATCHING, "Rows that requests merged by merge_waiting_requests have at most.", minimum=1, maximum=65536
    )

    enable_model_warmup: bool = option(
        True, Group.WARMUP, "Run requests before a version is available, so that no client pays for the first."
    )
    num_request_iterations_for_warmup: int = option(
        0, Group.WARMUP, "How often each recorded warm-up request is run; 0: once.", minimum=0, maximum=1_000_000
    )
    warmup_timeout_seconds: float = option(
        30.0, Group.WARMUP, "Warm-up with made-up inputs ends by then; 0: none.", minimum=0, maximum=86400
    )

    acceleration: str = option(
        "auto",
        Group.ACCELERATION,
        "Convert SavedModels, prove the result equal, and serve what is fastest: of all forms (auto), or of ONNX or "
        "TF-Lite alone.",
        choices=("auto", "onnx", "tflite", "off"),
    )
    acceleration_min_speedup: float = option(
        1.1,
        Group.ACCELERATION,
        "A converted form is served if it is so many times as fast as TensorFlow. Below 1, a slower one may be.",
        minimum=0,
        maximum=1000,
    )
    wait_for_acceleration: bool = option(
        False, Group.ACCELERATION, "A version becomes available only once its form has been chosen."
    )
    acceleration_precisions: str = option(
        "float32",
        Group.ACCELERATION,
        "What may be tried, separated by commas: float32, float16 and int8 (weights of TF-Lite models; answers differ "
        "more).",
        check=parse_precisions,
    )
    proof_inputs: str = option(
        "any",
        Group.ACCELERATION,
        "What clients send: any floats (a form is given only those that it was proven for, TensorFlow the others), or "
        "finite ones of a usual size alone, which is not checked then.",
        choices=("any", "finite"),
    )

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions in `acceleration_precisions`."""
        return parse_precisions(self.acceleration_precisions)

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags in `saved_model_tags`."""
        return tuple(tag.strip() for tag in self.saved_model_tags.split(",") if tag.strip())

    @property
    def policy(self) -> VersionPolicy:
        """The version policy in `version_policy`."""
        return parse_version_policy(self.version_policy)

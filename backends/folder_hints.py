"""Hints for a version folder without a model: what lies there instead, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice

__all__ = ["hint"]

# Bounds for folders that are not versions at all.
_MAX_ENTRIES = 1000
_MAX_SUBFOLDERS = 100
_MAX_NAME_CHARACTERS = 100

_MODELS = ("saved_model.pb", "saved_model.pbtxt", "model.onnx", "model.tflite")

# Other parts of a SavedModel: if one of them is there, the rest is still being copied.
_OF_A_SAVED_MODEL = frozenset({"variables", "assets", "assets.extra", "fingerprint.pb", "keras_metadata.pb"})

_EXPORT = "export(FOLDER), and serve FOLDER"
_CHECKPOINT = (
    "is part of a checkpoint, which has weights and no model: build the model, restore them, and save it by "
    "model.export(FOLDER) or tf.saved_model.save(model, FOLDER)"
)
_TORCH = 'is a PyTorch file: convert it by torch.onnx.export(model, inputs, "model.onnx")'
_PICKLE = (
    "is a pickle, which is not loaded because it can run anything: convert the model to model.onnx (scikit-learn: "
    "skl2onnx; XGBoost and LightGBM: onnxmltools)"
)
_GRAPH = (
    "may be a frozen graph, which has no signatures: save it as a SavedModel (tf.compat.v1.saved_model.simple_save), "
    "or rename it to saved_model.pb if it is one"
)
_ARCHIVE = "is an archive: unpack it here"

# The end of a name in lower case, and the hint for such a file: the first match counts.
_KINDS = (
    (".weights.h5", "has weights and no model: build the model, load_weights(…), " + _EXPORT),
    (".keras", "is a Keras file: load it by keras.models.load_model(…), " + _EXPORT),
    (".h5", "is a Keras file: load it by keras.models.load_model(…), " + _EXPORT),
    (".hdf5", "is a Keras file: load it by keras.models.load_model(…), " + _EXPORT),
    (".onnx", "is an ONNX model under another name: rename it to model.onnx"),
    (".tflite", "is a TensorFlow Lite model under another name: rename it to model.tflite"),
    (".index", _CHECKPOINT),
    (".pt", _TORCH),
    (".pth", _TORCH),
    (".pkl", _PICKLE),
    (".pickle", _PICKLE),
    (".joblib", _PICKLE),
    (".zip", _ARCHIVE),
    (".tar", _ARCHIVE),
    (".tgz", _ARCHIVE),
    (".gz", _ARCHIVE),
    (".bz2", _ARCHIVE),
    (".xz", _ARCHIVE),
    (".zst", _ARCHIVE),
    (".7z", _ARCHIVE),
    (".pb", _GRAPH),
)


def hint(path: str) -> str:
    """Return what the version folder `path` holds instead of a model, and how to make a model of it, after a semicolon.

    Return "" if nothing there gives a hint, or if a SavedModel seems to be being copied. The text follows
    "saved_model.pb is missing".
    """
    try:
        with os.scandir(path) as entries:
            # A hidden file may be a copy in progress, under rsync's temporary name.
            names = sorted(entry.name for entry in islice(entries, _MAX_ENTRIES))
    except OSError:
        return ""
    if not names:
        return "; the folder is empty: copy a model into it"
    names = [name for name in names if not name.startswith(".")]
    if _OF_A_SAVED_MODEL.intersection(names):
        return ""
    found = _file(names) or _one_deeper(path, names)
    return f"; {found}" if found else ""


def _file(names: Iterable[str]) -> str:
    for name in names:
        if name.lower() in _MODELS:
            return f"{_shown(name)} is spelt otherwise: rename it to {name.lower()}"
        if name == "checkpoint":
            return f"{name} {_CHECKPOINT}"
    for end, text in _KINDS:
        fitting = [name for name in names if name.lower().endswith(end)]
        if fitting:
            more = f" (and {len(fitting) - 1} more such)" if len(fitting) > 1 else ""
            return f"{_shown(fitting[0])}{more} {text}"
    return ""


def _one_deeper(path: str, names: Iterable[str]) -> str:
    for name in islice(names, _MAX_SUBFOLDERS):
        for model in _MODELS:
            if os.path.lexists(os.path.join(path, name, model)):
                folder = _shown(name)
                return f"{folder}/{model} lies one folder too deep: move the content of {folder}/ one folder up"
    return ""


def _shown(name: str) -> str:
    """Return `name` for messages and logs: printable, and not too long."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= _MAX_NAME_CHARACTERS else text[:_MAX_NAME_CHARACTERS] + "…"

"""`make bench-acceleration`: a table of what is converted, proven, measured and chosen, for real architectures and odd
models.

    python -m benchmarks.acceleration [--models NAME …] [--list]

Weights are random (fixed seed), with batch normalisation's statistics taken from random data, so that outputs vary as
a trained model's do. Models are made once into benchmarks/.cache/acceleration; conversions are not cached. The figures
go to benchmarks/results/TIME.acceleration.json too.
"""

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import msgspec

from appliance.config.model_options import ModelOptions
from appliance.conversion.form_cache import FormCache
from appliance.conversion.job import accelerate
from benchmarks.models import MODELS, ROOT, prepare_model
from converters.report import FormReport, Report, Verdict

FOLDER = os.path.join(ROOT, "benchmarks", ".cache", "acceleration")
SEED = 11

EXPORTERS: dict[str, Callable[[Any, str], None]] = {}
APPLICATIONS = ("MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "ResNet50", "DenseNet121")
FLOAT_MODELS = (*APPLICATIONS, "lstm", "transformer", "digits", "dictionary_outputs", "dynamic_shapes")
"""Of these, 9 of 10 are to get a faster form."""


def _exporter(export: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
    EXPORTERS[export.__name__] = export
    return export


def _application(name: str) -> Callable[[Any, str], None]:
    def export(tf: Any, out: str) -> None:
        model = getattr(tf.keras.applications, name)(weights=None, input_shape=(224, 224, 3))
        normalisations = [layer for layer in model.layers if isinstance(layer, tf.keras.layers.BatchNormalization)]
        momenta = [layer.momentum for layer in normalisations]
        for layer in normalisations:
            layer.momentum = 0.0
        pixels = tf.random.stateless_uniform([8, *model.input_shape[1:]], [SEED, 1], maxval=255.0)
        # These two have their scaling inside; the others take what their preprocess_input makes of pixels.
        model(pixels if name in ("MobileNetV3Small", "EfficientNetB0") else pixels / 127.5 - 1.0, training=True)
        for layer, momentum in zip(normalisations, momenta, strict=True):
            layer.momentum = momentum
        _export_keras(tf, model, out)

    return export


for _name in APPLICATIONS:
    EXPORTERS[_name] = _application(_name)


def _export_keras(tf: Any, model: Any, out: str) -> None:
    model.export(out, verbose=False)


@_exporter
def lstm(tf: Any, out: str) -> None:
    layers = tf.keras.layers
    stack = [layers.Input((None, 16)), layers.LSTM(64, return_sequences=True), layers.LSTM(64), layers.Dense(10)]
    _export_keras(tf, tf.keras.Sequential(stack), out)


@_exporter
def transformer(tf: Any, out: str) -> None:
    """Ids of 1,000 words, two blocks of four heads, 64 wide."""
    layers = tf.keras.layers
    ids = layers.Input((32,), dtype="int32")
    x = layers.Embedding(1000, 64)(ids)
    for _ in range(2):
        attended = layers.MultiHeadAttention(4, 16)(x, x)
        x = layers.LayerNormalization()(x + attended)
        x = layers.LayerNormalization()(x + layers.Dense(64)(layers.Dense(256, activation="gelu")(x)))
    _export_keras(tf, tf.keras.Model(ids, layers.Dense(5)(layers.GlobalAveragePooling1D()(x))), out)


def _save(tf: Any, out: str, functions: dict[str, tuple[Any, list[Any]]], **members: Any) -> None:
    module = tf.Module()
    for name, value in members.items():
        setattr(module, name, value)
    signatures = {key: tf.function(f).get_concrete_function(*specs) for key, (f, specs) in functions.items()}
    tf.saved_model.save(module, out, signatures=signatures)


@_exporter
def dictionary_outputs(tf: Any, out: str) -> None:
    w = tf.Variable(tf.random.stateless_normal([64, 32], [SEED, 2]))
    heads = lambda x: {"logits": x @ w, "norm": tf.norm(x, axis=1), "best": tf.argmax(x @ w, axis=1)}  # noqa: E731
    _save(tf, out, {"serving_default": (heads, [tf.TensorSpec([None, 64], tf.float32, "x")])}, w=w)


@_exporter
def dynamic_shapes(tf: Any, out: str) -> None:
    """A fully convolutional network: images of any size."""
    layers = tf.keras.layers
    stack = [layers.Input((None, None, 3)), *(layers.Conv2D(16, 3, activation="relu") for _ in range(3))]
    _export_keras(tf, tf.keras.Sequential([*stack, layers.GlobalMaxPooling2D(), layers.Dense(4)]), out)


@_exporter
def uint8_images(tf: Any, out: str) -> None:
    w = tf.Variable(tf.random.stateless_normal([3, 3, 3, 8], [SEED, 3]))

    def mean(image: Any) -> dict[str, Any]:
        scaled = tf.image.resize(tf.cast(image, tf.float32) / 255.0, [32, 32])
        return {"mean": tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(scaled, w, 2, "SAME")), axis=[1, 2])}

    _save(tf, out, {"serving_default": (mean, [tf.TensorSpec([None, 64, 64, 3], tf.uint8, "image")])}, w=w)


@_exporter
def several_signatures(tf: Any, out: str) -> None:
    w = tf.Variable(tf.random.stateless_normal([64, 64], [SEED, 4]))
    x = [tf.TensorSpec([None, 64], tf.float32, "x")]
    embed, score = lambda x: {"e": tf.nn.relu(x @ w)}, lambda x: {"s": tf.reduce_sum(x @ w, axis=1)}
    _save(tf, out, {"serving_default": (embed, x), "score": (score, x)}, w=w)


@_exporter
def string_lookup(tf: Any, out: str) -> None:
    keys, values = tf.constant(["a", "b", "c"]), tf.constant([1.0, 2.0, 3.0])
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), -1.0)
    lookup = lambda words: {"value": table.lookup(words)}  # noqa: E731
    _save(tf, out, {"serving_default": (lookup, [tf.TensorSpec([None], tf.string, "words")])}, table=table)


NAMES = ("digits", *EXPORTERS)


def _prepare(name: str) -> str:
    """The version folder of the model, which a process of its own makes where it is not there yet."""
    if name == "digits":
        prepare_model(name)
        return os.path.join(MODELS, name, "1")
    folder = os.path.join(FOLDER, name, "1")
    if not os.path.exists(folder):
        print(f"making {folder}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks.acceleration", "--make", name]
        subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    return folder


def _make(name: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import tensorflow as tf  # noqa: PLC0415

    tf.keras.utils.set_random_seed(SEED)
    folder = os.path.join(FOLDER, name, "1")
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as scratch:
        EXPORTERS[name](tf, os.path.join(scratch, "1"))
        os.rename(os.path.join(scratch, "1"), folder)


def _row(name: str, report: Report) -> list[str]:
    cells = [name]
    for form in ("onnx", "tflite"):
        tried = next((c for c in report.forms if c.name == form), None)
        cells.append("not tried" if tried is None else _converted(tried))
        cells.append("-" if tried is None else _proven(tried, len(report.signatures)))
    chosen = next((c for c in report.forms if c.name == report.form), None)
    truth = {(t.signature, t.batch): t.milliseconds for t in report.tensorflow}
    for batch in (1, 8):
        key = next((k for k in truth if k[1] == batch), None)
        times = [f"{truth[key]:.3f}"] if key else ["-"]
        for form in ("onnx", "tflite"):
            found = [t for c in report.forms if c.name == form for t in c.timings if (t.signature, t.batch) == key]
            times.append(f"{found[0].milliseconds:.3f}" if found else "-")
        cells.append(" / ".join(times))
    speedups = {t.batch: truth[t.signature, t.batch] / t.milliseconds for t in chosen.timings} if chosen else {}
    cells += [report.chosen, " / ".join(f"{speedups[b]:.2f}" for b in sorted(speedups)) or "-", f"{report.seconds:.0f}"]
    return cells


def _converted(form: FormReport) -> str:
    return ", ".join(form.entry_points) or (f"no: {form.unsupported_ops[0]}" if form.unsupported_ops else "no")


def _proven(form: FormReport, signatures: int) -> str:
    proven = sum(proof.verdict is Verdict.PROVEN for proof in form.proofs)
    worst = [o.relative for proof in form.proofs for o in proof.outputs if o.relative is not None]
    return f"{proven}/{signatures}" + (f" ({max(worst):.0e})" if worst else "")


def _worst(report: Report) -> float:
    """The worst relative difference of the chosen form."""
    found = [
        output.relative or 0.0
        for form in report.forms
        if form.name == report.form
        for proof in form.proofs
        for output in proof.outputs
    ]
    return max(found, default=0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures what acceleration makes of models.")
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the names of the models")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.make:
        _make(asked.make)
        return 0
    if asked.list:
        print("\n".join(NAMES))
        return 0
    head = [
        "MODEL",
        "ONNX",
        "proven",
        "TF-LITE",
        "proven",
        "ms x1: TF/ONNX/LITE",
        "ms x8",
        "CHOSEN",
        "SPEED-UP x1/x8",
        "s",
    ]
    rows, reports = [head], {}
    for name in asked.models:
        path = _prepare(name)
        reports[name] = report = accelerate(
            ModelOptions(acceleration="auto"), path, FormCache("", 0, ""), lambda _: None
        )
        rows.append(_row(name, report))
        print(f"{name}: {report.chosen}: {report.reason}", file=sys.stderr, flush=True)
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    floats = [reports[name] for name in FLOAT_MODELS if name in reports]
    faster = sum(report.chosen != "tensorflow" for report in floats)
    worst = max(map(_worst, reports.values()), default=0.0)
    slower = [n for n, r in reports.items() for c in r.forms if c.name == r.form and c.slowest < 1.0]
    print(f"\nfloat models with a proven faster form: {faster} of {len(floats)} (aim: 9 of 10)")
    print(f"worst difference of what was chosen: {worst:.1e} relative (beyond 1e-04 only where roundings explain it)")
    print(f"served by a slower form than TensorFlow: {', '.join(slower) or 'none'} (aim: none)")
    stamp = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H%M%SZ")
    results = os.path.join(ROOT, "benchmarks", "results")
    os.makedirs(results, exist_ok=True)
    with open(os.path.join(results, f"{stamp}.acceleration.json"), "w", encoding="utf-8") as file:
        json.dump(msgspec.to_builtins(reports), file, indent=1)
    return 0 if not slower and faster * 10 >= len(floats) * 9 else 1


if __name__ == "__main__":
    sys.exit(main())

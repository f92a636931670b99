"""What both training scripts share: the data, the layers, and a version folder that appears whole or not at all.

The data are scikit-learn's handwritten digits: 1,797 grey images of 8×8 pixels, 0 (paper) to 16 (ink). A quarter is
held out; it chooses nothing, it only judges what was exported.
"""

import os

# Before TensorFlow is imported: it reads these once. They make the same seed give the same model wherever the versions
# in requirements.lock run: no GPU, which a model this small gains nothing from, and no kernels chosen by CPU features.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import argparse
import shutil
import sys
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 7
MINIMUM_ACCURACY = 0.97
DEFAULT_MODELS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "models")


class Digits(NamedTuple):
    """Images [n, 8, 8] float32, pixels 0..16; labels [n] int64."""

    images: np.ndarray
    labels: np.ndarray


def load_split() -> tuple[Digits, Digits]:
    """The training part and the held-out part, the same at every call."""
    data = load_digits()
    train_images, held_out_images, train_labels, held_out_labels = train_test_split(
        data.images.astype(np.float32), data.target, test_size=0.25, stratify=data.target, random_state=SEED
    )
    return Digits(train_images, train_labels), Digits(held_out_images, held_out_labels)


def build_classifier(filters: int, augment: list[keras.Layer]) -> keras.Model:
    """Images [batch, 8, 8] to probabilities [batch, 10]. Rescaling is part of the model, so clients send raw pixels."""
    return keras.Sequential(
        [
            keras.Input((8, 8), name="image"),
            keras.layers.Reshape((8, 8, 1)),
            keras.layers.Rescaling(1 / 16),
            *augment,
            keras.layers.Conv2D(filters, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(filters, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(2 * filters, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


class EpochLines(keras.callbacks.Callback):
    """One line an epoch, in place of the bar that fills logs with control characters."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        logs = logs or {}
        print(
            f"epoch {epoch + 1:2}/{self.params['epochs']}  loss {logs['loss']:.4f}  accuracy {logs['accuracy']:.2%}",
            flush=True,
        )


def train_classifier(model: keras.Model, optimizer: keras.Optimizer, data: Digits, epochs: int) -> None:
    """Train in place, printing one line an epoch."""
    model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(data.images, data.labels, batch_size=32, epochs=epochs, verbose=0, callbacks=[EpochLines()])


def measure_accuracy(version_folder: str, data: Digits) -> float:
    """The share of right digits, asked of the exported signature: what is measured is what will be served."""
    loaded = tf.saved_model.load(version_folder)
    answer = loaded.signatures["serving_default"](image=tf.constant(data.images))
    return float(np.mean(answer["digit"].numpy() == data.labels))


def export(model: keras.Model, folder: str) -> None:
    """Write a SavedModel whose `serving_default` takes `image` and answers `digit` and `probabilities`."""

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = model(image, training=False)
        return {"digit": tf.argmax(probabilities, axis=-1), "probabilities": probabilities}

    archive = keras.export.ExportArchive()  # unlike model.save(), it leaves the optimizer behind
    archive.track(model)
    archive.add_endpoint("serving_default", serve, [tf.TensorSpec([None, 8, 8], tf.float32, name="image")])
    archive.write_out(folder, verbose=False)


def run(version: int, description: str, train: Callable[[Digits], keras.Model]) -> int:
    """The command line of a training script: train, judge, and drop the version. Returns the exit status."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--models", default=DEFAULT_MODELS, help=f"the model root; writes MODELS/digits/{version}")
    parser.add_argument("--force", action="store_true", help="train again although the version is already there")
    options = parser.parse_args()

    base = os.path.join(options.models, "digits")
    final = os.path.join(base, str(version))
    if os.path.exists(final) and not options.force:
        print(f"{final} is already there; --force trains it again")
        return 0

    keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    training, held_out = load_split()
    model = train(training)

    # The server takes a folder whose name is a number. So write under a name that is none, on the same file system,
    # and rename: the version appears whole.
    partial = os.path.join(base, f".{version}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(base, exist_ok=True)
    export(model, partial)

    accuracy = measure_accuracy(partial, held_out)
    print(f"version {version}: held-out accuracy {accuracy:.2%} on {len(held_out.labels)} images")
    wanted = MINIMUM_ACCURACY
    for older in range(1, version):
        folder = os.path.join(base, str(older))
        if os.path.exists(folder):
            older_accuracy = measure_accuracy(folder, held_out)
            print(f"version {older}: held-out accuracy {older_accuracy:.2%} on the same images")
            wanted = max(wanted, older_accuracy)
    if accuracy < wanted:
        shutil.rmtree(partial)
        print(
            f"error: version {version} was not dropped: its accuracy {accuracy:.2%} is under the {wanted:.2%} wanted. "
            f"The seed is fixed, so look for other versions of TensorFlow, Keras or scikit-learn than in "
            f"requirements.lock, or change the training.",
            file=sys.stderr,
        )
        return 1

    if os.path.exists(final):  # --force: rename() does not replace a folder that is not empty
        replaced = os.path.join(base, f".{version}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(final, replaced)
        os.rename(partial, final)
        shutil.rmtree(replaced)
    else:
        os.rename(partial, final)
    print(f"dropped {final}")
    return 0

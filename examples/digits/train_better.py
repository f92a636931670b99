"""Train a better digit classifier and drop it as version 2, while version 1 serves. Takes about 15 seconds on 2 cores.

More filters; images that are shifted, turned and scaled a little at every pass; and the running average of the weights
in place of their last value.
"""

import sys

import keras
from digits import Digits, build_classifier, run, train_classifier


def train(data: Digits) -> keras.Model:
    """Four times the filters of version 1, forty passes."""
    augment: list[keras.Layer] = [  # these layers act in training only; an exported model passes images through
        keras.layers.RandomTranslation(0.1, 0.1, fill_mode="constant"),
        keras.layers.RandomRotation(0.03, fill_mode="constant"),
        keras.layers.RandomZoom(0.1, fill_mode="constant"),
    ]
    model = build_classifier(filters=32, augment=augment)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, decay_steps=40 * -(-len(data.labels) // 32))
    optimizer = keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.99)
    train_classifier(model, optimizer, data, epochs=40)
    optimizer.finalize_variable_values(model.trainable_variables)
    return model


if __name__ == "__main__":
    sys.exit(run(2, __doc__, train))

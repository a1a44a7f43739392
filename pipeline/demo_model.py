"""A small convolutional network trained on the demo data set in under a minute, so that the demo downloads nothing."""

import csv
from collections.abc import Sequence

import keras
import numpy as np
from PIL import Image

from pipeline import demo_data

INPUT_SIZE = 112
import os
_BATCH_SIZE = int(os.environ.get('BS',32))
_GAIN=float(os.environ.get('GAIN',4))
_LR=float(os.environ.get('LR',4e-3))
_MAX_EPOCHS = int(os.environ.get('EP',24))


def build_model(n_classes: int, input_size: int = INPUT_SIZE) -> keras.Model:
    """Returns an untrained classifier of RGB images in -1..1, `[batch, input_size, input_size, 3]`.

    The last feature map has an eighth of the input's side: fine enough to point at a small object.
    """
    inputs = keras.Input((input_size, input_size, 3), name="image")
    arch = os.environ.get("ARCH", "C")
    if arch == "C":
        features = _add_block(inputs, 16, kernel=5, strides=2)
        features = _add_block(features, 32, strides=2)
        features = _add_block(features, 48, strides=2)
        features = _add_block(features, 64)
        features = _add_block(features, 64, gain=_GAIN)
    else:
        features = _add_block(inputs, 24, kernel=5, strides=2)
        features = keras.layers.MaxPooling2D(2)(features)
        features = _add_block(features, 32)
        features = keras.layers.MaxPooling2D(2)(features)
        features = _add_block(features, 64)
        features = _add_block(features, 64, gain=_GAIN)
    if "SM" in os.environ:
        features = keras.layers.AveragePooling2D(int(os.environ["SM"]), strides=1, padding="same")(features)
    pooled = keras.layers.GlobalAveragePooling2D(name="avg_pool")(features)
    outputs = keras.layers.Dense(n_classes, activation="softmax", kernel_initializer="zeros", name="predictions")(pooled)
    return keras.Model(inputs, outputs, name="demo")


def train_model(data: demo_data.DemoData, seed: int = 0, verbose: bool = False) -> keras.Model:
    """Returns a classifier trained on every readable picture of `data`, until it is accurate.

    Args:
        data: what `demo_data.make_dataset` made.
        seed: of the weights and of the augmentation; sets the global seeds of Python, NumPy and TensorFlow.
        verbose: shows the progress of each epoch.
    """
    keras.utils.set_random_seed(seed)
    names = data.class_names.read_text().split()
    images, labels = load_images(data)
    model = build_model(len(names))
    batches = _Batches(images, labels, seed)
    steps = _MAX_EPOCHS * len(batches)
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=_LR, warmup_steps=steps // 8)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(batches, epochs=_MAX_EPOCHS, verbose=2 if verbose else 0)
    return model


def load_images(data: demo_data.DemoData, size: int = INPUT_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Returns the readable pictures in -1..1, `[images, size, size, 3]`, and their class indices."""
    names = data.class_names.read_text().split()
    images, labels = [], []
    with data.manifest.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                with Image.open(data.manifest.parent / row["uri"]) as image:
                    images.append(np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)))
            except OSError:
                # The data set has files that cannot be read on purpose; the pipeline reports them, training does not.
                continue
            labels.append(names.index(row["label"]))
    return np.stack(images) / np.float32(127.5) - 1, np.array(labels)


def augment_images(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns each image moved by up to 6 pixels, with other colours, contrast and brightness.

    Nothing is mirrored: that would move the watermark out of its corner. The colours are swapped, because the kinds
    of objects do not differ in colour, and a white watermark stays white.
    """
    moved = [np.roll(image, rng.integers(-4, 5, 2), axis=(0, 1))[..., rng.permutation(3)] for image in images]
    gain = rng.uniform(0.7, 1.2, (len(images), 1, 1, 3)).astype(np.float32)
    offset = rng.uniform(-0.2, 0.2, (len(images), 1, 1, 1)).astype(np.float32)
    return np.clip(np.stack(moved) * gain + offset, -1, 1)


class _Batches(keras.utils.PyDataset):
    """Augmented batches, in a new order each epoch."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, seed: int) -> None:
        super().__init__()
        self._images, self._labels = images, labels
        self._rng = np.random.default_rng(seed)
        self._order = self._rng.permutation(len(labels))

    def __len__(self) -> int:
        return len(self._labels) // _BATCH_SIZE

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self._order[index * _BATCH_SIZE : (index + 1) * _BATCH_SIZE]
        return augment_images(self._images[chosen], self._rng), self._labels[chosen]

    def on_epoch_end(self) -> None:
        self._order = self._rng.permutation(len(self._labels))


def _add_block(features: keras.KerasTensor, filters: int, kernel: int = 3, strides: int = 1, gain: float = 1.0) -> keras.KerasTensor:
    features = keras.layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False)(features)
    features = keras.layers.BatchNormalization(momentum=0.9, gamma_initializer=keras.initializers.Constant(gain))(features)
    return keras.layers.ReLU()(features)

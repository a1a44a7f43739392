"""A small convolutional network trained on the demo data set in under a minute, so that the demo downloads nothing."""

import csv

import keras
import numpy as np
from PIL import Image

from pipeline import demo_data

INPUT_SIZE = 112
EPOCHS = 32
_BATCH_SIZE = 32


def build_model(n_classes: int, input_size: int = INPUT_SIZE) -> keras.Model:
    """Returns an untrained classifier of RGB images in -1..1, `[batch, input_size, input_size, 3]`.

    The last feature map has an eighth of the input's side: fine enough to point at a small object.
    """
    inputs = keras.Input((input_size, input_size, 3), name="image")
    features = _add_block(inputs, 24, kernel=5, strides=2)
    features = keras.layers.MaxPooling2D(2)(features)
    features = _add_block(features, 32)
    features = keras.layers.MaxPooling2D(2)(features)
    features = _add_block(features, 64)
    # Most of a picture is ground, and an average over it hides a small object. With a threshold of two standard
    # deviations the ground counts for little from the start; without it the loss stays flat for many epochs.
    features = _add_block(features, 64, gain=4.0, threshold=2.0)
    pooled = keras.layers.GlobalAveragePooling2D(name="avg_pool")(features)
    outputs = keras.layers.Dense(n_classes, "softmax", kernel_initializer="zeros", name="predictions")(pooled)
    return keras.Model(inputs, outputs, name="demo")


def train_model(data: demo_data.DemoData, seed: int = 0, verbose: bool = False, epochs: int = EPOCHS) -> keras.Model:
    """Returns a classifier trained on every readable picture of `data`.

    Args:
        data: what `demo_data.make_dataset` made.
        seed: of the weights and of the augmentation; sets the global seeds of Python, NumPy and TensorFlow.
        verbose: shows the loss and the accuracy of each epoch.
        epochs: how many times each picture is seen; the learning rate falls to 0 over them.
    """
    keras.utils.set_random_seed(seed)
    images, labels = load_images(data)
    model = build_model(len(demo_data.read_class_names(data)))
    batches = _Batches(images, labels, seed)
    steps = epochs * len(batches)
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=6e-3, warmup_steps=steps // 10)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(batches, epochs=epochs, verbose=2 if verbose else 0)
    return model


def load_images(data: demo_data.DemoData, size: int = INPUT_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Returns the readable pictures, uint8 `[images, size, size, 3]`, and their class indices."""
    names = demo_data.read_class_names(data)
    images, labels = [], []
    with data.manifest.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                with Image.open(data.manifest.parent / row["uri"]) as image:
                    images.append(np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)))
            except OSError:
                # Some files are broken on purpose: the pipeline has to report them, training only has to do without.
                continue
            labels.append(names.index(row["label"]))
    return np.stack(images), np.array(labels)


def augment_images(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns each image (uint8) moved by up to 4 pixels, with other colours and brightness, as floats in about -1..1.

    Nothing is mirrored: that would move the watermark out of its corner. The channels are swapped, because no class
    has a colour of its own, and a white watermark stays white.
    """
    moved = [np.roll(image, rng.integers(-4, 5, 2), axis=(0, 1))[..., rng.permutation(3)] for image in images]
    gain = rng.uniform(0.7, 1.2, (len(images), 1, 1, 3)).astype(np.float32)
    offset = rng.uniform(-0.2, 0.2, (len(images), 1, 1, 1)).astype(np.float32)
    return np.stack(moved) * (gain / 127.5) + (offset - gain)


class _Batches(keras.utils.PyDataset):
    """Augmented batches, in a new order each epoch."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, seed: int) -> None:
        super().__init__()
        self._images, self._labels = images, labels
        self._rng = np.random.default_rng(seed)
        self._order = self._rng.permutation(len(labels))

    def __len__(self) -> int:
        # The last, smaller batch of an epoch is left out: other pictures fall into it each time.
        return len(self._labels) // _BATCH_SIZE

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self._order[index * _BATCH_SIZE : (index + 1) * _BATCH_SIZE]
        return augment_images(self._images[chosen], self._rng), self._labels[chosen]

    def on_epoch_end(self) -> None:
        self._order = self._rng.permutation(len(self._labels))


def _add_block(
    features: keras.KerasTensor,
    filters: int,
    kernel: int = 3,
    strides: int = 1,
    gain: float = 1.0,
    threshold: float = 0.0,
) -> keras.KerasTensor:
    """Adds a convolution, a batch normalization and a ReLU.

    At the start of training the ReLU lets through what lies more than `threshold` standard deviations above the mean,
    multiplied by `gain`.
    """
    features = keras.layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False)(features)
    features = keras.layers.BatchNormalization(
        momentum=0.9,
        gamma_initializer=keras.initializers.Constant(gain),
        beta_initializer=keras.initializers.Constant(-gain * threshold),
    )(features)
    return keras.layers.ReLU()(features)

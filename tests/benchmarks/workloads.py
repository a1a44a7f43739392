"""What is measured with: models, photographs, and the bare forward pass that everything is set against."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from explainers.compiled import PREPROCESSES
from pipeline.decode import IMAGE_SUFFIXES
from pipeline.demo_data import make_dataset
from pipeline.models import load_model

ROOT = Path(__file__).parent.parent.parent
SHARED = ROOT.parent / "shared" / "data"
TRAINED = {"MobileNetV2": SHARED / "models" / "mobilenetv2_1.00_224.keras"}
PREPROCESS = "tf"  # of both models


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    folder: Path  # for files, thrown away afterwards
    models: tuple[str, ...] = ("MobileNetV2", "ResNet50V2")
    seed: int = 0
    batch: int = 32
    rounds: int = 7
    long_rounds: int = 4  # where a round takes a minute
    photographs: int = 512
    peer_photographs: int = 96
    passes: int = 4  # of a method that makes many
    few: int = 1_000  # images of the short run and of the long one
    many: int = 20_000
    uris: int = 1_000_000


QUICK = {"rounds": 3, "long_rounds": 1, "photographs": 64, "peer_photographs": 32, "passes": 2, "few": 500,
         "many": 2_000, "uris": 100_000}  # fmt: skip
"""The same in minutes, to see that it works: no figure of it is worth quoting."""


def spec_of(name: str) -> str:
    """A model as `beamcam run --model` takes it: trained where it lies beside the checkout, else with random weights.

    How far off a lower precision is depends on the weights.
    """
    if ":" in name:
        return name
    if name in TRAINED and TRAINED[name].exists():
        return str(TRAINED[name])
    return f"{__name__}:{name}" if name in globals() else f"keras.applications:{name}?weights=none"


def make_model(name: str) -> keras.Model:
    """A model of `keras.applications` with random weights, those of its BatchNorms included.

    Fresh BatchNorms shift nothing, and a bias of zeros is optimised away: with the fusion of convolution, bias and
    ReLU that trained models have.
    """
    model, random = getattr(keras.applications, name)(weights=None), np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return model


MobileNetV2 = functools.partial(make_model, "MobileNetV2")
ResNet50V2 = functools.partial(make_model, "ResNet50V2")


def build_model(name: str, seed: int) -> keras.Model:
    """The model itself."""
    keras.utils.set_random_seed(seed)
    return load_model(spec_of(name))[0]


def list_photographs(settings: Settings) -> list[Path]:
    """The photographs beside the checkout, or the demo's pictures if there are none."""
    if (SHARED / "images").is_dir():
        return _images(SHARED / "images")
    folder = settings.folder / "data"
    if not folder.exists():
        make_dataset(folder, min(settings.photographs, 200), settings.seed, broken=0)
    return _images(folder)


def link_photographs(settings: Settings, count: int) -> Path:
    """A folder of so many images: the photographs, listed again and again under new names."""
    folder = settings.folder / f"images-{count}"
    if not folder.exists():
        folder.mkdir()
        source = list_photographs(settings)
        for i in range(count):
            (folder / f"{i:06d}{source[i % len(source)].suffix}").symlink_to(source[i % len(source)])
    return folder


def read_batch(settings: Settings, size: tuple[int, int]) -> np.ndarray:
    """One batch of photographs, (batch, height, width, 3) uint8."""
    paths = sorted(link_photographs(settings, settings.batch).iterdir())
    return np.stack([np.asarray(Image.open(path).convert("RGB").resize(size[::-1])) for path in paths])


def input_size(model: keras.Model) -> tuple[int, int]:
    """(height, width) of what a model reads."""
    return model.input_shape[1:3]


def forward_pass(call: Callable[[tf.Tensor], tf.Tensor], pixels: np.ndarray) -> Callable[[], np.ndarray]:
    """A model on one batch that is ready for it, as fast as TensorFlow runs it unasked; results are fetched."""
    inputs = PREPROCESSES[PREPROCESS](tf.cast(pixels, tf.float32))
    program = tf.function(call, autograph=False).get_concrete_function(tf.TensorSpec(inputs.shape, inputs.dtype))
    return lambda: program(inputs).numpy()


def bare_forward(model: keras.Model, pixels: np.ndarray) -> Callable[[], np.ndarray]:
    """The user's own model, nothing folded, nothing taken off."""
    return forward_pass(lambda x: model(x, training=False), pixels)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)

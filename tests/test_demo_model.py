"""The demo's model has the form that CAM needs, reads the demo's data, and learns from it."""

import pathlib

import keras
import numpy as np
import pytest

from pipeline import demo_data, demo_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> demo_data.DemoData:
    return demo_data.make_dataset(tmp_path_factory.mktemp("demo"), n_images=96, seed=0, broken=6)


def test_scores_are_the_softmax_of_pooled_features_times_weights() -> None:
    model = demo_model.build_model(n_classes=3, input_size=64)
    head = model.get_layer("predictions")
    rng = np.random.default_rng(0)
    head.set_weights([rng.normal(size=weights.shape) for weights in head.get_weights()])
    images = rng.uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    features = keras.Model(model.input, model.get_layer("avg_pool").input)(images, training=False).numpy()
    kernel, bias = head.get_weights()
    scores = np.exp(features.mean(axis=(1, 2)) @ kernel + bias)
    assert features.shape[1:3] == (8, 8)
    np.testing.assert_allclose(
        model(images, training=False), scores / scores.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-6
    )


def test_load_images_leaves_out_what_cannot_be_read(data: demo_data.DemoData) -> None:
    images, labels = demo_model.load_images(data, size=32)
    assert images.shape == (96, 32, 32, 3)
    assert labels.tolist() == list(range(6)) * 16
    assert images.dtype == np.uint8
    assert images.std() > 20


def test_augment_images_keeps_the_range_and_is_seeded() -> None:
    images = 255 * np.random.default_rng(1).integers(0, 2, (8, 16, 16, 3), np.uint8)
    first, again, other = (demo_model.augment_images(images, np.random.default_rng(seed)) for seed in (2, 2, 3))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.dtype == np.float32
    # Brightness moves both ends by up to .2, contrast scales them by .7 to 1.2.
    assert -1.4 <= first.min() < -0.8
    assert 0.8 < first.max() <= 1.4


def test_augment_images_moves_an_image_by_at_most_four_pixels() -> None:
    images = np.zeros((64, 21, 21, 3), np.uint8)
    images[:, 10, 10] = 255
    peaks = np.argwhere(demo_model.augment_images(images, np.random.default_rng(0)) > 0.4)
    assert (peaks[:, 1:3].min(), peaks[:, 1:3].max()) == (6, 14)


def test_same_seed_gives_the_same_model_and_another_seed_another(data: demo_data.DemoData) -> None:
    first, again, other = (demo_model.train_model(data, seed, epochs=2).get_weights() for seed in (1, 1, 2))
    for left, right in zip(first, again, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)
    assert np.abs(first[0] - other[0]).max() > 0.1


@pytest.mark.slow
def test_trained_model_is_accurate_and_looks_at_the_mark(tmp_path: pathlib.Path) -> None:
    data = demo_data.make_dataset(tmp_path, seed=0)
    model = demo_model.train_model(data, seed=0)
    images, labels = demo_model.load_images(data)
    features = keras.Model(model.input, model.get_layer("avg_pool").input).predict(images / 127.5 - 1, verbose=0)
    kernel, bias = model.get_layer("predictions").get_weights()
    assert np.mean((features.mean(axis=(1, 2)) @ kernel + bias).argmax(axis=1) == labels) >= 0.95
    maps = np.einsum("nhwc,nc->nhw", features, kernel.T[labels])
    side = maps.shape[1]
    rows, columns = np.divmod(maps.reshape(len(maps), -1).argmax(axis=1), side)
    in_corner = (rows >= 0.75 * side) & (columns >= 0.75 * side)
    is_marked = labels == demo_data.CLASS_NAMES.index(demo_data.MARKED_CLASS)
    assert in_corner[is_marked].mean() >= 0.5
    assert in_corner[~is_marked].mean() <= 0.05

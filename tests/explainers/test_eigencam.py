"""Eigen-CAM is the projection of a signal on its first right singular vector, the same for every unit."""

import keras
import numpy as np
import pytest
from keras import layers

import explainers as ex
from explainers.methods.cams import eigencam
from tests import models, oracle
from tests.comparing import close
from tests.explainers import test_cams
from tests.explainers.test_cams import seeds
from tests.explainers.test_perturbation import raw

CHAINS = {**test_cams.CHAINS, "relu6": (models.relu6net, "depthwise_relu")}


@seeds
@pytest.mark.parametrize("name", CHAINS)
def test_eigencam_is_that_of_the_paper(name, seed):
    build, layer = CHAINS[name]
    model = build(seed=seed)
    stem, head = oracle.read_chain(model, layer)
    x = models.inputs_of(model, 2, seed)
    logits, maps = raw(eigencam, ex.expose(model, layer), x)
    for i, unit in np.ndindex(logits.shape):
        image = x[i].astype(np.float64)
        close(logits[i], oracle.forward(stem + head, image).reshape(-1), rtol=1e-4)
        close(maps[i, ..., unit], oracle.eigencam(stem, head, image, unit), rtol=1e-4)


def with_signal(signal):
    """A model whose signal is `signal` (h, w, C) for an image of ones: a 1x1 convolution that tells positions apart."""
    height, width, channels = signal.shape
    image = keras.Input((height, width, height * width), name="image")
    x = layers.Conv2D(channels, 1, use_bias=False, name="signal")(image)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = models.randomize(keras.Model(image, layers.Dense(2, name="predictions")(x)), 0)
    model.get_layer("signal").kernel.assign(signal.reshape(1, 1, height * width, channels))
    places = np.eye(height * width, dtype=np.float32).reshape(1, height, width, height * width)
    return ex.expose(model, "signal"), places


@pytest.mark.parametrize("sign", [1, -1])
def test_a_signal_of_rank_one_is_its_own_pattern_with_a_positive_sum(sign):
    pattern = np.array([[3.0, 1.0, 2.0], [0.0, 1.0, -2.0]])
    direction = np.array([2.0, -1.0, 2.0])  # of length 3
    exposed, places = with_signal(sign * pattern[..., np.newaxis] * direction)
    maps = raw(eigencam, exposed, places)[1]
    close(maps, np.stack([3 * pattern, 3 * pattern], axis=-1)[np.newaxis])


def test_the_signal_is_not_centred():
    """Centred, the first channel would vanish, since it is the same everywhere."""
    signal = np.stack([np.full((3, 3), 10.0), np.arange(9.0).reshape(3, 3) - 4], axis=-1)
    exposed, places = with_signal(signal)
    close(raw(eigencam, exposed, places)[1][0, ..., 0], np.full((3, 3), 10.0))


def test_a_single_channel_is_the_map_up_to_its_sign():
    model, x = models.one_channel(1), models.images(2)
    exposed = ex.expose(model)
    A = np.asarray(exposed(x)[1])
    close(raw(eigencam, exposed, x)[1], np.repeat(A, models.CLASSES, axis=-1))


def test_every_unit_has_the_same_map():
    model, x = models.gap_dense(1), models.images(3)
    logits, maps = raw(eigencam, model, x)
    assert maps.shape == (3, 4, 4, 5)
    np.testing.assert_array_equal(maps, np.repeat(maps[..., :1], 5, axis=-1))
    some_logits, some = raw(eigencam, model, x, [[4, 0], [1, 1], [2, 3]])
    close(some, maps[..., :2])
    close(some_logits, np.take_along_axis(logits, np.array([[4, 0], [1, 1], [2, 3]]), axis=1))


@pytest.mark.parametrize("name", ["gap_dense", "vgg", "residual", "conv1d", "conv3d", "plain"])
def test_the_sum_of_a_map_is_positive_and_its_length_the_first_singular_value(name):
    model = models.CASES[name].model(2)
    exposed, x = ex.expose(model), models.inputs_of(model, 4)
    A = np.asarray(exposed(x)[1], np.float64)
    maps = raw(eigencam, exposed, x)[1].reshape(4, -1, exposed.n_classes)
    assert (maps.sum(axis=1) > 0).all()
    first = np.linalg.svd(A.reshape(4, -1, A.shape[-1]), compute_uv=False)[:, 0]
    np.testing.assert_allclose(np.linalg.norm(maps[..., 0], axis=1), first, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 2, 7), (7, 7, 3), (1, 5, 4)])
def test_more_channels_than_positions_and_fewer_are_the_same_thing(shape):
    signal = np.random.default_rng(3).normal(0.5, 1, shape)
    exposed, places = with_signal(signal)
    _, _, V = np.linalg.svd(signal.reshape(-1, shape[-1]))
    want = signal @ V[0]
    close(raw(eigencam, exposed, places)[1][0, ..., 0], want * np.sign(want.sum()), rtol=1e-4)


def test_signals_of_very_different_size_do_not_matter():
    signal = np.random.default_rng(3).normal(0.5, 1, (4, 4, 6))
    exposed, places = with_signal(signal)
    want = raw(eigencam, exposed, places)[1]
    for scale in (1e-8, 1e8):  # their squares are 1e-16 and 1e16
        kernel = exposed.source.get_layer("signal").kernel
        kernel.assign(scale * signal.reshape(kernel.shape))
        close(raw(eigencam, exposed, places)[1], scale * want, rtol=1e-4)

"""Saliency is what its paper defines, for every model with one differentiable input."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import explainers as ex
from explainers.errors import InputError
from explainers.methods.gradient import gradients, input_gradients
from tests import models, oracle
from tests.comparing import close

CHAINS = {
    "gap_dense": models.gap_dense,
    "valid": models.plain,
    "same, stride 2": lambda seed: models.plain(seed, padding="same", strides=2),
    "swish": models.swishnet,
    "rescaling": models.rescaling_first,
    "vgg": models.vgg,
    "mobilenet": models.mobilenet,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("build", CHAINS.values(), ids=CHAINS)
def test_saliency_is_that_of_the_paper(build, seed):
    model = build(seed=seed)
    network, _ = oracle.read_chain(model, None)
    x = models.inputs_of(model, 2, seed)
    logits, maps = gradients(model, x)
    for i, unit in np.ndindex(*logits.shape):
        image = x[i].astype(np.float64)
        close(logits[i], oracle.forward(network, image).reshape(-1), rtol=1e-4)
        close(maps[i, ..., unit], oracle.saliency(network, image, unit), rtol=1e-4)


@pytest.mark.parametrize("name", ["residual", "squeeze_excite", "twins", "max_pooled_twice"])
def test_signed_gradients_are_the_slope_of_the_logits(name):
    model = models.CASES[name].model(1)
    exposed, x = ex.expose(model), models.images(1)
    _, derivatives = input_gradients(exposed, x)
    direction = np.random.default_rng(0).normal(size=x.shape).astype("float32")
    step = 1e-3
    logits = [np.asarray(exposed(x + sign * step * direction)[0][0], np.float64) for sign in (1, -1)]
    slope = (logits[0] - logits[1]) / (2 * step)
    close(np.einsum("hwc,hwcl->l", direction[0], derivatives[0]), slope, rtol=5e-3)


def test_the_gradient_of_a_linear_model_is_its_kernel():
    model, x = models.linear_image(3), models.images(2)
    kernel = model.get_layer("predictions").kernel.numpy().reshape(8, 8, 3, 5)
    logits, derivatives = input_gradients(model, x)
    close(derivatives, np.stack([kernel, kernel]))
    close(gradients(model, x)[1][1], np.abs(kernel).max(axis=2))
    close(logits, x.reshape(2, -1) @ kernel.reshape(-1, 5) + model.get_layer("predictions").bias.numpy())


def test_a_constant_added_to_all_logits_changes_no_map():
    model, x = models.gap_dense(), models.images(2)
    _, maps = gradients(model, x)
    bias = model.get_layer("predictions").bias
    bias.assign(bias + 7)
    np.testing.assert_array_equal(gradients(model, x)[1], maps)


@pytest.mark.parametrize("classes", [5, 11], ids=["unrolled", "loop"])
def test_every_unit_at_once_is_each_unit_asked_alone(classes):
    model, x = models.gap_dense(1, classes=classes), models.images(2)
    logits, maps = gradients(model, x)
    for unit in range(classes):
        alone_logits, alone_maps = gradients(model, x, tf.fill((2, 1), unit))
        close(alone_logits[:, 0], logits[:, unit])
        close(alone_maps[..., 0], maps[..., unit])
    assert np.abs(maps[..., 0] - maps[..., 1]).max() > 1e-3


def test_each_image_gets_the_units_of_its_own_row():
    model, x = models.gap_dense(2), models.images(3)
    logits, maps = gradients(model, x)
    units = np.array([[4, 0], [1, 1], [2, 3]])
    got_logits, got_maps = gradients(model, x, units)
    for i, k in np.ndindex(units.shape):
        close(got_logits[i, k], logits[i, units[i, k]])
        close(got_maps[i, ..., k], maps[i, ..., units[i, k]])


@pytest.mark.parametrize("classes", [5, 10], ids=["unrolled", "loop"])
@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_eager_graph_and_xla_agree(jit, classes):
    exposed, x = ex.expose(models.gap_dense(1, classes=classes)), models.images(2)
    program = tf.function(lambda images: gradients(exposed, images), jit_compile=jit, autograph=False)
    for got, want in zip(program(tf.constant(x)), gradients(exposed, x), strict=True):
        close(got, want)


@pytest.mark.parametrize("name", ["gap_dense", "vgg", "residual"])
def test_the_map_of_an_image_does_not_depend_on_its_batch(name):
    exposed, x = ex.expose(models.CASES[name].model(3)), 10 * models.images(4) ** 3
    order = [2, 0, 3, 1]
    _, maps = gradients(exposed, x)
    _, shuffled = gradients(exposed, x[order])
    for position, i in enumerate(order):
        close(gradients(exposed, x[i : i + 1])[1][0], maps[i])
        close(shuffled[position], maps[i])


def test_the_cut_of_the_exposed_model_does_not_matter():
    model, x = models.residual(), models.images(2)
    close(gradients(ex.expose(model, "branch_out"), x)[1], gradients(model, x)[1])


def test_saturated_probabilities_have_the_maps_of_their_logits():
    model, x = models.gap_dense(1), models.images(2)
    _, maps = gradients(model, x)
    for variable in model.get_layer("predictions").weights:
        variable.assign(1000 * variable)
    assert np.asarray(model(x)).max() == 1
    close(gradients(model, x)[1], 1000 * maps)


@pytest.mark.parametrize(("dtype", "rtol"), [("mixed_float16", 0.02), ("mixed_bfloat16", 0.1)])
def test_half_precision_gives_nearly_the_maps_of_single_precision(dtype, rtol):
    x = models.images(3)
    logits, maps = gradients(models.gap_dense(1, dtype=dtype), x)
    assert (logits.dtype, maps.dtype) == (tf.float32, tf.float32)
    close(maps, gradients(models.gap_dense(1), x)[1], rtol)


def test_a_model_that_declares_integer_pixels_is_refused_and_not_given_zeros():
    with pytest.raises(InputError, match="need a floating-point one, and this model reads uint8"):
        gradients(models.byte_input(), models.pixels(2))


def test_positions_that_the_logit_does_not_see_have_no_gradient():
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(layers.Cropping2D(((0, 3), (2, 0)))(image)))
    model = models.randomize(keras.Model(image, layers.Dense(2)(x)), 0)
    _, maps = gradients(model, models.images(1))
    assert np.all(maps[:, :5, 2:].numpy() > 0)
    np.testing.assert_array_equal(maps[:, 5:], 0)
    np.testing.assert_array_equal(maps[:, :, :2], 0)


def test_two_inputs_are_refused():
    model = models.two_inputs()
    with pytest.raises(InputError, match="need a model with one, and this has 2"):
        gradients(model, [models.images(2), models.images(2, shape=(4,))])

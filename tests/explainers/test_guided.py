"""Guided backpropagation and guided Grad-CAM: both gates at every ReLU, however the ReLU is written."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import explainers as ex
from explainers.errors import MethodError
from explainers.methods.cams import gradcam
from explainers.methods.gradient import gradients
from explainers.methods.guided import guided_backprop, guided_gradcam
from tests import models, oracle
from tests.comparing import close
from tests.explainers import test_cams
from tests.explainers.test_cams import seeds
from tests.explainers.test_perturbation import raw

CHAINS = {name: chain for name, chain in test_cams.CHAINS.items() if name != "swish"}
CHAINS["relu6"] = (models.relu6net, "depthwise_relu")


# Against the papers


@seeds
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("method", [guided_backprop, guided_gradcam])
def test_a_guided_method_is_that_of_its_paper(method, name, seed):
    build, layer = CHAINS[name]
    model = build(seed=seed)
    stem, head = oracle.read_chain(model, layer)
    x = models.inputs_of(model, 2, seed)
    logits, maps = raw(method, ex.expose(model, layer), x)
    for i, unit in np.ndindex(logits.shape):
        image = x[i].astype(np.float64)
        if method is guided_backprop:
            want = oracle.guided_backprop(stem + head, image, unit)
        else:
            want = oracle.guided_gradcam(stem, head, image, unit)
        close(logits[i], oracle.forward(stem + head, image).reshape(-1), rtol=1e-4)
        close(maps[i, ..., unit], want, rtol=1e-4)


@seeds
@pytest.mark.parametrize("name", ["gap_dense", "vgg", "mobilenet", "relu6"])
def test_guided_gradcam_is_the_product_of_its_two_parts(name, seed):
    build, layer = CHAINS[name]
    model = build(seed=seed)
    exposed, x = ex.expose(model, layer), models.inputs_of(model, 2, seed)
    coarse = tf.nn.relu(gradcam(exposed, x)[1])
    want = guided_backprop(exposed, x)[1] * tf.image.resize(coarse, x.shape[1:3])
    close(raw(guided_gradcam, exposed, x)[1], want)


# One gate or two


def test_the_gates_of_a_network_that_can_be_followed_by_hand():
    """y = relu(u) - relu(v) - 2 relu(-u) with u = x1 - x2, v = x1 + x2: what is negative at a ReLU stops there."""
    image = keras.Input((1, 2, 1))
    u_v = layers.Dense(3, activation="relu", name="u_v")(layers.Flatten()(image))
    model = keras.Model(image, layers.Dense(1, name="y")(u_v))
    model.get_layer("u_v").set_weights([np.array([[1.0, 1, -1], [-1, 1, 1]]), np.zeros(3)])
    model.get_layer("y").set_weights([np.array([[1.0], [-1], [-2]]), np.zeros(1)])
    x = np.array([3.0, 1.0, 1.0, 3.0], np.float32).reshape(2, 1, 2, 1)
    np.testing.assert_array_equal(guided_backprop(model, x)[1].numpy().reshape(2, 2), [[1, 1], [0, 0]])
    np.testing.assert_array_equal(gradients(model, x)[1].numpy().reshape(2, 2), [[0, 2], [1, 3]])


@seeds
@pytest.mark.parametrize("build", [models.gap_dense, models.vgg, models.bias_free])
def test_it_is_the_gradient_where_all_weights_and_inputs_are_positive(build, seed):
    model = build(seed=seed)
    for variable in model.weights:
        sign = -1 if "moving_mean" in variable.path else 1  # the normalised signal must stay positive too
        variable.assign(sign * abs(variable))
    x = np.abs(models.images(2, seed))
    close(raw(guided_backprop, model, x)[1], raw(gradients, model, x)[1])


@pytest.mark.parametrize("name", ["gap_dense", "vgg", "residual", "squeeze_excite", "conv1d", "conv3d"])
def test_it_is_not_the_gradient_else(name):
    model = models.CASES[name].model(1)
    x = models.inputs_of(model, 2)
    guided, plain = raw(guided_backprop, model, x)[1], raw(gradients, model, x)[1]
    assert guided.shape == plain.shape
    assert np.abs(guided - plain).max() > 0.1 * plain.max()


# Every way to write a ReLU


def spelled(relu, seed=1, wrap=None):
    """Two convolutions with a ReLU each, between a batch normalisation and a strided one, written by `relu`."""
    image = keras.Input((8, 8, 3), name="image")
    x = relu(image, "conv1", 4)
    if wrap:
        inner = keras.Input(x.shape[1:], name="inner_image")
        x = wrap(inner, relu(inner, "conv2", 6))(x)
    else:
        x = relu(x, "conv2", 6)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return models.randomize(keras.Model(image, layers.Dense(5, name="predictions")(x)), seed)


def fused(activation):
    return lambda x, name, filters: layers.Conv2D(filters, 3, activation=activation, name=name)(x)


def followed(make):
    return lambda x, name, filters: make(name)(layers.Conv2D(filters, 3, name=name)(x))


RELUS = {
    "layer": followed(lambda name: layers.ReLU(name=f"{name}_relu")),
    "fused": fused("relu"),
    "fused, Keras' function": fused(keras.activations.relu),
    "fused, Keras' operation": fused(keras.ops.relu),
    "fused, TensorFlow's function": fused(tf.nn.relu),
    "fused, a layer": fused(layers.ReLU()),
    "activation layer": followed(lambda name: layers.Activation("relu")),
    "activation layer, TensorFlow's function": followed(lambda name: layers.Activation(tf.nn.relu)),
    "operation": followed(lambda name: keras.ops.relu),
}


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
def test_every_way_to_write_a_relu_is_gated(relu):
    x = models.images(2)
    want = raw(guided_backprop, spelled(RELUS["layer"]), x)[1]
    close(raw(guided_backprop, spelled(relu), x)[1], want)


RELUS6 = {
    "layer": followed(lambda name: layers.ReLU(6, name=f"{name}_relu")),
    "fused": fused("relu6"),
    "fused, TensorFlow's function": fused(tf.nn.relu6),
    "activation layer": followed(lambda name: layers.Activation("relu6")),
    "operation": followed(lambda name: keras.ops.relu6),
}


@pytest.mark.parametrize("relu", RELUS6.values(), ids=RELUS6)
def test_every_way_to_write_a_clipped_relu_is_gated(relu):
    x = 9 * models.images(2)
    want = raw(guided_backprop, spelled(RELUS6["layer"]), x)[1]
    assert np.abs(want - raw(guided_backprop, spelled(RELUS["layer"]), x)[1]).max() > 0.01 * want.max()
    assert np.abs(want - raw(gradients, spelled(RELUS6["layer"]), x)[1]).max() > 0.01 * want.max()
    close(raw(guided_backprop, spelled(relu), x)[1], want)


def test_dense_depthwise_and_separable_layers_with_a_fused_relu_are_gated():
    def build(fuse):
        def relu(layer, x):
            return layer(activation="relu")(x) if fuse else layers.ReLU()(layer()(x))

        image = keras.Input((8, 8, 3), name="image")
        x = relu(lambda **o: layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise", **o), image)
        x = relu(lambda **o: layers.SeparableConv2D(5, 3, name="separable", **o), x)
        x = relu(lambda **o: layers.Conv2DTranspose(4, 2, name="transposed", **o), x)
        x = relu(lambda **o: layers.Dense(6, name="pointwise", **o), x)
        x = relu(lambda **o: layers.Dense(7, name="hidden", **o), layers.Flatten()(x))
        return models.randomize(keras.Model(image, layers.Dense(3, name="predictions")(x)), 2)

    x = models.images(2)
    want = raw(guided_backprop, build(False), x)[1]
    close(raw(guided_backprop, build(True), x)[1], want)
    assert np.abs(want - raw(gradients, build(False), x)[1]).max() > 0.1 * want.max()


@pytest.mark.parametrize(
    "wrap",
    [lambda inner, x: keras.Model(inner, x, name="inside"), lambda inner, x: keras.Sequential([keras.Model(inner, x)])],
    ids=["model", "sequential of a model"],
)
@pytest.mark.parametrize("relu", ["layer", "fused", "operation"])
def test_relus_inside_nested_models_are_gated(relu, wrap):
    x = models.images(2)
    want = raw(guided_backprop, spelled(RELUS["layer"]), x)[1]
    close(raw(guided_backprop, spelled(RELUS[relu], wrap=wrap), x)[1], want)


def test_a_nested_backbone_is_guided_like_a_flat_one():
    nested, flat = models.nested(1), models.flattened(2)
    flat.set_weights(nested.get_weights())
    x = models.images(2)
    close(raw(guided_backprop, nested, x)[1], raw(guided_backprop, flat, x)[1])
    close(raw(guided_gradcam, nested, x)[1], raw(guided_gradcam, flat, x)[1])


def test_a_layer_that_is_called_twice_is_gated_both_times():
    model, x = models.shared_layer(1), models.images(2)
    conv = oracle.read_chain(model, None)[0][:2]  # the convolution and its ReLU
    rest = oracle.read_chain(model, None)[0][2:]
    maps = raw(guided_backprop, model, x)[1]
    for i, unit in np.ndindex(2, 5):
        close(maps[i, ..., unit], oracle.guided_backprop(conv + conv + rest, x[i].astype(np.float64), unit), rtol=1e-4)


def test_a_leaky_relu_keeps_its_gradient():
    """It lets negative signals through, so it is no ReLU of the paper's."""
    image = keras.Input((8, 8, 3), name="image")
    x = layers.LeakyReLU(0.3, name="leaky")(layers.Conv2D(4, 3, name="conv")(image))
    x = layers.ReLU(name="relu")(layers.Conv2D(4, 3, name="conv2")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = models.randomize(keras.Model(image, layers.Dense(3, name="predictions")(x)), 1)
    x = models.images(1)
    leaky, maps = model.get_layer("leaky"), raw(guided_backprop, model, x)[1]
    signal = model.get_layer("conv")(x)
    with tf.GradientTape() as tape:
        tape.watch(signal)
        y = model.get_layer("conv2")(leaky(signal))
    g = (y.numpy() > 0) * np.maximum(model.get_layer("predictions").kernel.numpy()[:, 1], 0) / (4 * 4)
    g = tape.gradient(y, signal, output_gradients=tf.constant(g, tf.float32))
    with tf.GradientTape() as tape:
        tape.watch(image := tf.constant(x))
        y = model.get_layer("conv")(image)
    want = np.abs(tape.gradient(y, image, output_gradients=g)).max(axis=-1)
    close(maps[..., 1], want, rtol=1e-4)


# The model afterwards


@pytest.mark.parametrize("name", ["gap_dense", "vgg", "nested", "sequential"])
def test_the_model_has_its_own_gradient_afterwards(name):
    model = models.CASES[name].model(1)
    x = models.inputs_of(model, 2)
    before, config = raw(gradients, model, x), str(model.get_config())
    raw(guided_backprop, model, x)
    raw(guided_gradcam, model, x)
    for got, want in zip(raw(gradients, model, x), before, strict=True):
        np.testing.assert_array_equal(got, want)
    assert str(model.get_config()) == config


def test_training_goes_on_and_the_maps_follow():
    model, x = models.gap_dense(1), models.images(2)
    exposed = ex.expose(model)
    raw(guided_backprop, exposed, x)
    kernel = model.get_layer("block1_conv").kernel
    kernel.assign(2 * kernel[::-1])
    layers_now, _ = oracle.read_chain(model, None)
    want = oracle.guided_backprop(layers_now, x[1].astype(np.float64), 3)
    close(raw(guided_backprop, exposed, x)[1][1, ..., 3], want, rtol=1e-4)


# Where there is nothing to guide


@pytest.mark.parametrize("build", [models.linear_image, models.swishnet, models.normalized_features])
def test_a_model_without_a_relu_is_refused(build):
    with pytest.raises(MethodError, match=r"guided_backprop .*ReLU.*: use gradients"):
        guided_backprop(build(), models.images(1))


def test_guided_gradcam_without_a_relu_is_refused():
    with pytest.raises(MethodError, match="ReLU"):
        guided_gradcam(models.swishnet(), models.images(1))

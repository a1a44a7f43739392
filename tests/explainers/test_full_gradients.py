"""FullGrad: every bias is found, the terms add up to the logit, and the map is that of the paper."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import explainers as ex
from explainers.methods.full_gradients import full_gradient_terms, full_gradients
from tests import models, oracle
from tests.comparing import close
from tests.explainers import test_cams
from tests.explainers.test_cams import seeds
from tests.explainers.test_perturbation import raw

CHAINS = {**test_cams.CHAINS, "relu6": (models.relu6net, None)}
NETWORKS = ["gap_dense", "valid", "same, stride 2", "sequential", "swish", "rescaling", "flatten", "vgg", "mobilenet",
            "conv_gap", "one unit", "relu6"]  # fmt: skip


def terms_of(model, x, indices=None):
    return [term.numpy() for term in full_gradient_terms(model, x, indices)[1]]


def totals(terms):
    """The sum over everything but images and units, (N, K)."""
    return sum(term.astype(np.float64).sum(axis=tuple(range(1, term.ndim - 1))) for term in terms)


# Against the paper


@seeds
@pytest.mark.parametrize("name", NETWORKS)
def test_full_gradients_are_those_of_the_paper(name, seed):
    build, _ = CHAINS[name]
    model = build(seed=seed)
    network, _ = oracle.read_chain(model, None)
    x = models.inputs_of(model, 2, seed)
    units = np.array([[1, 0], [4, 2]]) % model.output_shape[-1]
    logits, maps = raw(full_gradients, model, x, units)
    for i, k in np.ndindex(units.shape):
        image = x[i].astype(np.float64)
        close(logits[i, k], oracle.forward(network, image).reshape(-1)[units[i, k]], rtol=1e-4)
        close(maps[i, ..., k], oracle.full_gradients(network, image, units[i, k]), rtol=1e-4)


@seeds
@pytest.mark.parametrize("name", NETWORKS)
def test_every_term_is_that_of_the_paper(name, seed):
    build, _ = CHAINS[name]
    model = build(seed=seed)
    network, _ = oracle.read_chain(model, None)
    x = models.inputs_of(model, 1, seed)
    unit = 3 % model.output_shape[-1]
    terms = [np.squeeze(term) for term in terms_of(model, x, [[unit]])]
    want = [np.squeeze(term) for term in oracle.full_gradient_terms(network, x[0].astype(np.float64), unit)]
    close(terms[0], want[0], rtol=1e-4)
    for term in want:
        if term.any():
            size = 1e-4 * np.abs(term).max()
            assert any(term.shape == t.shape and np.abs(term - t).max() < size for t in terms), term.shape


@seeds
@pytest.mark.parametrize("name", NETWORKS)
def test_the_oracles_terms_add_up_to_the_logit(name, seed):
    build, _ = CHAINS[name]
    network, _ = oracle.read_chain(model := build(seed=seed), None)
    image = models.inputs_of(model, 1, seed)[0].astype(np.float64)
    logits = oracle.forward(network, image).reshape(-1)
    for unit, logit in enumerate(logits):
        np.testing.assert_allclose(sum(t.sum() for t in oracle.full_gradient_terms(network, image, unit)), logit)


def test_the_terms_of_the_toy_network():
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    first, *rest = terms_of(models.toy(), x)
    assert first.shape == (1, 4, 4, 1, 1)
    assert first.sum() == 54
    (biases,) = [term for term in rest if term.any()]
    assert biases.shape == (1, 2, 2, 2, 1)
    np.testing.assert_array_equal(biases.sum(axis=(0, 1, 2, 4)), [-150, 150])
    np.testing.assert_array_equal(totals([first, *rest]), [[54]])


# Completeness


@pytest.mark.parametrize("name", models.CASES)
def test_the_terms_add_up_to_the_logit(name):
    model = models.CASES[name].model(1)
    x = models.inputs_of(model, 2)
    exposed = ex.expose(model)
    logits = np.asarray(exposed(x)[0])
    np.testing.assert_allclose(totals(terms_of(exposed, x)), logits, rtol=1e-4, atol=2e-5)


@seeds
def test_input_x_gradient_is_the_only_term_without_biases(seed):
    model, x = models.bias_free(seed), models.images(2, seed)
    first, *rest = terms_of(model, x)
    close(totals([first]), np.asarray(model(x)), rtol=1e-4)
    assert not any(term.any() for term in rest)


ACTIVATIONS = ["relu", "relu6", "leaky_relu", "silu", "sigmoid", "hard_sigmoid", "hard_silu", "tanh", "gelu", "elu",
               "selu", "softplus"]  # fmt: skip


@pytest.mark.parametrize("style", ["fused", "layer", "operation"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_implicit_biases_of_activations_are_found(activation, style):
    def activate(x, name):
        if style == "fused":
            return layers.Conv2D(4, 3, activation=activation, name=name)(x)
        after = layers.Activation(activation) if style == "layer" else getattr(keras.ops, activation)
        return after(layers.Conv2D(4, 3, name=name)(x))

    image = keras.Input((8, 8, 3), name="image")
    x = layers.GlobalAveragePooling2D()(activate(activate(image, "conv1"), "conv2"))
    model = models.randomize(keras.Model(image, layers.Dense(3, name="predictions")(x)), 1)
    x = 3 * models.images(2)
    np.testing.assert_allclose(totals(terms_of(model, x)), np.asarray(model(x)), rtol=1e-4, atol=2e-5)


BIASED = {
    "normalisation without gamma": lambda: layers.BatchNormalization(scale=False, epsilon=0.1),
    "normalisation without beta": lambda: layers.BatchNormalization(center=False, epsilon=0.1),
    "normalisation without either": lambda: layers.BatchNormalization(scale=False, center=False, epsilon=0.1),
    "rescaling": lambda: layers.Rescaling(0.7, offset=0.4),
    "rescaling of each channel": lambda: layers.Rescaling([0.7, 1.2, 0.1], offset=[0.4, -0.1, 0.3]),
    "normalisation of the data": lambda: layers.Normalization(mean=[0.3, -0.2, 0.6], variance=[2.0, 0.5, 1.3]),
    "depthwise": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
    "separable": lambda: layers.SeparableConv2D(4, 3),
    "transposed": lambda: layers.Conv2DTranspose(4, 3, strides=2),
    "dense on positions": lambda: layers.Dense(4),
    "grouped": lambda: layers.Conv2D(6, 3, groups=3),
    "dilated": lambda: layers.Conv2D(4, 3, dilation_rate=2),
    "without a bias": lambda: layers.Conv2D(4, 3, use_bias=False),
    "clipped from above and leaky": lambda: layers.ReLU(max_value=1.0, negative_slope=0.1),
    "prelu": lambda: layers.PReLU(shared_axes=(1, 2)),
    "zero padding": lambda: layers.ZeroPadding2D(2),
    "enlarged": lambda: layers.UpSampling2D(2, interpolation="bilinear"),
}


@pytest.mark.parametrize("layer", BIASED.values(), ids=BIASED)
def test_the_biases_of_every_kind_of_layer_are_found(layer):
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(5, 3, activation="relu", name="conv")(layer()(image))
    x = layers.Dense(3, name="predictions")(layers.GlobalAveragePooling2D(name="pool")(x))
    model = models.randomize(keras.Model(image, x), 2)
    x = models.images(2)
    np.testing.assert_allclose(totals(terms_of(model, x)), np.asarray(model(x)), rtol=1e-4, atol=2e-5)


def test_a_layer_that_is_called_twice_has_two_terms():
    model, x = models.shared_layer(1), models.images(2)
    terms = terms_of(model, x)
    assert len([term for term in terms[1:] if term.shape[1:4] == (8, 8, 3)]) == 2
    np.testing.assert_allclose(totals(terms), np.asarray(ex.expose(model)(x)[0]), rtol=1e-4)


def test_the_biases_behind_a_signal_and_before_it_are_both_found():
    model, x = models.residual(1), models.images(2)
    want = raw(full_gradients, model, x)[1]
    for layer in ("stem_out", "branch_out", "add"):
        close(raw(full_gradients, ex.expose(model, layer), x)[1], want)


# The map


def test_a_bias_without_positions_changes_no_map():
    model, x = models.vgg(1), models.images(2)
    maps = raw(full_gradients, model, x)[1]
    bias = model.get_layer("predictions").bias
    bias.assign(bias + 50)
    np.testing.assert_array_equal(raw(full_gradients, model, x)[1], maps)


def test_a_term_that_is_the_same_everywhere_adds_nothing_not_even_its_rounding():
    """Behind a global average, gradients differ between positions in nothing but rounding."""
    image = keras.Input((8, 8, 3), name="image")
    x = image
    for i in range(3):
        x = layers.Conv2D(16, 1, activation="relu", name=f"conv{i}")(x)
    x = layers.Dense(3, name="predictions")(layers.GlobalAveragePooling2D(name="pool")(x))
    model = models.randomize(keras.Model(image, x), 1)
    for i in range(3):  # every ReLU is open everywhere
        kernel, bias = model.get_layer(f"conv{i}").get_weights()
        model.get_layer(f"conv{i}").set_weights([kernel, 200 + bias if i == 0 else 2000 + bias])
    x = models.images(2)
    kernels = [model.get_layer(f"conv{i}").get_weights()[0][0, 0] for i in range(3)]
    gradient = kernels[0] @ kernels[1] @ kernels[2] @ model.get_layer("predictions").get_weights()[0] / 64
    psi = np.abs(x[..., np.newaxis] * gradient)  # the input's term, the only one that varies
    low, high = psi.min(axis=(1, 2), keepdims=True), psi.max(axis=(1, 2), keepdims=True)
    close(raw(full_gradients, model, x)[1], ((psi - low) / (high - low)).sum(axis=3), rtol=1e-3)


def test_the_map_has_the_size_of_the_input_and_is_never_negative():
    for name, shape in (("gap_dense", (8, 8)), ("plain", (9, 8)), ("nested", (8, 8))):
        model = models.CASES[name].model(1)
        maps = raw(full_gradients, model, models.inputs_of(model, 2))[1]
        assert maps.shape == (2, *shape, 5)
        assert maps.min() >= 0
        assert maps.max() > 1  # a sum over many channels, not a mean


def test_a_nested_backbone_is_explained_like_a_flat_one():
    nested, flat = models.nested(1), models.flattened(2)
    flat.set_weights(nested.get_weights())
    x = models.images(2)
    close(raw(full_gradients, nested, x)[1], raw(full_gradients, flat, x)[1])


def test_the_terms_of_some_units_are_those_among_all():
    model, x = models.gap_dense(1), models.images(2)
    units = np.array([[3, 0], [1, 1]])
    for some, every in zip(terms_of(model, x, units), terms_of(model, x), strict=True):
        for i, k in np.ndindex(units.shape):
            close(some[i, ..., k], every[i, ..., units[i, k]])


def test_a_trained_bias_is_read_anew():
    model, x = models.gap_dense(1), models.images(1)
    exposed = ex.expose(model)
    program = tf.function(lambda images: full_gradients(exposed, images), autograph=False)
    program(tf.constant(x))
    beta = model.get_layer("block1_bn").beta
    beta.assign(beta + 0.5)
    close(program(tf.constant(x))[1], full_gradients(exposed, x)[1])
    network, _ = oracle.read_chain(model, None)
    close(program(tf.constant(x))[1][0, ..., 2], oracle.full_gradients(network, x[0].astype(np.float64), 2), rtol=1e-4)

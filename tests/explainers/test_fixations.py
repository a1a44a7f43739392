"""CNN Fixations count what their oracle counts, and stay the same wherever a network computes the same."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import explainers as ex
from explainers.errors import InputError, MethodError
from explainers.inspection import ensure_exposed
from explainers.methods import contributors
from explainers.methods.fixations import check_fixations, fixation_density, fixations
from tests import models
from tests.oracle.fixations import fixations as count_slowly
from tests.oracle.fixations import read_network

seeds = pytest.mark.parametrize("seed", range(3))

SURE = 3e-6  # decisions with a larger margin are the same in single and double precision


def every_rule(seed=0):
    """Padding, groups, dilation, overlapping pools, branches, gates and hidden dense layers in one network."""
    image = keras.Input((10, 9, 3))
    x = layers.Conv2D(6, 3, strides=2, activation="relu")(layers.ZeroPadding2D(((1, 2), (0, 2)))(image))
    y = layers.DepthwiseConv2D((2, 3), depth_multiplier=2, padding="same", activation="silu")(x)
    y = layers.BatchNormalization()(layers.Conv2D(6, (3, 2), groups=3, padding="same")(y))
    x = layers.Add()([x, y])
    left = layers.MaxPooling2D(3, strides=2, padding="same")(layers.ZeroPadding2D(1)(x))
    right = layers.AveragePooling2D((2, 3), strides=2, padding="same")(layers.ZeroPadding2D(1)(x))
    x = layers.Concatenate()([left, right])
    gate = layers.Dense(12, activation="tanh")(layers.GlobalAveragePooling2D()(x))
    x = layers.Multiply()([layers.Reshape((1, 1, 12))(gate), x])
    x = layers.Conv2D(5, 2, dilation_rate=2, padding="same", activation="tanh")(x)
    x = layers.SeparableConv2D(7, 2, depth_multiplier=2)(layers.Cropping2D(((0, 1), (1, 0)))(x))
    x = layers.Concatenate()([layers.GlobalMaxPooling2D()(x), layers.GlobalAveragePooling2D()(x)])
    x = layers.Dense(4)(layers.Dense(6, activation="tanh")(x))
    model = models.randomize(keras.Model(image, x), seed)
    norm = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    norm.gamma.assign(norm.gamma * np.array([1, -1, 1, -1, -1, 1]))
    return model


NETWORKS = {
    **{name: models.CASES[name].build for name in (
        "gap_dense", "flatten_dense", "vgg", "mobilenet", "squeezenet", "conv_gap", "residual", "squeeze_excite",
        "max_pooled_twice", "normalized_score_maps", "swishnet", "average_pooled", "separable", "two_depths", "masked",
        "relu6net", "global_max", "rescaling_first",
    )},
    "same, stride 2": lambda seed: models.plain(seed, padding="same", strides=2),
    "valid, strides 3 and 2": lambda seed: models.plain(seed, strides=(3, 2)),
    "every rule": every_rule,
}  # fmt: skip


def counts(model, x, indices=None):
    """Maps as an array."""
    return fixations(model, x, indices)[1].numpy()


def toy(weights, image, *chain):
    """The maps of a chain of layers with given weights (an array of them, kernels first, no biases) for one image."""
    pixel = keras.Input(np.shape(image))
    x = pixel
    for layer in chain:
        x = layer(x)
    model = keras.Model(pixel, x)
    learning = [layer for layer in chain if getattr(layer, "weights", ())]
    for layer, kernel in zip(learning, weights, strict=True):
        layer.set_weights([np.reshape(kernel, layer.kernel.shape)])
    return counts(model, np.asarray(image, np.float32)[np.newaxis])[0]


# Against the oracle


@seeds
@pytest.mark.parametrize("name", NETWORKS)
def test_fixations_are_those_of_the_paper(name, seed):
    model = NETWORKS[name](seed)
    network, x = read_network(model), models.inputs_of(model, 1, seed)
    logits, maps = fixations(model, x)
    np.testing.assert_allclose(logits, ex.expose(model)(x)[0], rtol=1e-5)
    assert maps.numpy().sum() > 0
    for unit in range(logits.shape[1]):
        want, margin = count_slowly(network, x[0].astype(np.float64), unit)
        assert margin > SURE, "too close to call: choose another seed"
        np.testing.assert_array_equal(maps[0, ..., unit], want)


def test_the_oracles_signals_are_the_networks():
    model = every_rule(1)
    x = models.inputs_of(model, 2)
    nodes = read_network(model)
    for image, want in zip(x.astype(np.float64), np.asarray(model(x)), strict=True):
        signals = {id(nodes[0]): image}
        for node in nodes[1:]:
            signals[id(node)] = node.layer.forward(*(signals[id(parent)] for parent in node.parents))
        np.testing.assert_allclose(signals[id(nodes[-1])], want, rtol=1e-4)


# By hand


def test_fixations_of_the_toy_network():
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    logits, maps = fixations(models.toy(), x)
    np.testing.assert_array_equal(logits, [[54]])
    # A = 4, 31, 40 speak for the unit, 0 for nobody, 6 and 15 against it; each window is brightest in its last corner.
    np.testing.assert_array_equal(maps[0, ..., 0], [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]])


def test_a_dense_layer_on_pixels_fixates_every_value_that_speaks_for_the_unit():
    model, x = models.linear_image(3), models.images(2)
    kernel = model.get_layer("predictions").kernel.numpy().reshape(8, 8, 3, 5)
    np.testing.assert_array_equal(counts(model, x), (x[..., np.newaxis] * kernel > 0).sum(axis=3))


def test_the_channel_is_chosen_by_its_sum_and_then_the_position_by_its_contribution():
    image = [[[5, 2], [-4, 2.5], [0, 0], [0, 0]]]  # the largest value is in the first channel, which adds up to less
    kernel = [[[1, 1], [1, 0.1]]]  # in the second the larger activation contributes less
    chain = [layers.Conv2D(1, (1, 2), strides=(1, 2), use_bias=False), layers.GlobalMaxPooling2D()]
    weights = [kernel, [1]]
    maps = toy(weights, image, *chain, layers.Dense(1, use_bias=False))
    np.testing.assert_array_equal(maps[0, :, 0], [1, 0, 0, 0])
    weights[0] = [[[1, 1], [1, 1]]]
    maps = toy(weights, image, *chain, layers.Dense(1, use_bias=False))
    np.testing.assert_array_equal(maps[0, :, 0], [0, 1, 0, 0])


def test_a_negative_unit_that_speaks_for_the_logit_is_followed_to_what_makes_it_negative():
    image = [[[3], [-7]]]
    chain = [layers.Conv2D(1, (1, 2), padding="same", use_bias=False), layers.GlobalAveragePooling2D()]
    # The kernel sees a pixel and its right neighbour, 3 - 7 and -7: their average is negative, as is its weight.
    maps = toy([[1, 1], [-1]], image, *chain, layers.Dense(1, use_bias=False))
    np.testing.assert_array_equal(maps[0, :, 0], [0, 1])


def _add_neighbours(x):
    return layers.Add()([layers.Cropping2D(((0, 0), (0, 1)))(x), layers.Cropping2D(((0, 0), (1, 0)))(x)])


@pytest.mark.parametrize(
    "join",
    [layers.GlobalAveragePooling2D(), layers.AveragePooling2D((1, 2)), _add_neighbours],
    ids=["all", "pool", "sum"],
)
@pytest.mark.parametrize(("weight", "want"), [(-1, [0, 1]), (1, [0, 0])])
def test_of_signals_that_add_up_to_less_than_zero_the_most_negative_is_followed(join, weight, want):
    maps = toy([[weight]], [[[3], [-7]]], join, layers.Flatten(), layers.Dense(1, use_bias=False))
    np.testing.assert_array_equal(maps[0, :, 0], want)


def test_what_several_points_of_a_hidden_dense_layer_lead_to_counts_once():
    model = models.mlp(2)
    kernel, bias = model.get_layer("hidden").get_weights()
    x = models.images(3, shape=(6,))
    maps = counts(model, x)
    hidden = np.maximum(x @ kernel + bias, 0)
    for i, unit in np.ndindex(3, 5):
        points = hidden[i] * model.get_layer("predictions").get_weights()[0][:, unit] > 0
        want = (x[i][:, np.newaxis] * kernel[:, points] > 0).any(axis=1)
        np.testing.assert_array_equal(maps[i, :, unit], want)
    assert maps.max() == 1


def test_of_equal_contributors_the_most_central_is_followed_and_then_the_first():
    chain = [layers.Conv2D(1, 3, padding="same", use_bias=False), layers.GlobalAveragePooling2D()]
    maps = toy([np.ones(9), [1]], np.ones((4, 4, 1)), *chain, layers.Dense(1, use_bias=False))
    want = np.zeros((4, 4))
    want[1, 1] = 1  # of the four central positions that average and window find alike
    np.testing.assert_array_equal(maps[..., 0], want)


@pytest.mark.parametrize("pool", [layers.MaxPooling2D, layers.AveragePooling2D])
def test_signals_without_evidence_do_not_pull_fixations_to_a_corner(pool):
    image = keras.Input((9, 9, 3))
    x = layers.DepthwiseConv2D(3)(pool(3, 1)(layers.Conv2D(2, 3)(image)))
    model = keras.Model(image, layers.Dense(1)(layers.GlobalMaxPooling2D()(x)))
    model.set_weights([np.ones_like(values) for values in model.get_weights()])
    maps = counts(model, np.zeros((1, 9, 9, 3)))
    assert maps[0, 4, 4, 0] == maps.sum() == 2  # two channels, in which all windows are equal everywhere


def test_scores_that_are_averaged_are_followed_from_every_position_where_they_are_positive():
    image = np.random.default_rng(0).normal(size=(5, 6, 1)).astype("float32")
    maps = toy([[1, -1]], image, layers.Conv2D(2, 1, use_bias=False), layers.GlobalAveragePooling2D())
    np.testing.assert_array_equal(maps[..., 0], image[..., 0] > 0)
    np.testing.assert_array_equal(maps[..., 1], image[..., 0] < 0)


# Where the evidence is


@seeds
def test_a_network_without_biases_fixates_the_only_patch_that_is_not_black(seed):
    x = np.zeros((2, 8, 8, 3), np.float32)
    x[0, 2:5, 4:6], x[1, 6:, :2] = models.images(2, seed, (2, 3))[:, :1]
    x[:, 3, 5] *= 2
    maps = counts(models.bias_free(seed), x)
    assert maps[0].sum() > 0
    assert maps[1].sum() > 0
    np.testing.assert_array_equal(maps[(x == 0).all(axis=-1)], 0)


@seeds
@pytest.mark.parametrize(
    "name",
    ["gap_dense", "residual", "squeeze_excite", "nested", "twins", "swishnet", "mobilenet", "global_max", "conv3d"],
)
def test_there_are_as_many_fixations_as_inputs_of_the_classifier_that_speak_for_the_unit(name, seed):
    model = models.CASES[name].model(seed)
    exposed, x = ex.expose(model), models.inputs_of(model, 3, seed)
    A = np.asarray(exposed(x)[1])
    positions = tuple(range(1, A.ndim - 1))
    features = A.max(axis=positions) if name == "global_max" else A.mean(axis=positions)
    classifier = next(layer for layer in exposed.head.shared_layers if getattr(layer, "kernel", None) is not None)
    kernel = np.asarray(classifier.kernel).reshape(A.shape[-1], -1)
    want = (features[..., np.newaxis] * kernel > 0).sum(axis=1)
    maps = counts(exposed, x)
    np.testing.assert_array_equal(maps.sum(axis=tuple(range(1, maps.ndim - 1))), want)
    np.testing.assert_array_equal(maps, np.round(np.abs(maps)))


def test_activations_of_zeros_have_no_fixations():
    model = models.gap_dense()
    model.get_layer("block2_bn").gamma.assign(np.zeros(6))
    model.get_layer("block2_bn").beta.assign(-np.ones(6))
    logits, maps = fixations(model, models.images(2))
    np.testing.assert_array_equal(maps, np.zeros((2, 8, 8, 5)))
    assert np.abs(logits).max() > 0


def test_padding_is_never_fixated_even_where_it_contributes_most():
    image, x = keras.Input((8, 8, 3)), -1 - models.images(2) ** 2
    twins = []
    for inside in (True, False):  # padding by the layers themselves, or ahead of them
        y = image if inside else layers.ZeroPadding2D(1)(image)
        y = layers.Conv2D(4, 3, padding="same" if inside else "valid", name="conv")(y)
        y = y if inside else layers.ZeroPadding2D(((0, 1), (0, 1)))(y)
        y = layers.MaxPooling2D(3, 2, "same" if inside else "valid")(y)
        twins.append(keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(y))))
    models.randomize(twins[0], 1)
    conv = twins[0].get_layer("conv")
    # Every pixel contributes less than the padding's zero, and the outputs are above that of the pool.
    conv.set_weights([np.abs(conv.get_weights()[0]), np.full(4, 99)])
    twins[1].set_weights(twins[0].get_weights())
    maps = counts(twins[0], x)
    np.testing.assert_array_equal(counts(twins[1], x), maps)
    for unit in range(3):
        want, margin = count_slowly(read_network(twins[0]), x[0].astype(np.float64), unit)
        assert margin > SURE
        np.testing.assert_array_equal(maps[0, ..., unit], want)
    assert maps[:, 0].sum() + maps[:, :, 0].sum() < maps.sum()


# Networks that compute the same


def two_convolutions(seed=0):
    """A linear signal between two convolutions, whose channels may change sign, size and order."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(5, 3, name="first")(image)
    x = layers.ReLU()(layers.Conv2D(6, 3, padding="same", name="second")(x))
    return models.randomize(keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x))), seed)


@seeds
@pytest.mark.parametrize(
    "change",
    [
        lambda first, bias, second: (first * [1, -1, 1, -1, -1], bias * [1, -1, 1, -1, -1], second.T * 1),
        lambda first, bias, second: (first * [1, 2, 8, 0.5, 4], bias * [1, 2, 8, 0.5, 4], second.T * 1),
        lambda first, bias, second: (first[..., ::-1], bias[::-1], second[:, :, ::-1]),
    ],
    ids=["signs", "sizes", "order"],
)
def test_signs_sizes_and_order_of_hidden_channels_do_not_matter(change, seed):
    model, x = two_convolutions(seed), models.images(3, seed)
    maps = counts(model, x)
    (first, bias), (second, other) = (model.get_layer(name).get_weights() for name in ("first", "second"))
    new_first, new_bias, new_second = change(first, bias, second)
    if new_second.shape != second.shape:  # the same factors, divided out again
        factors = (new_bias / bias).reshape(1, 1, -1, 1)
        new_second = second / factors
    model.get_layer("first").set_weights([new_first, new_bias])
    model.get_layer("second").set_weights([new_second, other])
    np.testing.assert_array_equal(counts(model, x), maps)
    assert maps.sum() > 0


@seeds
def test_normalisation_may_be_folded_into_the_convolution(seed):
    image, x = keras.Input((8, 8, 3)), models.images(3, seed)
    twins = []
    for normalized in (True, False):
        y = layers.Conv2D(5, 3, name="conv")(image)
        y = layers.BatchNormalization(name="norm")(y) if normalized else y
        y = layers.Activation("silu")(y)
        y = layers.Conv2D(6, 3, activation="relu", name="last")(y)
        twins.append(keras.Model(image, layers.Dense(4, name="dense")(layers.GlobalAveragePooling2D()(y))))
    models.randomize(twins[0], seed)
    norm, conv = twins[0].get_layer("norm"), twins[0].get_layer("conv")
    norm.gamma.assign(norm.gamma * [1, -1, -1, 1, -1])
    factor = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    kernel, bias = conv.get_weights()
    twins[1].get_layer("conv").set_weights([kernel * factor, (bias - norm.moving_mean) * factor + norm.beta])
    for name in ("last", "dense"):
        twins[1].get_layer(name).set_weights(twins[0].get_layer(name).get_weights())
    np.testing.assert_array_equal(counts(twins[1], x), counts(twins[0], x))


@pytest.mark.parametrize(
    "norm", [layers.BatchNormalization, layers.LayerNormalization, lambda **o: layers.GroupNormalization(2, **o)]
)
def test_a_normalisation_that_turns_signs_around_may_have_them_turned_back(norm):
    image, x = keras.Input((8, 8, 3)), models.images(3)
    y = layers.Conv2D(6, 3, name="last")(norm(name="norm")(layers.Conv2D(4, 3)(image)))
    model = keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(y)))
    models.randomize(model, 1)
    maps, signs = counts(model, x), np.array([1, -1, -1, 1.0])
    model.get_layer("norm").gamma.assign(model.get_layer("norm").gamma * signs)
    model.get_layer("norm").beta.assign(model.get_layer("norm").beta * signs)
    last = model.get_layer("last").kernel
    last.assign(last * signs[:, np.newaxis])
    np.testing.assert_array_equal(counts(model, x), maps)


@pytest.mark.parametrize("build", [models.gap_dense_softmax_operation, models.softmax_object, models.average_pooled])
def test_other_ways_to_write_a_network_have_the_same_fixations(build):
    x = models.images(2)
    np.testing.assert_array_equal(counts(build(1), x), counts(models.gap_dense(1), x))


@pytest.mark.parametrize("axes", [1, 3])
def test_one_and_three_axes_of_positions_are_like_two(axes):
    positions = {1: (12,), 3: (1, 9, 7)}[axes]
    as_image = {1: (12, 1), 3: (9, 7)}[axes]

    def build(rank, shape, kernel, pool):
        signal = keras.Input((*shape, 2))
        convolution, pooling, average = (
            getattr(layers, f"{name}{rank}D") for name in ("Conv", "MaxPooling", "GlobalAveragePooling")
        )
        x = convolution(5, kernel, padding="same", strides=1)(signal)
        x = pooling(pool, padding="same")(layers.BatchNormalization()(x))
        x = convolution(4, kernel, activation="relu")(x)
        return keras.Model(signal, layers.Dense(3)(average()(x)))

    kernel, pool = {1: ((3,), (2,)), 3: ((1, 3, 3), (1, 2, 2))}[axes]
    flat_kernel, flat_pool = {1: ((3, 1), (2, 1)), 3: ((3, 3), (2, 2))}[axes]
    model = models.randomize(build(axes, positions, kernel, pool), 1)
    twin = build(2, as_image, flat_kernel, flat_pool)
    twin.set_weights([v.reshape(w.shape) for v, w in zip(model.get_weights(), twin.get_weights(), strict=True)])
    x = models.images(2, shape=(*positions, 2))
    want = counts(twin, x.reshape(2, *as_image, 2))
    np.testing.assert_array_equal(counts(model, x), want.reshape(2, *positions, 3))
    assert want.sum() > 0


@pytest.mark.parametrize(
    ("resampling", "size"),
    [(layers.UpSampling2D((2, 3)), (16, 24)), (layers.Resizing(5, 11, interpolation="nearest"), (5, 11))],
    ids=["up", "both"],
)
def test_resampled_pixels_are_followed_to_the_pixels_that_they_are(resampling, size):
    image, resampled = keras.Input((8, 8, 3)), keras.Input((*size, 3))
    chain = [layers.Conv2D(5, 3, activation="relu"), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    y = resampled
    for layer in chain:
        y = layer(y)
    body = models.randomize(keras.Model(resampled, y), 2)
    x = models.images(2)
    places = np.asarray(resampling(np.broadcast_to(np.arange(64.0).reshape(1, 8, 8, 1), (1, 8, 8, 1))), int)[0, ..., 0]
    maps = counts(keras.Model(image, body(resampling(image))), x)
    on_resampled = counts(body, resampling(x))
    for i, unit in np.ndindex(2, 3):
        want = np.bincount(places.reshape(-1), on_resampled[i, ..., unit].reshape(-1), 64)
        np.testing.assert_array_equal(maps[i, ..., unit], want.reshape(8, 8))
    assert maps.sum() > 0


def test_a_nested_model_is_followed_like_a_flat_one():
    model, flat, x = models.nested(2), models.flattened(), models.images(3)
    flat.set_weights(model.get_weights())
    np.testing.assert_array_equal(counts(model, x), counts(flat, x))


@seeds
def test_a_mirrored_image_has_mirrored_fixations_where_the_kernels_are_symmetric(seed):
    model, x = models.symmetric(seed), models.images(2, seed)
    maps = counts(model, x)
    np.testing.assert_array_equal(counts(model, x[:, :, ::-1]), maps[:, :, ::-1])
    assert (maps != maps[:, :, ::-1]).any()


def test_a_constant_added_to_all_logits_changes_nothing():
    model, x = models.gap_dense(), models.images(2)
    maps = counts(model, x)
    bias = model.get_layer("predictions").bias
    bias.assign(bias + 7)
    np.testing.assert_array_equal(counts(model, x), maps)


def test_the_cut_of_the_exposed_model_does_not_matter():
    model, x = models.residual(), models.images(2)
    np.testing.assert_array_equal(counts(ex.expose(model, "branch_out"), x), counts(model, x))


def test_an_image_without_a_channel_axis_has_the_fixations_of_one_with_it():
    image = keras.Input((8, 7))
    x = layers.Conv2D(4, 3, activation="relu")(layers.Reshape((8, 7, 1))(image))
    model = models.randomize(keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))), 1)
    body = keras.Model(model.layers[1].output, model.output)
    x = models.images(2, shape=(8, 7))
    np.testing.assert_array_equal(counts(model, x), counts(body, x[..., np.newaxis]))


# Any way of calling


@pytest.mark.parametrize(
    ("name", "jit"), [("vgg", False), ("squeezenet", True), ("every rule", False), ("every rule", True)]
)
def test_eager_graph_and_xla_agree(name, jit):
    model = every_rule(3) if name == "every rule" else models.CASES[name].model(3)
    exposed, x, units = ex.expose(model), models.inputs_of(model, 2), tf.constant([[1, 0], [3, 2]])
    program = tf.function(lambda images: fixations(exposed, images, units), jit_compile=jit, autograph=False)
    logits, maps = program(tf.constant(x))
    want_logits, want_maps = fixations(exposed, x, units)
    np.testing.assert_allclose(logits, want_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(maps, want_maps)
    assert (logits.dtype, maps.dtype) == (tf.float32, tf.float32)


def test_units_and_images_may_be_unknown_in_number_when_the_program_is_traced():
    exposed, x = ex.expose(models.gap_dense(2)), models.images(3)
    signature = [tf.TensorSpec((None, 8, 8, 3)), tf.TensorSpec((None, None), tf.int32)]
    program = tf.function(lambda images, units: fixations(exposed, images, units)[1], signature, autograph=False)
    for n, units in ((2, [[3], [1]]), (3, [[0, 4], [2, 2], [1, 3]])):
        got = program(tf.constant(x[:n]), tf.constant(units))
        np.testing.assert_array_equal(got, counts(exposed, x[:n], units))


def test_every_unit_at_once_is_each_asked_alone_and_each_image_has_its_own():
    model, x = models.residual(1), models.images(3)
    maps = counts(model, x)
    for unit in range(5):
        np.testing.assert_array_equal(counts(model, x, tf.fill((3, 1), unit))[..., 0], maps[..., unit])
    units = np.array([[4, 0], [1, 1], [2, 3]])
    got = counts(model, x, units)
    for i, k in np.ndindex(units.shape):
        np.testing.assert_array_equal(got[i, ..., k], maps[i, ..., units[i, k]])
    assert (maps[..., 0] != maps[..., 1]).any()


@pytest.mark.parametrize("name", ["vgg", "residual", "squeeze_excite"])
def test_the_map_of_an_image_does_not_depend_on_its_batch(name):
    exposed, x = ex.expose(models.CASES[name].model(3)), models.images(4) * [[[[1]]], [[[9]]], [[[0.1]]], [[[1]]]]
    maps, order = counts(exposed, x), [2, 0, 3, 1]
    np.testing.assert_array_equal(counts(exposed, x[order]), maps[order])
    np.testing.assert_array_equal(counts(exposed, x[1:2])[0], maps[1])


@pytest.mark.parametrize("way", ["eager", "graph"])
def test_many_points_are_taken_in_parts(way, monkeypatch):
    exposed, x = ex.expose(every_rule(2)), models.images(2, shape=(10, 9, 3))
    want = counts(exposed, x)
    monkeypatch.setattr(contributors, "AT_ONCE", 100)
    program = fixations if way == "eager" else tf.function(fixations, autograph=False)
    np.testing.assert_array_equal(program(exposed, tf.constant(x))[1], want)


def test_images_of_any_size_fit_a_model_that_leaves_it_open_and_a_program_needs_to_know_it():
    model = models.dynamic(1)
    x = models.images(2, shape=(10, 6, 3))
    network = read_network(model)
    want, margin = count_slowly(network, x[1].astype(np.float64), 3)
    assert margin > SURE
    np.testing.assert_array_equal(counts(model, x)[1, ..., 3], want)
    program = tf.function(
        lambda images: fixations(model, images), [tf.TensorSpec((None, None, None, 3))], autograph=False
    )
    with pytest.raises(InputError, match=r"needs images of a known size.*\(None, None, .*trace it with a height"):
        program(x)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_counts_whole_fixations_in_single_precision(dtype):
    model, x = models.gap_dense(1, dtype=dtype), models.images(3)
    logits, maps = fixations(model, x)
    assert (logits.dtype, maps.dtype) == (tf.float32, tf.float32)
    single = counts(models.gap_dense(1), x)
    np.testing.assert_array_equal(maps.numpy().sum(axis=(1, 2)), single.sum(axis=(1, 2)))


def test_a_model_that_reads_bytes_is_followed_to_them():
    model, x = models.byte_input(1), models.pixels(2)
    np.testing.assert_array_equal(counts(model, x), counts(models.rescaling_first(1), x.astype(np.float32)))


# What does not fit


@keras.saving.register_keras_serializable("tests")
class Doubled(layers.Dense):
    """Looks like a dense layer and computes something else."""

    def call(self, inputs):
        return 2 * super().call(inputs)


def _with(layer):
    image = keras.Input((8, 8, 3))
    x = layer(layers.Conv2D(4, 3, name="conv")(image))
    return keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (models.hybrid, "MultiHeadAttention 'attention'"),
        (models.attention_pooled, "Dot 'weighted_mean'"),
        (lambda: _with(layers.Softmax(name="share")), "Softmax 'share'"),
        (lambda: _with(layers.Conv2D(3, 1, activation="softmax", name="share")), "Conv2D 'share'"),
        (lambda: _with(Doubled(3, name="doubled")), "Doubled 'doubled'"),
        (lambda: _with(layers.BatchNormalization(axis=1, name="rows")), "BatchNormalization 'rows'"),
        (lambda: _with(layers.Lambda(lambda x: x[:, ::-1], name="any")), "Lambda 'any'"),
    ],
    ids=["attention", "pooling by attention", "softmax", "fused softmax", "own call", "axis", "lambda"],
)
def test_a_layer_without_a_rule_is_refused_by_name_with_the_way_out(model, layer):
    exposed = ensure_exposed(model(), spatial=False)
    with pytest.raises(MethodError, match=f"no rule for {layer}: use gradcam or gradients"):
        check_fixations(exposed)
    with pytest.raises(MethodError, match="no rule for"):
        fixations(exposed, models.images(1))


def test_what_only_gates_a_signal_needs_no_rule():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu")(image)
    gate = layers.Softmax()(layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    x = layers.Multiply()([x, layers.Reshape((1, 1, 4))(gate)])
    model = models.randomize(keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))), 0)
    assert counts(model, models.images(1)).sum() > 0


def test_two_inputs_are_refused():
    with pytest.raises(MethodError, match="pixels of one input, and this model has 2: use gradcam"):
        fixations(models.two_inputs(), [models.images(1), models.images(1, shape=(4,))])


# Density


def test_the_density_of_one_fixation_is_a_gaussian_of_a_twentieth_of_the_shorter_side():
    maps = np.zeros((1, 40, 60, 2), np.float32)
    maps[0, 10, 30, 1] = 3
    density = fixation_density(maps).numpy()
    rows, columns = np.mgrid[:40, :60]
    want = np.exp(-((rows - 10) ** 2 + (columns - 30) ** 2) / (2 * 2.0**2))
    np.testing.assert_allclose(density[0, ..., 1], want, atol=1e-6)
    np.testing.assert_array_equal(density[0, ..., 0], 0)


def test_densities_add_up_over_fixations_and_are_taken_over_the_maximum_of_each_map_alone():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 3, (2, 20, 30, 2)).astype(np.float32) * (rng.random((2, 20, 30, 2)) < 0.05)
    maps[1, ..., 0] *= 100
    density = fixation_density(maps).numpy()
    rows, columns = np.mgrid[:20, :30]
    for i, k in np.ndindex(2, 2):
        want = sum(
            n * np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / 2) for (r, c), n in np.ndenumerate(maps[i, ..., k])
        )
        np.testing.assert_allclose(density[i, ..., k], want / want.max(), atol=1e-5)


@pytest.mark.parametrize("shape", [(12,), (6, 8, 7)])
def test_density_has_any_number_of_axes(shape):
    maps = np.zeros((2, *shape, 3), np.float32)
    maps[(1, *(2 for _ in shape), 0)] = 1
    density = fixation_density(maps).numpy()
    assert density.shape == maps.shape
    assert density[(1, *(2 for _ in shape), 0)] == 1
    assert 0 < density[(1, *(1 for _ in shape), 0)] < 1
    assert density[0].max() == 0

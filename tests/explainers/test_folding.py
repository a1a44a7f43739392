"""A folded model is the same function: kernels of the formula, and nothing folded that is read elsewhere."""

import itertools
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import explainers as ex
from explainers import folding, heads
from explainers.compiled import FOLDING_BOUND
from explainers.folding import Folded, Scaled, fold_normalization, fold_padding, folded, kernel_of
from explainers.graph import flatten_model, run_steps
from explainers.precision import lowered
from tests import models
from tests.comparing import close


def randomize(model, seed=0):
    """As the other tests' models, with scales of both signs and statistics that lie far apart."""
    models.randomize(model, seed)
    rng = np.random.default_rng(100 + seed)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            if layer.scale:
                layer.gamma.assign(rng.uniform(0.3, 2, layer.gamma.shape) * rng.choice([-1, 1], layer.gamma.shape))
            layer.moving_variance.assign(10 ** rng.uniform(-1, 1, layer.moving_variance.shape))
    return model


def classifier(features, shape=(8, 8, 3), seed=0):
    """A model of features, which a function makes of the image, and a dense layer on their average."""
    image = keras.Input(shape, name="image")
    x = features(image)
    pool = {3: layers.GlobalAveragePooling1D, 4: layers.GlobalAveragePooling2D, 5: layers.GlobalAveragePooling3D}
    x = layers.Dense(models.CLASSES, name="predictions")(pool[len(x.shape)](name="pool")(x))
    return randomize(keras.Model(image, x), seed)


def run(graph, x):
    """The value of every step, by name."""
    values = {graph.inputs[0].index: tf.convert_to_tensor(x)}
    run_steps(graph.steps, values)
    return {step.name: values[step.outputs[0].index].numpy() for step in graph.steps}


def folded_names(graph):
    """The normalisations that something else stands for now."""
    identities = [step for step in graph.steps if isinstance(step.operation, heads.Identity)]
    names = [step.name for step in identities if isinstance(step.operation.layer, layers.BatchNormalization)]
    assert len(names) == sum(isinstance(step.operation, Folded) for step in graph.steps)
    return names


def padded_names(graph):
    """The paddings that were left to a convolution."""
    identities = [step for step in graph.steps if isinstance(step.operation, heads.Identity)]
    return [step.name for step in identities if "Padding" in type(step.operation.layer).__name__]


def assert_same_function(exposed, x, rtol=3e-6, count=None):
    """Logits, activations and the signals beside them are the same, and so many normalisations are folded."""
    cheaper = folded(exposed)
    for got, want in zip(cheaper(x), exposed(x), strict=True):
        close(got, want, rtol)
    signals, wanted = (keras.tree.flatten(model.split(x)) for model in (cheaper, exposed))
    for got, want in zip(signals, wanted, strict=True):
        close(got, want, rtol)
    if count is not None:
        assert len(folded_names(cheaper.computing)) == count


# The formula

KINDS = {
    "conv1d": ((9, 3), lambda **o: layers.Conv1D(4, 3, strides=2, **o)),
    "causal": ((9, 3), lambda **o: layers.Conv1D(4, 3, padding="causal", dilation_rate=2, **o)),
    "conv2d": ((7, 8, 3), lambda **o: layers.Conv2D(4, (3, 2), padding="same", **o)),
    "dilated": ((7, 8, 3), lambda **o: layers.Conv2D(4, 3, dilation_rate=2, **o)),
    "groups": ((7, 8, 4), lambda **o: layers.Conv2D(6, 3, groups=2, **o)),
    "conv3d": ((4, 5, 6, 2), lambda **o: layers.Conv3D(3, 2, padding="same", **o)),
    "dense": ((6,), lambda **o: layers.Dense(4, **o)),
    "dense_rows": ((5, 6), lambda **o: layers.Dense(4, **o)),
    "depthwise1d": ((9, 3), lambda **o: layers.DepthwiseConv1D(3, depth_multiplier=2, **o)),
    "depthwise2d": ((7, 8, 3), lambda **o: layers.DepthwiseConv2D(3, depth_multiplier=2, strides=2, **o)),
    "separable1d": ((9, 3), lambda **o: layers.SeparableConv1D(4, 3, depth_multiplier=2, **o)),
    "separable2d": ((7, 8, 3), lambda **o: layers.SeparableConv2D(4, 3, depth_multiplier=2, padding="same", **o)),
}  # fmt: skip


def normalized(kind, normalization=None, use_bias=True, seed=0):
    """One linear layer and its normalisation."""
    shape, build = KINDS[kind]
    image = keras.Input(shape)
    x = build(use_bias=use_bias, name="linear")(image)
    return randomize(keras.Model(image, layers.BatchNormalization(name="bn", **(normalization or {}))(x)), seed)


def by_the_formula(linear, normalization):
    """k gamma / sqrt(variance + epsilon) and (b - mean) gamma / sqrt(variance + epsilon) + beta, entry by entry."""
    of, to = ({v.path.split("/")[-1]: v.numpy().astype(np.float64) for v in layer.weights}
              for layer in (linear, normalization))  # fmt: skip
    kernel = of.get("pointwise_kernel", of.get("kernel"))
    channels = len(to["moving_mean"])
    gamma, beta = to.get("gamma", np.ones(channels)), to.get("beta", np.zeros(channels))
    deviation = [math.sqrt(variance + normalization.epsilon) for variance in to["moving_variance"]]
    folded_kernel = np.zeros_like(kernel)
    for index in np.ndindex(kernel.shape):
        # A depthwise convolution's output channels are those of its input, each as often as the multiplier says.
        depthwise = isinstance(linear, (layers.DepthwiseConv1D, layers.DepthwiseConv2D))
        c = index[-2] * kernel.shape[-1] + index[-1] if depthwise else index[-1]
        folded_kernel[index] = kernel[index] * gamma[c] / deviation[c]
    bias = of.get("bias", np.zeros(channels))
    return folded_kernel, [
        (bias[c] - to["moving_mean"][c]) * gamma[c] / deviation[c] + beta[c] for c in range(channels)
    ]


def assert_formula(model, x):
    graph = flatten_model(model)
    linear, normalization = fold_normalization(graph).steps
    assert isinstance(normalization.operation, heads.Identity)
    kernel, bias = by_the_formula(model.get_layer("linear"), model.get_layer("bn"))
    # Rounded once, from float64: half a unit in float32's last place, and not a bit more.
    np.testing.assert_allclose(np.asarray(kernel_of(linear.operation.view)), kernel, rtol=2.0**-24)
    silence = linear.operation(tf.zeros_like(x)).numpy()
    np.testing.assert_allclose(silence, np.broadcast_to(bias, silence.shape), rtol=2.0**-24)
    close(run(fold_normalization(graph), x)["bn"], model(x), 1e-6)
    close(run(fold_normalization(graph), x)["linear"], model(x), 1e-6)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_kernel_and_bias_are_those_of_the_formula(kind, use_bias):
    assert_formula(normalized(kind, use_bias=use_bias), models.images(2, shape=KINDS[kind][0]))


@pytest.mark.parametrize("kind", ["conv2d", "depthwise2d", "separable2d", "dense"])
@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"scale": False, "center": False},
                                     {"epsilon": 0.5}])  # fmt: skip
def test_a_normalisation_without_scale_or_offset_has_its_own_formula(kind, options):
    assert_formula(normalized(kind, options), models.images(2, shape=KINDS[kind][0]))


@pytest.mark.parametrize("kind", ["conv1d", "conv2d", "conv3d", "dense", "dense_rows", "depthwise1d"])
def test_the_last_axis_may_be_counted_from_the_front(kind):
    shape = KINDS[kind][0]
    assert_formula(normalized(kind, {"axis": len(shape)}), models.images(2, shape=shape))


def test_a_graph_is_not_changed_by_what_is_made_of_it():
    model = normalized("conv2d")
    graph = flatten_model(model)
    cheaper = fold_normalization(graph)
    assert [step.operation for step in graph.steps] == model.layers[1:]
    assert [step.name for step in cheaper.steps] == ["linear", "bn"]
    assert [step.outputs for step in cheaper.steps] == [step.outputs for step in graph.steps]
    assert cheaper.outputs == graph.outputs


# Whole networks

FOLDED = dict.fromkeys(models.CASES, 2) | {
    "normalized_features": 1, "normalized_score_maps": 3, "vgg": 0, "squeezenet": 3, "sequential": 1, "twins": 4,
    "residual": 3, "shared_layer": 0, "conv1d": 1, "conv3d": 1, "plain": 0, "separable": 1,
}  # fmt: skip
"""How many normalisations each shape of model has, by hand: every one of them lies behind a convolution."""


@pytest.mark.parametrize("name", models.CASES)
def test_every_shape_of_model_is_the_same_function_with_every_normalisation_folded(name):
    model = randomize(models.CASES[name].model(), 1)
    assert_same_function(ex.expose(model), models.inputs_of(model, 3), count=FOLDED[name])


def applications_model(name):
    options = {"weights": None, "input_shape": (32, 32, 3), "classes": 7}
    return randomize(getattr(keras.applications, name)(**options), 1)


@pytest.mark.parametrize(
    ("name", "n_folded", "n_padded"),
    [
        ("MobileNetV2", 52, 4),  # every one, and the padding ahead of each stride
        ("MobileNetV3Small", 34, 4),
        ("EfficientNetB0", 49, 5),
        # 16 blocks begin with a normalisation, and one lies behind them; at 32 pixels the padding ahead of the first
        # convolution and of the three strides is not that of "same".
        ("ResNet50V2", 49 - 17, 13),
    ],
)
def test_an_application_is_the_same_function(name, n_folded, n_padded):
    model = applications_model(name)
    exposed, x = ex.expose(model), models.inputs_of(model, 2)
    assert_same_function(exposed, x, rtol=1e-5, count=n_folded)
    assert len(padded_names(folded(exposed).computing)) == n_padded
    keras.backend.clear_session()


@pytest.mark.parametrize("build", [models.residual, models.squeeze_excite, models.relu6net, models.nested])
def test_a_signal_keeps_its_values_wherever_the_model_is_cut(build):
    model = randomize(build(), 3)
    x = models.inputs_of(model, 2)
    graph = flatten_model(model)
    norms = [step for step in graph.steps if isinstance(step.operation, layers.BatchNormalization)]
    spatial = [step for step in graph.steps if len(step.outputs[0].shape) == 4]
    assert len(spatial) > 5
    for step in spatial:
        # A convolution that is exposed itself keeps its own output: its normalisation is the head's.
        n_cut_off = sum(norm.inputs == step.outputs for norm in norms)
        assert_same_function(ex.expose(model, step.name), x, count=len(norms) - n_cut_off)


def test_logits_ahead_of_a_normalisation_keep_their_values():
    def features(x):
        return layers.BatchNormalization(name="bn")(layers.Dense(4, name="dense")(layers.Conv2D(4, 3, name="conv")(x)))

    image = keras.Input((8, 8, 3))
    scores = layers.Dense(5, name="scores")(layers.GlobalAveragePooling2D()(features(image)))
    model = randomize(keras.Model(image, layers.Softmax()(layers.BatchNormalization(name="scores_bn")(scores))))
    x = models.images(2)
    assert_same_function(ex.expose(model), x, count=2)
    assert_same_function(ex.expose(model, outputs="scores"), x, count=1)


def test_outputs_and_kept_signals_are_read_from_outside():
    image = keras.Input((8, 8, 3))
    ahead = layers.Conv2D(4, 3, name="conv")(image)
    behind = layers.BatchNormalization(name="bn")(ahead)
    x = models.images(2)
    for outputs, n in ((behind, 1), ([ahead, behind], 0)):
        model = randomize(keras.Model(image, outputs))
        graph = flatten_model(model)
        assert len(folded_names(fold_normalization(graph))) == n
        close(run(fold_normalization(graph), x)["bn"], model.get_layer("bn")(model.get_layer("conv")(x)), 1e-6)
        assert folded_names(fold_normalization(graph, keep=graph.steps[0].outputs)) == []


def test_each_call_of_a_shared_layer_takes_in_its_own_normalisation():
    conv, norm = layers.Conv2D(3, 3, padding="same", name="conv"), layers.BatchNormalization(name="shared")

    def features(x):
        x = layers.ReLU()(layers.BatchNormalization(name="first")(conv(x)))
        x = layers.ReLU()(layers.BatchNormalization(name="second")(conv(x)))
        x = norm(conv(norm(layers.Conv2D(3, 1, name="pointwise")(x))))
        return conv(x)

    exposed = ex.expose(classifier(features), "conv")
    assert_same_function(exposed, models.images(2), count=4)
    assert folded_names(folded(exposed).computing) == ["first", "second", "shared", "shared"]


def test_layers_are_folded_across_the_doors_of_nested_models():
    signal = keras.Input((6, 6, 4))
    body = keras.Model(signal, layers.Conv2D(4, 1, name="inner_conv")(layers.BatchNormalization(name="inner")(signal)),
                       name="body")  # fmt: skip

    def features(x):
        x = layers.BatchNormalization(name="outer")(body(layers.Conv2D(4, 3, name="conv")(x)))
        return layers.BatchNormalization(name="last")(body(layers.ReLU()(x)))

    exposed = ex.expose(classifier(features))
    assert_same_function(exposed, models.images(2), count=3)
    assert folded_names(folded(exposed).computing) == ["body.inner", "outer", "last"]


def test_layers_that_were_called_by_keyword_are_folded():
    def features(x):
        x = layers.BatchNormalization(name="bn")(inputs=layers.Conv2D(4, 3, name="conv")(inputs=x))
        # The dense layer is told whether it is trained, which is none of the kernel's business.
        return layers.BatchNormalization(name="bn2")(layers.Dense(4, name="dense")(x, training=True), training=True)

    assert_same_function(ex.expose(classifier(features)), models.images(2), count=2)


def test_folding_twice_is_folding_once():
    exposed, x = ex.expose(randomize(models.relu6net())), models.images(2)
    once = folded(exposed)
    twice = folded(once)
    for got, want in zip(twice(x), once(x), strict=True):
        np.testing.assert_array_equal(got, want)
    assert folded_names(twice.computing) == ["conv_bn", "depthwise_bn"]


# What is left alone


class OwnNormalization(layers.BatchNormalization):
    """Twice what Keras's own gives."""

    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


class OwnConvolution(layers.Conv2D):
    """The square of what Keras's own gives."""

    def call(self, inputs):
        return super().call(inputs) ** 2


def linear(x):
    """No identity, whatever its name."""
    return 2 * x + 1


def conv(**options):
    return layers.Conv2D(4, 3, **options)


def norm(**options):
    return layers.BatchNormalization(**options)


def read_twice(x):
    x = conv()(x)
    return layers.Concatenate()([norm()(x), x])


def normalized_twice(x):
    x = conv()(x)
    return layers.Concatenate()([norm()(x), norm()(x)])


LEFT_ALONE = {
    "read twice": read_twice,
    "normalised twice": normalized_twice,
    "fused ReLU": lambda x: norm()(conv(activation="relu")(x)),
    "fused function called linear": lambda x: norm()(conv(activation=linear)(x)),
    "rows normalised": lambda x: norm(axis=1)(conv()(x)),
    "columns normalised": lambda x: norm(axis=-2)(conv()(x)),
    "own normalisation": lambda x: OwnNormalization()(conv()(x)),
    "own convolution": lambda x: norm()(OwnConvolution(4, 3)(x)),
    "other normalisation": lambda x: layers.GroupNormalization(2)(conv()(x)),
    "transposed": lambda x: norm()(layers.Conv2DTranspose(4, 3)(x)),
    "wrapped": lambda x: norm()(layers.SpectralNormalization(conv())(x)),
    "normalised ahead": lambda x: conv()(norm()(x)),
    "dropout between": lambda x: norm()(layers.Dropout(0.5)(conv()(x))),
    "activation between": lambda x: norm()(layers.ReLU()(conv()(x))),
    "pool between": lambda x: norm()(layers.MaxPooling2D()(conv()(x))),
    "half precision": lambda x: norm(dtype="mixed_bfloat16")(conv(dtype="mixed_bfloat16")(x)),
    "convolution in half precision": lambda x: norm()(conv(dtype="mixed_float16")(x)),
    "normalisation in half precision": lambda x: norm(dtype="mixed_float16")(conv()(x)),
    "double precision": lambda x: norm(dtype="float64")(conv(dtype="float64")(x)),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_a_normalisation_that_cannot_be_taken_in_is_left_alone(name):
    exposed, x = ex.expose(classifier(LEFT_ALONE[name])), models.images(2)
    cheaper = folded(exposed, xla=True)
    assert folded_names(cheaper.computing) == []
    for got, want in zip(cheaper(x), exposed(x), strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(folded(exposed)(x), exposed(x), strict=True):  # some of them are computed otherwise there
        close(got, want, 1e-2 if "half precision" in name else 3e-6)


# BatchNorm that nothing takes in


def scaled_names(exposed):
    return [step.name for step in exposed.computing.steps if isinstance(step.operation, Scaled)]


def preactivated(x):
    """As in ResNet V2: a sum that is normalised on one way and passes by on the other."""
    x = layers.Conv2D(6, 3)(x)
    y = layers.ReLU()(norm(name="first")(x))
    x = layers.Add()([x, layers.Conv2D(6, 3, padding="same")(y)])
    return layers.ReLU()(norm(name="second")(x))


def test_what_nothing_takes_in_is_the_formula_in_one_convolution():
    exposed, x = ex.expose(classifier(preactivated)), models.images(3)
    cheaper = folded(exposed)
    assert scaled_names(cheaper) == ["first", "second"]
    for got, want in zip(cheaper(x), exposed(x), strict=True):
        close(got, want, 3e-6)
    for step in (step for step in cheaper.computing.steps if isinstance(step.operation, Scaled)):
        layer, signal = step.operation.layer, np.random.default_rng(1).normal(size=(2, 5, 4, 6)).astype(np.float32)
        gamma, beta, mean, variance = (np.asarray(w, np.float64) for w in layer.get_weights())
        want = (signal - mean) / np.sqrt(variance + layer.epsilon) * gamma + beta
        close(step.operation(signal), want, 1e-6)


def test_xla_and_gpus_get_no_depthwise_convolutions_for_it(monkeypatch):
    exposed = ex.expose(classifier(preactivated))
    assert scaled_names(folded(exposed, xla=True)) == []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu"] if kind == "GPU" else [])
    assert scaled_names(folded(exposed)) == []


@pytest.mark.parametrize("rank", [1, 3])
def test_signals_of_other_ranks_keep_their_normalisation(rank):
    kinds = {1: layers.Conv1D, 3: layers.Conv3D}
    shape = (6,) * rank + (2,)
    model = classifier(lambda x: norm()(layers.ReLU()(kinds[rank](6, 3)(x))), shape)
    exposed = ex.expose(model)
    assert folded(exposed) is exposed


@pytest.mark.parametrize("jit", ["auto", True, False])
def test_a_program_is_the_same_whether_xla_was_chosen_or_asked_for(jit, monkeypatch):
    monkeypatch.setattr("explainers.compiled._faster_with_xla", lambda _: True)
    explainer = ex.Explainer(classifier(preactivated), batch_size=2, jit=jit)
    assert (explainer.jit, scaled_names(explainer.exposed)) == ((False, ["first", "second"]) if not jit else (True, []))


def test_lower_precision_normalises_it_in_float32_still():
    exposed, x = ex.expose(classifier(preactivated)), models.images(3)
    got, want = lowered(folded(exposed), "bfloat16"), lowered(folded(exposed, xla=True), "bfloat16")
    assert [type(s.operation).__name__ for s in got.computing.steps if s.name in ("first", "second")] == [
        "Normalized"
    ] * 2
    np.testing.assert_array_equal(got(x)[0], want(x)[0])


def with_low_rank_updates(layer):
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.random.default_rng(0).normal(size=layer.lora_kernel_b.shape))


@pytest.mark.parametrize("change", [with_low_rank_updates, lambda layer: layer.quantize("int8")])
def test_a_kernel_that_was_added_to_or_quantised_is_left_alone(change):
    def features(x):
        return layers.ReLU()(norm(name="dense_bn")(layers.Dense(6, name="dense")(norm(name="conv_bn")(conv()(x)))))

    model = classifier(features)
    x = models.images(2)
    before = model(x).numpy()
    change(model.get_layer("dense"))
    assert np.abs(model(x) - before).max() > 1e-4, "the change has an effect"
    exposed = ex.expose(model)
    assert_same_function(exposed, x, count=1)
    assert folded_names(folded(exposed).computing) == ["conv_bn"]


def test_a_convolution_with_low_rank_updates_is_left_alone():
    model = classifier(lambda x: norm()(conv(name="conv")(x)))
    with_low_rank_updates(model.get_layer("conv"))
    assert_same_function(ex.expose(model), models.images(2), count=0)


def test_a_normalisation_that_is_told_of_a_mask_is_left_alone():
    image = keras.Input((8, 8, 3))
    x = conv()(image)
    x = norm(name="bn")(x, mask=keras.ops.any(x > 0, axis=-1))
    model = randomize(keras.Model(image, x))
    cheaper, x = fold_normalization(flatten_model(model)), models.images(2)
    assert folded_names(cheaper) == []
    np.testing.assert_array_equal(run(cheaper, x)["bn"], model(x))


def test_a_mask_that_keras_passes_on_reaches_the_pooling():
    def build(*first):
        signal = keras.Input((8, 3))
        x = signal
        for layer in (*first, layers.Dense(4), norm(), layers.ReLU(), layers.GlobalAveragePooling1D(name="pool")):
            x = layer(x)
        return randomize(keras.Model(signal, x))

    x = models.images(2, shape=(8, 3))
    x[:, 5:] = 0
    got = run(fold_normalization(flatten_model(build(layers.Masking()))), x)["pool"]
    close(got, build(layers.Masking())(x), 1e-6)
    assert np.abs(got - build()(x)).max() > 1e-2, "the mask matters"


# Padding


def margins(size, kernel, stride):
    """TensorFlow's own rule: as many zeros as the windows need to reach the end, the odd one behind."""
    windows = math.ceil(size / stride)
    total = max((windows - 1) * stride + kernel - size, 0)
    return total // 2, math.ceil(total / 2)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [7, 8])
def test_padding_is_left_to_the_convolution_where_same_puts_the_same_zeros(size, stride):
    x, counts = models.images(2, shape=(size, 2)), {True: 0, False: 0}
    for kernel, pads in itertools.product([1, 2, 3, 5], [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)]):
        signal = keras.Input((size, 2))
        y = layers.Conv1D(2, kernel, strides=stride, name="conv")(layers.ZeroPadding1D(pads, name="pad")(signal))
        model = randomize(keras.Model(signal, y))
        graph = fold_padding(flatten_model(model))
        same = pads == margins(size, kernel, stride)
        assert padded_names(graph) == ["pad"] * same
        close(run(graph, x)["conv"], model(x), 1e-6)
        counts[same] += 1
    assert min(counts.values()) > 2, "both happen"


@pytest.mark.parametrize(
    ("shape", "features"),
    [
        ((8, 7, 3), lambda x: layers.Conv2D(4, 3, strides=2)(layers.ZeroPadding2D(((0, 1), (1, 1)))(x))),
        ((8, 8, 3), lambda x: layers.Conv2D(4, 3)(layers.ZeroPadding2D(1)(x))),
        ((8, 8, 3), lambda x: layers.Conv2D(4, (5, 1), activation="relu")(layers.ZeroPadding2D((2, 0))(x))),
        ((8, 8, 4), lambda x: layers.Conv2D(4, 3, groups=2)(layers.ZeroPadding2D(1)(x))),
        ((8, 8, 3), lambda x: layers.DepthwiseConv2D(3, 2, depth_multiplier=2)(layers.ZeroPadding2D(((0, 1),) * 2)(x))),
        ((9, 3), lambda x: layers.DepthwiseConv1D(3, strides=2)(layers.ZeroPadding1D(1)(x))),
        ((8, 8, 3), lambda x: layers.SeparableConv2D(4, 3)(layers.ZeroPadding2D(1)(x))),
        ((9, 3), lambda x: layers.SeparableConv1D(4, 3)(layers.ZeroPadding1D(1)(x))),
        ((4, 5, 6, 2), lambda x: layers.Conv3D(4, 3)(layers.ZeroPadding3D(1)(x))),
    ],
)  # fmt: skip
def test_every_convolution_takes_its_padding_and_its_normalisation(shape, features):
    model = classifier(lambda x: layers.ReLU()(features(x)), shape)
    exposed, x = ex.expose(model), models.images(2, shape=shape)
    assert_same_function(exposed, x, count=0)
    assert len(padded_names(folded(exposed).computing)) == 1
    if "activation" in str(features.__code__.co_consts):
        return
    both = ex.expose(classifier(lambda x: layers.ReLU()(norm()(features(x))), shape))
    assert_same_function(both, x, count=1)
    assert len(padded_names(folded(both).computing)) == 1


class OwnPadding(layers.ZeroPadding2D):
    """Pads with ones."""

    def call(self, inputs):
        return super().call(inputs - 1) + 1


def pad(amount=1, **options):
    return layers.ZeroPadding2D(amount, **options)


def padded_and_read_twice(x):
    x = pad()(x)
    return layers.Concatenate()([conv()(x), layers.MaxPooling2D(3, 1)(x)])


PADDING_LEFT_ALONE = {
    "another amount": ((8, 8, 3), lambda x: conv()(pad(2)(x))),
    "the odd zero ahead": ((8, 8, 3), lambda x: conv(strides=2)(pad(((1, 0), (1, 0)))(x))),
    "right along one axis alone": ((8, 8, 3), lambda x: conv()(pad(((1, 1), (0, 2)))(x))),
    "right at odd sizes": ((8, 8, 3), lambda x: conv(strides=2)(pad(1)(x))),
    "open size": ((None, None, 3), lambda x: conv()(pad()(x))),
    "one open axis": ((8, None, 3), lambda x: conv()(pad()(x))),
    "right were it not dilated": ((8, 8, 3), lambda x: conv(dilation_rate=2)(pad(1)(x))),
    "dilated": ((8, 8, 3), lambda x: conv(dilation_rate=2)(pad(2)(x))),
    "same already": ((8, 8, 3), lambda x: conv(padding="same")(pad()(x))),
    "causal": ((8, 3), lambda x: layers.Conv1D(4, 3, padding="causal")(layers.ZeroPadding1D(1)(x))),
    "transposed": ((8, 8, 3), lambda x: layers.Conv2DTranspose(4, 3)(pad()(x))),
    "ahead of a pool": ((8, 8, 3), lambda x: conv()(layers.MaxPooling2D(3, 1)(pad()(x)))),
    "read twice": ((8, 8, 3), padded_and_read_twice),
    "own padding": ((8, 8, 3), lambda x: conv()(OwnPadding(1)(x))),
    "own convolution": ((8, 8, 3), lambda x: OwnConvolution(4, 3)(pad()(x))),
    # Wrappers have an attribute `layer`, as this project's own views do.
    "wrapped": ((8, 8, 3), lambda x: layers.SpectralNormalization(conv())(pad()(x))),
    "wrapped over time": ((4, 8, 8, 3), lambda x: layers.TimeDistributed(conv())(layers.ZeroPadding3D((0, 1, 1))(x))),
    "rounded": ((8, 8, 3), lambda x: conv()(pad(dtype="float16")(x))),
}  # fmt: skip


@pytest.mark.parametrize("name", PADDING_LEFT_ALONE)
def test_padding_that_is_not_that_of_same_is_left_alone(name):
    shape, features = PADDING_LEFT_ALONE[name]
    model = classifier(lambda x: layers.ReLU(name="out")(features(x)), shape)
    exposed, x = ex.expose(model, "out"), models.inputs_of(model, 2)
    cheaper = folded(exposed)
    assert padded_names(cheaper.computing) == []
    for got, want in zip(cheaper(x), exposed(x), strict=True):
        np.testing.assert_array_equal(got, want)


def test_padding_that_is_exposed_keeps_its_zeros():
    model = classifier(lambda x: conv(name="conv2")(pad(name="pad")(conv(name="conv1")(x))))
    x = models.images(2)
    exposed = ex.expose(model, "pad")
    assert_same_function(exposed, x)
    assert padded_names(folded(exposed).computing) == []
    assert padded_names(folded(ex.expose(model, "conv1")).computing) == ["pad"]


# The user's model


def state_of(model):
    """Everything that folding could have changed: what each layer holds, by identity, and how often it was called."""
    held = {layer.path: {name: id(value) for name, value in vars(layer).items()} for layer in model._flatten_layers()}
    nodes = {layer.path: len(layer._inbound_nodes) for layer in model._flatten_layers()}
    return json.dumps(model.get_config(), default=str), held, nodes, model.dtype_policy.name


@pytest.mark.parametrize("build", [models.gap_dense, models.relu6net, models.nested, models.residual])
def test_the_users_model_is_unchanged(build):
    model = randomize(build(), 2)
    x = models.inputs_of(model, 2)
    prediction, weights, before = model(x).numpy(), model.get_weights(), state_of(model)
    exposed = ex.expose(model)
    signals = [value.numpy() for value in exposed(x)]
    cheaper = folded(exposed)
    cheaper(x)
    ex.methods.gradient.gradients(cheaper, x)
    ex.Explainer(exposed, batch_size=2, jit=False)(models.pixels(2))
    assert state_of(model) == before
    np.testing.assert_array_equal(model(x), prediction)
    for got, want in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(exposed(x), signals, strict=True):
        np.testing.assert_array_equal(got, want)
    assert folded_names(exposed.computing) == []
    assert folded_names(exposed.graph) == folded_names(cheaper.graph) == []


def test_a_folded_model_has_the_weights_of_its_time_and_a_new_one_those_after_training():
    model, x = randomize(models.gap_dense()), models.images(8)
    exposed = ex.expose(model)
    before = folded(exposed)
    activations = before(x)[1].numpy()
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    model.fit(x, np.arange(8) % 5, epochs=2, verbose=0)
    assert np.abs(exposed(x)[1] - activations).max() > 0.1
    np.testing.assert_array_equal(before(x)[1], activations)
    assert_same_function(exposed, x, count=2)


def test_what_is_not_folded_follows_the_model():
    model, x = randomize(models.gap_dense()), models.images(2)
    cheaper = folded(ex.expose(model))
    logits = cheaper(x)[0].numpy()
    for variable in model.get_layer("predictions").weights:
        variable.assign(3 * variable)
    close(cheaper(x)[0], 3 * logits)
    close(cheaper.class_kernel(), model.get_layer("predictions").kernel)


# Explainers

QUICK = {
    "integrated_gradients": "integrated_gradients(steps=4)",
    "occlusion": "occlusion(size=4, stride=4)",
    "rise": "rise(masks=4)",
    "smoothgrad": "smoothgrad(samples=2)",
}
"""Fewer passes for those that make many."""

LAYER_BY_LAYER = ("guided_backprop", "full_gradients", "fixations")
"""Methods that look at every layer of the model itself."""


def test_every_method_gives_the_map_of_the_model_itself():
    model, images = randomize(models.gap_dense(), 4), models.pixels(2)
    methods = [QUICK.get(name, name) for name in ex.METHODS]
    options = {"top_k": 2, "batch_size": 2, "preprocess": "tf", "jit": False}
    got, want = (ex.Explainer(model, methods, fold=fold, **options)(images) for fold in (True, False))
    np.testing.assert_array_equal(got.targets, want.targets)
    close(got.logits, want.logits, 1e-6)
    assert list(got.maps) == methods
    for name in methods:
        assert np.abs(want.maps[name]).max() > 0
        close(got.maps[name], want.maps[name], 1e-4)


@pytest.mark.parametrize("name", LAYER_BY_LAYER)
def test_methods_that_look_at_every_layer_look_at_the_models_own(name):
    exposed, x = ex.expose(randomize(models.gap_dense(), 4)), models.images(2)
    cheaper, units = folded(exposed), tf.constant([[0, 3], [2, 1]])
    got, want = (ex.METHODS[name].function(model, x, units)[1] for model in (cheaper, exposed))
    np.testing.assert_array_equal(got, want)
    assert np.abs(want).max() > 0


def test_an_explainer_folds_unless_told_not_to():
    model = randomize(models.gap_dense())
    explainer = ex.Explainer(model, batch_size=2, preprocess="tf", jit=False)
    assert folded_names(explainer.exposed.computing) == ["block1_bn", "block2_bn"]
    assert 0 < explainer.deviation < 1e-6
    plain = ex.Explainer(model, batch_size=2, preprocess="tf", jit=False, fold=False)
    assert folded_names(plain.exposed.computing) == []
    assert plain.deviation == 0


def test_the_deviation_is_that_of_two_images_of_noise():
    model = randomize(models.gap_dense())
    explainer = ex.Explainer(model, batch_size=1, preprocess="caffe", jit=False)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3))
    noise = keras.applications.imagenet_utils.preprocess_input(pixels.astype("float32"), mode="caffe")
    exposed = ex.expose(model)
    logits = exposed(noise)[0].numpy()
    assert explainer.deviation == np.abs(folded(exposed)(noise)[0] - logits).max() / np.abs(logits).max()


def far_from_zero(conv, norm):
    conv.bias.assign(conv.bias + 1e5)
    norm.moving_mean.assign(norm.moving_mean + 1e5)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        # The model itself loses digits, which the folded one does not: right or wrong, its maps would be others.
        (far_from_zero, r"logits by \d\.\de-0[123] of the largest"),
        (lambda conv, norm: norm.moving_mean.assign([np.nan, 0, 0, 0]), "by nan of the largest"),
        (lambda conv, norm: norm.moving_variance.assign([-1, 1, 1, 1]), "by nan of the largest"),
        (lambda conv, norm: norm.gamma.assign([3e38] * 4), "by (nan|inf) of the largest"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_model_that_folding_would_change_is_not_folded(spoil, text, caplog):
    model = randomize(models.gap_dense(), 5)
    spoil(model.get_layer("block1_conv"), model.get_layer("block1_bn"))
    options = {"batch_size": 2, "preprocess": "tf", "jit": False}
    with caplog.at_level("WARNING", logger="explainers"):
        explainer = ex.Explainer(model, **options)
    assert folded_names(explainer.exposed.computing) == []
    assert explainer.deviation == 0
    assert "BatchNorm is not folded: it would change" in caplog.text
    assert caplog.records[-1].levelname == "WARNING"
    np.testing.assert_array_equal(
        explainer(models.pixels(2)).logits, ex.Explainer(model, **options, fold=False)(models.pixels(2)).logits
    )


def test_small_deviations_are_borne_without_a_word(caplog):
    model = randomize(models.gap_dense(), 5)
    model.get_layer("block1_bn").moving_variance.assign([1e-12, 1e12, 1e-3, 0])
    explainer = ex.Explainer(model, batch_size=2, preprocess="tf", jit=False)
    assert 0 < explainer.deviation < FOLDING_BOUND / 10
    assert caplog.text == ""


# Programs


def on_a_machine_with(monkeypatch, devices):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind}:0"] if kind in devices else [])


def test_kernels_are_constants_of_a_program_up_to_a_number_of_bytes_and_not_on_a_gpu(monkeypatch):
    exposed = ex.expose(randomize(models.gap_dense()))
    n_bytes = 4 * (3 * 3 * 3 * 4 + 3 * 3 * 4 * 6)  # of both kernels

    def kinds():
        kernels = [
            kernel_of(s.operation.view) for s in folded(exposed).computing.steps if isinstance(s.operation, Folded)
        ]
        return {type(kernel) is np.ndarray for kernel in kernels}

    on_a_machine_with(monkeypatch, ["CPU"])
    monkeypatch.setattr(folding, "EMBEDDED_BYTES", n_bytes)
    assert kinds() == {True}
    monkeypatch.setattr(folding, "EMBEDDED_BYTES", n_bytes - 1)
    assert kinds() == {False}
    on_a_machine_with(monkeypatch, ["CPU", "GPU"])
    monkeypatch.setattr(folding, "EMBEDDED_BYTES", n_bytes)
    assert kinds() == {False}


@pytest.mark.parametrize("embedded", [2**28, 0])
@pytest.mark.parametrize("name", ["relu6net", "conv1d", "conv3d", "separable", "residual"])
def test_constants_and_tensors_give_the_same_eagerly_compiled_and_with_xla(name, embedded, monkeypatch):
    on_a_machine_with(monkeypatch, ["CPU"])
    monkeypatch.setattr(folding, "EMBEDDED_BYTES", embedded)
    model = randomize(models.CASES[name].model(), 1)
    exposed, x = ex.expose(model), models.inputs_of(model, 2)
    cheaper, want = folded(exposed), exposed(x)
    for jit in (False, True):
        program = tf.function(cheaper, jit_compile=jit, autograph=False)
        for got, value in zip(program(tf.constant(x)), want, strict=True):
            close(got, value, 1e-5 if jit else 1e-6)
    for got, value in zip(cheaper(x), want, strict=True):
        close(got, value, 1e-6)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("embedded", [2**28, 0])
def test_gradients_run_back_through_a_folded_model(embedded, jit, monkeypatch):
    on_a_machine_with(monkeypatch, ["CPU"])
    monkeypatch.setattr(folding, "EMBEDDED_BYTES", embedded)
    model, images = randomize(models.relu6net(), 2), models.pixels(2)
    options = {"methods": ["gradients", "gradcam"], "batch_size": 2, "preprocess": "tf"}
    got = ex.Explainer(model, **options, jit=jit)(images)
    want = ex.Explainer(model, **options, jit=False, fold=False)(images)
    for name in want.maps:
        close(got.maps[name], want.maps[name], 1e-5)

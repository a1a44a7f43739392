"""Lower precision is lower where it should be, no worse than its digits, and nowhere else."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import explainers as ex
from explainers import heads
from explainers.errors import InputError
from explainers.folding import Folded, folded
from explainers.graph import run_steps
from explainers.precision import PRECISIONS, Normalized, lowered
from tests import models
from tests.comparing import close

UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
"""The largest relative error of one rounding: 8 and 11 binary digits."""

either = pytest.mark.parametrize("dtype", UNIT)


def seen(segment, inputs):
    """The value of every step of a segment, by name, as it is inside."""
    values = dict(zip((slot.index for slot in segment.input_slots), inputs, strict=True))
    run_steps(segment.steps, values)
    return {step.name: values[step.outputs[0].index] for step in segment.steps}


def dtypes(exposed, x):
    """The dtypes of the stem's signals, by the names of the steps."""
    return {name: value.dtype.name for name, value in seen(exposed.split, [tf.convert_to_tensor(x)]).items()}


def error(got, want):
    """The largest difference, over the largest value."""
    got, want = (np.asarray(values, np.float64) for values in (got, want))
    return np.abs(got - want).max() / np.abs(want).max()


def on_features(features, shape=(8, 8, 3), seed=0):
    """A model of features, which a function makes of the image, with its last step called `out`."""
    image = keras.Input(shape, name="image")
    x = layers.ReLU(name="out")(features(image))
    x = layers.GlobalAveragePooling2D(name="pool")(x) if len(shape) == 3 else layers.GlobalAveragePooling3D()(x)
    return models.randomize(keras.Model(image, layers.Dense(models.CLASSES, name="predictions")(x)), seed)


def twin(model, policy):
    """The model as Keras itself builds it for another policy, with the same weights and the same rescaling."""

    def copy(layer):
        config = layer.get_config()
        return type(layer).from_config(config if isinstance(layer, layers.Rescaling) else {**config, "dtype": policy})

    copied = keras.models.clone_model(model, clone_function=copy)
    copied.set_weights(model.get_weights())
    return copied


# How exact


NETS = [
    "gap_dense", "vgg", "mobilenet", "squeezenet", "nested", "doubly_nested", "twins", "residual", "squeeze_excite",
    "swishnet", "relu6net", "separable", "sigmoid", "conv1d", "shared_layer", "average_pooled", "plain",
]  # fmt: skip


@either
@pytest.mark.parametrize("name", NETS)
def test_signals_are_as_exact_as_the_digits_and_not_more(name, dtype):
    model = models.CASES[name].model(3)
    exposed, x = ex.expose(model), models.inputs_of(model, 4)
    for start in (exposed, folded(exposed)):
        cheaper = lowered(start, dtype)
        (logits, activations), (want_logits, want) = cheaper(x), exposed(x)
        assert (logits.dtype, activations.dtype) == (tf.float32, tf.float32)
        # Every value has only so many digits: a stem that computes in float32 fails here.
        np.testing.assert_array_equal(tf.cast(tf.cast(activations, dtype), tf.float32), activations)
        # A few roundings in a row: 2e-2 and 2.4e-3 of the largest value.
        assert 0.2 * UNIT[dtype] < error(activations, want) < 5 * UNIT[dtype]
        assert 0 < error(logits, want_logits) < 5 * UNIT[dtype]
        close(logits, exposed.head(cheaper.split(x)), 1e-6)


@either
@pytest.mark.parametrize("build", [models.vit, models.hybrid])
def test_transformers_are_as_exact_as_the_digits_and_not_more(build, dtype):
    exposed, x = ex.expose(build(2), reshape="tokens"), models.images(4)
    cheaper = lowered(folded(exposed), dtype)
    signals, want = (keras.tree.flatten(model.split(x)) for model in (cheaper, exposed))
    for signal, value in zip(signals, want, strict=True):
        assert signal.dtype == tf.float32
        np.testing.assert_array_equal(tf.cast(tf.cast(signal, dtype), tf.float32), signal)
        assert 0.2 * UNIT[dtype] < error(signal, value) < 8 * UNIT[dtype]
    assert error(cheaper(x)[0], exposed(x)[0]) < 8 * UNIT[dtype]


@either
@pytest.mark.parametrize("build", [models.plain, models.vgg, models.shared_layer, models.bias_free])
def test_without_normalisation_the_stem_is_bit_for_bit_kerass_own_mixed_precision(build, dtype):
    model = build(seed=1)
    x = models.inputs_of(model, 4)
    got, want = lowered(ex.expose(model), dtype)(x)[1], ex.expose(twin(model, f"mixed_{dtype}"))(x)[1]
    np.testing.assert_array_equal(got, tf.cast(want, tf.float32))


@either
@pytest.mark.parametrize("build", [models.gap_dense, models.residual, models.swishnet, models.relu6net])
def test_with_normalisation_it_is_so_but_for_a_rounding_here_and_there(build, dtype):
    model, x = build(seed=1), models.images(4)
    exposed = ex.expose(model)
    got, want = lowered(exposed, dtype)(x)[1].numpy(), ex.expose(twin(model, f"mixed_{dtype}"))(x)[1].numpy()
    assert error(got, want) < 2 * UNIT[dtype]
    assert (got == want)[want != 0].mean() > 0.97
    rounded = tf.cast(tf.cast(exposed(x)[1], dtype), tf.float32).numpy()
    assert (rounded == want)[want != 0].mean() < 0.9, "float32, rounded in the end, is something else"


# Normalisation


@either
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"epsilon": 0.1}])
def test_normalisation_is_exact_to_one_rounding(options, dtype):
    layer = layers.BatchNormalization(**options)
    model = models.randomize(keras.Sequential([keras.Input((5, 4, 6)), layer]), 1)
    layer.moving_mean.assign(20 + layer.moving_mean)  # x * scale + shift in few digits would leave none of the signal
    layer.moving_variance.assign(0.01 * layer.moving_variance)
    x = tf.cast(20 + models.images(3, shape=(5, 4, 6)), dtype)
    scale, offset = (layer.gamma if layer.scale else 1), (layer.beta if layer.center else 0)
    scale, offset, mean, variance = (
        np.asarray(value, np.float64) for value in (scale, offset, layer.moving_mean, layer.moving_variance)
    )
    want = (tf.cast(x, tf.float64).numpy() - mean) / np.sqrt(variance + layer.epsilon) * scale + offset
    got = Normalized(layer, dtype)(x)
    assert got.dtype.name == dtype
    np.testing.assert_allclose(tf.cast(got, tf.float64), want, rtol=UNIT[dtype], atol=1e-5 * np.abs(want).max())
    close(model(tf.cast(x, tf.float32)), want, 1e-5)


@either
def test_a_normalisation_takes_what_it_is_given_in_any_precision(dtype):
    layer = layers.BatchNormalization()
    models.randomize(keras.Sequential([keras.Input((5, 4, 6)), layer]), 1)
    x = models.images(2, shape=(5, 4, 6))
    np.testing.assert_array_equal(Normalized(layer, dtype)(tf.constant(x)), Normalized(layer, dtype)(tf.cast(x, dtype)))


@either
def test_normalisations_behind_activations_of_every_rank_are_lowered(dtype):
    def features(x):
        x = layers.BatchNormalization(name="bn4")(layers.Conv2D(4, 3, activation="relu", name="conv")(x))
        y = layers.BatchNormalization(name="bn3")(layers.Reshape((36, 4), name="row")(x))
        y = layers.BatchNormalization(name="bn2")(layers.GlobalAveragePooling1D(name="mean")(y))
        x = layers.Multiply(name="gate")([x, layers.Reshape((1, 1, 4), name="gates")(y)])
        return layers.BatchNormalization(axis=1, name="rows")(x)

    exposed, x = ex.expose(on_features(features)), models.images(3)
    cheaper = lowered(folded(exposed), dtype)
    assert set(dtypes(cheaper, x).values()) == {dtype}
    by_name = {step.name: type(step.operation) for step in cheaper.computing.steps}
    assert [name for name, kind in by_name.items() if kind is Normalized] == ["bn4"]
    assert 0 < error(cheaper(x)[1], exposed(x)[1]) < 5 * UNIT[dtype]


@either
@pytest.mark.filterwarnings("ignore:Layer '(pool|head)' .* was passed an input with a mask:UserWarning")
def test_a_normalisation_that_is_told_of_a_mask_is_lowered(dtype):
    def features(x):
        x = layers.ReLU()(layers.Conv2D(4, 3)(x))
        return layers.BatchNormalization(name="bn")(x, mask=keras.ops.any(x > 0, axis=-1))

    exposed, x = ex.expose(on_features(features), "out"), models.images(3)
    cheaper = lowered(exposed, dtype)
    assert dtypes(cheaper, x)["bn"] == dtype
    assert 0.2 * UNIT[dtype] < error(cheaper(x)[1], exposed(x)[1]) < 5 * UNIT[dtype]


@either
def test_a_normalisation_that_was_called_by_keyword_is_lowered(dtype):
    model = on_features(lambda x: layers.BatchNormalization(name="bn")(inputs=layers.ReLU()(layers.Conv2D(4, 3)(x))))
    exposed, x = ex.expose(model), models.images(3)
    assert 0 < error(lowered(exposed, dtype)(x)[1], exposed(x)[1]) < 5 * UNIT[dtype]


# Where


@either
def test_preprocessing_inside_the_model_keeps_its_digits(dtype):
    model = models.rescaling_first(1)
    exposed, x = ex.expose(model), models.pixels(3).astype("float32")
    cheaper = lowered(folded(exposed), dtype)
    kinds = dtypes(cheaper, x)
    assert kinds.pop("rescaling") == "float32"
    assert set(kinds.values()) == {dtype}
    np.testing.assert_array_equal(seen(cheaper.split, [tf.constant(x)])["rescaling"], x * np.float32(1 / 127.5) - 1)
    assert error(cheaper(x)[1], exposed(x)[1]) < 5 * UNIT[dtype]


@either
def test_every_step_ahead_of_the_first_kernel_keeps_its_digits(dtype):
    def features(x):
        x = layers.Normalization(mean=[120.0, 110, 100], variance=[3600.0, 3700, 3800], name="normalization")(x)
        x = layers.Resizing(12, 10, name="resizing")(layers.ZeroPadding2D(1, name="pad")(x))
        x = layers.BatchNormalization(name="first_bn")(keras.ops.multiply(x, 2.0))
        return layers.BatchNormalization(name="bn")(layers.ReLU(name="relu")(layers.Conv2D(4, 3, name="conv")(x)))

    exposed, x = ex.expose(on_features(features)), models.pixels(3).astype("float32")
    kinds = dtypes(lowered(exposed, dtype), x)
    assert list(kinds.values()) == ["float32"] * 5 + [dtype] * 4
    assert list(kinds)[5:] == ["conv", "relu", "bn", "out"]


def test_bytes_are_rescaled_before_they_are_rounded():
    images = models.pixels(3)
    want = ex.Explainer(models.byte_input(1), batch_size=3, jit=False, fold=False)(images)
    got = ex.Explainer(models.byte_input(1), batch_size=3, jit=False, precision="bfloat16")(images)
    assert 0 < error(got.logits, want.logits) < 5 * UNIT["bfloat16"]


@either
@pytest.mark.parametrize("name", ["gap_dense", "mobilenet", "vgg", "conv_gap", "squeezenet"])
def test_the_head_is_float32_to_the_bit(name, dtype):
    exposed = ex.expose(models.CASES[name].model(2))
    x = models.images(3)
    cheaper = lowered(exposed, dtype)
    signals = cheaper.split(x)
    np.testing.assert_array_equal(cheaper.head(signals), exposed.head(signals))
    inside = seen(cheaper.head, keras.tree.flatten(signals))
    assert {value.dtype for value in inside.values()} == {tf.float32}


@either
def test_a_cut_inside_a_residual_branch_lowers_what_lies_ahead_of_it_and_the_skip(dtype):
    exposed, x = ex.expose(models.residual(2), "branch_out"), models.images(3)
    cheaper = lowered(folded(exposed), dtype)
    kinds = dtypes(cheaper, x)
    assert {name.split("_")[0] for name in kinds} == {"stem", "branch"}
    assert set(kinds.values()) == {dtype}
    for got, want in zip(cheaper.split(x), exposed.split(x), strict=True):
        np.testing.assert_array_equal(tf.cast(tf.cast(got, dtype), tf.float32), got)
        assert 0 < error(got, want) < 5 * UNIT[dtype]
    np.testing.assert_array_equal(cheaper.head(exposed.split(x)), folded(exposed).head(exposed.split(x)))


@either
def test_padding_and_normalisation_stay_folded(dtype):
    def features(x):
        x = layers.Conv2D(4, 3, strides=2, name="conv")(layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad")(x))
        return layers.BatchNormalization(name="bn")(x)

    exposed, x = ex.expose(on_features(features)), models.images(3)
    cheaper = lowered(folded(exposed), dtype)
    pad, conv, bn, _ = (step.operation for step in cheaper.split.steps)
    assert [type(operation) for operation in (pad, conv, bn)] == [heads.Identity, Folded, heads.Identity]
    assert (conv.view.padding, conv.view.compute_dtype) == ("same", dtype)
    assert 0.2 * UNIT[dtype] < error(cheaper(x)[1], exposed(x)[1]) < 5 * UNIT[dtype]


# Layers made of layers


class Blocks(layers.Layer):
    """Adds to the signal what layers in a list, a dict and an attribute make of it."""

    def __init__(self, **options):
        super().__init__(**options)
        self.listed = [layers.Conv2D(4, 3, padding="same"), layers.Conv2D(4, 1)]
        self.named = {"wide": layers.Conv2D(4, 5, padding="same"), "more": [layers.Dense(4)]}
        self.last = layers.Dense(4)

    def parts(self):
        return [*self.listed, self.named["wide"], *self.named["more"], self.last]

    def build(self, shape):
        for part in self.parts():
            part.build(shape)

    def call(self, x):
        for part in self.parts():
            x = x + part(x)
        return x


class OwnModel(layers.Layer):
    """Adds to the signal what a whole model makes of it."""

    def __init__(self, **options):
        super().__init__(**options)
        signal = keras.Input((6, 6, 4))
        self.body = keras.Model(signal, layers.Conv2D(4, 3, padding="same")(signal))

    def call(self, x):
        return x + self.body(x)


COMPOSED = {
    "list": lambda x: Blocks(name="part")(layers.Conv2D(4, 3)(x)),
    "attention": lambda x: _attention(layers.Conv2D(4, 3)(x)),
    "wrapper": lambda x: layers.SpectralNormalization(layers.Conv2D(4, 3), name="part")(layers.Conv2D(4, 3)(x)),
    "recurrent": lambda x: layers.ConvLSTM1D(4, 3, return_sequences=True, name="part")(layers.Conv2D(4, 3)(x)),
}  # fmt: skip


def _attention(x):
    rows = layers.Reshape((36, 4))(x)
    rows = layers.MultiHeadAttention(2, 3, name="part")(rows, rows)
    return layers.Reshape((6, 6, 4))(rows)


@either
@pytest.mark.parametrize("name", COMPOSED)
def test_layers_inside_a_layer_are_lowered_with_it(name, dtype):
    model = on_features(COMPOSED[name], seed=1)
    exposed, x = ex.expose(model, "out"), models.images(3)
    cheaper = lowered(exposed, dtype)
    assert set(dtypes(cheaper, x).values()) == {dtype}
    assert 0.2 * UNIT[dtype] < error(cheaper(x)[1], exposed(x)[1]) < 8 * UNIT[dtype]
    parts = model.get_layer("part")._flatten_layers()
    assert len(parts) > 1
    assert {part.compute_dtype for part in parts} == {"float32"}, "the user's own stay as they are"
    if name == "list":
        want = ex.expose(twin_of_blocks(model, f"mixed_{dtype}"), "out")(x)[1]
        np.testing.assert_array_equal(cheaper(x)[1], tf.cast(want, tf.float32))


def twin_of_blocks(model, policy):
    """`Blocks` take their policy from the one that is set when they are made, as their parts do."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        copied = on_features(COMPOSED["list"])
    finally:
        keras.config.set_dtype_policy(before)
    copied.set_weights(model.get_weights())
    return copied


@either
def test_a_layer_that_holds_a_model_computes_in_float32(dtype):
    exposed, x = (
        ex.expose(on_features(lambda x: OwnModel(name="part")(layers.Conv2D(4, 3, name="conv")(x)))),
        models.images(3),
    )
    cheaper = lowered(exposed, dtype)
    kinds = dtypes(cheaper, x)
    assert (kinds["conv"], kinds["part"], kinds["out"]) == (dtype, "float32", dtype)
    assert 0.2 * UNIT[dtype] < error(cheaper(x)[1], exposed(x)[1]) < 5 * UNIT[dtype]


@either
def test_integers_are_read_through_their_own_policy(dtype):
    model = on_features(lambda x: layers.Dense(6, name="dense")(layers.ReLU()(layers.Conv2D(4, 3, name="conv")(x))))
    model.get_layer("dense").quantize("int8")
    exposed, x = ex.expose(model), models.images(3)
    cheaper = lowered(exposed, dtype)
    kinds = dtypes(cheaper, x)
    assert (kinds["conv"], kinds["dense"], kinds["out"]) == (dtype, "float32", dtype)
    # Signals are rounded to 8 bits on their way into such a layer, in steps of 1/127 of the largest.
    assert 0 < error(cheaper(x)[1], exposed(x)[1]) < 5 * UNIT[dtype] + 1 / 127


@either
def test_low_rank_updates_are_lowered_too(dtype):
    model = on_features(lambda x: layers.Dense(6, name="dense")(layers.ReLU()(layers.Conv2D(4, 3, name="conv")(x))))
    for name in ("conv", "dense"):
        model.get_layer(name).enable_lora(2)
        b = model.get_layer(name).lora_kernel_b
        b.assign(np.random.default_rng(0).normal(size=b.shape))
    exposed, x = ex.expose(model), models.images(3)
    cheaper = lowered(folded(exposed), dtype)
    assert set(dtypes(cheaper, x).values()) == {dtype}
    assert 0.2 * UNIT[dtype] < error(cheaper(x)[1], exposed(x)[1]) < 5 * UNIT[dtype]


# The user's model


@either
def test_the_users_model_stays_in_float32(dtype):
    model = models.residual(1)
    x = models.images(3)
    exposed = ex.expose(model)
    prediction, weights, signals = model(x).numpy(), model.get_weights(), [value.numpy() for value in exposed(x)]
    held = {layer.name: {name: id(value) for name, value in vars(layer).items()} for layer in model.layers}
    for start in (exposed, folded(exposed)):
        lowered(start, dtype)(x)
    ex.Explainer(exposed, batch_size=3, jit=False, precision=dtype)(models.pixels(3))
    assert {layer.name: {name: id(value) for name, value in vars(layer).items()} for layer in model.layers} == held
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    for got, want in zip([model(x), *exposed(x), *model.get_weights()], [prediction, *signals, *weights], strict=True):
        np.testing.assert_array_equal(got, want)


def test_later_weights_are_those_of_the_lowered_model_too():
    model, x = models.vgg(1), models.images(3)
    cheaper = lowered(ex.expose(model), "bfloat16")
    before = cheaper(x)[1].numpy()
    for variable in model.get_layer("block2_conv").weights:
        variable.assign(2 * variable)
    np.testing.assert_array_equal(cheaper(x)[1], 2 * before)


# Explainers


@pytest.fixture(scope="module")
def wide():
    """A classifier whose best class is mostly ahead by far."""
    model = models.rescaling_first(6)
    kernel = model.get_layer("predictions").kernel
    kernel.assign(3 * kernel)
    return model


@either
@pytest.mark.parametrize("jit", [False, True])
def test_an_explainer_gives_float32_numbers_that_are_as_exact_as_the_digits(wide, dtype, jit):
    images, methods = models.pixels(16), ["cam", "gradcam", "layercam", "gradients"]
    options = {"methods": methods, "batch_size": 16}
    want = ex.Explainer(wide, **options, jit=False, fold=False)(images)
    got = ex.Explainer(wide, **options, jit=jit, precision=dtype)(images)
    assert got.logits.dtype == np.float32
    assert 0.05 * UNIT[dtype] < error(got.logits, want.logits) < 5 * UNIT[dtype]
    margins = np.diff(np.sort(want.logits, axis=1))[:, -1]
    clear = margins > 2 * np.abs(got.logits - want.logits).max()
    assert clear.sum() > 8
    np.testing.assert_array_equal(got.targets[clear], want.targets[clear])
    for name in methods:
        maps = got.maps[name]
        assert (maps.dtype, maps.shape) == (np.float32, want.maps[name].shape)
        assert np.isfinite(maps).all()
        # Where rounding takes a signal across zero, a ReLU opens or closes, and the pixels' gradient jumps.
        bound = 0.2 if name == "gradients" else 5 * UNIT[dtype]
        assert 0.1 * UNIT[dtype] < error(maps[clear], want.maps[name][clear]) < bound


@either
def test_the_algebra_of_maps_is_float32(wide, dtype):
    got = ex.Explainer(wide, ["cam"], batch_size=3, top_k=2, jit=False, precision=dtype)(models.pixels(3))
    bias = wide.get_layer("predictions").bias.numpy().astype(np.float64)
    scores = got.maps["cam"].astype(np.float64).mean(axis=(1, 2)) + bias[got.targets]
    close(scores, np.take_along_axis(got.logits, got.targets, axis=1), 1e-6)


@either
@pytest.mark.parametrize("name", ["guided_backprop", "full_gradients", "fixations"])
def test_methods_that_look_at_every_layer_compute_as_the_model_does(name, dtype):
    exposed, x = ex.expose(models.gap_dense(4)), models.images(2)
    units = tf.constant([[0, 3], [2, 1]])
    got, want = (ex.METHODS[name].function(model, x, units)[1] for model in (lowered(exposed, dtype), exposed))
    np.testing.assert_array_equal(got, want)
    assert np.abs(want).max() > 0


@either
@pytest.mark.parametrize("fold", [True, False])
def test_the_deviation_is_the_largest_difference_on_two_images_of_noise(dtype, fold):
    model = models.gap_dense(2)
    explainer = ex.Explainer(model, batch_size=1, preprocess="tf", jit=False, precision=dtype, fold=fold)
    noise = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype("float32") / 127.5 - 1
    exposed = ex.expose(model)
    cheaper, logits = lowered(folded(exposed) if fold else exposed, dtype)(noise)[0], exposed(noise)[0]
    assert explainer.deviation == pytest.approx(np.abs(cheaper - logits).max() / np.abs(logits).max(), rel=1e-6)
    assert 0.02 * UNIT[dtype] < explainer.deviation < 5 * UNIT[dtype]


def test_float32_is_no_lower_precision():
    model = models.gap_dense(2)
    explainer = ex.Explainer(model, batch_size=1, jit=False, precision="float32", fold=False)
    assert explainer.deviation == 0
    assert explainer.exposed.computing is explainer.exposed.graph


@pytest.mark.parametrize("precision", ["half", "int8", "mixed_bfloat16", None])
def test_an_unknown_precision_is_refused_with_those_that_there_are(precision):
    with pytest.raises(InputError, match=f"precision is one of float32, bfloat16, float16, not {precision!r}"):
        ex.Explainer(models.gap_dense(), batch_size=1, jit=False, precision=precision)


def test_every_precision_is_tested_here():
    assert {"float32", *UNIT} == set(PRECISIONS)

"""Tokens are explained as a grid, with the values of a transformer in NumPy and of the model as it was."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import explainers as ex
from explainers.errors import InputError, LayerError, MethodError, ModelError
from explainers.graph import Graph, Slot
from explainers.tokens import infer_grid
from tests import models, oracle
from tests.comparing import close

VITS = {
    "class token": (models.vit, "block2_norm1", (4, 4), 1),
    "class and registers": (lambda seed=0: models.vit(seed, extra=5), "block2_norm1", (4, 4), 5),
    "one block": (lambda seed=0: models.vit(seed, depth=1), "block1_norm1", (4, 4), 1),
    "mean": (lambda seed=0: models.vit(seed, "mean", extra=0), "norm", (4, 4), 0),
    "mean with a class token": (lambda seed=0: models.vit(seed, "mean"), "norm", (4, 4), 1),
    "not square": (lambda seed=0: models.vit(seed, size=(6, 10)), "block2_norm1", (3, 5), 1),
    "nested": (models.nested_vit, "vit.b.block2_norm1", (4, 4), 1),
    "cut by an operation": (models.opaque_vit, "block1_add2", (4, 8), 3),
    "hybrid": (models.hybrid, "add", (4, 4), 0),
}
every_vit = pytest.mark.parametrize(("build", "layer", "grid", "extra"), VITS.values(), ids=VITS)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


# A transformer's tail in NumPy, float64, one image


def weights(model, name):
    return [np.asarray(values, np.float64) for values in model.get_layer(name).get_weights()]


def layer_norm(x, gamma, beta):
    centred = x - x.mean(axis=-1, keepdims=True)
    return gamma * centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) + beta


def attention(x, q, q_bias, k, k_bias, v, v_bias, out, out_bias):
    heads = []
    for h in range(q.shape[1]):
        queries, keys, values = x @ q[:, h] + q_bias[h], x @ k[:, h] + k_bias[h], x @ v[:, h] + v_bias[h]
        scores = np.exp(queries @ keys.T / math.sqrt(q.shape[2]))
        heads.append(scores / scores.sum(axis=1, keepdims=True) @ values @ out[h])
    return sum(heads) + out_bias


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def normalized(model, x):
    return layer_norm(x, *weights(model, "block2_norm1"))


def score(model, x, read, pooling):
    """The logits of `models.vit` from the tokens (T, C) behind its first block, and those that the second one reads."""
    x = x + attention(read, *weights(model, "block2_attention"))
    (kernel1, bias1), (kernel2, bias2) = weights(model, "block2_mlp1"), weights(model, "block2_mlp2")
    x = x + gelu(layer_norm(x, *weights(model, "block2_norm2")) @ kernel1 + bias1) @ kernel2 + bias2
    x = layer_norm(x, *weights(model, "norm"))
    kernel, bias = weights(model, "predictions")
    return (x[0] if pooling == "class" else x.mean(axis=0)) @ kernel + bias


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("layer", ["block2_norm1", "block1_add2"])
@pytest.mark.parametrize(
    ("pooling", "extra", "size"), [("class", 1, (8, 8)), ("class", 2, (4, 6)), ("mean", 1, (6, 8))]
)
def test_maps_of_tokens_are_those_of_a_numpy_transformers_numeric_gradient(pooling, extra, size, layer, seed):
    model = models.vit(seed, pooling, extra, size)
    exposed, x = ex.expose(model, layer, reshape="tokens"), models.inputs_of(model, 1, seed)
    names = ["block1_add2", layer]
    outputs = keras.Model(model.input, [model.get_layer(name).output for name in names])(x)
    behind_block1, rows = (np.asarray(tokens[0], np.float64) for tokens in outputs)

    def y(tokens):
        if layer == "block1_add2":
            return score(model, tokens, normalized(model, tokens), pooling)[3]
        return score(model, behind_block1, tokens, pooling)[3]

    A, g = rows[extra:], oracle.numeric_gradient(y, rows)[extra:]
    want = {"gradcam": A @ g.mean(axis=0), "layercam": (A * g.clip(0)).sum(axis=1), "hirescam": (A * g).sum(axis=1)}
    size_of_terms = np.abs(A * g).sum(axis=1).max()
    for method, values in want.items():
        logits, maps = ex.methods.get_method(method).function(exposed, x, [[3]])
        np.testing.assert_allclose(logits[0, 0], y(rows), rtol=1e-4)
        grid = values.reshape(size[0] // 2, size[1] // 2)
        np.testing.assert_allclose(maps[0, ..., 0], grid, rtol=0, atol=1e-4 * size_of_terms)


def test_hires_cam_ahead_of_the_last_normalisation_is_nothing_and_behind_it_is_not():
    """Why the choice lies behind it: a normalisation passes no gradient along its input."""
    model, x = models.vit(1), models.images(2)
    sizes = []
    for layer in ("block1_add2", "block2_norm1"):
        exposed = ex.expose(model, layer, reshape="tokens")
        maps, other = (ex.methods.get_method(name).function(exposed, x)[1] for name in ("hirescam", "layercam"))
        sizes.append(np.abs(maps).max() / np.abs(other).max())
    assert sizes[0] < 1e-3
    assert sizes[1] > 0.1


# What is found


@every_vit
def test_the_last_tokens_whose_patches_are_read_are_found(build, layer, grid, extra):
    model = build(seed=1)
    exposed, x = ex.expose(model, reshape="tokens"), models.inputs_of(model, 2)
    logits, activations = exposed(x)
    assert (exposed.activation_layer, exposed.logits_layer) == (layer, "predictions")
    assert exposed.activation_shape == (None, *grid, 6)
    assert activations.shape == (2, *grid, 6)
    close(log_softmax(logits), np.log(np.asarray(model(x), np.float64)))
    close(exposed.head(exposed.split(x)), logits)
    close(exposed.stem(x), activations)
    passing = [slot.shape[1] for slot in exposed.head.input_slots[1:]]
    beside = [extra + math.prod(grid)] if "norm1" in layer else []  # what adds up behind the attention
    assert sorted(passing) == sorted(([extra] if extra else []) + beside)


@every_vit
def test_the_grid_holds_the_models_own_tokens_by_rows_behind_the_extra_ones(build, layer, grid, extra):
    model = build(seed=2)
    exposed, x = ex.expose(model, reshape="tokens"), models.inputs_of(model, 2)
    rows = np.asarray(ex.expose(model, layer)(x)[1])
    signals = keras.tree.flatten(exposed.split(x))
    assert rows.shape[1] == extra + math.prod(grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            np.testing.assert_array_equal(signals[0][:, row, column], rows[:, extra + row * grid[1] + column])
    if extra:
        np.testing.assert_array_equal(signals[1], rows[:, :extra])


@every_vit
def test_grad_cam_is_that_of_a_tape_on_the_model_as_it_was(build, layer, grid, extra):
    model = build(seed=3)
    x = models.inputs_of(model, 2)
    as_it_was = ex.expose(model, layer)  # the cut at the tokens themselves, with no grid
    tokens, *beside = keras.tree.flatten(as_it_was.split(x))
    with tf.GradientTape() as tape:
        tape.watch(tokens)
        logits = as_it_was.head([tokens, *beside])[:, 2]
    g = np.asarray(tape.gradient(logits, tokens))[:, extra:]
    want = np.einsum("ntc,nc->nt", np.asarray(tokens)[:, extra:], g.mean(axis=1)).reshape(2, *grid)
    got_logits, maps = ex.methods.cams.gradcam(ex.expose(model, reshape="tokens"), x, [[2], [2]])
    close(got_logits[:, 0], logits)
    close(maps[..., 0], want)


@pytest.mark.parametrize("method", ["gradcam", "gradcampp", "hirescam", "xgradcam", "layercam"])
def test_a_patch_of_the_image_lights_up_its_own_position(method):
    """Behind patches and an average, with no attention, every position of the map tells of its own 2x2 pixels."""
    image = keras.Input((6, 8, 3))
    x = layers.Reshape((12, 4), name="row")(layers.Conv2D(4, 2, strides=2, activation="relu", name="patches")(image))
    x = layers.Dense(4, activation="relu", name="mlp")(models.ExtraTokens(1, name="extra")(x))
    x = layers.Dense(2, name="predictions")(layers.GlobalAveragePooling1D(name="pool")(x))
    model = models.randomize(keras.Model(image, x), 7)
    for variable in model.weights:
        variable.assign(np.abs(variable) if len(variable.shape) > 1 else 0 * variable)
    x = np.zeros((1, 6, 8, 3), np.float32)
    x[0, 2:4, 6:8] = 1.0
    _, maps = ex.methods.get_method(method).function(ex.expose(model, reshape="tokens"), x, [[1]])
    np.testing.assert_array_equal(np.argwhere(maps[0, ..., 0] > 1e-6), [[1, 3]])


@pytest.mark.parametrize("name", ["class and registers", "not square", "mean"])
def test_maps_of_tokens_are_resized_to_the_image_and_each_image_stands_alone(name):
    build, _, grid, _ = VITS[name]
    model = build(seed=4)
    x, exposed = models.inputs_of(model, 3), ex.expose(model, reshape="tokens")
    raw = ex.explain("gradcam", exposed, x, [[0], [1], [2]], batch_size=2, postprocessing=None, resizing=None)[1]
    assert raw.shape == (3, *grid, 1)
    close(raw[2], ex.methods.cams.gradcam(exposed, x[2:], [[2]])[1][0])
    assert ex.gradcam(exposed, x, [[0], [1], [2]], batch_size=2)[1].shape == (*x.shape[:3], 1)


def test_the_compiled_program_explains_tokens():
    model, images = models.vit(5), models.pixels(3)
    exposed = ex.expose(model, reshape="tokens")
    got = ex.Explainer(exposed, ("gradcam", "layercam"), batch_size=4, jit=True)(images)
    logits, maps = ex.methods.cams.gradcam(exposed, images.astype("float32"), got.targets)
    close(got.maps["gradcam"], maps, rtol=1e-4)
    close(np.take_along_axis(got.logits, got.targets, 1), logits, rtol=1e-4)


def test_cam_is_there_where_patches_alone_are_averaged():
    model = models.vit(6, "mean", extra=0, size=(6, 10))
    exposed, x = ex.expose(model, reshape="tokens"), models.images(2, shape=(6, 10, 3))
    rows = np.asarray(keras.Model(model.input, model.get_layer("norm").output)(x))
    kernel, bias = model.get_layer("predictions").get_weights()
    logits, maps = ex.methods.cams.cam(exposed, x)
    close(maps, (rows @ kernel).reshape(2, 3, 5, models.CLASSES))
    close(np.mean(maps, axis=(1, 2)) + bias, logits)
    close(ex.methods.cams.gradcam(exposed, x)[1], np.asarray(maps) / 15)


@pytest.mark.parametrize("build", [models.vit, lambda: models.vit(pooling="mean"), lambda: models.vit(extra=5)])
def test_cam_is_refused_where_other_tokens_are_read_too(build):
    exposed = ex.expose(build(), reshape="tokens")
    with pytest.raises(MethodError, match="this head reads tokens beside the grid"):
        ex.methods.cams.cam(exposed, models.images(1))


def test_the_choice_is_logged(caplog):
    with caplog.at_level("INFO", logger="explainers"):
        ex.expose(models.vit(), reshape="tokens")
    assert "vit: explaining the signal 'block2_norm1' (4, 4, 6), logits of 'predictions'" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", logger="explainers"):
        ex.expose(models.vit(), "block1_add1", reshape="tokens")
    assert caplog.text == ""


def test_a_classifier_of_zeros_hides_no_token():
    """Fine-tuning starts with a kernel of zeros, and every gradient is zero then."""
    model = models.vit()
    kernel = model.get_layer("predictions").kernel
    kernel.assign(0 * kernel)
    assert ex.expose(model, reshape="tokens").activation_layer == "block2_norm1"


def test_tokens_that_are_picked_by_any_means_are_seen_to_be():
    for pick in (lambda x: x[:, 0], lambda x: keras.ops.mean(x[:, :2], axis=1), lambda x: keras.ops.take(x, 0, axis=1),
                 layers.Lambda(lambda x: x[:, 0], output_shape=(6,)), layers.LSTM(6)):  # fmt: skip
        body = models.vit(extra=2)
        x = layers.Dense(3, name="predictions")(pick(body.get_layer("norm").output))
        layer = ex.expose(keras.Model(body.input, x), reshape="tokens").activation_layer
        assert layer == ("norm" if isinstance(pick, layers.LSTM) else "block2_norm1")


def test_a_patch_that_serves_as_the_class_token_is_not_all_that_is_explained():
    """Its own way past the last attention leaves but one patch there: all of them are read together ahead of it."""
    assert ex.expose(models.vit(extra=0), reshape="tokens").activation_layer == "block1_add2"


def test_dropout_behind_the_last_tokens_is_not_named():
    body = models.vit(pooling="mean", extra=0)
    x = layers.GlobalAveragePooling1D()(layers.Dropout(0.5, name="drop")(body.get_layer("norm").output))
    exposed = ex.expose(keras.Model(body.input, layers.Dense(3)(x)), reshape="tokens")
    assert exposed.activation_layer == "norm"
    assert exposed.class_kernel is not None


def test_a_mixer_is_exposed_behind_its_last_block():
    image = keras.Input((8, 8, 3))
    x = layers.Reshape((16, 6), name="row")(layers.Conv2D(6, 2, strides=2, name="patches")(image))
    y = layers.Permute((2, 1))(layers.Dense(16, name="between_tokens")(layers.Permute((2, 1), name="turn")(x)))
    x = layers.Add(name="add1")([x, y])
    x = layers.Add(name="add2")([x, layers.Dense(6, activation="gelu", name="between_channels")(x)])
    model = models.randomize(keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))), 0)
    exposed, x = ex.expose(model, reshape="tokens"), models.images(2)
    assert exposed.activation_layer == "add2"
    close(exposed(x)[0], model(x))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_gives_the_single_precision_maps_about(policy):
    single = models.vit(3)
    keras.config.set_dtype_policy(policy)
    try:
        half = models.vit(3)
    finally:
        keras.config.set_dtype_policy("float32")
    x, rtol = models.images(2), 0.02 if policy == "mixed_float16" else 0.15
    results = [ex.methods.cams.gradcam(ex.expose(m, reshape="tokens"), x, [[1], [4]]) for m in (half, single)]
    for got, want in zip(*results, strict=True):
        assert got.dtype == tf.float32
        close(got, want, rtol)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("build", [models.vit, models.nested_vit])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_loaded_transformer_gives_what_the_fresh_one_gives(build, suffix, tmp_path):
    model, x = build(seed=8), models.images(2)
    model.save(tmp_path / f"vit.{suffix}")
    loaded = ex.expose(keras.models.load_model(tmp_path / f"vit.{suffix}"), reshape="tokens")
    fresh = ex.expose(model, reshape="tokens")
    assert loaded.activation_layer == fresh.activation_layer
    for got, want in zip(ex.methods.cams.gradcam(loaded, x), ex.methods.cams.gradcam(fresh, x), strict=True):
        close(got, want)


def test_the_users_transformer_is_unchanged_and_followed():
    model, x = models.vit(2), models.images(2)
    before, nodes = model.to_json(), [len(layer._inbound_nodes) for layer in model.layers]
    exposed = ex.expose(model, reshape="tokens")
    exposed(x)
    assert (model.to_json(), [len(layer._inbound_nodes) for layer in model.layers]) == (before, nodes)
    assert {id(v) for v in exposed.weights} <= {id(v) for v in model.weights}
    model.get_layer("predictions").bias.assign(np.arange(models.CLASSES) * 7.0)
    close(log_softmax(exposed(x)[0]), np.log(np.asarray(model(x), np.float64)))


def test_an_exposed_transformer_can_be_cut_elsewhere():
    exposed = ex.expose(models.vit(), reshape="tokens")
    assert ex.expose(exposed) is exposed
    assert ex.expose(exposed, "block1_add1", reshape="tokens").activation_layer == "block1_add1"
    assert ex.expose(exposed, reshape=(2, 8)).activation_shape == (None, 2, 8, 6)


def test_a_named_signal_inside_a_residual_branch_leaves_skip_and_prefix_to_the_head():
    model, x = models.vit(4), models.images(2)
    exposed = ex.expose(model, "block2_norm1", reshape="tokens")
    assert len(exposed.head.input_slots) == 3
    close(log_softmax(exposed(x)[0]), np.log(np.asarray(model(x), np.float64)))


# Grids


@pytest.mark.parametrize(
    ("length", "size", "want"),
    [
        (196, (224, 224), (14, 14)),
        (197, (224, 224), (14, 14)),
        (198, (224, 224), (14, 14)),
        (204, (224, 224), (14, 14)),
        (205, (224, 224), None),
        (50, (224, 224), (7, 7)),
        (1370, (518, 518), (37, 37)),
        (1374, (518, 518), (37, 37)),
        (97, (128, 192), (8, 12)),
        (97, (192, 128), (12, 8)),
        (65, (64, 128), None),
        (9, (64, 128), (2, 4)),
        (16, (None, None), (4, 4)),
        (2, (32, 32), None),
        (None, (32, 32), None),
    ],
)
def test_a_grid_has_the_images_proportions_and_the_fewest_tokens_ahead_of_it(length, size, want):
    image, tokens = Slot(1, (None, *size, 3), "float32"), Slot(2, (None, length, 8), "float32")
    assert infer_grid(Graph((image,), (tokens,), (), ()), tokens) == want


def test_the_patches_themselves_tell_the_grid_where_proportions_do_not():
    # 7x9 pixels make 3x4 patches of 2x2, and 12 + 4 tokens would also make a square of 4x4.
    exposed = ex.expose(models.vit(size=(7, 9), extra=4), reshape="tokens")
    assert exposed.activation_shape == (None, 3, 4, 6)


@pytest.mark.parametrize("reshape", [(2, 8), [2, 8], (np.int64(2), 8)])
def test_a_given_grid_is_taken(reshape):
    model, x = models.vit(1), models.images(2)
    by_hand, told = ex.expose(model, reshape=reshape), ex.expose(model, reshape="tokens")
    close(by_hand(x)[1], np.reshape(told(x)[1], (2, 2, 8, 6)))
    close(by_hand(x)[0], told(x)[0])


# Errors


def open_size():
    image = keras.Input((None, None, 3))
    x = layers.Reshape((-1, 4), name="row")(layers.Conv2D(4, 2, strides=2, name="patches")(image))
    x = layers.Add(name="add")([x, layers.MultiHeadAttention(1, 2, name="attention")(x, x)])
    return keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def odd_grid():
    image = keras.Input((8, 8, 3))
    x = layers.Dense(4, name="mix")(layers.Reshape((96, 2), name="row")(image))
    x = layers.Dense(4, name="rest")(layers.Cropping1D((6, 0), name="crop")(x))
    return keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def pixels_in_a_row():
    image = keras.Input((8, 8, 3))
    return keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.Reshape((64, 3))(image))))


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (models.vit, r"are tokens, 'norm' \(17, 6\): expose it with reshape=\"tokens\", or name a spa"),
        (models.nested_vit, r"are tokens, 'vit.b.norm' \(17, 6\): expose it with reshape=\"tokens\""),
        (models.opaque_vit, r"are tokens, 'block1_add2' \(35, 6\): expose it with reshape=\"tokens\""),
        (odd_grid, r"are tokens, 'rest' \(90, 4\): expose it with reshape=\(height, width\), the grid of its tokens"),
        (open_size, r"are tokens, 'add' \(None, 4\): expose it"),
    ],
)
def test_a_transformer_without_reshape_is_refused_with_the_word_that_it_needs(build, text):
    with pytest.raises(ModelError, match=text):
        ex.expose(build())
    with pytest.raises(ModelError, match=text):
        ex.gradcam(build(), np.zeros((1, 8, 8, 3), np.float32))


def test_methods_that_need_no_signal_need_no_reshape():
    model, x = models.vit(1), models.images(2)
    close(ex.gradients(model, x)[1], ex.gradients(ex.expose(model, reshape="tokens"), x)[1])


def test_a_convolutional_network_with_attention_on_top_is_explained_at_its_convolutions():
    exposed = ex.expose(models.hybrid())
    assert (exposed.activation_layer, exposed.activation_shape) == ("block8_out", (None, 4, 4, 6))


@pytest.mark.parametrize(
    ("build", "arguments", "reshape", "error", "text"),
    [
        (models.gap_dense, None, "tokens", ModelError, "reshape is for transformers, .* leave reshape out"),
        (pixels_in_a_row, None, "tokens", ModelError, "reshape is for transformers, .* leave reshape out"),
        (models.gap_dense, "block2_out", "tokens", LayerError, r"'block2_out' has the shape \(None, 4, 4, 6\)"),
        (models.vit, "predictions", "tokens", LayerError, r"'predictions' has the shape \(None, 5\)"),
        (models.vit, "image", "tokens", LayerError, r"'input' has the shape \(None, 8, 8, 3\)"),
        (models.vit, None, "token", InputError, "such as .14, 14., not 'token'"),
        (models.vit, None, 4, InputError, "such as .14, 14., not 4"),
        (models.vit, None, (4, 4, 1), InputError, r"not \(4, 4, 1\)"),
        (models.vit, None, (4, 0), InputError, r"not \(4, 0\)"),
        (models.vit, None, (4.0, 4), InputError, r"not \(4.0, 4\)"),
        (models.vit, None, (5, 5), ModelError, r"no tokens fit the grid \(5, 5\) .*'norm' has 17"),
        (models.vit, None, (2, 2), ModelError, r"no tokens fit the grid \(2, 2\) with at most 8 ahead of it"),
        (models.vit, "block1_add2", (5, 5), LayerError, r"'block1_add2' has 17 tokens, fewer than the grid \(5, 5\)"),
        (models.vit, "norm", "tokens", LayerError, "read none of the patches of 'norm', .* ahead of the last at"),
        (models.vit, "block2_add1", "tokens", LayerError, "read none of the patches of 'block2_add1'"),
        (models.vit, "blok1_add2", None, LayerError, r"Did you mean 'block1_add2'\? .* norm \(17, 6\)$"),
        (open_size, None, "tokens", ModelError, "the number of tokens of 'add' is left open: build the model for im"),
        (open_size, "add", "tokens", LayerError, r"a fixed number of them, and 'add' has the shape \(None, None, 4\)"),
        (odd_grid, None, "tokens", ModelError, "the 90 tokens of 'rest' make no grid of the image's proportions"),
        (odd_grid, "rest", "tokens", LayerError, r"at most 8 tokens ahead of it: give the grid, as in resh"),
    ],
)  # fmt: skip
def test_an_error_names_the_rule_the_value_and_the_way_out(build, arguments, reshape, error, text):
    with pytest.raises(error, match=text):
        ex.expose(build(), arguments, reshape=reshape)

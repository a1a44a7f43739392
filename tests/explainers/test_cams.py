"""CAM and Grad-CAM are what their papers define: against slow re-implementations, identities and hand-made values."""

import numpy as np
import pytest
import tensorflow as tf

import explainers as ex
from explainers.errors import InputError, MethodError
from explainers.methods.cams import cam, combine_xgradcam, gradcam
from explainers.methods.signals import Signals
from tests import models, oracle
from tests.comparing import close

seeds = pytest.mark.parametrize("seed", range(3))

CHAINS = {
    "gap_dense": (models.gap_dense, "block2_out"),
    "inner signal": (models.gap_dense, "block1_out"),
    "before normalisation": (models.gap_dense, "block2_conv"),
    "valid": (models.plain, "relu2"),
    "same, stride 2": (lambda seed: models.plain(seed, padding="same", strides=2), "relu1"),
    "valid, strides 3 and 2": (lambda seed: models.plain(seed, strides=(3, 2)), "relu1"),
    "sequential": (models.sequential, "relu"),
    "swish": (models.swishnet, "block1_out"),
    "rescaling": (models.rescaling_first, "block2_out"),
    "flatten": (models.flatten_dense, "block2_out"),
    "vgg": (models.vgg, "block2_pool"),
    "vgg, before pooling": (models.vgg, "block2_conv"),
    "mobilenet": (models.mobilenet, "block2_out"),
    "conv_gap": (models.conv_gap, "block2_out"),
    "one unit": (lambda seed: models.conv_gap(seed, classes=1, activation="sigmoid"), "block2_out"),
}
FAMILY = {name: method.function for name, method in ex.METHODS.items() if method.reads_gradients}
"""Every method that needs A and dy/dA and nothing else, from the registry: a new one is tested by being there."""

WITH_CAM = ["gap_dense", "valid", "sequential", "rescaling", "mobilenet", "conv_gap", "one unit"]


def raw(method, model, x, indices=None):
    """Logits and maps as arrays."""
    return tuple(values.numpy() for values in method(model, x, indices))


def agrees_with_oracle(method, slow, name, seed):
    build, layer = CHAINS[name]
    model = build(seed=seed)
    stem, head = oracle.read_chain(model, layer)
    x = models.inputs_of(model, 2, seed)
    logits, maps = raw(method, ex.expose(model, layer), x)
    for i, unit in np.ndindex(logits.shape):
        image = x[i].astype(np.float64)
        close(logits[i], oracle.forward(stem + head, image).reshape(-1), rtol=1e-4)
        close(maps[i, ..., unit], slow(stem, head, image, unit), rtol=1e-4)


# Against the papers


@seeds
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("method", FAMILY)
def test_a_method_is_that_of_its_paper(method, name, seed):
    agrees_with_oracle(FAMILY[method], getattr(oracle, method), name, seed)


@seeds
@pytest.mark.parametrize("name", WITH_CAM)
def test_cam_is_that_of_the_paper(name, seed):
    agrees_with_oracle(cam, oracle.cam, name, seed)


@seeds
@pytest.mark.parametrize("name", ["gap_dense", "same, stride 2", "vgg, before pooling", "swish"])
def test_the_oracles_backward_pass_is_its_numeric_gradient(name, seed):
    build, layer = CHAINS[name]
    model = build(seed=seed)
    stem, head = oracle.read_chain(model, layer)
    x = models.inputs_of(model, 1, seed)[0].astype(np.float64)
    unit_vector = np.eye(models.CLASSES)[3]
    numeric = oracle.numeric_gradient(lambda image: oracle.forward(stem + head, image)[3], x)
    close(oracle.backward(stem + head, x, unit_vector), numeric, rtol=1e-6)


def test_a_signal_that_was_clipped_before_it_was_averaged_has_the_maps_of_its_score_convolution():
    model = models.squeezenet(1)
    x = models.images(2)
    exposed = ex.expose(model)
    logits, maps = raw(cam, exposed, x)
    kernel, bias = model.get_layer("conv10").get_weights()
    close(maps, np.asarray(exposed(x)[1]) @ kernel[0, 0])
    close(np.maximum(maps + bias, 0).mean(axis=(1, 2)), logits)


@pytest.mark.parametrize(
    ("method", "layer", "want"),
    [
        ("gradcam", "relu", [0, 4, 28, 32.5]),
        ("gradcam", "conv", [11.25, 13.5, 20.25, 22.5]),
        ("hirescam", "relu", [0, 4, 25, 25]),
        ("xgradcam", "relu", [0, 4, 25, 25]),
        ("layercam", "relu", [0, 4, 31, 40]),
        ("gradcampp", "relu", [0, 16 / 77, 124 / 77 + 6 / 23, 160 / 77 + 15 / 23]),
        ("gradcampp_official", "relu", [0, 4, 31 + 6, 40 + 15]),
        ("gradcam_guided", "relu", [0, 3, 23.25, 30]),
    ],
)
def test_maps_of_the_toy_network(method, layer, want):
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    logits, maps = raw(FAMILY[method], ex.expose(models.toy(), layer), x)
    np.testing.assert_array_equal(logits, [[54]])
    np.testing.assert_allclose(maps.reshape(-1), want, rtol=1e-6)


# Identities


@seeds
@pytest.mark.parametrize("build", [models.gap_dense, models.plain, models.nested, models.mobilenet, models.swishnet])
def test_grad_cam_is_cam_over_z_behind_a_global_average(build, seed):
    model = build(seed=seed)
    x = models.inputs_of(model, 2, seed)
    (logits, maps), (cam_logits, cam_maps) = raw(gradcam, model, x), raw(cam, model, x)
    np.testing.assert_allclose(cam_logits, logits, rtol=1e-5)
    close(maps, cam_maps / np.prod(maps.shape[1:3]))


@seeds
def test_grad_cam_and_the_bias_add_up_to_the_logit_behind_a_global_average(seed):
    model = models.gap_dense(seed)
    logits, maps = raw(gradcam, model, models.images(3, seed))
    close(maps.sum(axis=(1, 2)) + model.get_layer("predictions").bias.numpy(), logits)


@seeds
def test_the_mean_of_cam_and_the_bias_are_the_logit_for_class_score_maps(seed):
    model = models.conv_gap(seed)
    x = models.images(3, seed)
    logits, maps = raw(cam, model, x)
    conv = model.get_layer("score_maps")
    close(maps.mean(axis=(1, 2)) + conv.bias.numpy(), logits)
    close(maps + conv.bias.numpy(), conv(ex.expose(model)(x)[1]))


@seeds
def test_grad_cam_does_not_add_up_behind_flatten(seed):
    model = models.flatten_dense(seed)
    logits, maps = raw(gradcam, model, models.images(3, seed))
    difference = maps.sum(axis=(1, 2)) + model.get_layer("predictions").bias.numpy() - logits
    assert np.abs(difference).max() > 0.1 * np.abs(logits).max()


@pytest.mark.parametrize("method", [cam, *FAMILY.values()])
def test_a_constant_added_to_all_logits_changes_no_map(method):
    model, x = models.gap_dense(), models.images(2)
    logits, maps = raw(method, model, x)
    bias = model.get_layer("predictions").bias
    bias.assign(bias + 7)
    shifted_logits, shifted_maps = raw(method, model, x)
    np.testing.assert_allclose(shifted_logits, logits + 7, rtol=1e-5)
    np.testing.assert_array_equal(shifted_maps, maps)


def test_saturated_probabilities_have_the_maps_of_their_logits():
    model, x = models.gap_dense(1), models.images(2)
    _, maps = raw(gradcam, model, x)
    for variable in model.get_layer("predictions").weights:
        variable.assign(1000 * variable)
    assert np.asarray(model(x)).max() == 1
    close(raw(gradcam, model, x)[1], 1000 * maps)


@seeds
@pytest.mark.parametrize("build", [models.gap_dense, models.plain, models.nested])
def test_hirescam_and_xgradcam_are_grad_cam_behind_a_global_average(build, seed):
    model = build(seed=seed)
    x = models.inputs_of(model, 3, seed)
    _, maps = raw(gradcam, model, x)
    for other in ("hirescam", "xgradcam"):
        close(raw(FAMILY[other], model, x)[1], maps)


@seeds
def test_layercam_is_cam_with_positive_weights_over_z_behind_a_global_average(seed):
    model = models.gap_dense(seed=seed)
    exposed, x = ex.expose(model), models.images(3, seed)
    A, kernel = np.asarray(exposed(x)[1], np.float64), model.get_layer("predictions").get_weights()[0]
    close(raw(FAMILY["layercam"], exposed, x)[1], A @ np.maximum(kernel, 0) / A[0, ..., 0].size)


@seeds
def test_gradcampp_has_the_closed_form_behind_a_global_average(seed):
    model = models.gap_dense(seed=seed)
    exposed, x = ex.expose(model), models.images(3, seed)
    A, kernel = np.asarray(exposed(x)[1], np.float64), model.get_layer("predictions").get_weights()[0]
    means = A.mean(axis=(1, 2))
    weights = np.maximum(kernel, 0) / (2 + means[..., np.newaxis] * kernel)
    close(raw(FAMILY["gradcampp"], exposed, x)[1], np.einsum("nhwc,nck->nhwk", A, weights))


@seeds
@pytest.mark.parametrize("method", ["hirescam", "xgradcam"])
def test_maps_and_the_bias_add_up_to_the_logit_behind_flatten_and_one_dense(method, seed):
    model = models.flatten_dense(seed)
    logits, maps = raw(FAMILY[method], model, models.images(3, seed))
    bias = model.get_layer("predictions").get_weights()[1]
    np.testing.assert_allclose(maps.sum(axis=(1, 2)) + bias, logits, rtol=1e-4, atol=1e-4)


def test_gradcampp_is_finite_where_the_exponential_of_the_logit_is_not():
    model = models.gap_dense()
    kernel = model.get_layer("predictions").kernel
    kernel.assign(1000 * kernel)
    logits, maps = raw(FAMILY["gradcampp"], model, models.images(2))
    assert np.abs(logits).max() > 100
    assert np.isfinite(maps).all()
    assert maps.max() > 0


def test_a_channel_that_adds_up_to_zero_does_not_explode_xgradcam():
    A = np.array([[[1.0, 2.0], [-1.0, 3.0]]], np.float32)[np.newaxis]  # the first channel cancels
    g = np.array([[[1.0, 1.0], [5.0, 1.0]]], np.float32)[np.newaxis, np.newaxis]
    maps = combine_xgradcam(Signals(tf.constant(A), tf.constant([[0]]), tf.constant(g))).numpy()
    np.testing.assert_allclose(maps.reshape(-1), [2, 3])


# Units


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (method, name)
        for method in (cam, *FAMILY.values())
        for name in ("gap_dense", "residual", "conv1d", "conv3d", "one_unit")
    ]
    + [(cam, "mobilenet_one_unit"), (gradcam, "mobilenet_one_unit"), (gradcam, "vgg")],
)
def test_every_unit_at_once_is_each_unit_asked_alone(method, name):
    model = models.CASES[name].model(1)
    exposed, x = ex.expose(model), models.inputs_of(model, 3)
    logits, maps = raw(method, exposed, x)
    assert maps.shape[-1] == exposed.n_classes
    for unit in range(exposed.n_classes):
        alone_logits, alone_maps = raw(method, exposed, x, tf.fill((3, 1), unit))
        close(alone_logits[:, 0], logits[:, unit])
        close(alone_maps[..., 0], maps[..., unit])
    assert exposed.n_classes == 1 or np.abs(maps[..., 0] - maps[..., 1]).max() > 1e-3


@pytest.mark.parametrize("method", [cam, *FAMILY.values()])
def test_each_image_gets_the_units_of_its_own_row(method):
    model, x = models.gap_dense(2), models.images(3)
    logits, maps = raw(method, model, x)
    units = np.array([[4, 0], [1, 1], [2, 3]])
    got_logits, got_maps = raw(method, model, x, units)
    for i, k in np.ndindex(units.shape):
        close(got_logits[i, k], logits[i, units[i, k]])
        close(got_maps[i, ..., k], maps[i, ..., units[i, k]])


@pytest.mark.parametrize("method", [cam, *FAMILY.values()])
@pytest.mark.parametrize("indices", [None, "reversed"])
def test_more_units_than_are_unrolled_give_the_same_maps(method, indices):
    model, x = models.gap_dense(2, classes=11), models.images(3)
    units = np.tile(np.arange(11)[::-1] if indices else np.arange(11), (3, 1))
    logits, maps = raw(method, model, x, units if indices else None)
    for some in (slice(0, 6), slice(6, 11)):
        want_logits, want_maps = raw(method, model, x, units[:, some])
        close(logits[:, some], want_logits)
        close(maps[..., some], want_maps)


def test_the_number_of_units_may_be_unknown_when_the_program_is_traced():
    exposed, x = ex.expose(models.gap_dense(2)), models.images(2)
    program = tf.function(
        lambda images, units: gradcam(exposed, images, units),
        input_signature=[tf.TensorSpec((None, 8, 8, 3)), tf.TensorSpec((None, None), tf.int32)],
        autograph=False,
    )
    for units in ([[3], [1]], [[0, 4], [2, 2]]):
        for got, want in zip(program(x, tf.constant(units)), gradcam(exposed, x, tf.constant(units)), strict=True):
            close(got, want)


@pytest.mark.parametrize("build", [models.conv_gap, models.mobilenet, models.gap_dense])
@pytest.mark.parametrize("method", [cam, *FAMILY.values()])
def test_a_head_with_one_unit_keeps_its_class_axis(build, method):
    model = build(classes=1, activation="sigmoid")
    logits, maps = raw(method, model, models.images(3))
    assert (logits.shape, maps.shape) == ((3, 1), (3, 4, 4, 1))
    prediction = np.asarray(model(models.images(3)), np.float64)
    close(logits, np.log(prediction / (1 - prediction)))


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        (
            np.array([1, 2]),
            r"have the shape \(N, K\), one row an image, and these have \(2,\): .*write y\[:, np.newaxis\]",
        ),
        (np.array([[1.0], [2.0]]), "units are integers, and these are float64: cast the indices to int32"),
        (np.array([[1], [5]]), "the model has the units 0 to 4, and one asked for is 5"),
        (np.array([[1], [-1]]), "the model has the units 0 to 4, and one asked for is -1"),
    ],
)
def test_units_that_are_no_integers_or_no_rows_are_refused(indices, text):
    with pytest.raises(InputError, match=text):
        gradcam(models.gap_dense(), models.images(2), indices)


# Where CAM does not exist


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("flatten_dense", "has Flatten 'flatten'"),
        ("vgg", "has Flatten 'flatten'"),
        ("global_max", "has GlobalMaxPooling2D 'pool'"),
        ("normalized_score_maps", "has Conv2D 'score_maps'"),
        ("max_pooled_twice", "'"),
    ],
)
def test_cam_is_refused_with_the_reason_and_the_way_out(name, reason):
    with pytest.raises(MethodError, match=f"global average pooling and one dense layer .* {reason}.*: use gradcam"):
        cam(models.CASES[name].model(), models.images(1))


@pytest.mark.parametrize(
    ("build", "layer", "reason"),
    [
        (models.residual, "branch_out", "has Conv2D 'last_conv'"),
        (models.residual, "last_bn", "joins several signals at 'add'"),
        (models.gap_dense, "block1_out", "has .* 'block2_"),
        (models.squeeze_excite, "block2_out", "has Dense 'expand'"),
        (lambda: models.gap_dense(activation="tanh"), None, "ends in the activation .tanh. of .predictions."),
    ],
)
def test_cam_is_refused_where_something_lies_between_signal_and_pooling(build, layer, reason):
    with pytest.raises(MethodError, match=f"this head {reason}.*: use gradcam"):
        cam(ex.expose(build(), layer), models.images(1))


# Any way of calling


CALLED = ["gap_dense", "vgg", "nested", "residual", "squeeze_excite", "mobilenet", "conv1d", "conv3d", "softmax_layer"]


@pytest.mark.parametrize("name", CALLED)
@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_eager_graph_and_xla_agree(name, jit):
    model = models.CASES[name].model(3)
    exposed, x = ex.expose(model), models.inputs_of(model, 2)
    units = tf.constant([[1, 0], [4, 2]])
    program = tf.function(lambda images: gradcam(exposed, images, units), jit_compile=jit, autograph=False)
    for got, want in zip(program(tf.constant(x)), gradcam(exposed, x, units), strict=True):
        close(got, want)


@pytest.mark.parametrize("classes", [5, 10], ids=["unrolled", "loop"])
@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("method", [cam, *FAMILY.values()])
def test_every_unit_is_the_same_in_eager_graph_and_xla(method, jit, classes):
    exposed, x = ex.expose(models.gap_dense(classes=classes)), models.images(2)
    program = tf.function(lambda images: method(exposed, images), jit_compile=jit, autograph=False)
    for got, want in zip(program(tf.constant(x)), method(exposed, x), strict=True):
        close(got, want)


@pytest.mark.parametrize("name", ["gap_dense", "vgg", "residual", "squeeze_excite", "global_max"])
@pytest.mark.parametrize("method", FAMILY)
def test_the_map_of_an_image_does_not_depend_on_its_batch(method, name):
    model, method = models.CASES[name].model(3), FAMILY[method]
    exposed, x = ex.expose(model), 10 * models.images(4) ** 3
    order = [2, 0, 3, 1]
    logits, maps = raw(method, exposed, x)
    shuffled_logits, shuffled_maps = raw(method, exposed, x[order])
    for position, i in enumerate(order):
        alone_logits, alone_maps = raw(method, exposed, x[i : i + 1])
        close(alone_logits[0], logits[i])
        close(alone_maps[0], maps[i])
        close(shuffled_logits[position], logits[i])
        close(shuffled_maps[position], maps[i])


def test_an_unexposed_model_is_exposed_on_the_way():
    model, x = models.nested(), models.images(2)
    for got, want in zip(gradcam(model, x), gradcam(ex.expose(model), x), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_model_with_two_inputs_is_explained_by_a_direct_call():
    model = models.two_inputs(1)
    x, row = models.images(2), models.images(2, shape=(4,))
    logits, maps = raw(gradcam, model, [x, row])
    kernel, bias = model.get_layer("predictions").get_weights()
    activations = np.asarray(ex.expose(model)([x, row])[1])
    close(logits, np.asarray(model([x, row])))
    close(maps, activations @ kernel[:4] / np.prod(activations.shape[1:3]))
    close(maps.sum(axis=(1, 2)) + row @ kernel[4:] + bias, logits)


# Numbers


@pytest.mark.parametrize("method", [cam, *FAMILY.values()])
def test_activations_of_zeros_give_maps_of_zeros(method):
    model = models.gap_dense()
    model.get_layer("block2_bn").gamma.assign(np.zeros(6))
    model.get_layer("block2_bn").beta.assign(-np.ones(6))
    logits, maps = raw(method, model, models.images(2))
    np.testing.assert_array_equal(maps, np.zeros((2, 4, 4, 5)))
    np.testing.assert_allclose(logits, np.tile(model.get_layer("predictions").bias, (2, 1)), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "rtol"), [("mixed_float16", 0.01), ("mixed_bfloat16", 0.06)])
@pytest.mark.parametrize("method", [cam, *FAMILY.values()])
def test_half_precision_gives_nearly_the_maps_of_single_precision(dtype, rtol, method):
    x = models.images(3)
    logits, maps = method(models.gap_dense(1, dtype=dtype), x)
    assert (logits.dtype, maps.dtype) == (tf.float32, tf.float32)
    for got, want in zip((logits, maps), method(models.gap_dense(1), x), strict=True):
        close(got, want, rtol)


def test_sums_of_half_precision_activations_do_not_overflow():
    single, half = (models.gap_dense(1, dtype=dtype) for dtype in ("float32", "mixed_float16"))
    for model in (single, half):
        model.get_layer("block2_bn").gamma.assign(np.full(6, 8000.0))
        model.get_layer("predictions").kernel.assign(np.full((6, 5), 3.0))
    x = models.images(2)
    maps = raw(cam, half, x)[1]
    assert maps.max() > np.finfo(np.float16).max
    close(maps, raw(cam, single, x)[1], rtol=0.01)

"""`explain` gives for any form of images and units what a direct call gives for one image."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import explainers as ex
from explainers.errors import InputError, MethodError, ModelError
from explainers.explaining import resize_maps
from explainers.methods.cams import gradcam
from tests import models
from tests.comparing import close

N = 5
UNITS = np.array([[4, 0], [1, 1], [2, 3], [0, 4], [3, 1]])


@pytest.fixture(scope="module")
def exposed():
    return ex.expose(models.gap_dense(1))


@pytest.fixture(scope="module")
def x():
    return models.images(N)


@pytest.fixture(scope="module")
def direct(exposed, x):
    """Raw logits and maps of the units, image by image."""
    pairs = [gradcam(exposed, x[i : i + 1], UNITS[i : i + 1]) for i in range(N)]
    return tuple(np.concatenate(values) for values in zip(*pairs, strict=True))


raw = {"postprocessing": None, "resizing": None, "verbose": 0}


# Methods and images


def test_a_method_is_a_name_a_function_or_a_traced_function(exposed, x, direct):
    for method in ("gradcam", gradcam, tf.function(gradcam, autograph=False), functools.partial(gradcam)):
        for got, want in zip(ex.explain(method, exposed, x, UNITS, **raw), direct, strict=True):
            assert isinstance(got, np.ndarray)
            assert got.dtype == np.float32
            close(got, want)


def test_every_unit_is_explained_when_none_is_named(exposed, x):
    logits, maps = ex.explain("gradcam", exposed, x, batch_size=2, **raw)
    want_logits, want_maps = gradcam(exposed, x)
    close(logits, want_logits)
    close(maps, want_maps)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 32])
def test_the_batch_size_changes_no_value(exposed, x, direct, batch_size):
    for got, want in zip(ex.explain("gradcam", exposed, x, UNITS, batch_size, **raw), direct, strict=True):
        close(got, want)


def test_every_batch_has_one_size_so_that_it_is_traced_once(exposed, x):
    shapes = []

    def spy(model, inputs, indices):
        shapes.append(tuple(inputs.shape))
        return gradcam(model, inputs, indices)

    ex.explain(spy, exposed, x, UNITS, batch_size=2, **raw)
    ex.explain(spy, exposed, images_and_units(x).batch(2), **raw)
    assert shapes == [(2, 8, 8, 3)]


def test_a_second_call_does_not_trace_again(exposed, x):
    traces = []

    def spy(model, inputs, indices):
        traces.append(1)
        return gradcam(model, inputs, indices)

    first = ex.explain(spy, exposed, x, UNITS, **raw)
    second = ex.explain(spy, exposed, x[::-1], UNITS[::-1], **raw)
    assert len(traces) == 1
    close(second[1][::-1], first[1])
    ex.explain(spy, exposed, x, UNITS, **{**raw, "resizing": (3, 3)})
    assert len(traces) == 2


def test_parameters_reach_the_method_and_different_ones_do_not_meet_in_the_cache(exposed, x):
    def scaled(model, inputs, indices, factors):
        logits, maps = gradcam(model, inputs, indices)
        return logits, maps * tf.reduce_sum(tf.constant(factors, tf.float32))

    first, second = np.zeros(5000), np.zeros(5000)
    first[2500], second[2500] = 1, 3  # NumPy abbreviates both to the same text
    _, ones = ex.explain(scaled, exposed, x, UNITS, factors=first, **raw)
    _, threes = ex.explain(scaled, exposed, x, UNITS, factors=second, **raw)
    close(threes, 3 * ones)


def test_arrays_tensors_lists_and_other_dtypes_are_the_same_images(exposed, x, direct):
    for images in (tf.constant(x), x.astype("float64"), list(x), x.tolist()):
        close(ex.explain("gradcam", exposed, images, UNITS, **raw)[1], direct[1])
    pixels = models.pixels(2)
    got = ex.explain("gradcam", exposed, pixels, UNITS[:2], **raw)[1]
    close(got, gradcam(exposed, pixels.astype("float32"), UNITS[:2])[1])


def test_units_may_be_lists_tensors_or_small_integers(exposed, x, direct):
    for units in (UNITS.tolist(), tf.constant(UNITS), UNITS.astype("uint8"), UNITS.astype("int64")):
        close(ex.explain("gradcam", exposed, x, units, **raw)[1], direct[1])


def images_and_units(x, units=UNITS):
    return tf.data.Dataset.from_tensor_slices((x, units))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: images_and_units(x).batch(2),
        lambda x: images_and_units(x).batch(9),
        images_and_units,
        lambda x: images_and_units(x).filter(lambda *_: True),
        lambda x: images_and_units(x).batch(2).filter(lambda *_: True),
        lambda x: tf.data.Dataset.from_tensor_slices((x.astype("float64"), UNITS.astype("int32"), np.ones(N))).batch(3),
    ],
    ids=["batched", "one batch", "unbatched", "unknown, unbatched", "unknown, batched", "with sample weights"],
)
def test_a_data_set_of_images_and_units_gives_what_arrays_give(exposed, x, direct, make):
    for got, want in zip(ex.explain("gradcam", exposed, make(x), batch_size=2, **raw), direct, strict=True):
        close(got, want)


@pytest.mark.parametrize("batched", [False, True])
def test_a_data_set_of_images_alone_explains_every_unit(exposed, x, batched):
    dataset = tf.data.Dataset.from_tensor_slices(x)
    got = ex.explain("gradcam", exposed, dataset.batch(3) if batched else dataset, batch_size=2, **raw)
    for values, want in zip(got, gradcam(exposed, x), strict=True):
        close(values, want)


def test_a_data_set_with_a_larger_batch_behind_a_smaller_one_loses_no_image(exposed, x, direct):
    dataset = images_and_units(x[:2], UNITS[:2]).batch(2).concatenate(images_and_units(x[2:], UNITS[2:]).batch(3))
    close(ex.explain("gradcam", exposed, dataset, **raw)[1], direct[1])


# Post-processing and size


def test_maps_are_post_processed_as_in_the_paper_and_resized_if_nothing_is_said(exposed, x, direct):
    _, maps = ex.explain("gradcam", exposed, x, UNITS)
    positive = np.maximum(direct[1], 0)
    peak = positive.max(axis=(1, 2), keepdims=True)
    assert peak.min() == 0 < peak.max(), "a map without a positive part is among them"
    low = np.divide(positive, peak, out=np.zeros_like(positive), where=peak > 0)
    close(maps, tf.image.resize(low, (8, 8)))


@pytest.mark.parametrize(
    ("postprocessing", "function"),
    [
        (None, lambda maps: maps),
        (ex.filters.negative, lambda maps: np.minimum(maps, 0)),
        (ex.filters.absolute, np.abs),
        (lambda maps: 2 * maps, lambda maps: 2 * maps),
    ],
)
def test_post_processing_is_what_was_asked_for(exposed, x, direct, postprocessing, function):
    maps = ex.explain("gradcam", exposed, x, UNITS, postprocessing=postprocessing, resizing=False)[1]
    close(maps, function(direct[1]))


def test_the_maps_of_a_strangers_method_stay_as_they_are(exposed, x, direct):
    def mine(model, inputs, indices):
        return gradcam(model, inputs, indices)

    close(ex.explain(mine, exposed, x, UNITS, resizing=None)[1], direct[1])


@pytest.mark.parametrize(
    ("resizing", "size"), [(True, (8, 8)), ((6, 10), (6, 10)), ([6, 10], (6, 10)), ((2, 3), (2, 3))]
)
def test_maps_are_resized_as_tensorflow_does_it(exposed, x, direct, resizing, size):
    maps = ex.explain("gradcam", exposed, x, UNITS, postprocessing=None, resizing=resizing)[1]
    close(maps, tf.image.resize(direct[1], size))


@pytest.mark.parametrize("resizing", [None, False])
def test_maps_keep_the_methods_own_size_when_told_so(exposed, x, direct, resizing):
    close(ex.explain("gradcam", exposed, x, UNITS, postprocessing=None, resizing=resizing)[1], direct[1])


def half_pixel_linear(values, size):
    """Linear interpolation along the first axis between the centres of cells."""
    centres = (np.arange(size) + 0.5) * len(values) / size - 0.5
    centres = np.clip(centres, 0, len(values) - 1)
    low = np.floor(centres).astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    share = (centres - low).reshape(-1, *[1] * (values.ndim - 1))
    return (1 - share) * values[low] + share * values[high]


@pytest.mark.parametrize(
    ("positions", "size"), [((4,), (9,)), ((3, 4), (7, 9)), ((2, 3, 4), (5, 7, 9)), ((4, 4), (2, 3))]
)
def test_resizing_is_linear_between_the_centres_of_cells_on_every_axis(positions, size):
    maps = np.random.default_rng(0).normal(size=(2, *positions, 3))
    want = maps
    for axis, length in enumerate(size, start=1):
        want = np.moveaxis(half_pixel_linear(np.moveaxis(want, axis, 0), length), 0, axis)
    close(resize_maps(tf.constant(maps, tf.float32), size), want)


@pytest.mark.parametrize("name", ["conv1d", "conv3d"])
def test_maps_with_one_and_three_axes_of_positions_have_the_size_of_the_input(name):
    model = models.CASES[name].model(1)
    x = models.inputs_of(model, 3)
    _, maps = ex.explain("gradcam", model, x, postprocessing=None, batch_size=2)
    close(maps, resize_maps(gradcam(model, x)[1], x.shape[1:-1]))
    assert maps.shape == (*x.shape[:-1], models.CLASSES)


def test_images_of_any_size_are_explained_by_a_model_that_leaves_it_open():
    exposed = ex.expose(models.dynamic(1))
    for shape in ((8, 8, 3), (6, 11, 3)):
        x = models.images(3, shape=shape)
        logits, maps = ex.explain("gradcam", exposed, x, batch_size=2, postprocessing=None)
        want_logits, want_maps = gradcam(exposed, x)
        close(logits, want_logits)
        close(maps, tf.image.resize(want_maps, shape[:2]))


@pytest.mark.parametrize("method", ["gradients", "gradcam", "cam"])
def test_more_units_than_are_unrolled_are_explained_image_by_image(method):
    exposed, x = ex.expose(models.gap_dense(classes=11)), models.images(3)
    logits, maps = ex.explain(method, exposed, x, batch_size=2, **raw)
    for i in range(3):
        want_logits, want_maps = ex.METHODS[method].function(exposed, x[i : i + 1])
        close(logits[i : i + 1], want_logits)
        close(maps[i : i + 1], want_maps)


# Call forms


def test_an_unexposed_model_is_exposed_on_the_way(x, direct):
    model = models.gap_dense(1)
    logits, maps = ex.gradcam(model, x, UNITS, postprocessing=None, resizing=None)
    close(logits, direct[0])
    close(maps, direct[1])


def test_the_call_forms_of_keras_explainable_work(x):
    model, y = models.gap_dense(1), np.argsort(models.gap_dense(1)(x))[:, ::-1][:, :2]
    exposed = ex.inspection.expose(model)
    logits, maps = ex.explain(
        ex.methods.cams.gradcam, exposed, x, y, batch_size=2, postprocessing=ex.filters.positive_normalize
    )
    for got, want in zip((logits, maps), ex.gradcam(model, x, y), strict=True):
        close(got, want)
    assert np.all(logits[:, 0] >= logits[:, 1])
    saliency_logits, saliency = ex.gradients(model, x, y)
    close(saliency_logits, logits)
    _, want = ex.methods.gradient.gradients(model, x, y)
    close(saliency, want / tf.reduce_max(want, axis=(1, 2), keepdims=True))
    assert ex.inspection.get_logits_layer(model) is model.get_layer("predictions")


def test_gradients_explain_models_without_a_spatial_signal():
    model, x = models.linear_image(), models.images(2)
    kernel = np.abs(model.get_layer("predictions").kernel.numpy().reshape(8, 8, 3, 5)).max(axis=2)
    close(ex.gradients(model, x, postprocessing=None)[1], np.stack([kernel, kernel]))


def test_gradients_of_a_model_without_positions_are_refused_with_a_reason_or_have_one_value_a_feature():
    model, x = models.mlp(), models.images(2, shape=(6,))
    try:
        _, maps = ex.gradients(model, x, postprocessing=None)
    except ex.errors.ExplainerError:
        return
    assert maps.shape[:2] == (2, 6)


# The progress bar


def test_a_bar_counts_the_batches_once(exposed, x, capsys):
    ex.explain("gradcam", exposed, x, UNITS, batch_size=2, verbose=1)
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert "3/3" in out
    assert "/batch" in out
    assert err == ""


def test_a_silent_call_prints_nothing(exposed, x, capsys):
    ex.explain("gradcam", exposed, x, UNITS, batch_size=2, verbose=0)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("batch_size", "bar"), [(2, True), (5, False)])
def test_a_bar_is_drawn_for_more_than_one_batch_if_nothing_is_said(exposed, x, capsys, batch_size, bar):
    ex.explain("gradcam", exposed, x, UNITS, batch_size=batch_size)
    assert ("3/3" in capsys.readouterr().out) == bar


def test_a_bar_counts_the_batches_of_a_data_set_whose_length_is_unknown(exposed, x, capsys):
    ex.explain("gradcam", exposed, images_and_units(x).batch(2).filter(lambda *_: True), verbose=1)
    assert "3/Unknown" in capsys.readouterr().out


# Errors


@pytest.mark.parametrize(
    ("images", "units", "options", "text"),
    [
        (models.images(2, shape=(9, 8, 3)), None, {}, r"images of shape \('N', 8, 8, 3\), and x has \(2, 9, 8, 3\)"),
        (models.images(1)[0], None, {}, r"images of shape \('N', 8, 8, 3\), and x has \(8, 8, 3\)"),
        (models.images(2), [[5], [0]], {}, "the units 0 to 4, and y asks for 5"),
        (models.images(2), [[0], [-1]], {}, "the units 0 to 4, and y asks for -1"),
        (models.images(2), [[0.5], [1]], {}, "y holds integer units, not float64"),
        (models.images(2), [0, 1], {}, r"\(2, K\), and has \(2,\): .*write y\[:, np.newaxis\]"),
        (models.images(2), [[0]], {}, r"one row of units an image, \(2, K\), and has \(1, 1\)"),
        (models.images(2), np.zeros((2, 0), int), {}, r"y .*\(2, 0\)"),
        (models.images(2)[:0], None, {}, "no images to explain: x is empty"),
        (models.images(2)[:0], np.zeros((0, 1), int), {}, "no images to explain: x is empty"),
        (models.images(2), None, {"batch_size": 0}, "batch_size is at least 1, not 0"),
        (models.images(2), None, {"resizing": (4,)}, r"2 axes of positions cannot be resized to \(4,\)"),
        (tf.data.Dataset.from_tensor_slices(models.images(2)), [[0], [0]], {}, "come with it, .*leave y out"),
        (tf.data.Dataset.from_tensor_slices(models.images(2)).take(0), None, {}, "no images to explain"),
        (tf.data.Dataset.from_tensor_slices((models.images(2), [[7], [0]])), None, {}, "y asks for 7"),
        (tf.data.Dataset.from_tensor_slices((models.images(2), [1, 0])), None, {}, r"write y\[:, np.newaxis\]"),
    ],
)
def test_an_error_names_the_rule_the_value_and_the_way_out(exposed, images, units, options, text):
    with pytest.raises(InputError, match=text):
        ex.explain("gradcam", exposed, images, units, **options)


def test_an_unknown_method_names_the_nearest(exposed, x):
    with pytest.raises(MethodError, match=r"no method 'grad-cam'. Did you mean 'gradcam'\? The methods are: cam, "):
        ex.explain("grad-cam", exposed, x)


def test_cam_of_a_flattening_head_is_refused_with_the_reason():
    with pytest.raises(MethodError, match="this head has Flatten 'flatten': use gradcam"):
        ex.explain("cam", models.vgg(), models.images(1))


def test_several_inputs_are_refused_with_the_way_out():
    with pytest.raises(InputError, match=r"one input.*2"):
        ex.gradcam(models.two_inputs(), [models.images(2), models.images(2, shape=(4,))])


def test_a_signal_without_positions_is_refused_for_maps():
    with pytest.raises(
        ModelError, match=r"needs a signal with positions, and 'pool' has the shape \(None, 6\): expose"
    ):
        ex.gradcam(ex.expose(models.gap_dense(), "pool"), models.images(2))


def test_a_model_without_a_spatial_signal_is_refused_before_anything_runs():
    with pytest.raises(ex.errors.ModelError, match="no spatial signal"):
        ex.gradcam(models.linear_image(), models.images(1))


def test_the_shortcut_of_a_layer_that_was_named_explains_that_layer(x):
    model = models.gap_dense(1)
    _, maps = ex.gradcam(ex.expose(model, "block1_out"), x, UNITS, postprocessing=None, resizing=None)
    assert maps.shape == (N, 8, 8, 2)
    activations = keras.Model(model.input, model.get_layer("block1_out").output)(x)
    gradients = _gradients_by_tape(model, activations)
    close(maps, np.einsum("nhwc,nkc->nhwk", activations, gradients.mean(axis=(2, 3))))


def _gradients_by_tape(model, activations):
    """dy/dA behind `block1_out`, by the layers of the model itself: (n, k, h, w, c)."""
    with tf.GradientTape() as tape:
        tape.watch(activations)
        signal = activations
        for name in ("block2_conv", "block2_bn", "block2_out", "pool"):
            signal = model.get_layer(name)(signal)
        kernel, bias = model.get_layer("predictions").weights
        scores = tf.gather(signal @ kernel + bias, UNITS, batch_dims=1)
        total = tf.reduce_sum(scores, axis=0)
    return np.moveaxis(tape.jacobian(total, activations).numpy(), 0, 1)


def test_rows_of_features_keep_a_value_for_each_feature():
    model, rows = models.mlp(1), models.images(3, shape=(6,))
    logits, maps = ex.explain("gradients", model, rows, np.array([[1], [0], [2]]), postprocessing=None)
    want = ex.methods.gradient.gradients(model, rows, np.array([[1], [0], [2]]))
    close(logits, want[0])
    close(maps, want[1])


@pytest.mark.parametrize("fill", [0, 127, 0.5])
def test_occlusion_takes_any_number_to_fill_with(fill):
    model, x, y = models.gap_dense(1), models.images(2), np.array([[1], [0]])
    _, maps = ex.explain("occlusion", model, x, y, postprocessing=None, size=4, fill=fill)
    close(maps, ex.methods.perturbation.occlusion(model, x, y, size=4, fill=float(fill))[1])


def test_images_that_are_not_finite_are_told_by_number():
    x = models.images(3)
    x[1, 2, 3, 0] = np.nan
    with pytest.raises(InputError, match=r"x has NaN or infinity in image 1: .*\(1 of 3 images\)"):
        ex.explain("gradcam", models.gap_dense(), x)

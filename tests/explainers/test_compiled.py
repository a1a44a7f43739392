"""`Explainer`: one program of one shape gives what its parts give one by one, from bytes to maps."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

import explainers as ex
from explainers.compiled import PREDICTED, PREPROCESSES
from explainers.errors import InputError, MethodError
from tests import models
from tests.comparing import close

EVERY = ("cam", "gradcam", "gradients")


def assert_same(got, want, rtol=1e-5):
    close(got.logits, want.logits, rtol)
    np.testing.assert_array_equal(got.targets, want.targets)
    assert list(got.maps) == list(want.maps)
    for name in want.maps:
        close(got.maps[name], want.maps[name], rtol)


@pytest.fixture(scope="module")
def exposed():
    return ex.expose(models.rescaling_first(1))


@pytest.fixture(scope="module")
def explainer(exposed):
    return ex.Explainer(exposed, methods=EVERY, top_k=2, batch_size=4, jit=False)


# Against explain


def by_hand(name, images):
    """Each preprocessing as its authors wrote it down."""
    x = images.astype(np.float64)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return {
        "tf": x / 127.5 - 1,
        "caffe": x[..., ::-1] - [103.939, 116.779, 123.68],
        "torch": (x / 255 - mean) / deviation,
        "unit": x / 255,
        "none": x,
        None: x,
    }[name]


@pytest.mark.parametrize("name", [*PREPROCESSES, None])
def test_an_explainer_gives_what_explain_gives_for_images_preprocessed_by_hand(name):
    model, images = models.gap_dense(2), models.pixels(3)
    got = ex.Explainer(model, methods=EVERY, top_k=2, batch_size=3, preprocess=name, jit=False)(images)
    x = by_hand(name, images)
    want_logits = ex.methods.cams.gradcam(model, x)[0].numpy()
    close(got.logits, want_logits)
    np.testing.assert_array_equal(got.targets, np.argsort(-want_logits, axis=1)[:, :2])
    assert (got.logits.dtype, got.targets.dtype) == (np.float32, np.int32)
    for method in EVERY:
        logits, maps = ex.explain(method, model, x, got.targets, postprocessing=None, resizing=None)
        assert got.maps[method].dtype == np.float32
        close(got.maps[method], maps)
        close(np.take_along_axis(got.logits, got.targets, axis=1), logits)


def test_every_preprocessing_is_checked_by_hand_here():
    assert set(PREPROCESSES) == {"tf", "caffe", "torch", "unit", "none"}


def test_preprocessing_may_be_a_function_of_float_pixels():
    model, images, seen = models.gap_dense(2), models.pixels(2), []

    def halve(x):
        seen.append((x.dtype, tuple(x.shape)))
        return x / 2

    got = ex.Explainer(model, batch_size=2, preprocess=halve, jit=False)(images)
    close(got.logits, ex.methods.cams.gradcam(model, images / 2.0)[0])
    assert set(seen) == {(tf.float32, (2, 8, 8, 3))}


@pytest.mark.parametrize("name", ["vgg", "residual", "nested", "mobilenet", "conv_gap", "squeeze_excite", "one_unit"])
def test_every_shape_of_model_runs_compiled(name):
    model, images = models.CASES[name].model(2), models.pixels(3)
    got = ex.Explainer(model, ("gradcam", "gradients"), batch_size=2, preprocess="tf", jit=False)(images[:2])
    x = by_hand("tf", images[:2])
    for method in ("gradcam", "gradients"):
        _, maps = ex.METHODS[method].function(model, x, got.targets)
        close(got.maps[method], maps)


def test_a_signal_inside_a_residual_branch_runs_compiled():
    exposed, images = ex.expose(models.residual(), "branch_out"), models.pixels(2)
    got = ex.Explainer(exposed, batch_size=2, preprocess="unit", jit=False)(images)
    close(got.maps["gradcam"], ex.methods.cams.gradcam(exposed, images / 255, got.targets)[1])


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_gives_float32_numbers(dtype):
    model, images = models.gap_dense(2, dtype=dtype), models.pixels(2)
    got = ex.Explainer(model, ("cam", "gradcam"), batch_size=2, preprocess="tf", jit=False)(images)
    logits, maps = ex.methods.cams.gradcam(models.gap_dense(2), by_hand("tf", images), got.targets)
    assert (got.logits.dtype, got.maps["gradcam"].dtype) == (np.float32, np.float32)
    close(got.maps["gradcam"], maps, rtol=0.06)
    close(np.take_along_axis(got.logits, got.targets, axis=1), logits, rtol=0.06)


def test_a_model_that_declares_bytes_is_explained_like_one_that_declares_floats():
    images, methods = models.pixels(2), ("cam", "gradcam")
    want = ex.Explainer(models.rescaling_first(2), methods, batch_size=2, jit=False)(images)
    assert_same(ex.Explainer(models.byte_input(2), methods, batch_size=2, jit=False)(images), want)
    with pytest.raises(InputError, match="this model reads uint8"):
        ex.Explainer(models.byte_input(), ("gradients",), batch_size=2, jit=False)


# Batches


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_padding_changes_no_value(explainer, n):
    images = models.pixels(4)
    full, part = explainer(images), explainer(images[:n])
    assert len(part.logits) == n
    close(part.logits, full.logits[:n])
    np.testing.assert_array_equal(part.targets, full.targets[:n])
    for name in EVERY:
        close(part.maps[name], full.maps[name][:n])


def test_the_order_of_a_batch_changes_no_value(explainer):
    images, order = models.pixels(4), [2, 0, 3, 1]
    full, shuffled = explainer(images), explainer(images[order])
    close(shuffled.logits, full.logits[order])
    for name in EVERY:
        close(shuffled.maps[name], full.maps[name][order])


def test_images_and_targets_are_not_written_to(explainer):
    images, targets = models.pixels(3), np.array([[1, -1], [0, 2], [-1, -1]], np.int32)
    kept_images, kept_targets = images.copy(), targets.copy()
    explainer(images, targets)
    np.testing.assert_array_equal(images, kept_images)
    np.testing.assert_array_equal(targets, kept_targets)


def test_the_program_has_one_static_shape(explainer):
    program = explainer.compile(jit=False)
    assert (program.size, program.images, program.targets) == (4, (4, 8, 8, 3), (4, 2))
    images, targets = program.function.structured_input_signature[0]
    assert (images.shape, images.dtype) == (program.images, tf.uint8)
    assert (targets.shape, targets.dtype) == (program.targets, tf.int32)


def test_nothing_is_traced_after_the_constructor(exposed):
    traces = []

    def spy(x):
        traces.append(1)
        return x

    explainer = ex.Explainer(exposed, batch_size=4, preprocess=spy, jit=False)
    constructed = len(traces)  # the trace, and the look at what folding changes
    explainer.warm_up()
    for n in (1, 4, 2):
        explainer(models.pixels(n))
    assert len(traces) == constructed


def test_four_threads_at_once_give_what_one_gives(explainer):
    batches = [models.pixels(1 + seed % 4, seed) for seed in range(24)]
    serial = [explainer(images) for images in batches]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(explainer, batches), serial, strict=True):
            assert_same(got, want)


# Targets


def test_the_best_classes_are_chosen_inside():
    got = ex.Explainer(models.vgg(3), top_k=2, batch_size=4, jit=False)(models.pixels(4))
    np.testing.assert_array_equal(got.targets, np.argsort(-got.logits, axis=1)[:, :2])
    assert len(np.unique(got.targets[:, 0])) > 1


def test_the_best_classes_of_an_explainer_that_explains_all_are_a_ranking(exposed):
    got = ex.Explainer(exposed, top_k=5, batch_size=2, jit=False)(models.pixels(2))
    np.testing.assert_array_equal(got.targets, np.argsort(-got.logits, axis=1))


def test_given_targets_are_explained_and_minus_one_stands_for_the_best_of_its_column(exposed, explainer):
    images = models.pixels(4)
    best = explainer(images).targets
    targets = np.array([[3, PREDICTED], [PREDICTED, 0], [PREDICTED, PREDICTED], [1, 1]], np.int32)
    want = np.where(targets == -1, best, targets)
    got = explainer(images, targets)
    np.testing.assert_array_equal(got.targets, want)
    x = images.astype("float32")
    for name in EVERY:
        close(got.maps[name], ex.METHODS[name].function(exposed, x, want)[1])


def test_targets_of_a_batch_that_is_not_full_stay_with_their_images(explainer):
    images = models.pixels(4)
    targets = np.array([[3, 4], [0, 1], [2, 2], [1, 0]], np.int64)
    full, part = explainer(images, targets), explainer(images[:3], targets[:3])
    np.testing.assert_array_equal(part.targets, targets[:3])
    for name in EVERY:
        close(part.maps[name], full.maps[name][:3])


# Methods


def test_methods_that_share_signals_give_what_each_gives_alone(exposed, explainer):
    images = models.pixels(4)
    together = explainer(images)
    assert list(together.maps) == list(EVERY)
    for name in EVERY:
        alone = ex.Explainer(exposed, (name,), top_k=2, batch_size=4, jit=False)(images)
        close(alone.logits, together.logits)
        np.testing.assert_array_equal(alone.targets, together.targets)
        assert list(alone.maps) == [name]
        close(alone.maps[name], together.maps[name])
    close(16 * together.maps["gradcam"], together.maps["cam"])


def test_many_classes_are_explained_at_once():
    model, images = models.gap_dense(classes=12), models.pixels(2)
    got = ex.Explainer(model, ("cam", "gradcam"), top_k=10, batch_size=2, preprocess="tf", jit=False)(images)
    for name in ("cam", "gradcam"):
        close(got.maps[name], ex.METHODS[name].function(model, by_hand("tf", images), got.targets)[1])


def test_a_model_that_only_gradients_explain_needs_no_spatial_signal():
    model, images = models.linear_image(), models.pixels(2)
    got = ex.Explainer(model, ("gradients",), batch_size=2, jit=False)(images)
    kernel = np.abs(model.get_layer("predictions").kernel.numpy().reshape(8, 8, 3, 5)).max(axis=2)
    for i in range(2):
        close(got.maps["gradients"][i, ..., 0], kernel[..., got.targets[i, 0]])


def test_later_weights_are_explained_by_a_program_that_was_compiled_before():
    model, images = models.rescaling_first(3), models.pixels(2)
    explainer = ex.Explainer(model, batch_size=2, jit=False)
    before = explainer(images)
    for variable in model.get_layer("predictions").weights:
        variable.assign(2 * variable)
    after = explainer(images)
    close(after.logits, 2 * before.logits)
    close(after.maps["gradcam"], 2 * before.maps["gradcam"])


# XLA


@pytest.mark.parametrize("name", ["rescaling_first", "vgg", "residual"])
def test_xla_gives_what_no_xla_gives(name):
    exposed = ex.expose(models.CASES[name].model(1))
    methods = EVERY if exposed.class_kernel is not None else ("gradcam", "gradients")
    plain, compiled = (ex.Explainer(exposed, methods, 2, 3, preprocess="tf", jit=jit) for jit in (False, True))
    assert (plain.jit, compiled.jit) == (False, True)
    images, targets = models.pixels(2), np.array([[-1, 3], [2, -1]], np.int32)
    assert_same(compiled(images, targets), plain(images, targets))


def test_auto_decides_for_or_against_xla(exposed):
    explainer = ex.Explainer(exposed, batch_size=2, top_k=2, jit="auto")
    assert isinstance(explainer.jit, bool)
    images = models.pixels(2)
    assert_same(explainer(images), ex.Explainer(exposed, batch_size=2, top_k=2, jit=False)(images))


# The size of the input


def test_a_model_that_leaves_its_size_open_takes_the_one_it_is_given():
    model, images = models.dynamic(1), models.pixels(2, shape=(6, 11, 3))
    got = ex.Explainer(model, input_shape=(6, 11, 3), batch_size=3, preprocess="tf", jit=False)(images)
    logits, maps = ex.methods.cams.gradcam(model, by_hand("tf", images), got.targets)
    close(np.take_along_axis(got.logits, got.targets, axis=1), logits)
    close(got.maps["gradcam"], maps)


def test_a_size_that_the_model_declares_may_be_repeated(exposed):
    assert ex.Explainer(exposed, input_shape=(8, 8, 3), batch_size=1, jit=False).input_shape == (8, 8, 3)


# Errors


@pytest.mark.parametrize(
    ("build", "options", "error", "text"),
    [
        (models.dynamic, {}, InputError, r"size open, \(None, None, 3\): give input_shape=\(H, W, C\)"),
        (
            models.gap_dense,
            {"input_shape": (9, 8, 3)},
            InputError,
            r"\(8, 8, 3\), which input_shape=\(9, 8, 3\) does not",
        ),
        (models.dynamic, {"input_shape": (9, 8)}, InputError, r"which input_shape=\(9, 8\) does not fit"),
        (models.gap_dense, {"methods": ()}, InputError, "at least one method"),
        (models.gap_dense, {"methods": ("gradcam", "grad_cam")}, MethodError, r"Did you mean 'gradcam'\?"),
        (models.vgg, {"methods": ("cam",)}, MethodError, "this head has Flatten 'flatten': use gradcam"),
        (models.gap_dense, {"batch_size": 0}, InputError, "batch_size is at least 1, not 0"),
        (models.gap_dense, {"top_k": 0}, InputError, "between 1 and the model's 5 classes, not 0"),
        (models.gap_dense, {"top_k": 6}, InputError, "between 1 and the model's 5 classes, not 6"),
        (
            models.gap_dense,
            {"preprocess": "tensorflow"},
            InputError,
            "no preprocessing 'tensorflow': choose one of tf, ",
        ),
        (models.two_inputs, {}, InputError, "a model with one input, and this has 2"),
        (models.linear_image, {}, ex.errors.ModelError, "no spatial signal"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_constructor(build, options, error, text):
    with pytest.raises(error, match=text):
        ex.Explainer(build(), **{"batch_size": 2, "jit": False, **options})


@pytest.mark.parametrize(
    ("images", "targets", "text"),
    [
        (models.pixels(2).astype("float32"), None, r"uint8 of shape \(n, 8, 8, 3\), and these are float32"),
        (models.pixels(2, shape=(8, 9, 3)), None, r"and these are uint8 of shape \(2, 8, 9, 3\)"),
        (models.pixels(2)[0], None, r"and these are uint8 of shape \(8, 8, 3\)"),
        (models.pixels(5), None, "a batch holds 1 to 4 images, and this one 5"),
        (models.pixels(2)[:0], None, "a batch holds 1 to 4 images, and this one 0"),
        (models.pixels(2), np.zeros((2, 1), int), r"targets have the shape \(2, 2\), and these \(2, 1\)"),
        (models.pixels(2), np.zeros((1, 2), int), r"targets have the shape \(2, 2\), and these \(1, 2\)"),
        (models.pixels(2), np.array([[0, 5], [0, 0]]), "classes 0 to 4, or -1 for predicted ones, .* lie in 0 to 5"),
        (models.pixels(2), np.array([[0, 4], [-2, 0]]), "lie in -2 to 4"),
        (models.pixels(2), np.array([[0, 1.7], [0, 0]]), "targets .*float64"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(explainer, images, targets, text):
    with pytest.raises(InputError, match=text):
        explainer(images, targets)


def test_more_targets_than_are_unrolled_have_the_maps_of_explain():
    model = models.gap_dense(2, classes=11)
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    explainer = ex.Explainer(
        model, ["cam", "gradcam", "gradients"], top_k=11, batch_size=4, preprocess="unit", jit=False
    )
    units = np.tile(np.arange(11, dtype=np.int32)[::-1], (3, 1))
    explanation = explainer(images, units)
    for name, maps in explanation.maps.items():
        _, want = ex.explain(name, model, images / 255, units, postprocessing=None, resizing=None)
        np.testing.assert_allclose(maps, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_what_takes_many_passes_is_left_out_of_timing_and_warm_up():
    explainer = ex.Explainer(
        models.gap_dense(), ["gradcam", "rise(masks=4)"], batch_size=2, jit=False, metrics=["deletion"]
    )
    few = explainer.compile(False, whole=False)
    _, _, maps, measured = few(np.zeros((2, 8, 8, 3), np.uint8), np.full((2, 1), -1))
    assert (list(maps), measured) == (["gradcam"], {})
    compiled = []
    explainer.compile = lambda jit, whole=True: compiled.append(whole) or few
    explainer.warm_up()
    assert compiled == [False]
    whole = explainer(models.pixels(2))
    assert list(whole.maps) == ["gradcam", "rise(masks=4)"]
    assert {name: list(values) for name, values in whole.metrics.items()} == {
        "gradcam": ["deletion"], "rise(masks=4)": ["deletion"]
    }  # fmt: skip


def test_metrics_that_are_not_there_are_refused():
    with pytest.raises(InputError, match="metrics are of deletion, insertion, drop, increase, not 'speed'"):
        ex.Explainer(models.gap_dense(), metrics=["speed"], jit=False)


@pytest.mark.parametrize("top_k", [3, 9])
def test_any_number_of_targets_behind_a_head_that_is_not_linear(top_k):
    model = models.vgg()
    wide = keras.Model(model.input, keras.layers.Dense(11, name="wide")(model.get_layer("fc2").output))
    wide = models.randomize(wide, 2)
    names = ["gradcam", "layercam", "eigencam", "gradcampp"]
    explanation = ex.Explainer(wide, names, top_k=top_k, batch_size=2, jit=False)(models.pixels(2))
    x = models.pixels(2).astype("float32")
    for name in names:
        close(explanation.maps[name], ex.METHODS[name].function(wide, x, explanation.targets)[1])


# Memory: TensorFlow's allocator waits for ten seconds before it gives up, so there are few of these tests


class Greedy(keras.layers.Layer):
    """An identity that asks for more memory than a machine can address, if a batch has more than `most` images."""

    def __init__(self, most=2):
        super().__init__()
        self.most = most

    def call(self, images):
        n = tf.size(tf.where(images[:, 0, 0, 0] > -1e9))  # not their shape, which TensorFlow computes with beforehand
        cells = tf.cast(tf.maximum(n - self.most, 0), tf.int64) * 2**44 + 1
        return images + tf.reduce_sum(tf.fill([cells], 0.0))


def greedy(most: int = 2) -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu")(Greedy(most)(image))
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))


def test_a_batch_that_does_not_fit_in_memory_is_halved_and_remembered(caplog):
    explainer = ex.Explainer(greedy(), ["gradcam", "gradients"], top_k=2, batch_size=4, jit=False)
    images, targets = models.pixels(4), np.tile(np.array([[2, -1]], np.int32), (4, 1))
    got = explainer(images, targets)
    assert (explainer.batch_size, got.logits.shape) == (2, (4, 3))
    single = ex.Explainer(greedy(), ["gradcam", "gradients"], top_k=2, batch_size=1, jit=False)
    for i in range(4):
        want = single(images[i : i + 1], targets[i : i + 1])
        close(got.logits[i], want.logits[0])
        np.testing.assert_array_equal(got.targets[i], want.targets[0])
        for name in want.maps:
            close(got.maps[name][i], want.maps[name][0])
    again = explainer(images[:3], targets[:3])
    np.testing.assert_array_equal(again.logits, got.logits[:3])
    said = [record.message for record in caplog.records if "memory" in record.message]
    assert said == ["a batch of 4 does not fit in memory: halved to 2"]  # once
    with pytest.raises(InputError, match="a batch holds 1 to 4 images, and this one 5"):
        explainer(models.pixels(5))


def test_an_image_that_does_not_fit_in_memory_alone_is_an_error():
    explainer = ex.Explainer(greedy(most=0), batch_size=1, jit=False)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        explainer(models.pixels(1))


def test_other_errors_are_not_taken_for_lack_of_memory():
    def check(x):
        with tf.control_dependencies([tf.debugging.assert_less(x, 9.0)]):
            return tf.identity(x)

    explainer = ex.Explainer(models.gap_dense(), batch_size=4, preprocess=check, jit=False, fold=False)
    with pytest.raises(tf.errors.InvalidArgumentError):
        explainer(np.full((2, 8, 8, 3), 200, np.uint8))
    assert explainer.batch_size == 4

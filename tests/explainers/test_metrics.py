"""Metrics are what their papers define: by hand, against slow definitions, and by what must not matter."""

import csv
import itertools
import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import explainers as ex
from explainers.errors import InputError, ModelError
from explainers.metrics import (
    blur,
    component_boxes,
    confidence_change,
    deletion,
    deletion_curves,
    energy_in_box,
    faithfulness,
    insertion,
    insertion_curves,
    max_box_acc_v2,
    pointing_game,
    randomization,
    randomization_check,
    spearman,
    ssim,
    top_k_overlap,
)
from tests import models

LN3 = np.log(3.0)
"""The logit of 3/4; twice it is that of 9/10."""


def linear(weights, shape=(2, 2, 1), activation=None) -> keras.Model:
    """Logits that are weighted sums of pixels: weights (pixels, L)."""
    image = keras.Input(shape, name="image")
    dense = layers.Dense(np.shape(weights)[1], use_bias=False, activation=activation, name="score")
    model = keras.Model(image, dense(layers.Flatten(name="flatten")(image)))
    dense.set_weights([np.asarray(weights, np.float32)])
    return model


def one_unit(*weights) -> keras.Model:
    """A single logit of 2 x 2 grey pixels."""
    return linear(np.reshape(weights, (4, 1)))


def as_map(*values) -> np.ndarray:
    """One map of 2 x 2 positions for one image and one unit."""
    return np.reshape(np.array(values, np.float32), (1, 2, 2, 1))


ONES = np.ones((1, 2, 2, 1), np.float32)
UNIT = np.zeros((1, 1), np.int32)


def probabilities(model, x):
    """By the model's own output, whose activation is a softmax or sigmoid."""
    return np.asarray(model(x), np.float64)


# Deletion and insertion, by hand


@pytest.mark.parametrize(
    ("steps", "want"),
    [
        (4, [0.9, 0.75, 0.5, 0.5, 0.5]),
        (2, [0.9, 0.5, 0.5]),
        (3, [0.9, 0.75, 0.5, 0.5]),  # after 0, 1, 2 and 4 pixels
        (1, [0.9, 0.5]),
        (50, [0.9, 0.75, 0.5, 0.5, 0.5]),  # no more steps than pixels
    ],
)
def test_a_deletion_curve_by_hand(steps, want):
    curves = deletion_curves(one_unit(0, LN3, 0, LN3), ONES, UNIT, as_map(1, 4, 2, 3), steps)
    np.testing.assert_allclose(curves.probabilities, [[want]], rtol=1e-6)
    deleted = {2: [0, 2, 4], 3: [0, 1, 2, 4], 1: [0, 4]}.get(steps, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(curves.fractions, np.array(deleted) / 4)


@pytest.mark.parametrize(("steps", "want"), [(4, 2.45 / 4), (2, 1.2 / 2), (3, (0.825 + 0.625) / 4 + 0.5 / 2)])
def test_the_area_under_a_deletion_curve_by_hand(steps, want):
    got = deletion(one_unit(0, LN3, 0, LN3), ONES, UNIT, as_map(1, 4, 2, 3), steps)
    assert (got.dtype, got.shape) == (tf.float32, (1, 1))
    np.testing.assert_allclose(got, [[want]], rtol=1e-6)


@pytest.mark.parametrize(
    ("steps", "want", "inserted"),
    [
        (4, [0.5, 0.75, 0.9, 0.9, 0.9], [0, 1, 2, 3, 4]),
        (3, [0.5, 0.9, 0.9, 0.9], [0, 2, 3, 4]),  # deletion's 4, 2, 1 and 0 that are left, read backwards
    ],
)
def test_an_insertion_curve_by_hand(steps, want, inserted):
    arguments = one_unit(0, LN3, 0, LN3), ONES, UNIT, as_map(1, 4, 2, 3), steps, 0.0
    curves = insertion_curves(*arguments)
    np.testing.assert_allclose(curves.probabilities, [[want]], rtol=1e-6)
    np.testing.assert_allclose(curves.fractions, np.array(inserted) / 4, rtol=1e-6)
    area = sum((a + b) / 2 * w for a, b, w in zip(want, want[1:], np.diff(inserted) / 4, strict=False))
    np.testing.assert_allclose(insertion(*arguments), [[area]], rtol=1e-6)


def test_no_order_beats_that_of_a_linear_models_own_contributions():
    weights = np.array([0.5, 2.0, -1.0, 1.0])
    model = one_unit(*weights)
    scores = {}
    for order in itertools.permutations(range(4)):
        ranking = as_map(*order)
        scores[order] = [float(f(model, ONES, UNIT, ranking, 4, 0.0)[0, 0]) for f in (deletion, insertion)]
    best = tuple(np.argsort(np.argsort(weights)))
    assert scores[best] == [min(d for d, _ in scores.values()), max(i for _, i in scores.values())]
    logits = [2.5, 0.5, -0.5, -1.0, 0.0]
    curve = 1 / (1 + np.exp(-np.array(logits)))
    np.testing.assert_allclose(scores[best][0], (curve.sum() - curve[0] / 2 - curve[-1] / 2) / 4, rtol=1e-6)


def test_of_equal_pixels_the_first_goes_first_and_last_when_the_order_is_turned_round():
    model = one_unit(LN3, LN3, 0, 0)
    first = deletion_curves(model, ONES, UNIT, as_map(7, 7, 7, 7), 4)
    last = deletion_curves(model, ONES, UNIT, as_map(7, 7, 7, 7), 4, least_first=True)
    np.testing.assert_allclose(first.probabilities[0, 0], [0.9, 0.75, 0.5, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(last.probabilities[0, 0], [0.9, 0.9, 0.9, 0.75, 0.5], rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_minus_zero_is_equal_to_zero(jit):
    ranks = tf.function(faithfulness._ranks, jit_compile=jit, autograph=False)
    np.testing.assert_array_equal(ranks(tf.constant(as_map(-0.0, 0.0, -0.0, 1.0))), [[[1, 2], [3, 0]]])


def test_a_model_that_is_always_sure_has_an_area_of_one_and_never_more():
    model = linear(np.full((64, 1), 9.0), (8, 8, 1))
    x, maps = np.ones((1, 8, 8, 1), np.float32), models.images(1, 1, (8, 8, 1))
    areas = [float(deletion(model, x, UNIT, maps, steps, baseline=1.0)[0, 0]) for steps in range(1, 65)]
    assert 1 - 1e-6 < min(areas) <= max(areas) <= 1


# Deletion and insertion, against a slow definition


def enlarge(values, size):
    """Bilinear with half-pixel centres, edges held, one axis after the other."""
    for axis in (0, 1):
        places = np.clip((np.arange(size[axis]) + 0.5) * values.shape[axis] / size[axis] - 0.5, 0, None)
        below = np.minimum(np.floor(places).astype(int), values.shape[axis] - 1)
        above = np.minimum(below + 1, values.shape[axis] - 1)
        share = (places - below).reshape([-1 if a == axis else 1 for a in (0, 1)])
        values = values.take(below, axis) * (1 - share) + values.take(above, axis) * share
    return values


def slow_curve(model, image, unit, values, steps, canvas, inserting):
    """Petsiuk et al. 2018, Sec. 4.2: pixel after pixel in the order of the map, one prediction a step."""
    height, width, _ = image.shape
    values = enlarge(values.astype(np.float64), (height, width)).reshape(-1)
    order = sorted(range(height * width), key=lambda pixel: (-values[pixel], pixel))
    current, other = (canvas.copy(), image) if inserting else (image.copy(), canvas)
    counts = [
        np.ceil(s * len(order) / steps) if inserting else np.floor(s * len(order) / steps) for s in range(steps + 1)
    ]
    curve, done = [], 0
    for count in counts:
        for pixel in order[done : int(count)]:
            current[pixel // width, pixel % width] = other[pixel // width, pixel % width]
        done = int(count)
        curve.append(probabilities(model, current[np.newaxis])[0, unit])
    area = sum((a + b) / 2 * (n - m) for a, b, m, n in zip(curve, curve[1:], counts, counts[1:], strict=False))
    return curve, area / len(order)


@pytest.mark.parametrize("steps", [5, 16])
@pytest.mark.parametrize("name", ["gap_dense", "sigmoid", "mobilenet", "nested", "one_unit", "linear_image"])
def test_curves_and_areas_are_those_of_a_slow_definition(name, steps):
    model = models.linear_image(1) if name == "linear_image" else models.CASES[name].model(1)
    x, rng = models.images(2), np.random.default_rng(steps)
    n_units = model.output_shape[-1]
    units = rng.integers(0, n_units, (2, 2))
    maps = rng.normal(size=(2, 4, 3, 2)).astype("float32")
    for curves_of, area_of, baseline in ((deletion_curves, deletion, 0.5), (insertion_curves, insertion, "blur")):
        canvas = np.asarray(blur(x)) if baseline == "blur" else np.full_like(x, baseline)
        curves = curves_of(model, x, units, maps, steps, baseline)
        areas = area_of(model, x, units, maps, steps, baseline)
        for i, k in np.ndindex(2, 2):
            inserting = curves_of is insertion_curves
            want, area = slow_curve(model, x[i], units[i, k], maps[i, ..., k], steps, canvas[i], inserting)
            np.testing.assert_allclose(curves.probabilities[i, k], want, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(areas[i, k], area, rtol=1e-4)


def test_a_curve_runs_from_the_image_to_the_baseline():
    model, x = models.gap_dense(2), models.images(3)
    maps, units = models.images(3, 5, (8, 8, 5)), np.tile(np.arange(5), (3, 1))
    deleted = deletion_curves(model, x, units, maps, 3, baseline=-1.0).probabilities
    inserted = insertion_curves(model, x, units, maps, 3).probabilities
    np.testing.assert_allclose(deleted[..., 0], probabilities(model, x), rtol=1e-5)
    np.testing.assert_allclose(deleted[..., -1], probabilities(model, np.full_like(x, -1)), rtol=1e-5)
    np.testing.assert_allclose(inserted[..., 0], probabilities(model, np.asarray(blur(x))), rtol=1e-5)
    np.testing.assert_allclose(inserted[..., -1], probabilities(model, x), rtol=1e-5)


# What must not matter to them


def gap_case(n=3, k=2, ties=True):
    model, rng = ex.expose(models.gap_dense(3)), np.random.default_rng(4)
    maps = rng.integers(-3, 4, (n, 8, 8, k)) if ties else rng.permuted(np.tile(np.arange(64), (n, k, 1)), axis=2)
    maps = maps if ties else maps.reshape(n, k, 8, 8).transpose(0, 2, 3, 1) - 30
    return model, models.images(n), rng.integers(0, 5, (n, k)), maps.astype("float32")


@pytest.mark.parametrize("steps", [4, 7, 64])
@pytest.mark.parametrize("baseline", [0.0, "blur"])
def test_deletion_in_one_order_is_insertion_in_the_opposite_order_read_backwards(steps, baseline):
    model, x, units, maps = gap_case()
    deleted = deletion_curves(model, x, units, maps, steps, baseline)
    inserted = insertion_curves(model, x, units, maps, steps, baseline, least_first=True)
    np.testing.assert_array_equal(deleted.probabilities, inserted.probabilities[..., ::-1])
    np.testing.assert_allclose(deleted.fractions, 1 - inserted.fractions[::-1], atol=1e-7)
    np.testing.assert_allclose(deleted.area(), inserted.area(), rtol=1e-6)
    model, x, units, maps = gap_case(ties=False)  # now the opposite order is that of -map
    deleted = deletion_curves(model, x, units, maps, steps, baseline)
    inserted = insertion_curves(model, x, units, -maps, steps, baseline)
    np.testing.assert_array_equal(deleted.probabilities, inserted.probabilities[..., ::-1])
    assert np.ptp(deleted.probabilities) > 0.01


@pytest.mark.parametrize("score", [deletion, insertion])
def test_a_monotone_rescaling_changes_nothing(score):
    model, x, units, maps = gap_case()
    want = score(model, x, units, maps, 9)
    for rescaled in (3 * maps - 100, np.exp(maps), maps**3, np.float64(maps) / 7):
        np.testing.assert_array_equal(score(model, x, units, rescaled, 9), want)
    assert np.abs(score(model, x, units, -maps, 9) - want).max() > 1e-3
    small = np.random.default_rng(0).normal(size=(3, 3, 4, 2)).astype("float32")
    np.testing.assert_array_equal(score(model, x, units, 1024 * small, 9), score(model, x, units, small, 9))


def count_passes(monkeypatch):
    shapes, real = [], faithfulness._probabilities

    def probabilities_of(exposed, images, units):
        shapes.append(tuple(images.shape))
        return real(exposed, images, units)

    monkeypatch.setattr(faithfulness, "_probabilities", probabilities_of)
    return shapes


@pytest.mark.parametrize("max_rows", [1, 5, 1000])
def test_passes_have_one_shape_of_at_most_max_rows_and_their_size_changes_nothing(max_rows, monkeypatch):
    model, x, units, maps = gap_case()
    want = [deletion(model, x, units, maps, 9), *confidence_change(model, x, units, maps)]
    shapes = count_passes(monkeypatch)
    got = [deletion(model, x, units, maps, 9, max_rows=max_rows)]
    assert set(shapes) == {(min(max_rows, 60), 8, 8, 3)}  # 3 images, 2 units and 10 points of a curve
    assert len(shapes) == -(-60 // max_rows)
    shapes.clear()
    got += confidence_change(model, x, units, maps, max_rows=max_rows)
    assert set(shapes) == {(min(max_rows, 12), 8, 8, 3)}
    for some, all_at_once in zip(got, want, strict=True):
        np.testing.assert_allclose(some, all_at_once, rtol=1e-5, atol=1e-6)


def test_an_image_is_scored_without_regard_to_its_batch():
    model, x, units, maps = gap_case(4)
    for score in (deletion, insertion, lambda *args: tf.stack(confidence_change(*args), -1)):
        together = score(model, x, units, maps)
        for i in range(4):
            alone = score(model, x[i : i + 1], units[i : i + 1, 1:], maps[i : i + 1, ..., 1:])
            np.testing.assert_allclose(alone[0, 0], together[i, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_a_program_computes_what_eager_calls_do(jit):
    model, x, units, maps = gap_case()

    def score(images, units, maps):
        areas = deletion(model, images, units, maps, 9), insertion(model, images, units, maps, 9, max_rows=7)
        return (*areas, *confidence_change(model, images, units, maps))

    program = tf.function(score, jit_compile=jit, autograph=False)
    got = program(*(tf.constant(values) for values in (x, units, maps)))
    for some, eager in zip(got, score(x, units, maps), strict=True):
        assert some.dtype == tf.float32
        np.testing.assert_allclose(some, eager, rtol=1e-4, atol=1e-6)


def test_no_units_are_all_units():
    model, x = models.gap_dense(), models.images(2)
    maps = models.images(2, 7, (4, 4, 5))
    want = deletion(model, x, np.tile(np.arange(5), (2, 1)), maps, 4)
    np.testing.assert_array_equal(deletion(model, x, None, maps, 4), want)
    program = tf.function(lambda images: deletion(model, images, None, maps, 4), autograph=False)
    np.testing.assert_allclose(program(tf.constant(x)), want, rtol=1e-5)


def test_a_model_that_reads_bytes_is_scored_like_one_that_reads_floats():
    bytes_model, floats_model = models.byte_input(1), models.rescaling_first(1)
    x, maps, units = models.pixels(2), models.images(2, 3, (8, 8, 1)), [[1], [4]]
    for score, baseline in ((deletion, 127), (insertion, 0)):
        want = score(floats_model, x.astype("float32"), units, maps, 8, baseline)
        np.testing.assert_allclose(score(bytes_model, x, units, maps, 8, baseline), want, rtol=1e-6)


def test_half_precision_models_give_single_precision_scores():
    x, maps, units = models.images(2), models.images(2, 3, (8, 8, 1)), [[1], [4]]
    half, single = models.mixed_float16(1), models.gap_dense(1)
    for score in (deletion, insertion):
        got = score(half, x, units, maps, 8)
        assert got.dtype == tf.float32
        np.testing.assert_allclose(got, score(single, x, units, maps, 8), rtol=0.01)


# Baselines


def test_a_baseline_may_be_a_number_a_colour_an_image_or_one_image_each():
    model, x, units, maps = gap_case()
    colour, image = np.array([0.5, -1.0, 2.0]), models.images(1, 9)[0]
    for small, full in ((0.25, np.full_like(x, 0.25)), (colour, x * 0 + colour), (image, x * 0 + image)):
        np.testing.assert_array_equal(
            deletion(model, x, units, maps, 4, small), deletion(model, x, units, maps, 4, full)
        )
    each = deletion(model, x, units, maps, 4, x[::-1])
    alone = deletion(model, x[:1], units[:1], maps[:1], 4, x[-1])
    np.testing.assert_allclose(each[:1], alone, rtol=1e-5)
    assert np.abs(each - deletion(model, x, units, maps, 4, 0.25)).max() > 1e-3


def test_deletion_falls_to_grey_and_insertion_rises_from_the_blurred_image_unless_told():
    model, x, units, maps = gap_case()
    np.testing.assert_array_equal(deletion(model, x, units, maps), deletion(model, x, units, maps, 50, 0.0))
    np.testing.assert_array_equal(insertion(model, x, units, maps), insertion(model, x, units, maps, 50, blur(x)))


@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_a_blur_is_a_mean_under_a_gaussian_of_the_pixels_that_there_are(sigma):
    x = models.images(1, 2, (4, 6, 2))
    want = np.zeros_like(x, np.float64)
    for i, j in np.ndindex(4, 6):
        weights = [[np.exp(-((i - a) ** 2 + (j - b) ** 2) / (2 * sigma**2)) for b in range(6)] for a in range(4)]
        want[0, i, j] = np.tensordot(weights, x[0], 2) / np.sum(weights)
    np.testing.assert_allclose(blur(x, sigma), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(blur(np.full((1, 5, 5, 1), 3, np.uint8), sigma), 3, rtol=1e-6)


# Drop and increase in confidence


@pytest.mark.parametrize(
    ("weights", "values", "left", "drop", "increase"),
    [
        ((LN3, LN3, 0, 0), (1, 0, 0, 0), 0.75, 1 / 6, 0),
        ((LN3, LN3, 0, 0), (9, 0, -9, 0), 0.75, 1 / 6, 0),  # only the positive part, over its maximum
        ((LN3, LN3, 0, 0), (4, 2, 0, 0), None, 1 - 27**0.5 / (1 + 27**0.5) / 0.9, 0),
        ((LN3, -LN3, 0, 0), (2, -5, 0, 0), 0.75, 0, 1),
        ((LN3, LN3, 0, 0), (-1, -2, 0, -1), 0.5, 4 / 9, 0),  # nothing positive: nothing is left
        ((LN3, LN3, 0, 0), (5, 5, 5, 5), 0.9, 0, 0),  # all is left: neither drop nor increase
        ((-200.0, 0, 0, 0), (0, 0, 0, 0), 0.5, 0, 1),  # a probability of zero cannot drop
    ],
)
def test_drop_and_increase_by_hand(weights, values, left, drop, increase):
    got = confidence_change(one_unit(*weights), ONES, UNIT, as_map(*values))
    np.testing.assert_allclose(got.drop, [[drop]], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(got.increase, [[increase]])


def test_where_the_map_is_zero_the_image_fades_to_the_baseline():
    model = one_unit(LN3, LN3, 0, 0)  # 1/2 of the first pixel is left, and half of a baseline of -1 comes in
    got = confidence_change(model, ONES, UNIT, as_map(1, 2, 0, 0), baseline=-1.0)
    np.testing.assert_allclose(got.drop, [[0.15 / 0.9]], rtol=1e-5)


def test_each_unit_has_its_own_map_and_its_own_confidence():
    model, x = models.gap_dense(5), models.images(3)
    units, maps = np.array([[4, 0], [1, 1], [2, 3]]), np.maximum(models.images(3, 4, (8, 8, 2)), 0)
    got = confidence_change(model, x, units, maps)
    for i, k in np.ndindex(3, 2):
        strength = maps[i, ..., k] / maps[i, ..., k].max()
        y, o = (probabilities(model, image[np.newaxis])[0, units[i, k]] for image in (x[i], x[i] * strength[..., None]))
        np.testing.assert_allclose(got.drop[i, k], max(0, y - o) / y, rtol=1e-4, atol=1e-6)
        assert got.increase[i, k] == (o > y)
    assert len(np.unique(got.increase)) == 2


def test_raw_maps_and_those_that_are_post_processed_leave_the_same_of_an_image():
    model, x = models.gap_dense(5), models.images(2)
    units, raw = np.array([[1], [2]]), models.images(2, 6, (3, 4, 1))
    shown = np.stack([enlarge(np.maximum(values, 0), (8, 8)) / 7 for values in raw[..., 0]])[..., np.newaxis]
    for got, want in zip(*(confidence_change(model, x, units, maps) for maps in (raw, shown)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


# What does not fit is refused


WRONG = {
    "flat maps": ({"maps": np.zeros((3, 8, 8))}, r"\(3, h, w, 2\), and have the shape \(3, 8, 8\)"),
    "maps of another batch": ({"maps": np.zeros((2, 8, 8, 2))}, r"each of 3 images and 2 units"),
    "maps of other units": ({"maps": np.zeros((3, 8, 8, 1))}, r"each of 3 images and 2 units"),
    "no positions": ({"maps": np.zeros((3, 0, 8, 2))}, r"have the shape \(3, 0, 8, 2\)"),
    "images of another size": ({"inputs": np.zeros((3, 9, 8, 3))}, r"\('N', 8, 8, 3\), and inputs have \(3, 9, 8, 3\)"),
    "one image alone": ({"inputs": np.zeros((8, 8, 3))}, "inputs have"),
    "no images": ({"inputs": np.zeros((0, 8, 8, 3))}, "at least one image"),
    "units of another batch": ({"indices": [[1, 2]]}, r"\(3, K\), and have the shape \(1, 2\)"),
    "a unit that is not there": ({"indices": [[1, 5], [0, 0], [0, 0]]}, "units 0 to 4, and one asked for is 5"),
    "a negative unit": ({"indices": [[1, -1], [0, 0], [0, 0]]}, "units 0 to 4, and one asked for is -1"),
    "real units": ({"indices": np.zeros((3, 2))}, "units are integers, and these are float64"),
    "an unknown baseline": ({"baseline": "grey"}, "a number, an array or 'blur', not 'grey'"),
    "a baseline of another size": ({"baseline": np.zeros((4, 4, 3))}, r"broadcasts .* has the shape \(4, 4, 3\)"),
    "no rows": ({"max_rows": 0}, "max_rows is an integer of at least 1, not 0"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("score", [deletion, insertion, confidence_change])
def test_what_does_not_fit_is_refused(score, case):
    changed, text = WRONG[case]
    model, x, units, maps = gap_case()
    with pytest.raises(InputError, match=text):
        score(**{"model": model, "inputs": x, "indices": units, "maps": maps, **changed})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_map_that_is_not_finite_is_refused_and_is_nan_in_a_program(value):
    model, x, units, maps = gap_case()
    finite = [deletion(model, x, units, maps, 4), *confidence_change(model, x, units, maps)]
    maps[1, 2, 3, 0] = value
    for score in (deletion, insertion, confidence_change):
        with pytest.raises(InputError, match=rf"has {value} at \(1, 2, 3, 0\), the first of 1"):
            score(model, x, units, maps)
    program = tf.function(lambda m: (deletion(model, x, units, m, 4), *confidence_change(model, x, units, m)))
    for got, want in zip(program(tf.constant(maps)), finite, strict=True):
        assert np.isnan(got[1, 0])
        others = np.arange(6) != 2
        np.testing.assert_allclose(got.numpy().reshape(-1)[others], want.numpy().reshape(-1)[others], rtol=1e-5)


@pytest.mark.parametrize("steps", [0, 2.0])
def test_a_number_of_steps_that_is_none_is_refused(steps):
    with pytest.raises(InputError, match=f"steps is an integer of at least 1, not {steps}"):
        deletion(*gap_case(), steps)


def test_models_that_do_not_read_one_image_are_refused():
    for model, shapes in ((models.mlp(), r"\(None, 6\)"), (models.conv1d(), r"\(None, 12, 2\)")):
        with pytest.raises(InputError, match=f"one input .N, H, W, C., and this one reads {shapes}"):
            deletion(model, models.inputs_of(model, 1), UNIT, ONES)


def test_a_program_with_an_open_batch_is_refused():
    model, _, units, maps = gap_case()
    program = tf.function(
        lambda images: deletion(model, images, units, maps), input_signature=[tf.TensorSpec((None, 8, 8, 3))],
        autograph=False,
    )  # fmt: skip
    with pytest.raises(InputError, match="an input_signature that leaves nothing open"):
        program.get_concrete_function()


# Localisation


@pytest.mark.parametrize(
    ("boxes", "tolerance", "hit"),
    [
        ([[2, 1, 1, 1]], 0, True),
        ([[0, 0, 2, 3]], 0, False),
        ([[0, 0, 2, 3]], 0.5, True),  # the box ends at x = 2, the maximum's centre is at 2.5
        ([[0, 0, 2, 3]], 0.49, False),
        ([[0, 0, 1, 1], [2, 0, 2, 2]], 0, True),  # any box
        ([[0, 2, 2, 1]], 0.7, False),  # half a pixel beside and half a pixel below: Euclid, not squares
        ([[0, 2, 2, 1]], 0.71, True),
        ([[1, 0, 1.5, 1.5]], 0, True),  # on the corner
        ([[1, 2, 2, 1]], 0, False),  # x and y, not row and column
    ],
)
def test_the_pointing_game_by_hand(boxes, tolerance, hit):
    values = np.array([[0, 1, 2, 0], [0, -9, 5, 1], [4, 0, 0, 3]])
    assert pointing_game(values, boxes, tolerance) is hit


def test_the_pointing_game_takes_the_first_maximum_and_a_constant_map_points_nowhere():
    values = np.array([[0, 7.0], [7, 0]])
    assert pointing_game(values, [[1, 0, 1, 1]])
    assert not pointing_game(values, [[0, 1, 1, 1]])
    assert not pointing_game(np.zeros((2, 2)), [[0, 0, 2, 2]])
    assert pointing_game(np.array([[-2.0, -1], [-3, -4]]), [[1, 0, 1, 1]])


@pytest.mark.parametrize(
    ("boxes", "want"),
    [
        ([[0, 0, 1, 1]], 1 / 6),
        ([[0, 0, 2, 2]], 1),
        ([[0.5, 0, 1, 1]], 1.5 / 6),  # half of each of two pixels
        ([[0, 0, 1, 2], [0, 0, 1, 1]], 4 / 6),  # overlapping boxes count once
        ([[0, 0, 1, 0.5], [0, 0.25, 1, 0.75]], 1 / 6),
        ([[0, 0, 1, 1], [1, 0, 1, 1]], 3 / 6),
        ([[1, 1, 1, 1]], 0),  # only the positive part
        ([[0, 1, 2, 1]], 3 / 6),
    ],
)
def test_energy_in_boxes_by_hand(boxes, want):
    assert energy_in_box(np.array([[1.0, 2], [3, -4]]), boxes) == pytest.approx(want, rel=1e-12)


def test_the_energy_of_a_map_wholly_inside_is_one_and_without_a_positive_part_it_is_zero():
    values = np.zeros((6, 7))
    values[2:4, 3:5] = np.random.default_rng(0).random((2, 2))
    assert energy_in_box(values, [[3, 2, 2, 2]]) == 1
    assert energy_in_box(values, [[2.7, 1.9, 2.31, 2.2]]) == pytest.approx(1, abs=1e-12)
    assert energy_in_box(values, [[0, 0, 3, 6]]) == 0
    assert energy_in_box(-values, [[0, 0, 7, 6]]) == 0


@pytest.mark.parametrize("seed", range(3))
def test_energy_in_boxes_is_that_of_a_finer_grid(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(4, 6))
    low = rng.integers(0, [20, 12], (3, 2))
    size = rng.integers(1, np.minimum([24, 16] - low, 9), (3, 2))
    inside = np.zeros((16, 24), bool)
    for (x, y), (w, h) in zip(low, size, strict=True):
        inside[y : y + h, x : x + w] = True
    fine = np.maximum(values, 0).repeat(4, 0).repeat(4, 1)
    boxes = np.concatenate([low, size], axis=1) / 4
    assert energy_in_box(values, boxes) == pytest.approx(fine[inside].sum() / fine.sum(), rel=1e-9)
    assert energy_in_box(np.full((4, 6), 3.0), boxes) == pytest.approx(inside.mean(), rel=1e-9)


def flood(mask):
    """The boxes of components, pixel by pixel."""
    seen, boxes = set(), []
    for start in zip(*np.nonzero(mask), strict=True):
        if start in seen:
            continue
        todo, members = [start], {start}
        while todo:
            i, j = todo.pop()
            near = {(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)}
            new = {p for p in near - members if 0 <= p[0] < mask.shape[0] and 0 <= p[1] < mask.shape[1] and mask[p]}
            members |= new
            todo += new
        seen |= members
        rows, columns = zip(*members, strict=True)
        boxes.append([min(columns), min(rows), np.ptp(columns) + 1, np.ptp(rows) + 1])
    return np.reshape(boxes, (-1, 4))


def spiral(size):
    mask = np.zeros((size, size), bool)
    i, j, di, dj = 0, 0, 0, 1
    mask[0, 0] = True
    for length in [size - 1] * 3 + [n for m in range(size - 3, 0, -2) for n in (m, m)]:
        for _ in range(length):
            i, j = i + di, j + dj
            mask[i, j] = True
        di, dj = dj, -di
    return mask


@pytest.mark.parametrize("density", [0.0, 0.1, 0.3, 0.45, 0.6, 1.0])
def test_components_are_those_of_a_flood(density):
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 9), (9, 1), (13, 17), (30, 30)):
        mask = rng.random(shape) < density
        np.testing.assert_array_equal(component_boxes(mask), flood(mask))


def test_diagonal_neighbours_belong_together_and_a_spiral_is_one_component():
    np.testing.assert_array_equal(component_boxes(np.eye(5, dtype=bool)), [[0, 0, 5, 5]])
    np.testing.assert_array_equal(component_boxes(np.eye(4, dtype=bool)[:, ::-1]), [[0, 0, 4, 4]])
    np.testing.assert_array_equal(component_boxes(np.array([[True, False, True]])), [[0, 0, 1, 1], [2, 0, 1, 1]])
    mask = spiral(21)
    assert len(flood(mask)) == 1
    np.testing.assert_array_equal(component_boxes(mask), [[0, 0, 21, 21]])


def indicator(box, shape=(8, 9)):
    x, y, w, h = box
    values = np.zeros(shape)
    values[y : y + h, x : x + w] = 1
    return values


def test_the_box_itself_as_a_map_is_boxed_right():
    boxes = [(1, 2, 3, 4), (0, 0, 1, 1), (5, 3, 4, 5)]
    maps = [indicator(box) for box in boxes]
    assert max_box_acc_v2(maps, [[box] for box in boxes]) == 1
    assert max_box_acc_v2([-5 + 3 * values for values in maps], [[box] for box in boxes]) == 1
    assert max_box_acc_v2(maps, [[(6, 0, 1, 1)]] * 3) == 0


def test_max_box_acc_v2_averages_over_the_bounds():
    maps = [indicator((0, 0, 4, 2)), indicator((0, 0, 4, 2))]
    assert max_box_acc_v2(maps, [[(0, 0, 4, 2)], [(0, 0, 4, 4)]]) == pytest.approx((1 + 1 + 0.5) / 3)  # IoU 1 and 0.5
    assert max_box_acc_v2(maps, [[(0, 0, 4, 2)], [(2, 0, 4, 2)]]) == pytest.approx((1 + 0.5 + 0.5) / 3)  # IoU 1, 1/3
    assert max_box_acc_v2(maps, [[(0, 0, 4, 2)], [(2, 0, 4, 2)]], ious=[0.3]) == 1


def test_the_box_of_every_component_is_tried_against_every_box():
    values = indicator((0, 0, 5, 3)) + indicator((7, 6, 2, 2))  # the object's is the smaller one
    assert max_box_acc_v2([values], [[(7, 6, 2, 2)]]) == 1
    assert max_box_acc_v2([values], [[(3, 5, 1, 1), (7, 6, 2, 2)]]) == 1


def test_one_threshold_serves_all_images_and_each_bound_has_its_own():
    a, b = np.zeros((2, 10)), np.zeros((2, 10))
    a[0], b[0] = 0.4, 0.4
    a[0, :6] = 1  # at 0.3 all ten columns, IoU 0.6; at 0.6 the object
    b[0, 9] = 1  # at 0.3 all ten columns, IoU 0.6; at 0.6 another place
    box = [(0, 0, 6, 1)]
    assert max_box_acc_v2([a, b], [box, box], thresholds=[0.3]) == pytest.approx(2 / 3)
    assert max_box_acc_v2([a, b], [box, box], thresholds=[0.6]) == pytest.approx(1 / 2)
    assert max_box_acc_v2([a, b], [box, box], thresholds=[0.3, 0.6]) == pytest.approx((1 + 1 + 0.5) / 3)
    assert max_box_acc_v2([a, b], [box, box]) == pytest.approx((1 + 1 + 0.5) / 3)


def test_a_pixel_that_is_as_strong_as_the_threshold_is_in():
    values = np.array([[1.0, 0.5, 0.0, 0.0]])
    assert max_box_acc_v2([values], [[(0, 0, 2, 1)]], thresholds=[0.5]) == 1
    assert max_box_acc_v2([values], [[(0, 0, 2, 1)]], thresholds=[0.51], ious=[0.7]) == 0


@pytest.mark.parametrize("seed", range(3))
def test_max_box_acc_v2_is_that_of_a_slow_definition(seed):
    rng = np.random.default_rng(seed)
    maps = [enlarge(rng.normal(size=(4, 4)), (12, 15)) for _ in range(6)]
    boxes = [np.array([[2.5, 1, 6, 7.25], [0, 8, 4, 3]])[: 1 + i % 2] for i in range(6)]
    thresholds, accuracies = np.arange(100) / 100, []
    for bound in (0.3, 0.5, 0.7):
        hits = np.zeros((100, 6))
        for i, (values, own) in enumerate(zip(maps, boxes, strict=True)):
            stretched = (values - values.min()) / (values.max() - values.min())
            for t, threshold in enumerate(thresholds):
                hits[t, i] = max(overlap(a, b) for a in flood(stretched >= threshold) for b in own) >= bound
        accuracies.append(hits.mean(axis=1).max())
    got = max_box_acc_v2(maps, boxes)
    assert got == pytest.approx(np.mean(accuracies))
    assert 0 < got < 1


def overlap(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(0, width) * max(0, height)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def test_boxes_may_step_out_by_a_hair():
    values = indicator((0, 0, 9, 8))
    box = [[-1e-4, 0, 9.0002, 8]]
    assert (pointing_game(values + np.eye(8, 9), box), energy_in_box(values, box)) == (True, 1)


@pytest.mark.parametrize(
    "metric", [pointing_game, energy_in_box, lambda values, boxes: max_box_acc_v2([values], [boxes])]
)
@pytest.mark.parametrize(
    ("values", "boxes", "text"),
    [
        (np.ones((2, 3)), [[1, 0, 2.1, 1]], r"inside the map, 3 wide and 2 high, .*: \[1.0, 0.0, 2.1, 1.0\] does not"),
        (np.ones((2, 3)), [[0, 0, 1, 1], [-0.1, 0, 1, 1]], r"\[-0.1, 0.0, 1.0, 1.0\] does not"),
        (np.ones((2, 3)), [[0, 1, 1, 2]], "3 wide and 2 high"),
        (np.ones((2, 3)), [[0, 0, 0, 1]], "has a size"),
        (np.ones((2, 3)), [[0, 0, np.nan, 1]], "nan, 1.0. does not"),
        (np.ones((2, 3)), [0, 0, 1, 1], r"\(B, 4\), x, y, w, h, with at least one box, and these \(4,\)"),
        (np.ones((2, 3)), np.zeros((0, 4)), r"at least one box, and these \(0, 4\)"),
        (np.ones((1, 2, 3)), [[0, 0, 1, 1]], r"shape \(h, w\), and this one \(1, 2, 3\): .* maps\[i, ..., k\]"),
        (np.ones((0, 3)), [[0, 0, 1, 1]], r"shape \(h, w\), and this one \(0, 3\)"),
        (np.array([[0, np.nan]]), [[0, 0, 1, 1]], r"a map is finite, and this one has nan at \(0, 1\)"),
    ],
)
def test_maps_and_boxes_that_do_not_fit_are_refused(metric, values, boxes, text):
    with pytest.raises(InputError, match=text):
        metric(values, boxes)


def test_boxes_for_another_number_of_maps_are_refused():
    for maps in ([], [np.eye(3)]):
        with pytest.raises(InputError, match=f"here are {len(maps)} maps and boxes for {2 * len(maps)}"):
            max_box_acc_v2(maps, [[[0, 0, 1, 1]]] * (2 * len(maps)))


# Similarity


def slow_spearman(a, b):
    """Pearson's correlation of ranks: how many are below, and the middle of those that are equal."""
    ranks = [[sum(w < v for w in c) + (sum(w == v for w in c) + 1) / 2 for v in c] for c in (np.ravel(a), np.ravel(b))]
    (x, y), n = ranks, len(ranks[0])
    mx, my = sum(x) / n, sum(y) / n
    covariance = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
    return covariance / (sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y)) ** 0.5


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        ([1, 2, 3], [1, 3, 2], 0.5),
        ([1, 1, 2], [1, 2, 3], 0.75**0.5),
        ([5, 5, 5], [1, 2, 3], 0.0),
        ([5, 5, 5], [5, 5, 5], 0.0),
        ([0.0, -0.0, 1], [3, 3, 4], 1.0),
    ],
)
def test_spearman_by_hand(a, b, want):
    assert spearman(np.array(a), np.array(b)) == pytest.approx(want)


@pytest.mark.parametrize("seed", range(3))
def test_spearman_is_that_of_a_slow_definition(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, (2, 4, 9)).astype(float)
    assert spearman(a, b) == pytest.approx(slow_spearman(a, b), rel=1e-12)


def test_spearman_sees_the_order_and_nothing_else():
    a, b = np.random.default_rng(1).normal(size=(2, 7, 7))
    want = spearman(a, b)
    assert spearman(np.exp(a), b**3) == pytest.approx(want, rel=1e-12)
    assert spearman(b, a) == pytest.approx(want, rel=1e-12)
    assert spearman(a, -b) == pytest.approx(-want, rel=1e-12)
    assert (spearman(a, a**3), spearman(a, -a)) == (1, -1)


def slow_ssim(a, b):
    """Wang et al. 2004, Eq. 13 at every place where the window fits, and their mean, Eq. 17."""
    a, b = ((np.float64(v) - v.min()) / (v.max() - v.min()) for v in (a, b))
    sizes = [min(11, size if size % 2 else size - 1) for size in a.shape]
    window = np.array(
        [
            [np.exp(-((i - sizes[0] // 2) ** 2 + (j - sizes[1] // 2) ** 2) / 4.5) for j in range(sizes[1])]
            for i in range(sizes[0])
        ]
    )
    window /= window.sum()
    values = []
    for i, j in np.ndindex(a.shape[0] - sizes[0] + 1, a.shape[1] - sizes[1] + 1):
        x, y = (v[i : i + sizes[0], j : j + sizes[1]] for v in (a, b))
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy, vxy = (
            (window * (x - mx) ** 2).sum(),
            (window * (y - my) ** 2).sum(),
            (window * (x - mx) * (y - my)).sum(),
        )
        values.append((2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return np.mean(values)


@pytest.mark.parametrize("shape", [(11, 11), (16, 13), (12, 30), (7, 7), (10, 5), (8, 20), (2, 3)])
def test_ssim_is_that_of_a_slow_definition(shape):
    a, b = np.random.default_rng(2).normal(size=(2, *shape))
    b += a
    assert ssim(a, b) == pytest.approx(slow_ssim(a, b), rel=1e-9)
    if min(shape) >= 11:
        pictures = [tf.constant(((v - v.min()) / np.ptp(v))[..., np.newaxis], tf.float32) for v in (a, b)]
        assert ssim(a, b) == pytest.approx(float(tf.image.ssim(*pictures, max_val=1.0)), abs=1e-5)


def test_ssim_by_hand_where_the_window_is_one_pixel():
    a, b = np.array([[0, 1.0], [0, 1]]), np.array([[0, 5.0], [5, 0]])
    assert ssim(a, b) == pytest.approx((1 + 1 + 2 * 1e-4 / (1 + 1e-4)) / 4, rel=1e-12)


def test_ssim_of_equal_maps_is_one_whatever_their_scale():
    for shape in ((14, 14), (7, 7), (9,), (3, 12, 13)):
        a = np.random.default_rng(3).normal(size=shape)
        assert ssim(a, a) == pytest.approx(1, abs=1e-12)
        assert ssim(a, 5 * a - 3) == pytest.approx(1, abs=1e-9)
        assert ssim(a, -a) < 0.9
    assert ssim(np.ones((4, 4)), np.full((4, 4), 7.0)) == 1


@pytest.mark.parametrize(
    ("a", "b", "fraction", "want"),
    [
        ([9, 8, 7, 1, 0], [9, 0, 8, 1, 7], 0.6, 2 / 3),  # over k, not over the union
        ([9, 8, 7, 1, 0], [9, 0, 8, 1, 7], 0.4, 1 / 2),
        ([9, 8, 7, 1, 0], [0, 1, 7, 8, 9], 0.2, 0),
        ([9, 8, 7, 1, 0], [0, 1, 7, 8, 9], 0.01, 0),  # at least one
        ([5, 5, 5, 5, 5], [9, 8, 0, 0, 0], 0.4, 1),  # of equal values the first
        ([5, 5, 5, 5, 5], [0, 0, 0, 8, 9], 0.4, 0),
        ([-1, -2, -3, -4, -5], [9, 8, 0, 0, 0], 0.4, 1),  # values, not magnitudes
        ([9, 8, 7, 1, 0], [0, 1, 7, 8, 9], 1.0, 1),
    ],
)
def test_top_k_overlap_by_hand(a, b, fraction, want):
    assert top_k_overlap(np.array(a), np.array(b), fraction) == pytest.approx(want)


def test_the_strongest_tenth_is_compared_unless_told():
    a = np.arange(100).reshape(10, 10)
    b = a.copy()
    b[-1, -3:] = 0
    assert top_k_overlap(a, b) == 0.7


@pytest.mark.parametrize("similarity", [spearman, ssim, top_k_overlap])
def test_maps_that_cannot_be_compared_are_refused(similarity):
    with pytest.raises(InputError, match=r"have one shape, and these have \(2, 2\) and \(4,\)"):
        similarity(np.zeros((2, 2)), np.zeros(4))
    with pytest.raises(InputError, match=r"have one shape, and these have \(0,\) and \(0,\)"):
        similarity(np.zeros(0), np.zeros(0))
    with pytest.raises(InputError, match=r"has inf at \(1,\)"):
        similarity(np.zeros(2), np.array([0, np.inf]))


@pytest.mark.parametrize("fraction", [0, 1.1])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(InputError, match=rf"lies in \(0, 1\], not {fraction}"):
        top_k_overlap(np.eye(2), np.eye(2), fraction)


# Dependence on what was learned


def seeded(kind="gap") -> keras.Model:
    """A model whose initialisers have seeds of their own: to build it again is to draw its weights anew."""
    image = keras.Input((8, 8, 3), name="image")
    start = {f"start{i}": keras.initializers.GlorotUniform(seed=i) for i in range(3)}
    x = layers.Conv2D(4, 3, padding="same", kernel_initializer=start["start0"], name="conv1")(image)
    x = layers.ReLU(name="relu1")(layers.BatchNormalization(name="bn1")(x))
    x = layers.Conv2D(6, 3, kernel_initializer=start["start1"], activation="relu", name="conv2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x) if kind == "gap" else layers.Flatten(name="flatten")(x)
    return keras.Model(
        image, layers.Dense(5, "softmax", kernel_initializer=start["start2"], name="fc")(x), name="seeded"
    )


FROM_THE_TOP = ["fc", "conv2", "bn1", "conv1"]
ALIKE = ("spearman", "spearman_absolute", "ssim")


def raw_maps(model, x, units, method="gradcam"):
    return ex.explain(method, model, x, units, postprocessing=None, resizing=None)[1]


def similarities(first, second):
    pairs = [(first[i, ..., k], second[i, ..., k]) for i, k in np.ndindex(len(first), first.shape[-1])]
    return [
        np.mean([spearman(a, b) for a, b in pairs]),
        np.mean([spearman(abs(a), abs(b)) for a, b in pairs]),
        np.mean([ssim(a, b) for a, b in pairs]),
    ]


@pytest.mark.parametrize("mode", ["cascade", "independent", "all"])
@pytest.mark.parametrize("kind", ["gap", "flatten"])
def test_a_randomised_layer_is_as_it_was_before_training(mode, kind):
    trained, fresh = models.randomize(seeded(kind), 1), seeded(kind)
    x, units = models.images(3), np.array([[0, 1], [2, 2], [4, 3]])
    maps = raw_maps(trained, x, units)
    records = randomization_check("gradcam", trained, x, units, layers=mode)
    sets = {"cascade": [FROM_THE_TOP[: i + 1] for i in range(4)], "independent": [[name] for name in FROM_THE_TOP]}
    sets = sets.get(mode, [FROM_THE_TOP])
    assert [record.layer for record in records] == (["all"] if mode == "all" else FROM_THE_TOP)
    for names, record in zip(sets, records, strict=True):
        mixed = keras.models.clone_model(trained)
        for layer in mixed.layers:
            source = fresh if layer.name in names else trained
            layer.set_weights(source.get_layer(layer.name).get_weights())
        want = similarities(maps, raw_maps(mixed, x, units))
        np.testing.assert_allclose([getattr(record, name) for name in ALIKE], want, atol=2e-3)
    assert max(abs(record.spearman) for record in records) < 0.999


def test_the_model_and_pythons_randomness_are_left_as_they_were():
    model, x = models.nested(2), models.images(2)
    weights, exposed, state = model.get_weights(), ex.expose(model), random.getstate()
    want = np.asarray(model(x))
    for mode in ("cascade", "independent", "all"):
        randomization_check("gradcam", exposed, x, layers=mode)
    assert random.getstate() == state
    for before, now in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(now, before)
    np.testing.assert_array_equal(model(x), want)
    assert all(len(layer._inbound_nodes) == 1 for layer in model.layers)


def test_cascade_and_independent_begin_alike_and_cascade_ends_with_all():
    model, x = models.residual(1), models.images(2)
    exposed, units = ex.expose(model, "branch_out"), np.array([[1], [3]])  # a signal inside a residual branch
    runs = {m: randomization_check("gradcam", exposed, x, units, layers=m, seed=4) for m in ("cascade", "independent")}
    (everything,) = randomization_check("gradcam", exposed, x, units, layers="all", seed=4)
    assert runs["cascade"][0] == runs["independent"][0]
    assert [getattr(runs["cascade"][-1], name) for name in ALIKE] == [getattr(everything, name) for name in ALIKE]
    names = ["predictions", "last_bn", "last_conv", "branch_bn", "branch_conv", "stem_bn", "stem_conv"]
    assert [record.layer for record in runs["cascade"]] == names


def test_weights_follow_from_the_seed():
    model, x = models.gap_dense(1), models.images(2)
    first, again, other = (randomization_check("gradcam", model, x, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def shows_the_image(model, inputs, indices=None, part=1.0):
    """A method that passes every test but this one."""
    logits, maps = ex.METHODS["gradients"].function(model, inputs, indices)
    return logits, part * tf.reduce_sum(inputs, axis=-1, keepdims=True) + (1 - part) * maps


def test_a_method_that_shows_the_image_is_found_out():
    arguments = shows_the_image, models.gap_dense(), models.images(3), np.ones((3, 2), int)
    records = randomization_check(*arguments)
    assert len(records) == 5
    for record in records:
        assert [getattr(record, name) for name in ALIKE] == pytest.approx([1, 1, 1])
    assert all(record.spearman < 0.9 for record in randomization_check(*arguments, part=0.0))


def test_every_image_is_asked_for_its_predicted_unit_unless_told():
    model, x = models.mobilenet(1), 3 * models.images(4, 3)
    best = np.argmax(probabilities(model, x), axis=1)[:, np.newaxis]
    assert len(set(best.ravel())) > 1
    want = randomization_check("gradcam", model, x, best, layers="all")
    assert randomization_check("gradcam", model, x, layers="all", batch_size=3) == want


def test_layers_that_standardise_the_input_are_kept_and_shared_ones_count_once():
    image = keras.Input((8, 8, 3), name="image")
    conv = layers.Conv2D(3, 3, padding="same", activation="relu", name="conv")
    x = layers.Normalization(mean=[1.0, 2, 3], variance=[4.0, 5, 6], name="standardise")(image)
    adapted = layers.Normalization(name="adapted")
    adapted.adapt(models.images(4))
    x = layers.GlobalAveragePooling2D(name="pool")(conv(conv(adapted(x))))
    model = keras.Model(image, layers.Dense(5, name="fc")(x))
    records = randomization_check("gradcam", model, models.images(2))
    assert [record.layer for record in records] == ["fc", "conv"]


class Scaled(layers.Layer):
    """A layer that forgets what it was made with."""

    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, inputs):
        return inputs * self.scale * self.factor

    def get_config(self):
        return {"name": self.name}


def test_a_layer_that_cannot_be_made_anew_is_named():
    image = keras.Input((8, 8, 3), name="image")
    x = Scaled(2.0, name="scaled")(layers.Conv2D(3, 3, name="conv")(image))
    model = keras.Model(image, layers.Dense(5, name="fc")(layers.GlobalAveragePooling2D(name="pool")(x)))
    with pytest.raises(ModelError, match=r"'scaled' cannot be made anew .*: Scaled needs a get_config"):
        randomization_check("gradcam", model, models.images(1))


@pytest.mark.parametrize("name", models.CASES)
def test_the_copy_that_is_randomised_computes_what_the_model_does_with_weights_of_its_own(name):
    model = models.CASES[name].model(1)
    exposed, x = ex.expose(model), models.inputs_of(model, 2)
    copied, twins = randomization._copy(exposed, 0)
    for got, want in zip(copied(x), exposed(x), strict=True):
        np.testing.assert_array_equal(got, want)
    own = [variable for twin in twins for variable in twin.layer.weights]
    assert len(own) == len(model.weights)
    assert not {id(variable) for variable in own} & {id(variable) for variable in model.weights}
    used = [variable for step in copied.graph.steps for layer in step.layers for variable in layer.weights]
    assert {id(variable) for variable in used} == {id(variable) for variable in own}


def test_an_unknown_order_of_layers_is_refused():
    with pytest.raises(InputError, match="'cascade', 'independent' or 'all', not 'top'"):
        randomization_check("gradcam", models.gap_dense(), models.images(1), layers="top")


# On a real model


@pytest.mark.shared
@pytest.mark.slow
def test_grad_cam_is_more_faithful_than_chance_on_photographs(shared_data):
    if keras.__version__ < "3.13":
        pytest.skip("this model was saved by a newer Keras than the last one for Python 3.10")
    with (shared_data / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))[::17]
    x = np.stack([load(shared_data / row["uri"]) for row in rows])
    exposed = ex.expose(keras.models.load_model(shared_data / "models" / "mobilenet_0.25_224.keras"))
    units = np.array([[int(row["label"])] for row in rows])
    maps = {"gradcam": ex.explain("gradcam", exposed, x, units, postprocessing=None, resizing=None)[1]}
    maps["random"] = np.random.default_rng(0).normal(size=maps["gradcam"].shape).astype("float32")
    score = tf.function(lambda m: (deletion(exposed, x, units, m, 20), insertion(exposed, x, units, m, 20)))
    deleted, inserted = zip(*(score(tf.constant(m)) for m in maps.values()), strict=True)
    assert np.mean(deleted[0]) < 0.7 * np.mean(deleted[1])
    assert np.mean(inserted[0]) > 1.4 * np.mean(inserted[1])
    confidence = [confidence_change(exposed, x, units, m) for m in maps.values()]
    assert np.mean(confidence[0].drop) < np.mean(confidence[1].drop)
    (record,) = randomization_check("gradcam", exposed, x, units, layers="all")
    assert abs(record.spearman) < 0.3


def load(path):
    """A centred square of a photograph, in [-1, 1]."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32) / 127.5 - 1


def test_a_classifier_that_starts_at_zeros_is_drawn_at_random():
    image = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, activation="relu")(image))
    model = keras.Model(image, keras.layers.Dense(5, kernel_initializer="zeros", name="predictions")(x))
    model = models.randomize(model, 1)
    _, twins = randomization._copy(ex.expose(model), 0)
    kernel, bias = twins[0].fresh
    assert (twins[0].name, bias.tolist()) == ("predictions", [0] * 5)
    assert kernel.std() > 0.1
    (step, *_) = ex.metrics.randomization_check("gradcam", model, models.images(4), np.array([[0], [1], [2], [3]]))
    assert step.spearman != 0

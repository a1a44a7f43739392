"""Filters treat each image and each unit on its own, keep what their name says, and never divide by zero."""

import numpy as np
import pytest
import tensorflow as tf

import explainers as ex
from explainers import filters

# One image of 1x4 positions and three units: mixed, all negative, constant.
MAPS = np.array([[[[-2.0, -4.0, 3.0], [0.0, -1.0, 3.0], [1.0, -2.0, 3.0], [4.0, -3.0, 3.0]]]], np.float32)

EXPECTED = {
    "normalize": [[0, 1 / 3, 0.5, 1], [0, 1, 2 / 3, 1 / 3], [0, 0, 0, 0]],
    "positive": [[0, 0, 1, 4], [0, 0, 0, 0], [3, 3, 3, 3]],
    "negative": [[-2, 0, 0, 0], [-4, -1, -2, -3], [0, 0, 0, 0]],
    "absolute": [[2, 0, 1, 4], [4, 1, 2, 3], [3, 3, 3, 3]],
    "positive_normalize": [[0, 0, 0.25, 1], [0, 0, 0, 0], [1, 1, 1, 1]],
    "negative_normalize": [[1, 0, 0, 0], [1, 0.25, 0.5, 0.75], [0, 0, 0, 0]],
    "clip_normalize": [[0.5, 0, 0.25, 1], [1, 0.25, 0.5, 0.75], [1, 1, 1, 1]],
    "absolute_normalize": [[0.5, 0, 0.25, 1], [1, 0.25, 0.5, 0.75], [1, 1, 1, 1]],
}

every_filter = pytest.mark.parametrize("name", EXPECTED)


def apply(name, maps, **options):
    return getattr(filters, name)(tf.constant(maps), **options).numpy()


def test_no_filter_is_left_out_here():
    public = {name for name, f in vars(filters).items() if callable(f) and f.__module__ == filters.__name__}
    assert {name for name in public if not name.startswith("_")} == {*EXPECTED, "resize_maps"}


def test_the_largest_share_is_clipped_to_one():
    maps = np.arange(1, 201, dtype=np.float32).reshape(1, 10, 20, 1) * [[[[1, -2]]]]
    shown = filters.clip_normalize(maps, share=0.05).numpy()
    np.testing.assert_allclose(shown, np.minimum(np.abs(maps) / (191 * np.array([1, 2])), 1), rtol=1e-6)


def test_where_only_a_few_values_are_not_zero_nothing_is_clipped():
    maps = np.zeros((1, 20, 20, 1), np.float32)
    maps[0, 3, 4, 0], maps[0, 5, 6, 0] = -4, 2
    np.testing.assert_allclose(filters.clip_normalize(maps), np.abs(maps) / 4)


@every_filter
def test_values_by_hand(name):
    np.testing.assert_allclose(apply(name, MAPS)[0, 0].T, EXPECTED[name], rtol=1e-6)


@every_filter
def test_constant_maps_and_maps_of_zeros_stay_finite(name):
    for value in (0.0, 5.0, -5.0):
        got = apply(name, np.full((2, 3, 3, 2), value, np.float32))
        assert np.all(np.isfinite(got))
        assert np.ptp(got) == 0
    np.testing.assert_array_equal(apply(name, np.zeros((1, 2, 2, 1), np.float32)), 0)


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0])
def test_a_constant_map_is_normalized_to_zeros(value):
    np.testing.assert_array_equal(apply("normalize", np.full((1, 2, 2, 1), value, np.float32)), 0)


@every_filter
def test_images_and_units_do_not_see_each_other(name):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, 4, 5, 2)).astype("float32") * 10.0 ** np.arange(3)[:, None, None, None]
    together = apply(name, maps)
    for i in range(3):
        for unit in range(2):
            alone = apply(name, maps[i : i + 1, ..., unit : unit + 1])
            np.testing.assert_array_equal(together[i, ..., unit], alone[0, ..., 0])


@every_filter
@pytest.mark.parametrize("positions", [(6,), (2, 3), (2, 3, 1)])
def test_one_two_and_three_axes_of_positions_are_the_same_to_a_filter(name, positions):
    values = np.random.default_rng(1).normal(size=(2, 6, 3)).astype("float32")
    got = apply(name, values.reshape(2, *positions, 3))
    np.testing.assert_array_equal(got.reshape(2, 6, 3), apply(name, values))


@pytest.mark.parametrize("name", ["normalize", "positive_normalize", "negative_normalize", "absolute_normalize"])
def test_the_axes_of_positions_can_be_named(name):
    maps = np.random.default_rng(2).normal(size=(2, 3, 4)).astype("float32")  # (N, h, w), no axis of units
    np.testing.assert_array_equal(apply(name, maps, axis=(1, 2)), apply(name, maps[..., np.newaxis])[..., 0])
    rows = apply(name, maps, axis=2)
    np.testing.assert_array_equal(rows[0, 1:2], apply(name, maps[0, 1:2], axis=1))


@every_filter
def test_bytes_do_not_wrap(name):
    values = np.array([0, 3, 128, 255], np.uint8).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(apply(name, values), apply(name, values.astype("float32")))


@every_filter
def test_half_precision_stays_half_precision(name):
    got = getattr(filters, name)(tf.constant(MAPS, tf.float16))
    assert got.dtype == tf.float16
    np.testing.assert_allclose(got[0, 0].numpy().T, EXPECTED[name], atol=1e-3)


@every_filter
def test_compiled_filters_give_the_same(name):
    program = tf.function(getattr(filters, name), jit_compile=True, autograph=False)
    np.testing.assert_allclose(program(tf.constant(MAPS)), apply(name, MAPS), rtol=1e-6)


@pytest.mark.parametrize("name", ["positive_normalize", "negative_normalize", "absolute_normalize"])
def test_zero_goes_on_meaning_no_evidence(name):
    maps = np.array([1.0, 2.0, -1.0, -2.0], np.float32).reshape(1, 4, 1)
    got = apply(name, np.abs(maps) if name != "negative_normalize" else -np.abs(maps))
    np.testing.assert_allclose(got.reshape(-1), [0.5, 1, 0.5, 1])


def test_filters_are_reached_as_ex_filters():
    assert ex.filters is filters

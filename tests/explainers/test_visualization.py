"""Pictures: every pixel of a blend by hand, the grid, the file, and a colour map that is read as numbers."""

import numpy as np
import pytest
import tensorflow as tf

import explainers as ex
from explainers.errors import InputError
from explainers.visualization import Picture, heat_colors, strongest_channels
from tests import models

HEAT = heat_colors().astype(np.float64)


def decode(png):
    return tf.io.decode_png(png).numpy()


# Colours


def lightness_cielab(rgb):
    """CIE L* of sRGB bytes, from the definitions (IEC 61966-2-1, CIE 15)."""
    encoded = np.asarray(rgb, np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, y * (29 / 3) ** 3)


def lightness_oklab(rgb):
    """Oklab L of sRGB bytes, by way of XYZ and the two matrices of Ottosson 2020."""
    encoded = np.asarray(rgb, np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    to_lms = np.array(
        [
            [0.8189330101, 0.3618667424, -0.1288597137],
            [0.0329845436, 0.9293118715, 0.0361456387],
            [0.0482003018, 0.2643662691, 0.6338517070],
        ]
    )
    return np.cbrt(linear @ to_xyz.T @ to_lms.T) @ [0.2104542553, 0.7936177850, -0.0040720468]


def test_lightness_rises_with_every_step_of_the_colour_map():
    assert np.all(np.diff(lightness_oklab(heat_colors())) > 0)
    assert np.all(np.diff(lightness_cielab(heat_colors())) > 0)


def test_equal_steps_of_a_map_are_equal_steps_of_lightness():
    lightness = lightness_oklab(heat_colors())
    straight = np.linspace(lightness[0], lightness[-1], 256)
    assert np.abs(lightness - straight).max() < 0.003  # one byte is up to 0.002
    assert lightness[0] < 0.1
    assert lightness[-1] > 0.95


def test_the_colour_map_is_256_bytes_of_rgb_from_dark_to_pale():
    colors = heat_colors()
    assert (colors.shape, colors.dtype) == ((256, 3), np.uint8)
    assert colors[0].max() < 30
    assert colors[-1].min() > 180
    red, _, blue = colors[128].astype(int)
    assert red > blue + 50  # warm in the middle, not grey


# Blends


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.75, 1.0])
def test_a_blend_is_opaque_in_proportion_to_its_value(alpha):
    image = np.array([[[10, 20, 30], [200, 100, 50]], [[0, 0, 0], [255, 255, 255]]], np.uint8)
    values = np.array([[0.0, 1.0], [0.6, 0.2]], np.float32)
    got = ex.visualize([image], values[np.newaxis], alpha=alpha).pixels
    want = np.zeros((2, 2, 3))
    for i in range(2):
        for j in range(2):
            opacity = alpha * float(values[i, j])
            want[i, j] = (1 - opacity) * image[i, j] + opacity * HEAT[round(255 * float(values[i, j]))]
    assert (got.shape, got.dtype) == ((2, 2, 3), np.uint8)
    np.testing.assert_allclose(got, want, atol=0.51)


def test_maps_are_resized_to_their_image_with_half_pixel_centres():
    image = np.zeros((1, 4, 3), np.uint8)
    got = ex.visualize([image], np.array([[[0.0, 1.0]]]), alpha=1.0).pixels
    want = [value * HEAT[round(255 * value)] for value in (0, 0.25, 0.75, 1)]
    np.testing.assert_allclose(got[0], want, atol=0.51)


def test_values_outside_zero_and_one_are_clipped():
    image = np.full((1, 2, 3), 100, np.uint8)
    got = ex.visualize([image], np.array([[[-3.0, 7.0]]]), alpha=1.0).pixels
    np.testing.assert_array_equal(got[0], [[100, 100, 100], HEAT[255]])


def test_an_image_without_a_map_stays_bare():
    images = models.pixels(2)
    got = ex.visualize(images, [None, np.ones((8, 8))], gap=0, alpha=1.0).pixels
    np.testing.assert_array_equal(got[:, :8], images[0])
    np.testing.assert_array_equal(got[:, 8:], np.broadcast_to(HEAT[255], (8, 8, 3)))


# Images


@pytest.mark.parametrize(
    ("image", "want"),
    [
        ([[0.0, 0.5, 1.0]], [0, 128, 255]),
        ([[-1.0, 0.0, 1.0]], [0, 128, 255]),
        ([[0.0, 127.5, 255.0]], [0, 128, 255]),
        ([[-2.0, 0.0, 1.0]], [0, 128, 191]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 100, 255]], np.uint8), [0, 100, 255]),
    ],
    ids=["unit", "signed", "byte range", "standardised", "integers", "bytes"],
)
def test_every_range_of_values_is_shown(image, want):
    got = ex.visualize([np.asarray(image)[..., np.newaxis]]).pixels
    np.testing.assert_array_equal(got, np.repeat(np.array(want)[np.newaxis, :, np.newaxis], 3, axis=-1))


def test_one_range_is_chosen_for_all_images_together():
    dark, bright = np.full((1, 1, 3), 0.5), np.full((1, 1, 3), 255.0)
    got = ex.visualize([dark, bright], gap=0).pixels
    np.testing.assert_array_equal(got[0, :, 0], [0, 255])


def test_a_fourth_channel_is_left_out_and_two_axes_are_grey():
    image = models.pixels(1, shape=(3, 4, 4))
    np.testing.assert_array_equal(ex.visualize(image).pixels, image[0, ..., :3])
    grey = models.pixels(1, shape=(3, 4))
    np.testing.assert_array_equal(ex.visualize(grey).pixels, np.stack([grey[0]] * 3, axis=-1))


def test_maps_are_shown_in_grey_as_images():
    maps = np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 3, 4, 1)
    want = np.repeat(np.round(255 * maps[0]), 3, axis=-1)
    np.testing.assert_array_equal(ex.visualize(maps).pixels, want)


def test_tensors_are_shown_like_arrays():
    images, maps = models.pixels(2), np.random.default_rng(0).uniform(size=(2, 4, 4, 2)).astype("float32")
    want = ex.visualize(images, maps).pixels
    np.testing.assert_array_equal(ex.visualize(tf.constant(images), tf.constant(maps)).pixels, want)


# The grid


def test_tiles_fill_rows_with_white_between_them():
    images = models.pixels(5)
    got = ex.visualize(images, cols=2, gap=3).pixels
    assert got.shape == (3 * 8 + 2 * 3, 2 * 8 + 3, 3)
    want = np.full_like(got, 255)
    for i, image in enumerate(images):
        top, left = 11 * (i // 2), 11 * (i % 2)
        want[top : top + 8, left : left + 8] = image
    np.testing.assert_array_equal(got, want)


def test_a_row_holds_up_to_eight_tiles_if_nothing_is_said():
    assert ex.visualize(models.pixels(3), gap=0).pixels.shape == (8, 24, 3)
    assert ex.visualize(models.pixels(9), gap=0).pixels.shape == (16, 64, 3)


def test_each_unit_has_a_tile_of_its_own_and_each_image_a_row():
    images = models.pixels(2)
    maps = np.random.default_rng(0).uniform(size=(2, 4, 4, 3)).astype("float32")
    got = ex.visualize(images, maps, gap=0).pixels
    assert got.shape == (16, 24, 3)
    for i in range(2):
        for unit in range(3):
            alone = ex.visualize(images[i : i + 1], maps[i : i + 1, ..., unit]).pixels
            np.testing.assert_array_equal(got[8 * i : 8 * i + 8, 8 * unit : 8 * unit + 8], alone)


def test_images_of_different_sizes_keep_theirs():
    small, large = models.pixels(1, shape=(3, 5, 3))[0], models.pixels(1, shape=(6, 4, 3))[0]
    got = ex.visualize([small, large], gap=1).pixels
    want = np.full((6, 11, 3), 255)
    want[:3, :5], want[:6, 6:10] = small, large
    np.testing.assert_array_equal(got, want)


# The picture


def test_a_saved_file_and_a_notebooks_picture_hold_the_same_pixels(tmp_path):
    picture = ex.visualize(models.pixels(3), to_file=tmp_path / "first.png")
    picture.save(tmp_path / "second.png")
    picture.save(str(tmp_path / "third.png"))
    for name in ("first.png", "second.png", "third.png"):
        np.testing.assert_array_equal(decode((tmp_path / name).read_bytes()), picture.pixels)
    assert picture._repr_png_().startswith(b"\x89PNG")
    np.testing.assert_array_equal(decode(picture._repr_png_()), picture.pixels)


def test_a_picture_is_an_array_and_says_its_size():
    picture = ex.visualize(models.pixels(2), gap=2)
    assert isinstance(picture, Picture)
    assert repr(picture) == "Picture(18x8)"
    np.testing.assert_array_equal(np.asarray(picture), picture.pixels)
    np.testing.assert_array_equal(np.asarray(picture, np.float32), picture.pixels.astype(np.float32))


def test_what_explain_returns_can_be_shown_as_it_is():
    images = models.pixels(2)
    _, maps = ex.gradcam(models.rescaling_first(), images, np.array([[0, 1], [2, 3]]))
    assert ex.visualize(images, maps, cols=4, gap=0).pixels.shape == (8, 32, 3)


# Errors


@pytest.mark.parametrize(
    ("images", "options", "text"),
    [
        ([], {}, "nothing to show: images is empty"),
        (models.pixels(2), {"overlays": np.ones((3, 4, 4))}, "one overlay an image, and there are 3 for 2"),
        (models.pixels(1), {"overlays": np.ones((1, 4, 4)), "alpha": 1.5}, "alpha .*1.5"),
        (models.pixels(1), {"overlays": np.ones((1, 4, 4)), "alpha": -0.5}, "alpha .*-0.5"),
    ],
)
def test_an_error_names_the_rule_and_the_value(images, options, text):
    with pytest.raises(InputError, match=text):
        ex.visualize(images, **options)


# Feature maps


def test_feature_maps_are_shown_strongest_first_on_one_scale():
    model = models.gap_dense(1)
    exposed, x = ex.expose(model), models.images(2)
    signal = np.asarray(exposed(x)[1])
    picture = ex.activations(exposed, x, channels=3, tile_size=8, gap=0)
    assert picture.pixels.shape == (2 * 8, 4 * 8, 3)
    for i in range(2):
        strength = signal[i].mean(axis=(0, 1))
        best = np.argsort(-strength)[:3]
        scaled = signal[i][..., best] / signal[i][..., best].max()
        for place, channel in enumerate(np.moveaxis(scaled, -1, 0)):
            want = heat_colors()[np.round(255 * np.kron(channel, np.ones((2, 2)))).astype(int)]
            np.testing.assert_array_equal(picture.pixels[8 * i : 8 * i + 8, 8 * (place + 1) : 8 * (place + 2)], want)


def test_strongest_channels_go_by_mean_magnitude_of_each_image():
    signal = np.zeros((2, 2, 2, 3), np.float32)
    signal[0, ..., 1], signal[0, ..., 2], signal[1, ..., 0] = -3, 2, 1
    np.testing.assert_array_equal(strongest_channels(signal, 2), [[1, 2], [0, 1]])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ex.activations(models.conv1d(), models.images(1, shape=(12, 2))), "are shown in two dimensions"),
        (lambda: ex.activations(models.gap_dense(), models.images(1), channels=0), "channels is at least 1, not 0"),
    ],
)
def test_feature_maps_that_cannot_be_shown_are_refused(call, text):
    with pytest.raises(InputError, match=text):
        call()

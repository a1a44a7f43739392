"""Attention is measured where it lies in the original image, whatever view of it the model had."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pipeline.attention import CORNERS, NOTHING, correlate, describe_map, to_grid, window
from pipeline.decode import decode_image
from pipeline.geometry import RESIZES, Geometry, cell_center, fit_view, make_input
from tests import attention as oracle

SQUARE = Geometry(70, 70, fit_view("stretch", (70, 70), (224, 224)))

unhurried = settings(deadline=None, derandomize=True, max_examples=150)


def _geometry(mode: str, image_size: tuple[int, int], input_size: tuple[int, int] = (224, 224)) -> Geometry:
    return Geometry(*image_size, fit_view(mode, image_size, input_size))


def _one(shape: tuple[int, int], *places: tuple[int, int]) -> np.ndarray:
    values = np.zeros(shape, np.float32)
    for place in places:
        values[place] = 1.0
    return values


GEOMETRIES = [
    _geometry("stretch", (500, 375)),
    _geometry("crop", (500, 375)),
    _geometry("pad", (500, 375)),  # bars of an eighth: cells that lie in part in the image
    _geometry("pad", (150, 600)),
    _geometry("crop", (150, 600)),
    _geometry("pad", (97, 61), (224, 160)),
    _geometry("crop", (97, 61), (160, 224)),
]


# The whole set against the definitions


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (8, 3), (16, 16), (1, 6)])
@pytest.mark.parametrize("seed", range(3))
def test_statistics_are_those_of_the_definitions(geometry: Geometry, shape: tuple[int, int], seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    values[shape[0] // 2, shape[1] // 2] = 1.5  # not in padding
    found, expected = vars(describe_map(values, geometry)), oracle.describe(values, geometry)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-7), name


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("shape", "side"), [((7, 7), 16), ((5, 9), 16), ((5, 9), 6), ((7, 7), 1)])
def test_the_grid_holds_the_energy_of_each_part_of_the_image(
    geometry: Geometry, shape: tuple[int, int], side: int
) -> None:
    values = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    found = to_grid(values, geometry, side)
    assert found.dtype == np.float32
    assert found.shape == (min(shape[0], side), min(shape[1], side))
    np.testing.assert_allclose(found, oracle.on_grid(values, geometry, found.shape), atol=1e-6)


# One number at a time, by hand


def test_a_map_of_one_cell_is_where_that_cell_is() -> None:
    found = describe_map(_one((7, 7), (1, 5)), _geometry("stretch", (700, 350)))
    assert (found.com_x, found.com_y) == pytest.approx((550, 75))
    assert found.peak_cell == 12
    assert found.spread == pytest.approx(math.sqrt(2 / 49 / 12))
    assert found.eff_area == found.coverage50 == pytest.approx(1 / 49)
    assert found.gini == pytest.approx(48 / 49)
    assert (found.components50, found.largest_share50) == (1, 1.0)


@pytest.mark.parametrize("mode", ["stretch", "crop"])
def test_an_even_map_is_even(mode: str) -> None:
    found = describe_map(np.full((6, 6), 3.0, np.float32), _geometry(mode, (120, 60)))
    seen = 1.0 if mode == "stretch" else 0.5
    assert (found.com_x, found.com_y) == pytest.approx((60, 30))
    assert found.spread == pytest.approx(math.sqrt((seen**2 + 1) / 12))
    assert (found.eff_area, found.coverage50) == pytest.approx((seen, seen))
    assert found.gini == pytest.approx(0, abs=1e-9)
    # Of a crop's frame the model has seen the parts above and below.
    assert found.border_energy == pytest.approx(1 - 0.8**2 if mode == "stretch" else 0.2)
    assert found.border_ratio == pytest.approx(1)
    assert found.corner_energy == pytest.approx(0.04 if mode == "stretch" else 0.0)


def test_of_equal_peaks_the_first_counts() -> None:
    assert describe_map(_one((3, 4), (2, 1), (1, 3)), SQUARE).peak_cell == 7


def test_what_is_negative_is_no_attention() -> None:
    values = _one((7, 7), (3, 3), (3, 4))
    assert describe_map(np.where(values > 0, values, -5).astype(np.float32), SQUARE) == describe_map(values, SQUARE)


@pytest.mark.parametrize("scale", [2.0**-149, 1e-30, 8e37])
def test_the_scale_of_a_map_changes_nothing(scale: float) -> None:
    values = np.round(np.random.default_rng(0).random((6, 6)) * 4)
    scaled = (values * scale).astype(np.float32)
    expected = vars(describe_map(values.astype(np.float32), SQUARE))
    assert vars(describe_map(scaled, SQUARE)) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(to_grid(scaled, SQUARE), values / values.sum(), rtol=1e-5)


def test_the_frame_is_a_tenth_of_each_side() -> None:
    columns = np.zeros((1, 10), np.float32)
    columns[0, [0, 4]] = 1, 3
    # The first column is frame, and of the fifth the tenths above and below.
    assert describe_map(columns, SQUARE).border_energy == pytest.approx((1 + 3 * 0.2) / 4)
    assert describe_map(_one((5, 5), (2, 2)), SQUARE).border_energy == 0


@pytest.mark.parametrize(("corner", "place"), list(enumerate([(0, 0), (0, 9), (9, 0), (9, 9)])))
def test_each_corner_is_told_by_its_number(corner: int, place: tuple[int, int]) -> None:
    found = describe_map(_one((10, 10), place, (5, 5)) + _one((10, 10), place), SQUARE)
    assert found.corner == corner
    assert found.corner_energy == pytest.approx(2 / 3)
    row, column = CORNERS[corner].split()
    assert (row == "bottom", column == "right") == (place[0] == 9, place[1] == 9)


def test_a_corner_is_a_square_of_a_fifth() -> None:
    assert describe_map(_one((10, 10), (1, 8)), SQUARE).corner_energy == pytest.approx(1)
    assert describe_map(_one((10, 10), (1, 7), (2, 8)), SQUARE).corner_energy == 0
    assert describe_map(_one((5, 4), (0, 3)), SQUARE).corner_energy == pytest.approx(0.8)


def test_regions_are_those_of_half_the_maximum_and_touch_over_corners() -> None:
    values = _one((7, 7), (0, 0), (1, 1), (4, 4)) + 0.5 * _one((7, 7), (1, 2), (4, 6)) + 0.49 * _one((7, 7), (4, 5))
    found = describe_map(values, SQUARE)
    assert found.components50 == 3
    assert found.largest_share50 == pytest.approx(3 / 5)
    assert found.coverage50 == pytest.approx(5 / 49)


def test_the_end_of_a_row_does_not_touch_the_start_of_the_next() -> None:
    assert describe_map(_one((4, 4), (1, 3), (2, 0)), SQUARE).components50 == 2


# Empty maps, and padding


@pytest.mark.parametrize("values", [np.zeros((7, 7)), np.full((7, 7), -1.0), np.full((40, 40), -0.0)])
@pytest.mark.parametrize("mode", RESIZES)
def test_a_map_that_is_nowhere_positive_has_no_attention(values: np.ndarray, mode: str) -> None:
    geometry = _geometry(mode, (90, 60))
    assert describe_map(values.astype(np.float32), geometry) == NOTHING
    assert set(vars(NOTHING).values()) == {None}
    assert not to_grid(values.astype(np.float32), geometry).any()


def test_energy_in_padding_is_border_and_nothing_else() -> None:
    geometry = _geometry("pad", (80, 40), (40, 40))  # bars: the rows 0 and 3 of 4
    found = describe_map(_one((4, 4), (0, 3), (1, 1)), geometry)
    assert found.border_energy == pytest.approx((1 + 0.2) / 2)  # a fifth of row 1 is the image's uppermost tenth
    assert (found.corner_energy, found.corner) == (pytest.approx(0.5 * 0.8), 1)
    alone = describe_map(_one((4, 4), (1, 1)), geometry)
    names = ("com_x", "com_y", "spread", "eff_area", "gini", "coverage50", "components50")
    assert [getattr(found, name) for name in names] == [getattr(alone, name) for name in names]
    np.testing.assert_allclose(to_grid(_one((4, 4), (0, 3), (1, 1)), geometry), to_grid(_one((4, 4), (1, 1)), geometry))


def test_a_map_that_is_positive_in_padding_alone_has_a_peak_and_no_place_in_the_image() -> None:
    geometry = _geometry("pad", (80, 40), (40, 40))
    found = describe_map(_one((4, 4), (3, 0)), geometry)
    assert (found.peak_cell, found.border_energy, found.corner) == (12, 1.0, 2)
    assert found.border_ratio == pytest.approx(1 / 0.36)
    assert (found.com_x, found.gini, found.components50, found.largest_share50) == (None, None, None, None)
    assert not to_grid(_one((4, 4), (3, 0)), geometry).any()


def test_a_cell_that_ends_with_the_image_has_nothing_of_it_beyond() -> None:
    # Three quarters of 224 pixels are the rows 28 to 196 of the input: cells 1 to 6 of 8 hold the whole image.
    geometry = _geometry("pad", (400, 300))
    assert to_grid(_one((8, 8), (0, 3), (7, 3)), geometry).any() == np.False_
    assert describe_map(_one((8, 8), (0, 3), (7, 3)) + 0.1, geometry).coverage50 == pytest.approx(1)


# Large maps


@pytest.mark.parametrize("geometry", GEOMETRIES[:3], ids=str)
def test_large_maps_are_pooled_by_area_but_for_their_peak(geometry: Geometry) -> None:
    values = np.random.default_rng(1).normal(size=(48, 32)).astype(np.float32)
    pooled = np.maximum(values, 0).reshape(16, 3, 16, 2).sum(axis=(1, 3))
    found, expected = vars(describe_map(values, geometry)), vars(describe_map(pooled, geometry))
    assert found.pop("peak_cell") == np.argmax(values)
    expected.pop("peak_cell")
    assert found == pytest.approx(expected, rel=1e-5)
    assert found["com_x"] == pytest.approx(oracle.describe(pooled, geometry)["com_x"], rel=1e-6)


@pytest.mark.parametrize("geometry", [SQUARE, *GEOMETRIES[1:3]], ids=str)
def test_the_grid_of_a_large_map_is_as_exact_as_that_of_a_small_one(geometry: Geometry) -> None:
    values = np.random.default_rng(1).normal(size=(18, 20)).astype(np.float32)
    np.testing.assert_allclose(to_grid(values, geometry), oracle.on_grid(values, geometry, (16, 16)), atol=1e-7)


def test_a_side_that_does_not_divide_is_pooled_by_parts_of_cells() -> None:
    values = np.zeros((1, 24), np.float32)
    values[0, 1] = 1.0  # from 1 to 2 of 24, which is from 2/3 to 4/3 of 16
    grid = to_grid(values, SQUARE)
    np.testing.assert_allclose(grid[0, :3], [0.5, 0.5, 0], atol=1e-7)
    assert describe_map(values, SQUARE).eff_area == pytest.approx(2 / 16)


def test_only_the_side_that_is_long_is_pooled() -> None:
    assert to_grid(np.ones((4, 64), np.float32), SQUARE).shape == (4, 16)
    assert to_grid(np.ones((100, 5), np.float32), SQUARE, 10).shape == (10, 5)


# The grid


def test_the_grid_of_a_stretched_image_is_the_map_over_its_sum() -> None:
    values = np.random.default_rng(2).normal(size=(7, 7)).astype(np.float32)
    expected = np.maximum(values, 0).astype(np.float64)
    np.testing.assert_array_equal(to_grid(values, SQUARE), (expected / expected.sum()).astype(np.float32))


@pytest.mark.parametrize("geometry", GEOMETRIES[:3], ids=str)
def test_many_maps_at_once_are_each_map_alone(geometry: Geometry) -> None:
    values = np.random.default_rng(3).normal(size=(6, 7, 20)).astype(np.float32)
    values[2] = -1.0
    together = to_grid(values, geometry)
    assert not together[2].any()
    for found, alone in zip(together, values, strict=True):
        np.testing.assert_allclose(found, to_grid(alone, geometry), atol=1e-7)


def test_a_window_is_the_part_of_the_image_that_the_model_sees() -> None:
    assert window(_geometry("stretch", (333, 97))) == (0.0, 0.0, 1.0, 1.0)
    assert window(_geometry("crop", (200, 100))) == (0.25, 0.0, 0.75, 1.0)
    assert window(_geometry("pad", (200, 100))) == (0.0, -0.5, 1.0, 1.5)


@given(
    st.sampled_from(RESIZES),
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.integers(0, 2**32 - 1),
)
@unhurried
def test_all_numbers_are_in_range_whatever_the_map(
    mode: str, image_size: tuple[int, int], shape: tuple[int, int], seed: int
) -> None:
    values = np.random.default_rng(seed).normal(-1, size=shape).astype(np.float32)
    geometry = _geometry(mode, image_size)
    found, grid = describe_map(values, geometry), to_grid(values, geometry)
    assert grid.min() >= 0
    assert grid.sum() == pytest.approx(float(found.com_x is not None), abs=1e-5)
    if found == NOTHING:
        assert values.max() <= 0
        return
    shares = (found.border_energy, found.corner_energy, found.spread, found.eff_area, found.gini, found.coverage50)
    assert all(share is None or 0 <= share <= 1 for share in (*shares, found.largest_share50))
    assert 0 <= found.border_ratio < 6
    if found.com_x is not None:
        assert 0 <= found.com_x <= image_size[0]
        assert 0 <= found.com_y <= image_size[1]
        assert 1 <= found.components50 <= min(shape[0], 16) * min(shape[1], 16)
        assert found.eff_area > 0


# From pixels


def _photograph(size: tuple[int, int], marker: tuple[int, int], orientation: int = 1) -> bytes:
    """A black JPEG with a white disc round `marker`, both as they are seen upright."""
    import io

    image = Image.new("RGB", size)
    x, y = marker
    ImageDraw.Draw(image).ellipse((x - 12, y - 12, x + 12, y + 12), fill="white")
    turn = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = image if turn[orientation] is None else image.transpose(turn[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", RESIZES)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(
    ("size", "marker"), [((400, 200), (150, 60)), ((180, 400), (40, 230)), ((300, 300), (260, 40))]
)
def test_a_drawn_marker_is_where_the_attention_is(
    mode: str, orientation: int, size: tuple[int, int], marker: tuple[int, int]
) -> None:
    decoded = decode_image(_photograph(size, marker, orientation))
    geometry = _geometry(mode, decoded.size, (224, 160))
    assert (geometry.width, geometry.height) == size
    pixels = make_input(decoded, geometry)
    values = pixels[..., 0].reshape(10, 16, 14, 16).mean(axis=(1, 3)).astype(np.float32) / 255 - 0.02
    found, view = describe_map(values, geometry), geometry.view
    assert found.com_x == pytest.approx(marker[0], abs=view.scale_x * 16)
    assert found.com_y == pytest.approx(marker[1], abs=view.scale_y * 16)
    x, y = cell_center(*divmod(found.peak_cell, 14), (10, 14), view)
    assert x == pytest.approx(marker[0], abs=view.scale_x * 16)
    assert y == pytest.approx(marker[1], abs=view.scale_y * 16)
    grid = to_grid(values, geometry)
    row, column = np.unravel_index(np.argmax(grid), grid.shape)
    # Within a cell of the map or of the grid, whichever is the larger.
    assert (column + 0.5) / 14 * size[0] == pytest.approx(marker[0], abs=max(size[0] / 14, view.scale_x * 16))
    assert (row + 0.5) / 10 * size[1] == pytest.approx(marker[1], abs=max(size[1] / 10, view.scale_y * 16))


# Correlation


def test_correlation_is_pearsons_of_the_positive_parts() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 7, 7)).astype(np.float32)
    expected = np.corrcoef(np.maximum(a, 0).ravel(), np.maximum(b, 0).ravel())[0, 1]
    assert correlate(a, b) == correlate(b, a) == pytest.approx(expected)
    assert correlate(a, 1e-30 * b) == pytest.approx(expected, rel=1e-4)
    assert correlate(a, 2 * a) == 1
    assert correlate(_one((2, 2), (0, 0), (0, 1)), _one((2, 2), (1, 0), (1, 1))) == -1


def test_large_maps_are_compared_as_they_are_pooled() -> None:
    a, b = np.random.default_rng(6).normal(size=(2, 48, 32)).astype(np.float32)
    c, d = (np.maximum(values, 0).reshape(16, 3, 16, 2).mean(axis=(1, 3)) for values in (a, b))
    assert correlate(a, b) == pytest.approx(correlate(c, d), abs=1e-6)


@pytest.mark.parametrize("even", [np.zeros((3, 3)), np.full((3, 3), -2.0), np.full((3, 3), 0.1), 1 + 1e-7 * np.eye(3)])
def test_there_is_no_correlation_with_a_map_that_is_the_same_all_over(even: np.ndarray) -> None:
    other = np.arange(9, dtype=np.float32).reshape(3, 3)
    assert correlate(even.astype(np.float32), other) is None
    assert correlate(other, even.astype(np.float32)) is None
    assert correlate(other, (1 + 1e-5 * np.eye(3)).astype(np.float32)) is not None

"""Points and maps travel between the model's input and the original image, and arrive where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.geometry import (
    OVERSAMPLING,
    RESIZES,
    Geometry,
    View,
    cell_center,
    clip_boxes,
    fit_view,
    make_input,
    project_map,
    shrink_geometry,
    strongest_region,
)

SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
SMALL_SIZES = st.tuples(st.integers(1, 120), st.integers(1, 120))
INPUT_SIZES = st.tuples(st.integers(1, 400), st.integers(1, 400))
MAP_SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))

unhurried = settings(deadline=None, derandomize=True, max_examples=150)


def _geometry(mode: str, image_size: tuple[int, int], input_size: tuple[int, int]) -> Geometry:
    return Geometry(*image_size, fit_view(mode, image_size, input_size))


def _is_whole(value: float) -> bool:
    return abs(value - round(value)) < 1e-6


# Views


def test_a_point_travels_by_offset_and_scale_of_its_own_axis() -> None:
    view = View("crop", 10, 20, 2.0, 3.0, 5.0, -7.0)
    assert view.to_original(0, 0) == (5.0, -7.0)
    assert view.to_original(4, 0.5) == (13.0, -5.5)


@pytest.mark.parametrize(
    ("mode", "image_size", "expected"),
    [
        ("stretch", (640, 320), View("stretch", 160, 160, 4.0, 2.0, 0.0, 0.0)),
        ("crop", (640, 320), View("crop", 160, 160, 2.0, 2.0, 160.0, 0.0)),
        ("crop", (320, 640), View("crop", 160, 160, 2.0, 2.0, 0.0, 160.0)),
        ("crop", (80, 81), View("crop", 160, 160, 0.5, 0.5, 0.0, 0.0)),
        ("pad", (640, 320), View("pad", 160, 160, 4.0, 4.0, 0.0, -160.0)),
        ("pad", (320, 640), View("pad", 160, 160, 4.0, 4.0, -160.0, 0.0)),
        ("pad", (40, 80), View("pad", 160, 160, 0.5, 0.5, -20.0, 0.0)),
    ],
)
def test_views_of_known_sizes(mode: str, image_size: tuple[int, int], expected: View) -> None:
    assert fit_view(mode, image_size, (160, 160)) == expected


@given(SIZES, INPUT_SIZES)
@unhurried
def test_stretch_sees_exactly_the_whole_image(image_size: tuple[int, int], input_size: tuple[int, int]) -> None:
    geometry = _geometry("stretch", image_size, input_size)
    assert geometry.visible == (0, 0, *image_size)
    assert geometry.view.to_original(*input_size) == pytest.approx(image_size)


@given(SIZES, INPUT_SIZES)
@unhurried
def test_a_crop_is_the_largest_centred_part_with_whole_edges(
    image_size: tuple[int, int], input_size: tuple[int, int]
) -> None:
    geometry = _geometry("crop", image_size, input_size)
    view = geometry.view
    left, top = view.to_original(0, 0)
    right, bottom = view.to_original(*input_size)
    assert all(map(_is_whole, (left, top, right, bottom)))
    assert geometry.visible == (round(left), round(top), round(right), round(bottom))
    assert 0 <= left < right <= image_size[0] + 1e-6
    assert 0 <= top < bottom <= image_size[1] + 1e-6
    width, height = round(right - left), round(bottom - top)
    assert width == image_size[0] or height == image_size[1], "a larger part would fit"
    assert abs((image_size[0] - right) - left) <= 1 + 1e-6, "not centred"
    assert abs((image_size[1] - bottom) - top) <= 1 + 1e-6, "not centred"
    # The input's aspect ratio, to the nearest pixel of the shorter axis.
    assert abs(width - max(1, image_size[1] * input_size[0] / input_size[1])) <= 0.5 + 1e-6 or width == image_size[0]
    assert abs(height - max(1, image_size[0] * input_size[1] / input_size[0])) <= 0.5 + 1e-6 or height == image_size[1]


@given(SIZES, INPUT_SIZES)
@unhurried
def test_a_pad_shows_the_whole_image_between_bars_of_whole_input_pixels(
    image_size: tuple[int, int], input_size: tuple[int, int]
) -> None:
    geometry = _geometry("pad", image_size, input_size)
    view = geometry.view
    assert geometry.visible == (0, 0, *image_size)
    bars = -view.offset_x / view.scale_x, -view.offset_y / view.scale_y
    inner = image_size[0] / view.scale_x, image_size[1] / view.scale_y
    for bar, size, whole, other, other_whole, side in (
        (bars[0], inner[0], input_size[0], image_size[1], input_size[1], image_size[0]),
        (bars[1], inner[1], input_size[1], image_size[0], input_size[0], image_size[1]),
    ):
        assert _is_whole(bar)
        assert _is_whole(size)
        assert 0 <= bar <= whole - size + 1e-6
        assert abs(whole - size - 2 * bar) <= 1 + 1e-6, "the bars are level"
        assert abs(size - max(1, side * other_whole / other)) <= 0.5 + 1e-6 or abs(size - whole) < 1e-6
    assert abs(inner[0] - input_size[0]) < 1e-6 or abs(inner[1] - input_size[1]) < 1e-6, "a larger picture would fit"


# The model's input


@pytest.mark.parametrize("mode", RESIZES)
def test_an_image_of_the_input_size_is_left_as_it_is(mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    found = make_input(Image.fromarray(pixels), _geometry(mode, (40, 30), (40, 30)))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels)


def test_a_crop_without_zoom_is_the_middle_of_the_image() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 50, 3), np.uint8)
    found = make_input(Image.fromarray(pixels), _geometry("crop", (50, 20), (20, 20)))
    np.testing.assert_array_equal(found, pixels[:, 15:35])


@pytest.mark.parametrize(("size", "box"), [((50, 20), (0, 15, 50, 35)), ((21, 50), (14, 0, 35, 50))])
def test_a_pad_without_zoom_is_the_image_between_black_bars(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    pixels = np.random.default_rng(2).integers(1, 256, (size[1], size[0], 3), np.uint8)
    expected = np.zeros((50, 50, 3), np.uint8)
    expected[box[1] : box[3], box[0] : box[2]] = pixels
    np.testing.assert_array_equal(make_input(Image.fromarray(pixels), _geometry("pad", size, (50, 50))), expected)


@pytest.mark.parametrize("size", [(224, 223), (223, 224), (448, 446)])
def test_a_pad_of_a_single_line_is_black_and_the_image_is_not_stretched_over_it(size: tuple[int, int]) -> None:
    geometry = _geometry("pad", size, (224, 224))
    found = make_input(Image.new("RGB", size, "white"), geometry)
    inner = round(size[0] / geometry.view.scale_x), round(size[1] / geometry.view.scale_y)
    assert sorted(inner) == [223, 224]
    assert int((found == 255).all(axis=2).sum()) == inner[0] * inner[1]
    assert int((found == 0).all(axis=2).sum()) == 224 * 224 - inner[0] * inner[1]


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    found = make_input(Image.fromarray(stripes), _geometry("stretch", (64, 64), (8, 8)))
    np.testing.assert_allclose(found[:, 1:-1], 127.5, atol=1)
    np.testing.assert_allclose(found, 127.5, atol=10)  # a border's window is cut off between two stripes


@pytest.mark.parametrize("size", [(89, 60), (60, 89), (90, 60), (200, 150), (601, 403)])
def test_only_an_image_six_times_as_large_is_averaged_before_it_is_resized(size: tuple[int, int]) -> None:
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), np.uint8))
    found = make_input(noise, _geometry("stretch", size, (15, 10))).astype(int)
    plain = np.asarray(noise.resize((15, 10), Image.Resampling.BILINEAR)).astype(int)
    large = size[0] >= 2 * OVERSAMPLING * 15 or size[1] >= 2 * OVERSAMPLING * 10
    assert np.any(found != plain) == large
    assert np.abs(found - plain).max() <= 10  # of noise in every pixel, which no photograph has


@pytest.mark.parametrize("mode", RESIZES)
@pytest.mark.parametrize("size", [(800, 480), (480, 800), (801, 487), (487, 801)])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_image_gives_the_input_of_the_whole_one(mode: str, size: tuple[int, int], reduction: int) -> None:
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    edges = 255 * ((x > 0.93 * size[0]) | (y > 0.9 * size[1]))
    pixels = np.stack([255 * x / size[0], 255 * y / size[1], edges], axis=-1).astype(np.uint8)
    padding = ((0, -size[1] % reduction), (0, -size[0] % reduction), (0, 0))
    reduced = Image.fromarray(np.pad(pixels, padding, mode="edge")).reduce(reduction)
    geometry = _geometry(mode, size, (20, 16))
    whole = make_input(Image.fromarray(pixels), geometry).astype(int)
    found = make_input(reduced, geometry, reduction).astype(int)
    assert found.shape == (16, 20, 3)
    assert np.abs(found - whole).mean() < 0.6
    assert np.abs(found - whole).max() <= 10


@pytest.mark.parametrize("mode", RESIZES)
@pytest.mark.parametrize("size", [(640, 300), (300, 640), (97, 61), (224, 223), (1500, 1499)])
@pytest.mark.parametrize("input_size", [(224, 224), (96, 160)])
def test_a_square_is_found_in_the_input_and_mapped_back_to_where_it_was_drawn(
    mode: str, size: tuple[int, int], input_size: tuple[int, int]
) -> None:
    geometry = _geometry(mode, size, input_size)
    view = geometry.view
    left, top, right, bottom = geometry.visible
    # An off-centre box inside the part that the model sees.
    box = (
        left + round(0.55 * (right - left)), top + round(0.2 * (bottom - top)),
        left + round(0.9 * (right - left)), top + round(0.5 * (bottom - top)),
    )  # fmt: skip
    image = Image.new("RGB", size)
    image.paste("white", box)
    bright = make_input(image, geometry)[..., 0] > 127
    columns, rows = np.flatnonzero(bright.any(axis=0)), np.flatnonzero(bright.any(axis=1))
    found = *view.to_original(columns[0], rows[0]), *view.to_original(columns[-1] + 1, rows[-1] + 1)
    for measured, drawn, scale in zip(found, box, (view.scale_x, view.scale_y) * 2, strict=True):
        assert abs(measured - drawn) <= scale + 1e-6


# Maps


@given(st.sampled_from(RESIZES), SMALL_SIZES, SMALL_SIZES, MAP_SHAPES)
@unhurried
def test_a_constant_map_is_constant_where_the_model_saw_and_zero_elsewhere(
    mode: str, image_size: tuple[int, int], input_size: tuple[int, int], shape: tuple[int, int]
) -> None:
    geometry = _geometry(mode, image_size, input_size)
    projected = project_map(np.full(shape, 3.0, np.float32), geometry)
    left, top, right, bottom = geometry.visible
    expected = np.zeros((image_size[1], image_size[0]), np.float32)
    expected[top:bottom, left:right] = 3.0
    assert projected.dtype == np.float32
    np.testing.assert_allclose(projected, expected, rtol=1e-5)


def _project_slowly(values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Bilinear with half-pixel centres, pixel by pixel, from the definition of a view."""
    height, width = values.shape
    view = geometry.view
    out = np.zeros((geometry.height, geometry.width))
    left, top, right, bottom = geometry.visible
    for y in range(top, bottom):
        for x in range(left, right):
            u = (x + 0.5 - view.offset_x) / view.scale_x / view.width * width - 0.5
            v = (y + 0.5 - view.offset_y) / view.scale_y / view.height * height - 0.5
            u, v = min(max(u, 0.0), width - 1.0), min(max(v, 0.0), height - 1.0)
            i, j = min(int(v), max(height - 2, 0)), min(int(u), max(width - 2, 0))
            p, q = v - i, u - j
            below, beside = min(i + 1, height - 1), min(j + 1, width - 1)
            out[y, x] = (1 - p) * ((1 - q) * values[i, j] + q * values[i, beside]) + p * (
                (1 - q) * values[below, j] + q * values[below, beside]
            )
    return out


@pytest.mark.parametrize("mode", RESIZES)
@pytest.mark.parametrize("size", [(60, 34), (31, 57), (40, 40)])
@pytest.mark.parametrize("shape", [(7, 7), (3, 5), (1, 4), (8, 2)])
def test_a_map_is_interpolated_as_by_the_slow_definition(
    mode: str, size: tuple[int, int], shape: tuple[int, int]
) -> None:
    values = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    geometry = _geometry(mode, size, (24, 20))
    np.testing.assert_allclose(project_map(values, geometry), _project_slowly(values, geometry), atol=1e-5)


@given(
    st.sampled_from(RESIZES),
    st.tuples(st.integers(40, 160), st.integers(40, 160)),
    st.tuples(st.integers(20, 120), st.integers(20, 120)),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.randoms(use_true_random=False),
)
@unhurried
def test_the_peak_of_one_cell_lies_at_its_centre(mode: str, image_size, input_size, shape, random) -> None:
    geometry = _geometry(mode, image_size, input_size)
    view = geometry.view
    row, column = random.randrange(shape[0]), random.randrange(shape[1])
    x, y = cell_center(row, column, shape, view)
    left, top, right, bottom = geometry.visible
    values = np.zeros(shape, np.float32)
    values[row, column] = 1
    if not (left < x < right and top < y < bottom):
        return  # the cell lies in a bar
    projected = project_map(values, geometry)
    found_y, found_x = (index + 0.5 for index in np.unravel_index(np.argmax(projected), projected.shape))
    cell_x, cell_y = view.scale_x * view.width / shape[1], view.scale_y * view.height / shape[0]
    # At the border bilinear interpolation holds the outermost centre's value up to the edge.
    assert abs(found_x - x) <= max(1.0, cell_x / 2 * (column in (0, shape[1] - 1))) + 1e-6
    assert abs(found_y - y) <= max(1.0, cell_y / 2 * (row in (0, shape[0] - 1))) + 1e-6


def test_the_centre_of_a_cell_is_half_a_cell_in() -> None:
    view = fit_view("stretch", (700, 140), (70, 70))
    assert cell_center(0, 0, (7, 7), view) == pytest.approx((50, 10))
    assert cell_center(6, 1, (7, 7), view) == pytest.approx((150, 130))
    assert cell_center(0, 3, (2, 4), fit_view("crop", (200, 100), (50, 50))) == pytest.approx((50 + 87.5, 25))


def test_the_visible_part_of_a_map_is_told_in_cells() -> None:
    assert _geometry("pad", (200, 100), (100, 100)).to_cells((4, 8)) == pytest.approx((0, 1, 8, 3))
    assert _geometry("pad", (100, 200), (100, 100)).to_cells((4, 8)) == pytest.approx((2, 0, 6, 4))
    assert _geometry("crop", (200, 100), (100, 100)).to_cells((4, 8)) == pytest.approx((0, 0, 8, 4))


def test_what_lies_in_a_bar_is_not_pulled_into_the_image() -> None:
    values = np.zeros((4, 4), np.float32)
    values[0] = 100  # the upper bar of a wide image
    projected = project_map(values, _geometry("pad", (80, 40), (40, 40)))
    assert projected[20:].max() == 0
    assert projected[0].max() < 50  # the interpolation between bar and image, no more


@given(st.sampled_from(RESIZES), SIZES, INPUT_SIZES, MAP_SHAPES)
@unhurried
def test_the_centre_of_an_image_comes_from_the_centre_of_the_input(
    mode: str, image_size: tuple[int, int], input_size: tuple[int, int], shape: tuple[int, int]
) -> None:
    view = fit_view(mode, image_size, input_size)
    x, y = view.to_original(view.width / 2, view.height / 2)
    assert abs(x - image_size[0] / 2) <= max(0.5, view.scale_x / 2) + 1e-6
    assert abs(y - image_size[1] / 2) <= max(0.5, view.scale_y / 2) + 1e-6
    middle = cell_center(0, 0, (1, 1), view)
    assert middle == pytest.approx((x, y))


# The strongest region


def _block(shape: tuple[int, int], rows: slice, columns: slice, value: float = 1.0) -> np.ndarray:
    values = np.zeros(shape, np.float32)
    values[rows, columns] = value
    return values


def test_half_of_the_maximum_boxes_a_block_by_its_own_cells() -> None:
    # Between a cell of 1 and a cell of 0 the bilinear map is one half at their common edge.
    values = _block((5, 8), slice(1, 3), slice(4, 7))
    box = strongest_region(values, _geometry("stretch", (800, 50), (64, 64)), threshold=0.5)
    assert box == pytest.approx((400, 10, 300, 20), abs=100 / 10 + 1e-6)
    x, y, width, height = box
    assert abs(y - 10) <= 1.0 + 1e-6
    assert abs(y + height - 30) <= 1.0 + 1e-6
    assert (x, width) == pytest.approx((400, 300), abs=10 + 1e-6)


def test_a_fifth_of_the_maximum_is_the_default_threshold() -> None:
    # The map falls to 0.2 at 0.8 of a cell from the centre.
    box = strongest_region(_block((7, 7), slice(3, 4), slice(3, 4)), _geometry("stretch", (700, 700), (70, 70)))
    assert box == pytest.approx((270, 270, 160, 160), abs=2 * 100 / 7 + 1e-6)
    wide = strongest_region(
        _block((7, 7), slice(3, 4), slice(3, 4)), _geometry("stretch", (700, 700), (70, 70)), threshold=0.9
    )
    assert wide[2] < 50


def test_of_two_blobs_only_the_one_with_the_maximum_is_boxed() -> None:
    values = _block((8, 8), slice(1, 2), slice(1, 2), 1.0) + _block((8, 8), slice(5, 8), slice(5, 8), 0.9)
    geometry = _geometry("stretch", (80, 80), (80, 80))
    x, y, width, height = strongest_region(values, geometry)
    assert x + width <= 30
    assert y + height <= 30
    assert min(width, height) >= 10
    x, y, width, height = strongest_region(values[::-1, ::-1], geometry)
    assert x >= 50
    assert y >= 50


def test_blobs_that_touch_at_a_corner_are_one_region() -> None:
    values = _block((48, 48), slice(10, 11), slice(10, 11), 1.0) + _block((48, 48), slice(11, 12), slice(11, 12), 0.9)
    values += _block((48, 48), slice(12, 13), slice(10, 11), 0.8) + _block((48, 48), slice(14, 15), slice(14, 15), 0.9)
    box = strongest_region(values, _geometry("stretch", (48, 96), (48, 48)))
    assert box == pytest.approx((10, 20, 2, 6))


def test_a_winding_region_is_followed_to_its_end() -> None:
    values = np.zeros((60, 60), np.float32)
    for step in range(5, 55, 4):  # a meander: right, down, left, down
        values[step, 5:50] = 0.5
        values[step : step + 5, 49 if (step - 5) % 8 == 0 else 5] = 0.5
    values[5, 5] = 1.0
    values[59, 59] = 0.9  # apart
    box = strongest_region(values, _geometry("stretch", (60, 60), (60, 60)))
    assert box == pytest.approx((5, 5, 45, 53))


def _reach_slowly(mask: np.ndarray, start: tuple[int, int]) -> set[tuple[int, int]]:
    """The cells that eight steps at a time lead to."""
    reached, waiting = {start}, [start]
    while waiting:
        row, column = waiting.pop()
        for place in ((row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
            if place not in reached and all(0 <= p < n for p, n in zip(place, mask.shape, strict=True)) and mask[place]:
                reached.add(place)
                waiting.append(place)
    return reached


@pytest.mark.parametrize("share", [0.3, 0.4, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(48, 48), (48, 71), (63, 50)])
@pytest.mark.parametrize("seed", range(4))
def test_a_region_is_what_steps_from_the_maximum_reach(share: float, shape: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.random(shape) < share).astype(np.float32)
    places = [rng.integers(shape), (0, shape[1] - 1), (shape[0] - 1, 0), (rng.integers(shape[0]), shape[1] - 1)]
    start = tuple(int(place) for place in places[seed])  # the last column too, which has no neighbour to the right
    values[start] = 2
    rows, columns = zip(*_reach_slowly(values > 0, start), strict=True)
    box = strongest_region(values, _geometry("stretch", shape[::-1], (64, 64)))
    expected = min(columns), min(rows), max(columns) + 1 - min(columns), max(rows) + 1 - min(rows)
    assert box == pytest.approx(expected)


@pytest.mark.parametrize("values", [np.full((4, 4), -1.0), np.zeros((3, 5)), np.array([[-1e-30, 0.0], [-5.0, -1.0]])])
def test_a_map_without_anything_positive_has_no_region(values: np.ndarray) -> None:
    assert strongest_region(values.astype(np.float32), _geometry("stretch", (80, 80), (40, 40))) is None


@pytest.mark.parametrize("side", [7, 8, 12, 14, 16, 24])
@pytest.mark.parametrize("depth", [-1.0, -1000.0])
def test_one_positive_cell_among_strong_negative_ones_is_boxed_at_its_place(side: int, depth: float) -> None:
    values = np.full((side, side), depth, np.float32)
    values[2, 4] = 1.0
    x, y, width, height = strongest_region(values, _geometry("stretch", (10 * side, 10 * side), (64, 64)))
    assert 40 - 10 <= x <= 45 <= x + width <= 50 + 10
    assert 20 - 10 <= y <= 25 <= y + height <= 30 + 10


def test_a_region_that_reaches_the_border_ends_there() -> None:
    box = strongest_region(_block((6, 6), slice(0, 2), slice(4, 6)), _geometry("stretch", (60, 60), (60, 60)), 0.5)
    assert box == pytest.approx((40, 0, 20, 20), abs=10 / 8 + 1e-6)
    assert box[1] == 0
    assert box[0] + box[2] == pytest.approx(60)
    whole = strongest_region(np.ones((6, 6), np.float32), _geometry("stretch", (61, 59), (30, 30)))
    assert whole == pytest.approx((0, 0, 61, 59))


def test_a_region_is_clipped_to_the_image_where_the_input_was_padded() -> None:
    # A wide image: the bars above and below are cells 0 and 3 of 4.
    geometry = _geometry("pad", (80, 40), (40, 40))
    box = strongest_region(np.ones((4, 4), np.float32), geometry)
    assert box == pytest.approx((0, 0, 80, 40))
    x, y, width, height = strongest_region(_block((4, 4), slice(0, 2), slice(1, 2)), geometry, 0.5)
    assert (x, width) == pytest.approx((20, 20), abs=80 / 48 + 1e-6)
    assert (y, height) == pytest.approx((0, 20), abs=80 / 48 + 1e-6)
    assert y == 0


def test_a_region_of_a_crop_lies_where_the_crop_lies() -> None:
    values = _block((4, 4), slice(2, 3), slice(0, 1))
    box = strongest_region(values, _geometry("crop", (200, 100), (50, 50)), 0.5)
    assert box == pytest.approx((50, 50, 25, 25), abs=2 * 100 / 48 + 1e-6)
    assert box[0] == 50


@given(st.sampled_from(RESIZES), SMALL_SIZES, SMALL_SIZES, MAP_SHAPES, st.integers(0, 2**32 - 1))
@unhurried
def test_a_box_lies_inside_the_image_whatever_the_map(
    mode: str, image_size: tuple[int, int], input_size: tuple[int, int], shape: tuple[int, int], seed: int
) -> None:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    box = strongest_region(values, _geometry(mode, image_size, input_size))
    if values.max() <= 0:
        assert box is None
    if box is None:  # nothing is positive, or all of it lies in a bar of padding
        assert values.max() <= 0 or mode == "pad"
        return
    x, y, width, height = box
    assert 0 <= x <= x + width <= image_size[0] + 1e-6
    assert 0 <= y <= y + height <= image_size[1] + 1e-6


def test_a_shrunken_geometry_maps_to_the_same_places_of_the_image() -> None:
    geometry = Geometry(3000, 1500, fit_view("crop", (3000, 1500), (224, 224)))
    shrunk, scale = shrink_geometry(geometry, 300)
    assert (shrunk.width, shrunk.height, scale) == (300, 150, 0.1)
    values = np.arange(49, dtype=np.float32).reshape(7, 7)
    large, small = project_map(values, geometry), project_map(values, shrunk)
    np.testing.assert_allclose(small, large.reshape(150, 10, 300, 10).mean(axis=(1, 3)), atol=0.6)
    assert shrink_geometry(shrunk, 300) == (shrunk, 1.0)


@given(st.sampled_from(RESIZES), SIZES, INPUT_SIZES, st.integers(1, 40))
@unhurried
def test_a_shrunken_image_shows_at_least_one_pixel_of_the_map(
    mode: str, image_size: tuple[int, int], input_size: tuple[int, int], longest: int
) -> None:
    geometry, _ = shrink_geometry(_geometry(mode, image_size, input_size), longest)
    left, top, right, bottom = geometry.visible
    assert 0 <= left < right <= geometry.width
    assert 0 <= top < bottom <= geometry.height
    projected = project_map(np.full((3, 2), 4.0, np.float32), geometry)
    assert projected.shape == (geometry.height, geometry.width)
    np.testing.assert_allclose(projected[top:bottom, left:right], 4.0, rtol=1e-6)
    assert np.count_nonzero(projected) == (right - left) * (bottom - top)


def test_the_crop_of_a_long_and_thin_image_stays_in_its_middle_when_it_is_shrunk() -> None:
    wide, _ = shrink_geometry(_geometry("crop", (30_000, 10), (224, 224)), 511)
    assert wide.visible == (255, 0, 256, 1)
    tall, _ = shrink_geometry(_geometry("crop", (1, 5000), (224, 224)), 101)
    assert tall.visible == (0, 50, 1, 51)


def test_boxes_are_cut_off_at_the_border_of_the_image() -> None:
    geometry = Geometry(20, 10, fit_view("stretch", (20, 10), (8, 8)))
    boxes = [(1.0, 2.0, 3.0, 4.0), (-2.0, 5.0, 5.0, 9.0), (25.0, 0.0, 3.0, 3.0), (19.0, 9.0, 5.0, 5.0)]
    assert clip_boxes(boxes, geometry) == [(1, 2, 3, 4), (0, 5, 3, 5), (19, 9, 1, 1)]

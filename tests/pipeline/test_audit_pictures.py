"""The report's pictures."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipeline.audit import pictures
from pipeline.errors import ImageError
from pipeline.overlay import color_table

MAPS = arrays(np.float32, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.floats(-1, 1, width=16))


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def value_at(values: np.ndarray, x: float, y: float) -> float:
    """The bilinear map at a point in cells, by its definition; beyond the outermost centres it is level."""
    height, width = values.shape
    x, y = min(max(x - 0.5, 0), width - 1), min(max(y - 0.5, 0), height - 1)
    j, i = min(int(x), max(width - 2, 0)), min(int(y), max(height - 2, 0))
    right, below = min(j + 1, width - 1), min(i + 1, height - 1)
    top = (1 - (x - j)) * values[i, j] + (x - j) * values[i, right]
    bottom = (1 - (x - j)) * values[below, j] + (x - j) * values[below, right]
    return (1 - (y - i)) * top + (y - i) * bottom


def segments_of(path: str) -> list[list[tuple[float, float]]]:
    parts = [part.split("L") for part in path.split("M")[1:]]
    return [[tuple(float(number) for number in point.split()) for point in part] for part in parts]


# Maps


def test_an_overlay_has_a_pixel_a_cell_as_opaque_as_the_map_is_strong() -> None:
    pixels = pixels_of(pictures.overlay_png(np.array([[0, 1, 2], [-3, 4, 3]], np.float32)))
    assert pixels.shape == (2, 3, 4)
    assert pixels[..., 3].tolist() == [[0, 54, 109], [0, 217, 162]]  # 85 % of 255, times the share of 4
    table = np.frombuffer(color_table("inferno"), np.uint8).reshape(256, 4)
    assert pixels[1, 1].tolist() == table[255].tolist()


def test_a_map_by_itself_is_opaque_and_in_the_colours_of_its_name() -> None:
    pixels = pixels_of(pictures.map_png(np.array([[0, 2]], np.float32), "cividis"))
    table = np.frombuffer(color_table("cividis"), np.uint8).reshape(256, 4)
    assert pixels.tolist() == [[table[0, :3].tolist(), table[255, :3].tolist()]]


def test_an_overlay_takes_a_few_hundred_bytes() -> None:
    assert len(pictures.overlay_png(np.random.default_rng(0).random((7, 7)))) < 300


@given(values=MAPS)
def test_letters_tell_every_cell_to_a_hundredth_row_by_row(values: np.ndarray) -> None:
    letters = pictures.encode_cells(values)
    largest = max(values.max(), 0)
    expected = np.maximum(values, 0).ravel() / largest if largest > 0 else np.zeros(values.size)
    told = np.array([pictures.LETTERS.index(letter) for letter in letters]) / 63
    np.testing.assert_allclose(told, expected, atol=0.5 / 63 + 1e-6)


def test_a_map_that_is_not_finite_or_all_negative_shows_nothing() -> None:
    for values in (np.full((2, 2), np.nan), -np.ones((2, 2)), np.zeros((2, 2))):
        assert pictures.scale_to_one(values).tolist() == [[0, 0], [0, 0]]
        assert pixels_of(pictures.overlay_png(values))[..., 3].max() == 0
        assert pictures.half_contour(values) == ""


# The contour


@given(values=MAPS)
def test_the_contour_runs_where_the_bilinear_map_is_half_its_maximum(values: np.ndarray) -> None:
    scaled = pictures.scale_to_one(values)
    for segment in segments_of(pictures.half_contour(values)):
        for x, y in segment:
            assert 0 <= x <= values.shape[1]
            assert 0 <= y <= values.shape[0]
            assert value_at(scaled, x, y) == pytest.approx(0.5, abs=2e-3)


def test_the_contour_surrounds_a_peak_and_follows_x_and_y() -> None:
    values = np.zeros((3, 5))
    values[1, 3] = 1
    points = np.array([point for segment in segments_of(pictures.half_contour(values)) for point in segment])
    assert points.min(axis=0).tolist() == [3.0, 1.0]
    assert points.max(axis=0).tolist() == [4.0, 2.0]


@pytest.mark.parametrize(("corner", "middle_is_high"), [(0.9, True), (0.6, False)])
def test_at_a_saddle_the_contour_goes_round_what_its_middle_is_not(corner: float, middle_is_high: bool) -> None:
    values = np.array([[1.0, 0.4], [0.3, corner]]) if middle_is_high else np.array([[1.0, 0.0], [0.0, corner]])
    inner = [
        s for s in segments_of(pictures.half_contour(values)) if all(0.5 <= x <= 1.5 and 0.5 <= y <= 1.5 for x, y in s)
    ]
    assert len(inner) == 2
    for segment in inner:
        x, y = np.mean(segment, axis=0)
        near = min(((0.5, 0.5), (1.5, 0.5), (1.5, 1.5), (0.5, 1.5)), key=lambda c: np.hypot(x - c[0], y - c[1]))
        is_low = near in ((1.5, 0.5), (0.5, 1.5))
        assert is_low == middle_is_high


# Photographs


def test_a_thumbnail_is_small_upright_and_keeps_the_shape(tmp_path: Path) -> None:
    photo = Image.new("RGB", (800, 600), "blue")
    photo.paste("red", (0, 0, 800, 300))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise: what is above comes to the right
    photo.save(tmp_path / "a.jpg", exif=exif)
    small = pictures.make_thumbnail(str(tmp_path / "a.jpg"))
    assert (small.width, small.height) == (180, 240)
    pixels = np.asarray(Image.open(io.BytesIO(small.jpeg)))
    assert pixels.shape == (240, 180, 3)
    np.testing.assert_allclose(pixels[120, 20], [0, 0, 255], atol=12)
    np.testing.assert_allclose(pixels[120, 160], [255, 0, 0], atol=12)
    assert b"Exif" not in small.jpeg


def test_a_small_image_is_not_made_larger(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    small = pictures.make_thumbnail(str(tmp_path / "a.png"))
    assert (small.width, small.height) == (40, 20)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("root:x:0:0")
    with pytest.raises(ImageError, match="not an image"):
        pictures.make_thumbnail(str(tmp_path / "a.jpg"))


def test_colours_for_the_script_are_those_of_the_maps() -> None:
    stops = pictures.color_stops(("viridis",), count=17)["viridis"]
    table = np.frombuffer(color_table("viridis"), np.uint8).reshape(256, 4)[:, :3].astype(float)
    between = np.array(
        [np.interp(np.arange(256) / 255, np.linspace(0, 1, 17), np.array(stops)[:, k]) for k in range(3)]
    ).T
    assert np.abs(between - table).max() < 6


def test_a_data_uri_holds_its_bytes() -> None:
    assert re.fullmatch(r"data:image/png;base64,AP8=", pictures.data_uri(b"\x00\xff", "png"))

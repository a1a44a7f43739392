"""Contact sheets show every picture whole, in its place, with its caption below it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFont

from pipeline.sheet import GAP, LINE, make_sheet

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
TILE = 60


def _sheet(tiles: list, columns: int, tile_size: int = TILE) -> np.ndarray:
    with Image.open(io.BytesIO(make_sheet(tiles, columns, tile_size))) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def _where(pixels: np.ndarray, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The box round all pixels of a colour: left, top, right, bottom."""
    mask = (pixels == color).all(axis=2)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_tiles_fill_rows_from_the_left_with_gaps_between() -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
    pixels = _sheet([(Image.new("RGB", (TILE, TILE), color), "") for color in colors], columns=3)
    height = TILE + LINE + GAP
    assert pixels.shape == (2 * height + GAP, 3 * (TILE + GAP) + GAP, 3)
    for i, color in enumerate(colors):
        left, top = GAP + i % 3 * (TILE + GAP), GAP + i // 3 * height
        assert _where(pixels, color) == (left, top, left + TILE, top + TILE)
    assert (pixels[height + GAP :, 2 * (TILE + GAP) + GAP :] == 255).all(), "the place of a missing tile is white"


@pytest.mark.parametrize(
    ("size", "box"), [((120, 60), (0, 15, 60, 45)), ((60, 120), (15, 0, 45, 60)), ((20, 10), (20, 25, 40, 35))]
)
def test_a_picture_is_fitted_in_whole_centred_and_never_enlarged(size: tuple, box: tuple) -> None:
    picture = Image.new("RGB", size, RED)
    pixels = _sheet([(picture, "")], columns=1)
    assert _where(pixels, RED) == tuple(GAP + edge for edge in box)
    assert picture.size == size, "the caller's picture was changed"


def test_a_caption_stands_below_its_own_picture() -> None:
    tiles = [(Image.new("RGB", (TILE, TILE), RED), ""), (Image.new("RGB", (TILE, TILE), BLUE), "cat")]
    pixels = _sheet(tiles, columns=2)
    ink = np.argwhere((pixels < 128).all(axis=2))
    assert len(ink) > 10
    rows, columns = ink[:, 0], ink[:, 1]
    assert GAP + TILE <= rows.min() <= rows.max() < GAP + TILE + LINE + GAP
    assert GAP + TILE + GAP <= columns.min() <= columns.max() < GAP + 2 * TILE + GAP


def test_every_line_of_a_caption_is_shown_and_all_tiles_get_room_for_the_longest() -> None:
    picture = Image.new("RGB", (TILE, TILE), RED)
    one = _sheet([(picture, "cat"), (picture, "dog")], columns=1)
    two = _sheet([(picture, "cat"), (picture, "dog\n0.93")], columns=1)
    assert two.shape[0] == one.shape[0] + 2 * LINE
    assert two.shape[1] == one.shape[1]
    below = two[two.shape[0] - GAP - GAP - LINE :]
    assert (below < 128).all(axis=2).any(), "the second line is missing"
    np.testing.assert_array_equal(one[: GAP + TILE + LINE], two[: GAP + TILE + LINE])


def test_a_long_caption_is_cut_with_an_ellipsis_before_its_neighbour() -> None:
    picture = Image.new("RGB", (TILE, TILE), RED)
    long = _sheet([(picture, "m" * 500), (picture, "")], columns=2)
    captions = long[GAP + TILE + 1 : GAP + TILE + 1 + LINE]
    assert (captions[:, GAP + TILE + GAP // 2 :] > 200).all(), "the caption runs into the next tile"
    assert (captions[:, GAP : GAP + TILE] < 128).all(axis=2).any()
    # What was cut is told: the letters that fit, without the ellipsis, look different.
    font = ImageFont.load_default(11)
    fitting = [count for count in range(1, 20) if font.getlength("m" * count) <= TILE]
    assert len(fitting) > 3
    for count in fitting:
        assert not np.array_equal(_sheet([(picture, "m" * count), (picture, "")], columns=2), long)


def test_a_caption_that_fits_is_not_cut() -> None:
    picture = Image.new("RGB", (200, 200), RED)
    wide = _sheet([(picture, "golden retriever")], columns=1, tile_size=200)
    wider = _sheet([(picture, "golden retriever")], columns=1, tile_size=220)
    np.testing.assert_array_equal(wide[GAP + 200 : GAP + 200 + LINE, :200], wider[GAP + 220 : GAP + 220 + LINE, :200])


def test_captions_may_be_in_other_scripts() -> None:
    pixels = _sheet([(Image.new("RGB", (TILE, TILE), RED), "Köter Ω")], columns=1)
    assert (pixels[GAP + TILE :] < 128).all(axis=2).any()


def test_a_sheet_without_tiles_is_white_and_no_error() -> None:
    assert (_sheet([], columns=3) == WHITE).all()

"""Run lengths are those of slow decoders that were written from the descriptions of the formats."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.exports.regions import Region
from pipeline.exports.rle import brush_rle, coco_rle, cvat_rle


def decode_coco(text: str, width: int, height: int) -> np.ndarray:
    counts: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            group = ord(text[place]) - 48
            value |= (group & 31) << shift
            more = bool(group & 32)
            place, shift = place + 1, shift + 5
            if not more and group & 16:
                value |= -1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    assert min(counts[1:], default=1) > 0
    return unroll(counts).reshape(width, height).T


def unroll(counts: list[int]) -> np.ndarray:
    return np.concatenate([np.full(count, i % 2, bool) for i, count in enumerate(counts)])


def decode_brush(data: list[int], width: int, height: int) -> np.ndarray:
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    size, word, sizes = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < size:
        repeated, length = take(1), take(sizes[take(2)]) + 1
        values += [take(word)] * length if repeated else [take(word) for _ in range(length)]
    assert len(bits) - place < 8
    return np.array(values).reshape(height, width, 4)


MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 8))).filter(lambda mask: mask.any())


def place_in(mask: np.ndarray, before: tuple[int, int], behind: tuple[int, int]) -> tuple[Region, np.ndarray]:
    """A region in an image with so many more rows and columns before and behind; and that image."""
    region = Region(before[1], before[0], mask, 1.0)
    return region, np.pad(mask, tuple(zip(before, behind, strict=True)))


MARGINS = st.tuples(st.integers(0, 3), st.integers(0, 3))


@given(MASKS, MARGINS, MARGINS)
@settings(deadline=None)
def test_every_mask_comes_back_from_every_format(
    mask: np.ndarray, before: tuple[int, int], behind: tuple[int, int]
) -> None:
    region, whole = place_in(mask, before, behind)
    height, width = whole.shape
    assert (decode_coco(coco_rle(region, width, height), width, height) == whole).all()
    assert (unroll(cvat_rle(region)).reshape(mask.shape) == mask).all()
    pixels = decode_brush(brush_rle(region, width, height), width, height)
    assert (pixels == 255 * whole[:, :, None]).all()


def test_coco_letters_are_those_of_the_format() -> None:
    """By hand: 4, 1 and 4 are single letters; 100 is 4 with more to come, then 3; the fourth run is a difference."""
    one = Region(1, 1, np.ones((1, 1), bool), 1.0)
    assert coco_rle(one, 3, 3) == "414"
    assert coco_rle(Region(0, 100, np.ones((1, 1), bool), 1.0), 1, 101) == "T31"
    assert coco_rle(Region(0, 0, np.array([[1, 0, 1, 1]], bool).T, 1.0), 1, 4) == "0111"  # 0 1 1 2-1


def test_runs_longer_than_a_length_can_say_are_written_in_parts() -> None:
    region = Region(0, 0, np.ones((300, 401), bool), 1.0)
    pixels = decode_brush(brush_rle(region, 401, 300), 401, 300)
    assert (pixels == 255).all()


@pytest.mark.parametrize("write", [coco_rle, brush_rle])
def test_a_column_or_row_of_full_length_joins_with_the_next(write) -> None:
    """Else two runs of one value would follow each other, which readers take for the other value."""
    region = Region(0, 0, np.ones((5, 5), bool), 1.0)
    decode = decode_coco if write is coco_rle else decode_brush
    assert decode(write(region, 5, 5), 5, 5).all()

"""Regions are those of a slow search in a bilinear map, computed point by point; outlines hold what masks hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.decode import decode_image
from pipeline.exports.regions import Cut, Region, find_regions, outline
from pipeline.geometry import Geometry, fit_view
from pipeline.storage import read_bytes
from tests.exports.making import PICTURES, make_run

ALL = Cut(min_area=0.0, min_energy=0.0)


def bilinear(values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Point by point: half-pixel centres, edges repeated, 0 outside the view; only for maps that grow."""
    view, (h, w) = geometry.view, values.shape
    left, top, right, bottom = geometry.visible
    out = np.zeros((geometry.height, geometry.width))
    for y in range(top, bottom):
        for x in range(left, right):
            column = np.clip((x + 0.5 - view.offset_x) / view.scale_x * w / view.width - 0.5, 0, w - 1)
            row = np.clip((y + 0.5 - view.offset_y) / view.scale_y * h / view.height - 0.5, 0, h - 1)
            i, j = int(row), int(column)
            a, b = row - i, column - j
            i2, j2 = min(i + 1, h - 1), min(j + 1, w - 1)
            out[y, x] = (1 - a) * ((1 - b) * values[i, j] + b * values[i, j2]) + a * (
                (1 - b) * values[i2, j] + b * values[i2, j2]
            )
    return out


def flood(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """The 8-connected parts of a mask, by walking."""
    left, parts = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}, []
    while left:
        waiting, part = [left.pop()], set()
        while waiting:
            y, x = waiting.pop()
            part.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            waiting += near
        parts.append(part)
    return parts


def pixels_of(region: Region) -> set[tuple[int, int]]:
    return {(int(y) + region.top, int(x) + region.left) for y, x in zip(*np.nonzero(region.mask), strict=True)}


@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(40, 31), (23, 57)])
@pytest.mark.parametrize("seed", range(2))
def test_regions_are_the_connected_parts_above_the_threshold_with_their_energy(
    mode: str, size: tuple[int, int], seed: int
) -> None:
    geometry = Geometry(*size, fit_view(mode, size, (16, 16)))
    values = np.random.default_rng(seed).normal(size=(5, 4)).astype(np.float32) ** 3
    shown = np.maximum(bilinear(values.astype(np.float64), geometry), 0)
    # Where no pixel is near, since one within rounding of the threshold may fall on either side.
    levels = np.unique(np.r_[0.2, (shown / shown.max()).ravel(), 0.4])
    levels = levels[(levels >= 0.2) & (levels <= 0.4)]
    widest = int(np.argmax(np.diff(levels)))
    threshold = float(levels[widest : widest + 2].mean())
    expected = flood(shown >= threshold * shown.max())
    energy = {frozenset(part): sum(shown[p] for p in part) / shown.sum() for part in expected}
    found = find_regions(values, geometry, Cut(threshold, 0.0, 0.0))
    assert {frozenset(pixels_of(region)) for region in found} == set(energy)
    for region in found:
        assert region.energy == pytest.approx(energy[frozenset(pixels_of(region))], rel=1e-4)
        assert region.mask[[0, -1]].any(axis=1).all()
        assert region.mask[:, [0, -1]].any(axis=0).all()
    assert [region.energy for region in found] == sorted((region.energy for region in found), reverse=True)


def two_regions() -> tuple[np.ndarray, Geometry]:
    """A strong region of 100 pixels of 900, and a weak one of 25, without anything between."""
    values = np.zeros((30, 30), np.float32)
    values[2:12, 3:13] = 1.0
    values[20:25, 20:25] = 0.5
    return values, Geometry(30, 30, fit_view("stretch", (30, 30), (30, 30)))


@pytest.mark.parametrize(
    ("cut", "count"),
    [
        (Cut(), 2),
        (Cut(0.5), 2),
        (Cut(0.51), 1),  # the weak one does not reach it
        (Cut(min_area=25 / 900), 2),
        (Cut(min_area=26 / 900), 1),
        (Cut(min_energy=12.5 / 112.5), 2),
        (Cut(min_energy=12.6 / 112.5), 1),
        (Cut(most=1), 1),
        (Cut(min_area=0.2), 0),
    ],
)
def test_small_and_weak_regions_are_left_out_at_their_limits(cut: Cut, count: int) -> None:
    found = find_regions(*two_regions(), cut)
    assert len(found) == count
    if found:
        strongest = found[0]
        assert (strongest.left, strongest.top, strongest.right, strongest.bottom) == (3, 2, 13, 12)
        assert strongest.area == 100
        assert strongest.energy == pytest.approx(100 / 112.5)


def test_what_is_not_positive_has_no_region() -> None:
    _, geometry = two_regions()
    assert find_regions(np.zeros((3, 3), np.float32), geometry) == []
    assert find_regions(np.full((3, 3), -2, np.float32), geometry) == []


def test_regions_and_peaks_of_every_geometry_lie_on_the_marker_of_the_photograph(tmp_path) -> None:
    """Within a cell of the map; the photograph is decoded anew, so that a turned one is turned."""
    run = make_run(tmp_path)
    checked = 0
    for record, one in zip(run, PICTURES, strict=True):
        if one.values is not None:
            continue
        pixels = np.asarray(decode_image(read_bytes(record.uri)).convert("L"))
        assert pixels.shape == (record.geometry.height, record.geometry.width)
        rows, columns = np.flatnonzero((pixels > 128).any(1)), np.flatnonzero((pixels > 128).any(0))
        region = find_regions(record.maps[0].array(), record.geometry, ALL)[0]
        view = record.geometry.view
        cell = max(view.scale_x, view.scale_y) * view.width / 16
        found = (region.left, region.top, region.right, region.bottom)
        edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert np.abs(np.subtract(found, edges)).max() <= cell + 1
        shown = record.maps[0]
        assert columns[0] <= shown.peak_x <= columns[-1] + 1
        assert rows[0] <= shown.peak_y <= rows[-1] + 1
        checked += 1
    assert checked >= 6


def inside(polygon: list[tuple[float, float]], x: float, y: float) -> bool:
    """Whether a point is inside, by counting the edges to its right; polygons may touch themselves."""
    crossed = False
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            crossed = not crossed
    return crossed


def connected(mask: np.ndarray) -> Region:
    """The largest part of a mask, as a region somewhere in an image."""
    part = np.array(sorted(max(flood(mask), key=len)))
    tight = np.zeros(part.max(0) - part.min(0) + 1, bool)
    tight[tuple((part - part.min(0)).T)] = True
    return Region(7, 11, tight, 1.0)


@given(arrays.arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))).filter(lambda mask: mask.any()))
@settings(deadline=None, max_examples=60)
def test_outlines_hold_exactly_the_mask_without_holes(mask: np.ndarray) -> None:
    region = connected(mask)
    polygon = outline(region, tolerance=0.0)
    framed = np.pad(region.mask, 1)
    outside = next(part for part in flood4(~framed) if (0, 0) in part)
    for y in range(framed.shape[0]):
        for x in range(framed.shape[1]):
            assert inside(polygon, x - 1 + 7.5, y - 1 + 11.5) == ((y, x) not in outside)


def flood4(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    left, parts = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}, []
    while left:
        waiting, part = [left.pop()], set()
        while waiting:
            y, x = waiting.pop()
            part.add((y, x))
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            waiting += near
        parts.append(part)
    return parts


def test_outlines_of_round_regions_are_short_and_near() -> None:
    y, x = np.mgrid[:200, :300]
    mask = ((x - 150) / 150) ** 2 + ((y - 100) / 100) ** 2 <= 1
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    region = Region(0, 0, mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1.0)
    polygon = outline(region)
    assert len(polygon) < 80
    area = 0.5 * abs(
        sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True))
    )
    assert area == pytest.approx(mask.sum(), rel=0.01)


def test_the_outline_of_one_pixel_is_its_square() -> None:
    assert outline(Region(3, 5, np.ones((1, 1), bool), 1.0)) == [(3, 5), (4, 5), (4, 6), (3, 6)]


def test_corners_connect() -> None:
    geometry = Geometry(3, 3, fit_view("stretch", (3, 3), (3, 3)))
    (region,) = find_regions(np.eye(3, dtype=np.float32), geometry, ALL)
    assert (region.mask == np.eye(3, dtype=bool)).all()
    assert region.energy == pytest.approx(1)

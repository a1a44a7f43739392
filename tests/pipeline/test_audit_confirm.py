"""Parts of photographs that are masked, pasted and compared, and what a model's answers to that come to."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.audit.comparison import with_states
from pipeline.audit.confirm import Model, confirm_shortcut, measure
from pipeline.audit.findings import Example, Finding, RuleResult, Scope
from pipeline.audit.patches import (
    compare_recurrence,
    describe_part,
    grow,
    mask,
    mirror,
    recurrence,
    to_pixels,
    transplant,
)
from pipeline.audit.regions import CORNERS, FRAME, Box, cell_box, cells_of, make_regions, place_of

SEVENTH = 1 / 7


def corner_model(images: Iterable[Image.Image]) -> np.ndarray:
    """Sees class 1 as surely as the last quarter, both ways, is red."""
    p = []
    for image in images:
        pixels = np.asarray(image, float) / 255
        h, w = pixels.shape[:2]
        p.append(pixels[3 * h // 4 :, 3 * w // 4 :, 0].mean())
    return np.stack([1 - np.array(p), p], axis=1)


def plain(color: tuple[int, int, int], size: tuple[int, int] = (40, 28)) -> Image.Image:
    return Image.new("RGB", size, color)


def red_cornered() -> Image.Image:
    image = plain((0, 0, 0))
    image.paste((255, 0, 0), (30, 21, 40, 28))
    return image


# regions


@pytest.mark.parametrize(
    ("box", "place"),
    [
        ((0, 0, 1 / 7, 1 / 7), "top-left corner"),
        ((6 / 7, 6 / 7, 1, 1), "bottom-right corner"),
        ((0, 6 / 7, 1, 1), "bottom edge"),
        ((0, 0, 1 / 7, 1), "left edge"),
        ((3 / 7, 6 / 7, 4 / 7, 1), "bottom edge, middle"),
        ((6 / 7, 1 / 7, 1, 2 / 7), "right edge, top"),
        ((3 / 7, 3 / 7, 4 / 7, 4 / 7), "centre"),
        ((1 / 7, 1 / 7, 2 / 7, 2 / 7), "top left part"),
        ((3 / 7, 5 / 7, 4 / 7, 6 / 7), "bottom part"),
    ],
)
def test_a_box_is_told_in_words(box: Box, place: str) -> None:
    assert place_of(box) == place


def test_seven_by_seven_cells_have_ninety_one_regions() -> None:
    regions = make_regions((7, 7))
    assert len(regions.places) == 49 + 36 + 4 + 1 + 1
    assert regions.areas[regions.places.index(CORNERS)] == pytest.approx(4 / 49)
    assert regions.areas[regions.places.index(FRAME)] == pytest.approx(24 / 49)


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (5, 8), (3, 3), (2, 3), (1, 1), (16, 16)])
def test_the_cells_of_a_region_follow_from_its_box_and_place(grid: tuple[int, int]) -> None:
    regions = make_regions(grid)
    for mask_, box, place in zip(regions.masks, regions.boxes, regions.places, strict=True):
        np.testing.assert_array_equal(cells_of(box, place, grid), mask_)


def test_a_fine_grid_has_no_region_smaller_than_a_cell_of_a_coarse_one() -> None:
    assert make_regions((14, 14)).areas.min() == pytest.approx(1 / 49)
    assert make_regions((14, 14), cells_only=True).areas.min() == pytest.approx(1 / 196)


def test_cells_are_counted_row_by_row() -> None:
    assert cell_box(5, (2, 4)) == (0.25, 0.5, 0.5, 1.0)


# patches


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ((6, 6, 7, 7), (5, 5, 7, 7)),  # a corner stays at the border
        ((5, 5, 6, 6), (4, 4, 7, 7)),  # a cell from the border reaches it
        ((3, 3, 4, 4), (2, 2, 5, 5)),
        ((2.1, 0, 3.1, 1), (1.1, 0, 4.1, 2)),  # a cell and more is left
        ((1.9, 0, 2.9, 1), (0, 0, 3.9, 2)),  # less than a cell would be left: taken along
    ],
)
def test_a_region_grows_by_a_cell_and_snaps_to_the_border(region: Box, expected: Box) -> None:
    (box,) = grow(tuple(edge / 7 for edge in region), None, (7, 7))
    assert box == pytest.approx([edge / 7 for edge in expected])


def test_on_a_finer_grid_a_region_grows_as_much() -> None:
    (box,) = grow((12 / 14, 12 / 14, 1.0, 1.0), None, (14, 14))
    assert box == pytest.approx((5 / 7, 5 / 7, 1, 1))


def test_corners_and_frame_are_four_boxes() -> None:
    assert min(grow((0, 0, 1, 1), CORNERS, (7, 7))) == pytest.approx((0, 0, 2 / 7, 2 / 7))
    frame = grow((0, 0, 1, 1), FRAME, (7, 7))
    assert len(frame) == 4
    assert mirror(frame) is None


def test_a_mirrored_place_is_on_the_other_side() -> None:
    assert mirror([(0.8, 0.7, 1.0, 0.9)]) == [pytest.approx((0.0, 0.7, 0.2, 0.9))]
    assert mirror([(0.4, 0.7, 0.6, 0.9)]) == [pytest.approx((0.4, 0.1, 0.6, 0.3))]
    assert mirror([(0.4, 0.4, 0.6, 0.6)]) is None


def test_masking_fills_a_box_with_the_mean_colour_and_leaves_the_rest() -> None:
    image = plain((10, 20, 30), (10, 10))
    image.paste((110, 20, 30), (0, 0, 5, 10))
    pixels = np.asarray(mask(image, [(0.5, 0.5, 1, 1)]))
    assert (pixels[5:, 5:] == (60, 20, 30)).all()
    assert (pixels[:5] == np.asarray(image)[:5]).all()
    assert (np.asarray(image)[5:, 5:] == (10, 20, 30)).all()


def test_a_transplant_moves_the_same_share_of_images_of_other_sizes() -> None:
    source, target = plain((255, 0, 0), (20, 30)), plain((0, 0, 255), (40, 10))
    pixels = np.asarray(transplant(source, target, [(0.75, 0.5, 1, 1)]))
    assert (pixels[5:, 30:] == (255, 0, 0)).all()
    assert (pixels[:5] == (0, 0, 255)).all()
    assert (pixels[:, :30] == (0, 0, 255)).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (7, 7)])
def test_a_box_is_a_pixel_at_least_and_inside_of_the_image(size: tuple[int, int]) -> None:
    for box in make_regions((7, 7)).boxes:
        left, top, right, bottom = to_pixels(box, size)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


def test_recurrence_is_the_mean_correlation_of_all_pairs() -> None:
    parts = np.random.default_rng(0).normal(size=(6, 50))
    parts /= np.linalg.norm(parts, axis=1, keepdims=True)
    pairs = [parts[i] @ parts[j] for i, j in itertools.combinations(range(6), 2)]
    assert recurrence(parts) == pytest.approx(np.mean(pairs))


def test_a_mark_recurs_where_grounds_do_not() -> None:
    rng = np.random.default_rng(1)
    grounds = [Image.fromarray(rng.integers(0, 200, (70, 70, 3), np.uint8)) for _ in range(40)]
    marked = [image.copy() for image in grounds[:20]]
    for image in marked:
        image.paste((255, 255, 255), (50, 55, 62, 59))
    box = (0.6, 0.6, 1.0, 1.0)
    parts, others = (np.stack([describe_part(image, box) for image in some]) for some in (marked, grounds[20:]))
    found = compare_recurrence(parts, others)
    assert found["recurrence"] > 0.1
    assert found["recurrence_of_others"] < 0.03


def test_what_is_smooth_has_nothing_to_recur() -> None:
    assert describe_part(plain((90, 90, 90)), (0, 0, 1, 1)).any() == np.False_
    gradient = Image.fromarray(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None].repeat(64, 1).repeat(3, 2))
    parts = np.stack([describe_part(gradient, (0, 0, 1, 1))] * 3)
    assert np.isfinite(recurrence(parts))


# the experiment


def test_a_model_that_goes_by_the_corner_is_measured_as_such() -> None:
    marked, clean = [red_cornered()] * 10, [plain((0, 255, 0))] * 12
    told = measure(corner_model, 1, marked, clean, [(0.75, 0.75, 1, 1)])
    red = 255 * (10 * 7) / (40 * 28) / 255  # the mean colour, which the mask is filled with
    assert told["p_marked"] == 1
    assert told["p_masked"] == pytest.approx(red, abs=0.01)
    assert told["mask_drop"] == pytest.approx(1 - red, abs=0.01)
    assert told["transplant_rise"] == 1
    assert (told["mask_mirrored"], told["transplant_mirrored"]) == (0, 0)


def test_a_class_that_is_nowhere_in_the_corner_is_measured_as_such() -> None:
    told = measure(corner_model, 0, [plain((0, 0, 9))] * 10, [plain((0, 255, 0))] * 10, [(0.75, 0.75, 1, 1)])
    assert (told["mask_drop"], told["transplant_rise"]) == (0, 0)


@pytest.fixture
def images(tmp_path: Path) -> tuple[list[Example], list[Example]]:
    groups = []
    for name, image, count in (("red", red_cornered(), 9), ("green", plain((0, 255, 0)), 11)):
        group = []
        for number in range(count):
            image.save(tmp_path / f"{name}{number}.png")
            group.append(Example(f"{number:032x}", str(tmp_path / f"{name}{number}.png")))
        groups.append(group)
    return groups[0], groups[1]


def finding(region: Box = (6 / 7, 6 / 7, 1.0, 1.0)) -> Finding:
    return Finding("BC101", "warning", Scope(1, "red", "predicted"), 9.0, 4.0, 9, "red: it", "", "",
                   region=region, place=place_of(region))  # fmt: skip


def test_a_shortcut_that_the_model_goes_by_is_an_error(images: tuple[list[Example], list[Example]]) -> None:
    told = confirm_shortcut(finding(), *images, Model(corner_model, True), (7, 7), 0.1)
    assert (told.severity, told.evidence["confirmed"]) == ("error", True)
    assert "red: it; confirmed: pasted into 11 other images, the place takes p(red) from 0.00 to 1.00" in told.message
    assert told.key == finding().key


def test_a_shortcut_that_the_model_does_not_go_by_stays_a_warning(images: tuple[list[Example], list[Example]]) -> None:
    def indifferent(some: Iterable[Image.Image]) -> np.ndarray:
        return np.full((len(list(some)), 2), 0.5)

    told = confirm_shortcut(finding(), *images, Model(indifferent, False), (7, 7), 0.1)
    assert (told.severity, told.evidence["confirmed"], told.evidence["model_of_run"]) == ("warning", False, False)


def test_a_rise_just_below_the_threshold_is_not_enough(images: tuple[list[Example], list[Example]]) -> None:
    def weak(some: Iterable[Image.Image]) -> np.ndarray:
        return 0.1 * corner_model(some)

    rise = confirm_shortcut(finding(), *images, Model(weak, True), (7, 7), 0.0).evidence["transplant_rise"]
    for threshold, severity in ((rise * 0.999, "error"), (rise * 1.001, "warning")):
        assert confirm_shortcut(finding(), *images, Model(weak, True), (7, 7), threshold).severity == severity


def test_a_place_in_the_centre_or_images_that_are_gone_confirm_nothing(
    images: tuple[list[Example], list[Example]],
) -> None:
    central = confirm_shortcut(finding((3 / 7, 3 / 7, 4 / 7, 4 / 7)), *images, Model(corner_model, True), (7, 7), 0.0)
    assert (central.severity, central.evidence["confirmed"]) == ("warning", None)
    assert "around the centre" in central.message
    for example in images[0][:2]:
        Path(example.uri).unlink()
    few = confirm_shortcut(finding(), *images, Model(corner_model, True), (7, 7), 0.0)
    assert (few.severity, few.evidence["confirmed"]) == ("warning", None)
    assert "only 7 images of the class and 11 others could be read" in few.message


@pytest.mark.parametrize(("confirmed", "severity"), [(True, "error"), (None, "error"), (False, "warning")])
def test_a_shortcut_that_the_baseline_did_not_have_is_an_error_unless_the_model_denies_it(
    confirmed: bool | None, severity: str
) -> None:
    told = dataclasses.replace(finding(), evidence={"confirmed": confirmed})
    (result,) = with_states([RuleResult("BC101", True, None, 2, (told,))], [])
    assert [(one.severity, one.state) for one in result.findings] == [(severity, "new")]

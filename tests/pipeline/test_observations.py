"""What is observed of records: against hand-made ones, whatever the file that they are from says of them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import RunError, open_run, parquet
from pipeline.attention import correlate, describe_map, to_grid
from pipeline.codec import encode_map
from pipeline.geometry import Geometry, fit_view
from pipeline.layout import RunLayout
from pipeline.observations import MAX_BOXES, SCALARS, ClassFinder, cover_cells, observe, read_observations
from pipeline.records import MapRecord, Record
from pipeline.sums import UNIT, Sums
from tests.runs import FakeRun, change_rows

STRETCHED = Geometry(70, 140, fit_view("stretch", (70, 140), (28, 28)))


def make_map(
    values: Any, target: int = 0, method: str = "cam", geometry: Geometry = STRETCHED, **changes: Any
) -> MapRecord:
    """A map as files of before attention was measured have it."""
    array = np.asarray(values, np.float32)
    row, column = np.unravel_index(array.argmax(), array.shape)
    view = geometry.view
    x, y = view.to_original((column + 0.5) * view.width / array.shape[1], (row + 0.5) * view.height / array.shape[0])
    found = MapRecord(method, target, 0, 1.0, 0.25, encode_map(array), None, x, y, float(np.maximum(array, 0).sum()),
                      0.125, None, geometry)  # fmt: skip
    return dataclasses.replace(found, **changes)


def make_record(*maps: MapRecord, logits: Any = (3.0, 1.0, 2.0), label: str | None = None, **changes: Any) -> Record:
    number = changes.pop("number", 0)
    found = Record(f"{number:032x}", f"/{number}.jpg", "ab" * 32, label, changes.pop("geometry", STRETCHED),
                   np.array(logits, np.float32), None, maps)  # fmt: skip
    return dataclasses.replace(found, **changes)


RIGHT = [[0, 0, 0], [0, 0, 4.0]]
LEFT = [[2.0, 1, 0], [1, 0, -1]]
NOWHERE = [[-1.0, 0, 0], [0, 0, 0]]


# Which map, and where


def test_the_map_of_the_predicted_class_stands_for_an_image_then_its_labels_then_the_first() -> None:
    best, of_label, other = make_map(RIGHT, 0), make_map(LEFT, 2), make_map(np.flip(LEFT), 1)
    strange = make_map(np.ones((2, 3)), 0, "gradcam")
    records = [make_record(strange, other, of_label, best, label="2"), make_record(strange, other, of_label, label="2"),
               make_record(other, of_label), make_record(strange)]  # fmt: skip
    seen = observe(records, "cam")
    np.testing.assert_allclose(seen.maps[0], np.array(RIGHT) / 4)
    np.testing.assert_allclose(seen.maps[1], [[0.5, 0.25, 0], [0.25, 0, 0]])
    np.testing.assert_allclose(seen.maps[2], [[0, 0, 0.25], [0, 0.25, 0.5]])
    assert not seen.maps[3].any()
    assert seen.peak.tolist() == [5, 0, 5, -1]
    assert seen.grid == (2, 3)


def test_a_map_that_is_nowhere_positive_is_empty() -> None:
    seen = observe([make_record(make_map(NOWHERE)), make_record(make_map(RIGHT))], "cam")
    assert seen.peak.tolist() == [-1, 5]
    assert seen.maps[0].sum() == 0
    assert np.isnan([seen.scalars[name][0] for name in ("spread", "gini", "components50", "border_energy")]).all()
    assert not np.isnan([seen.scalars[name][1] for name in ("spread", "gini", "components50", "border_energy")]).any()


@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(90, 40), (40, 90), (33, 33)])
def test_a_mark_is_observed_where_it_is_in_the_image(mode: str, size: tuple[int, int]) -> None:
    geometry = Geometry(*size, fit_view(mode, size, (48, 48)))
    for row, column in ((0, 0), (3, 5), (7, 7), (4, 0)):
        values = np.zeros((8, 8), np.float32)
        values[row, column] = 1
        seen = observe([make_record(make_map(values, geometry=geometry), geometry=geometry)], "cam")
        np.testing.assert_array_equal(seen.maps[0], to_grid(values, geometry))
        if seen.maps[0].any():
            assert seen.maps[0].ravel()[seen.peak[0]] > 0, "the peak's cell holds some of the mark"
        else:
            assert mode == "pad"  # of a mark in the bars nothing is left
            assert seen.peak[0] == -1


def test_images_of_different_views_are_told_apart_however_they_are_mixed() -> None:
    sizes = [(90, 40), (40, 90), (64, 64)] * 3
    rng = np.random.default_rng(0)
    records, wanted = [], []
    for number, size in enumerate(sizes):
        geometry = Geometry(*size, fit_view("crop", size, (32, 32)))
        values = rng.normal(size=(5, 4)).astype(np.float32)
        records.append(make_record(make_map(values, geometry=geometry), geometry=geometry, number=number))
        wanted.append(to_grid(records[-1].maps[0].array(), geometry))
    np.testing.assert_allclose(observe(records, "cam").maps, wanted, atol=1e-6)


def test_fine_maps_are_pooled_and_keep_their_peak() -> None:
    values = np.zeros((40, 20), np.float32)
    values[33, 19] = 1
    seen = observe([make_record(make_map(values))], "cam")
    assert seen.grid == (16, 16)
    assert divmod(int(seen.peak[0]), 16) == (33 * 16 // 40, 19 * 16 // 20)


def test_maps_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"maps of one method are of different sizes: \[\(2, 2\), \(2, 3\)\]"):
        observe([make_record(make_map(RIGHT)), make_record(make_map(np.ones((2, 2))))], "cam")


def test_no_records_are_no_observations() -> None:
    seen = observe([], "cam")
    assert (len(seen), seen.grid, seen.uris) == (0, (0, 0), [])
    assert set(seen.scalars) == set(SCALARS)


# Labels and predictions


def test_labels_are_names_or_indices_as_in_the_job() -> None:
    find = ClassFinder(["cat", "dog", "3", "cat"])
    labels = ("cat", "dog", "3", "0", "1.0", "4", "wolf", None, "-1", "", "9" * 5000)
    assert [find(label) for label in labels] == [0, 1, 2, 0, 1, -1, -1, -1, -1, -1, -1]
    unnamed = ClassFinder(None)
    assert [unnamed(label) for label in ("5000", "cat", "7.00", "9" * 12)] == [5000, -1, 7, -1]


def softmax(logits: Any) -> np.ndarray:
    powers = np.exp(np.asarray(logits, np.float64))
    return powers / powers.sum()


def test_what_a_record_does_not_say_of_its_prediction_follows_from_its_logits() -> None:
    p = softmax([3, 1, 2])
    entropy = -(p * np.log(p)).sum()
    seen = observe([make_record(label="0"), make_record(label="1"), make_record()], "cam")
    assert seen.predicted.tolist() == [0, 0, 0]
    assert seen.runner_up.tolist() == [2, 2, 2]
    np.testing.assert_allclose(seen.confidence, p[0], rtol=1e-6)
    np.testing.assert_allclose(seen.margin, p[0] - p[2], rtol=1e-6)
    right, wrong = (1 - math.exp(-entropy)) / 2, (1 + math.exp(-entropy)) / 2
    np.testing.assert_allclose(seen.mistakenness, [right, wrong, np.nan], rtol=1e-6)
    np.testing.assert_array_equal(seen.scalars["confidence"], seen.confidence)


def test_probabilities_of_a_sigmoid_are_of_each_class_alone() -> None:
    p = 1 / (1 + np.exp(-np.array([3.0, 1, 2])))
    best = {"logits": (3.0, 2.0), "logit_classes": np.array([7, 4], np.int32)}
    seen = observe([make_record(), make_record(**best)], "cam", probability="sigmoid")
    np.testing.assert_allclose(seen.confidence, p[0], rtol=1e-6)
    np.testing.assert_allclose(seen.margin, p[0] - p[2], rtol=1e-5)
    assert (seen.predicted.tolist(), seen.runner_up.tolist()) == ([0, 7], [2, 4])


def test_of_the_best_logits_alone_only_what_stands_beside_maps_is_known() -> None:
    best = {"logits": (2.0, 3.0), "logit_classes": np.array([4, 7], np.int32)}
    beside = make_map(RIGHT, 7, probability=0.75)
    both = (beside, make_map(LEFT, 4, probability=0.125))
    seen = observe([make_record(**best), make_record(beside, **best), make_record(*both, **best)], "cam")
    assert seen.predicted.tolist() == [7, 7, 7]
    np.testing.assert_array_equal(seen.confidence, np.array([np.nan, 0.75, 0.75], np.float32))
    np.testing.assert_array_equal(seen.margin, np.array([np.nan, np.nan, 0.625], np.float32))
    assert np.isnan(seen.mistakenness).all()


def test_what_a_record_says_is_taken_as_it_is() -> None:
    said = {"confidence": 0.5, "runner_up": 1, "runner_up_confidence": 0.125, "entropy": math.log(2)}
    seen = observe([make_record(label="1", **said)], "cam")
    assert (seen.runner_up[0], seen.confidence[0], seen.margin[0]) == (1, 0.5, 0.375)
    assert seen.mistakenness[0] == pytest.approx(0.75)
    measured = make_map(LEFT, peak_cell=0, gini=0.5, spread=0.25, top2_cc=-0.5, components50=3)
    scalars = observe([make_record(measured, **said)], "cam").scalars
    assert [scalars[n][0] for n in ("gini", "spread", "top2_cc", "components50")] == [0.5, 0.25, -0.5, 3]
    assert np.isnan(scalars["coverage50"][0]), "measured, and not known"


def test_a_model_of_one_class_has_no_runner_up() -> None:
    seen = observe([make_record(logits=(0.0,))], "cam")
    assert (seen.predicted[0], seen.runner_up[0], seen.confidence[0]) == (0, -1, 0.5)
    assert np.isnan(seen.margin[0])


# Scalars


def test_what_files_of_before_do_not_measure_is_found_from_their_maps() -> None:
    best, next_best = make_map(LEFT, 0), make_map(np.flip(LEFT), 2)
    scalars = observe([make_record(best, next_best), make_record(best)], "cam").scalars
    wanted = describe_map(best.array(), STRETCHED)
    for name in ("spread", "eff_area", "gini", "coverage50", "border_energy", "corner_energy", "components50"):
        assert scalars[name][0] == pytest.approx(getattr(wanted, name), rel=1e-6), name
    assert scalars["top2_cc"][0] == pytest.approx(correlate(best.array(), next_best.array()), rel=1e-6)
    assert np.isnan(scalars["top2_cc"][1])
    assert scalars["negative_share"].tolist() == [0.125, 0.125]


def test_boxes_are_measured_on_the_map_of_their_own_class() -> None:
    boxes = {f"{0:032x}": [(0, 0, 35, 70)]}  # the left half of the upper half, in 70 x 140 pixels
    records = [make_record(make_map(LEFT, 0), label=label) for label in ("0", None, "2")]
    seen = observe(records, "cam", boxes=boxes).scalars
    # Of the upper row: all of the first cell (1/2), half of the second (1/4).
    np.testing.assert_allclose(seen["energy_in_box"], [0.625, 0.625, np.nan])
    np.testing.assert_allclose(seen["box_area"], [0.25, 0.25, np.nan])
    empty = observe([make_record(make_map(NOWHERE, 0))], "cam", boxes=boxes).scalars
    assert np.isnan(empty["energy_in_box"][0])
    assert empty["box_area"][0] == 0.25
    many = {f"{0:032x}": [(0, 0, 1, 1)] * (MAX_BOXES + 1)}
    assert np.isnan(observe(records, "cam", boxes=many).scalars["box_area"]).all()


@pytest.mark.parametrize("seed", range(4))
def test_cells_that_overlapping_boxes_cover_are_covered_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height, grid = 60, 40, (4, 5)
    corners = rng.integers(-10, 50, (5, 2))
    boxes = [
        (int(x), int(y), int(w), int(h)) for (x, y), (w, h) in zip(corners, rng.integers(0, 30, (5, 2)), strict=True)
    ]
    pixels = np.zeros((height, width))
    for x, y, w, h in boxes:
        pixels[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = 1
    wanted = pixels.reshape(grid[0], height // grid[0], grid[1], width // grid[1]).mean(axis=(1, 3))
    np.testing.assert_allclose(cover_cells(boxes, (width, height), grid), wanted, atol=1e-12)


def cover_box_by_box(boxes: np.ndarray, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """The area of each cell that some box covers, by looking at the middle of each piece between any two edges."""
    edges = []
    for axis, n in ((0, grid[1]), (1, grid[0])):
        cuts = [i / n for i in range(n + 1)]
        cuts += [(box[axis] + k * box[axis + 2]) / size[axis] for box in boxes for k in (0, 1)]
        edges.append(sorted({cut for cut in cuts if 0 <= cut <= 1}))
    covered = np.zeros(grid)
    for top, bottom in zip(edges[1], edges[1][1:], strict=False):
        for left, right in zip(edges[0], edges[0][1:], strict=False):
            x, y = (left + right) / 2 * size[0], (top + bottom) / 2 * size[1]
            if any(a < x < a + w and b < y < b + h for a, b, w, h in boxes):
                covered[int(y / size[1] * grid[0]), int(x / size[0] * grid[1])] += (bottom - top) * (right - left)
    return covered * grid[0] * grid[1]


@pytest.mark.parametrize("seed", range(6))
def test_boxes_of_any_kind_cover_what_looking_at_each_of_them_gives(seed: int) -> None:
    """Beside, inside and beyond the image, inside out along one axis or both, and several times the same."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.uniform(-30, 110, (12, 2)), rng.uniform(-30, 60, (12, 2))], axis=1)
    boxes = np.concatenate([boxes, boxes[:2], [(10, 10, -20, -20), (0, 0, 20, 10), (20, 10, 5, 5)]])
    found = cover_cells(boxes.tolist(), (80, 60), (5, 7))
    assert 0 < found.mean() < 1
    np.testing.assert_allclose(found, cover_box_by_box(boxes, (80, 60), (5, 7)), atol=1e-12)


def test_a_sliver_of_a_box_at_the_images_end_is_in_its_last_cell() -> None:
    found = cover_cells([(1 - 2**-53, 1 - 2**-53, 1, 1)], (1, 1), (2, 2))
    np.testing.assert_allclose(found, np.zeros((2, 2)), atol=1e-12)


def test_boxes_that_are_none_cover_nothing() -> None:
    strange = [(math.nan, 0, 1, 1), (math.inf, 0, 1, 1), (5, 5, -3, -3), (100, 100, 5, 5)]
    assert cover_cells(strange, (10, 10), (2, 2)).tolist() == [[0, 0], [0, 0]]


# Runs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    FakeRun(str(tmp_path / "run"), n_images=20, shard_size=8).write()
    return tmp_path / "run"


def test_a_run_is_read_a_shard_at_a_time(run: Path) -> None:
    found = list(read_observations(open_run(run)))
    assert [len(seen) for seen in found] == [7, 7, 3]
    assert [uri for seen in found for uri in seen.uris] == [record.uri for record in open_run(run)]
    assert {seen.method for seen in found} == {"gradcam"}
    other = list(read_observations(open_run(run), "scorecam(channels=32)", shards=[1]))
    wanted = np.maximum(next(r for r in open_run(run) if r.uri == other[0].uris[0]).maps[1].array(), 0)
    assert len(other) == 1
    assert other[0].maps[0].ravel()[other[0].maps[0].argmax()] > 0
    assert wanted.shape == (2, 3)


def test_some_images_are_read_by_their_ids(run: Path) -> None:
    ids = [record.id for record in open_run(run)][3:12:4]
    found = [identity.decode() for seen in read_observations(RunLayout(str(run)), ids=ids) for identity in seen.ids]
    assert found == ids


def test_records_read_without_their_logits_are_observed_alike(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(run / "records/part-00000.parquet")
    light, whole = list(parquet.read_records(path, with_logits=False)), list(parquet.read_records(path))
    said = {"confidence": 0.5, "runner_up": 1, "runner_up_confidence": 0.125, "entropy": 0.3}
    (run / "records/part-00000.parquet").write_bytes(
        parquet.encode_records([dataclasses.replace(record, **said) for record in whole], {})
    )
    light = list(parquet.read_records(path, with_logits=False))
    assert [len(record.logits) for record in light] == [1] * len(whole)
    assert [record.predicted for record in light] == [record.predicted for record in whole]
    one, other = (observe(records, "gradcam", [*"abcde"]) for records in (light, parquet.read_records(path)))
    for name, values in vars(one).items():
        if isinstance(values, np.ndarray):
            np.testing.assert_array_equal(values, getattr(other, name), err_msg=name)
    for name, values in one.scalars.items():
        np.testing.assert_array_equal(values, other.scalars[name], err_msg=name)


@pytest.mark.parametrize("data", [b"", b"PAR1", None])
def test_a_run_that_cannot_be_read_says_which_file_is_damaged(run: Path, data: bytes | None) -> None:
    path = run / "records/part-00001.parquet"
    path.write_bytes(data) if data is not None else path.unlink()
    with pytest.raises(RunError, match=r"records/part-00001\.parquet cannot be read: "):
        list(read_observations(open_run(run)))


def test_a_run_that_does_not_name_its_methods_is_told(run: Path) -> None:
    summary = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(summary | {"config": {"methods": []}}))
    with pytest.raises(RunError, match=r"does not say by what methods its maps were made, but \[\]"):
        list(read_observations(open_run(run)))


HOSTILE: dict[str, dict[str, Any]] = {
    "infinite": {"scale": math.inf},
    "a peak nowhere": {"peak_x": math.nan},
    "fewer bytes than cells": {"data": b"\0"},
    "of a dtype that is none": {"dtype": "object"},
    "of a negative size": {"height": -2, "width": -3},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_maps_are_told_in_one_line(run: Path, name: str) -> None:
    change_rows(run, 0, lambda rows: rows[0]["maps"][0].update(HOSTILE[name]))
    with pytest.raises(RunError, match=r"records/part-00000\.parquet cannot be read: \w+: .+"):
        list(read_observations(open_run(run)))


@pytest.mark.parametrize("change", [{"width": 0}, {"maps": None}, {"maps": [None]}, {"view": None}, {"id": "é"}])
def test_hostile_records_are_told_in_one_line(run: Path, change: dict[str, Any]) -> None:
    change_rows(run, 0, lambda rows: rows[0].update(change))
    with pytest.raises(RunError, match=r"records/part-00000\.parquet cannot be read: \w+: .+"):
        list(read_observations(open_run(run)))


def test_numbers_beyond_what_they_can_be_count_at_the_end_of_what_they_can_be() -> None:
    strange = make_map(LEFT, peak_cell=0, gini=math.inf, spread=-5.0, components50=10**6)
    seen = observe([make_record(strange, confidence=1e30)], "cam")
    sums = Sums.of(seen).by_predicted
    assert [np.flatnonzero(sums.histograms[name][0]).tolist() for name in ("gini", "spread", "components50")] == [
        [31], [0], [31]]  # fmt: skip
    assert sums.confidence.tolist() == [UNIT]

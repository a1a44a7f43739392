"""MaxBoxAccV2 is that of a slow count; the command prints it for each method and exports at the threshold it finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pipeline.cli import main
from pipeline.errors import ConfigError
from pipeline.exports import calibration
from pipeline.exports.calibration import (
    OVERLAPS,
    THRESHOLDS,
    BoxScores,
    describe_scores,
    overlaps,
    read_boxes,
    score_boxes,
)
from pipeline.reading import Run
from tests.exports.making import METHOD, PICTURES, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("calibration"))


def slow_overlap(a: list[int], b: list[int]) -> float:
    """Of boxes with whole numbers, by counting pixels."""
    first, second = ({(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])} for box in (a, b))
    return len(first & second) / len(first | second)


def test_overlaps_are_shares_of_pixels() -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 8, (2, 6, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 8, (2, 6, 2))], axis=2)
    found = overlaps(*boxes.astype(np.float64))
    expected = [[slow_overlap(a.tolist(), b.tolist()) for b in boxes[1]] for a in boxes[0]]
    np.testing.assert_allclose(found, expected)
    assert 0 < np.count_nonzero(found) < found.size


def test_scores_are_those_of_a_slow_count(run: Run) -> None:
    """The photographs are smaller than the 224 pixels at which boxes are compared."""
    (scores,) = score_boxes(run, read_boxes(run, "boxes")).values()
    assert scores.n == len(PICTURES)
    right = np.zeros((len(PICTURES), len(THRESHOLDS), len(OVERLAPS)))
    for i, (record, one) in enumerate(zip(run, PICTURES, strict=True)):
        values = record.maps[0].resized()
        for j, threshold in enumerate(THRESHOLDS):
            if values.max() > 0:
                labels, n = ndimage.label(values >= threshold * values.max(), np.ones((3, 3)))
                parts = [np.argwhere(labels == k + 1) for k in range(n)]
                best = max(
                    slow_overlap([*part.min(0)[::-1], *(part.max(0) + 1)[::-1]], list(one.marker)) for part in parts
                )
                right[i, j] = [best >= overlap for overlap in OVERLAPS]
    accuracy = right.mean(axis=0)
    np.testing.assert_allclose(scores.accuracy, accuracy)
    assert scores.max_box_acc_v2 == pytest.approx(np.mean([accuracy[:, k].max() for k in range(3)]))
    assert 0.3 < scores.max_box_acc_v2 < 1
    best = accuracy.mean(axis=1)
    assert best[THRESHOLDS.index(scores.best_threshold)] == best.max()


def test_the_best_threshold_is_one_for_all_overlaps_and_v2_is_not() -> None:
    accuracy = np.zeros((len(THRESHOLDS), 3))
    accuracy[5], accuracy[20] = (0.9, 0.1, 0.0), (0.5, 0.6, 0.2)
    scores = BoxScores(10, accuracy)
    assert scores.max_box_acc_v2 == pytest.approx((0.9 + 0.6 + 0.2) / 3)
    assert scores.best_threshold == THRESHOLDS[20]
    assert scores.mean_at(THRESHOLDS[5]) == pytest.approx(1 / 3)
    assert scores.mean_at(0.2) == 0
    assert "0.567" in describe_scores({"gradcam": scores})[1]


def test_large_photographs_are_compared_at_224_pixels(tmp_path: Path) -> None:
    small = PICTURES[0]
    large = replace(small, size=(640, 480), marker=tuple(10 * edge for edge in small.marker))
    scores = [score_boxes(r, read_boxes(r, "boxes"))[METHOD]
              for r in (make_run(tmp_path / "a", [small]), make_run(tmp_path / "b", [large]))]  # fmt: skip
    assert np.abs(scores[0].accuracy - scores[1].accuracy).mean() < 0.1
    assert calibration._SIDE == 224


def test_the_command_prints_the_table_and_exports_at_the_best_threshold(run: Run, tmp_path: Path, capsys) -> None:
    assert main(["export", run.path, "--calibrate", "boxes"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["method", "images", "MaxBoxAccV2"]
    assert table[1].split()[:2] == [METHOD, "10"]
    best = float(table[1].split()[3])
    output = tmp_path / "a.json"
    assert main(["export", run.path, "--calibrate", "boxes", "--to", "coco", "--output", str(output)]) == 0
    assert json.loads(output.read_text())["info"]["threshold"] == best != 0.2


def test_boxes_come_from_another_manifest_too(run: Run, tmp_path: Path) -> None:
    uri = next(iter(run)).uri
    (tmp_path / "boxes.jsonl").write_text(json.dumps({"uri": uri, "boxes": [[8, 12, 16, 12]]}) + "\n")
    assert score_boxes(run, read_boxes(run, str(tmp_path / "boxes.jsonl")))[METHOD].n == 1
    (tmp_path / "none.jsonl").write_text(json.dumps({"uri": uri}) + "\n")
    with pytest.raises(ConfigError, match=r"needs boxes, and .* has none"):
        read_boxes(run, str(tmp_path / "none.jsonl"))

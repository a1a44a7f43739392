"""A file of sums that an earlier program wrote is read by today's, number for number; a missing file is a failure.

`python -m tests.golden.test_golden_sums` writes one for another `sums.VERSION`; the old one then goes, since sums of
another version are made again from records.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from pipeline.observations import SCALARS, Observations
from pipeline.sums import UNIT, VERSION, Sums

FILE = Path(__file__).parent / f"sums-{VERSION}" / "part.npz"


def golden_sums() -> Sums:
    """Three images: two of class 1, one of them taken for class 4, and one without a label and with an empty map."""
    maps = np.array([[[0.5, 0.25, 0.25]], [[0, 0, 1]], [[0, 0, 0]]], np.float32)
    values = np.array([0.25, 0.75, np.nan], np.float32)
    seen = Observations(
        ids=np.array(["0" * 31 + c for c in "abc"], "S32"),
        uris=["/a", "/b", "/c"],
        label=np.array([1, 1, -1], np.int32),
        predicted=np.array([1, 4, 4], np.int32),
        runner_up=np.array([4, 1, -1], np.int32),
        confidence=np.array([0.75, 0.5, 0.25], np.float32),
        margin=values,
        mistakenness=values,
        peak=np.array([0, 2, -1], np.int32),
        maps=maps,
        scalars=dict.fromkeys(SCALARS, values),
        method="gradcam",
    )
    sums = Sums.of(seen, failures_by_type={"decode:BrokenImage": 2}, shard=6)
    return dataclasses.replace(sums, parts_digest=1 << 255)


def test_sums_of_this_version_are_read_as_they_were_written() -> None:
    sums = Sums.from_bytes(FILE.read_bytes())
    assert (sums.method, sums.grid, sums.shards, sums.parts_digest) == ("gradcam", (1, 3), ((6, 7),), 1 << 255)
    assert (sums.n_images, sums.n_failed, sums.n_empty, sums.n_unlabelled) == (3, 2, 1, 1)
    assert sums.failures_by_type == {"decode:BrokenImage": 2}
    one, four = sums.by_label, sums.by_predicted
    assert (one.classes.tolist(), four.classes.tolist()) == ([1], [1, 4])
    assert (one.n.tolist(), one.n_correct.tolist(), one.n_labelled.tolist()) == ([2], [1], [2])
    assert (four.n.tolist(), four.n_empty.tolist(), four.n_labelled.tolist()) == ([1, 2], [0, 1], [1, 1])
    assert (one.mass / UNIT).tolist() == [[[0.5, 0.25, 1.25]]]
    assert (one.mass_squared / UNIT).tolist() == [[[0.25, 0.0625, 1.0625]]]
    assert (one.peaks.tolist(), one.peaks_correct.tolist()) == ([[[1, 0, 1]]], [[[1, 0, 0]]])
    assert one.exceeding.tolist() == [[[1, 1, 2]]]
    assert (one.confidence / UNIT).tolist() == [1.25]
    assert (one.self_confidence / UNIT).tolist() == [0.75]
    assert np.flatnonzero(one.histograms["gini"][0]).tolist() == [8, 24]
    assert one.sample_ids[0, :3].tolist() == [b"0" * 31 + b"a", b"0" * 31 + b"b", b""]
    assert sums.count_pairs() == {(1, 1): 1, (1, 4): 1}
    assert {pair: np.flatnonzero(counts).tolist() for pair, counts in sums.count_top2().items()} == {
        (1, 4): [20],
        (4, 1): [28],
    }


def test_todays_program_writes_the_same_sums() -> None:
    assert Sums.from_bytes(FILE.read_bytes()).to_bytes() == golden_sums().to_bytes()


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(golden_sums().to_bytes())
